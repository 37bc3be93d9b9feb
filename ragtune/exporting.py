"""The work of `merge` and `export`: an adapter becomes a folder for others, put in place if it answers like itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtune import store
from ragtune.assistant import ARMS
from ragtune.errors import ModelError, StoreError
from ragtune.parity import Answers, Parity, Probe, answer, compare, frozen_probe, parity_from_json, probe_rows
from ragtune.results import load_run
from ragtune.session import Session
from ragtune.types import Weights

if TYPE_CHECKING:
    from ragtune.generator.generate import LocalGenerator

_SHOWN = 5
_FEWEST_FOR_OPENAI = 10
"""Examples that its fine-tuning takes at least (its guide to supervised fine-tuning)."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What stands in `folder`. `parity` is the model beside its adapter, None for a dataset.

    `failures` say what lies beyond the bounds, where `force` put the model there all the same.
    """

    folder: Path
    parity: Parity | None
    failures: tuple[str, ...]
    reused: bool


def merge_into(target: Path, session: Session, weights: Weights, force: bool) -> Exported:
    """Write the adapter merged into its base.

    Raises: ConfigError for a method that cannot be merged; ModelError when it answers otherwise than the adapter.
    """
    from ragtune.generator import models
    from ragtune.generator.generate import LocalGenerator
    from ragtune.generator.merge import check_mergeable, merge_adapter, save_merged

    manifest = {"kind": "model", **_describe(session, weights)}
    check_mergeable(manifest["method"])
    folder, fingerprint = session.base

    def write(building: Path) -> LocalGenerator:
        save_merged(merge_adapter(folder, fingerprint, session.adapter(weights)), folder, building)
        return LocalGenerator.from_folder(building, "merged", models.fingerprint(building))

    return _hand_on(target, session, weights, (manifest, write), force)


def gguf_into(target: Path, session: Session, weights: Weights, force: bool) -> Exported:
    """Write the adapter merged into its base as one GGUF file, with an Ollama Modelfile.

    Raises: ConfigError for a method that cannot be merged, or a model that cannot be exported; ModelError when it
    answers otherwise than the adapter.
    """
    from ragtune.generator.generate import load_tokenizer
    from ragtune.generator.gguf_export import check_exportable, load_config, load_gguf, write_gguf
    from ragtune.generator.merge import check_mergeable, merge_adapter
    from ragtune.generator.ollama import modelfile

    quantise = session.project.export.quantise
    name = f"{session.project.name}-{weights}"
    file = f"{name}-{quantise}.gguf"
    manifest = {"kind": "gguf", "file": file, "quantise": quantise, **_describe(session, weights)}
    manifest["inputs"]["quantise"] = quantise
    check_mergeable(manifest["method"])
    folder, fingerprint = session.base
    config = load_config(folder)
    check_exportable(config)
    tokenizer = load_tokenizer(folder)

    def write(building: Path) -> LocalGenerator:
        about = {"name": name, "licence": manifest["licence"], "description": f"{weights} adapter, merged by ragtune"}
        merged = merge_adapter(folder, fingerprint, session.adapter(weights))
        write_gguf(merged, tokenizer, building / file, quantise, about)
        text = modelfile(file, tokenizer, config.max_position_embeddings)
        (building / "Modelfile").write_text(text, encoding="utf-8")
        return load_gguf(building / file, tokenizer)

    return _hand_on(target, session, weights, (manifest, write), force)


def openai_into(target: Path, session: Session, weights: Weights) -> Exported:
    """Write the rows that the adapter was trained on as a dataset for OpenAI's fine-tuning: chat JSONL."""
    from ragtune.generator.card import dataset_card
    from ragtune.generator.chat_formats import read_rows, write_rows

    manifest = {"kind": "dataset", **_describe(session, weights)}
    rows = read_rows(session.adapter(weights) / "rows.jsonl")
    if len(rows) < _FEWEST_FOR_OPENAI:
        session.say(f"{len(rows)} rows are fewer than the {_FEWEST_FOR_OPENAI} that OpenAI's fine-tuning takes")
    reused = store.is_current(target, manifest["kind"], manifest["inputs"])
    if not reused:
        with store.atomic_folder(target, manifest) as building:
            write_rows(building / "train.jsonl", rows, "openai")
            (building / "README.md").write_text(dataset_card(manifest), encoding="utf-8")
    return Exported(target, None, (), reused)


