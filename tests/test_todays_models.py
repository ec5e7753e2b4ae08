"""Attention layers of today's models: transformers' weights go in, and its outputs come out.

Exact is transformers' module in float64, with frequencies in float64; the allowed error is the
budget of the contract, with transformers' own answer as the naive one.
"""

from importlib import import_module
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

from conformance.oracle.tolerance import compare
from conformance.subjects import load

B, T, EMBED, HEADS, HEAD_DIM, BASE = 2, 11, 24, 4, 10, 700.0
COMMON = {"hidden_size": EMBED, "num_attention_heads": HEADS, "num_key_value_heads": 2,
          "head_dim": HEAD_DIM, "num_hidden_layers": 1, "attn_implementation": "eager",
          "layer_types": ["full_attention"], "max_position_embeddings": 64,
          "rope_parameters": {"rope_type": "default", "rope_theta": BASE}}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": BASE, "factor": 4.0, "truncate": False,
        "original_max_position_embeddings": 16}  # fmt: skip
LLAMA_3 = {"rope_type": "llama3", "rope_theta": BASE, "factor": 4.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
GEMMA_3 = {"full_attention": COMMON["rope_parameters"],
           "sliding_attention": COMMON["rope_parameters"]}  # fmt: skip
NO_BIAS = {"bias": False}
# The module, what its configuration has beside COMMON, our layout and our settings.
MODELS: dict[str, tuple[str, dict, str, dict]] = {
    "llama": ("llama.Llama", {}, "llama", NO_BIAS),
    "llama-3": ("llama.Llama", {"rope_parameters": LLAMA_3}, "llama", NO_BIAS),
    "mistral": ("mistral.Mistral", {"sliding_window": None}, "llama", NO_BIAS),
    "qwen2": ("qwen2.Qwen2", {}, "llama", {"bias": False, "qkv_bias": True}),
    "qwen3": ("qwen3.Qwen3", {"rms_norm_eps": 1e-3}, "qwen3", NO_BIAS),
    "gemma": ("gemma.Gemma", {}, "gemma", NO_BIAS),
    "gemma-2": ("gemma2.Gemma2", {"query_pre_attn_scalar": 5, "attn_logit_softcapping": 3.0},
                "gemma", NO_BIAS | {"scale": 5**-0.5, "softcap": 3.0}),
    "gpt-oss": ("gpt_oss.GptOss", {"rope_parameters": YARN}, "gpt_oss", {"sinks": True}),
    "gemma-3": ("gemma3.Gemma3", {"query_pre_attn_scalar": 5, "rms_norm_eps": 1e-3,
                                  "rope_parameters": GEMMA_3},
                "gemma", NO_BIAS | {"scale": 5**-0.5}),
}  # fmt: skip
BACKENDS = ("numpy", "torch", "jax")


def theirs(name: str, dtype: torch.dtype) -> tuple[Any, torch.Tensor, float]:
    """Return a module of transformers with sharp attention, its frequencies, its YaRN's factor."""
    place, changes, _, _ = MODELS[name]
    package, _, prefix = place.partition(".")
    models = import_module(f"transformers.models.{package}.modeling_{package}")
    text = "Text" if package == "gemma3" else ""
    config = getattr(models, f"{prefix}{text}Config")(**COMMON | changes)
    torch.manual_seed(3)
    module = getattr(models, f"{prefix}Attention")(config, 0)
    embedding = getattr(models, f"{prefix}RotaryEmbedding")(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.7 if parameter.ndim == 2 else 0.4))
    own = package == "gemma3"
    frequencies = embedding.full_attention_inv_freq if own else embedding.inv_freq
    scaling = embedding.full_attention_attention_scaling if own else embedding.attention_scaling
    return module.to(dtype).eval(), frequencies, float(scaling)


