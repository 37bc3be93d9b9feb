"""`python scripts/bench_methods.py` tunes the same rows with every method of the registry (about 25 minutes, 2 cores).

The rows are closed-book ones of two tasks of corpora/harbourline, `sender` (names, exact match) and `routing` (14
labels, accuracy), the same for every method, and so are steps and batch; the learning rate is each method's own. Each
method trains and answers test questions in a process of its own, which also measures the untuned model.

`--methods a,b` takes some. `--rows`, `--epochs` and `--questions` are of each task; `--quick` means 16, 1 and 12. What
was measured with the same settings stands in WORK/methods.jsonl and is not measured again. The last line, also written
with `--json FILE`, is one JSON object with an entry a method, and `untuned`:

- `scores`: for each task mean, low and high (95 %) over its questions.
- `trainable_parameters`, `share` of all parameters, `adapter_bytes` of its weights on disk.
- `peak_memory` of the process in bytes, `tokens_per_second`, `seconds`, `first_loss`, `last_loss` of training.
- `not_possible`: in place of all that, why a method cannot tune this model.

`--write` puts the table into docs/tuning.md, beside what the papers claim.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import generated
from alone import alone

import ragtune
from ragtune import pipeline, store
from ragtune.config import ProjectConfig
from ragtune.errors import ConfigError
from ragtune.generator.methods import METHODS

CORPUS = Path(__file__).resolve().parents[1] / "corpora" / "harbourline"
TASKS = ("sender", "routing")
UNTUNED = "untuned"
CLAIMS = {
    "lora": "10,000 times fewer trained parameters and a third of the GPU memory for GPT-3 175B, no inference overhead "
    "after merging (Hu et al. 2021, abstract)",
    "qlora": "65B on one GPU of 48 GB, as good as 16-bit tuning (Dettmers et al. 2023, abstract)",
    "dora": "better than LoRA, no inference overhead (Liu et al. 2024, abstract)",
    "adapter-houlsby": "3.6 % parameters a task, within 0.4 % of full tuning on GLUE (Houlsby et al. 2019, abstract)",
    "prefix": "0.1 % of the parameters, comparable with full tuning (Li & Liang 2021, abstract)",
    "prompt": "closes the gap to full tuning beyond billions of parameters (Lester et al. 2021, abstract)",
    "p-tuning-v2": "0.1 to 3 % of the parameters, like full tuning at every size (Liu et al. 2022, abstract)",
    "bitfit": "below 1 % of the parameters (0.1 % of BERT's), competitive on small data (Ben Zaken et al. 2022)",
    "ia3": "few new parameters, stronger than full tuning on few examples (Liu et al. 2022, abstract)",
    "ln": "41.9 % fewer trained parameters and 17.6 % less memory than LoRA (13B; Zhao et al. 2023, abstract)",
}


@dataclass(frozen=True)
class Size:
    """Of each task: training rows and passes over them, and test questions."""

    rows: int = 160
    epochs: float = 2.0
    questions: int = 80


def load(method: str, size: Size) -> ProjectConfig:
    """The project as this method tunes it."""
    changes = {"tune.max_rows_per_task": size.rows, "tune.epochs": size.epochs}
    return ragtune.load_config(CORPUS, changes | ({} if method == UNTUNED else {"tune.method": method}))


def key(method: str, size: Size) -> str:
    """The hash of all that a measurement depends on but the code."""
    rate = None if method == UNTUNED else METHODS[method].learning_rate
    return store.sha256_of_json([method, rate, *astuple(size), TASKS, load(method, size).tune.model_dump(mode="json")])


def measure(method: str, size: Size, work: Path) -> dict[str, Any]:
    """The entry of one method; `work` holds the index. Runs in a process of its own, so memory is the method's."""
    from ragtune.session import Session

    place = work / method
    place.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (place / "indexes").symlink_to(work / "indexes")
    with contextlib.chdir(place):
        project = load(method, size)
        try:
            tuned = None if method == UNTUNED else pipeline.tune(project, "tune", TASKS, resume=True).folder
        except ConfigError as error:
            return {"not_possible": str(error)}
        facts = training_facts(tuned) if tuned else {}
        return {"scores": score(Session(project), "tune" if tuned else "base", size.questions), **facts}


def training_facts(adapter: Path) -> dict[str, Any]:
    """What an adapter's folder says about its training, under the names above."""
    manifest = store.read_manifest(adapter, "adapter")
    weights = [*adapter.glob("*.safetensors"), *adapter.glob("*.bin")]
    return {
        "trainable_parameters": manifest["trainable_parameters"],
        "share": manifest["trainable_parameters"] / manifest["all_parameters"],
        "adapter_bytes": sum(file.stat().st_size for file in weights),
        "peak_memory": manifest["peak_memory"],
        "tokens_per_second": manifest["trained_tokens"] / manifest["seconds"],
        "seconds": manifest["seconds"],
        "first_loss": manifest["losses"][0],
        "last_loss": manifest["losses"][-1],
    }


