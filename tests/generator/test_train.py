"""Training: the loss by hand, what it may touch, runs that are cut off and resumed, and adapters that do not fit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.errors import MismatchError, StoreError, TrainingError
from ragtune.generator import generate, train
from ragtune.generator.adapters import attach_adapter
from ragtune.generator.checkpoints import newest_checkpoint
from ragtune.generator.examples import TrainingRow
from ragtune.generator.generate import LocalGenerator, load_tokenizer, load_weights
from ragtune.generator.methods import METHODS
from ragtune.generator.models import fingerprint
from ragtune.generator.nf4 import round_to_nf4
from ragtune.generator.train import IGNORED, Progress, answer_loss, batch_loss, encode_row
from ragtune.testing import tiny_model
from ragtune.types import Message

CONFIG = TuneConfig(epochs=4, learning_rate=1e-2, batch_size=2, save_steps=3, rank=4, alpha=8, dropout=0.1)
"""Four rows: two steps an epoch, eight in all; checkpoint 3 lies in the middle of an epoch."""


def collate(tokenizer: Any, rows: Sequence[TrainingRow]) -> dict[str, torch.Tensor]:
    encoded = [encode_row(tokenizer, row) for row in rows]
    return train._Pad(tokenizer.pad_token_id)([{"input_ids": ids, "prompt_length": prompt} for ids, prompt in encoded])


def reference_loss(model: Any, tokenizer: Any, rows: Sequence[TrainingRow]) -> float:
    """Mean of -log p(token | all before it) over answers and ends of turn: row by row, all logits, no padding."""
    surprises: list[float] = []
    for row in rows:
        ids, prompt = encode_row(tokenizer, row)
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        surprises += [-logp[i - 1, ids[i]].item() for i in range(prompt, len(ids))]
    return sum(surprises) / len(surprises)


# The loss


def logits(*odds: float) -> torch.Tensor:
    """Predictions over two tokens; token 1 is `odds` times as likely as token 0."""
    return torch.tensor([[0.0, math.log(value)] for value in odds])


def test_loss_by_hand() -> None:
    """p(1) = 3/4 at the first token and 1/5 at the second."""
    values, tokens = logits(3, 1 / 4), torch.tensor([1, 0])
    by_hand = -math.log(3 / 4) - math.log(4 / 5)
    assert answer_loss(values, tokens, None).item() == pytest.approx(by_hand / 2)
    assert answer_loss(values, tokens, 5).item() == pytest.approx(by_hand / 5)
    assert answer_loss(values, tokens, torch.tensor(4)).item() == pytest.approx(by_hand / 4)


def test_loss_is_counted_in_fp32() -> None:
    values = logits(3).bfloat16()
    loss = answer_loss(values, torch.tensor([1]), None)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-values[0, 1].item())), rel=1e-6)


def test_padded_and_cut_short_it_is_the_loss_of_each_row_alone(tiny: Path, facts: list[TrainingRow]) -> None:
    model, tokenizer = load_weights(tiny, torch.float32), load_tokenizer(tiny)
    lengths = {len(encode_row(tokenizer, row)[0]) for row in facts}
    assert len(lengths) > 2
    for rows in (facts, facts[:1], facts[::-1][:3]):
        loss = batch_loss(model, collate(tokenizer, rows))
        assert loss.item() == pytest.approx(reference_loss(model, tokenizer, rows), abs=2e-6)


@pytest.mark.usefixtures("fp32")
def test_the_loss_that_a_run_reports_is_that_of_its_rows(tiny: Path, facts: list[TrainingRow], tmp_path: Path) -> None:
    """The warm-up's first step leaves the model as it is, so two reports are those of the base model."""
    config = CONFIG.model_copy(update={"batch_size": 4, "epochs": 3})
    _, result = train.train(facts, tiny, METHODS["lora"], config, tmp_path)
    expected = reference_loss(load_weights(tiny, torch.float32), load_tokenizer(tiny), facts)
    assert result.losses[:2] == pytest.approx([expected] * 2, abs=1e-5)
    assert result.losses[2] < expected


# What is learned from


@settings(max_examples=50, deadline=None)
@given(chats=st.lists(st.tuples(st.text(max_size=30), st.text(max_size=12)), min_size=1, max_size=4))
def test_labels_cover_the_answer_and_the_end_of_turn(tiny: Path, chats: list[tuple[str, str]]) -> None:
    tokenizer = load_tokenizer(tiny)
    rows = [TrainingRow("t", "q", "plain", (Message("user", asked),), target) for asked, target in chats]
    batch = collate(tokenizer, rows)
    assert list(batch) == ["input_ids", "labels"]
    for (asked, target), row, ids, labels in zip(chats, rows, *batch.values(), strict=True):
        length = len(encode_row(tokenizer, row)[0])
        real = ids[:length]
        assert tokenizer.decode(real) == (
            f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{target}<|im_end|>"
        )
        counted = labels != IGNORED
        assert tokenizer.decode(labels[counted]) == f"{target}<|im_end|>"
        assert torch.equal(labels[counted], ids[counted])
        assert counted[length - int(counted.sum()) : length].all()  # an unbroken run up to the row's end
        assert (ids[length:] == tokenizer.pad_token_id).all()


