#!/usr/bin/env python3
"""Public data sets through import, index, tune, evaluate and report, with all arms -> a table of scores and verdicts.

    python scripts/public_sets.py DATA                      # DATA holds one folder a set, as `ragtune import` reads it
    python scripts/public_sets.py DATA --set squad_qa --quick

Every set is cut to a size that 2 cores do in about ten minutes (see SETS). Finished stages are reused, so a run that
was stopped goes on. The table, in Markdown, is on standard error; the last line on standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ragtune import load_config, pipeline
from ragtune.cli.output import watching
from ragtune.corpus.importers.convert import ImportOptions
from ragtune.types import Verdict


@dataclass(frozen=True)
class Size:
    """How much of a set is taken. `raft`: it has evidence from which to train the arm `raft`."""

    train: int
    test: int
    documents: int | None
    raft: bool


SETS = {
    "squad_qa": Size(train=320, test=96, documents=300, raft=True),
    "pubmedqa": Size(train=200, test=96, documents=300, raft=False),
    "e2e_parse": Size(train=320, test=72, documents=None, raft=False),
}


def main() -> None:
    """Run the sets that are named, print a line for each and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that holds one folder a set")
    parser.add_argument("--set", dest="sets", action="append", choices=list(SETS), help="only this set")
    parser.add_argument("--work", type=Path, default=Path("runs/public"), help="where projects and results are built")
    parser.add_argument("--quick", action="store_true", help="a quarter of the questions")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    data = args.data.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)
    found = {name: run_set(name, data / name, args.quick) for name in args.sets or SETS}
    figures = {name: {"minutes": minutes, "verdict": asdict(verdict)} for name, (verdict, minutes) in found.items()}
    print(table({name: verdict for name, (verdict, _) in found.items()}), file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    print(json.dumps({name: {"minutes": f["minutes"], "arm": f["verdict"]["arm"]} for name, f in figures.items()}))


def run_set(name: str, source: Path, quick: bool) -> tuple[Verdict, float]:
    """One set from its folder to its verdict, and how many minutes that took now."""
    started = time.perf_counter()
    size = SETS[name]
    share = 4 if quick else 1
    project_folder = Path(name)
    if not project_folder.exists():
        options = ImportOptions(name, None, size.train // share, 24, size.test // share, size.documents)
        pipeline.import_data(source, project_folder, options)
    project = load_config(project_folder, {"tune.epochs": 2})
    with watching() as watch:
        pipeline.index(project, watch=watch)
        for arm in ("tune", "raft") if size.raft else ("tune",):
            pipeline.tune(project, arm, resume=True, watch=watch)
        run = pipeline.evaluate(project, watch=watch)
    pipeline.report(project)
    minutes = (time.perf_counter() - started) / 60
    (verdict,) = run.verdicts
    print(f"{name}: {verdict.status} {verdict.arm}. {verdict.reason} ({minutes:.1f} minutes)", file=sys.stderr)
    return verdict, round(minutes, 1)


def table(verdicts: dict[str, Verdict]) -> str:
    """Markdown: a row an arm, a column a set; the verdicts below it."""
    names = list(verdicts)
    arms = dict.fromkeys(summary.arm for verdict in verdicts.values() for summary in verdict.arms)
    lines = ["| arm | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for arm in arms:
        cells = [_cell(verdicts[name], arm) for name in names]
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    lines.append("")
    for name, verdict in verdicts.items():
        lines.append(f"- **{name}**, {verdict.status}: {verdict.reason}")
    return "\n".join(lines)


def _cell(verdict: Verdict, arm: str) -> str:
    summary = next((s for s in verdict.arms if s.arm == arm), None)
    if summary is None:
        return ""
    score = f"{summary.score.mean:.2f} ({summary.score.low:.2f} to {summary.score.high:.2f})"
    return f"**{score}**" if arm == verdict.arm else score


if __name__ == "__main__":
    main()
