"""A project's rows: from its questions and its index, or from a file, and what lint holds them against."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ragtune
from ragtune import load_config, pipeline
from ragtune.errors import ConfigError, InputError, TrainingError
from ragtune.generator.chat_formats import read_rows, write_rows
from ragtune.generator.examples import Built, TrainingRow
from ragtune.session import Session
from ragtune.training_rows import build_rows, lint_rows, refuse_errors, rows_for
from ragtune.types import Message

TRAIN = 36
Open = Callable[..., Session]


@pytest.fixture
def opened(project: Path) -> Open:
    """`opened({"tune.seed": 3})` opens the indexed project with these settings; `session.said` is what it says."""
    ragtune.index(load_config(project))

    def open_with(overrides: dict[str, Any] | None = None) -> Session:
        said: list[str] = []
        session = Session(load_config(project, overrides), said.append)
        session.__dict__["said"] = said
        return session

    return open_with


def said(session: Session) -> list[str]:
    lines: list[str] = session.__dict__["said"]
    return lines


def kinds(built: Built) -> Counter[str]:
    return Counter(row.kind for row in built.rows)


# Building


def test_rows_come_in_the_order_of_tasks_and_questions_and_repeat(opened: Open) -> None:
    session = opened()
    built = build_rows(session, "raft")
    assert [row.question_id for row in built.rows] == [q.id for t in session.tasks for q in t.split("train")]
    assert built == build_rows(opened(), "raft")
    assert built != build_rows(opened({"tune.seed": 18}), "raft")
    assert build_rows(session, "raft", ["facts"]).rows == built.rows[:12]
    assert all(row.passage_ids == () for row in build_rows(session, "tune").rows)


def test_every_distractor_has_the_rank_and_score_that_the_index_gives_it(opened: Open) -> None:
    session = opened({"tune.share_without_gold": 0.0})
    texts = {q.id: q.text for task in session.tasks for q in task.questions}
    seen = 0
    for row in build_rows(session, "raft").rows:
        hits = {h.passage.id: (h.rank, h.score) for h in session.retriever.search([texts[row.question_id]], 12)[0]}
        distractors = [id for place, id in enumerate(row.passage_ids) if place not in row.gold]
        recorded = list(zip(row.distractor_ranks, row.distractor_scores, strict=True))
        assert recorded == [hits[id] for id in distractors]
        seen += len(recorded)
    assert seen > TRAIN


def test_only_tasks_that_may_abstain_lose_their_gold_to_abstention(opened: Open) -> None:
    settings: dict[str, Any] = {"tune.share_without_gold": 1.0}
    assert kinds(build_rows(opened(settings), "raft")) == {"abstain": 12, "raft": 24}
    recall = build_rows(opened(settings | {"tune.without_gold": "recall"}), "raft")
    assert kinds(recall) == {"raft-without-gold": 10, "abstain": 2, "raft": 24}


def test_an_unknown_task_and_no_questions(opened: Open) -> None:
    with pytest.raises(ConfigError, match="unknown task 'nonsense'; tasks are: facts, routing, record"):
        build_rows(opened(), "raft", ["nonsense"])
    with pytest.raises(InputError, match="there are no training questions"):
        session = opened()
        session.__dict__["tasks"] = tuple(replace(t, questions=t.split("test")) for t in session.tasks)
        build_rows(session, "raft")


# The budget


def tokens_of(session: Session, text: str) -> int:
    from ragtune.generator.generate import load_tokenizer

    return len(load_tokenizer(session.base[0])(text, add_special_tokens=False)["input_ids"])


def test_the_context_of_a_row_is_that_of_serving(opened: Open) -> None:
    free = build_rows(opened(), "raft")
    session = opened({"retrieval.context_tokens": 100})
    built = rows_for(session, "raft")
    passages = session.index.by_id
    for row in built.rows:
        assert sum(tokens_of(session, passages[id].text) for id in row.passage_ids) <= 100
    assert built.shortened > 0
    assert said(session)[0].startswith(f"{built.shortened} of {len(built.rows)} rows have fewer distractors")
    gold = {row.question_id: [row.passage_ids[i] for i in row.gold] for row in free.rows}
    for row in built.rows:
        assert [row.passage_ids[i] for i in row.gold] == gold[row.question_id]


def test_questions_whose_gold_does_not_fit_are_counted_and_named(opened: Open) -> None:
    session = opened({"retrieval.context_tokens": 64, "tune.share_without_gold": 0.0})
    built = rows_for(session, "raft", ["facts"])
    gold = {row.question_id: row.gold_ids for row in build_rows(opened(), "raft", ["facts"]).rows}
    passages = session.index.by_id
    too_long = {id for id, ids in gold.items() if sum(tokens_of(session, passages[i].text) for i in ids) > 64}
    assert too_long
    assert {q.question_id for q in built.left_out} == too_long
    assert all("more than retrieval.context_tokens = 64" in q.reason for q in built.left_out)
    assert {row.question_id for row in built.rows} == gold.keys() - too_long
    assert (
        f"{len(too_long)} rows are left out, e.g. facts/{built.left_out[0].question_id}: passages of"
        in said(session)[-1]
    )


def test_a_row_is_never_longer_than_training_or_the_base_can_take(opened: Open) -> None:
    from ragtune.generator.generate import load_tokenizer
    from ragtune.generator.train import encode_row

    session = opened({"tune.max_tokens": 420})
    tokenizer = load_tokenizer(session.base[0])
    lengths = [len(encode_row(tokenizer, row)[0]) for row in rows_for(session, "raft").rows]
    assert max(lengths) <= 420 < max(len(encode_row(tokenizer, r)[0]) for r in build_rows(opened(), "raft").rows)
    assert max(lengths) > 300  # no shorter than need be
    with pytest.raises(
        InputError, match=r"no training row fits: .* has \d+ tokens, more than the 64 that tune.max_tokens"
    ):
        build_rows(opened({"tune.max_tokens": 64}), "raft", ["facts"])


def test_the_context_of_the_base_model_counts_too(opened: Open, tmp_path: Path) -> None:
    session = opened()
    folder, fingerprint = session.base
    short = tmp_path / "short"
    short.mkdir()
    for path in folder.iterdir():
        (short / path.name).symlink_to(path.resolve())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (short / "config.json").unlink()
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 420}), encoding="utf-8")
    session._models[session.project.generator.model] = short, fingerprint
    assert build_rows(session, "raft") == build_rows(opened({"tune.max_tokens": 420}), "raft")


# The mix


def instructions(folder: Path, count: int) -> None:
    rows = [TrainingRow("t", str(i), "instruction", (Message("user", f"Say {i}."),), f"{i}") for i in range(count)]
    write_rows(folder / "instructions.jsonl", rows, "alpaca")


def test_instructions_join_by_their_share(opened: Open, project: Path) -> None:
    instructions(project, 50)
    settings: dict[str, Any] = {"tune.instructions": "instructions.jsonl", "tune.share_instructions": 0.25}
    for arm in ("raft", "tune"):
        session = opened(settings)
        built = rows_for(session, "raft" if arm == "raft" else "tune")
        assert kinds(built)["instruction"] == 12
        assert [row.kind for row in built.rows[-12:]] == ["instruction"] * 12
        assert built.rows[:-12] == build_rows(opened(), "raft" if arm == "raft" else "tune").rows
        assert said(session) == []


def test_too_few_instructions_are_said(opened: Open, project: Path) -> None:
    instructions(project, 4)
    session = opened({"tune.instructions": "instructions.jsonl", "tune.share_instructions": 0.25})
    assert kinds(rows_for(session, "raft"))["instruction"] == 4
    assert said(session) == ["instructions.jsonl is too small: it makes 0.10 of the rows, not 0.25"]


def test_closed_book_rows_join_by_their_share(opened: Open) -> None:
    built = build_rows(opened({"tune.share_closed_book": 0.5, "tune.share_without_gold": 0.0}), "raft")
    assert sum(not row.passage_ids for row in built.rows) == TRAIN / 2
    assert {len(row.messages[-1].content.split("\n")) for row in built.rows if not row.passage_ids} == {1}


# The file


def test_what_was_written_is_what_is_trained_on(opened: Open, project: Path, fp32: None) -> None:
    """Trained on the file, then asked to tune without it: the adapter stands, since the rows are the same."""
    config = opened().project
    file = project / "raft.rows.jsonl"
    built = pipeline.examples(config)
    write_rows(file, built.rows)
    first = pipeline.tune(config, rows_file=file)
    assert (first.rows, first.reused) == (TRAIN, False)
    assert (first.folder / "rows.jsonl").read_bytes() == file.read_bytes()
    assert pipeline.tune(config).reused
    write_rows(file, built.rows[:-1])
    assert pipeline.tune(config, rows_file=file).rows == TRAIN - 1


def test_a_file_and_tasks_contradict_each_other(opened: Open, project: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl holds the rows to take, task 'facts' selects others"):
        rows_for(opened(), "raft", ["facts"], project / "rows.jsonl")


# Lint


def test_the_projects_own_rows_are_sound(opened: Open) -> None:
    for arm in ("raft", "tune"):
        linted = pipeline.lint(opened().project, arm)
        assert linted.rows == TRAIN
        assert [f for f in linted.findings if f.level == "error"] == []


def test_two_builds_that_differ(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder that draws without the seed, as RAG-FiT's does."""
    from ragtune import training_rows

    seeds = iter((1, 2))

    def unseeded(session: Session, arm: Any, only: Any = ()) -> Built:
        return build_rows(opened({"tune.seed": next(seeds)}), arm, only)

    monkeypatch.setattr(training_rows, "build_rows", unseeded)
    finding = pipeline.lint(opened().project).findings[0]
    assert (finding.level, finding.check) == ("error", "seed")


