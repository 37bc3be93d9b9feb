"""Soft prompts: virtual tokens that all rows share as their beginning, in training and in answering alike.

peft makes the virtual tokens and keeps them in its format. How they are read is ours, since peft's own forward pass
repeats them for each row and knows nothing of a beginning that is kept once (`shared_prefix`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft import PeftModel, PeftType
from transformers import DynamicCache

from ragtune.errors import ConfigError
from ragtune.generator import shared_prefix


def check(model: Any) -> None:
    """Let a base model take a beginning that all rows share.

    Raises: ConfigError when its attention is not of the plain kind that this needs.
    """
    shared_prefix.enable(model)
    if not shared_prefix.is_enabled(model):
        raise ConfigError(
            f"soft prompts need attention that sees the whole past, through torch's kernel; this "
            f"{model.config.model_type} model's is of another kind ({model.config._attn_implementation}); use lora"
        )


def is_on(model: Any) -> bool:
    """True for a model with a soft prompt on top."""
    return isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning


def read_first(model: PeftModel) -> None:
    """Have a peft model read its virtual tokens as the beginning of every row."""
    model.forward = partial(_forward, model)


def length(model: PeftModel) -> int:
    """Virtual tokens before each row."""
    return int(model.active_peft_config.num_virtual_tokens)


def states(model: PeftModel) -> shared_prefix.States:
    """Keys and values of the virtual tokens for each layer, with gradients where they are trained.

    Prefix tuning and P-tuning v2 hold them (Li & Liang 2021, arXiv:2101.00190, section 4.2); prompt tuning and
    P-tuning hold embeddings, which the frozen model reads (Lester et al. 2021, arXiv:2104.08691, section 2).
    """
    virtual = model.get_prompt(batch_size=1)
    if _has_states(model):
        return [(layer.keys, layer.values) for layer in virtual.layers]
    base = model.get_base_model()
    return _read(base, inputs_embeds=virtual.to(base.dtype))


@torch.no_grad()
def start_from_tokens(model: PeftModel) -> None:
    """Let virtual tokens start as tokens drawn at random, by torch's generator: as their embeddings, keys and values.

    Better than noise by Lester et al. 2021, section 3.2, and Li & Liang 2021, section 7.4. A network that makes the
    virtual tokens gets, by least squares, the last layer that makes these.
    """
    base, encoder = model.get_base_model(), model.prompt_encoder["default"]
    tokens = torch.randint(base.config.vocab_size, (1, length(model))).to(base.device)
    if _has_states(model):
        read = torch.stack([part[0] for layer in _read(base, input_ids=tokens) for part in layer])
        wanted = read.permute(2, 0, 1, 3).flatten(1)  # (layers x 2, heads, tokens, size) -> a row for each token
    else:
        wanted = base.get_input_embeddings()(tokens)[0]
    network = getattr(encoder, "transform", None) or getattr(encoder, "mlp_head", None)
    if network is None:
        encoder.embedding.weight.copy_(wanted)
        return
    inner = network[:-1](encoder.embedding.weight)
    network[-1].weight.copy_((torch.linalg.pinv(inner) @ wanted.float()).t())
    network[-1].bias.zero_()


def _has_states(model: PeftModel) -> bool:
    return bool(model.active_peft_config.peft_type == PeftType.PREFIX_TUNING)


def _read(base: Any, **inputs: torch.Tensor) -> shared_prefix.States:
    cache, training = DynamicCache(config=base.config), base.training
    base.eval()  # with gradient checkpointing, a model in training keeps no states
    base.base_model(**inputs, past_key_values=cache, use_cache=True)
    base.train(training)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _forward(
    model: PeftModel, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **arguments: Any
) -> Any:
    """The base model's output for the rows' own positions; `position_ids` count from each row's own beginning."""
    base = model.get_base_model()
    if not shared_prefix.is_enabled(base):
        raise ValueError("the attention function was changed after the soft prompt was put on; it would not be seen")
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    at = position_ids + length(model)
    return base(input_ids=input_ids, position_ids=at, shared_prefix=states(model), **arguments)
