"""Plans against papers' numbers, autograd's own count, bitsandbytes' bytes, AdamW's states, torch's FLOP counter."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import ragtune
from ragtune import pipeline
from ragtune.config import TuneConfig
from ragtune.errors import ConfigError, ModelError, TrainingError
from ragtune.generator import causal_attention, models, rates
from ragtune.generator.adapters import put_on, trainable
from ragtune.generator.costs import SIXTEEN_BIT, Precision, in_the_base, precision
from ragtune.generator.generate import load_weights
from ragtune.generator.methods import METHODS
from ragtune.generator.plan import (
    CONSTANT_BITS,
    DOUBLE_QUANTISED_BITS,
    Job,
    Plan,
    check_fits,
    describe,
    fits,
    memory,
    seconds,
    suggest,
)
from ragtune.generator.rates import Machine, published
from ragtune.generator.shapes import PRESETS, Matrix, Shape, shape_from_config, shape_of
from ragtune.generator.train import batch_loss
from ragtune.planning import PlanQuestion

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench_plan.py"
TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
}
SHAPES = {
    "grouped": TINY,
    "deep": TINY | {"num_hidden_layers": 6, "num_key_value_heads": 6, "hidden_size": 96, "intermediate_size": 160},
    "wide": TINY | {"num_hidden_layers": 2, "head_dim": 64, "intermediate_size": 1024, "tie_word_embeddings": False},
}
SMALL = TuneConfig(rank=8, bottleneck=24, virtual_tokens=10, dequantise="once")
GB = 10**9


def shape_named(name: str) -> Shape:
    return shape_from_config(name, SHAPES[name] | {"model_type": "llama"})


def model_named(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(attn_implementation="sdpa", **SHAPES[name])).to(dtype)


def job_of(shape: Shape, method: str = "lora", tokens: int = 512, rows: int = 4, **more: Any) -> Job:
    config = more.pop("config", TuneConfig(batch_size=rows))
    how = more.pop("precision", precision(METHODS[method], 2))
    return Job(shape, METHODS[method], config, (tokens,) * rows, more.pop("answer_tokens", 32), how, **more)


def machine(memory: int, elements: float = 1e9) -> Machine:
    return Machine("a test", memory, 1e12, elements, gpu=False, measured=False)


# --- the papers' numbers ---------------------------------------------------------------------------------------------


def test_double_quantisation_saves_what_qlora_says() -> None:
    """Dettmers et al. 2023, section 3: from 0.5 bits a parameter to 0.127, a reduction of 0.373."""
    assert CONSTANT_BITS == 0.5
    assert round(DOUBLE_QUANTISED_BITS, 3) == 0.127
    assert round(CONSTANT_BITS - DOUBLE_QUANTISED_BITS, 2) == 0.37


def test_llama_65b_takes_780_gb_in_16_bits_and_less_than_48_with_qlora() -> None:
    """Dettmers et al. 2023, abstract and introduction, with rank 64 on all layers and AdamW's moments in 32 bits."""
    shape = shape_of("llama-65b")
    full = memory(job_of(shape, "full", rows=1, precision=SIXTEEN_BIT, gpu=True))
    assert full.weights + full.gradients + full.optimiser == 12 * 65_285_660_672 > 780 * GB
    config = TuneConfig(batch_size=1, rank=64, checkpointing=True)
    qlora = memory(job_of(shape, "qlora", rows=1, config=config, precision=SIXTEEN_BIT, gpu=True))
    assert 40 * GB < qlora.peak < 48 * GB
    assert qlora.weights == shape.decoder // 2 + 2 * (shape.parameters - shape.decoder)
    assert qlora.constants == round(shape.decoder * DOUBLE_QUANTISED_BITS / 8)


@pytest.mark.parametrize(("name", "billions"), [("7b", 6.7), ("13b", 13.0), ("33b", 32.5), ("65b", 65.2)])
def test_presets_have_the_sizes_of_llama(name: str, billions: float) -> None:
    """Touvron et al. 2023, table 2."""
    assert shape_of(f"llama-{name}").parameters / 1e9 == pytest.approx(billions, abs=0.1)


