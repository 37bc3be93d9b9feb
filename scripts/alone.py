"""Work in a process of its own, whose memory and allocator nobody else has used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

Done = TypeVar("Done")


def alone(work: Callable[..., Done], *arguments: Any) -> Done:
    """`work(*arguments)` in a new process; both must be picklable.

    Raises: what `work` raises; BrokenProcessPool when its process dies, for example for want of memory.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()
