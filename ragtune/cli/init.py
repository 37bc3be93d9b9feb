"""`ragtune init`: a commented ragtune.toml for somebody's own folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from ragtune import store
from ragtune.cli.output import out
from ragtune.config import build_config
from ragtune.errors import InputError

_TEMPLATE = """\
# What ragtune knows about this project. Every key is optional but name and documents.
name = "{name}"
documents = {documents}

[index]
embedder = "all-minilm-l6-v2"       # embedded default; or a local folder, or a hub id
passage_tokens = 120                # largest passage, in the embedder's tokens
# exclude = ["drafts/*"]

[retrieval]
k = 3                               # passages given to the model

[generator]
model = "smollm2-135m-instruct"     # embedded default, 135M parameters; or a local folder, or a hub id

# Tasks make a verdict possible: a task is a JSONL file of questions with a train, dev and test split. A line is
#   {{"id": "q1", "split": "test", "question": "...", "answers": ["..."],
#    "evidence": [{{"document": "path/below/documents.md", "text": "the words that hold the answer"}}]}}
# answers = [] means that the documents do not say. Check the file with: ragtune check
#
# [tasks.facts]
# questions = "facts.jsonl"
# format = "short"                  # short, label, json or text
# instruction = "Answer in a few words."

# [evaluate]
# margin = 0.02                     # a cheaper arm this close to the best is as good

# [prices]                          # per 1,000 tokens, in one currency of yours
# prompt = 0.05
# output = 0.20
"""


@click.command("init")
@click.argument("documents", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the project; by default that of the folder.")
@click.option("--force", is_flag=True, help="Replace a ragtune.toml that is there.")
def command(documents: Path, name: str | None, force: bool) -> None:
    """Write a commented ragtune.toml for the folder DOCUMENTS, into the current folder.

    \b
    Example:
      ragtune init ~/handbook
    """
    if not documents.is_dir():
        raise InputError(f"{documents} is not a folder; name the folder that holds your documents")
    target = Path("ragtune.toml")
    if target.exists() and not force:
        raise InputError(f"{target} exists already; edit it, or replace it with --force")
    chosen = name or re.sub(r"[^a-z0-9._-]+", "-", documents.resolve().name.lower()).strip("-._") or "documents"
    build_config({"name": chosen}, target)  # refuses a name that could not be loaded again
    # A JSON string is a TOML string, too.
    path = json.dumps(str(documents), ensure_ascii=False)
    store.write_text(target, _TEMPLATE.format(name=chosen, documents=path))
    out().print(f"wrote {target}. Next:", markup=False)
    for line in ("ragtune index", 'ragtune ask "your question"', "ragtune check   (once you have added a task)"):
        out().print(f"  {line}", style="cyan")
