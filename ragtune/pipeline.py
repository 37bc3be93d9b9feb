"""READ FIRST: the whole of ragtune as short functions over the stages; also the Python API.

    project = ragtune.load_config("corpora/harbourline")
    ragtune.index(project)                        # documents -> passages -> vectors and keywords
    ragtune.ask(project, "Can I bring a kayak?")  # an answer with citations, before anything is tuned
    ragtune.tune(project, arm="tune")             # closed-book adapter
    ragtune.tune(project, arm="raft")             # adapter that learned to read retrieved passages
    run = ragtune.evaluate(project)               # every arm on the same questions -> a verdict per task
    ragtune.report(project)                       # HTML, Markdown, JSON
    ragtune.ask(project, "Can I bring a kayak?")  # now answered by the arm that won its task

Finished work is reused when its manifest matches. Unfinished work is continued: answers always, training with `resume`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ragtune
from ragtune import store
from ragtune.config import READING_LIMITS, ProjectConfig
from ragtune.errors import ConfigError, InputError, StoreError
from ragtune.session import TUNED, Session
from ragtune.types import Answer, Hit, Weights

if TYPE_CHECKING:
    from ragtune.corpus.check import CheckReport
    from ragtune.corpus.importers.convert import Imported, ImportOptions
    from ragtune.corpus.load import LoadResult, Skipped
    from ragtune.evaluator.regression import RunComparison
    from ragtune.exporting import Exported
    from ragtune.generator.examples import Built
    from ragtune.generator.findings import LintFinding
    from ragtune.generator.plan import Plan
    from ragtune.generator.train import Progress
    from ragtune.planning import PlanQuestion
    from ragtune.results import Run
    from ragtune.rounds import Contest
    from ragtune.synthesis.files import Output, Synthesised
    from ragtune.synthesis.questions import SynthOptions


@dataclass(frozen=True)
class Watch:
    """What a caller wants to see of long work. All do nothing by default."""

    say: Callable[[str], None] = lambda _: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    training: Callable[[Progress], None] = lambda _: None
    standings: Callable[[Sequence[Contest]], None] = lambda _: None


_QUIET = Watch()


@dataclass(frozen=True, slots=True)
class Indexed:
    """What `index` did. `reused`: the folder was already made from exactly these documents and settings.

    `formats` counts the documents by suffix; `warnings` name those that could be read in part only.
    """

    folder: Path
    documents: int
    passages: int
    formats: Mapping[str, int]
    skipped: tuple[Skipped, ...]
    warnings: tuple[Skipped, ...]
    reused: bool


@dataclass(frozen=True, slots=True)
class Linted:
    """What `lint` found in so many rows, errors first."""

    rows: int
    findings: tuple[LintFinding, ...]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What `tune` did. `losses` are nats per answer token, one per optimiser step."""

    folder: Path
    rows: int
    findings: tuple[LintFinding, ...]
    losses: tuple[float, ...]
    why_method: str
    reused: bool


def index(project: ProjectConfig, strict: bool = False, watch: Watch = _QUIET) -> Indexed:
    """Read, split and embed the project's documents into `indexes/NAME`.

    Raises: InputError when there is nothing to read (or, with `strict`, when a file cannot be); StoreError when the
    folder cannot be written; BusyError when another process is writing it.
    """
    from ragtune.corpus.load import load_documents
    from ragtune.corpus.sandbox import Limits
    from ragtune.corpus.split import split_document
    from ragtune.retriever.retrieve import build_index

    session = Session(project, watch.say)
    config = project.index
    watch.say(f"reading {project.documents_path}")
    limits = Limits.from_config(config)
    loaded = load_documents(
        project.documents_path, strict=strict, include=config.include, exclude=config.exclude, limits=limits
    )
    watch.say(f"read {loaded.summary}")
    embedder = session.embedder
    target = project.place("indexes")
    inputs = {
        "documents": {d.id: d.sha256 for d in loaded.documents},
        "embedder": embedder.fingerprint,
        "config": config.model_dump(mode="json", exclude=set(READING_LIMITS)),
    }
    if store.is_current(target, "index", inputs):
        passages = int(store.read_manifest(target, "index")["passages"])
        return _indexed(target, loaded, passages, reused=True)
    limit = min(config.passage_tokens, embedder.max_tokens - embedder.count_tokens([""])[0])
    split = [
        passage
        for document in loaded.documents
        for passage in split_document(document, embedder.token_offsets, limit, config.overlap_tokens)
    ]

    def report(done: int, total: int) -> None:
        watch.progress("embedding passages", done, total)

    build_index(target, loaded.documents, split, embedder, config, inputs, report)
    return _indexed(target, loaded, len(split), reused=False)


