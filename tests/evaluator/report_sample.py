"""A report's data, small and complete: two tasks of three arms and a reference arm, with findings on the first."""

from __future__ import annotations

from dataclasses import replace

from ragtune.evaluator.attribute import CauseCount, Diagnosis, Remedy
from ragtune.evaluator.ingredients import Effect, Ingredients
from ragtune.evaluator.knowledge import Forgetting, KnowledgeCount
from ragtune.evaluator.report.data import Findings, RaceFacts, ReportData, TaskFacts
from ragtune.types import Arm, ArmSummary, Comparison, Interval, Passage, Question, RouterFacts, Row, Span, Verdict

EVIL = '<script>alert("x")</script> ![pixel](http://evil.example/p.png) | a `b` *c*'
TEXT = "Dogs travel free. A cat costs £4 in its box. Birds do not."
PASSAGE = Passage("pets#1", "policies/pets.md", TEXT, 100, 100 + len(TEXT), ("Pets", "Prices"))
OTHER = Passage("bikes#1", "policies/bikes.md", "Bicycles cost £6 each way.", 0, 26)
CAT = Question(
    "q1",
    "What does a cat cost?",
    ("£4", "4 pounds"),
    "facts",
    "test",
    (Span("policies/pets.md", 118, 144, TEXT[18:44]),),
)
ARMS = (
    Arm("prompt", False, "none", "base"),
    Arm("retrieve", False, "retrieved", "base"),
    Arm("raft", False, "retrieved", "raft"),
    Arm("oracle", False, "gold", "base", True),
)


def row(arm: str, question: str, score: float | None, text: str = "£4", **changes: object) -> Row:
    passages = ("pets#1", "bikes#1") if arm in ("retrieve", "raft") else ()
    made = Row(
        "facts", question, arm, score, {"exact_match": score, "token_f1": score}, text, passages, (), 99, 5, 0.5, False
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def summary(arm: str, mean: float, cost: float, **changes: object) -> ArmSummary:
    interval = Interval(mean, mean - 0.05, mean + 0.05)
    made = ArmSummary(arm, interval, 48, 0, cost, 412.4, 9.6, 0.5125, 1.2375, arm == "oracle", mean > 0.5)
    return replace(made, **changes)  # type: ignore[arg-type]


DECIDED = Verdict(
    "facts",
    "raft",
    "decided",
    "`raft` scores 0.73 (0.68 to 0.78), and no arm scores higher.",
    None,
    0.0834,
    (
        summary("prompt", 0.1, 0.0091, n=24, dropped_after=24),
        summary("retrieve", 0.52, 0.033, unscored=2, probability_best=0.104),
        summary("raft", 0.734, 0.0304, probability_best=0.896),
        summary("oracle", 0.83, 0.0149),
    ),
    (
        Comparison("raft", "prompt", Interval(0.634, 0.5, 0.75), 0.0001, 30, 17, 1),
        Comparison("raft", "oracle", Interval(-0.1, -0.2, -0.004), 0.042, 2, 40, 6),
    ),
)
UNDECIDED = replace(
    DECIDED, task="letters", status="undecided", reason="About 300 questions would tell.", questions_needed=287
)
FACTS = TaskFacts("facts", "short", "exact_match", "Answer briefly.", 48, 1, ("t1", "t2"), "Split by source document.")
QUESTIONS = {f"q{i}": replace(CAT, id=f"q{i}") for i in range(1, 8)} | {
    "u1": replace(CAT, id="u1", answers=(), evidence=())
}
ROWS = (
    *(row("raft", f"q{i}", s) for i, s in enumerate((1.0, 0.25, 0.0, None, 1.0, 0.75, 0.5), 1)),
    *(row("retrieve", f"q{i}", s, EVIL) for i, s in enumerate((0.0, 1.0, 0.0, 0.0, None, 0.25, 0.0), 1)),
    row("raft", "u1", 1.0, "The documents do not say.", refused=True, passage_ids=()),
    row("retrieve", "u1", 1.0, "", refused=True),
)
DIAGNOSIS = Diagnosis(
    "facts",
    "raft",
    7,
    (
        CauseCount("right", 5, Interval(5 / 7, 0.35, 0.95), ("q1", "q5", "q6")),
        CauseCount("retrieval miss", 1, Interval(1 / 7, 0.01, 0.5), ("q2",)),
        CauseCount("unjustified answer", 1, Interval(1 / 7, 0.01, 0.5), ("q3",)),
    ),
    (Remedy("perfect retrieval", Interval(0.18, 0.08, 0.28)), Remedy("perfect refusals", Interval(0.14, 0.0, 0.43))),
)
INGREDIENTS = Ingredients(
    "facts",
    46,
    Interval(0.6, 0.45, 0.75),
    (
        Effect("prompting", Interval(0.02, -0.04, 0.08)),
        Effect("retrieval", Interval(0.38, 0.25, 0.5)),
        Effect("tuning", Interval(0.2, 0.1, 0.3)),
    ),
    (
        Effect("prompting", Interval(0.03, -0.05, 0.11)),
        Effect("retrieval", Interval(0.36, 0.24, 0.48)),
        Effect("tuning", Interval(0.22, 0.11, 0.33)),
        Effect("prompting x retrieval", Interval(-0.05, -0.2, 0.1)),
        Effect("retrieval x tuning", Interval(0.16, 0.04, 0.3)),
    ),
)
FINDINGS = Findings(DIAGNOSIS, INGREDIENTS, KnowledgeCount(3, 5, 8))
DATA = ReportData(
    project="harbourline",
    verdicts=(DECIDED, UNDECIDED),
    tasks=(FACTS, replace(FACTS, name="letters", instruction=EVIL)),
    arms=ARMS,
    rows=ROWS,
    questions=QUESTIONS,
    passages={"pets#1": PASSAGE, "bikes#1": OTHER},
    settings={"margin": "0.02", "confidence": "0.95"},
    provenance={"base_model": "smollm2-135m-instruct", "note": "see http://example.org"},
    currency="units",
    findings={"facts": FINDINGS},
    race=RaceFacts(asked=344, in_full=384, error=0.01),
    forgetting=(
        Forgetting("tune", 60, 0.4, 0.25, Interval(-0.15, -0.25, -0.05)),
        Forgetting("raft", 60, 0.4, 0.38, Interval(-0.02, -0.1, 0.06)),
    ),
    router=RouterFacts(0.93, 0.88, 812, {"facts": 0.86, "letters": 1.0}, 0.96),
    freshness={"documents changed since raft was tuned": "3 of 70"},
    training_cost={"prompt": 0.0, "retrieve": 0.0, "raft": 25.0, "oracle": 0.0},
    questions_paid_off=1000,
)
