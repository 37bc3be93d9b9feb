"""`python scripts/bench_answering.py` times how ragtune answers against plain `generate()` (about 10 minutes, 2 cores).

The same prompts, in one run: test questions of corpora/harbourline, as four arms without an adapter ask them, up to 24
of each task (the size of the first round of `ragtune evaluate`); `--quick` takes 6 (about 2 minutes).

- plain: `generate()` of transformers, 8 prompts at a time in file order, with the same limit of new tokens. Labels are
  generated like any other answer.
- ragtune: `Assistant.reply`, through which `ask` and `evaluate` answer. Batches are sorted by length and filled up to a
  number of tokens, the beginning that prompts share is computed once, labels are scored in one pass.
- `--peer [FOLDER]`: OpenVINO GenAI with continuous batching and prefix caching; see scripts/peer_openvino.py.

Answering alone is timed, from messages to texts (the peer: from token ids), after a warm-up. Plain and ragtune go first
in turn. The last line, also written with `--json FILE`, is one JSON object:

- `speedup_vs_generate`, `speedup_vs_openvino`: their seconds by ragtune's; null for a peer that was not asked.
- `speedup_with_free_text`: the first one, where ragtune also writes the answers to label tasks freely, as `evaluate`
  does to count format failures.
- `identical`: share of the answers that are the same in plain and ragtune in fp32, on up to 4 questions a group.
- `agreement_bf16`, `score_difference_bf16`: the same share in bf16, and ragtune's mean score minus plain's, on all
  questions; null where the machine has no fast bf16 and fp32 was timed. Like `identical` without label tasks, which
  ragtune answers in another way.
- `questions`: answers on each side. `tokens`: of their prompts and of ragtune's answers. `groups`: figures by task and
  arm. `openvino`: the peer's version, settings, agreement with ragtune. `threads`, `dtype`, `torch`, `transformers`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar, cast

import peer_openvino
import torch
import transformers

import ragtune
from ragtune.assistant import Assistant
from ragtune.evaluator.score import score_answer
from ragtune.generator.generate import LocalGenerator, load_tokenizer, load_weights
from ragtune.generator.machine import device
from ragtune.measure import sample
from ragtune.session import Session
from ragtune.types import Hit, Message, Question, Reply

CORPUS = Path(__file__).resolve().parents[1] / "corpora" / "harbourline"
ARMS = ("prompt", "few-shot", "retrieve", "retrieve+few-shot")
PLAIN_BATCH = 8
EXACT_QUESTIONS = 4

Prompt = tuple[Message, ...]
Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Group:
    """What one arm asks on one task: its questions in file order, with their prompts and the passages in these."""

    assistant: Assistant
    questions: tuple[Question, ...]
    prompts: tuple[Prompt, ...]
    hits: tuple[tuple[Hit, ...], ...]

    @property
    def generated(self) -> bool:
        """False for a label task, whose answers ragtune picks instead of writing them."""
        return self.assistant.task.format != "label"

    def score(self, texts: Sequence[str]) -> float:
        """The mean score of these answers."""
        answers = (
            self.assistant.read(question.text, hits, Reply(text, 0, 0, 0.0))
            for question, hits, text in zip(self.questions, self.hits, texts, strict=True)
        )
        rows = (score_answer(q, self.assistant.task, a) for q, a in zip(self.questions, answers, strict=True))
        return fmean(row.score for row in rows if row.score is not None)


@dataclass(frozen=True, slots=True)
class Plain:
    """Plain `generate()` of transformers."""

    model: Any
    tokenizer: Any

    @classmethod
    def from_folder(cls, folder: Path, dtype: torch.dtype) -> Plain:
        """Load the model as its documentation says."""
        tokenizer = load_tokenizer(folder)
        tokenizer.padding_side = "left"
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return cls(model.to(device()).eval(), tokenizer)

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """Greedy answers, in batches of `PLAIN_BATCH` in the given order."""
        texts: list[str] = []
        for start in range(0, len(prompts), PLAIN_BATCH):
            chats = [[asdict(m) for m in prompt] for prompt in prompts[start : start + PLAIN_BATCH]]
            inputs = self.tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
            ).to(self.model.device)
            limits = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": self.tokenizer.pad_token_id}
            output = self.model.generate(**inputs, **limits)
            answers = output[:, inputs["input_ids"].shape[1] :]
            texts += [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]
        return texts


@dataclass(frozen=True, slots=True)
class Timed:
    """One group answered by both. Seconds are wall time; `free_text` is for writing what was picked, too."""

    group: Group
    plain: list[str]
    replies: list[Reply]
    plain_seconds: float
    seconds: float
    free_text_seconds: float

    @property
    def texts(self) -> list[str]:
        """Ragtune's answers."""
        return [reply.text for reply in self.replies]

    def figures(self) -> dict[str, Any]:
        """The line of this group in `groups`."""
        return {
            "task": self.group.assistant.task.name,
            "arm": self.group.assistant.arm.name,
            "questions": len(self.replies),
            "prompt_tokens": sum(reply.prompt_tokens for reply in self.replies),
            "output_tokens": sum(reply.output_tokens for reply in self.replies),
            "plain_seconds": self.plain_seconds,
            "seconds": self.seconds,
            "agreement": share_equal(zip(self.plain, self.texts, strict=True)),
            "plain_score": self.group.score(self.plain),
            "score": self.group.score(self.texts),
        }