def _indexed(folder: Path, loaded: LoadResult, passages: int, reused: bool) -> Indexed:
    documents = len(loaded.documents)
    return Indexed(folder, documents, passages, loaded.formats, loaded.skipped, loaded.warnings, reused)


def search(project: ProjectConfig, query: str, k: int | None = None) -> tuple[Hit, ...]:
    """The k passages that fit a query best.

    Raises: InputError for an empty query; StoreError without an index.
    """
    return Session(project).retriever.search([query], k)[0]


def ask(project: ProjectConfig, question: str, arm: str | None = None, task: str | None = None) -> Answer:
    """Answer a question over the project's documents.

    Without `arm` the decision's arm for the question's task is used; without a decision, `retrieve`.

    Raises: InputError for an empty question; ConfigError for an unknown arm or task; StoreError without an index.
    """
    return ask_session(Session(project), question, arm, task)[0]


def ask_session(
    session: Session,
    question: str,
    arm: str | None = None,
    task: str | None = None,
    show: Callable[[str], None] | None = None,
) -> tuple[Answer, str]:
    """`ask` within an opened session; returns the answer and why this arm. `show` gets the text as it is decoded."""
    if not question.strip():
        raise InputError("the question is empty; ask something")
    assistant, reason = session.choose(question, arm, task)
    if assistant.arm.passages == "gold":
        raise ConfigError("the oracle arm needs gold evidence, which only test questions have; choose another arm")
    hits = session.retriever.search([question])[0] if assistant.arm.passages == "retrieved" else ()
    if show is not None:
        return assistant.stream(question, hits, show), reason
    return assistant.answer(question, hits), reason


def check(project: ProjectConfig) -> CheckReport:
    """Check the project's question files against its documents: spans, splits, labels, duplicates.

    Raises: QuestionError for a line that cannot be read; InputError for documents that cannot.
    """
    from ragtune.corpus.check import check_corpus
    from ragtune.corpus.load import load_documents
    from ragtune.corpus.sandbox import Limits

    config = project.index
    limits = Limits.from_config(config)
    loaded = load_documents(project.documents_path, include=config.include, exclude=config.exclude, limits=limits)
    texts = {d.id: d.text for d in loaded.documents}
    shared = frozenset(name for name, task in project.tasks.items() if task.shared_documents)
    return check_corpus(Session(project).tasks, texts, shared)


def import_data(source: Path, into: Path, options: ImportOptions | None = None, watch: Watch = _QUIET) -> Imported:
    """Turn a file or folder of questions (and documents) into a project folder, or into one more task of the one there.

    Raises: InputError naming file and line of what cannot be used; ConfigError for a wrong ragtune.toml in `into`;
    StoreError when it cannot be written. In each case `into` stays as it was.
    """
    from ragtune.corpus.importers.convert import ImportOptions, import_source

    return import_source(source, into, options or ImportOptions(), watch.say, watch.progress)


def examples(
    project: ProjectConfig,
    arm: str = "raft",
    only: Sequence[str] = (),
    rows_file: Path | None = None,
    watch: Watch = _QUIET,
) -> Built:
    """The training rows that `tune` trains on with the same arguments. Write them with `chat_formats.write_rows`.

    Raises: InputError for a broken line in `rows_file`, or without training questions; StoreError without an index.
    """
    from ragtune import training_rows

    return training_rows.rows_for(Session(project, watch.say), _tunable(arm), only, rows_file)


def lint(
    project: ProjectConfig,
    arm: str = "raft",
    only: Sequence[str] = (),
    rows_file: Path | None = None,
    watch: Watch = _QUIET,
) -> Linted:
    """Check training rows: those of `rows_file`, or the project's own, which are built twice to see that they repeat.

    Raises: like `examples`; ModelError for a base model whose tokenizer has no chat template.
    """
    from ragtune import training_rows
    from ragtune.generator.lint import compare_builds

    session = Session(project, watch.say)
    rows = training_rows.rows_for(session, _tunable(arm), only, rows_file).rows
    findings = training_rows.lint_rows(session, rows)
    if rows_file is None:
        again = training_rows.build_rows(session, _tunable(arm), only).rows
        findings = (*compare_builds(rows, again), *findings)
    return Linted(len(rows), findings)