def run(name: str, x: np.ndarray, dtype: torch.dtype, chunks: tuple[int, ...]) -> np.ndarray:
    """Return what transformers gives, in chunks that go on from its cache."""
    module, frequencies, scaling = theirs(name, torch.bfloat16 if is_bfloat(x) else torch.float32)
    module, width = module.to(dtype), torch.float64 if dtype is torch.float64 else torch.float32
    if width is torch.float64 and is_default(name):
        frequencies = BASE ** (-torch.arange(0, HEAD_DIM, 2, dtype=width) / HEAD_DIM)
    angles = torch.arange(T, dtype=width)[None, :, None] * frequencies.to(width)
    if name != "gpt-oss":  # which turns halves by tables of half a head
        angles = torch.cat((angles, angles), -1)
    tables = [(table * scaling).to(dtype) for table in (angles.cos(), angles.sin())]
    cache, outputs, start = DynamicCache(), [], 0
    for count in chunks:
        end = start + count
        mask = torch.full((count, end), -torch.inf, dtype=dtype).triu(start + 1)[None, None]
        part = torch.tensor(x[:, start:end].astype(np.float64)).to(dtype)
        places = tuple(table[:, start:end] for table in tables)
        outputs.append(module(part, places, mask, cache)[0])
        start = end
    return torch.cat(outputs, 1).detach().double().numpy()


def is_bfloat(x: np.ndarray) -> bool:
    return x.dtype == ml_dtypes.bfloat16


def is_default(name: str) -> bool:
    rope = MODELS[name][1].get("rope_parameters", COMMON["rope_parameters"])
    return rope.get("rope_type", "default") == "default"


def ours(name: str, backend: str, dtype: Any) -> tuple[Any, Any]:
    """Return the suite's subject, and our attention with transformers' weights."""
    subject = load(backend)
    module, frequencies, scaling = theirs(name, torch.float32)
    _, changes, layout, settings = MODELS[name]
    if is_default(name):
        process = subject.module.rotary(BASE)
    else:
        process = subject.module.rotary(frequencies=frequencies.tolist())
        settings = settings | {"scale": scaling**2 / HEAD_DIM**0.5}
    tensors = {name: tensor.numpy(force=True) for name, tensor in module.state_dict().items()}
    tensors = {name: array.astype(dtype) for name, array in tensors.items()}
    if "q_norm.weight" in tensors:
        norm = {"head_dim": HEAD_DIM, "then": process, "eps": changes["rms_norm_eps"]}
        process = subject.norm(**norm, dtype=np.dtype(dtype))
    sizes = {"num_kv_heads": 2, "head_dim": HEAD_DIM, "process_heads": process, "dtype": dtype}
    attn = subject.new("MultiHeadAttention", EMBED, HEADS, **sizes, **settings)
    subject.module.import_weights(attn, tensors, layout)
    attn.eval()
    return subject, attn


def inputs(dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(B, T, EMBED)).astype(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_one_pass_gives_the_librarys_output(name, backend):
    x, (subject, attn) = inputs(), ours(name, backend, np.float32)
    got, _ = attn(subject.array(x), attn_mask=subject.module.causal(), need_weights=False)
    exact, naive = (run(name, x, dtype, (T,)) for dtype in (torch.float64, torch.float32))
    compare(subject.numpy(got), exact, naive.astype(np.float32), f"output of {name}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_decoding_gives_the_librarys_output(name, backend):
    chunks, x, (subject, attn) = (4, 1, 1, 3, 2), inputs(), ours(name, backend, np.float32)
    cache, outputs, start = attn.new_cache(B, T + 2), [], 0
    for count in chunks:
        output, cache = attn.decode(subject.array(x[:, start : start + count]), cache)
        outputs.append(subject.numpy(output))
        start += count
    exact, naive = (run(name, x, dtype, chunks) for dtype in (torch.float64, torch.float32))
    compare(np.concatenate(outputs, 1), exact, naive.astype(np.float32), f"output of {name}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_gives_the_librarys_output(backend):
    x, (subject, attn) = inputs(ml_dtypes.bfloat16), ours("llama", backend, ml_dtypes.bfloat16)
    got, _ = attn(subject.array(x), attn_mask=subject.module.causal(), need_weights=False)
    exact, naive = (run("llama", x, dtype, (T,)) for dtype in (torch.float64, torch.bfloat16))
    compare(subject.numpy(got), exact, naive.astype(ml_dtypes.bfloat16), "output of llama")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma-3"])
def test_weights_come_back_out(name, backend):
    subject, attn = ours(name, backend, np.float32)
    tensors = subject.module.export_weights(attn, MODELS[name][2])
    own = theirs(name, torch.float32)[0].state_dict()
    assert set(tensors) == set(own)
    for weight, tensor in own.items():
        np.testing.assert_allclose(subject.numpy(tensors[weight]), tensor, rtol=0, atol=2**-23)
