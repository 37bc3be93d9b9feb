"""The model card of an adapter: what it is, what it was made of, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CARD = """\
---
library_name: peft
base_model: {base}
tags: [ragtune, {method}]
---
# {arm} adapter for {base}

Made by ragtune on {rows:,} rows of the tasks {tasks}.

| | |
|---|---|
| arm | `{arm}`: {what} |
| method | {method}{nf4} |
| base | {base}, fingerprint `{fingerprint}` |
| trained parameters | {trainable:,} of {all:,} ({share:.2%}) |
| trained tokens | {tokens:,} in {steps} steps, {seconds:.0f} s |
| loss (nats per answer token) | {first:.2f} at the start, {last:.2f} at the end |
| settings | {settings} |
| documents | {documents}, by sha256 in `manifest.json` |

The rows stand in `rows.jsonl`, word for word as they were trained on. The adapter fits this base only; ragtune checks
the fingerprint when it loads. Scores are in the report of the run that measured it. The licences of the base model and
of the documents apply.
"""


def model_card(manifest: Mapping[str, Any]) -> str:
    """The card as Markdown, from the adapter's manifest."""
    losses = manifest["losses"] or [float("nan")]
    tenth = max(1, len(losses) // 10)
    return _CARD.format(
        arm=manifest["arm"],
        what="trained with retrieved passages" if manifest["arm"] == "raft" else "trained without passages",
        method=manifest["method"],
        nf4=", frozen weights rounded to NF4" if manifest["nf4"] else "",
        base=manifest["base"]["name"],
        fingerprint=manifest["base"]["fingerprint"][:16],
        rows=manifest["rows"],
        tasks=", ".join(manifest["tasks"]),
        trainable=manifest["trainable_parameters"],
        all=manifest["all_parameters"],
        share=manifest["trainable_parameters"] / manifest["all_parameters"],
        tokens=manifest["trained_tokens"],
        steps=manifest["steps"],
        seconds=manifest["seconds"],
        first=sum(losses[:tenth]) / tenth,
        last=sum(losses[-tenth:]) / tenth,
        settings=", ".join(f"{key} {value}" for key, value in manifest["config"].items()),
        documents=len(manifest["documents"]),
    )