def synth(
    project: ProjectConfig,
    options: SynthOptions | None = None,
    output: Output | None = None,
    watch: Watch = _QUIET,
) -> Synthesised:
    """Write questions with answers from the project's documents alone, into `tasks/NAME.jsonl`.

    Replies are kept in `runs/NAME.synth.jsonl` and never asked for again.

    Raises: InputError when a file would be lost or no question can be used; ConfigError for an unknown generator;
    StoreError without an index; BusyError when another process is at it; UnfinishedError when an endpoint gives up.
    """
    from ragtune.measure import AnswerLog
    from ragtune.synthesis.files import Output, find_target, save
    from ragtune.synthesis.questions import SynthOptions, write_questions

    options = options or SynthOptions()
    target = find_target(project, options.name, output or Output())
    session = Session(project, watch.say)
    place = project.place("runs").with_name(f"{project.name}.synth.jsonl")
    with store.locked(place):
        written = write_questions(session, options, AnswerLog(store.JsonlLog(place)), watch.progress)
        return save(session, options, target, written)


def plan(
    project: ProjectConfig, arm: str = "raft", question: PlanQuestion | None = None, watch: Watch = _QUIET
) -> Plan:
    """Predict the memory and the time that `tune` would take, and what fits; loads no weights.

    Raises: ModelError for a model that cannot be planned for; ConfigError for an unknown arm, method or hardware.
    """
    from ragtune.planning import PlanQuestion, make_plan

    return make_plan(Session(project, watch.say), _tunable(arm), question or PlanQuestion())


def tune(
    project: ProjectConfig,
    arm: str = "raft",
    only: Sequence[str] = (),
    resume: bool = False,
    watch: Watch = _QUIET,
    rows_file: Path | None = None,
    force: bool = False,
) -> Tuned:
    """Train the adapter of an arm (`tune`: without passages, `raft`: with) into `adapters/NAME/ARM`.

    The rows are those of `rows_file` where one is given, else those that `examples` gives. `resume` continues an
    interrupted run from its newest whole checkpoint, if there is one. `force` starts a run that memory is predicted not
    to suffice for.

    Raises: TrainingError when lint finds errors, naming the rows, or when memory cannot suffice; MismatchError when
    `resume` finds a run with other inputs; StoreError when the disk is full or read-only.
    """
    from ragtune import planning, training_rows, tuning
    from ragtune.generator.checkpoints import prepare_work_folder
    from ragtune.generator.methods import choose_method
    from ragtune.generator.trackers import check_trackers

    weights = _tunable(arm)
    check_trackers(project.tune.report_to)
    session = Session(project, watch.say)
    watch.say("building training rows")
    rows = training_rows.rows_for(session, weights, only, rows_file).rows
    method, why = choose_method(project.tune.method)
    target = session.adapter(weights)
    inputs = {
        "rows": store.sha256_of_json([row.to_json() for row in rows]),
        "base": session.base[1],
        "index": session.index.fingerprint,
        "config": project.tune.model_dump(mode="json", exclude={"report_to"}),
        "method": method.name,
    }
    if store.is_current(target, "adapter", inputs):
        manifest = store.read_manifest(target, "adapter")
        return Tuned(target, len(rows), (), tuple(manifest["losses"]), why, reused=True)
    findings = training_rows.lint_rows(session, rows)
    training_rows.refuse_errors(findings, rows)
    if not force:
        planning.check_rows_fit(session, rows)
    work = target.with_name(f".{weights}.training")
    with store.locked(work):
        prepare_work_folder(work, inputs, resume)
        losses = tuning.train_into(target, session, rows, (method, inputs, work), watch.training)
        shutil.rmtree(work, ignore_errors=True)
    return Tuned(target, len(rows), findings, losses, why, reused=False)


def _tunable(arm: str) -> Weights:
    for weights in TUNED:
        if arm == weights:
            return weights
    raise ConfigError(f"arm {arm!r} has no adapter of its own; expected one of: {', '.join(TUNED)}")


def merge(
    project: ProjectConfig, arm: str = "raft", into: Path | None = None, force: bool = False, watch: Watch = _QUIET
) -> Exported:
    """Merge the adapter of an arm into its base, into `models/NAME/ARM`; the folder is a model for `[generator]`.

    Raises: ConfigError for a method that cannot be merged; ModelError when the merged model answers otherwise than the
    adapter, beyond the bounds of `[export]`, unless `force` is given; StoreError without an adapter.
    """
    from ragtune import exporting

    weights = _tunable(arm)
    target = into or project.place("models") / weights
    return exporting.merge_into(target, Session(project, watch.say), weights, force)


