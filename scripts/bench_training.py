"""`python scripts/bench_training.py --peer` times how ragtune trains against its peers (about 20 minutes, 2 cores).

The same rows of corpora/harbourline, the same base weights, rank, batch, learning rate, schedule and number of steps:

- ours: `ragtune.generator.train.train`.
- trainer: `transformers.Trainer` over peft, as their defaults are; see scripts/peer_trainer.py.
- trl: with `--peer [FOLDER]`, TRL's SFTTrainer at its best settings, in an environment of its own; see
  scripts/peer_trl.py. `--full` tries all its settings and takes the fastest for each case.

Three cases: `raft`, rows of 500 to 750 tokens with passages, 4 at a time; `short`, closed-book rows, 8 at a time;
`nf4`, the first again over weights in NF4, which the peer keeps packed and ragtune dequantises once.

Each contender trains in a process of its own, one after another, with all threads. It reads its rows twice: the first
pass warms up, the second is timed, in tokens without padding. Memory is the most that its process ever held.
Afterwards one function computes the loss on held-out rows with each saved adapter, in fp32. `--quick` trains 2 x 3
steps, not 2 x 6.

The last line, also written with `--json FILE`, is one JSON object; what was not measured is null:

- `speedup_vs_trainer`, `speedup_vs_trl`: our tokens/s by theirs, case `raft`; `nf4_speedup_vs_trainer`: case `nf4`.
- `loss_gap`: the largest relative difference, over all cases and peers, between our held-out loss and theirs.
- `peak_ratio`: our memory by theirs, case `raft`, by the peer that needs less.
- `cases`: for each the rows, their mean `tokens`, `loss_before` training, and by contender `tokens_per_second`,
  `peak_bytes`, `loss`, `settings`, `versions`, `threads`, and for peers `speedup`.

`--write` puts a table into docs/tuning.md. This process itself loads no library, since on Linux a new one can
inherit the peak memory of the old.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import generated
import peer_trl

HERE = Path(__file__).resolve().parent
CASES: dict[str, dict[str, Any]] = {
    "raft": {"rows": "raft", "batch": 4, "nf4": False},
    "short": {"rows": "short", "batch": 8, "nf4": False},
    "nf4": {"rows": "raft", "batch": 4, "nf4": True},
}
PASSES = 2


def call(python: Path | str, script: str, *arguments: object) -> None:
    """Run one of our scripts in a process of its own; what it says goes to standard error.

    Raises: subprocess.CalledProcessError when it fails.
    """
    command = [str(python), str(HERE / script), *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def contend(work: Path, case: str, name: str, python: Path | None) -> dict[str, Any]:
    """Let one contender train on a case, and give its result; `python` is the peer's interpreter."""
    out, job = work / f"{case} {name}", work / f"{case}.json"
    out.mkdir()
    if name == "ours":
        call(sys.executable, "training_parts.py", "ours", job, out)
    elif name == "trainer":
        call(sys.executable, "peer_trainer.py", job, out)
    else:
        call(python or sys.executable, "peer_trl.py", "train", job, out, name.removeprefix("trl "))
    result: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return result | {"adapter": str(out / "adapter")}


