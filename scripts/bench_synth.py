"""`python scripts/bench_synth.py` measures the questions that `ragtune synth` writes (about 10 minutes on 2 cores).

The generator writes 100 pairs (`--quick`: 30, about 4 minutes) about the documents of corpora/harbourline, once with
each strategy. The same measures are taken of as many questions of the task `facts`, which people wrote about the same
documents, so that they can be read against each other. `--config FILE` takes another project (with `--task NAME`, or
`--task ""` when it has no questions), `--generator NAME` another generator of its ragtune.toml.

- `yield`: pairs kept, as a share of the replies; `reasons`: why the others were left out.
- `found_at_1`, `found_at_3`: share of the questions for which search finds their own passage in first place, in the
  first three. A question that could be about anything is not found; one that repeats its passage always is.
- `confirmed`: share whose answer the generator picks when it reads the passage and chooses among all possible answers
  in it; `confirmed_blind`: the same when it is asked the question of another pair, so what it picks whatever is asked.
  A model that reads poorly confirms little of what people wrote, too: that is what the row `human` is for. Where a
  passage has fewer than 3 possible answers there is nothing to choose.
- `answerable`: share of which the generator says that the passage answers the question; `answerable_elsewhere`: the
  same with a passage of another document. A judge that says the same to both is none.
- `seconds_per_pair`: seconds of writing and screening for each pair that was kept.

A few pairs are printed, drawn at random. The last line, also written with `--json FILE`, is one JSON object: the
figures above under `answer_first`, `free` and `human`, and `generator`, `pairs`, `seed`. `--write` puts a table of them
into docs/synth.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import ragtune
from ragtune import store
from ragtune.corpus.grounding import ground
from ragtune.measure import AnswerLog
from ragtune.prompting import synth
from ragtune.session import Session, gold_passages
from ragtune.synthesis.questions import (
    Draft,
    Strategy,
    SynthOptions,
    generator_of,
    round_trip,
    write_questions,
)
from ragtune.types import Generator, Message

CORPUS = Path(__file__).resolve().parents[1] / "corpora" / "harbourline"
STRATEGIES: tuple[Strategy, ...] = ("answer-first", "free")
SHOWN = 8
PAGE = Path(__file__).resolve().parents[1] / "docs" / "synth.md"
ROWS = {"answer_first": "answer-first", "free": "free", "human": "written by people"}
COLUMNS = {
    "yield": "kept of the replies",
    "found_at_1": "found first",
    "found_at_3": "found in 3",
    "confirmed": "confirmed",
    "confirmed_blind": "confirmed blind",
    "answerable": "judged answerable",
    "answerable_elsewhere": "judged so elsewhere",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs")
    parser.add_argument("--config", type=Path, default=CORPUS, help="a project's ragtune.toml")
    parser.add_argument("--task", default="facts", help="task of the questions that people wrote; empty for none")
    parser.add_argument("--generator", default="", help="a section [generators.NAME]")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--write", action="store_true", help="put the table into docs/synth.md")
    args = parser.parse_args()
    project = ragtune.load_config(args.config.resolve())
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        ragtune.index(project)
        options = SynthOptions(generator=args.generator, questions=30 if args.quick else 100, seed=args.seed)
        figures = measure(Session(project), options, args.task)
    if args.json:
        args.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    if args.write:
        from generated import fill

        fill(PAGE, "bench_synth.py", table(figures))
    print(json.dumps(figures))


def measure(session: Session, options: SynthOptions, task: str) -> dict[str, Any]:
    """The figures named above."""
    generator = generator_of(session, options.generator)
    figures: dict[str, Any] = {"generator": generator.name, "pairs": options.questions, "seed": options.seed}
    log = AnswerLog(store.JsonlLog(Path("synth.jsonl")))
    for strategy in STRATEGIES:
        started = time.perf_counter()
        written = write_questions(session, replace(options, strategy=strategy), log, lambda *_: None)
        seconds = time.perf_counter() - started
        figures[strategy.replace("-", "_")] = {
            "yield": len(written.pairs) / max(1, written.replies),
            "kept": len(written.pairs),
            "replies": written.replies,
            "reasons": written.reasons,
            "seconds_per_pair": seconds / max(1, len(written.pairs)),
            **quality(session, generator, written.pairs, strategy, options.seed),
        }
    if task:
        pairs = human_pairs(session, task, options.questions, options.seed)
        figures["human"] = quality(session, generator, pairs, "human", options.seed)
    return figures


def human_pairs(session: Session, task: str, count: int, seed: int) -> list[Draft]:
    """Questions of a task that one passage answers word for word, drawn with the seed, as if they had been written."""
    questions = [q for t in session.located_tasks if t.name == task for q in t.questions]
    gold = gold_passages(questions, session.index.passages)
    pairs = []
    for question in questions:
        for passage in gold[question.id][:1]:
            places = [place for answer in question.answers if (place := ground(answer, passage.text))]
            if places:
                start, end = places[0]
                answer = " ".join(passage.text[start:end].split())
                pairs.append(Draft(passage, question.text, answer, passage.start + start, passage.start + end))
    return random.Random(seed).sample(pairs, min(count, len(pairs)))


def quality(
    session: Session, generator: Generator, pairs: Sequence[Draft], name: str, seed: int
) -> dict[str, float | None]:
    """What search and the generator make of the pairs."""

    def pick(prompt: Sequence[Message], labels: Sequence[str]) -> str:
        return generator.choose([prompt], labels, 1)[0].text

    def says_yes(question: str, draft: Draft) -> bool:
        return pick(synth.judge_messages(question, draft.passage), synth.VERDICTS).lower().startswith("yes")

    hits = session.retriever.search([pair.question for pair in pairs], 3)
    ranks = [
        next((hit.rank for hit in found if hit.passage.id == pair.passage.id), None)
        for pair, found in zip(pairs, hits, strict=True)
    ]
    confirmed = [round_trip(pair, pick) for pair in pairs]
    blind = [round_trip(replace(pair, question=other.question), pick) for pair, other in rotated(pairs)]
    elsewhere = [
        (pair, other) for pair, other in rotated(pairs) if pair.passage.document_id != other.passage.document_id
    ]
    show(name, pairs, ranks, confirmed, seed)
    return {
        "found_at_1": share([rank == 1 for rank in ranks]),
        "found_at_3": share([rank is not None for rank in ranks]),
        "confirmed": share([right for right in confirmed if right is not None]),
        "confirmed_blind": share([right for right in blind if right is not None]),
        "answerable": share([says_yes(pair.question, pair) for pair in pairs]),
        "answerable_elsewhere": share([says_yes(pair.question, other) for pair, other in elsewhere]),
    }


def table(figures: Mapping[str, Any]) -> list[str]:
    """The lines of the page's table."""
    lines = ["| questions | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for key, name in ROWS.items():
        values = (figures.get(key, {}).get(column) for column in COLUMNS)
        lines.append(f"| {name} | " + " | ".join("" if v is None else f"{v:.0%}" for v in values) + " |")
    return lines


def rotated(pairs: Sequence[Draft]) -> list[tuple[Draft, Draft]]:
    """Each pair with the next one, the last with the first."""
    return list(zip(pairs, [*pairs[1:], *pairs[:1]], strict=True))


def share(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return fmean(values) if values else None


def show(
    name: str, pairs: Sequence[Draft], ranks: Sequence[int | None], confirmed: Sequence[bool | None], seed: int
) -> None:
    """Print some pairs with their rank in search and whether the generator picks the answer."""
    print(f"\n{name}: rank in search (- for none in 3), + where the answer is confirmed", flush=True)
    for i in random.Random(seed).sample(range(len(pairs)), min(SHOWN, len(pairs))):
        print(f"  {ranks[i] or '-'}{'+' if confirmed[i] else ' '} {pairs[i].question}  ->  {pairs[i].answer}")


if __name__ == "__main__":
    main()
