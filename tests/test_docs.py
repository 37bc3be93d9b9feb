"""The documentation against what it describes: generated pages, links, dependencies, counts and examples."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ragtune.assistant import ARMS
from ragtune.config import DEFAULT_METRICS, load_config
from ragtune.corpus.questions import load_task
from ragtune.evaluator.metrics.answer import METRICS
from ragtune.types import AnswerFormat

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CORPORA = sorted(path.parent for path in (ROOT / "corpora").glob("*/ragtune.toml"))
PAGES = [
    path
    for path in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *sorted(DOCS.glob("*.md")),
        ROOT / "indexes" / "README.md",
        ROOT / "corpora" / "README.md",
        *sorted((ROOT / "corpora").glob("*/README.md")),
    )
    if path.exists()
]
SPLITS = ("train", "dev", "test")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


# --- generated pages -------------------------------------------------------------------------------------------------


def test_generated_pages_are_up_to_date() -> None:
    assert script("make_docs").main(["--check"]) == 0


def test_a_stale_page_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_docs = script("make_docs")
    monkeypatch.setattr(make_docs, "DOCS", tmp_path)
    assert make_docs.main(["--check"]) == 1
    assert not list(tmp_path.iterdir())
    assert make_docs.main([]) == 0
    assert make_docs.main(["--check"]) == 0
    (tmp_path / "cli.md").write_text("old\n", encoding="utf-8")
    capsys.readouterr()
    assert make_docs.main(["--check"]) == 1
    assert capsys.readouterr().err.startswith("docs/cli.md is not up to date")


# --- links -----------------------------------------------------------------------------------------------------------


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """The ids that GitHub gives headings: lower case, spaces as hyphens, punctuation dropped."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_are_seen() -> None:
    assert {"retrieval.md", "concepts.md#what-a-manifest-holds"} <= {link for page in PAGES for link in links(page)}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


# --- pages against the code ------------------------------------------------------------------------------------------


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {"Core": project["dependencies"], **{f"Extra `{name}`": extras[name] for name in extras}}
    found: dict[str, list[str]] = {}
    for section in (DOCS / "dependencies.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        found[title] = re.findall(r"^- `([^`]+)`: \S", body, re.MULTILINE)
    found.pop("Beside these")
    assert found == {
        title: [re.split(r"[\[<>=~!;]", requirement)[0] for requirement in requirements]
        for title, requirements in wanted.items()
    }


def test_the_table_of_arms() -> None:
    text = (DOCS / "concepts.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([^`]+)`( \(reference\))? \| (yes|no) \| (none|retrieved|gold) \| ([a-z ]+) \|$", text, re.M
    )
    weights = {"base": "base", "tuned without passages": "tune", "tuned with passages": "raft"}
    assert [(name, bool(mark), few == "yes", passages, weights[w]) for name, mark, few, passages, w in rows] == [
        (arm.name, arm.reference, arm.few_shot, arm.passages, arm.weights) for arm in ARMS.values()
    ]


def test_every_metric_is_explained() -> None:
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in METRICS if f"\n| `{name}` | " not in text] == []


def test_the_worked_example_prints_what_it_says() -> None:
    page = DOCS / "evaluation.md"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code_blocks(page, "python")[0], {})
    assert printed.getvalue() in code_blocks(page, "text")
    assert "undecided" in printed.getvalue()


def test_example_questions_can_be_read(tmp_path: Path) -> None:
    blocks = code_blocks(DOCS / "questions.md", "json")
    assert len(blocks) == 5
    formats: tuple[AnswerFormat, ...] = ("short", "label", "json", "text", "short")
    for number, (format, block) in enumerate(zip(formats, blocks, strict=True)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(block, encoding="utf-8")
        task = load_task("t", path, ["Answer."], "token_f1", format)
        assert len(task.questions) == 1
    assert not task.questions[0].answerable


# --- corpora ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda path: path.name)
def test_counts_of_a_corpus(corpus: Path) -> None:
    project = load_config(corpus)
    stated = re.findall(
        r"^\| `([^`]+)` \| (\w+)[^|]* \| (\w+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| [^|]+ \|$",
        (corpus / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    counted = []
    for name, task in project.tasks.items():
        rows = [json.loads(line) for line in (corpus / task.questions).read_text(encoding="utf-8").splitlines()]
        splits = Counter(row["split"] for row in rows)
        numbers = [*(splits[split] for split in SPLITS), sum(not row["answers"] for row in rows)]
        counted.append((name, task.format, task.metric or DEFAULT_METRICS[task.format], *map(str, numbers)))
    assert stated == counted


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda path: path.name)
def test_split_of_the_documents(corpus: Path) -> None:
    """The table of documents names each document once, under the split whose questions it is evidence for."""
    stated: dict[str, set[str]] = {split: set() for split in SPLITS}
    table = (corpus / "README.md").read_text(encoding="utf-8").partition("| folder | train | dev | test |")[2]
    for folder, *cells in re.findall(r"^\| `([\w-]+/)` \|([^|]*)\|([^|]*)\|([^|]*)\|$", table, re.MULTILINE):
        for split, cell in zip(SPLITS, cells, strict=True):
            stated[split] |= {folder + name for name in re.findall(r"`([^`]+)`", cell)}
    used: dict[str, set[str]] = {split: set() for split in SPLITS}
    for task in load_config(corpus).tasks.values():
        for line in (corpus / task.questions).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if not task.shared_documents:
                used[row["split"]] |= {item["document"] for item in row["evidence"]}
    assert stated == used
    everything = {p.relative_to(corpus / "documents").as_posix() for p in (corpus / "documents").rglob("*.*")}
    assert set().union(*stated.values()) == everything