def test_gpt3_with_lora_is_what_its_paper_says() -> None:
    """Hu et al. 2021, section 4.2: 175B, rank 4 on queries and values: 1.2 TB to 350 GB, a checkpoint of 35 MB."""
    width, layers = 12_288, 96
    block = [Matrix(f"{name}_proj", width, width) for name in "qkvo"]
    block += [Matrix("fc1", width, 4 * width), Matrix("fc2", 4 * width, width)]
    decoder = layers * sum(matrix.size for matrix in block)
    sizes = {"layers": layers, "hidden": width, "inner": 4 * width, "heads": 96, "key_heads": 96, "head_width": 128}
    norms, parameters = 4 * layers * width, decoder + 50_257 * width
    gpt3 = Shape("gpt-3", **sizes, vocabulary=50_257, parameters=parameters, biases=0, norms=norms,
                 matrices=tuple(block * layers), gated=False, upcast=False)  # fmt: skip
    config = TuneConfig(batch_size=1, rank=4, target_modules=("q_proj", "v_proj"))
    job = job_of(gpt3, rows=1, config=config, precision=SIXTEEN_BIT, gpu=True)
    told = memory(job)
    assert told.weights == pytest.approx(350 * GB, rel=0.01)
    assert told.adapters == pytest.approx(35e6, rel=0.1)
    assert parameters / job.trained == pytest.approx(10_000, rel=0.1)
    full = memory(job_of(gpt3, "full", rows=1, precision=Precision(2, 2, 1, 4), gpu=True))
    assert full.weights + full.gradients + full.optimiser == pytest.approx(1.2e12, rel=0.03)


# --- what is trained, and what autograd keeps ------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_trained_parameters_are_those_of_the_method(method: str) -> None:
    model = put_on(model_named("grouped"), METHODS[method], SMALL)
    assert job_of(shape_named("grouped"), method, config=SMALL).trained == sum(
        parameter.numel() for parameter in trainable(model).values()
    )


def test_named_layers_alone_are_trained() -> None:
    config = SMALL.model_copy(update={"target_modules": ("q_proj", "down_proj")})
    trained = trainable(put_on(model_named("grouped"), METHODS["lora"], config))
    assert job_of(shape_named("grouped"), config=config).trained == sum(p.numel() for p in trained.values())


def kept_bytes(model: Any, rows: int, tokens: int) -> int:
    """What autograd keeps of one batch beside parameters and buffers, each storage once, and what is alive of them."""
    model.train()
    causal_attention.enable(model)
    owned = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(0, 300, (rows, tokens))
    labels = torch.full_like(ids, -100)
    labels[:, -1:] = 5
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        batch_loss(model, {"input_ids": ids, "labels": labels})
    return sum(storage.nbytes() for storage in kept.values())


def assert_activations_are(model: Any, job: Job, tolerance: float) -> None:
    assert memory(job).activations == pytest.approx(kept_bytes(model, job.batch, max(job.lengths)), rel=tolerance)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_activations_are_what_autograd_keeps(method: str, name: str, width: int) -> None:
    dtype = torch.bfloat16 if width == 2 else torch.float32
    model = put_on(model_named(name, dtype), METHODS[method], SMALL)
    config = SMALL.model_copy(update={"batch_size": 3})
    how = precision(METHODS[method], width)
    assert_activations_are(model, job_of(shape_named(name), method, 300, 3, config=config, precision=how), 0.03)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("lora", "full")])
def test_activations_of_every_method_are_what_autograd_keeps(method: str) -> None:
    """Bottlenecks keep less in the first layer, where nothing before them is trained."""
    model = put_on(model_named("deep", torch.bfloat16), METHODS[method], SMALL)
    config = SMALL.model_copy(update={"batch_size": 3})
    job = job_of(shape_named("deep"), method, 300, 3, config=config)
    assert_activations_are(model, job, 0.2 if method.startswith("adapter") else 0.04)


@pytest.mark.parametrize("width", [2, 4])
def test_dropout_keeps_its_mask(width: int) -> None:
    config = SMALL.model_copy(update={"dropout": 0.1, "batch_size": 3})
    model = put_on(model_named("grouped", torch.bfloat16 if width == 2 else torch.float32), METHODS["lora"], config)
    how = precision(METHODS["lora"], width)
    assert_activations_are(model, job_of(shape_named("grouped"), "lora", 300, 3, config=config, precision=how), 0.08)


@pytest.mark.models
def test_activations_of_the_embedded_model() -> None:
    folder = models.resolve("smollm2-135m-instruct")
    model = put_on(load_weights(folder, torch.bfloat16), METHODS["lora"], TuneConfig())
    assert_activations_are(model, job_of(shape_of("smollm2-135m-instruct"), tokens=200, rows=2), 0.02)


def test_optimiser_states_are_adamws() -> None:
    model = put_on(model_named("grouped"), METHODS["dora"], SMALL)
    weights = list(trainable(model).values())
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimiser = torch.optim.AdamW(weights)
    optimiser.step()
    states = [value for state in optimiser.state.values() for key, value in state.items() if key != "step"]
    told = memory(job_of(shape_named("grouped"), "dora", config=SMALL, precision=precision(METHODS["dora"], 4)))
    assert told.optimiser == sum(value.nbytes for value in states)
    assert told.gradients == told.adapters == sum(weight.nbytes for weight in weights)


