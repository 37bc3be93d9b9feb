"""What ends a run: values that are no numbers, explosions, and memory, which is tried again with smaller batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_training import Setting, SmallTrainer, go, losses, small_trainer, weights
from transformers import TrainerCallback

from ragtune.errors import TrainingError
from ragtune.generator.checkpoints import seal
from ragtune.generator.guards import (
    EXPLODING_STEPS,
    MEDIAN_STEPS,
    Guard,
    explosion,
    is_out_of_memory,
    last_good,
    with_smaller_batches,
)

# Values that are no numbers, and explosions


class Spoil(TrainerCallback):
    """Make a weight or a gradient no number before the update of a step."""

    def __init__(self, step: int, gradient: bool) -> None:
        self.step = step
        self.gradient = gradient

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            weight = next(w for w in model.parameters() if w.requires_grad)
            (weight.grad if self.gradient else weight.data).fill_(float("nan"))


def test_a_loss_that_is_no_number(tiny: Path, tmp_path: Path) -> None:
    """The update of step 4 spoils the weights, the loss of step 5 shows it; checkpoint 4 holds spoilt weights."""
    with pytest.raises(TrainingError) as error:
        go(small_trainer(tiny, tmp_path, Setting(save_steps=2), [Spoil(4, gradient=False), Guard()]))
    assert str(error.value) == (
        "the loss is nan at step 5; lower tune.learning_rate and tune again "
        f"(the weights in {tmp_path / 'checkpoint-2'} are from before)"
    )


def test_a_gradient_that_is_no_number_is_never_saved(tiny: Path, tmp_path: Path) -> None:
    class Norm(TrainerCallback):
        """The Trainer has the norm by now."""

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if state.global_step == 4:
                logs["grad_norm"] = float("inf")

    with pytest.raises(TrainingError, match=r"the gradient norm is inf at step 4; .*checkpoint-2 are from before"):
        go(small_trainer(tiny, tmp_path, Setting(save_steps=2), [Norm(), Guard()]))
    assert not (tmp_path / "checkpoint-4").exists()


def history(*values: tuple[float, float]) -> list[dict[str, float]]:
    return [{"loss": loss, "grad_norm": norm, "step": i} for i, (loss, norm) in enumerate(values, 1)]


USUAL = [(2.0, 1.0)] * MEDIAN_STEPS


def test_an_exploding_gradient() -> None:
    assert explosion(history(*USUAL, *[(2.0, 101.0)] * EXPLODING_STEPS)) == (
        "the gradient norm is 101, for 5 steps above 100 times its median of 1"
    )
    assert explosion(history(*USUAL, *[(2.0, 99.0)] * EXPLODING_STEPS)) == ""
    assert explosion(history(*USUAL, (2.0, 1.0), *[(2.0, 1e9)] * (EXPLODING_STEPS - 1))) == ""


def test_an_exploding_loss() -> None:
    assert explosion(history(*USUAL, *[(6.5, 1.0)] * EXPLODING_STEPS)).startswith(
        "the loss is 6.5, for 5 steps above 3"
    )
    assert explosion(history(*USUAL, *[(5.5, 1.0)] * EXPLODING_STEPS)) == ""


def test_a_small_loss_may_treble() -> None:
    learned = [(2.0, 5.0), *[(0.01, 0.02)] * MEDIAN_STEPS]
    assert explosion(history(*learned, *[(3.9, 9.9)] * EXPLODING_STEPS)) == ""
    assert explosion(history(*learned, *[(4.1, 9.9)] * EXPLODING_STEPS)).startswith("the loss is 4.1")
    assert explosion(history(*learned, *[(3.9, 10.1)] * EXPLODING_STEPS)).startswith("the gradient norm is 10.1")


def test_hard_rows_may_come_after_easy_ones() -> None:
    """As where rows are grouped by length and the tasks differ in it: the losses of such a run, step by step."""
    easy, hard = [(0.3, 0.5)] * 20, [(4.5, 2.0)] * 8
    started = [(2.3, 1.0)] * 12
    for epochs in range(1, 6):
        values = [*started, *hard, *(easy + hard) * epochs]
        assert [explosion(history(*values[:n])) for n in range(len(values))] == [""] * len(values)


def test_nothing_explodes_before_there_is_a_median() -> None:
    half = MEDIAN_STEPS // 2
    assert explosion(history(*USUAL[: half - 1], *[(9.0, 1e9)] * EXPLODING_STEPS)) == ""
    assert explosion(history(*USUAL[:half], *[(9.0, 1e9)] * EXPLODING_STEPS))


@given(st.lists(st.tuples(st.floats(0.5, 1.4), st.floats(0.5, 40.0)), max_size=120))
def test_what_varies_is_no_explosion(values: list[tuple[float, float]]) -> None:
    """No value is above the multiple of any other one."""
    assert explosion(history(*values)) == ""


def test_dev_scores_in_between_do_not_count() -> None:
    scored = [
        entry for step in history(*USUAL, *[(2.0, 101.0)] * EXPLODING_STEPS) for entry in (step, {"dev_score": 0})
    ]
    assert "gradient norm is 101" in explosion(scored)


def test_an_explosion_stops_a_run_and_names_the_checkpoint_before_it(tiny: Path, tmp_path: Path) -> None:
    """Losses are what the log says from step 31 on; the run stops at the fifth of them."""

    class Explode(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if state.global_step > 30 and "loss" in logs:
                state.log_history[-1]["loss"] = 1e3

    setting = Setting(rows=40, epochs=2, save_steps=14)
    with pytest.raises(TrainingError, match=r"the loss is 1e\+03, .*at step 35; lower .*checkpoint-28 are from before"):
        go(small_trainer(tiny, tmp_path, setting, [Explode(), Guard()]))


def test_no_checkpoint_is_from_before(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 2; .* \(no checkpoint is from before\)"):
        go(small_trainer(tiny, tmp_path, Setting(save_steps=1), [Spoil(1, gradient=False), Guard()]))


def test_the_last_good_checkpoint(tmp_path: Path) -> None:
    for step, value in ((2, 1.0), (4, float("inf")), (6, 1.0), (8, 1.0)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.tensor([value])}, folder / "trained.safetensors")
        seal(folder)
    assert last_good(tmp_path, 7) == tmp_path / "checkpoint-6"
    assert last_good(tmp_path, 5) == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-2" / "trained.safetensors").write_bytes(b"torn")
    assert last_good(tmp_path, 5) is None


# Memory


def test_what_running_out_of_memory_looks_like() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    ("batch", "tried"), [(8, [(8, 1), (4, 2), (2, 4), (1, 8)]), (6, [(6, 1), (3, 2), (1, 6)]), (5, [(5, 1), (1, 5)])]
)
def test_half_as_many_rows_twice_as_often(batch: int, tried: list[tuple[int, int]]) -> None:
    seen: list[tuple[int, int]] = []
    said: list[str] = []

    def run(at_a_time: int, times: int) -> str:
        seen.append((at_a_time, times))
        if at_a_time > 1:
            raise MemoryError
        return "done"

    assert with_smaller_batches(run, batch, said.append) == "done"
    assert seen == tried
    assert said == [
        f"out of memory with {a} rows at a time; going on from the last checkpoint with {b}"
        for (a, _), (b, _) in pairwise(tried)
    ]


def test_one_row_is_too_much() -> None:
    def run(at_a_time: int, times: int) -> None:
        torch.empty(1 << 55, dtype=torch.uint8)

    with pytest.raises(TrainingError, match=r"memory does not suffice for one row at a time; lower tune\.max_tokens"):
        with_smaller_batches(run, 4)


def test_other_errors_pass() -> None:
    def run(at_a_time: int, times: int) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        with_smaller_batches(run, 4)


class Gradients(TrainerCallback):
    """Keep each step's gradient."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.kept.append(torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]))


