"""Which task a question belongs to: multinomial logistic regression over its embedding and five counts of its text.

Learned from the tasks' own train and dev questions with scikit-learn, applied with numpy alone. All tasks weigh alike,
whatever their number of questions: how often each will be asked is not known. One temperature makes the probabilities
calibrated, and a threshold, both found by cross-validation, says when not to guess; then the default task is taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragtune import store
from ragtune.errors import MismatchError, StoreError
from ragtune.types import Embedder, Question, RouterFacts, Task

ARRAYS = "router.npz"
SETTINGS = "router.json"
FOLDS = 5
"""Folds of the cross-validation, and so the fewest questions from which a task is learned."""
PRECISION = 0.9
"""The share of the routed questions that are to be of the task picked."""
_LEAST_COVERED = 0.1
_LEAST_LIKELY = 0.5
_COUNTS = 5
# Both chosen by cross-validation on the train and dev questions of the sample corpus; neighbours differ little.
_COUNT_SCALE = 0.25
_LEAST_SPREAD = 0.1  # or a count that hardly varies in training would decide alone where it does vary
_INVERSE_PENALTY = 3.0
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")


@dataclass(frozen=True)
class Router:
    """A classifier of questions. `coefficients` (tasks, embedding + 5) and `intercept` (tasks,) hold the temperature.

    `tasks` are those it can pick: with several in the project and fewer than two of them learned, none. `embedder` is
    the fingerprint of the one it was learned with; `facts` is None when there was nothing to tell apart.
    """

    tasks: tuple[str, ...]
    default: str
    embedder: str
    coefficients: np.ndarray
    intercept: np.ndarray
    threshold: float = _LEAST_LIKELY
    facts: RouterFacts | None = None

    @classmethod
    def from_tasks(
        cls, tasks: Sequence[Task], embedder: Embedder, default: str, seed: int = 0, most: int = 512
    ) -> Router:
        """Learn from up to `most` train and dev questions of each task, drawn with `seed`.

        A project's only task is always picked. Tasks with fewer than 5 questions are never picked; when that leaves
        fewer than two tasks, every question goes to the default.

        Raises: InputError when a question is longer than the embedder reads.
        """
        rng = np.random.default_rng(seed)
        drawn = {task.name: _draw(task, most, rng) for task in tasks}
        learned = tuple(name for name, questions in drawn.items() if len(questions) >= FOLDS)
        if len(tasks) == 1 or len(learned) < 2:
            names = tuple(task.name for task in tasks) if len(tasks) == 1 else ()
            return cls(names, default, embedder.fingerprint, np.zeros((len(names), 0)), np.zeros(len(names)))
        x = features([q.text for name in learned for q in drawn[name]], embedder)
        y = np.repeat(np.arange(len(learned)), [len(drawn[name]) for name in learned])
        documents = [_document(q) for name in learned for q in drawn[name]]
        logits = _held_out_logits(x, y, documents, seed)
        temperature = fit_temperature(logits, y)
        threshold, covered, precision = choose_threshold(softmax(logits / temperature), y)
        recalls = {learned[k]: float((logits[y == k].argmax(axis=1) == k).mean()) for k in range(len(learned))}
        per_task = {task.name: recalls.get(task.name, 0.0) for task in tasks}
        facts = RouterFacts(float(np.mean(list(per_task.values()))), covered, len(y), per_task, precision)
        coefficients, intercept = _fit(x, y)
        fitted = (coefficients / temperature, intercept / temperature)
        return cls(learned, default, embedder.fingerprint, *fitted, threshold, facts)

    def probabilities(self, questions: Sequence[str], embedder: Embedder) -> np.ndarray:
        """(questions, tasks): how likely each question is to be of each task, all tasks being asked equally often.

        Raises: MismatchError for another embedder than it was learned with.
        """
        if embedder.fingerprint != self.embedder:
            raise MismatchError(
                f"the router was learned with another embedder than {embedder.name} ({self.embedder[:12]}, this is "
                f"{embedder.fingerprint[:12]}); run: ragtune evaluate, or name the task with --task"
            )
        return softmax(features(questions, embedder) @ self.coefficients.T + self.intercept)

    def route(self, question: str, embedder: Embedder) -> tuple[str, str]:
        """(task, reason). Below the threshold the default task is taken.

        Raises: MismatchError for another embedder than it was learned with.
        """
        if not self.tasks:
            return self.default, f"fewer than two tasks have {FOLDS} train and dev questions to be told apart by"
        if len(self.tasks) == 1:
            return self.tasks[0], "it is the only task"
        likely = self.probabilities([question], embedder)[0]
        best, most = self.tasks[likely.argmax()], float(likely.max())
        if most < self.threshold:
            return self.default, f"unsure: {best} comes first with {most:.1%}, less than {self.threshold:.1%}"
        return best, f"{most:.1%} likely by the tasks' own questions"

    def save(self, folder: Path) -> None:
        """Write into a folder that `store.atomic_folder` is building: arrays as .npz, all else as JSON."""
        np.savez(folder / ARRAYS, coefficients=self.coefficients, intercept=self.intercept)
        settings = {name: getattr(self, name) for name in ("tasks", "default", "embedder", "threshold")}
        store.write_json(folder / SETTINGS, settings | {"facts": asdict(self.facts) if self.facts else None})

    @classmethod
    def load(cls, folder: Path) -> Router:
        """Read a router back; no pickle.

        Raises: StoreError when there is none that this version reads.
        """
        if not (folder / SETTINGS).exists():
            raise StoreError(
                f"{folder} has no {SETTINGS}: another version of ragtune wrote it; remove it and run: ragtune evaluate"
            )
        made: dict[str, Any] = store.read_json(folder / SETTINGS)
        facts = RouterFacts(**made["facts"]) if made["facts"] else None
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            fitted = arrays["coefficients"], arrays["intercept"]
        return cls(tuple(made["tasks"]), made["default"], made["embedder"], *fitted, made["threshold"], facts)


def features(texts: Sequence[str], embedder: Embedder) -> np.ndarray:
    """float64 (texts, embedding + 5): the unit vector, then five counts, each as log(1 + count).

    Counted are words, sentence ends, question marks, commas and capitals. They tell forms of text apart where the
    embedding sees one subject.
    """
    vectors = np.asarray(embedder.embed(texts), dtype=np.float64)
    counts = [
        (len(t.split()), len(_SENTENCE_END.findall(t)), t.count("?"), t.count(","), sum(map(str.isupper, t)))
        for t in texts
    ]
    return np.hstack([vectors, np.log1p(np.array(counts, dtype=np.float64).reshape(-1, _COUNTS))])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: np.ndarray = raised / raised.sum(axis=-1, keepdims=True)
    return shares


def fit_temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """The T for which softmax(logits / T) has the least cross-entropy, tasks weighing alike (Guo et al. 2017, 4.2).

    `logits` (n, tasks) are those of held-out questions, `y` (n,) their tasks. The targets are smoothed as if each task
    had one more question of every task (Platt 1999, section 2.2, for two classes), so that a faultless
    cross-validation of few questions does not make certainties.
    """
    from scipy.optimize import minimize_scalar

    sizes = np.bincount(y)[y, None]
    targets = (np.eye(logits.shape[1])[y] * sizes + 1) / (sizes + logits.shape[1])

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        log_likely = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        return -float(_weights(y) @ (targets * log_likely).sum(axis=1))

    return float(np.exp(minimize_scalar(cross_entropy, bounds=np.log([0.02, 50]), method="bounded").x))


def choose_threshold(likely: np.ndarray, y: np.ndarray, precision: float = PRECISION) -> tuple[float, float, float]:
    """(threshold, share covered, precision reached), tasks weighing alike, from held-out probabilities (n, tasks).

    The lowest threshold at which the questions routed reach `precision`; where none does, the one that reaches most.
    A tenth of the questions must be routed, or chance would choose. Never below one half: a task that is less likely
    than all others together is a guess.
    """
    order = np.argsort(-likely.max(axis=1))
    confidence, right, weights = likely.max(axis=1)[order], likely.argmax(axis=1)[order] == y[order], _weights(y)[order]
    covered = weights.cumsum()
    reached = (weights * right).cumsum() / covered
    level = np.append(np.diff(confidence) != 0, True)  # the equally likely are routed together or not at all
    level &= covered >= _LEAST_COVERED - 1e-9
    enough = np.flatnonzero(level & (reached >= precision - 1e-9))
    best = int(enough[-1] if len(enough) else np.where(level, reached, -1).argmax())
    # Where even the least sure ones may be routed, nothing speaks for a threshold but that guesses are not wanted.
    threshold = _LEAST_LIKELY if best == len(y) - 1 else max(float(confidence[best]), _LEAST_LIKELY)
    kept = confidence >= threshold
    share = float(weights @ kept)
    return threshold, share, float(weights @ (kept & right)) / share if share else 0.0


def _weights(y: np.ndarray) -> np.ndarray:
    """One weight for each question, the same sum for each task, 1 together."""
    sizes = np.bincount(y)
    weights: np.ndarray = 1 / (sizes[y] * len(sizes))
    return weights


def _draw(task: Task, most: int, rng: np.random.Generator) -> list[Question]:
    questions = [*task.split("train"), *task.split("dev")]
    return [questions[i] for i in np.sort(rng.permutation(len(questions))[:most])]


def _document(question: Question) -> str:
    """What a question shares with others: its first document, else nothing."""
    return question.evidence[0].document_id if question.evidence else f"{question.task} {question.id}"


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coefficients (tasks, columns), intercept (tasks,)) for `x` as it is: they undo the scaling of the counts."""
    from sklearn.linear_model import LogisticRegression

    centre, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    centre[-_COUNTS:] = x[:, -_COUNTS:].mean(axis=0)
    scale[-_COUNTS:] = _COUNT_SCALE / np.maximum(x[:, -_COUNTS:].std(axis=0), _LEAST_SPREAD)
    model = LogisticRegression(C=_INVERSE_PENALTY, class_weight="balanced", max_iter=1000).fit((x - centre) * scale, y)
    coefficients, intercept = model.coef_, model.intercept_
    if len(intercept) == 1:  # two tasks: scikit-learn gives one logit, that of the second task over the first
        coefficients, intercept = np.vstack([0 * coefficients, coefficients]), np.append(0.0, intercept)
    coefficients = coefficients * scale
    return coefficients, intercept - coefficients @ centre


def _held_out_logits(x: np.ndarray, y: np.ndarray, documents: Sequence[str], seed: int) -> np.ndarray:
    """(n, tasks) logits of each question by a model that saw none of its fold."""
    logits = np.zeros((len(y), int(y.max()) + 1))
    for fitted, held_out in _folds(x, y, documents, seed):
        coefficients, intercept = _fit(x[fitted], y[fitted])
        logits[held_out] = x[held_out] @ coefficients.T + intercept
    return logits


def _folds(x: np.ndarray, y: np.ndarray, documents: Sequence[str], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified folds that keep a document's questions together, unless a task would then be missing from a fit."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    settings = {"n_splits": FOLDS, "shuffle": True, "random_state": seed}
    if len(set(documents)) >= FOLDS:
        folds = list(StratifiedGroupKFold(**settings).split(x, y, documents))
        if all(len(held_out) and set(y[fitted]) == set(y) for fitted, held_out in folds):
            return folds
    return list(StratifiedKFold(**settings).split(x, y))
