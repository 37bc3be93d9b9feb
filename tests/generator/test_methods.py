"""The registry of methods, each method at work on a tiny model, and NF4 against its definition and bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.errors import ConfigError, MismatchError, StoreError
from ragtune.generator import generate, models
from ragtune.generator.adapters import TRAINED, attach_adapter, put_on, save, trainable
from ragtune.generator.generate import LocalGenerator, load_tokenizer, load_weights
from ragtune.generator.methods import METHODS, choose_method
from ragtune.generator.models import fingerprint
from ragtune.generator.nf4 import keep_in_nf4, keeps_packed, round_to_nf4
from ragtune.generator.quiet import calm_libraries
from ragtune.types import Message

# Dettmers et al. 2023 (arXiv 2305.14314), appendix E, to seven digits.
NEGATIVE = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500)
POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
NF4 = (*NEGATIVE, 0.0, *POSITIVE)


def matrices(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


@pytest.fixture
def base(tiny: Path) -> Any:
    return load_weights(tiny, torch.float32)


def stack() -> Any:
    """Two decoder matrices, one with a bias, as Qwen's have."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(128, 192), torch.nn.Tanh(), torch.nn.Linear(192, 96, bias=False))


# The registry


def test_unknown_method() -> None:
    with pytest.raises(ConfigError, match="unknown method 'lorra'; expected auto or one of: full, lora, rslora, dora"):
        choose_method("lorra")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_by_name(name: str) -> None:
    assert choose_method(name) == (METHODS[name], f"{name}: as asked")


@pytest.mark.parametrize(("gpu", "expected", "packed"), [(False, "lora", False), (True, "qlora", True)])
def test_auto_says_what_it_chose_and_why(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, expected: str, packed: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    method, why = choose_method("auto")
    assert (method.name, why.partition(":")[0]) == (expected, expected)
    assert keeps_packed(TuneConfig()) is packed
    assert keeps_packed(TuneConfig(dequantise="each-use"))
    assert not keeps_packed(TuneConfig(dequantise="once"))


def test_the_documented_table_is_the_registry() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "tuning.md").read_text(encoding="utf-8").splitlines()
    rows = [
        f"| `{m.name}` | {m.summary} | {m.trains} | {m.learning_rate:g} | {m.good_for} | {m.paper} |"
        for m in METHODS.values()
    ]
    first = page.index(rows[0])
    assert page[first : first + len(rows)] == rows


# Each method at work

R, WIDTH, VIRTUAL = 4, 6, 5
CONFIG = TuneConfig(rank=R, alpha=8, bottleneck=WIDTH, virtual_tokens=VIRTUAL, dequantise="once")
IDS = torch.randint(3, 250, (3, 17), generator=torch.Generator().manual_seed(1))
PROMPT = (Message("system", "Answer briefly."), Message("user", "Who may bring a boat?"))

# The tiny model: 2 layers, width 32, MLP 64, 4 heads of 8 and 2 key heads. Inputs and outputs of q, k, v, o, gate, up
# and down; the sum over both sides is what LoRA trains for each rank.
MATRICES = ((32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32))
LORA = 2 * R * sum(inputs + outputs for inputs, outputs in MATRICES)
OUTPUTS = 2 * sum(outputs for _, outputs in MATRICES)
BOTTLENECK = 2 * 32 * WIDTH + WIDTH + 32
STATES = 2 * 2 * 16  # keys and values of 2 layers, 16 wide
VOCABULARY = 384


def trained_by_hand(vocabulary: int) -> dict[str, int]:
    """How many parameters each method trains on the tiny model."""
    return {
        "full": vocabulary * 32 + 2 * (sum(i * o for i, o in MATRICES) + 2 * 32) + 32,
        "lora": LORA,
        "rslora": LORA,
        "dora": LORA + OUTPUTS,
        "pissa": LORA,
        "qlora": LORA,
        "adapter-houlsby": 2 * 2 * BOTTLENECK,
        "adapter-pfeiffer": 2 * BOTTLENECK,
        "prefix": VIRTUAL * 16 + (16 * 16 + 16) + (16 * STATES + STATES),
        "prompt": VIRTUAL * 32,
        "p-tuning": VIRTUAL * 32 + 3 * (32 * 32 + 32),
        "p-tuning-v2": VIRTUAL * STATES,
        "bitfit": OUTPUTS,
        "lora-bias": LORA + OUTPUTS,
        "ia3": 2 * (16 + 16 + 64),
        "ln": (2 * 2 + 1) * 32,
    }


