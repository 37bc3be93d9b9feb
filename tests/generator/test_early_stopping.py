"""Early stopping on dev questions: when it stops, which weights it keeps, and that looking changes nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import Setting, SmallTrainer, StopAt, equal, go, losses, small_trainer, weights

from ragtune.errors import StoreError, TrainingError
from ragtune.generator.early_stopping import EarlyStopping, answering, best_step, dev_scores, untouched
from ragtune.generator.generate import LocalGenerator, load_tokenizer, load_weights
from ragtune.generator.ledger import Ledger
from ragtune.types import Message

SETTING = Setting(epochs=4, save_steps=3, dropout=0.2)
"""16 steps of two rows, with dropout, so that random numbers matter."""


def trained(
    tiny: Path, work: Path, score: Callable[[Any], float], every: int = 2, patience: int = 3, more: Sequence[Any] = ()
) -> SmallTrainer:
    trainer = small_trainer(tiny, work, SETTING, more)
    trainer.add_callback(EarlyStopping(score, every, patience, trainer.log))
    return go(trainer)


class Scripted:
    """Scores from a list, with the weights that they were given for."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores
        self.seen: list[dict[str, torch.Tensor]] = []

    def __call__(self, model: Any) -> float:
        self.seen.append({name: w.detach().clone() for name, w in model.named_parameters() if w.requires_grad})
        return self.scores[len(self.seen) - 1]


def test_it_stops_when_nothing_gets_better_and_puts_the_best_weights_back(tiny: Path, tmp_path: Path) -> None:
    score = Scripted(0.1, 0.5, 0.4, 0.5, 0.3)
    trainer = trained(tiny, tmp_path, score)
    assert dev_scores(trainer.state) == {2: 0.1, 4: 0.5, 6: 0.4, 8: 0.5, 10: 0.3}
    assert trainer.state.global_step == 10
    assert equal(weights(trainer), score.seen[1])
    assert not any(equal(weights(trainer), seen) for seen in (*score.seen[:1], *score.seen[2:]))
    assert len(losses(trainer)) == 10  # each step is logged, scored or not


def test_a_run_that_keeps_getting_better_goes_to_its_end(tiny: Path, tmp_path: Path) -> None:
    score = Scripted(*(i / 10 for i in range(6)))
    trainer = trained(tiny, tmp_path, score, every=3)
    assert list(dev_scores(trainer.state)) == [3, 6, 9, 12, 15, 16]  # the last step, too
    assert equal(weights(trainer), score.seen[-1])
    assert len(list(tmp_path.glob("best-*"))) == 2


def test_scores_stand_in_the_ledger(tiny: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", lambda state: state.num_input_tokens_seen)
    trained(tiny, tmp_path, Scripted(0.1, 0.5, 0.4, 0.5, 0.3), more=[ledger])
    rows = ledger.log.rows()
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert {row["step"]: row["dev_score"] for row in rows if "dev_score" in row} == {
        2: 0.1, 4: 0.5, 6: 0.4, 8: 0.5, 10: 0.3,
    }  # fmt: skip


def test_scoring_leaves_no_trace(tiny: Path, tmp_path: Path) -> None:
    """However much randomness a score uses, and whatever mode it leaves the model in."""

    def score(model: Any) -> float:
        assert not model.training and not any(module.training for module in model.modules())
        model.train()
        torch.rand(5), np.random.rand(3), random.random()  # noqa: NPY002
        with torch.inference_mode():
            model(input_ids=torch.tensor([[5, 6, 7]]))
        return float(len(scored) / 100 if scored.append(1) is None else 0)

    scored: list[int] = []
    looked = trained(tiny, tmp_path / "a", score, every=1, patience=99)
    plain = go(small_trainer(tiny, tmp_path / "b", SETTING))
    assert len(scored) == 16
    assert equal(weights(looked), weights(plain))
    assert losses(looked) == losses(plain)


@pytest.mark.parametrize("step", [3, 5, 7])
def test_an_interrupted_run_ends_the_same(tiny: Path, tmp_path: Path, step: int) -> None:
    """The score is a function of the weights, with its best at step 6."""
    wanted = weights(go(small_trainer(tiny, tmp_path / "w", Setting(epochs=1.5, save_steps=3, dropout=0.2))))

    def score(model: Any) -> float:
        return -sum((w - wanted[n]).abs().sum().item() for n, w in model.named_parameters() if w.requires_grad)

    whole = trained(tiny, tmp_path / "whole", score, patience=2)
    with pytest.raises(KeyboardInterrupt):
        trained(tiny, tmp_path / "cut", score, patience=2, more=[StopAt(step)])
    resumed = trained(tiny, tmp_path / "cut", score, patience=2)
    assert dev_scores(resumed.state) == dev_scores(whole.state)
    assert len(dev_scores(whole.state)) > 2
    assert resumed.state.global_step == whole.state.global_step
    assert equal(weights(resumed), weights(whole))


def test_a_finished_run_that_goes_on_has_its_best_weights(tiny: Path, tmp_path: Path) -> None:
    """Killed after training and before its folder was written: no step is left to do."""
    score = Scripted(0.1, 0.9, 0.2, 0.3, 0.2, 0.3, 0.2, 0.3)
    first = trained(tiny, tmp_path, score, patience=9)
    again = trained(tiny, tmp_path, Scripted(), patience=9)
    assert equal(weights(again), weights(first)) and equal(weights(first), score.seen[1])


def test_of_equal_scores_the_earliest_is_best() -> None:
    assert best_step({2: 0.1, 4: 0.5, 6: 0.5}) == 4


def test_a_score_that_is_no_number(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the dev score is nan at step 2"):
        trained(tiny, tmp_path, lambda _: math.nan)


def test_best_weights_that_were_damaged(tiny: Path, tmp_path: Path) -> None:
    def score(model: Any) -> float:
        for file in tmp_path.glob("best-2/*.safetensors"):
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
        return 0.5

    with pytest.raises(StoreError, match=r"best-2, the best weights of this run: weights\.safetensors is damaged"):
        trained(tiny, tmp_path, score, patience=1)


def test_modes_come_back_one_by_one(tiny: Path) -> None:
    model = load_weights(tiny, torch.float32).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    with untouched(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_a_model_in_training_answers_as_it_will(tiny: Path, tmp_path: Path) -> None:
    """On the path of finished generators, and training goes on with the attention that it had."""
    prompts = [(Message("system", "Answer briefly. " * 4), Message("user", text)) for text in ("Who?", "When exactly?")]
    told: list[Any] = []

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled for training, not for answering")

    def score(model: Any) -> float:
        layer = model.get_base_model().model.layers[0]
        layer._compiled_call_impl = never
        model.get_base_model().set_attn_implementation("eager")
        with answering(model, load_tokenizer(tiny), "tiny") as generator:
            told.append([reply.text for reply in generator.generate(prompts, 8)])
        assert model.config._attn_implementation == "eager"
        assert layer._compiled_call_impl is never
        layer._compiled_call_impl = None
        return len(told) / 10

    trainer = trained(tiny, tmp_path, score, every=16)
    trainer.model.eval()
    finished = LocalGenerator("tiny", "", trainer.model, load_tokenizer(tiny))
    assert told == [[reply.text for reply in finished.generate(prompts, 8)]]
