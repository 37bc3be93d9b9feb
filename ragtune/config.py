"""One small validated config per command. `ragtune.toml` and command-line flags fill the same objects.

An unknown key is an error. Documents and question files are looked up from the folder of the file. A model folder is
looked up from the folder that ragtune runs in, and what it writes goes there: `indexes/NAME`, `adapters/NAME/ARM`,
`runs/NAME`, `reports/NAME`.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ragtune.errors import ConfigError

CONFIG_NAME = "ragtune.toml"
_FIELD_NAME = r"^[a-z0-9][a-z0-9._-]*$"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class IndexConfig(_Settings):
    """`[index]`: how documents become passages and vectors."""

    embedder: str = Field("all-minilm-l6-v2", description="embedded name, local folder or hub id")
    passage_tokens: int = Field(120, ge=16, le=8192, description="largest passage, in the embedder's tokens")
    overlap_tokens: int = Field(0, ge=0, description="tokens of whole sentences repeated from the passage before")
    include: tuple[str, ...] = Field((), description="globs of documents to take; none means all")
    exclude: tuple[str, ...] = Field((), description="globs of documents to leave out")
    language: str = Field("english", description="stemming of the keyword index (a Snowball language, or 'none')")
    max_file_mb: int = Field(20, ge=1, description="largest file that is read, in millions of bytes")
    file_seconds: int = Field(30, ge=1, description="processor time that one file may take to read")
    file_memory_mb: int = Field(1024, ge=256, description="memory that reading a file may take, libraries included")


READING_LIMITS = frozenset({"max_file_mb", "file_seconds", "file_memory_mb"})
"""Settings of `[index]` that say what may be read, not what becomes of it: another value needs no other index."""


class RetrievalConfig(_Settings):
    """`[retrieval]`: how passages are found and how many go into a prompt."""

    k: int = Field(3, ge=1, le=50, description="passages given to the generator")
    candidates: int = Field(50, ge=1, description="hits taken from each index before fusion")
    context_tokens: int = Field(1200, ge=64, description="largest context, in the generator's tokens")


class GeneratorConfig(_Settings):
    """`[generator]`: the base model of every arm."""

    model: str = Field("smollm2-135m-instruct", description="embedded name, local folder or hub id")


GeneratorName = Annotated[str, Field(pattern=_FIELD_NAME)]
BaseArm = Literal["prompt", "few-shot", "retrieve", "retrieve+few-shot"]
"""An arm that needs no adapter, so that any generator can play it."""

_ADDRESS = re.compile(r"https?://([\w.-]+|\[[\da-f:.]+\])(:\d{1,5})?(/[^\s?#]*)?", re.IGNORECASE)
_ENDPOINT_ONLY = ("key_env", "concurrency", "timeout_s", "retries", "max_spend", "request")
_FIXED_FIELDS = ("model", "messages", "stream", "n")


def _check_unit(prompt: float, output: float) -> None:
    """Refuse two prices that look like two units: per token, per thousand and per million lie a factor of 1,000 apart.

    Raises: ValueError, which pydantic turns into a message that names the section.
    """
    if prompt and output and not 1 / 50 < output / prompt < 500:
        raise ValueError(
            f"an output token costs {output / prompt:.2g} times a prompt token; give both prices per 1,000 tokens"
        )


class OtherGeneratorConfig(_Settings):
    """`[generators.NAME]`: another generator whose arms, named like `NAME:retrieve`, join the evaluation.

    With `base_url` it is an OpenAI-compatible endpoint, without it a local model. A key is never written here:
    `key_env` names the environment variable that holds it.
    """

    model: str = Field(min_length=1, description="the endpoint's name for it; or embedded name, local folder or hub id")
    base_url: str = Field("", description="address of an OpenAI-compatible endpoint, up to and with `/v1`")
    arms: tuple[BaseArm, ...] = Field(get_args(BaseArm), min_length=1, description="the arms that it plays")
    prompt_price: float = Field(ge=0, description="per 1,000 prompt tokens, in the currency of `[prices]`")
    output_price: float = Field(ge=0, description="per 1,000 output tokens")
    key_env: str = Field("", description="environment variable that holds the endpoint's key; empty for no key")
    concurrency: int = Field(4, ge=1, le=64, description="requests on their way at a time")
    timeout_s: float = Field(60.0, gt=0, description="seconds to wait for an answer")
    retries: int = Field(5, ge=0, le=20, description="further tries after a failure that may pass")
    max_spend: float | None = Field(None, gt=0, description="most that one process may spend here")
    request: dict[str, Any] = Field(
        default_factory=dict, description="further fields of each request, such as `{seed = 17}`; they win over ours"
    )

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value and not _ADDRESS.fullmatch(value):  # not shown: it may hold a password
            raise ValueError("expected http(s)://HOST[:PORT]/PATH, without user, password or query")
        return value.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):  # not shown: it may be the key itself
            raise ValueError("expected the name of an environment variable, in capitals, never the key itself")
        return value

    @field_validator("request")
    @classmethod
    def _leaves_ours_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        if fixed := sorted(value.keys() & set(_FIXED_FIELDS)):
            raise ValueError(f"{', '.join(fixed)} cannot be set here; ragtune fills it in")
        for name in ("max_tokens", "max_completion_tokens"):
            if name in value and (type(value[name]) is not int or value[name] < 1):
                raise ValueError(f"{name} is {value[name]!r}, expected a whole number from 1")
        return value

    @model_validator(mode="after")
    def _same_unit(self) -> OtherGeneratorConfig:
        _check_unit(self.prompt_price, self.output_price)
        return self

    @model_validator(mode="after")
    def _local_models_have_no_endpoint(self) -> OtherGeneratorConfig:
        stray = [name for name in _ENDPOINT_ONLY if name in self.model_fields_set]
        if stray and not self.base_url:
            raise ValueError(f"{', '.join(stray)} belongs to an endpoint; add base_url, or leave it out")
        return self


class TuneConfig(_Settings):
    """`[tune]`: training rows and optimisation."""

    method: str = Field("auto", description="auto, or a name that `ragtune methods` lists")
    epochs: float = Field(1.0, gt=0, description="passes over the training rows")
    learning_rate: float | None = Field(
        None, gt=0, description="peak of a cosine schedule with warm-up; none means the method's own"
    )
    batch_size: int = Field(8, ge=1, description="rows per optimiser step")
    checkpointing: bool = Field(
        False, description="compute activations again instead of keeping them: less memory, about a third slower"
    )
    rank: int = Field(16, ge=1, description="rank of LoRA's update")
    alpha: int = Field(32, ge=1, description="LoRA scale: the update is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on LoRA's input")
    target_modules: tuple[str, ...] = Field(
        (), description="linear layers that LoRA updates, by name; none means all but the output head"
    )
    bottleneck: int = Field(64, ge=1, description="width of bottleneck adapters")
    virtual_tokens: int = Field(20, ge=1, description="length of a soft prompt")
    max_tokens: int = Field(1024, ge=64, description="longest training row; lint refuses a longer one")
    max_rows_per_task: int | None = Field(None, ge=1, description="training questions taken from each task")
    share_without_gold: float = Field(0.2, ge=0, le=1, description="share of rows with passages whose gold is left out")
    without_gold: Literal["recall", "abstain"] = Field("abstain", description="what those rows teach")
    share_closed_book: float = Field(0.0, ge=0, le=1, description="raft: share of questions asked without passages")
    instructions: str = Field(
        "", description="file of plain instruction data (Alpaca, ShareGPT or OpenAI chat), relative to this file"
    )
    share_instructions: float = Field(0.1, ge=0, lt=1, description="share of all rows that is drawn from that file")
    dequantise: Literal["auto", "once", "each-use"] = Field(
        "auto", description="qlora: keep NF4 weights unpacked or packed"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="compile the layers first; auto: long runs on a CPU where there is a C++ compiler"
    )
    save_steps: int = Field(50, ge=1, description="optimiser steps between checkpoints")
    eval_steps: int | None = Field(
        None, ge=1, description="optimiser steps between looks at dev questions; none means no early stopping"
    )
    patience: int = Field(3, ge=1, description="looks in a row without a better score, after which training stops")
    dev_questions: int = Field(16, ge=1, description="dev questions of each task that a look asks")
    report_to: tuple[Literal["tensorboard", "mlflow", "wandb", "trackio"], ...] = Field(
        (), description="trackers that follow a run, each from a package of its name; the ledger is always kept"
    )
    seed: int = Field(17, ge=0, description="of rows, order and adapter initialisation")


class EvaluateConfig(_Settings):
    """`[evaluate]`: which questions, which arms, how much honest effort for prompting."""

    arms: tuple[str, ...] = Field((), description="arms to measure; none means all that can be")
    questions_per_task: int | None = Field(
        None, ge=1, description="test questions taken from each task; none means all"
    )
    dev_questions: int = Field(16, ge=0, description="dev questions for choosing instructions and examples")
    shots: int = Field(8, ge=1, le=32, description="most examples in the few-shot arms; half as many compete, too")
    example_sets: int = Field(3, ge=1, description="seeded draws of few-shot examples that compete on dev")
    margin: float = Field(0.02, ge=0, lt=1, description="a cheaper arm this close to the best is as good")
    racing_error: float = Field(
        0.02, ge=0, lt=0.05, description="chance that dropping arms early loses a task's best; 0 asks all everything"
    )
    forgetting_probe: bool = Field(True, description="ask general questions before and after tuning")
    seed: int = Field(17, ge=0, description="of question samples, example draws and resampling")


METRICS = {
    "short": ("token_f1", "exact_match", "rouge_l"),
    "label": ("accuracy",),
    "json": ("field_match", "valid_json"),
    "text": ("rouge_l", "token_f1", "exact_match"),
}
"""The metrics that fit each answer format, the default first."""

DEFAULT_METRICS = {format: metrics[0] for format, metrics in METRICS.items()}


Quantisation = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q4_1"]


class ExportConfig(_Settings):
    """`[export]`: the probe that a merged or exported model must pass, beside the adapter that it was made of."""

    probe_questions: int = Field(64, ge=1, description="dev questions, over all tasks of the adapter")
    min_agreement: float = Field(0.85, ge=0, le=1, description="smallest share of equal answers, word for word")
    max_logp_difference: float = Field(
        0.05, ge=0, description="largest mean difference of a token's log-probability (nats), signs left out"
    )
    quantise: Quantisation = Field("q8_0", description="how a GGUF file stores matrices")
    seed: int = Field(17, ge=0, description="of the draw of questions")


class PricesConfig(_Settings):
    """`[prices]`: what an answer costs, in any one currency.

    By default an output token costs as much as 4 prompt tokens and a trained token as much as 20, roughly what some
    secondary sources give for gpt-4o-mini. These prices decide which of two close arms is the cheaper: set your own.
    """

    currency: str = Field("units", description="name shown in the report")
    prompt: float = Field(0.05, ge=0, strict=True, description="per 1,000 prompt tokens")
    output: float = Field(0.20, ge=0, strict=True, description="per 1,000 output tokens")
    training: float = Field(1.00, ge=0, strict=True, description="per 1,000 trained tokens")
    questions: int = Field(1_000, ge=1, description="questions over which training is paid off")

    @model_validator(mode="after")
    def _same_unit(self) -> PricesConfig:
        _check_unit(self.prompt, self.output)
        return self


class TaskConfig(_Settings):
    """`[tasks.NAME]`: a question file and how its answers are judged."""

    questions: str = Field(description="JSONL file, relative to the config file")
    instruction: str | tuple[str, ...] = Field(description="what to do; several variants compete on dev")
    format: Literal["short", "label", "json", "text"] = Field("short", description="what an answer looks like")
    metric: str = Field("", description="primary metric; by default the one that fits the format")
    labels: tuple[str, ...] = Field((), description="allowed labels; by default those of the training questions")
    max_answer_tokens: int = Field(32, ge=1, le=4096, description="longest answer, in the generator's tokens")
    shared_documents: bool = Field(False, description="evidence may serve several splits (rules, not facts)")

    @model_validator(mode="after")
    def _metric_fits_the_format(self) -> TaskConfig:
        if self.metric and self.metric not in METRICS[self.format]:
            fitting = ", ".join(METRICS[self.format])
            raise ValueError(f"metric {self.metric!r} does not fit format {self.format!r}; expected one of: {fitting}")
        return self


class ProjectConfig(_Settings):
    """A whole `ragtune.toml`. `root` is the folder that its paths start from."""

    name: str = Field(pattern=_FIELD_NAME, description="names the folders that are written")
    documents: str = Field("documents", description="folder of documents, relative to this file")
    default_task: str = Field("", description="task of a question that the router is unsure about")
    index: IndexConfig = IndexConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    generator: GeneratorConfig = GeneratorConfig()
    generators: dict[GeneratorName, OtherGeneratorConfig] = Field(default_factory=dict)
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    prices: PricesConfig = PricesConfig()
    tasks: dict[str, TaskConfig] = Field(default_factory=dict)
    root: Path = Field(Path(), exclude=True)

    @model_validator(mode="after")
    def _default_task_exists(self) -> ProjectConfig:
        if self.default_task and self.default_task not in self.tasks:
            known = ", ".join(self.tasks) or "none"
            raise ValueError(f"default_task {self.default_task!r} is not a task; tasks are: {known}")
        return self

    @property
    def documents_path(self) -> Path:
        """The folder of documents."""
        return self.root / self.documents

    def place(self, kind: Literal["indexes", "adapters", "runs", "reports", "models", "exports"]) -> Path:
        """Where this project's folders of one kind are written, below the working folder."""
        return Path(kind) / self.name