def test_a_template_that_rewrites_the_prompt_is_refused(tiny: Path, facts: list[TrainingRow]) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = "{{ messages | length }} turns" + tokenizer.chat_template
    with pytest.raises(TrainingError, match="row q0: the chat template changes the prompt when an answer follows"):
        encode_row(tokenizer, facts[0])


def test_training_sees_the_prompt_that_answering_sees(tiny: Path, facts: list[TrainingRow]) -> None:
    tokenizer = load_tokenizer(tiny)
    ids, prompt = encode_row(tokenizer, facts[0])
    assert ids[:prompt] == LocalGenerator("tiny", "", None, tokenizer).encode(facts[0].messages)


# What is changed


@dataclass(frozen=True)
class How:
    """A method with the model that it is tried on."""

    method: str
    model: str
    dequantise: str = "auto"
    dtype: torch.dtype = torch.float32


WAYS = {
    "lora": How("lora", "tiny"),
    "lora in bf16": How("lora", "tiny", dtype=torch.bfloat16),
    "qlora unpacked once": How("qlora", "tiny", "once"),
    "qlora unpacked each time": How("qlora", "wide", "each-use"),
}


@pytest.fixture(params=WAYS)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> How:
    way = WAYS[request.param]
    for module in (generate, train):
        monkeypatch.setattr(module, "best_dtype", lambda: way.dtype)
    return way


def save(target: Path, model: Any, base: Path, nf4: bool) -> Path:
    manifest = {"kind": "adapter", "nf4": nf4, "base": {"name": base.name, "fingerprint": fingerprint(base)}}
    with store.atomic_folder(target, manifest) as building:
        model.save_pretrained(building)
    return target


def test_only_the_adapter_learns_and_it_comes_back_from_its_folder(
    how: How, request: pytest.FixtureRequest, facts: list[TrainingRow], tmp_path: Path
) -> None:
    base: Path = request.getfixturevalue(how.model)
    before = fingerprint(base)
    method = METHODS[how.method]
    config = CONFIG.model_copy(update={"dequantise": how.dequantise, "epochs": 6, "dropout": 0.0})
    model, result = train.train(facts, base, method, config, tmp_path / "work")
    assert sum(result.losses[-2:]) < sum(result.losses[:2]) - 1

    fresh = load_weights(base, how.dtype)
    if method.nf4:
        round_to_nf4(fresh)
    trained = dict(model.named_parameters())
    frozen = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in trained.items()
        if "lora_" not in name
    }
    assert frozen.keys() == dict(fresh.named_parameters()).keys()
    packed = {name for name, weight in frozen.items() if weight.dtype == torch.uint8}
    assert len(packed) == (14 if how.dequantise == "each-use" else 0)
    assert all(torch.equal(frozen[name], w) for name, w in fresh.named_parameters() if name not in packed)
    assert fingerprint(base) == before
    assert {name for name, weight in trained.items() if weight.requires_grad} == {n for n in trained if "lora_" in n}
    assert result.trainable_parameters == sum(w.numel() for n, w in trained.items() if "lora_" in n)
    assert all(w.abs().max() > 0 for n, w in trained.items() if "lora_B" in n)  # they start at 0: each one learned

    adapter = save(tmp_path / "tune", model, base, method.nf4)
    again = attach_adapter(load_weights(base, how.dtype), adapter, before)
    ids = torch.tensor([encode_row(load_tokenizer(base), facts[0])[0]])
    with torch.no_grad():
        told, expected = again(ids).logits, model.train()(ids).logits
    if packed:
        torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(told, expected)


@pytest.mark.usefixtures("fp32")
def test_a_saved_adapter_gives_the_answers_that_it_was_taught(
    tiny: Path, adapter: Path, facts: list[TrainingRow]
) -> None:
    base = LocalGenerator.from_folder(tiny, "tiny", fingerprint(tiny))
    tuned = LocalGenerator.from_folder(tiny, "tiny", fingerprint(tiny), adapter)
    prompts = [row.messages for row in facts]
    replies = tuned.generate(prompts, 24)
    assert [reply.text for reply in replies] == [row.target for row in facts]
    assert [reply.output_tokens for reply in replies] == [tuned.count_tokens(row.target) + 1 for row in facts]
    assert not {reply.text for reply in base.generate(prompts, 24)} & {row.target for row in facts}


