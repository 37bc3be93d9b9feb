"""For your documents and your tasks, measure whether prompting, retrieval, fine-tuning or a combination works best.

`ragtune.pipeline` is the place to start reading. Public names are loaded when first used, so that `import ragtune`
loads neither torch nor FAISS.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragtune.assistant import ARMS
    from ragtune.config import ProjectConfig, load_config
    from ragtune.errors import RagtuneError
    from ragtune.pipeline import (
        Watch,
        ask,
        check,
        compare,
        evaluate,
        examples,
        export,
        import_data,
        index,
        lint,
        merge,
        report,
        search,
        synth,
        tune,
    )

__version__ = "0.1.0"
__all__ = [
    "ARMS",
    "ProjectConfig",
    "RagtuneError",
    "Watch",
    "__version__",
    "ask",
    "check",
    "compare",
    "evaluate",
    "examples",
    "export",
    "import_data",
    "index",
    "lint",
    "load_config",
    "merge",
    "report",
    "search",
    "synth",
    "tune",
]
_HOMES = {
    "ARMS": "assistant",
    "ProjectConfig": "config",
    "load_config": "config",
    "RagtuneError": "errors",
    **dict.fromkeys(("Watch", "ask", "check", "compare", "evaluate", "examples", "export"), "pipeline"),
    **dict.fromkeys(("import_data", "index", "lint", "merge", "report", "search", "synth", "tune"), "pipeline"),
}

# bitsandbytes warns at import about an optional kernel package that would fetch native code from a hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ragtune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ragtune.{_HOMES[name]}"), name)