def _describe(session: Session, weights: Weights) -> dict[str, Any]:
    """What a folder was made of, for its manifest and card.

    Raises: StoreError when the adapter is missing or damaged.
    """
    from ragtune.generator import models

    adapter = store.open_folder(session.adapter(weights), "adapter")
    kept = ("arm", "method", "nf4", "base", "documents", "rows", "tasks")
    bounds = session.project.export.model_dump(mode="json", exclude={"quantise"})
    return {
        **{name: adapter[name] for name in kept},
        "index": adapter["inputs"]["index"],
        "licence": models.status(adapter["base"]["name"]).licence,
        "scores": _scores(session, weights, adapter["files"]),
        "inputs": {
            "adapter": adapter["files"],
            "base": session.base[1],
            "tasks": store.sha256_of_json([asdict(task) for task in session.tasks]),
            "export": bounds,
        },
    }


def _scores(session: Session, weights: Weights, files: dict[str, str]) -> list[dict[str, Any]]:
    """What the project's finished run measured of exactly this adapter, one entry a task and arm."""
    folder = session.project.place("runs")
    if not folder.exists():
        return []
    try:
        run, manifest = load_run(folder), store.read_manifest(folder, "run")
    except StoreError as error:
        session.say(f"the card gets no scores: {error}")
        return []
    if manifest["inputs"]["adapters"].get(weights) != files:
        session.say(f"the card gets no scores: {folder} measured another adapter")
        return []
    metrics = {task["name"]: task["metric"] for task in manifest["tasks"]}
    return [
        {"task": verdict.task, "arm": arm.arm, "metric": metrics[verdict.task], "n": arm.n, **asdict(arm.score)}
        for verdict in run.verdicts
        for arm in verdict.arms
        if arm.arm in ARMS and ARMS[arm.arm].weights == weights and not arm.reference
    ]


_Work = tuple[dict[str, Any], Callable[[Path], "LocalGenerator"]]
"""A manifest, and what fills the folder and gives back the generator that answers from it."""


def _hand_on(target: Path, session: Session, weights: Weights, work: _Work, force: bool) -> Exported:
    """Ask the adapter, make the form, ask the form; put it in place when both answer alike.

    Raises: ModelError naming the questions that it answers otherwise.
    """
    from ragtune.generator.card import served_card

    manifest, write = work
    if store.is_current(target, manifest["kind"], manifest["inputs"]):
        done = store.read_manifest(target, manifest["kind"])["parity"]
        if force or not done["failures"]:
            return Exported(target, parity_from_json(done["result"]), tuple(done["failures"]), reused=True)
    probes, reference = _ask_adapter(session, weights)
    with store.atomic_folder(target, manifest) as building:
        session.say("merging the adapter into the base")
        generator = write(building)
        session.say("asking the same of what was written")
        answers = answer(session, weights, probes, generator, reference)
        parity = compare(probes, reference, answers)
        failures = parity.failures(session.project.export)
        if failures:
            _refuse(parity, failures, session, force)
        manifest["parity"] = {"result": asdict(parity), "failures": failures}
        store.write_jsonl(building / "probe.jsonl", probe_rows(probes, reference))
        (building / "README.md").write_text(served_card(manifest, str(target)), encoding="utf-8")
    return Exported(target, parity, tuple(failures), reused=False)


def _ask_adapter(session: Session, weights: Weights) -> tuple[list[Probe], Answers]:
    """The frozen probe, and what base and adapter answer to it. They leave the memory afterwards."""
    from ragtune.generator.generate import LocalGenerator

    folder, fingerprint = session.base
    adapter = LocalGenerator.from_folder(folder, session.project.generator.model, fingerprint, session.adapter(weights))
    probes = frozen_probe(session, weights, adapter)
    session.say(f"asking the adapter {len(probes)} probe questions")
    return probes, answer(session, weights, probes, adapter)


def _refuse(parity: Parity, failures: list[str], session: Session, force: bool) -> None:
    for change in parity.changes:
        session.say(str(change))
    if not force:
        shown = "; ".join(map(str, parity.changes[:_SHOWN]))
        raise ModelError(
            f"what was written is not the model that was trained: {' and '.join(failures)} ({shown}); nothing was put "
            "in place; store it with more bits, or take it as it is with --force"
        )