def score(session: Any, weights: Any, questions: int) -> dict[str, dict[str, float]]:
    """For each task the mean of its metric over test questions, closed book, with its interval."""
    import numpy as np

    from ragtune.assistant import ARMS, Assistant
    from ragtune.evaluator.compare import mean_interval
    from ragtune.measure import AnswerLog, Bench, ask_all, sample

    config = session.project
    bench = Bench(AnswerLog(store.JsonlLog(Path("answers.jsonl"))), {}, {}, config.retrieval, config.evaluate, _quiet)
    generator = session.generator(weights)
    scores = {}
    for task in (task for task in session.located_tasks if task.name in TASKS):
        asked = sample(task.split("test"), questions, config.evaluate.seed)
        assistant = Assistant(ARMS["prompt"], task, task.instructions[0], generator)
        rows = ask_all(assistant, asked, bench, task.name)
        scores[task.name] = asdict(mean_interval(np.array([row.score for row in rows], dtype=float)))
    return scores


def _quiet(what: str, done: int, total: int) -> None:
    """Nobody watches."""


def run(methods: Iterable[str], size: Size, work: Path) -> dict[str, Any]:
    """The entries of these methods; new ones are logged as they come."""
    work.mkdir(parents=True, exist_ok=True)
    log = store.JsonlLog(work / "methods.jsonl")
    known = {row["key"]: row["figures"] for row in log.rows()}
    entries = {}
    for method in methods:
        own = key(method, size)
        if own not in known:
            with contextlib.chdir(work):
                ragtune.index(load(method, size))
            known[own] = alone(measure, method, size, work)
            log.append([{"key": own, "method": method, "size": asdict(size), "figures": known[own]}])
        entries[method] = known[own]
        print(f"{method}: {brief(entries[method])}", flush=True)
    return entries


def brief(entry: Mapping[str, Any]) -> str:
    """An entry in a few words."""
    if "not_possible" in entry:
        return f"not possible: {entry['not_possible']}"
    return ", ".join(f"{task} {interval['mean']:.2f}" for task, interval in entry["scores"].items())


def lines(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The entries as a Markdown table: measured on the left, claimed on the right."""
    scored = " | ".join(f"`{task}`" for task in TASKS)
    yield f"| method | trained parameters | {scored} | tokens/s | peak memory | on disk | what the paper claims |"
    yield "|---" * (6 + len(TASKS)) + "|"
    for method, entry in entries.items():
        yield f"| `{method}` | " + " | ".join(cells(entry)) + f" | {CLAIMS.get(method, '')} |"


def cells(entry: Mapping[str, Any]) -> list[str]:
    """The measured cells of a row."""
    empty = [""] * (3 + len(TASKS))
    if "not_possible" in entry:
        reason = entry["not_possible"].replace("|", "\\|")
        return [f"not possible: {reason}", *empty]
    scores = [interval(entry["scores"][task]) for task in TASKS]
    if "share" not in entry:
        return ["none", *scores, "", "", ""]
    return [
        f"{entry['trainable_parameters']:,} ({percent(entry['share'])})",
        *scores,
        f"{entry['tokens_per_second']:.0f}",
        f"{entry['peak_memory'] / 1e9:.1f} GB",
        f"{entry['adapter_bytes'] / 1e6:.1f} MB",
    ]


def interval(value: Mapping[str, float]) -> str:
    """A mean with its interval."""
    return f"{value['mean']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def percent(share: float) -> str:
    """A share to two digits that count: 3.6 %, 0.10 %, 0.0085 %."""
    return f"{100 * share:#.2g} %".replace(". %", " %") if share < 0.995 else f"{100 * share:.0f} %"


def chosen(text: str | None) -> Sequence[str]:
    """The methods of a list with commas, all when there is none; the untuned model first.

    Raises: argparse.ArgumentTypeError for a name that is not in the registry.
    """
    names = text.split(",") if text else list(METHODS)
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; methods are: {', '.join(METHODS)}")
    return [UNTUNED, *names]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=chosen, default=chosen(None), help="some methods, with commas between")
    parser.add_argument("--quick", action="store_true", help="few rows and questions, one pass")
    parser.add_argument("--rows", type=int, help="training rows of each task")
    parser.add_argument("--epochs", type=float, help="passes over the rows")
    parser.add_argument("--questions", type=int, help="test questions of each task")
    parser.add_argument("--work", type=Path, default=Path("runs/methods"), help="where all is built and kept")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--write", action="store_true", help="put the table into docs/tuning.md")
    arguments = parser.parse_args()
    size = Size(16, 1.0, 12) if arguments.quick else Size()
    asked = {name: getattr(arguments, name) for name in ("rows", "epochs", "questions")}
    size = Size(**asdict(size) | {name: value for name, value in asked.items() if value is not None})
    entries = run(arguments.methods, size, arguments.work.resolve())
    if arguments.write:
        generated.fill(generated.TUNING, "bench_methods.py", lines(entries))
    if arguments.json:
        arguments.json.write_text(json.dumps(entries) + "\n", encoding="utf-8")
    print(json.dumps(entries))


if __name__ == "__main__":
    main()
