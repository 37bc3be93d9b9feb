"""Who may import whom: the direction of the design, held by reading every import statement, lazy ones included.

types <- errors, config, store, records <- {corpus, retriever, prompting, generator, evaluator, execution} <-
{assistant, router, rounds} <- {measure, session} <- {probes, results, parity, dev_score} <-
{training_rows, planning, tuning, runs, exporting, synthesis} <- pipeline <- {interop, serving} <- cli
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import ragtune

PACKAGE = Path(ragtune.__file__).parent
STAGES = {"corpus", "retriever", "prompting", "generator", "evaluator", "execution"}
LEVELS: tuple[set[str], ...] = (
    {"types"},
    {"errors", "config", "store", "records"},
    STAGES,
    {"assistant", "router", "rounds"},
    {"measure", "session"},
    {"probes", "results", "parity", "dev_score"},
    {"training_rows", "planning", "tuning", "runs", "exporting", "synthesis"},
    {"pipeline"},
    {"interop", "serving"},
    {"cli"},
)
OUTSIDE = {"__init__", "__main__", "testing"}
"""The public names (loaded lazily) and the doubles: nothing in the package may import them."""

MODELS = {"torch", "transformers", "peft", "bitsandbytes", "sentence_transformers"}
HEAVY = ("torch", "transformers", "faiss", "sentence_transformers", "matplotlib", "scipy", "langchain_core")


@dataclass(frozen=True)
class Import:
    """`module` (dotted name inside the package, like `retriever.embed`) imports `name`."""

    module: str
    name: str
    line: int
    lazy: bool

    @property
    def part(self) -> str:
        """The part of the package that the importing module belongs to."""
        return self.module.split(".")[0]

    @property
    def target(self) -> str:
        """The part of our package that is imported (`__init__` for a public name), or the foreign package."""
        first, _, rest = self.name.partition(".")
        part = rest.split(".")[0]
        if first != "ragtune":
            return first
        return part if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").exists() else "__init__"

    def __str__(self) -> str:
        return f"{self.module.replace('.', '/')}.py:{self.line} imports {self.name}"


def imports_of(path: Path) -> list[Import]:
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [f"ragtune.{alias.name}" for alias in node.names] if base == "ragtune" else [base]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ragtune":
            names = [f"ragtune.{node.attr}"]  # used through `import ragtune`
        else:
            continue
        found += [Import(module, name, node.lineno, node not in tree.body) for name in names]
    return found


IMPORTS = [found for path in sorted(PACKAGE.rglob("*.py")) for found in imports_of(path)]
OURS = [i for i in IMPORTS if i.name.startswith("ragtune.") and i.name != "ragtune.__version__"]
FOREIGN = [i for i in IMPORTS if i.name.split(".")[0] != "ragtune"]


def level(part: str) -> int:
    return next(number for number, parts in enumerate(LEVELS) if part in parts)


def test_every_module_has_its_place() -> None:
    parts = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}
    assert parts <= set().union(*LEVELS) | OUTSIDE
    assert {"types", "errors", "store", "retriever", "generator", "pipeline"} <= parts


def test_imports_are_read() -> None:
    """The reader sees plain, lazy and `from ragtune import` imports; otherwise the tests below hold nothing."""
    seen = {(i.module, i.target, i.lazy) for i in IMPORTS}
    assert {
        ("retriever.retrieve", "store", False),
        ("retriever.vector_index", "faiss", False),
        ("session", "retriever", True),
        ("generator.generate", "torch", False),
    } <= seen
    assert not [str(i) for i in IMPORTS if i.name.startswith(".")], "imports are absolute"


def test_types_import_the_standard_library_alone() -> None:
    assert [str(i) for i in IMPORTS if i.module == "types" and i.target not in sys.stdlib_module_names] == []


def test_imports_go_down() -> None:
    inside = [i for i in OURS if i.part not in OUTSIDE and i.target not in OUTSIDE]
    assert [str(i) for i in inside if level(i.target) > level(i.part)] == []


def test_stages_never_import_each_other() -> None:
    between = [i for i in OURS if i.part in STAGES and i.target in STAGES and i.part != i.target]
    assert [str(i) for i in between] == []


def test_nothing_imports_the_doubles_and_only_the_command_line_the_public_names() -> None:
    strays = [
        i for i in OURS if i.target == "testing" or (i.target == "__init__" and i.part not in ("cli", "__main__"))
    ]
    assert [str(i) for i in strays] == []


def test_model_libraries_stay_with_the_models() -> None:
    allowed = ("retriever.embed", "retriever.rerank", "generator.")
    strays = [i for i in FOREIGN if i.target in MODELS and not i.module.startswith(allowed)]
    assert [str(i) for i in strays if not (i.module == "testing" and i.lazy)] == []


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("faiss", "retriever.vector_index"),
        ("bm25s", "retriever.keyword_index"),
        ("click", "cli."),
        ("httpx2", "generator.endpoint"),
        ("langchain_core", "interop"),
    ],
)
def test_a_library_has_one_place(library: str, allowed: str) -> None:
    assert [str(i) for i in FOREIGN if i.target == library and not i.module.startswith(allowed)] == []


def test_nothing_that_could_run_code_from_a_file() -> None:
    assert [str(i) for i in FOREIGN if i.target in {"pickle", "marshal", "shelve", "dill", "joblib"}] == []


def loaded_by(code: str) -> list[str]:
    """Which heavy packages another Python has loaded after the code."""
    report = f"; import sys; print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, timeout=60, check=True
    )
    return result.stdout.rpartition("LOADED")[2].split()


def test_import_ragtune_is_light() -> None:
    assert loaded_by("import ragtune") == []


@pytest.mark.skipif(importlib.util.find_spec("ragtune.cli") is None, reason="ragtune.cli is not written yet")
def test_help_is_light() -> None:
    code = (
        "import contextlib, sys\nfrom ragtune.cli import main\nsys.argv = ['ragtune', '--help']\n"
        "with contextlib.suppress(SystemExit): main()\npass"
    )
    assert loaded_by(code) == []


@pytest.mark.parametrize(
    "module", ["corpus.load", "corpus.split", "evaluator.decide", "prompting.strategies", "pipeline"]
)
def test_stages_without_models_load_no_torch(module: str) -> None:
    loaded = loaded_by(f"import ragtune.{module}")
    assert not {"torch", "transformers", "faiss"} & set(loaded)
