from dataclasses import replace

import pytest

from ragtune.errors import ConfigError, InputError
from ragtune.evaluator.metrics.answer import METRICS
from ragtune.evaluator.score import score_answer
from ragtune.types import Answer, Hit, Passage, Question, Reply, Span, Task

QUESTION = Question("q1", "When?", ("10 May",), "facts", "test")
UNANSWERABLE = replace(QUESTION, answers=())
TASK = Task("facts", ("Answer.",), "exact_match", "short", ())


def answer(text: str, **changes: object) -> Answer:
    made = Answer("q1", "retrieve", text, (), (), False, Reply(text, 120, 7, 0.5))
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_row_carries_the_answer_and_its_costs() -> None:
    row = score_answer(QUESTION, TASK, answer("on the 10 May"))
    assert (row.task, row.question_id, row.arm, row.text) == ("facts", "q1", "retrieve", "on the 10 May")
    assert (row.prompt_tokens, row.output_tokens, row.seconds, row.refused) == (120, 7, 0.5, False)
    assert row.score == 0.0
    assert row.scores == {"exact_match": 0.0, "token_f1": pytest.approx(0.8)}
    assert row.free_text is None


@pytest.mark.parametrize("metric", sorted(METRICS))
@pytest.mark.parametrize(
    ("question", "refused", "expected"), [(UNANSWERABLE, True, 1.0), (UNANSWERABLE, False, 0.0), (QUESTION, True, 0.0)]
)
def test_refusals_score_the_same_with_every_metric(
    metric: str, question: Question, refused: bool, expected: float
) -> None:
    row = score_answer(question, replace(TASK, metric=metric), answer("10 May", refused=refused))
    assert row.score == row.scores[metric] == row.scores["token_f1"] == expected


def test_json_tasks_report_validity_but_not_of_refusals() -> None:
    task = replace(TASK, metric="field_match", format="json")
    question = replace(QUESTION, answers=('{"day": 10}',))
    row = score_answer(question, task, answer('Here: {"day": 10}'))
    assert row.scores == {"field_match": 1.0, "valid_json": 0.0}
    assert score_answer(question, task, answer("not said", refused=True)).scores == {
        "field_match": 0.0,
        "valid_json": None,
    }
    with pytest.raises(InputError, match="not a JSON object"):
        score_answer(QUESTION, task, answer("{}"))


def test_text_tasks_report_f1_and_rouge() -> None:
    row = score_answer(QUESTION, replace(TASK, format="text", metric="rouge_l"), answer("may 10"))
    assert row.score == 0.5
    assert row.scores == {"token_f1": 1.0, "rouge_l": 0.5}


def test_label_tasks_also_score_free_text() -> None:
    task = replace(TASK, metric="accuracy", format="label", labels=("claim", "praise"))
    question = replace(QUESTION, answers=("claim",))
    written = answer("claim")
    written = replace(written, reply=replace(written.reply, free_text="It is a claim"))
    row = score_answer(question, task, written)
    assert row.score == 1.0
    assert row.scores == {"accuracy": 1.0, "free_text_accuracy": 0.0}
    assert row.free_text == "It is a claim"
    assert "free_text_accuracy" not in score_answer(UNANSWERABLE, task, written).scores


def hit(number: int, rank: int) -> Hit:
    return Hit(Passage(f"d:{number}", "d", "x" * 10, 10 * number, 10 * number + 10), 1.0 / rank, rank)


def test_passages_are_scored_against_the_evidence_by_rank() -> None:
    question = replace(QUESTION, evidence=(Span("d", 0, 10, "x" * 10), Span("d", 70, 80, "x" * 10)))
    hits = (hit(0, rank=2), hit(3, rank=1))  # as they stood in the prompt, not by rank
    row = score_answer(question, TASK, answer("10 May", hits=hits, citations=("d:0", "d:3")))
    assert row.passage_ids == row.cited_ids == ("d:0", "d:3")
    assert {name: row.scores[name] for name in ("citation_precision", "citation_recall", "recall_at_k")} == {
        "citation_precision": 0.5,
        "citation_recall": 0.5,
        "recall_at_k": 0.5,
    }
    assert row.scores["reciprocal_rank"] == 0.5
    assert row.scores["ndcg_at_k"] == pytest.approx(0.6309 / 1.6309, abs=1e-4)
    assert score_answer(question, TASK, answer("10 May", hits=hits)).scores["citation_precision"] is None


def test_no_passage_scores_without_passages_or_evidence() -> None:
    with_evidence = replace(QUESTION, evidence=(Span("d", 0, 10, "x" * 10),))
    for question, hits in ((with_evidence, ()), (QUESTION, (hit(0, 1),))):
        assert score_answer(question, TASK, answer("10 May", hits=hits)).scores.keys() == {"exact_match", "token_f1"}


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'f1'; known are accuracy, exact_match, .*valid_json"):
        score_answer(QUESTION, replace(TASK, metric="f1"), answer("10 May"))
