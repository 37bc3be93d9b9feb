"""How likely a generator finds answers that it is given, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ragtune.generator.generate import LocalGenerator
from ragtune.types import Message


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What a model thinks of an answer and of the end of turn behind it, in nats.

    `logprobs` holds each token's log-probability given what stands before it, `margins` by how much the likeliest
    token was likelier: 0 for what the model itself would write.
    """

    logprobs: tuple[float, ...]
    margins: tuple[float, ...]


@torch.inference_mode()
def likelihoods(
    generator: LocalGenerator, prompts: Sequence[Sequence[Message]], answers: Sequence[str]
) -> list[Likelihood]:
    """How likely each answer is after its prompt. One prompt at a time: nothing depends on what else is asked."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ending = [*generator.tokenizer(answer, add_special_tokens=False)["input_ids"], generator.tokenizer.eos_token_id]
        ids = torch.tensor([[*generator.encode(prompt), *ending]], device=generator.model.device)
        logits = generator.model(input_ids=ids, use_cache=False, logits_to_keep=len(ending) + 1).logits[0, :-1]
        logp = torch.log_softmax(logits.float(), -1)
        own = logp.gather(-1, torch.tensor(ending, device=logp.device)[:, None])[:, 0]
        found.append(Likelihood(tuple(own.tolist()), tuple((logp.amax(-1) - own).tolist())))
    return found
