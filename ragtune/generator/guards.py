"""What ends a run early, and says so: a loss that is no number, an explosion, memory that runs out."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback

from ragtune.errors import TrainingError
from ragtune.generator.checkpoints import checkpoints, damage, step_of

MEDIAN_STEPS = 50
"""Steps that a running median looks back on; with fewer than half of them there is none yet."""
EXPLODING_STEPS = 5
EXPLOSIONS = {"loss": ("loss", 3.0), "grad_norm": ("gradient norm", 100.0)}
"""How many times its running median a value may be for `EXPLODING_STEPS` steps in a row."""
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")

Result = TypeVar("Result")


class Guard(TrainerCallback):
    """Stop a run that cannot come to anything; the Trainer must log every step (`logging_steps=1`).

    A loss or a gradient that is no number stops it at once, an explosion after `EXPLODING_STEPS` steps: the norm of the
    gradient before clipping, or the loss, is above a multiple of its running median and above twice the highest of the
    first `MEDIAN_STEPS` steps. So a loss near 0 may treble, and hard rows may come after easy ones.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Look at a step.

        Raises: TrainingError with the step, the values, what to do, and the checkpoint that is still good.
        """
        if "loss" not in logs:
            return
        for key, (name, _times) in EXPLOSIONS.items():
            if not math.isfinite(logs[key]):
                raise TrainingError(_message(f"the {name} is {logs[key]} at step {state.global_step}", args, state, 1))
        if what := explosion(state.log_history):
            raise TrainingError(_message(f"{what}, at step {state.global_step}", args, state, EXPLODING_STEPS))


def explosion(history: Sequence[Mapping[str, Any]]) -> str:
    """What has exploded by the last step of a Trainer's log, with its values; empty when nothing has."""
    steps = [entry for entry in history if "loss" in entry]
    before, last = steps[:-EXPLODING_STEPS], steps[-EXPLODING_STEPS:]
    if len(before) < MEDIAN_STEPS // 2:
        return ""
    for key, (name, times) in EXPLOSIONS.items():
        usual = median(float(entry[key]) for entry in before[-MEDIAN_STEPS:])
        highest = max(float(entry[key]) for entry in before[:MEDIAN_STEPS])
        values = [float(entry[key]) for entry in last]
        if min(values) > max(times * usual, 2 * highest):
            return (
                f"the {name} is {values[-1]:.3g}, for {EXPLODING_STEPS} steps above {times:g} times its median of "
                f"{usual:.3g}"
            )
    return ""


def _message(what: str, args: Any, state: Any, steps: int) -> str:
    good = last_good(Path(args.output_dir), state.global_step - steps)
    kept = f"the weights in {good} are from before" if good else "no checkpoint is from before"
    return f"{what}; lower tune.learning_rate and tune again ({kept})"


def last_good(work: Path, step: int) -> Path | None:
    """The newest whole checkpoint of at most `step` steps whose weights are all finite."""
    for path in checkpoints(work):
        if step_of(path) <= step and not damage(path) and _finite(path):
            return path
    return None


def _finite(checkpoint: Path) -> bool:
    try:
        return all(w.isfinite().all() for file in checkpoint.glob("*.safetensors") for w in load_file(file).values())
    except SafetensorError:
        return False


def is_out_of_memory(error: BaseException) -> bool:
    """True for what Python, torch (on a CPU or a GPU) and CUDA's libraries raise when memory runs out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def with_smaller_batches(
    run: Callable[[int, int], Result], batch_size: int, say: Callable[[str], None] = lambda _: None
) -> Result:
    """`run(rows at a time, times a step)`; when memory runs out again with fewer rows at a time, as many in a step.

    `run` builds model and optimizer anew and goes on from its last checkpoint. The steps stay the same: the gradient
    of a step is the sum over the same rows, equal but for the order in which fp32 numbers are added.

    Raises: TrainingError when memory does not even suffice for one row at a time.
    """
    at_a_time = batch_size
    while True:
        try:
            return run(at_a_time, batch_size // at_a_time)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if at_a_time == 1:
                raise TrainingError(
                    "memory does not suffice for one row at a time; lower tune.max_tokens, free memory, or choose a "
                    f"method or base that takes less ({str(error).splitlines()[0]})"
                ) from error
        # Out here the error is gone, and with it the frames that held the model.
        _free_memory()
        fewer = next(n for n in range(at_a_time // 2, 0, -1) if batch_size % n == 0)
        say(f"out of memory with {at_a_time} rows at a time; going on from the last checkpoint with {fewer}")
        at_a_time = fewer


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