def test_packed_weights_are_those_of_bitsandbytes() -> None:
    from ragtune.generator.nf4 import keep_in_nf4

    config = SMALL.model_copy(update={"dequantise": "each-use"})
    model = keep_in_nf4(model_named("wide", torch.bfloat16))
    packed = [module.weight for module in model.modules() if type(module).__name__ == "Linear4bit"]
    told = memory(job_of(shape_named("wide"), "qlora", config=config))
    assert told.weights == sum(parameter.nbytes for parameter in model.parameters())
    scales = sum(w.quant_state.absmax.nbytes + w.quant_state.state2.absmax.nbytes for w in packed)
    assert told.constants == pytest.approx(scales, rel=0.01)


def test_weights_that_are_trained_are_kept_in_fp32() -> None:
    model = put_on(model_named("wide", torch.bfloat16), METHODS["full"], SMALL)
    told = memory(job_of(shape_named("wide"), "full", config=SMALL))
    assert told.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert told.adapters == 0 and in_the_base(METHODS["full"])


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_the_shape_is_the_models(tiny_generator: Path) -> None:
    shape, model = shape_of(str(tiny_generator)), load_weights(tiny_generator, torch.float32)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape == replace(shape_of(str(tiny_generator / "config.json")), name=shape.name)
    assert len(shape.matrices) == 2 * 7 and shape.gated and shape.upcast
    assert (shape.query_width, shape.key_width) == (32, 16)


@pytest.mark.parametrize(
    ("kind", "gated", "biases"), [("gpt2", False, True), ("qwen2", True, True), ("opt", False, True)]
)
def test_other_architectures_have_a_shape(kind: str, gated: bool, biases: bool) -> None:
    shape = shape_from_config(kind, {"model_type": kind, "num_hidden_layers": 2})
    assert shape.gated == gated and bool(shape.biases) == biases
    assert 0.2 * shape.parameters < shape.decoder < shape.parameters


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "t5"}, "not the config of a text-generating model"),
        ({"model_type": "no-such-kind"}, "no-such-kind"),
        ({}, "not the config"),
    ],
)
def test_what_is_no_decoder_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        shape_from_config("odd", values)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ModelError, match="expected an object"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        shape_of(str(tmp_path))


def test_an_unknown_model_is_named_with_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=rf"nobody/nothing.*{', '.join(PRESETS)}"):
        shape_of("nobody/nothing")


# --- time, and what fits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "full"])
def test_operations_are_those_that_torch_counts(method: str) -> None:
    """Torch does not count our attention, little in short rows, and spares the first layer some gradients."""
    tokens, rows = 16, 2
    shape = shape_named("deep")
    model = put_on(model_named("deep"), METHODS[method], SMALL)
    ids = torch.randint(0, 300, (rows, tokens))
    with FlopCounterMode(display=False) as counted:
        batch_loss(model, {"input_ids": ids, "labels": ids}).backward()  # type: ignore[no-untyped-call]
    config = SMALL.model_copy(update={"batch_size": rows})
    job = job_of(shape, method, tokens, rows, config=config, answer_tokens=tokens - 1)
    only_products = Machine("a test", 0, 1.0, float("inf"), gpu=False, measured=False)
    total = sum(counted.get_flop_counts()["Global"].values())
    if method == "lora":  # B's product, done in place
        total += 2 * rows * tokens * config.rank * sum(matrix.outputs for matrix in shape.matrices)
    assert seconds(job, only_products) == pytest.approx(total, rel=0.06)


