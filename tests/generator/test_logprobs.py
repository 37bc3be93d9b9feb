"""Likelihoods against a softmax by hand and against what the model itself writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ragtune.generator.generate import LocalGenerator
from ragtune.generator.logprobs import likelihoods
from ragtune.generator.models import fingerprint
from ragtune.types import Message

PROMPTS = [[Message("user", "Who may bring a boat?")], [Message("user", "When?"), Message("system", "Be short.")]]


@pytest.fixture
def generator(tiny: Path, adapter: Path, fp32: None) -> LocalGenerator:
    """The tiny model that knows some facts."""
    return LocalGenerator.from_folder(tiny, "tiny", fingerprint(tiny), adapter)


def test_by_hand(generator: LocalGenerator) -> None:
    (found, _) = likelihoods(generator, PROMPTS, ["no", "yes"])
    ending = [*generator.tokenizer("no")["input_ids"], generator.tokenizer.eos_token_id]
    prompt = generator.encode(PROMPTS[0])
    expected, margins = [], []
    for i, token in enumerate(ending):
        with torch.inference_mode():
            logits = generator.model(input_ids=torch.tensor([[*prompt, *ending[:i]]])).logits[0, -1].double()
        expected.append(float(logits[token] - logits.exp().sum().log()))
        margins.append(float(logits.max() - logits[token]))
    assert found.logprobs == pytest.approx(expected, abs=1e-4)
    assert found.margins == pytest.approx(margins, abs=1e-4)
    assert max(margins) > 1


def test_what_the_model_writes_has_no_margin(generator: LocalGenerator) -> None:
    prompt = [[Message("system", "Answer briefly."), Message("user", "When does the office open?")]]
    reply = generator.generate(prompt, 32)[0]
    assert reply.output_tokens < 32  # it ended its turn
    assert set(likelihoods(generator, prompt, [reply.text])[0].margins) == {0.0}
