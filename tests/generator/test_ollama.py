"""Modelfiles: templates worked out from the tokenizer's own, rendered in Python and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ragtune.generator.generate import load_tokenizer
from ragtune.generator.models import DEFAULT_GENERATOR, resolve
from ragtune.generator.ollama import TurnTemplate, default_system, modelfile, turn_template

CHATML = TurnTemplate(
    {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")},
    "<|im_start|>assistant\n",
)
WITH_DEFAULT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}A:"
NO_SYSTEM = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
TRIMMED = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] | trim }};{% endfor %}"


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


def test_turns_are_worked_out_from_the_template(tokenizer: Any) -> None:
    assert turn_template(tokenizer) == CHATML
    assert default_system(tokenizer, CHATML) == ""


def test_go_by_hand() -> None:
    assert CHATML.go() == (
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}<|im_start|>assistant\n"
    )


def test_a_default_system_text_is_kept(tokenizer: Any) -> None:
    tokenizer.chat_template = WITH_DEFAULT
    assert turn_template(tokenizer) == CHATML
    assert 'SYSTEM """Be kind."""\n' in modelfile("small.gguf", tokenizer, 100)


@pytest.mark.parametrize("template", [NUMBERED, NO_SYSTEM, TRIMMED])
def test_a_template_that_does_more_is_left_out(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    assert turn_template(tokenizer) is None
    written = modelfile("small.gguf", tokenizer, 100)
    assert "\nTEMPLATE" not in written
    assert "# No TEMPLATE" in written


@pytest.mark.parametrize(("context", "expected"), [(2048, 2048), (131_072, 8192)])
def test_the_modelfile_decodes_as_the_probe_was_answered(tokenizer: Any, context: int, expected: int) -> None:
    """Ollama penalises repeated words unless it is told not to, and cuts prompts at a short context."""
    lines = modelfile("small.gguf", tokenizer, context).splitlines()
    assert lines[0] == "FROM ./small.gguf"
    assert lines[-4:] == [
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {expected}",
    ]


@pytest.mark.models
def test_the_default_generators_template_is_known() -> None:
    tokenizer = load_tokenizer(resolve(DEFAULT_GENERATOR))
    assert turn_template(tokenizer) == CHATML
    assert default_system(tokenizer, CHATML).startswith("You are a helpful AI assistant named SmolLM")
