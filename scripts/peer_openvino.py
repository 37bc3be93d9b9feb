"""OpenVINO GenAI, the peer of scripts/bench_answering.py, in an environment of its own.

`python scripts/peer_openvino.py prepare FOLDER MODEL` makes the environment FOLDER/env with pip and converts the model
folder MODEL to OpenVINO IR below FOLDER/models: once, a few minutes and 2 GB, nothing from a model hub. The
weights stay 16 bits wide.

`FOLDER/env/bin/python scripts/peer_openvino.py answer CONVERTED REQUESTS ANSWERS THREADS PRECISION` answers.
REQUESTS is
JSONL, a `Request` a line; ANSWERS becomes one JSON object: `answers`, `seconds`, `version`, `settings`. Continuous
batching looks for known prompt beginnings when a prompt comes in, not later. So that its prefix caching has
something to find, the first prompt of each group goes ahead of the others of its task.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, TypedDict

PACKAGES = ("openvino-genai==2026.4.1.0", "nncf==3.4.0", "transformers==5.5.4", "requests==2.34.2")
# Without its requirements: it names torchvision, which only pictures need and which must match the torch at hand.
EXPORTER = ("optimum==2.3.0", "optimum-intel==2.2.0")
SELF = Path(__file__).resolve()
CACHE_GB = 4
BATCH_TOKENS = 2048


class Request(TypedDict):
    """A prompt as token ids. Prompts of one group (an arm on a task) are likely to begin alike; `end` ends the turn."""

    task: str
    group: str
    ids: list[int]
    max_new_tokens: int
    end: int


def ask(folder: Path, model: Path, requests: Sequence[Request], threads: int, precision: str) -> dict[str, Any]:
    """What the peer answers, with `precision` bf16 or f32; prepares `folder` first when that was not done.

    Raises: subprocess.CalledProcessError when a step fails; what it said is on the terminal.
    """
    converted = prepare(folder, model)
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "requests.jsonl", Path(scratch) / "answers.json"
        asked.write_text("".join(json.dumps(row) + "\n" for row in requests), encoding="utf-8")
        arguments = ["answer", converted, asked, answered, threads, precision]
        _run(folder / "env" / "bin" / "python", SELF, *arguments)
        result: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
    return result


def prepare(folder: Path, model: Path) -> Path:
    """The model folder as OpenVINO IR; environment and conversion are made when they are not there.

    Raises: subprocess.CalledProcessError when a step fails; what it said is on the terminal.
    """
    binaries, ready = folder / "env" / "bin", folder / "env" / ".ready"
    wanted = "\n".join((*PACKAGES, *EXPORTER))
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder / "env", ignore_errors=True)
        _run(sys.executable, "-m", "venv", folder / "env")
        # torch only converts. Ours is named so that pip takes the build that this machine has.
        torch = f"torch=={version('torch').partition('+')[0]}"
        _run(binaries / "pip", "install", "--quiet", torch, *PACKAGES)
        _run(binaries / "pip", "install", "--quiet", "--no-deps", *EXPORTER)
        ready.write_text(wanted, encoding="utf-8")
    converted = folder / "models" / model.name
    if not converted.exists():
        building = converted.with_name(f".{model.name}.building")
        shutil.rmtree(building, ignore_errors=True)
        options = ("--task", "text-generation-with-past", "--weight-format", "fp16")
        _run(binaries / "optimum-cli", "export", "openvino", "--model", model, *options, building)
        building.rename(converted)
    return converted


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def answer(converted: Path, requests: Sequence[Request], threads: int, precision: str) -> dict[str, Any]:
    """Answer with continuous batching, in the peer's environment. `seconds` is answering alone, without loading."""
    import numpy as np
    import openvino
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = BATCH_TOKENS
    properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    pipeline = genai.ContinuousBatchingPipeline(str(converted), scheduler, "CPU", properties)
    tokenizer = pipeline.get_tokenizer()

    def generate(rows: Sequence[Request]) -> list[str]:
        prompts = [openvino.Tensor(np.array([row["ids"]], dtype=np.int64)) for row in rows]
        limits = [
            genai.GenerationConfig(
                max_new_tokens=row["max_new_tokens"],
                do_sample=False,
                eos_token_id=row["end"],
                stop_token_ids={row["end"]},
            )
            for row in rows
        ]
        results = pipeline.generate(prompts, limits)
        return [tokenizer.decode(list(result.m_generation_ids[0])).strip() for result in results]

    generate([{**requests[0], "ids": requests[0]["ids"][:16]}])  # warm up, too short for a block of the prefix cache
    started = time.perf_counter()
    answers: dict[int, str] = {}
    for wave in waves(requests):
        answers |= zip(wave, generate([requests[i] for i in wave]), strict=True)
    return {
        "answers": [answers[i] for i in range(len(requests))],
        "seconds": time.perf_counter() - started,
        "version": genai.__version__,
        "settings": {**properties, "weights": "fp16", "cache_gb": CACHE_GB, "max_num_batched_tokens": BATCH_TOKENS}
        | {"enable_prefix_caching": True},
    }


def waves(requests: Sequence[Request]) -> Iterator[list[int]]:
    """What is asked together, as places in `requests`: task by task the first of each group, then all others."""
    for _, places in groupby(range(len(requests)), lambda i: requests[i]["task"]):
        groups = [list(group) for _, group in groupby(places, lambda i: requests[i]["group"])]
        yield [group[0] for group in groups]
        if rest := [i for group in groups for i in group[1:]]:
            yield rest


def main(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    match arguments:
        case ["prepare", folder, model]:
            print(prepare(Path(folder), Path(model)))
        case ["answer", converted, asked, answered, threads, precision]:
            requests = [json.loads(line) for line in Path(asked).read_text(encoding="utf-8").splitlines()]
            result = answer(Path(converted), requests, int(threads), precision)
            Path(answered).write_text(json.dumps(result), encoding="utf-8")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
