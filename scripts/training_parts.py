"""The parts of scripts/bench_training.py that run ragtune, each in a process of its own so that its memory is its own.

`python scripts/training_parts.py rows FOLDER SIZES` writes a job (`peer_trainer.Job`) for each case into FOLDER.
`... ours JOB OUT` trains with ragtune, as scripts/peer_trainer.py does with transformers.
`... losses JOB OUT ADAPTER...` writes OUT: the loss of the base alone and with each adapter, on the held-out rows.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peer_trainer
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

import ragtune
from ragtune.config import TuneConfig
from ragtune.generator.examples import TrainingRow, row_from_json
from ragtune.generator.generate import load_tokenizer, load_weights
from ragtune.generator.methods import METHODS
from ragtune.generator.nf4 import round_to_nf4
from ragtune.generator.train import encode_row, train
from ragtune.session import Session
from ragtune.training_rows import build_rows

CORPUS = Path(__file__).resolve().parents[1] / "corpora" / "harbourline"
LONG = range(500, 751)
"""Tokens of a RAFT row that is taken: about what rows with six passages have."""
SHARED = {"learning_rate": 1e-3, "rank": 16, "alpha": 32, "seed": 17}

Encoded = tuple[TrainingRow, list[int], int]


def base_folder() -> Path:
    """The folder of the base model."""
    return Session(ragtune.load_config(CORPUS)).base[0]


def encoded_rows() -> dict[str, list[Encoded]]:
    """The rows of both kinds with their tokens, in a seeded order: RAFT rows of the wanted length, and short ones."""
    project = ragtune.load_config(CORPUS, {"retrieval.k": 6})
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        ragtune.index(project)
        session = Session(project)
        tokenizer = load_tokenizer(session.base[0])
        kinds = {
            "raft": build_rows(session, "raft", ["facts", "two-hop"]).rows,
            "short": build_rows(session, "tune", ["facts", "routing", "sender"]).rows,
        }
    encoded = {kind: [(row, *encode_row(tokenizer, row)) for row in rows] for kind, rows in kinds.items()}
    encoded["raft"] = [row for row in encoded["raft"] if len(row[1]) in LONG]
    for rows in encoded.values():
        random.Random(SHARED["seed"]).shuffle(rows)
    return encoded


def write_jobs(folder: Path, sizes: dict[str, Any]) -> None:
    """Write FOLDER/CASE.json for each case of `sizes["cases"]`, which name the kind of rows, the batch and `nf4`."""
    kinds = encoded_rows()
    for name, case in sizes["cases"].items():
        count = case["batch"] * sizes["steps"]
        rows = kinds[case["rows"]][:count]
        held_out = kinds[case["rows"]][count : count + sizes["held_out"]]
        if len(held_out) < sizes["held_out"]:
            sys.exit(f"the sample corpus gives {len(rows) + len(held_out)} rows for {name}, too few")
        job = peer_trainer.Job(
            model=str(base_folder()),
            ids=[ids for _, ids, _ in rows],
            prompt_lengths=[prompt for *_, prompt in rows],
            rows=[row.to_json() for row, *_ in rows],
            held_out=[(ids, prompt) for _, ids, prompt in held_out],
            batch=case["batch"],
            passes=sizes["passes"],
            nf4=case["nf4"],
            **SHARED,
        )
        (folder / f"{name}.json").write_text(json.dumps(job), encoding="utf-8")


def read_job(path: Path) -> peer_trainer.Job:
    """The job of a case."""
    job: peer_trainer.Job = json.loads(path.read_text(encoding="utf-8"))
    return job


def train_ours(job: peer_trainer.Job, out: Path) -> None:
    """Train with ragtune, save the adapter, write the result."""
    method = METHODS["qlora" if job["nf4"] else "lora"]
    config = TuneConfig(
        method=method.name,
        epochs=job["passes"],
        learning_rate=job["learning_rate"],
        batch_size=job["batch"],
        rank=job["rank"],
        alpha=job["alpha"],
        seed=job["seed"],
        dequantise="once",
        compile="on",  # as in a run of usual length; it falls into the first pass, which is not timed
        save_steps=10_000,  # saving is nobody's part of the measurement
    )
    work = out / "checkpoints"
    work.mkdir()
    ends: list[float] = []
    rows = [row_from_json(row) for row in job["rows"]]
    model, result = train(rows, Path(job["model"]), method, config, work, lambda _: ends.append(time.perf_counter()))
    model.save_pretrained(out / "adapter")
    settings = {"ragtune": ragtune.__version__, "method": method.name, "dequantise": config.dequantise, "compile": "on"}
    peer_trainer.write_result(out, ends, result.losses, settings)


@torch.inference_mode()
def held_out_loss(model: Any, rows: Sequence[tuple[Sequence[int], int]]) -> float:
    """Mean loss (nats) of all answer tokens of `rows`, pairs of (ids, prompt length), each row read alone."""
    total, tokens = 0.0, 0
    for ids, prompt in rows:
        answer = len(ids) - prompt
        logits = model(input_ids=torch.tensor([ids]), logits_to_keep=answer + 1, use_cache=False).logits
        total += float(cross_entropy(logits[0, :-1].float(), torch.tensor(ids[prompt:]), reduction="sum"))
        tokens += answer
    return total / tokens


def losses(job: peer_trainer.Job, adapters: Sequence[Path]) -> dict[str, float]:
    """The held-out loss without and with each adapter, all in fp32; the base is rounded to NF4 for an `nf4` job."""

    def base() -> Any:
        model = load_weights(Path(job["model"]), torch.float32)
        if job["nf4"]:
            round_to_nf4(model)
        return model

    found = {"base": held_out_loss(base(), job["held_out"])}
    for adapter in adapters:
        model = PeftModel.from_pretrained(base(), adapter).eval()
        found[str(adapter)] = held_out_loss(model, job["held_out"])
    return found


def main(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    match arguments:
        case ["rows", folder, sizes]:
            write_jobs(Path(folder), json.loads(sizes))
        case ["ours", job, out]:
            train_ours(read_job(Path(job)), Path(out))
        case ["losses", job, out, *adapters]:
            found = losses(read_job(Path(job)), [Path(adapter) for adapter in adapters])
            Path(out).write_text(json.dumps(found), encoding="utf-8")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
