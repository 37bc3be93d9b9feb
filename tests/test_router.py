"""Which task a question belongs to."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

import ragtune
from ragtune import store
from ragtune.errors import MismatchError, StoreError
from ragtune.router import FOLDS, Router, choose_threshold, features, fit_temperature, softmax
from ragtune.session import Session
from ragtune.testing import HashEmbedder, ScriptedGenerator
from ragtune.types import Question, Span, Split, Task

EMBEDDER = HashEmbedder()
THINGS = ("pier", "boat", "house", "key", "flag", "oven", "bell", "well")
FACTS = [f"Where is the {thing} of the lake?" for thing in THINGS]
LETTERS = [f"Dear team, my {thing} broke. Please help" for thing in THINGS]


def task(name: str, texts: Sequence[str], split: Split = "train", documents: Sequence[str] = ()) -> Task:
    spans = [(Span(document, 0, 1, "x"),) for document in documents] or [()] * len(texts)
    questions = [
        Question(f"{split}-{i}", text, ("x",), name, split, evidence)
        for i, (text, evidence) in enumerate(zip(texts, spans, strict=True))
    ]
    return Task(name, ("Be short.",), "exact_match", "short", tuple(questions))


@dataclass(frozen=True)
class Points(HashEmbedder):
    """An embedder that knows where each of its texts lies; the texts are alike in all counts."""

    points: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def at(cls, points: np.ndarray) -> tuple[list[str], Points]:
        texts = [f"point {i}" for i in range(len(points))]
        return texts, cls(dimension=points.shape[1], points=dict(zip(texts, points, strict=True)))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self.points[text] for text in texts], dtype=np.float32)


def clouds(
    sizes: Sequence[int], fresh: int, spread: float, dimension: int = 8
) -> tuple[list[Task], list[str], np.ndarray, Points]:
    """Overlapping Gaussian clouds, one a task: tasks of these sizes, and `fresh` new questions of each with their y."""
    rng = np.random.default_rng(7)
    y = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.repeat(np.arange(len(sizes)), fresh)])
    texts, embedder = Points.at(np.eye(len(sizes), dimension)[y] + spread * rng.normal(size=(len(y), dimension)))
    seen = sum(sizes)
    tasks = [task(f"t{k}", [texts[i] for i in range(seen) if y[i] == k]) for k in range(len(sizes))]
    return tasks, texts[seen:], y[seen:], embedder


def bench_router() -> ModuleType:
    """The benchmark's script as a module."""
    path = Path(__file__).resolve().parents[1] / "scripts" / "bench_router.py"
    spec = importlib.util.spec_from_file_location("bench_router", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def router() -> Router:
    return Router.from_tasks([task("facts", FACTS), task("letters", LETTERS)], EMBEDDER, "other")


# --- routing ---------------------------------------------------------------------------------------------------------


def test_the_form_of_a_question_decides(router: Router) -> None:
    for question, name in (("Where is the anchor of the lake?", "facts"), ("Dear team, my anchor broke", "letters")):
        likely = router.probabilities([question], EMBEDDER)[0].max()
        assert router.route(question, EMBEDDER) == (name, f"{likely:.1%} likely by the tasks' own questions")
        assert likely > 0.7
    assert router.facts is not None
    assert (router.facts.n, router.facts.accuracy, router.facts.precision) == (16, 1.0, 1.0)
    assert router.facts.per_task == {"facts": 1.0, "letters": 1.0}


def test_unsure_means_the_default_task(router: Router) -> None:
    likely = router.probabilities(["boat"], EMBEDDER)[0]
    sure = replace(router, threshold=0.999)
    first = router.tasks[likely.argmax()]
    reason = f"unsure: {first} comes first with {likely.max():.1%}, less than 99.9%"
    assert sure.route("boat", EMBEDDER) == ("other", reason)
    exactly = replace(router, threshold=float(likely.max()))
    assert exactly.route("boat", EMBEDDER)[0] == first  # at the threshold is enough


def test_the_only_task_is_always_picked() -> None:
    for texts in (FACTS, FACTS[:2], []):
        made = Router.from_tasks([task("facts", texts)], EMBEDDER, "")
        assert made.route("Dear team", EMBEDDER) == ("facts", "it is the only task")
        assert made.facts is None


@pytest.mark.parametrize(
    "tasks", [[], [task("facts", []), task("letters", [])], [task("facts", FACTS), task("letters", LETTERS[:4])]]
)
def test_nothing_to_tell_apart(tasks: list[Task]) -> None:
    made = Router.from_tasks(tasks, EMBEDDER, "other")
    assert made.facts is None
    assert made.route("Where?", EMBEDDER) == (
        "other",
        "fewer than two tasks have 5 train and dev questions to be told apart by",
    )


def test_a_task_with_few_questions_is_never_picked_and_counts_as_missed(router: Router) -> None:
    tasks = [task("facts", FACTS), task("few", ["Alpha beta gamma"] * 4), task("letters", LETTERS)]
    made = Router.from_tasks(tasks, EMBEDDER, "other")
    assert made.tasks == ("facts", "letters")
    assert made.facts is not None
    assert made.facts.per_task == {"facts": 1.0, "few": 0.0, "letters": 1.0}
    assert (made.facts.accuracy, made.facts.n) == (pytest.approx(2 / 3), 16)
    np.testing.assert_array_equal(made.coefficients, router.coefficients)
    five = [*tasks[:1], task("few", ["Alpha beta gamma"] * 5)]
    assert Router.from_tasks(five, EMBEDDER, "").tasks == ("facts", "few")


def test_it_learns_from_train_and_dev_never_from_test(router: Router) -> None:
    def with_more(split: Split) -> Router:
        more = task("letters", [f"Hello {thing}!" for thing in THINGS], split).questions
        letters = replace(task("letters", LETTERS), questions=(*task("letters", LETTERS).questions, *more))
        return Router.from_tasks([task("facts", FACTS), letters], EMBEDDER, "other")

    np.testing.assert_array_equal(with_more("test").coefficients, router.coefficients)
    dev = with_more("dev")
    assert dev.facts is not None and dev.facts.n == 24
    assert dev.route("Hello anchor!", EMBEDDER)[0] == "letters"


def test_no_more_questions_than_allowed_and_the_same_for_the_same_seed() -> None:
    tasks = [task("facts", FACTS), task("letters", LETTERS)]
    first, again, other = (Router.from_tasks(tasks, EMBEDDER, "", seed, most=6) for seed in (0, 0, 1))
    assert first.facts is not None and first.facts.n == 12
    np.testing.assert_array_equal(first.coefficients, again.coefficients)
    assert not np.array_equal(first.coefficients, other.coefficients)


def test_another_embedder_is_refused(router: Router) -> None:
    other = HashEmbedder(name="another")
    with pytest.raises(MismatchError, match=r"learned with another embedder than another \(.*run: ragtune evaluate"):
        router.route("Where?", other)


# --- what is learned -------------------------------------------------------------------------------------------------


def test_features_are_the_embedding_and_five_counts() -> None:
    (row,) = features(["Dear Ann, it broke... Why? Is it 3.5 m, or 4?"], EMBEDDER)
    np.testing.assert_array_equal(row[:-5], EMBEDDER.embed(["Dear Ann, it broke... Why? Is it 3.5 m, or 4?"])[0])
    np.testing.assert_allclose(np.expm1(row[-5:]), [11, 3, 2, 2, 4])


@pytest.mark.parametrize("sizes", [(30, 20), (30, 20, 40)])
def test_probabilities_are_those_of_scikit_learn(sizes: tuple[int, ...]) -> None:
    """The scaling of the counts, the balance, the held-out logits and the case of two tasks, by its own functions."""
    rng = np.random.default_rng(0)
    words = ("boat", "Pier,", "key?", "Well.", "house", "bell!")
    y, every = np.repeat(np.arange(len(sizes)), sizes), np.arange(sum(sizes))
    texts = [" ".join(rng.choice(words, size=y[i] + 3 + i % 4)) for i in every]
    embedder = HashEmbedder(dimension=64)
    of_task = [[i for i in every if y[i] == k] for k in range(len(sizes))]
    # The folds depend on the order of the documents' names.
    tasks = [
        task(f"t{k}", [texts[i] for i in ids], documents=[f"{i:03}" for i in ids]) for k, ids in enumerate(of_task)
    ]
    made = Router.from_tasks(tasks, embedder, "")
    x = features(texts, embedder)

    def scaled(x: np.ndarray, by: np.ndarray) -> np.ndarray:
        return np.hstack([x[:, :-5], 0.25 * (x[:, -5:] - by[:, -5:].mean(axis=0)) / by[:, -5:].std(axis=0)])

    def logits(fitted: np.ndarray, asked: np.ndarray) -> np.ndarray:
        model = LogisticRegression(C=3, class_weight="balanced", max_iter=1000)
        values = model.fit(scaled(x[fitted], x[fitted]), y[fitted]).decision_function(scaled(x[asked], x[fitted]))
        return values if values.ndim == 2 else np.stack([-values / 2, values / 2], axis=1)

    held_out = np.zeros((len(y), len(sizes)))
    for fitted, asked in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(x, y, every):
        held_out[asked] = logits(fitted, asked)
    likely = softmax(logits(every, every) / fit_temperature(held_out, y))
    np.testing.assert_allclose(made.probabilities(texts, embedder), likely, rtol=1e-9)


def test_probabilities_hold_for_new_questions() -> None:
    """Clouds that overlap, one task five times as large as another: what is 80 % likely is right in 80 % of cases."""
    tasks, texts, y, embedder = clouds((300, 60, 150), fresh=2000, spread=0.6)
    made = Router.from_tasks(tasks, embedder, "other")
    likely = made.probabilities(texts, embedder)
    confidence, right = likely.max(axis=1), likely.argmax(axis=1) == y
    assert bench_router().calibration_error(confidence, right, np.ones(len(y))) < 0.03
    assert made.facts is not None
    recalls = {f"t{k}": right[y == k].mean() for k in range(3)}
    assert min(recalls.values()) > 0.7  # the small task is not passed over
    assert made.facts.per_task == pytest.approx(recalls, abs=0.08)
    assert made.facts.accuracy == pytest.approx(right.mean(), abs=0.04)
    routed = confidence >= made.threshold
    assert made.facts.covered == pytest.approx(routed.mean(), abs=0.06)
    assert made.facts.precision == pytest.approx(right[routed].mean(), abs=0.04)
    assert 0.9 <= made.facts.precision < 0.92 and 0.5 < made.facts.covered < 0.95
    picks = np.array([made.route(text, embedder)[0] != "other" for text in texts[:500]])
    np.testing.assert_array_equal(picks, routed[:500])


def test_what_is_learned_too_closely_is_not_believed() -> None:
    """150 questions in 64 dimensions: without the temperature its probabilities would be 0.24 off."""
    tasks, texts, y, embedder = clouds((60, 30, 60), fresh=1000, spread=0.6, dimension=64)
    likely = Router.from_tasks(tasks, embedder, "other").probabilities(texts, embedder)
    right = likely.argmax(axis=1) == y
    assert bench_router().calibration_error(likely.max(axis=1), right, np.ones(len(y))) < 0.07


def test_tasks_that_are_alike_are_left_to_the_default() -> None:
    tasks, texts, _, embedder = clouds((100, 100), fresh=500, spread=50.0)
    made = Router.from_tasks(tasks, embedder, "other")
    assert made.facts is not None
    assert made.facts.accuracy == pytest.approx(0.5, abs=0.1)
    assert made.facts.precision < 0.9  # said, not reached
    assert made.probabilities(texts, embedder).max() < 0.75


def test_questions_of_one_document_stay_in_one_fold() -> None:
    """A document tells its task by chance alone here: who has seen its other questions seems to know."""
    rng = np.random.default_rng(3)
    owners = np.repeat(np.arange(60), 6)
    points = rng.normal(size=(60, 64))[owners] + 0.01 * rng.normal(size=(360, 64))
    texts, embedder = Points.at(points / np.linalg.norm(points, axis=1, keepdims=True))

    def accuracy(documents: Sequence[str]) -> float:
        halves = [(name, [i for i in range(360) if owners[i] % 2 == k]) for k, name in enumerate("ab")]
        tasks = [task(n, [texts[i] for i in half], documents=[documents[i] for i in half]) for n, half in halves]
        facts = Router.from_tasks(tasks, embedder, "").facts
        assert facts is not None
        return facts.accuracy

    assert accuracy([f"d{owner}" for owner in owners]) < 0.7
    assert accuracy([f"d{i}" for i in range(360)]) > 0.95
    assert accuracy([f"d{owner % 2}" for owner in owners]) > 0.9  # a document each: grouping would leave a task out


# --- temperature and threshold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_of_simulated_logits_is_found(temperature: float) -> None:
    rng = np.random.default_rng(1)
    logits = 2 * rng.normal(size=(6000, 3))
    y = np.array([rng.choice(3, p=row) for row in softmax(logits)])
    assert fit_temperature(temperature * logits, y) == pytest.approx(temperature, rel=0.08)


def test_few_questions_without_a_fault_give_no_certainty() -> None:
    # Five questions of each of two tasks, all right by the same margin: (5 + 1) / (5 + 2) is what they bear.
    y = np.repeat([0, 1], 5)
    logits = np.where(np.arange(2) == y[:, None], 3.0, 0.0)
    likely = softmax(logits / fit_temperature(logits, y))
    np.testing.assert_allclose(likely.max(axis=1), 6 / 7, rtol=1e-4)


def two(confidence: Sequence[float], right: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Held-out probabilities over two tasks for questions of the first one."""
    rows = [(c, 1 - c) if r else (1 - c, c) for c, r in zip(confidence, right, strict=True)]
    return np.array(rows), np.zeros(len(rows), dtype=int)


def test_the_lowest_threshold_that_is_precise_enough() -> None:
    likely, y = two([0.99, 0.95, 0.9, 0.8, 0.7, 0.6], [True, True, False, True, True, False])
    # From the top: 1, 1, 2/3, 3/4, 4/5, 4/6.
    assert choose_threshold(likely, y, 0.8) == (0.7, pytest.approx(5 / 6), pytest.approx(0.8))
    assert choose_threshold(likely, y, 0.9) == (0.95, pytest.approx(2 / 6), 1.0)
    likely, y = two([0.9, 0.8, 0.8, 0.7], [True, True, False, False])
    assert choose_threshold(likely, y, 1.0) == (0.9, 0.25, 1.0)  # 0.8 and 0.8 go together
    likely, y = two([0.9, 0.8, 0.7], [False, True, True])
    assert choose_threshold(likely, y, 0.9) == (0.5, 1.0, pytest.approx(2 / 3))  # the most that is reached, by all
    likely, y = two([0.9, 0.8, 0.7, 0.6], [False, True, True, False])
    assert choose_threshold(likely, y, 0.9) == (0.7, 0.75, pytest.approx(2 / 3))
    # One of eleven would reach it, but is too few to go by.
    likely, y = two([0.95, *[0.9] * 4, *[0.8] * 6], [True, True, True, True, False, *[False] * 6])
    assert choose_threshold(likely, y, 0.9) == (
        0.9,
        pytest.approx(5 / 11),
        pytest.approx(0.8),
    )


def test_where_all_are_right_only_guesses_are_left_out() -> None:
    likely, y = two([0.9, 0.8, 0.7], [True, True, True])
    assert choose_threshold(likely, y) == (0.5, 1.0, 1.0)


def test_below_one_half_nothing_is_routed() -> None:
    likely = np.array([[0.4, 0.35, 0.25], [0.35, 0.4, 0.25], [0.3, 0.3, 0.4]])
    assert choose_threshold(likely, np.array([0, 1, 2])) == (0.5, 0.0, 0.0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=3))
@settings(max_examples=60, deadline=None)
def test_the_threshold_is_that_of_brute_force(rows: list[tuple[int, int, int, int]]) -> None:
    y = np.unique([row[0] for row in rows], return_inverse=True)[1]
    likely = softmax(np.log(np.array([row[1:] for row in rows], dtype=float)))
    threshold, covered, precision = choose_threshold(likely, y)
    sizes = np.bincount(y)
    weights = [1 / (sizes[k] * len(sizes)) for k in y]

    def at(level: float) -> tuple[float, float]:
        kept = [i for i in range(len(y)) if likely[i].max() >= level]
        share = sum(weights[i] for i in kept)
        return share, sum(weights[i] for i in kept if likely[i].argmax() == y[i]) / share if kept else 0.0

    assert (covered, precision) == (pytest.approx(at(threshold)[0]), pytest.approx(at(threshold)[1]))
    levels = [level for level in sorted({float(row.max()) for row in likely}) if at(level)[0] >= 0.1 - 1e-9]
    most = max(at(level)[1] for level in levels)
    goal = min(0.9, most) - 1e-9
    reaching = [level for level in levels if at(level)[1] >= goal]
    lowest = 0.5 if at(reaching[0])[0] > 1 - 1e-9 else max(reaching[0], 0.5)
    if most >= 0.9 - 1e-9:
        assert threshold == lowest
    else:  # several may tie
        assert threshold in {lowest, *(max(level, 0.5) for level in reaching)}


# --- saved and loaded ------------------------------------------------------------------------------------------------


def test_a_router_comes_back_whole_and_without_pickle(router: Router, tmp_path: Path) -> None:
    router.save(tmp_path)
    with zipfile.ZipFile(tmp_path / "router.npz") as archive:
        assert not any(b"|O" in archive.read(name)[:128] for name in archive.namelist())  # no object arrays
    saved = json.loads((tmp_path / "router.json").read_text(encoding="utf-8"))
    assert set(saved["facts"]) == {"accuracy", "covered", "n", "per_task", "precision"}
    loaded = Router.load(tmp_path)
    for name in ("tasks", "default", "embedder", "threshold", "facts"):
        assert getattr(loaded, name) == getattr(router, name)
    np.testing.assert_array_equal(loaded.coefficients, router.coefficients)
    np.testing.assert_array_equal(loaded.intercept, router.intercept)
    empty = Router.from_tasks([], EMBEDDER, "other")
    empty.save(tmp_path)
    assert Router.load(tmp_path).route("Where?", EMBEDDER) == empty.route("Where?", EMBEDDER)
    assert Router.load(tmp_path).facts is None


def test_asking_needs_numpy_alone_and_says_the_same(router: Router, tmp_path: Path) -> None:
    router.save(tmp_path)
    code = (
        "import sys; from pathlib import Path; from ragtune.router import Router; "
        "from ragtune.testing import HashEmbedder; "
        f"print(Router.load(Path({str(tmp_path)!r})).probabilities({FACTS + LETTERS!r}, HashEmbedder()).tolist()); "
        "print([name for name in ('sklearn', 'scipy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    likely, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert json.loads(likely) == router.probabilities(FACTS + LETTERS, EMBEDDER).tolist()


def test_a_router_of_another_version_or_with_pickle_is_refused(router: Router, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no router\.json: another version of ragtune wrote it; remove it"):
        Router.load(tmp_path)
    router.save(tmp_path)
    np.savez(tmp_path / "router.npz", coefficients=np.array([{"tasks": []}], dtype=object), intercept=router.intercept)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Router.load(tmp_path)


# --- a run that is older than the settings ---------------------------------------------------------------------------

CONFIG = """
name = "lake"
documents = "documents"
default_task = "{default}"
[tasks.facts]
questions = "facts.jsonl"
instruction = "Answer."
[tasks.{second}]
questions = "letters.jsonl"
instruction = "Answer."
"""


def session(default: str, second: str = "letters") -> Session:
    Path("ragtune.toml").write_text(CONFIG.format(default=default, second=second), encoding="utf-8")
    for name, texts in (("facts", FACTS), ("letters", LETTERS)):
        rows = [{"id": f"{name}-{i}", "split": "train", "question": t, "answers": ["x"]} for i, t in enumerate(texts)]
        lines = [json.dumps(row | {"evidence": []}) + "\n" for row in rows]
        Path(f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return Session(ragtune.load_config(Path()), _generators={"base": ScriptedGenerator(lambda _: "x")})


@pytest.fixture
def with_run(router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run in the working folder, whose router knows `facts` and `letters`, with the default `other`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Session, "embedder", property(lambda _: EMBEDDER))
    with store.atomic_folder(tmp_path / "runs" / "lake", {"kind": "run"}) as building:
        empty: dict[str, object] = {"reasons": {}, "instructions": {}, "examples": {}, "priors": {}}
        store.write_json(building / "decision.json", {"arms": {"facts": "prompt", "letters": "prompt"}, **empty})
        router.save(building)


@pytest.mark.usefixtures("with_run")
def test_a_routed_question_goes_to_its_task() -> None:
    assistant, reason = session("facts").choose("Dear team, my anchor broke", None, None)
    assert (assistant.task.name, assistant.arm.name) == ("letters", "prompt")
    assert reason.startswith("task letters: ") and reason.endswith("own questions; its verdict is prompt")


@pytest.mark.usefixtures("with_run")
@pytest.mark.parametrize(("default", "taken"), [("facts", "facts"), ("", "open")])
def test_a_task_that_is_gone_is_not_taken(default: str, taken: str) -> None:
    assistant, reason = session(default, "parcels").choose("Dear team, my anchor broke", "prompt", None)
    assert assistant.task.name == taken
    assert reason == f"task {taken}: the run's router picked letters, which is no task of this project any more"


@pytest.mark.usefixtures("with_run")
@pytest.mark.parametrize(("default", "taken"), [("letters", "letters"), ("", "open")])
def test_unsure_means_the_default_of_today(default: str, taken: str) -> None:
    made = session(default)
    folder = made.project.place("runs")
    with store.atomic_folder(folder, {"kind": "run"}) as building:
        store.write_json(building / "decision.json", store.read_json(folder / "decision.json"))
        replace(Router.load(folder), threshold=1.0).save(building)
    assistant, reason = made.choose("Where is the anchor of the lake?", "prompt", None)
    assert (assistant.task.name, "unsure: facts comes first with" in reason) == (taken, True)


# --- the sample corpus -----------------------------------------------------------------------------------------------


@pytest.mark.models
def test_harbourline_with_the_default_embedder() -> None:
    bench = bench_router()
    made = Session(ragtune.load_config(bench.CORPUS))
    figures = bench.measure(made.tasks, made.embedder)
    # Measured once at 0.81, 0.84, 0.88 and 0.04; below these something broke.
    assert figures["accuracy"] > 0.77
    assert figures["covered"] > 0.75
    assert figures["precision"] > 0.84
    assert figures["calibration_error"] < 0.08
