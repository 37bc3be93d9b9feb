"""What this machine can do for a model: looked at, never assumed."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

from ragtune.generator.quiet import calm_libraries

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def best_dtype() -> torch.dtype:
    """Bf16 where it is fast (CUDA, or a CPU with AMX or AVX512-BF16), else fp32."""
    if torch.cuda.is_available():
        return torch.bfloat16
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step instead of giving it back and faulting it in again.

    Activations are freed and asked for again at every step; keeping them trains about 20 % faster (mallopt(3)).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for option, value in ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1)):
            mallopt(option, value)


def peak_memory() -> int:
    """Most bytes held so far: by torch on a GPU, else by this process; 0 where the system does not tell."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory() -> int:
    """Bytes that a model may still take: of the first GPU, else of the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fits_again(folder: Path) -> bool:
    """True when a model of this folder's size takes at most half of the free memory; answering needs some, too."""
    return 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= free_memory()


def gpu_name() -> str | None:
    """The first GPU's name; None without one."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def cpu_features() -> tuple[str, ...]:
    """The vector extensions that matter here, strongest first."""
    features = {
        "AMX": torch.cpu._is_amx_tile_supported(),
        "AVX512-BF16": torch.cpu._is_avx512_bf16_supported(),
        "AVX512": torch.cpu._is_avx512_supported(),
        "AVX2": torch.cpu._is_avx2_supported(),
    }
    return tuple(name for name, there in features.items() if there)


def nf4_error() -> float:
    """Largest error of rounding [-1, 1] to NF4 and back: the proof that the 4-bit backend works here.

    Raises: RuntimeError or NotImplementedError, from bitsandbytes, when it does not.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.linspace(-1, 1, 64 * 64, device=device()).reshape(64, 64)
    with calm_libraries():
        packed, state = quantize_4bit(weight, quant_type="nf4")
        return float((dequantize_4bit(packed, state) - weight).abs().max())
