"""`ragtune doctor`: what this machine can do, and what to install for what is missing."""

from __future__ import annotations

import os
import shutil
from typing import Any

import click

from ragtune.cli.output import json_option, out, print_json


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Say what this machine can do: CPU, GPU, memory, 4-bit backend, models; and what is missing.

    Exits with 1 when something that ragtune needs is missing.

    \b
    Example:
      ragtune doctor
    """
    findings = [*_hardware(), *_packages(), *_models()]
    if as_json:
        print_json([{"what": what, "state": state, "cure": cure} for what, state, cure in findings])
    else:
        for what, state, cure in findings:
            out().print(f"{what:22} {state}", markup=False, style="yellow" if cure else "")
            if cure:
                out().print(f"{'':22} -> {cure}", markup=False)
    if any(cure for _, _, cure in findings):
        raise SystemExit(1)


Finding = tuple[str, str, str]
"""(what, state, what to do about it or nothing)."""


def _hardware() -> list[Finding]:
    from ragtune.generator import machine

    features = ", ".join(machine.cpu_features()) or "no vector extensions found"
    total, free = _memory()
    disk = shutil.disk_usage(".").free / 1e9
    return [
        ("CPU", f"{os.cpu_count()} cores; {features}", ""),
        ("GPU", machine.gpu_name() or "none: everything runs on the CPU, slower", ""),
        ("numbers", f"{str(machine.best_dtype()).removeprefix('torch.')} for answering and tuning", ""),
        ("memory", f"{free:.1f} GB free of {total:.1f} GB", "" if free > 2 else "free some memory: 2 GB are needed"),
        ("disk", f"{disk:.1f} GB free here", "" if disk > 1 else "free some space: 1 GB is needed"),
    ]


def _memory() -> tuple[float, float]:
    pages = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    size = os.sysconf("SC_PAGE_SIZE") / 1e9
    return pages[0] * size, pages[1] * size


def _packages() -> list[Finding]:
    from ragtune.store import package_versions

    versions = package_versions()
    names = ("torch", "transformers", "peft", "bitsandbytes", "sentence-transformers", "faiss-cpu")
    found = [(n, versions[n], "") if n in versions else (n, "missing", f"pip install {n}") for n in names]
    return [*found, _four_bit()]


def _four_bit() -> Finding:
    from ragtune.generator import machine

    try:
        error = machine.nf4_error()
    except (RuntimeError, NotImplementedError) as failure:
        return "NF4 (bitsandbytes)", f"does not work: {failure}", "pip install --upgrade bitsandbytes, or use lora"
    return "NF4 (bitsandbytes)", f"works (largest rounding error {error:.2f} of 1)", ""


def _models() -> list[Finding]:
    from ragtune.generator import models

    found: list[Any] = [models.status(name) for name in models.EMBEDDED]
    return [(f"model {s.name}"[:40], s.state, s.install if s.state == "not installed" else "") for s in found]
