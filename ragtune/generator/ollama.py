"""An Ollama Modelfile whose prompts and sampling are those that the model was trained and measured with.

Ollama reads no Jinja: its template is worked out from what the tokenizer's template writes, and taken only if it
writes the same chats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ragtune.generator.gguf_tokenizer import begins_with_bos

_CONTEXT = 8192
_MARKS = {"system": "SYSTEMTEXT", "user": "USERTEXT", "assistant": "ASSISTANTTEXT"}
_Chat = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class TurnTemplate:
    """What stands before and behind a turn of each role, and what makes the assistant begin."""

    turns: dict[str, tuple[str, str]]
    answer: str

    def render(self, chat: _Chat) -> str:
        """A chat of (role, text), ending where the assistant is to begin."""
        return "".join(text.join(self.turns[role]) for role, text in chat) + self.answer

    def go(self) -> str:
        """The same in Go's template language, as Ollama's `TEMPLATE` wants it."""
        cases = [
            f'{{{{ {"else " if i else ""}if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{behind}'
            for i, (role, (before, behind)) in enumerate(self.turns.items())
        ]
        return "{{ range .Messages }}" + "".join(cases) + "{{ end }}{{ end }}" + self.answer


def turn_template(tokenizer: Any) -> TurnTemplate | None:
    """The tokenizer's chat template as a `TurnTemplate`; None when it does more than to wrap each turn."""
    system, user, answer = (_MARKS[role] for role in ("system", "user", "assistant"))
    try:
        first = _render(tokenizer, [("system", system)])
        second = _render(tokenizer, [("system", system), ("user", user)])
        third = _render(tokenizer, [("system", system), ("user", user), ("assistant", answer)])
        prompted = _render(tokenizer, [("system", system), ("user", user)], prompt=True)
        pieces = [first, second.removeprefix(first), third.removeprefix(second)]
        split = [tuple(piece.split(mark)) for piece, mark in zip(pieces, _MARKS.values(), strict=True)]
        if any(len(pair) != 2 for pair in split):
            return None
        turns = {role: (pair[0], pair[1]) for role, pair in zip(_MARKS, split, strict=True)}
        found = TurnTemplate(turns, prompted.removeprefix(second))
        same = all(found.render(chat) == _render(tokenizer, chat, prompt=True) for chat in _TRIED)
    except Exception:  # a template may raise what it likes, e.g. when it knows no system turn
        return None
    return found if same else None


_TRIED: tuple[_Chat, ...] = (
    (("system", "Be short."), ("user", "Who?")),
    (("system", " A\nB "), ("user", "One?"), ("assistant", "Two."), ("user", "Three?")),
)


def _render(tokenizer: Any, chat: _Chat, prompt: bool = False) -> str:
    messages = [{"role": role, "content": text} for role, text in chat]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    # Ollama puts the first token there itself, as the file says.
    return text.removeprefix(tokenizer.bos_token) if begins_with_bos(tokenizer) else text


def default_system(tokenizer: Any, template: TurnTemplate) -> str:
    """The system text that the tokenizer's template adds to a chat without one; empty when it adds none."""
    before, behind = template.turns["system"]
    rest = template.render([("user", "Who?")])
    whole = _render(tokenizer, [("user", "Who?")], prompt=True)
    added = whole.removesuffix(rest)
    return added.removeprefix(before).removesuffix(behind) if added.startswith(before) else ""


def modelfile(gguf_name: str, tokenizer: Any, context: int) -> str:
    """The Modelfile: greedy decoding without Ollama's penalty for repeating, and a context that holds the prompts."""
    lines = [f"FROM ./{gguf_name}"]
    template = turn_template(tokenizer)
    if template is None:
        lines.append("# No TEMPLATE: this chat template does more than to wrap turns. Ollama takes one that it knows.")
    else:
        lines.append(f'TEMPLATE """{template.go()}"""')
        if system := default_system(tokenizer, template):
            lines.append(f'SYSTEM """{system}"""')
    lines += [
        f'PARAMETER stop "{tokenizer.eos_token}"',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {min(context, _CONTEXT)}",
    ]
    return "\n".join(lines) + "\n"