@contextlib.contextmanager
def opened(corpus: Path) -> Iterator[Session]:
    """A session on the corpus, with an index in a temporary working folder."""
    project = ragtune.load_config(corpus)
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        ragtune.index(project)
        yield Session(project)


def workload(session: Session, most: int) -> list[Group]:
    """Task by task and arm by arm, up to `most` test questions of each task, the same for all arms."""
    groups = []
    for task in session.located_tasks:
        questions = sample(task.split("test"), most, session.project.evaluate.seed)
        found = session.retriever.search([question.text for question in questions])
        for arm in ARMS:
            assistant, _ = session.choose("", arm, task.name)
            ready = [assistant.prepare(q.text, hits) for q, hits in zip(questions, found, strict=True)]
            groups.append(Group(assistant, questions, tuple(p for p, _ in ready), tuple(h for _, h in ready)))
    return groups


def timed(work: Callable[[], Done]) -> tuple[Done, float]:
    """What some work gives, and its wall seconds."""
    started = time.perf_counter()
    done = work()
    return done, time.perf_counter() - started


def measure(group: Group, plain: Plain, plain_first: bool) -> Timed:
    """Let both answer a group."""
    assistant, most = group.assistant, group.assistant.task.max_answer_tokens
    if plain_first:
        texts, plain_seconds = timed(lambda: plain.answer(group.prompts, most))
        replies, seconds = timed(lambda: assistant.reply(group.prompts))
    else:
        replies, seconds = timed(lambda: assistant.reply(group.prompts))
        texts, plain_seconds = timed(lambda: plain.answer(group.prompts, most))
    free = 0.0 if group.generated else timed(lambda: assistant.generator.generate(group.prompts, most))[1]
    return Timed(group, texts, replies, plain_seconds, seconds, free)


def measure_all(groups: Sequence[Group], plain: Plain) -> list[Timed]:
    """Warm up on the first group, then let both answer all groups; a printed line each."""
    measure(replace(groups[0], prompts=groups[0].prompts[:2]), plain, plain_first=True)
    results = []
    for place, group in enumerate(groups):
        results.append(measure(group, plain, plain_first=place % 2 == 0))
        line = "{task} {arm}: plain {plain_seconds:.1f} s, ragtune {seconds:.1f} s, same answers {agreement:.0%}"
        print(line.format_map(results[-1].figures()), flush=True)
    return results


def share_equal(pairs: Iterable[tuple[str, str]]) -> float:
    """Share of the pairs that are the same string."""
    return fmean(a == b for a, b in pairs)


def identical_in_fp32(groups: Sequence[Group], folder: Path) -> float:
    """Share of generated answers that are the same in plain and ragtune when both compute in fp32."""
    plain, weights = Plain.from_folder(folder, torch.float32), load_weights(folder, torch.float32)
    pairs: list[tuple[str, str]] = []
    for group in groups:
        if group.generated:
            prompts, most = group.prompts[:EXACT_QUESTIONS], group.assistant.task.max_answer_tokens
            generator = replace(cast(LocalGenerator, group.assistant.generator), model=weights)
            texts = [reply.text for reply in generator.generate(prompts, most)]
            pairs += zip(plain.answer(prompts, most), texts, strict=True)
    return share_equal(pairs)