def test_rows_of_other_passages_than_the_index_ranks_highest(opened: Open, project: Path) -> None:
    session = opened()
    wrong = [
        replace(
            row,
            passage_ids=tuple(reversed(row.passage_ids)),
            gold=tuple(len(row.passage_ids) - 1 - i for i in row.gold),
        )
        for row in build_rows(session, "raft").rows
    ]
    findings = lint_rows(session, wrong)
    assert "hard-negatives" in {f.check for f in findings}
    assert lint_rows(session, build_rows(session, "raft").rows) == ()


def test_a_test_question_in_the_file(opened: Open, project: Path) -> None:
    session = opened()
    test = session.task("facts").split("test")[0]
    rows = [TrainingRow("t", "x", "instruction", (Message("user", test.text),), test.answers[0])]
    write_rows(project / "mine.jsonl", rows, "sharegpt")
    findings = lint_rows(session, read_rows(project / "mine.jsonl"))
    assert [(f.level, f.check, f.number) for f in findings] == [("error", "leak", 1)]
    with pytest.raises(
        TrainingError, match="lint found 1 errors in 1 training rows: mine-1: this question is in the test"
    ):
        refuse_errors(findings, rows)
    with pytest.raises(TrainingError, match="lint found 1 errors"):
        pipeline.tune(session.project, rows_file=project / "mine.jsonl")
    refuse_errors([replace(findings[0], level="warning")], rows)


def test_instruction_data_is_linted_without_an_index(project: Path) -> None:
    instructions(project, 3)
    linted = pipeline.lint(load_config(project), rows_file=project / "instructions.jsonl")
    assert (linted.rows, linted.findings) == (3, ())
