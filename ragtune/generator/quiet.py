"""Keep model libraries from printing progress bars and advice through our own output."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def calm_libraries() -> Iterator[None]:
    """Silence transformers, tqdm and bitsandbytes inside the block; errors still raise."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers.modeling_gguf_pytorch_utils as gguf_utils
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # The GGUF reader calls tqdm directly and has no switch of its own.
    gguf_tqdm = gguf_utils.tqdm
    gguf_utils.tqdm = lambda items, **_: items
    bitsandbytes_logger = logging.getLogger("bitsandbytes")
    level = bitsandbytes_logger.level
    bitsandbytes_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gguf_utils.tqdm = gguf_tqdm
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
        bitsandbytes_logger.setLevel(level)