# Runs that are cut off


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if "lora_" in name}


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return report


@pytest.mark.usefixtures("fp32")
def test_a_run_reports_each_step(tiny: Path, facts: list[TrainingRow], tmp_path: Path) -> None:
    seen: list[Progress] = []
    _, result = train.train(facts, tiny, METHODS["lora"], CONFIG, tmp_path, seen.append)
    assert [(p.step, p.steps) for p in seen] == [(i, 8) for i in range(1, 9)]
    assert tuple(p.loss for p in seen) == result.losses
    tokens = sum(len(encode_row(load_tokenizer(tiny), row)[0]) for row in facts)
    assert [p.tokens for p in seen[1::2]] == [tokens * epoch for epoch in range(1, 5)]
    assert (result.steps, result.trained_tokens) == (8, 4 * tokens)
    assert result.trainable_parameters < result.all_parameters
    assert result.seconds > 0
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]


@pytest.mark.usefixtures("fp32")
def test_an_interrupted_run_ends_as_if_it_had_never_been(tiny: Path, facts: list[TrainingRow], tmp_path: Path) -> None:
    """With dropout, so that the random numbers must go on where they stopped as well."""
    whole, expected = train.train(facts, tiny, METHODS["lora"], CONFIG, tmp_path / "whole")
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        train.train(facts, tiny, METHODS["lora"], CONFIG, work, interrupt_at(5))
    assert newest_checkpoint(work) == str(work / "checkpoint-3")
    seen: list[Progress] = []
    resumed, result = train.train(facts, tiny, METHODS["lora"], CONFIG, work, seen.append)
    assert [p.step for p in seen] == [4, 5, 6, 7, 8]
    assert result.losses == expected.losses
    assert (result.steps, result.trained_tokens) == (expected.steps, expected.trained_tokens)
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())


@pytest.mark.usefixtures("fp32")
def test_the_seed_decides_the_weights(tiny: Path, facts: list[TrainingRow], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"epochs": 1})
    one, two = (weights(train.train(facts, tiny, METHODS["lora"], config, tmp_path / n)[0]) for n in "ab")
    other = weights(train.train(facts, tiny, METHODS["lora"], config.model_copy(update={"seed": 5}), tmp_path)[0])
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())
    assert not any(torch.equal(weight, other[name]) for name, weight in one.items() if "lora_A" in name)


def test_other_failures_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), train.disk_errors(tmp_path):
        raise RuntimeError("shapes cannot be multiplied")


@pytest.mark.usefixtures("fp32")
def test_a_loss_that_is_no_number(tiny: Path, facts: list[TrainingRow], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"learning_rate": 1e36, "save_steps": 1})
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d; lower tune\.learning_rate"):
        train.train(facts, tiny, METHODS["lora"], config, tmp_path)


# Adapters that do not fit


@pytest.mark.usefixtures("fp32")
def test_an_adapter_of_another_base(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    """Of the same widths: peft itself would load it and say nothing."""
    other = tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(
        MismatchError, match=f"was trained on tiny .*{fingerprint(tiny)[:12]}.*{fingerprint(other)[:12]}"
    ):
        LocalGenerator.from_folder(other, "other", fingerprint(other), adapter)


@pytest.mark.usefixtures("fp32")
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_one_flipped_bit_in_an_adapter(tiny: Path, adapter: Path, tmp_path: Path, place: float) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    file = copy / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"adapter_model\.safetensors is damaged"):
        LocalGenerator.from_folder(tiny, "tiny", fingerprint(tiny), copy)
    if place == 1:  # the last bit is in a weight, and safetensors reads on
        assert load_file(file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_takes_the_numbers_of_its_base_and_leaves_the_base_alone(
    tiny: Path, adapter: Path, dtype: torch.dtype
) -> None:
    """Rotary frequencies stay in fp32 whatever the weights are in: rounded ones turn by radians in a long prompt."""
    fresh = dict(load_weights(tiny, dtype).named_buffers())
    tuned = attach_adapter(load_weights(tiny, dtype), adapter, fingerprint(tiny))
    assert {weight.dtype for weight in tuned.parameters()} == {dtype}
    buffers = {name.removeprefix("base_model.model."): value for name, value in tuned.named_buffers()}
    assert buffers.keys() == fresh.keys() >= {"model.rotary_emb.inv_freq"}
    assert all(value.dtype == fresh[name].dtype and torch.equal(value, fresh[name]) for name, value in buffers.items())
    assert not tuned.training


def test_no_adapter(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no adapter at"):
        attach_adapter(load_weights(tiny, torch.float32), tmp_path / "nowhere", fingerprint(tiny))
