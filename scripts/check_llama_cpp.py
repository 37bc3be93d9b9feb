"""`python scripts/check_llama_cpp.py FOLDER` asks llama.cpp itself the probe of an exported GGUF model.

FOLDER is what `ragtune export --to gguf` wrote. It needs llama-cpp-python, in any environment of its own (0.3.36 was
used), and nothing of ragtune. Prompts are made by llama.cpp's tokenizer from the chat template in the file, answers are
greedy, and the adapter's answers are scored token by token. The last line is one JSON object:

- `agreement`: share of answers that are the adapter's word for word; `logp_difference`: mean over the tokens of the
  adapter's answers of |log p(llama.cpp) - log p(adapter)|, in nats: what the export's own gate measures.
- `same_prompt_tokens`: share of prompts that llama.cpp cuts into as many tokens as ragtune.
- `questions`, `file`, `llama_cpp` (version of the package), `changes` (the answers that differ).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

CONTEXT = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()
    (file,) = arguments.folder.glob("*.gguf")
    lines = (arguments.folder / "probe.jsonl").read_text(encoding="utf-8").splitlines()
    probes = [json.loads(line) for line in lines]
    model = llama_cpp.Llama(str(file), n_ctx=CONTEXT, n_threads=arguments.threads, logits_all=True, verbose=False)
    figures = {"file": file.name, "llama_cpp": llama_cpp.__version__, **ask(model, probes)}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures), encoding="utf-8")
    print(json.dumps(figures))


def ask(model: Any, probes: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a probe."""
    end = model.token_eos()
    text = {token: model.detokenize([token], special=True).decode() for token in (model.token_bos(), end)}
    template = Jinja2ChatFormatter(model.metadata["tokenizer.chat_template"], text[end], text[model.token_bos()])
    changes, differences, same = [], [], 0
    for probe in probes:
        prompt = model.tokenize(template(messages=probe["messages"]).prompt.encode(), add_bos=False, special=True)
        same += len(prompt) == probe["prompt_tokens"]
        answer = write(model, prompt, probe["max_answer_tokens"], end)
        if answer != probe["reference"]:
            changes.append({"id": probe["id"], "reference": probe["reference"], "answer": answer})
        ending = [*model.tokenize(probe["reference"].encode(), add_bos=False, special=False), end]
        if len(ending) == len(probe["logprobs"]):
            differences += np.abs(score(model, prompt, ending) - np.array(probe["logprobs"])).tolist()
        print(f"{probe['id']}: {answer!r}", flush=True)
    return {
        "questions": len(probes),
        "agreement": 1 - len(changes) / len(probes),
        "logp_difference": fmean(differences),
        "same_prompt_tokens": same / len(probes),
        "changes": changes,
    }


def write(model: Any, prompt: list[int], most: int, end: int) -> str:
    """The greedy answer."""
    model.reset()
    model.eval(prompt)
    answer: list[int] = []
    while len(answer) < most:
        token = int(np.argmax(model.scores[model.n_tokens - 1]))
        if token == end:
            break
        answer.append(token)
        model.eval([token])
    return str(model.detokenize(answer).decode(errors="replace")).strip()


def score(model: Any, prompt: list[int], ending: list[int]) -> np.ndarray:
    """Log-probability (nats) of each token of an ending."""
    model.reset()
    model.eval([*prompt, *ending])
    logits = model.scores[len(prompt) - 1 : len(prompt) + len(ending) - 1].astype(np.float64)
    highest = logits.max(1, keepdims=True)
    normalised = logits - highest - np.log(np.exp(logits - highest).sum(1, keepdims=True))
    return normalised[np.arange(len(ending)), ending]


if __name__ == "__main__":
    main()
