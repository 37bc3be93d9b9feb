"""`python scripts/bench_raft.py` measures whether training teaches to use context (about 45 minutes, 2 cores).

On the facts of corpora/harbourline or, with `--data FOLDER --set NAME`, on the set FOLDER/NAME as `ragtune import`
reads it. Four readers of passages: the base model, with the instruction that does best for it on dev; `closed-book`,
tuned on the questions alone; `gold-only`, trained with the gold passage alone; `raft`, trained with it among up to 4
distractors, in 80 % of the rows (Zhang et al. 2024, arXiv:2403.10131). Rows without gold keep their answer as target.

- All read k = 1 to 10 passages, the gold one at a random place among the distractors that the index ranks highest.
- RAFT with gold in P = 40 to 100 % of its rows reads the 3 passages that search finds.

Scores are exact match, all intervals 95 %, paired where they are of differences, over questions and not over seeds.
Only answerable questions are asked. What is done is kept below `--work`, and a run that was stopped goes on.

`python scripts/bench_raft.py --goal --data FOLDER` asks for one figure: exact match with 3 retrieved passages, before
and after RAFT. `--rows`, `--epochs`, `--learning-rate`, `--rank`, `--batch` and `--setting SECTION.KEY=VALUE` (any
setting of ragtune.toml, as in `--setting tune.share_without_gold=0.1`) say how it trains; each trial is a line in
WORK/NAME/trials.jsonl. Choose settings with `--split dev`, and ask the test questions once.

The last line, also written with `--json FILE`, is one JSON object: `set`; `em_before`, `em_after`, `f1_after` with 3
retrieved passages; `minutes` of training; `difference`, em_after - em_before with its interval; `questions`; `recall`
of the gold passage; `rows`, `tokens_per_second`, `peak_memory`, `adapter` of the training; `split`; without `--goal`
also `by_k`, `by_share` and `learned_from_distractors`. `--quick` trains on 32 rows and asks 12 questions.

`--write` puts tables into docs/tuning.md, each set between markers of its own, and the curves into docs/images.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import generated
import numpy as np
import raft_page
import reading
from reading import Given, Study

from ragtune.evaluator.compare import Array, mean_interval, paired_difference
from ragtune.rounds import clusters_of
from ragtune.types import Question, Row, Split, Weights

SERVED = 3
PASSAGES = (1, 2, 3, 5, 7, 10)
SHARES = (40, 60, 80, 100)
TRAINED_WITH = 5
RAFT = {"retrieval.k": TRAINED_WITH, "tune.without_gold": "recall", "tune.share_without_gold": 0.2}
READERS: dict[str, tuple[Weights, dict[str, Any]] | None] = {
    "base": None,
    "closed-book": ("tune", {}),
    "gold-only": ("raft", {**RAFT, "retrieval.k": 1, "tune.share_without_gold": 0.0}),
    "raft": ("raft", RAFT),
}
WHOLE = {"retrieval.k": SERVED, "tune.max_rows_per_task": 640, "tune.epochs": 2.0}
QUICK = {"retrieval.k": SERVED, "tune.max_rows_per_task": 32, "tune.epochs": 1.0}


@dataclass(frozen=True)
class Test:
    """What is asked: the questions of the figures, and how many `dev` questions choose the base's instruction."""

    split: Split
    questions: int
    dev: int


@dataclass(frozen=True)
class Asked:
    """What some readers scored on the same questions: exact match of each, shape (n,), and whose documents they ask."""

    scores: Mapping[str, Array]
    clusters: Sequence[str]

    def interval(self, name: str) -> dict[str, float]:
        """Mean with its interval."""
        return asdict(mean_interval(self.scores[name], clusters=self.clusters))

    def difference(self, a: str, b: str) -> dict[str, float]:
        """Mean of a - b with its interval."""
        return asdict(paired_difference(self.scores[a], self.scores[b], clusters=self.clusters))


def column(rows: Sequence[Row], metric: str = "exact_match") -> Array:
    """One metric of all rows; NaN where it is not scored."""
    return np.array([row.scores[metric] for row in rows], dtype=float)


def clusters(questions: Sequence[Question]) -> list[str]:
    """The document that each question is about."""
    return list(clusters_of(questions).values())


