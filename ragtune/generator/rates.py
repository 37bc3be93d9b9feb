"""How fast a machine trains: measured here in a moment, or taken from what its maker publishes.

Two rates are enough: floating-point operations a second in matrix products, and numbers a second through an operation
that works on each number alone. Small models spend most of their time in the second kind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ragtune.errors import ConfigError
from ragtune.generator.shapes import Shape

if TYPE_CHECKING:
    import torch

_CARDS = {  # memory in GB, dense bf16 TFLOP/s with fp32 sums, memory bandwidth in GB/s
    "rtx-3090": (24, 71, 936),
    "rtx-4090": (24, 165, 1008),
    "rtx-5090": (32, 210, 1792),
    "a10": (24, 125, 600),
    "l4": (24, 121, 300),
    "a40": (48, 150, 696),
    "l40s": (48, 362, 864),
    "a100-40gb": (40, 312, 1555),
    "a100-80gb": (80, 312, 2039),
    "h100-pcie": (80, 756, 2000),
    "h100": (80, 989, 3350),
    "h200": (141, 989, 4800),
    "b200": (180, 2250, 8000),
}
"""NVIDIA's data sheets and architecture papers, SXM boards where there are several."""
HARDWARE = tuple(_CARDS)

_REACHED = 0.5  # of a published rate; not measured here
_MOVED = 3 * 2  # bytes for each bf16 number of an operation with two inputs and one output
_ROWS = 512
_WIDEST = 4096  # wider matrices are no faster, and take long to make
_MEASURE_SECONDS = 0.15


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run has at hand: `memory` in bytes, and both rates a second. `measured`: here, not published."""

    name: str
    memory: int
    products: float
    elements: float
    gpu: bool
    measured: bool


def published(name: str) -> Machine:
    """A GPU by its name, at half of its published rates.

    Raises: ConfigError listing the known names.
    """
    if name not in _CARDS:
        raise ConfigError(f"unknown hardware {name!r}; expected one of: {', '.join(HARDWARE)}")
    memory, products, bandwidth = _CARDS[name]
    elements = _REACHED * bandwidth * 1e9 / _MOVED
    return Machine(name, memory * 10**9, _REACHED * products * 1e12, elements, gpu=True, measured=False)


def measured(shape: Shape, dtype: torch.dtype) -> Machine:
    """The machine at hand, timed for a second or so with products of the model's own sizes, in its training dtype."""
    from ragtune.generator import machine

    device = machine.device()
    name = machine.gpu_name() or f"this CPU, {_threads()}"
    products, elements = _product_rate(shape, dtype, device), _element_rate(shape, dtype, device)
    return Machine(name, available_memory(), products, elements, gpu=device.type == "cuda", measured=True)


def _threads() -> str:
    import torch

    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def _product_rate(shape: Shape, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s over the decoder's matrices, each size weighted by its share of the work."""
    import torch

    work = seconds = 0.0
    sizes = [(min(m.inputs, _WIDEST), min(m.outputs, _WIDEST)) for m in shape.matrices]
    for inputs, outputs in sorted(set(sizes)):
        rows = torch.randn(_ROWS, inputs, device=device).to(dtype)
        weight = torch.randn(outputs, inputs, device=device).to(dtype)
        operations = 2.0 * _ROWS * inputs * outputs * sizes.count((inputs, outputs))
        work += operations
        seconds += _time(lambda r=rows, w=weight: r @ w.mT) * sizes.count((inputs, outputs))  # type: ignore[misc]
    return work / seconds


def _element_rate(shape: Shape, dtype: torch.dtype, device: torch.device) -> float:
    """Numbers a second through SwiGLU's gate: one activation and one product."""
    import torch

    gate, up = (torch.randn(_ROWS, min(shape.inner, _WIDEST), device=device).to(dtype) for _ in range(2))
    return gate.numel() / _time(lambda: torch.nn.functional.silu(gate) * up)


def _time(run: Callable[[], object]) -> float:
    """Median seconds of a call, after one that warms up."""
    import torch

    def once() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    times, until = [once()], time.perf_counter() + _MEASURE_SECONDS
    while time.perf_counter() < until:
        times.append(once())
    return sorted(times)[len(times) // 2]


def available_memory() -> int:
    """Bytes that this process may come to hold: what it holds and what is free, of the first GPU or of the machine.

    Memory that only caches files counts as free, and a container's limit holds.
    """
    import torch

    from ragtune.generator import machine

    if torch.cuda.is_available():
        return int(torch.cuda.memory_reserved()) + machine.free_memory()
    free = _kilobytes("/proc/meminfo", "MemAvailable") or machine.free_memory()
    return min([_kilobytes("/proc/self/status", "VmRSS") + free, *_container_limits()])


def _kilobytes(file: str, key: str) -> int:
    """A line like `VmRSS: 12 kB` of a file that Linux keeps, in bytes; 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path(file).read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{key}:"):
                return 1024 * int(line.split()[1])
    return 0


def _container_limits(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Limits of the control group, of both versions; empty without one. Version 1 has a huge number for no limit."""
    found = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            found.append(int((folder / name).read_text(encoding="ascii")))
    return found