@dataclass(frozen=True)
class Tuned:
    """A method after a few steps on one batch: the model, what it started as, and its adapter's folder."""

    name: str
    base: Path
    dtype: torch.dtype
    model: Any
    before: dict[str, torch.Tensor]
    losses: list[float]
    adapter: Path

    def again(self) -> Any:
        """The base model with what was saved."""
        return attach_adapter(load_weights(self.base, self.dtype), self.adapter, fingerprint(self.base))


def loss_of(model: Any) -> torch.Tensor:
    logits = model(input_ids=IDS, use_cache=False).logits.float()
    return cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def steps(model: Any, learning_rate: float, count: int) -> list[float]:
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=learning_rate, weight_decay=0.0)
    losses = []
    for _ in range(count):
        loss = loss_of(model.train())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def write(folder: Path, base: Path, model: Any, name: str) -> Path:
    """An adapter folder, as `tune` writes it."""
    manifest = {"kind": "adapter", "nf4": METHODS[name].nf4, "base": {"name": "x", "fingerprint": fingerprint(base)}}
    with store.atomic_folder(folder, manifest) as building:
        save(model, METHODS[name], building)
    return folder


@pytest.fixture(scope="module")
def biased(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a bias in every linear layer, none of them 0."""
    folder = tmp_path_factory.mktemp("models") / "biased"
    with torch.random.fork_rng(devices=[]), calm_libraries():
        torch.manual_seed(0)
        model = LlamaForCausalLM(AutoConfig.from_pretrained(tiny, attention_bias=True, mlp_bias=True))
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(value, std=0.2)
        model.save_pretrained(folder)
        load_tokenizer(tiny).save_pretrained(folder)
    return folder


@pytest.fixture(
    scope="module", params=[(name, dtype) for dtype in ("float32", "bfloat16") for name in METHODS], ids="-".join
)
def tuned(
    request: pytest.FixtureRequest, tiny: Path, biased: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tuned]:
    name, dtype = request.param[0], getattr(torch, request.param[1])
    base = biased if name in ("bitfit", "lora-bias") else tiny
    model = load_weights(base, dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model = put_on(model, METHODS[name], CONFIG)
    losses = steps(model, 3 * METHODS[name].learning_rate, 8)
    adapter = write(tmp_path_factory.mktemp("tuned") / "tune", base, model, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "best_dtype", lambda: dtype)
        yield Tuned(name, base, dtype, model, before, losses, adapter)


def test_the_loss_falls(tuned: Tuned) -> None:
    assert min(tuned.losses[-2:]) < tuned.losses[0] - 0.01


def test_as_many_parameters_are_trained_as_by_hand(tuned: Tuned) -> None:
    vocabulary = tuned.before["model.embed_tokens.weight"].shape[0]
    count = sum(value.numel() for value in trainable(tuned.model).values())
    assert count == trained_by_hand(vocabulary)[tuned.name]


def test_the_base_weights_stay_as_they_are(tuned: Tuned) -> None:
    """But for the methods that train them; qlora's are those rounded to NF4."""
    before = dict(tuned.before)
    if tuned.name == "qlora":
        rounded = load_weights(tuned.base, tuned.dtype)
        round_to_nf4(rounded)
        before = rounded.state_dict()
    base = tuned.model.get_base_model() if isinstance(tuned.model, PeftModel) else tuned.model
    now = {key.replace(".base_layer", ""): value for key, value in base.state_dict().items()}
    trains_biases = tuned.name in ("bitfit", "lora-bias")
    frozen = [key for key in before if not (trains_biases and key.endswith("bias"))]
    unchanged = [key for key in frozen if key in now and torch.equal(now[key], before[key])]
    assert unchanged == ([] if tuned.name == "full" else frozen)
    on_disk = load_weights(tuned.base, tuned.dtype).state_dict()
    assert all(torch.equal(on_disk[key], value) for key, value in tuned.before.items())


def test_what_is_saved_and_loaded_answers_the_same(tuned: Tuned) -> None:
    again = tuned.again()
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, tuned.model(input_ids=IDS).logits)
    assert not again.training
    assert trainable(again) == {}
    generator = LocalGenerator.from_folder(tuned.base, "tiny", fingerprint(tuned.base), tuned.adapter)
    plain = LocalGenerator.from_folder(tuned.base, "tiny", fingerprint(tuned.base))
    read, bare = (g._read(IDS.tolist(), g.beginning).logits for g in (generator, plain))
    with torch.inference_mode():
        expected = tuned.model(input_ids=IDS).logits[:, -1]
    torch.testing.assert_close(read, expected, atol=1e-4 if tuned.dtype == torch.float32 else 0.1, rtol=0)
    assert not torch.equal(read, bare)
    assert generator.generate([PROMPT], 6) and generator.fingerprint != plain.fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.family != "soft prompt" and not m.nf4])