def headline(study: Study, test: Test, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Exact match with 3 retrieved passages, before and after RAFT with the study's settings and these changes."""
    questions = study.questions(test.split, test.questions)
    given = reading.retrieved(study, questions, SERVED)
    base = reading.reader(study, None)
    instruction = reading.best_instruction(study, base, SERVED, test.dev)
    before = reading.ask(study, base, questions, given, instruction)
    print(f"before: exact match {np.nanmean(column(before)):.3f}", file=sys.stderr, flush=True)
    adapter = reading.train(study, "raft", changes)
    after = reading.ask(study, reading.reader(study, adapter), questions, given, study.task.instructions[0])
    asked = Asked({"before": column(before), "after": column(after)}, clusters(questions))
    return {
        "set": study.name,
        "em_before": float(np.nanmean(column(before))),
        "em_after": float(np.nanmean(column(after))),
        "f1_after": float(np.nanmean(column(after, "token_f1"))),
        "difference": asked.difference("after", "before"),
        "questions": len(questions),
        "split": test.split,
        "recall": reading.recall(study, questions, given),
        **reading.facts_of(adapter),
        "adapter": str(adapter),
    }


def read_all(study: Study, test: Test, givens: Mapping[int, Given]) -> dict[str, dict[int, Array]]:
    """Exact match of each reader, trained where that was not done, for each number of passages."""
    return {name: read(study, test, name, givens) for name in READERS}


def read(study: Study, test: Test, name: str, givens: Mapping[int, Given]) -> dict[int, Array]:
    """Exact match of one reader for each number of passages."""
    questions = study.questions(test.split, test.questions)
    recipe = READERS[name]
    adapter = recipe and reading.train(study, *recipe)
    generator = reading.reader(study, adapter)
    tuned = study.task.instructions[0]
    said = tuned if adapter else reading.best_instruction(study, generator, SERVED, test.dev)
    found = {}
    for k, given in givens.items():
        found[k] = column(reading.ask(study, generator, questions, given, said))
        print(f"{name}, {k} passages: {np.nanmean(found[k]):.3f}", file=sys.stderr, flush=True)
    return found


def by_passages(found: Mapping[str, Mapping[int, Array]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """For each k the intervals of all readers, what raft leads the others by, and the changes since k = 1."""
    lines = []
    for k in next(iter(found.values())):
        at_k = Asked({name: scores[k] for name, scores in found.items()}, labels)
        since = {name: Asked({"now": scores[k], "one": scores[1]}, labels) for name, scores in found.items()}
        lines.append(
            {
                "k": k,
                "scores": {name: at_k.interval(name) for name in found},
                "raft_leads": {name: at_k.difference("raft", name) for name in found if name != "raft"},
                "since_one": {name: change.difference("now", "one") for name, change in since.items()},
            }
        )
    return lines


def by_share(study: Study, test: Test) -> list[dict[str, Any]]:
    """RAFT with gold in P % of its rows, on retrieved passages: its interval and its lead over P = 100 %."""
    questions = study.questions(test.split, test.questions)
    given = reading.retrieved(study, questions, SERVED)
    scores = {}
    for share in SHARES:
        changes = {**RAFT, "tune.share_without_gold": round(1 - share / 100, 2)}
        generator = reading.reader(study, reading.train(study, "raft", changes))
        scores[str(share)] = column(reading.ask(study, generator, questions, given, study.task.instructions[0]))
        print(f"P = {share} %: {np.nanmean(scores[str(share)]):.3f}", file=sys.stderr, flush=True)
    asked = Asked(scores, clusters(questions))
    return [
        {"share": share, "score": asked.interval(str(share)), "leads_100": asked.difference(str(share), "100")}
        for share in SHARES
    ]


def curves(study: Study, test: Test) -> dict[str, Any]:
    """All figures, as named above."""
    questions = study.questions(test.split, test.questions)
    labels = clusters(questions)
    found = read_all(study, test, {k: reading.gold_among(study, questions, k) for k in PASSAGES})
    lines = by_passages(found, labels)
    learned = Asked({name: np.mean(list(found[name].values()), axis=0) for name in ("raft", "gold-only")}, labels)
    return {
        **headline(study, test, RAFT),
        "by_k": lines,
        "by_share": by_share(study, test),
        "learned_from_distractors": learned.difference("raft", "gold-only"),
    }


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names, by their place in ragtune.toml."""
    named = {
        "tune.max_rows_per_task": arguments.rows,
        "tune.epochs": arguments.epochs,
        "tune.learning_rate": arguments.learning_rate,
        "tune.rank": arguments.rank,
        "tune.alpha": arguments.rank and 2 * arguments.rank,
        "tune.batch_size": arguments.batch,
    }
    return {key: value for key, value in named.items() if value is not None} | dict(arguments.settings)


def setting(text: str) -> tuple[str, Any]:
    """`SECTION.KEY=VALUE` -> the key and the value, read as TOML, else as a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}, expected SECTION.KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def trial(study: Study, test: Test) -> dict[str, Any]:
    """The headline with the study's settings as they are, logged beside its answers."""
    figures = headline(study, test, {})
    line = json.dumps({"settings": dict(study.settings), **figures})
    with (study.folder.parent / "trials.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return figures


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--goal", action="store_true", help="only the headline")
    either.add_argument("--write", action="store_true", help="put tables and curves into docs")
    parser.add_argument("--data", type=Path, help="folder that holds one folder a set; else the sample corpus")
    parser.add_argument("--set", dest="name", default="squad_qa", help="the set in that folder")
    parser.add_argument("--work", type=Path, default=Path("runs/raft"), help="where all is built and kept")
    parser.add_argument("--quick", action="store_true", help="32 rows and 12 questions")
    parser.add_argument("--questions", type=int, help="how many questions are asked; 200 when not given")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="whose questions are asked")
    for name, kind in (("rows", int), ("epochs", float), ("learning-rate", float), ("rank", int), ("batch", int)):
        parser.add_argument(f"--{name}", type=kind, help=f"{name.replace('-', ' ')} of training")
    parser.add_argument("--setting", dest="settings", action="append", type=setting, default=[], help="see above")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    return parser


def main() -> None:
    """Measure and print."""
    arguments = parser().parse_args()
    questions, dev = (12, 4) if arguments.quick else (200, 24)
    test = Test(arguments.split, arguments.questions or questions, dev)
    settings = {**(QUICK if arguments.quick else WHOLE), **settings_of(arguments)}
    name = arguments.name if arguments.data else reading.SAMPLE[0]
    study = reading.open_study(arguments.work.resolve(), arguments.data and arguments.data.resolve(), name, settings)
    figures = trial(study, test) if arguments.goal else curves(study, test)
    if arguments.write:
        marked = f"bench_raft.py --set {name}" if arguments.data else "bench_raft.py"
        generated.fill(generated.TUNING, marked, raft_page.lines(figures))
        raft_page.draw(figures, raft_page.picture(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