def speed(job: dict[str, Any], result: dict[str, Any]) -> float:
    """Tokens a second, without padding, of all passes but the first.

    Raises: SystemExit when the contender did not make the steps that all were to make.
    """
    a_pass = -(-len(job["ids"]) // job["batch"])
    ends = result["ends"]
    if len(ends) != a_pass * job["passes"]:
        raise SystemExit(f"expected {a_pass * job['passes']} optimiser steps, but one contender made {len(ends)}")
    tokens = sum(map(len, job["ids"])) * (job["passes"] - 1)
    return tokens / (ends[-1] - ends[a_pass - 1])


def measure(work: Path, case: str, names: Sequence[str], python: Path | None) -> dict[str, Any]:
    """One case by all contenders: its entry in `cases`."""
    job = json.loads((work / f"{case}.json").read_text(encoding="utf-8"))
    contenders: dict[str, Any] = {}
    for name in names:
        result = contend(work, case, name, python)
        contenders[name] = result | {"tokens_per_second": speed(job, result)}
        print(f"{case}, {name}: {contenders[name]['tokens_per_second']:.0f} tokens/s", flush=True)
    found = work / f"{case} losses.json"
    call(sys.executable, "training_parts.py", "losses", work / f"{case}.json", found, *adapters(contenders))
    losses = json.loads(found.read_text(encoding="utf-8"))
    for result in contenders.values():
        result["loss"] = losses[result.pop("adapter")]
        result["training_losses"] = result.pop("losses")
        del result["ends"]
    tokens = sum(map(len, job["ids"])) / len(job["ids"])
    facts = {"rows": len(job["ids"]), "tokens": tokens, "batch": job["batch"], "loss_before": losses["base"]}
    return facts | {"contenders": with_speedups(keep_best(contenders))}


def adapters(contenders: dict[str, Any]) -> list[str]:
    """Where the contenders left their adapters."""
    return [result["adapter"] for result in contenders.values()]


def keep_best(contenders: dict[str, Any]) -> dict[str, Any]:
    """The contenders with TRL's fastest setting as `trl`; the speeds of its others are kept in it as `tried`."""
    tried = {name: result for name, result in contenders.items() if name.startswith("trl ")}
    if not tried:
        return contenders
    best = max(tried.values(), key=lambda result: result["tokens_per_second"])
    speeds = {name.removeprefix("trl "): result["tokens_per_second"] for name, result in tried.items()}
    others = {name: result for name, result in contenders.items() if name not in tried}
    return others | {"trl": best | {"tried": speeds}}


def with_speedups(contenders: dict[str, Any]) -> dict[str, Any]:
    """The contenders; each peer with how many times as fast as it ragtune is."""
    ours = contenders["ours"]["tokens_per_second"]
    return {
        name: result if name == "ours" else result | {"speedup": ours / result["tokens_per_second"]}
        for name, result in contenders.items()
    }


def summarise(cases: dict[str, Any]) -> dict[str, Any]:
    """The figures as named above."""

    def speedup(case: str, peer: str) -> float | None:
        found = cases.get(case, {"contenders": {}})["contenders"].get(peer)
        return found["speedup"] if found else None

    raft = cases.get("raft", {"contenders": {}})["contenders"]
    theirs = [result["peak_bytes"] for name, result in raft.items() if name != "ours"]
    gaps = [
        abs(case["contenders"]["ours"]["loss"] / result["loss"] - 1)
        for case in cases.values()
        for name, result in case["contenders"].items()
        if name != "ours"
    ]
    return {
        "speedup_vs_trainer": speedup("raft", "trainer"),
        "speedup_vs_trl": speedup("raft", "trl"),
        "nf4_speedup_vs_trainer": speedup("nf4", "trainer"),
        "loss_gap": max(gaps),
        "peak_ratio": raft["ours"]["peak_bytes"] / min(theirs) if theirs else None,
        "cases": cases,
    }


def trl_names(case: str, full: bool) -> list[str]:
    """TRL's contenders on a case, one for each setting that is tried; it has no part in `nf4`."""
    if case not in peer_trl.BEST:
        return []
    return [f"trl {setting}" for setting in (peer_trl.SETTINGS if full else [peer_trl.BEST[case]])]


def run(cases: Sequence[str], steps: int, peer: Path | None, full: bool) -> dict[str, Any]:
    """All figures, as named above; `steps` are those of one pass."""
    python = peer_trl.prepare(peer) if peer else None
    sizes = {"cases": {name: CASES[name] for name in cases}, "steps": steps, "passes": PASSES, "held_out": 4 * steps}
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        call(sys.executable, "training_parts.py", "rows", work, json.dumps(sizes))
        for case in cases:
            trl = trl_names(case, full) if python else []
            results[case] = measure(work, case, ["ours", "trainer", *trl], python)
    return summarise(results)


def lines(figures: dict[str, Any]) -> Iterator[str]:
    """The figures as Markdown: a row for each case and contender, then what it ran on."""
    yield "| rows | trained by | tokens/s | ragtune is | peak memory | held-out loss |"
    yield "|---|---|---|---|---|---|"
    for name, case in figures["cases"].items():
        what = f"{name}: {case['rows']} of {case['tokens']:.0f} tokens, {case['batch']} at a time"
        for contender, result in case["contenders"].items():
            times = f"{result['speedup']:.1f} x" if "speedup" in result else ""
            memory = f"{result['peak_bytes'] / 2**30:.1f} GB"
            speed = f"{result['tokens_per_second']:.0f}"
            yield f"| {what} | {contender} | {speed} | {times} | {memory} | {result['loss']:.3f} |"
        yield f"| {what} | nobody | | | | {case['loss_before']:.3f} |"
    results = [result for case in figures["cases"].values() for result in case["contenders"].values()]
    versions = {name: number for result in results for name, number in result["versions"].items()}
    yield ""
    installed = ", ".join(f"{name} {number}" for name, number in versions.items())
    yield f"{results[0]['threads']} threads; {installed}."


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 x 3 steps for each contender, not 2 x 6")
    parser.add_argument("--full", action="store_true", help="try all settings of TRL")
    parser.add_argument("--case", dest="cases", action="append", choices=list(CASES), help="only this case")
    place = Path.home() / ".cache" / "ragtune" / "peers" / "trl"
    parser.add_argument("--peer", type=Path, nargs="?", const=place, help=f"train with TRL, too, kept in {place}")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--write", action="store_true", help="put a table into docs/tuning.md")
    arguments = parser.parse_args()
    peer = arguments.peer and arguments.peer.resolve()
    figures = run(arguments.cases or list(CASES), 3 if arguments.quick else 6, peer, arguments.full)
    if arguments.write:
        generated.fill(generated.TUNING, "bench_training.py", lines(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