def export(
    project: ProjectConfig,
    to: str,
    arm: str = "raft",
    into: Path | None = None,
    force: bool = False,
    watch: Watch = _QUIET,
) -> Exported:
    """Write what was tuned for others: `gguf` for llama.cpp and Ollama, `openai` for its rows as chat JSONL.

    It goes into `exports/NAME/ARM-QUANTISATION` or `exports/NAME/ARM-openai`.

    Raises: ConfigError for another format, or for a method or model that cannot be exported; else like `merge`.
    """
    from ragtune import exporting

    weights = _tunable(arm)
    session = Session(project, watch.say)
    place = project.place("exports")
    if to == "gguf":
        target = into or place / f"{weights}-{project.export.quantise}"
        return exporting.gguf_into(target, session, weights, force)
    if to == "openai":
        return exporting.openai_into(into or place / f"{weights}-openai", session, weights)
    raise ConfigError(f"unknown format {to!r}; expected one of: gguf, openai")


def evaluate(
    project: ProjectConfig,
    only: Sequence[str] = (),
    watch: Watch = _QUIET,
    budget: float | None = None,
    max_questions: int | None = None,
) -> Run:
    """Ask the arms the same test questions, round by round, and decide per task; writes `runs/NAME`.

    Answers already given are kept in `runs/NAME.answers.jsonl` and never asked again. After `budget` seconds, or
    `max_questions` questions over all tasks, no new round begins; what could not be settled by then is undecided.

    Raises: ConfigError for an unknown arm or task, or an arm whose adapter is missing; StoreError for a damaged index
    or adapter.
    """
    from ragtune import results, runs
    from ragtune.rounds import Pace, rows_of

    session = Session(project, watch.say)
    for name in only:
        session.task(name)
    chosen = [t for t in session.located_tasks if not only or t.name in only]
    tasks = [t for t in chosen if t.split("test")]
    for task in chosen:
        if task in tasks:
            continue
        if only:
            raise InputError(f"task {task.name!r} has no test questions; add some to its question file")
        watch.say(f"task {task.name} has no test questions and is left out")
    if not tasks:
        raise InputError("there are no test questions; add tasks with a test split to ragtune.toml")
    arms = runs.arms_to_measure(session)
    inputs = runs.run_inputs(session, tasks, arms) | {"budget": budget, "max_questions": max_questions}
    target = project.place("runs")
    if store.is_current(target, "run", inputs):
        return results.load_run(target, reused=True)
    started = time.perf_counter()
    pace = Pace(lambda: budget is None or time.perf_counter() - started < budget, max_questions, watch.standings)
    with store.locked(target.with_name(f"{target.name}.answers")):
        bench = runs.open_bench(session, tasks, watch.progress)
        choices, contests = runs.measure_all(session, tasks, arms, bench, pace)
        probes = runs.probe_all(session, tasks, arms, choices, bench)
    verdicts = runs.decide_all(session, arms, contests)
    seconds = time.perf_counter() - started
    manifest = {
        "kind": "run",
        "inputs": inputs,
        **results.describe(session, arms, choices, contests, seconds),
        **probes,
    }
    results.write_run(target, session, tasks, (verdicts, rows_of(contests), choices), manifest)
    return results.load_run(target, reused=False)


def compare(baseline: Path, run: Path) -> RunComparison:
    """What became better or worse from one finished run folder to another, on the questions that are in both.

    Raises: InputError for a folder that is no intact run, or when the two have nothing to compare.
    """
    from ragtune.evaluator.regression import compare_runs, load_results

    return compare_runs(load_results(baseline), load_results(run))


def report(project: ProjectConfig) -> Path:
    """Write the finished run as `reports/NAME/report.html`, `.md` and `.json`; returns the HTML file.

    Raises: StoreError when there is no finished run, or it is damaged.
    """
    from ragtune import results
    from ragtune.evaluator.report.render import write_report

    source, target = project.place("runs"), project.place("reports")
    if not source.exists():
        raise StoreError(f"there is no finished run at {source}; make one with: ragtune evaluate")
    data = results.report_data(source, project)
    inputs = {"run": store.read_manifest(source, "run")["manifest_sha256"], "ragtune": ragtune.__version__}
    if not store.is_current(target, "report", inputs):
        with store.atomic_folder(target, {"kind": "report", "inputs": inputs}) as building:
            write_report(data, building)
    return target / "report.html"