def load_config(path: Path | str, overrides: dict[str, Any] | None = None) -> ProjectConfig:
    """Read a `ragtune.toml` (or the one in a folder) and lay command-line values (`{"tune.epochs": 2}`) over it.

    A value of None means not given.

    Raises: ConfigError naming file, key, what came and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CONFIG_NAME
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}; write one with: ragtune init DOCS, or name one with --config") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); expected a ragtune.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for key, value in (overrides or {}).items():
        if value is not None:
            section, _, name = key.rpartition(".")
            table = values.setdefault(section, {}) if section else values
            if isinstance(table, dict):  # a section that is none is refused with all other wrong keys
                table[name] = value
    return build_config(values, path)


def build_config(values: dict[str, Any], path: Path) -> ProjectConfig:
    """Validate settings; `path` is the file they came from, named in errors and the start of relative paths.

    Raises: ConfigError listing each wrong key.
    """
    if "root" in values:
        raise ConfigError(f"{path}: unknown key root")
    try:
        return ProjectConfig.model_validate({**values, "root": path.parent})
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from None


_SECTIONS: dict[str, type[_Settings]] = {
    "index": IndexConfig,
    "retrieval": RetrievalConfig,
    "generator": GeneratorConfig,
    "generators": OtherGeneratorConfig,
    "tune": TuneConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "prices": PricesConfig,
    "tasks": TaskConfig,
}


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        section = _SECTIONS[item["loc"][0]] if len(item["loc"]) > 1 else ProjectConfig
        known = ", ".join(name for name in section.model_fields if name != "root")
        return f"unknown key {key}; expected one of: {known}"
    if item["type"] == "missing":
        return f"key {key} is missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":  # ours: it says what came where that may be shown
        return f"{key}: {message}" if key else message
    return f"{key} = {item['input']!r}: {message}"
