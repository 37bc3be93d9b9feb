"""Cards from manifests: each fact in its place, and nothing that is not known."""

from __future__ import annotations

from typing import Any

import pytest

from ragtune.generator.card import dataset_card, model_card, served_card

MADE_OF: dict[str, Any] = {
    "arm": "raft",
    "method": "qlora",
    "nf4": True,
    "base": {"name": "smollm2-135m-instruct", "fingerprint": "b" * 64},
    "documents": {"a.md": "1", "b.md": "2"},
    "rows": 1200,
    "tasks": ["facts", "routing"],
}
ADAPTER = MADE_OF | {
    "inputs": {"index": "1" * 64},
    "losses": [4.0] * 2 + [1.0] * 16 + [0.5] * 2,
    "trainable_parameters": 50,
    "all_parameters": 2000,
    "trained_tokens": 34_567,
    "steps": 20,
    "seconds": 61.4,
    "config": {"rank": 16, "alpha": 32},
}
RESULT = {
    "questions": 64,
    "identical": 0.844,
    "agreement": 0.953,
    "logp_difference": 0.0264,
    "score": 0.61,
    "score_difference": -0.004,
    "changes": [],
}
SCORE = {"task": "facts", "arm": "raft", "metric": "token_f1", "n": 90, "mean": 0.7, "low": 0.612, "high": 0.788}
MERGED = MADE_OF | {
    "kind": "model",
    "index": "1" * 64,
    "licence": "Apache-2.0",
    "scores": [SCORE],
    "parity": {"result": RESULT, "failures": []},
}
GGUF = MERGED | {"kind": "gguf", "file": "ferry-raft-q8_0.gguf", "quantise": "q8_0"}


def test_an_adapter() -> None:
    card = model_card(ADAPTER)
    for said in (
        "base_model: smollm2-135m-instruct\nlicense: apache-2.0\n",
        "# raft adapter for smollm2-135m-instruct",
        "1,200 rows of the tasks facts, routing",
        "| method | qlora, frozen weights rounded to NF4 |",
        f"fingerprint `{'b' * 16}` |",
        "| trained parameters | 50 of 2,000 (2.50%) |",
        "| trained tokens | 34,567 in 20 steps, 61 s |",
        "| 4.00 at the start, 0.50 at the end |",
        "| settings | rank 16, alpha 32 |",
        "| documents | 2, by sha256",
        f"| index | fingerprint `{'1' * 16}` |",
        "| licence | Apache-2.0 (of the base) |",
    ):
        assert said in card


def test_a_base_whose_licence_is_not_known() -> None:
    card = model_card(ADAPTER | {"base": {"name": "some/folder", "fingerprint": "b" * 64}, "nf4": False})
    assert "license:" not in card
    assert "| licence | that of the base |" in card
    assert "| method | qlora |" in card
    assert "license:" not in served_card(MERGED | {"licence": "see the hub"}, "served")


def test_a_merged_model() -> None:
    card = served_card(MERGED, "models/ferry/raft")
    for said in (
        "library_name: transformers\nbase_model: smollm2-135m-instruct\n",
        "base_model_relation: finetune\nlicense: apache-2.0\n",
        "64 questions beside the base with its adapter. 84.4% of the answers are the same word for word, "
        "95.3% the same or a tie.",
        "differs by 0.026 nats on average, the mean score by -0.004 to 0.610. That is within the bounds",
        "| facts | `raft` | token_f1 | 0.700 (0.612 to 0.788) | 90 |",
        'with `model = "models/ferry/raft"`',
    ):
        assert said in card


def test_a_gguf_file() -> None:
    card = served_card(GGUF, "exports/ferry/raft-q8_0")
    for said in (
        "library_name: gguf",
        "base_model_relation: quantized",
        "# ferry-raft-q8_0\n",
        "GGUF, matrices in q8_0.",
        "ollama create ferry-raft-q8_0 -f Modelfile",
        "llama-server -m ferry-raft-q8_0.gguf --temp 0",
    ):
        assert said in card


def test_a_failure_stands_first() -> None:
    card = served_card(MERGED | {"parity": {"result": RESULT, "failures": ["this drifted", "so did that"]}}, "served")
    assert "\n**No.** It was asked 64" in card
    assert "This drifted and so did that. It was put here by force." in card
    assert "within the bounds" not in card


def test_without_a_run() -> None:
    assert "No run had measured the adapter" in served_card(MERGED | {"scores": []}, "served")


def test_a_dataset() -> None:
    card = dataset_card(MERGED)
    assert "holds 1,200 chats of the tasks facts, routing" in card
    assert f"fingerprint `{'1' * 16}`" in card


@pytest.mark.parametrize(
    "card", [model_card(ADAPTER), served_card(MERGED, "x"), served_card(GGUF, "x"), dataset_card(MERGED)]
)
def test_nothing_is_left_open(card: str) -> None:
    assert "{" not in card
    assert "None" not in card
