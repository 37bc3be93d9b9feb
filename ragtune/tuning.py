"""The work of `tune` once its rows stand: training, and the adapter folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ragtune import store
from ragtune.dev_score import dev_score
from ragtune.session import Session
from ragtune.types import Weights

if TYPE_CHECKING:
    from ragtune.generator.examples import TrainingRow
    from ragtune.generator.methods import Method
    from ragtune.generator.train import Progress


def train_into(
    target: Path,
    session: Session,
    rows: Sequence[TrainingRow],
    plan: tuple[Method, dict[str, Any], Path],
    report: Callable[[Progress], None],
) -> tuple[float, ...]:
    """Train on rows and write the adapter folder; `plan` is (method, inputs, work folder). Returns the losses."""
    from ragtune.generator.adapters import save
    from ragtune.generator.card import model_card
    from ragtune.generator.ledger import LEDGER
    from ragtune.generator.train import Following, disk_errors, train

    method, inputs, work = plan
    project = session.project
    folder, fingerprint = session.base
    trained_on = {row.task for row in rows}
    # Rows of a file may name no task; their adapter is then measured on all.
    tasks = [name for name in project.tasks if name in trained_on] or list(project.tasks)
    score = dev_score(session, cast(Weights, target.name), tasks) if project.tune.eval_steps else None
    along = Following(session.say, score, project.name)
    model, result = train(rows, folder, method, project.tune, work, report, along)
    manifest = {
        "kind": "adapter",
        "inputs": inputs,
        "arm": target.name,
        "method": method.name,
        "nf4": method.nf4,
        "base": {"name": project.generator.model, "fingerprint": fingerprint},
        "documents": session.index.manifest["inputs"]["documents"],
        "rows": len(rows),
        "tasks": sorted(tasks),
        "config": project.tune.model_dump(mode="json"),
        **asdict(result),
    }
    with store.atomic_folder(target, manifest) as building:
        with disk_errors(target):
            save(model, method, building)
        store.write_jsonl(building / "rows.jsonl", (row.to_json() for row in rows))
        shutil.copyfile(work / LEDGER, building / LEDGER)
        (building / "README.md").write_text(model_card(manifest), encoding="utf-8")
    return result.losses