def test_training_starts_from_the_base_model(tiny: Path, biased: Path, name: str, dtype: torch.dtype) -> None:
    """But for soft prompts, which are read before every row, and NF4."""
    base = biased if name in ("bitfit", "lora-bias") else tiny
    fresh = put_on(load_weights(base, dtype), METHODS[name], CONFIG)
    with torch.no_grad():
        expected = load_weights(base, dtype)(input_ids=IDS).logits
        torch.testing.assert_close(fresh(input_ids=IDS).logits, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["full", "bitfit", "ia3", "ln", "dora", "pissa", "lora-bias"])
def test_small_steps_add_up_where_bf16_would_lose_them(biased: Path, name: str) -> None:
    """Half of bf16's smallest step at a weight's size, ten times, is five of them; in bf16 it would be none."""
    model = put_on(load_weights(biased, torch.bfloat16), METHODS[name], CONFIG)
    wanted = {key: value for key, value in trainable(model).items() if name != "lora-bias" or key.endswith("bias")}
    for value in wanted.values():
        before = value.detach().clone()
        step = torch.finfo(torch.bfloat16).eps / 2.5 * before.abs()
        with torch.no_grad():
            for _ in range(10):
                value.add_(step)
        torch.testing.assert_close(value, before + 10 * step)
    with torch.no_grad():
        assert model(input_ids=IDS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("tuned", [("dora", "float32"), ("full", "float32"), ("prompt", "float32")], indirect=True)
def test_a_damaged_or_foreign_adapter_is_refused(tuned: Tuned) -> None:
    with pytest.raises(MismatchError, match="tune again or use that base"):
        attach_adapter(load_weights(tuned.base, tuned.dtype), tuned.adapter, "0" * 64)
    (weights,) = tuned.adapter.glob("*.safetensors")
    sound = weights.read_bytes()
    try:
        weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        with pytest.raises(StoreError, match=weights.name):
            tuned.again()
    finally:
        weights.write_bytes(sound)


# What single methods do


def test_settings_reach_peft(tiny: Path) -> None:
    config = TuneConfig(rank=3, alpha=5, dropout=0.25, target_modules=("q_proj", "down_proj"))
    made = put_on(load_weights(tiny, torch.float32), METHODS["lora"], config)
    settings = made.peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (3, 5, 0.25)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trainable(made)} == {"q_proj", "down_proj"}


def test_rslora_is_scaled_by_the_root_of_its_rank(tiny: Path) -> None:
    """alpha / sqrt(rank) = 8 / 2, where LoRA's is 8 / 4."""
    for name, expected in (("rslora", 4.0), ("lora", 2.0)):
        model = put_on(load_weights(tiny, torch.float32), METHODS[name], CONFIG)
        assert {layer.scaling["default"] for layer in lora_layers(model)} == {expected}


