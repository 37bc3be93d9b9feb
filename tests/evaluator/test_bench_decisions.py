"""A small version of the simulation, its tolerances from the binomial error of so few tasks, and its parts."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from ragtune import rounds as evaluation_rounds
from ragtune.evaluator.race import RACING_ALPHA

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_decisions.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_decisions", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_decisions"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_promised_error_rates_hold(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    results = bench.run(300, 1, (30, 100, 300))
    outcomes = [outcome for found in results.values() for outcome in found]
    found, n = bench.means(outcomes), len(outcomes)
    assert n == 300
    assert "300 of 300 tasks" in capsys.readouterr().err
    most = {alpha: stats.binom.ppf(0.999, n, alpha) / n for alpha in (0.05, RACING_ALPHA)}
    assert 1 - found["coverage"] - 1e-9 <= found["false_claims"] <= most[0.05]
    assert found["racing_false_drop"] <= most[RACING_ALPHA]
    assert found["racing_false_claims"] <= most[0.05]
    # A wrong choice costs more than its margin, so that these are far apart in 300 tasks, too.
    assert found["regret"] < 0.5 * found["regret_unpaired"] < 0.5 * found["regret_always_combine"]
    assert abs(found["racing_regret"] - found["regret"]) < 0.002
    assert 0.2 < found["racing_saved_all"] < found["racing_saved"] < 0.6


def test_equal_arms_are_seldom_told_apart(bench: ModuleType) -> None:
    """The hardest case by itself: every second task of gap 0 has seven equal arms."""
    outcomes = [o for kind in bench.KINDS for o in bench.simulate(bench.Cell(60, 0.0, kind), 160, seed=2)[1::2]]
    assert sum(o["false_claims"] for o in outcomes) <= stats.binom.ppf(0.999, len(outcomes), 0.05)
    assert all(np.isnan(o["racing_saved"]) for o in outcomes)


@pytest.mark.parametrize("kind", ["binary", "graded"])
def test_scores_have_the_truth_as_their_mean_and_are_correlated(bench: ModuleType, kind: str) -> None:
    rng = np.random.default_rng(3)
    truth = np.array([0.2, 0.5, 0.8, 0.9, 0.95, 0.5, 0.02])
    x = bench.draw_scores(rng, truth, 40_000, kind)
    assert x.mean(axis=0) == pytest.approx(truth, abs=4 * 0.5 / 200)  # four standard errors at most
    assert x.min() >= 0 and x.max() <= 1
    assert 0.15 < np.corrcoef(x[:, 1], x[:, 5])[0, 1] < 0.75


def test_the_gap_is_that_of_the_two_best_arms(bench: ModuleType) -> None:
    rng = np.random.default_rng(4)
    best = []
    for _ in range(300):
        truth = bench.draw_truth(rng, 0.1, all_equal=False)
        first, second = np.sort(truth)[[-1, -2]]
        assert first - second == pytest.approx(0.1)
        best.append(int(truth.argmax()))
    assert np.bincount(best, minlength=7) / 300 == pytest.approx(bench.ODDS, abs=4 * 0.5 / np.sqrt(300))
    assert np.ptp(bench.draw_truth(rng, 0.1, all_equal=True)) == 0


def test_regret_by_hand(bench: ModuleType) -> None:
    """Best 0.80; `tune` (0.03) is the cheapest within 0.02 of it: the right arm."""
    truth = np.array([0.70, 0.60, 0.77, 0.79, 0.75, 0.80, 0.80])
    assert bench.NAMES[bench.right_arm(truth)] == "tune"
    expected = {"tune": 0.0, "raft": 0.02, "retrieve": 0.01, "prompt": 0.08, "retrieve+few-shot": 0.03 + 0.02}
    assert {name: bench.regret(truth, bench.NAMES.index(name)) for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("binary", [True, False])
def test_the_unpaired_peer_against_scipy(bench: ModuleType, binary: bool) -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        x = rng.random((40, 7)) + rng.uniform(0, 0.4, 7)
        x = (x > 0.7).astype(float) if binary else x
        leader = int(x.mean(axis=0).argmax())
        p_values = [stats.ttest_ind(x[:, i], x[:, leader], equal_var=False).pvalue for i in range(7)]
        cheapest = min((i for i in range(7) if p_values[i] > 0.05), key=lambda i: bench.COSTS[i])
        assert bench.unpaired_choice(x) == cheapest
    same = np.repeat([[1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]], 20, axis=0)
    assert bench.unpaired_choice(same) == 0
    assert bench.unpaired_choice(same[:, ::-1].copy()) == 0
    assert bench.unpaired_choice(1 - same) == 1


def test_rounds_are_those_of_an_evaluation(bench: ModuleType) -> None:
    assert (bench.LEAST_ROUND, bench.GROWTH) == (evaluation_rounds._LEAST_ROUND, evaluation_rounds._GROWTH)
    assert bench.rounds(20) == [20]
    assert bench.rounds(90) == [24, 48, 72, 90]


def test_the_last_line_is_the_figures(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SIZES", (30,))
    assert bench.main(["--tasks", "20", "--json", str(tmp_path / "figures.json")]) == 0
    *table, line = capsys.readouterr().out.splitlines()
    figures = json.loads(line)
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == figures
    assert figures.keys() == {*bench.KEYS, "tasks"}
    assert figures["tasks"] == 20
    assert table[0].count("|") == table[-1].count("|") == len(bench.COLUMNS) + 2
    assert table[-1].startswith("| all | ")