@given(
    tokens=st.integers(1, 2000),
    batch=st.integers(1, 16),
    method=st.sampled_from([name for name in METHODS if name not in ("bitfit", "lora-bias")]),
    checkpointing=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_more_work_takes_more(tokens: int, batch: int, method: str, checkpointing: bool) -> None:
    shape = shape_named("deep")
    config = TuneConfig(batch_size=batch, checkpointing=checkpointing)
    job = job_of(shape, method, tokens, 16, config=config)
    longer, here = replace(job, lengths=(tokens + 1, *job.lengths[1:])), machine(GB)
    assert memory(job).peak <= memory(longer).peak
    assert seconds(job, here) < seconds(longer, here)
    assert memory(job).peak == sum(memory(job).parts.values())
    other = replace(job, config=config.model_copy(update={"checkpointing": not checkpointing}))
    faster, slower = (job, other) if other.config.checkpointing else (other, job)
    assert seconds(faster, here) < seconds(slower, here)
    assert memory(slower).activations < memory(faster).activations


def test_the_suggestion_is_the_fastest_that_fits() -> None:
    shape = shape_of("llama-7b")
    job = job_of(shape, "lora", tokens=1024, rows=8, config=TuneConfig(batch_size=8))
    here = machine(40 * GB)
    found = suggest(job, here)
    assert found and fits(found, here.memory) and not fits(job, here.memory)
    assert found.method.name == "lora"
    others: list[Job] = [
        replace(job, config=job.config.model_copy(update={"batch_size": batch, "checkpointing": again}))
        for batch in (1, 2, 4, 8)
        for again in (False, True)
    ]
    assert seconds(found, here) == min(seconds(o, here) for o in others if fits(o, here.memory))


def test_methods_that_need_less_are_suggested_where_the_own_does_not_fit() -> None:
    job = job_of(shape_of("llama-7b"), "full", rows=8, config=TuneConfig(batch_size=8))
    lora, qlora = suggest(job, machine(24 * GB)), suggest(job, machine(12 * GB))
    assert lora and lora.method.name == "lora" and lora.precision == precision(METHODS["lora"], 2)
    assert qlora and qlora.method.name == "qlora" and qlora.packed
    assert suggest(job, machine(2 * GB)) is None


def test_what_cannot_fit_is_refused_with_numbers_and_a_way_out() -> None:
    job = job_of(shape_of("llama-7b"), "lora", rows=8, config=TuneConfig(batch_size=8))
    check_fits(job, machine(memory(job).peak))
    with pytest.raises(TrainingError) as refused:
        check_fits(job, machine(24 * GB))
    message = str(refused.value)
    assert f"{memory(job).peak / GB:.1f} GB" in message and "24.0 GB are there" in message
    assert "weights 13.5" in message and "activations" in message and "--force" in message
    suggestion = suggest(job, machine(24 * GB))
    assert suggestion and f"{describe(suggestion)} would fit" in message
    with pytest.raises(TrainingError, match="nothing fits here"):
        check_fits(job, machine(GB))


def test_a_plan_that_fits_suggests_itself() -> None:
    job = job_of(shape_named("grouped"), rows=2)
    plan = Plan(job, machine(8 * GB))
    assert plan.fits and plan.suggestion == job
    assert plan.memory == memory(job) and plan.seconds == seconds(job, plan.machine)


# --- machines --------------------------------------------------------------------------------------------------------


def test_published_rates_are_halved() -> None:
    card = published("a100-80gb")
    assert (card.products, card.memory, card.gpu, card.measured) == (156e12, 80 * GB, True, False)
    with pytest.raises(ConfigError, match=r"abacus.*rtx-3090"):
        published("abacus")


def test_the_machine_is_measured() -> None:
    here = rates.measured(shape_named("grouped"), torch.float32)
    assert here.measured and 1e8 < here.products < 1e15 and 1e6 < here.elements < 1e13
    assert 2**28 < here.memory < 2**45


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_containers_limit_is_seen(tmp_path: Path, name: str) -> None:
    assert rates._container_limits(tmp_path) == []
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    (tmp_path / name).write_text("123456\n", encoding="ascii")
    assert rates._container_limits(tmp_path) == [123456]


# --- the whole -------------------------------------------------------------------------------------------------------


def test_a_project_is_planned_before_and_after_its_index(project: Path) -> None:
    config = ragtune.load_config(Path(), {"tune.method": "lora"})
    before = pipeline.plan(config, "raft")
    assert set(before.job.lengths) == {2048} and len(before.job.lengths) == 36
    ragtune.index(config)
    after = pipeline.plan(config, "raft")
    assert len(after.job.lengths) == len(ragtune.examples(config, "raft").rows)
    assert max(after.job.lengths) < 2048 and len(set(after.job.lengths)) > 3
    assert after.memory.peak < before.memory.peak and after.seconds < before.seconds
    fewer = pipeline.plan(config, "tune", PlanQuestion(tokens=100, rows=7, memory=GB))
    assert fewer.job.lengths == (100,) * 7 and fewer.machine.memory == GB


def bench(method: str, **more: Any) -> dict[str, Any]:
    case = {"method": method, "dtype": "float32", "tokens": 160, "batch": 2, "checkpointing": False} | more
    done = subprocess.run([sys.executable, str(BENCH), "--case", json.dumps(case)], capture_output=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.models
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("case", [("lora", 200, 3), ("full", 128, 2)])
def test_predicted_memory_is_within_15_percent_of_measured(case: tuple[str, int, int]) -> None:
    method, tokens, batch = case
    asked = {
        "method": method,
        "dtype": "float32",
        "tokens": tokens,
        "batch": batch,
        "checkpointing": False,
        "compile": "off",
    }
    done = subprocess.run([sys.executable, str(BENCH), "--case", json.dumps(asked)], capture_output=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["predicted_bytes"] == pytest.approx(result["peak_bytes"], rel=0.15), result