def ask_peer(folder: Path, model: Path, results: Sequence[Timed]) -> dict[str, Any]:
    """The peer's seconds, version and settings, and how its generated answers compare with ragtune's."""
    generator = cast(LocalGenerator, results[0].group.assistant.generator)
    requests = [
        peer_openvino.Request(
            task=result.group.assistant.task.name,
            group=f"{result.group.assistant.task.name}/{result.group.assistant.arm.name}",
            ids=generator.encode(prompt),
            max_new_tokens=result.group.assistant.task.max_answer_tokens,
            end=generator.tokenizer.eos_token_id,
        )
        for result in results
        for prompt in result.group.prompts
    ]
    precision = "bf16" if generator.dtype == "bfloat16" else "f32"
    facts = peer_openvino.ask(folder, model, requests, torch.get_num_threads(), precision)
    texts = iter(facts.pop("answers"))
    answered = [(result, [next(texts) for _ in result.texts]) for result in results]
    written = [(result, answers) for result, answers in answered if result.group.generated]
    return facts | {
        "agreement": share_equal(pair for r, answers in written for pair in zip(answers, r.texts, strict=True)),
        "score_difference": mean_difference((r.group, answers, r.texts) for r, answers in written),
    }


def mean_difference(sides: Iterable[tuple[Group, Sequence[str], Sequence[str]]]) -> float:
    """Mean over all questions of the score of the second answers minus that of the first."""
    rows = [(len(g.questions), g.score(second) - g.score(first)) for g, first, second in sides]
    return sum(n * difference for n, difference in rows) / sum(n for n, _ in rows)


def summarise(results: Sequence[Timed]) -> dict[str, Any]:
    """The figures of the timed part, as named above."""
    written = [result for result in results if result.group.generated]
    plain, seconds = sum(r.plain_seconds for r in results), sum(r.seconds for r in results)
    bf16 = cast(LocalGenerator, results[0].group.assistant.generator).dtype == "bfloat16"
    agreement = share_equal(pair for r in written for pair in zip(r.plain, r.texts, strict=True))
    difference = mean_difference((r.group, r.plain, r.texts) for r in written)
    return {
        "speedup_vs_generate": plain / seconds,
        "speedup_with_free_text": plain / (seconds + sum(r.free_text_seconds for r in results)),
        "agreement_bf16": agreement if bf16 else None,
        "score_difference_bf16": difference if bf16 else None,
        "questions": sum(len(r.replies) for r in results),
        "tokens": sum(reply.prompt_tokens + reply.output_tokens for r in results for reply in r.replies),
        "groups": [r.figures() for r in results],
    }


def run(corpus: Path, most: int, peer: Path | None) -> dict[str, Any]:
    """All figures, as named above."""
    with opened(corpus) as session:
        groups, (folder, _) = workload(session, most), session.base
        generator = cast(LocalGenerator, groups[0].assistant.generator)
        results = measure_all(groups, Plain.from_folder(folder, generator.model.dtype))
        found = ask_peer(peer, folder, results) if peer else None
        ours = sum(result.seconds for result in results)
        return summarise(results) | {
            "speedup_vs_openvino": found["seconds"] / ours if found else None,
            "identical": identical_in_fp32(groups, folder),
            "openvino": found,
            "threads": torch.get_num_threads(),
            "dtype": generator.dtype,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 questions of each task instead of 24")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    place = Path.home() / ".cache" / "ragtune" / "peers" / "openvino"
    parser.add_argument("--peer", type=Path, nargs="?", const=place, help=f"ask OpenVINO GenAI, kept in {place}")
    arguments = parser.parse_args()
    peer = arguments.peer and arguments.peer.resolve()
    figures = json.dumps(run(CORPUS, 6 if arguments.quick else 24, peer))
    if arguments.json:
        arguments.json.write_text(figures + "\n", encoding="utf-8")
    print(figures)


if __name__ == "__main__":
    main()