def pefts_own(folder: Path, **settings: Any) -> Any:
    """The method as peft has it, with its own layers."""
    config = LoraConfig(r=R, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    with calm_libraries():
        return get_peft_model(load_weights(folder, torch.float32), config)


@pytest.mark.parametrize("base", ["tiny", "biased"])
def test_dora_is_pefts_dora(base: str, request: pytest.FixtureRequest) -> None:
    """Output and gradients, with the same random A, B and magnitudes."""
    folder = request.getfixturevalue(base)
    mine = put_on(load_weights(folder, torch.float32), METHODS["dora"], CONFIG)
    theirs = pefts_own(folder, use_dora=True)
    torch.manual_seed(3)
    for (name, a), (other, b) in zip(trainable(mine).items(), trainable(theirs).items(), strict=True):
        assert name == other
        with torch.no_grad():
            b.copy_(a.copy_(a * (1 + torch.rand_like(a)) + torch.randn_like(a) / 10))
    losses = [loss_of(model) for model in (mine, theirs)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
    gradients = [
        torch.autograd.grad(x, list(trainable(m).values())) for x, m in zip(losses, (mine, theirs), strict=True)
    ]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_pissa_starts_from_the_largest_singular_vectors(tiny: Path) -> None:
    """What is left of W has the length of its other singular values (Eckart & Young 1936)."""
    for layer in lora_layers(put_on(load_weights(tiny, torch.float32), METHODS["pissa"], CONFIG)):
        weight = layer.get_base_layer().weight.detach()
        left = weight - layer.scaling["default"] * principal(layer)
        assert left.norm().item() == pytest.approx(torch.linalg.svdvals(weight)[R:].norm().item(), rel=1e-3)
        a, b = layer.lora_A["default"].weight[:R], layer.lora_B["default"].weight[:, :R]
        torch.testing.assert_close(a @ a.t(), b.t() @ b, atol=1e-4, rtol=1e-4)  # S / s on both sides


def test_pissa_learns_as_lora_beside_what_is_left(tiny: Path) -> None:
    """W + B A - B0 A0 against peft's B A beside W - B0 A0 (Meng et al. 2024, section 3), step by step."""
    mine, theirs = put_on(load_weights(tiny, torch.float32), METHODS["pissa"], CONFIG), pefts_own(tiny)
    for here, there in zip(lora_layers(mine), lora_layers(theirs), strict=True):
        with torch.no_grad():
            there.lora_A["default"].weight.copy_(here.lora_A["default"].weight[:R])
            there.lora_B["default"].weight.copy_(here.lora_B["default"].weight[:, :R])
            there.get_base_layer().weight.sub_(here.scaling["default"] * principal(here))
    assert steps(mine, 1e-3, 6) == pytest.approx(steps(theirs, 1e-3, 6), abs=1e-4)


@pytest.mark.parametrize("name", ["dora", "pissa"])
def test_matrices_that_are_stored_the_other_way_round(name: str) -> None:
    """GPT-2's layers keep (inputs, outputs)."""
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=300)
    with calm_libraries():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            expected = model(input_ids=IDS).logits
            found = put_on(model, METHODS[name], CONFIG)(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def lora_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def principal(layer: Any) -> torch.Tensor:
    """B0 A0: what the frozen half of a PiSSA layer takes away."""
    return -(layer.lora_B["default"].weight[:, R:] @ layer.lora_A["default"].weight[R:]).detach()


def test_a_pissa_adapter_is_a_lora_that_peft_alone_can_use(tiny: Path, tmp_path: Path) -> None:
    model = put_on(load_weights(tiny, torch.float32), METHODS["pissa"], CONFIG)
    steps(model, 1e-3, 2)
    adapter = write(tmp_path / "tune", tiny, model, "pissa")
    with calm_libraries():
        alone = PeftModel.from_pretrained(load_weights(tiny, torch.float32), str(adapter))
    assert alone.peft_config["default"].r == 2 * R
    with torch.no_grad():
        torch.testing.assert_close(alone(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)


def test_tied_embeddings_stay_tied_in_full_tuning(tiny: Path, tmp_path: Path) -> None:
    model = put_on(load_weights(tiny, torch.bfloat16), METHODS["full"], CONFIG)
    steps(model, 1e-3, 2)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert "lm_head.weight" not in trainable(model)
    again = attach_adapter(
        load_weights(tiny, torch.bfloat16), write(tmp_path / "tune", tiny, model, "full"), fingerprint(tiny)
    )
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()


def test_one_seed_gives_one_start(tiny: Path) -> None:
    for name in ("lora", "adapter-houlsby", "prompt"):
        starts = [
            torch.cat(
                [v.flatten() for v in trainable(put_on(load_weights(tiny, torch.float32), METHODS[name], c)).values()]
            )
            for c in (CONFIG, CONFIG, CONFIG.model_copy(update={"seed": 5}))
        ]
        assert torch.equal(starts[0], starts[1])
        assert not torch.equal(starts[0], starts[2])


# What does not fit


@pytest.mark.parametrize(("name", "instead"), [("bitfit", "ia3, ln or lora"), ("lora-bias", "lora")])
def test_biases_of_a_model_without_any(tiny: Path, name: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} trains biases, and this llama model has none; use {instead}"):
        put_on(load_weights(tiny, torch.float32), METHODS[name], CONFIG)


@pytest.mark.parametrize("name", ["lora", "pissa", "qlora"])
def test_target_modules_that_are_not_there(tiny: Path, name: str) -> None:
    config = CONFIG.model_copy(update={"target_modules": ("q_proj", "c_attn")})
    message = "names c_attn, which this llama model has not; its linear layers are: down_proj, gate_proj, k_proj"
    with pytest.raises(ConfigError, match=message):
        put_on(load_weights(tiny, torch.float32), METHODS[name], config)


def test_a_rank_above_a_matrix_has_no_singular_vectors_to_start_from(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"rank 17 is more than pissa can take from a matrix of \(16, 32\)"):
        put_on(load_weights(tiny, torch.float32), METHODS["pissa"], TuneConfig(rank=17))


def test_ia3_scales_keys_values_and_inner_activations(tiny: Path) -> None:
    model = put_on(load_weights(tiny, torch.float32), METHODS["ia3"], CONFIG)
    shapes = {name.split(".ia3_l")[0].rpartition(".")[2]: tuple(v.shape) for name, v in trainable(model).items()}
    assert shapes == {"k_proj": (16, 1), "v_proj": (16, 1), "down_proj": (1, 64)}


def test_ia3_on_an_architecture_that_peft_does_not_know() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Starcoder2ForCausalLM(Starcoder2Config(**sizes, num_key_value_heads=2, vocab_size=30))
    with pytest.raises(ConfigError, match=r"IA3 does not fit this starcoder2 model: .*target_modules.*; use lora"):
        put_on(model, METHODS["ia3"], CONFIG)


def test_weights_of_another_shape_are_refused(tiny: Path, tmp_path: Path) -> None:
    """A folder that was made by hand: its manifest's hashes are right."""
    for key in ("model.norm.weight", "model.nowhere.weight"):
        manifest = {"kind": "adapter", "nf4": False, "base": {"name": "x", "fingerprint": fingerprint(tiny)}}
        with store.atomic_folder(tmp_path / key, manifest) as building:
            save_file({key: torch.ones(5)}, building / TRAINED, metadata={"format": "pt", "method": "full"})
        with pytest.raises(StoreError, match=rf"the base model has no {key} of shape \(5,\); tune again"):
            attach_adapter(load_weights(tiny, torch.float32), tmp_path / key, fingerprint(tiny))


# The real model


@pytest.mark.models
@pytest.mark.parametrize("name", ["pissa", "adapter-pfeiffer", "p-tuning-v2", "ln"])
def test_the_real_model_learns_and_answers_the_same_when_loaded(name: str, tmp_path: Path) -> None:
    base = models.resolve(models.DEFAULT_GENERATOR)
    model = put_on(load_weights(base, torch.bfloat16), METHODS[name], TuneConfig())
    losses = steps(model, METHODS[name].learning_rate, 4)
    assert losses[-1] < losses[0]
    adapter = write(tmp_path / "tune", base, model, name)
    again = attach_adapter(load_weights(base, torch.bfloat16), adapter, fingerprint(base))
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


# NF4


def test_every_rounded_weight_is_the_nearest_of_16_values_times_its_blocks_scale(base: Any) -> None:
    """The scale is the block's largest weight, itself rounded to 8 bits (double quantisation, section 3).

    Those 8 bits lie on a scale over all blocks of the matrix, so their error is a share of the scales' spread.
    """
    before = {name: weight.clone() for name, weight in matrices(base).items()}
    round_to_nf4(base)
    codes = torch.tensor(NF4)
    for name, after in matrices(base).items():
        old, new = before[name].reshape(-1, 64), after.reshape(-1, 64)
        true_scale, scale = old.abs().amax(1, keepdim=True), new.abs().amax(1, keepdim=True)
        spread = (true_scale - true_scale.mean()).abs().max()
        assert (scale - true_scale).abs().max() <= 0.05 * spread
        distance, index = (new / scale)[..., None].sub(codes).abs().min(-1)
        assert distance.max() < 1e-6
        error = (old / true_scale - codes[index]).abs()
        nearest = (old / true_scale)[..., None].sub(codes).abs().amin(-1)
        torch.testing.assert_close(error, nearest, rtol=0, atol=1e-6)
        assert set(index.flatten().tolist()) == set(range(16))


def test_rounding_is_bitsandbytes_own(base: Any) -> None:
    """Of matrices that are a multiple of 64 wide; others it dequantises with the scales of other blocks on a CPU."""
    before = {name: weight.clone() for name, weight in matrices(base).items()}
    round_to_nf4(base)
    assert len(before) == 14
    for name, weight in matrices(base).items():
        wide = before[name].reshape(-1, 64)
        packed, state = quantize_4bit(wide, quant_type="nf4", compress_statistics=True)
        assert torch.equal(weight.reshape(-1, 64), dequantize_4bit(packed, state)), name
        assert not torch.equal(weight, before[name])


def test_the_4_bit_layer_multiplies_by_the_same_matrix() -> None:
    """In training mode: where the CPU has AVX512-BF16, bitsandbytes answers with scales rounded to bf16."""
    rounded, packed = stack(), stack()
    round_to_nf4(rounded)
    keep_in_nf4(packed)
    assert [type(layer) for layer in packed] == [Linear4bit, torch.nn.Tanh, Linear4bit]
    assert [layer.weight.dtype for layer in packed if isinstance(layer, Linear4bit)] == [torch.uint8] * 2
    assert packed[0].weight.numel() == 128 * 192 // 2
    inputs = torch.randn(7, 128)
    torch.testing.assert_close(packed.train()(inputs), rounded(inputs), rtol=1e-5, atol=1e-6)
    assert torch.equal(packed[0].bias, rounded[0].bias)
    assert (stack()(inputs) - rounded(inputs)).abs().max() > 1e-3


def test_rows_that_bitsandbytes_would_unpack_wrongly_on_a_cpu_are_refused(base: Any) -> None:
    with pytest.raises(ConfigError, match=r'q_proj is 32 wide, no multiple of 64.*set tune.dequantise = "once"'):
        keep_in_nf4(base)


def test_a_width_that_is_no_multiple_of_the_block_is_rounded_as_well_as_any() -> None:
    """The error of NF4 on normal weights is near 0.092 of their size; bitsandbytes' own way back gives 0.26 here."""
    torch.manual_seed(0)
    odd = torch.nn.Linear(96, 64, bias=False)
    torch.nn.init.normal_(odd.weight)
    before = odd.weight.detach().clone()
    round_to_nf4(odd)
    assert ((odd.weight - before).norm() / before.norm()).item() == pytest.approx(0.092, abs=0.004)


@pytest.mark.parametrize("pack", [round_to_nf4, keep_in_nf4])
def test_embeddings_norms_and_head_stay_as_they_are(wide: Path, pack: Callable[[Any], Any]) -> None:
    model, original = load_weights(wide, torch.float32), load_weights(wide, torch.float32).state_dict()
    pack(model)
    after = model.state_dict()
    kept = [name for name in original if not name.endswith("_proj.weight")]
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} < set(kept)
    assert all(torch.equal(after[name], original[name]) for name in kept)
    assert type(model.lm_head) is torch.nn.Linear
    changed = [name for name in original if name.endswith("_proj.weight")]
    assert len(changed) == 14
    assert not any(
        after[name].shape == original[name].shape and torch.equal(after[name], original[name]) for name in changed
    )
