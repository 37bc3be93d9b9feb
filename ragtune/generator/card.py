"""Model cards: what an adapter, a merged model or a dataset is, what it was made of, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ragtune.generator.models import EMBEDDED

_ARMS = {"raft": "trained with retrieved passages", "tune": "trained without passages"}

_ADAPTER = """\
---
library_name: peft
base_model: {base}
{licence_line}tags: [ragtune, {method}]
---
# {arm} adapter for {base}

Made by ragtune on {rows:,} rows of the tasks {tasks}.

| | |
|---|---|
| arm | `{arm}`: {what} |
| method | {method} |
| base | {base}, fingerprint `{fingerprint}` |
| trained parameters | {trainable:,} of {all:,} ({share:.2%}) |
| trained tokens | {tokens:,} in {steps} steps, {seconds:.0f} s |
| loss (nats per answer token) | {first:.2f} at the start, {last:.2f} at the end |
| settings | {settings} |
| documents | {documents}, by sha256 in `manifest.json` |
| index | fingerprint `{index}` |
| licence | {licence} |

The rows stand in `rows.jsonl`, word for word as they were trained on. The adapter fits this base only; ragtune checks
the fingerprint when it loads. Scores are in the report of the run that measured it, and in the card of a model that
`ragtune merge` or `ragtune export` makes of it. The licence of the documents applies, too.
"""

_SERVED = """\
---
library_name: {library}
base_model: {base}
base_model_relation: {relation}
{licence_line}tags: [ragtune, {method}]
---
# {title}

Made by ragtune: the `{arm}` adapter ({what}), merged into its base. {form}

| | |
|---|---|
| data | {rows:,} rows of the tasks {tasks}, from {documents} documents (by sha256 in `manifest.json`) |
| method | {method} |
| base | {base}, fingerprint `{fingerprint}` |
| index | fingerprint `{index}` |
| licence | {licence} |

## Is it the model that was trained?

{parity}

The prompts, the adapter's answers and their log-probabilities are in `probe.jsonl`, so that any server can be checked.

## Scores

{scores}

## Use

{use}

Prompts must be those that it was trained with: the task's first instruction as the system message, the passages
numbered before the question. `probe.jsonl` shows them. The licence of the documents applies, too.
"""

_DATASET = """\
# Training rows of the {arm} adapter for {base}

`train.jsonl` holds {rows:,} chats of the tasks {tasks} in the format of OpenAI's fine-tuning, one a line: `messages`
with `role` and `content`, the assistant's last. The rows were {what}.

| | |
|---|---|
| documents | {documents}, by sha256 in `manifest.json`; their licence applies |
| index | fingerprint `{index}` |
"""

_USE_MERGED = """\
In `ragtune.toml`: `[generator]` with `model = "{folder}"`. Elsewhere like any model folder of transformers."""

_USE_GGUF = """\
Ollama: `ollama create {name} -f Modelfile`, then `ollama run {name}`. The Modelfile decodes greedily, without Ollama's
default penalty for repeated words, as the probe was answered. llama.cpp: `llama-server -m {file} --temp 0`."""


def model_card(manifest: Mapping[str, Any]) -> str:
    """The card of an adapter as Markdown, from its manifest."""
    losses = manifest["losses"] or [float("nan")]
    tenth = max(1, len(losses) // 10)
    base = manifest["base"]["name"]
    licence = EMBEDDED[base].licence if base in EMBEDDED else ""
    return _ADAPTER.format(
        **_common(manifest, licence, manifest["inputs"]["index"]),
        trainable=manifest["trainable_parameters"],
        all=manifest["all_parameters"],
        share=manifest["trainable_parameters"] / manifest["all_parameters"],
        tokens=manifest["trained_tokens"],
        steps=manifest["steps"],
        seconds=manifest["seconds"],
        first=sum(losses[:tenth]) / tenth,
        last=sum(losses[-tenth:]) / tenth,
        settings=", ".join(f"{key} {value}" for key, value in manifest["config"].items()),
    )


def served_card(manifest: Mapping[str, Any], place: str) -> str:
    """The card of a merged model or a GGUF file as Markdown; `place` is the folder's name."""
    gguf = manifest["kind"] == "gguf"
    name = manifest.get("file", place).removesuffix(".gguf")
    how = {
        "library": "gguf" if gguf else "transformers",
        "relation": "quantized" if gguf else "finetune",
        "title": name if gguf else f"{manifest['base']['name']}, {manifest['arm']}",
        "form": f"GGUF, matrices in {manifest['quantise']}." if gguf else "Weights in the base's own precision.",
        "use": _USE_GGUF.format(name=name, file=manifest["file"]) if gguf else _USE_MERGED.format(folder=place),
    }
    common = _common(manifest, manifest["licence"], manifest["index"])
    return _SERVED.format(**common, **how, parity=_parity(manifest["parity"]), scores=_scores(manifest["scores"]))


def dataset_card(manifest: Mapping[str, Any]) -> str:
    """The card of an exported dataset as Markdown, from its manifest."""
    return _DATASET.format(**_common(manifest, "", manifest["index"]))


def _common(manifest: Mapping[str, Any], licence: str, index: str) -> dict[str, Any]:
    """What all cards say. `licence` is the base's name for it; empty, or a phrase, where it is not known."""
    known = bool(licence) and " " not in licence
    return {
        "arm": manifest["arm"],
        "what": _ARMS.get(manifest["arm"], manifest["arm"]),
        "method": manifest["method"] + (", frozen weights rounded to NF4" if manifest["nf4"] else ""),
        "base": manifest["base"]["name"],
        "fingerprint": manifest["base"]["fingerprint"][:16],
        "rows": manifest["rows"],
        "tasks": ", ".join(manifest["tasks"]),
        "documents": len(manifest["documents"]),
        "index": index[:16],
        "licence": f"{licence} (of the base)" if known else "that of the base",
        "licence_line": f"license: {licence.lower()}\n" if known else "",
    }


def _parity(parity: Mapping[str, Any]) -> str:
    result = parity["result"]
    text = (
        f"It was asked {result['questions']} questions beside the base with its adapter. "
        f"{result['identical']:.1%} of the answers are the same word for word, {result['agreement']:.1%} the same or "
        f"a tie. The log-probability of a token of the adapter's answers differs by {result['logp_difference']:.3f} "
        f"nats on average, the mean score by {result['score_difference']:+.3f} to {result['score']:.3f}."
    )
    if not parity["failures"]:
        return text + " That is within the bounds of `[export]`."
    return f"**No.** {text} {' and '.join(parity['failures']).capitalize()}. It was put here by force."


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return "No run had measured the adapter when this was written."
    lines = [
        f"| {s['task']} | `{s['arm']}` | {s['metric']} "
        f"| {s['mean']:.3f} ({s['low']:.3f} to {s['high']:.3f}) | {s['n']} |"
        for s in scores
    ]
    head = "Of the adapter, on test questions, with 95 % intervals:\n\n| task | arm | metric | score | questions |"
    return "\n".join([head, "|---|---|---|---|---|", *lines])
