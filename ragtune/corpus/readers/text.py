"""Plain text, Markdown and source code."""

from __future__ import annotations

from collections.abc import Callable

from ragtune.corpus.readers.parsed import Parsed, fence
from ragtune.errors import InputError

WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")

LANGUAGES = {
    "bash": ".bash", "c": ".c .h", "cmake": ".cmake", "cpp": ".cc .cpp .cxx .hh .hpp", "csharp": ".cs",
    "css": ".css", "cuda": ".cu", "dart": ".dart", "elixir": ".ex .exs", "erlang": ".erl", "go": ".go",
    "graphql": ".graphql", "groovy": ".groovy", "haskell": ".hs", "ini": ".cfg .conf .ini", "java": ".java",
    "javascript": ".cjs .js .jsx .mjs", "julia": ".jl", "kotlin": ".kt .kts", "lua": ".lua", "perl": ".pl .pm",
    "php": ".php", "powershell": ".ps1", "protobuf": ".proto", "python": ".py .pyi", "r": ".r", "ruby": ".rb",
    "rust": ".rs", "scala": ".scala", "scss": ".scss", "sh": ".sh", "sql": ".sql", "swift": ".swift",
    "terraform": ".tf", "toml": ".toml", "typescript": ".ts .tsx", "vue": ".vue", "yaml": ".yaml .yml",
}  # fmt: skip
"""The name of a language in a code fence -> its suffixes."""


def read_text(data: bytes) -> Parsed:
    """UTF-8, UTF-16 with its byte order mark, or else the encoding that charset-normalizer finds (in the metadata).

    Raises: InputError for binary data and for text in no known encoding.
    """
    if data.startswith(WIDE_MARKS):
        return Parsed(data.decode("utf-16"), metadata={"encoding": "utf-16"})
    if b"\0" in data:
        raise InputError("binary (it holds NUL bytes)")
    try:
        return Parsed(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        matches = list(from_bytes(data))
    if not matches:
        raise InputError("not text in any known encoding")
    # In short texts several encodings look equally good; the detector orders those by name, which reads "£" as "Ł".
    equal = [m for m in matches if (m.chaos, m.coherence) == (matches[0].chaos, matches[0].coherence)]
    best = next((m for m in equal if m.encoding == "cp1252"), matches[0])
    return Parsed(str(best), metadata={"encoding": best.encoding})


def code_reader(language: str) -> Callable[[bytes], Parsed]:
    """A reader that puts a file between fences, so that its `#` lines are code and not headings."""

    def read_code(data: bytes) -> Parsed:
        parsed = read_text(data)
        code = parsed.text.strip("\r\n")
        return Parsed(fence(code, language) if code.strip() else "", metadata=parsed.metadata)

    return read_code