def test_the_steps_stay_the_same(tiny: Path, tmp_path: Path) -> None:
    """Ten rows, four a step, so that the last step of an epoch has two; rows differ in length, so labels do."""

    def run(at_a_time: int, times: int) -> tuple[list[torch.Tensor], SmallTrainer]:
        kept, work = Gradients(), tmp_path / str(at_a_time)
        setting = Setting(rows=10, at_a_time=at_a_time, times=times, learning_rate=1e-3)
        return kept.kept, go(small_trainer(tiny, work, setting, [kept]))

    gradients, whole = run(4, 1)
    assert len(gradients) == 6
    for at_a_time, times in ((2, 2), (1, 4)):
        own, trainer = run(at_a_time, times)
        assert len(own) == 6
        assert torch.allclose(own[0], gradients[0], rtol=1e-4, atol=1e-6)  # at the same weights
        assert losses(trainer) == pytest.approx(losses(whole), rel=1e-4)
        assert all(torch.allclose(w, weights(whole)[n], atol=2e-4) for n, w in weights(trainer).items())
        tokens = [entry["num_input_tokens_seen"] for entry in trainer.state.log_history if "loss" in entry]
        assert tokens == [e["num_input_tokens_seen"] for e in whole.state.log_history if "loss" in e]


class TooMuch(TrainerCallback):
    """Run out of memory at a step as long as more than two rows are held at a time."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3 and args.per_device_train_batch_size > 2:
            torch.empty(1 << 55, dtype=torch.uint8)


def test_a_run_goes_on_from_its_checkpoint_with_smaller_batches(tiny: Path, tmp_path: Path) -> None:
    def setting(at_a_time: int, times: int) -> Setting:
        return Setting(rows=10, at_a_time=at_a_time, times=times, save_steps=2, learning_rate=1e-3)

    trainers: list[SmallTrainer] = []

    def run(at_a_time: int, times: int) -> SmallTrainer:
        trainers.append(small_trainer(tiny, tmp_path / "work", setting(at_a_time, times), [TooMuch()]))
        return go(trainers[-1])

    trainer = with_smaller_batches(run, 4)
    whole = go(small_trainer(tiny, tmp_path / "whole", setting(4, 1)))
    assert [t.args.per_device_train_batch_size for t in trainers] == [4, 2]
    assert losses(trainer)[:2] == losses(whole)[:2]  # those steps stand in the checkpoint
    assert losses(trainer) == pytest.approx(losses(whole), rel=1e-4)
    assert load_file(tmp_path / "work" / "checkpoint-6" / "adapter_model.safetensors")
