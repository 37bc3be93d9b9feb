"""One answer to one question -> one scored row."""

from __future__ import annotations

from ragtune.errors import ConfigError
from ragtune.evaluator.metrics.answer import METRICS, Metric, accuracy, valid_json
from ragtune.evaluator.metrics.grounding import citation_precision, citation_recall
from ragtune.evaluator.metrics.retrieval import ndcg_at_k, recall_at_k, reciprocal_rank
from ragtune.types import Answer, AnswerFormat, Question, Row, Task

_FITTING: dict[AnswerFormat, tuple[str, ...]] = {
    "short": ("exact_match", "token_f1"),
    "label": ("accuracy",),
    "json": ("field_match",),
    "text": ("token_f1", "rouge_l"),
}


def score_answer(question: Question, task: Task, answer: Answer) -> Row:
    """Score one answer by the task's metric and by all others that fit its format.

    An unanswerable question is worth 1.0 if refused, else 0.0; refusing an answerable one is worth 0.0 (SQuAD 2.0).
    The reply's `free_text` is what the arm writes when a label task is not limited to its labels.

    Raises: ConfigError when the task names an unknown metric; InputError when its answers don't fit its metric.
    """
    if task.metric not in METRICS:
        raise ConfigError(f"task {task.name!r} has metric {task.metric!r}; known are {', '.join(sorted(METRICS))}")
    scores: dict[str, float | None] = {}
    if task.format == "json":
        scores["valid_json"] = None if answer.refused else valid_json(answer.text)
    for name in (*_FITTING[task.format], task.metric):
        scores[name] = _score(METRICS[name], question, answer)
    if answer.reply.free_text is not None and question.answerable:
        scores["free_text_accuracy"] = accuracy(answer.reply.free_text, question.answers)
    scores |= _passage_scores(question, answer)
    return Row(
        task=task.name,
        question_id=question.id,
        arm=answer.arm,
        score=scores[task.metric],
        scores=scores,
        text=answer.text,
        passage_ids=tuple(hit.passage.id for hit in answer.hits),
        cited_ids=answer.citations,
        prompt_tokens=answer.reply.prompt_tokens,
        output_tokens=answer.reply.output_tokens,
        seconds=answer.reply.seconds,
        refused=answer.refused,
        free_text=answer.reply.free_text,
    )


def _score(metric: Metric, question: Question, answer: Answer) -> float:
    if not question.answerable:
        return float(answer.refused)
    return 0.0 if answer.refused else metric(answer.text, question.answers)


def _passage_scores(question: Question, answer: Answer) -> dict[str, float | None]:
    """Grounding and retrieval, over all passages that the arm was given; nothing without passages or evidence."""
    if not question.evidence or not answer.hits:
        return {}
    passages = [hit.passage for hit in sorted(answer.hits, key=lambda hit: hit.rank)]
    cited = [passage for passage in passages if passage.id in answer.citations]
    return {
        "citation_precision": citation_precision(cited, question.evidence),
        "citation_recall": citation_recall(cited, question.evidence),
        "recall_at_k": recall_at_k(passages, question.evidence, len(passages)),
        "reciprocal_rank": reciprocal_rank(passages, question.evidence),
        "ndcg_at_k": ndcg_at_k(passages, question.evidence, len(passages)),
    }
