"""Weights of BERT, CLIP, GPT-2 and Llama go in by name, and give the outputs of transformers'.

They are a part of a whole model's state dict, of which neither layout nor sizes are told. Keras,
equinox and timm are in `interop_weights.py`, in an environment that has them.
"""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from conformance.cases.multihead import MultiHeadCase
from conformance.cases.weight_layouts import to_layout
from conformance.oracle import expected
from conformance.oracle.tolerance import compare
from conformance.subjects import load
from conformance.vectors import tensors

BACKENDS = ("numpy", "torch", "jax")
E, H, T = 24, 4, 7
LENGTHS = (7, 4, 1)  # of three samples
SIZES = {"hidden_size": E, "num_attention_heads": H, "num_hidden_layers": 2,
         "intermediate_size": 16, "vocab_size": 11, "attn_implementation": "eager"}  # fmt: skip


def inputs() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(3, T, E)).astype(np.float32)


def check_output(
    backend: str, weights: Any, config: dict, theirs: np.ndarray, x: list, allowed: Any, **options
) -> None:
    """Import weights into an attention; check its output and the library's against the oracle."""
    subject, config = load(backend), {"embed_dim": E, "num_heads": H} | config
    widths = {name: config.get(name, E) for name in ("kdim", "vdim")}
    call = MultiHeadCase(config, T=x[0].shape[1], **widths)
    before, told = call.parameters("float32"), call.told()
    error, ours = subject.import_weights("attention", config, before, weights, "auto", **options)
    assert error is None
    heads = config["num_heads"], config.get("num_kv_heads", config["num_heads"])
    allowed = np.broadcast_to(allowed, (len(x[0]), heads[0], x[0].shape[1], x[1].shape[1]))
    exact, naive = expected.multihead(ours, *heads, *x, allowed=allowed, **told)
    compare(theirs, exact["output"], naive["output"], "the library's output")
    given = x[:1] if "process" in told else x
    got, _ = subject.multihead(config, ours, *given, attn_mask=~allowed)
    compare(got, exact["output"], naive["output"], "output by the library's weights")


def sharpened(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter numbers that no other one has, large enough for sharp attention."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.4 if parameter.ndim == 2 else 0.7))
    return model.eval()


def additive(allowed: np.ndarray) -> torch.Tensor:
    return torch.where(torch.tensor(allowed), 0.0, -torch.inf)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_bert_goes_in_with_padding(backend, layer):
    model = sharpened(transformers.BertModel(transformers.BertConfig(**SIZES)))
    module, x = model.encoder.layer[layer].attention, inputs()
    allowed = (np.arange(T) < np.array(LENGTHS)[:, None])[:, None, None]
    with torch.no_grad():
        heads = module.self(torch.from_numpy(x), attention_mask=additive(allowed))[0]
        theirs = module.output.dense(heads).numpy()
    prefix = f"encoder.layer.{layer}.attention."
    check_output(backend, model.state_dict(), {}, theirs, [x] * 3, allowed, prefix=prefix)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clip_goes_in_by_our_own_names(backend):
    config = transformers.CLIPTextConfig(**SIZES, max_position_embeddings=9)
    model, x = sharpened(transformers.CLIPTextModel(config)), inputs()
    allowed = np.tri(T, dtype=bool)[None, None]
    names = model.state_dict()
    (prefix,) = (
        name.removesuffix("q_proj.weight") for name in names if "1.self_attn.q_proj.w" in name
    )
    with torch.no_grad():
        attn = model.get_submodule(prefix.rstrip("."))
        theirs = attn(torch.from_numpy(x), attention_mask=additive(allowed))[0].numpy()
    check_output(backend, names, {}, theirs, [x] * 3, allowed, prefix=prefix)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gpt2_goes_in_from_a_file_of_an_older_version(backend, tmp_path):
    """Such a file holds tables of causality beside the weights; this one is in bfloat16, too."""
    from safetensors.torch import save_file

    config = transformers.GPT2Config(
        n_embd=E, n_head=H, n_layer=2, vocab_size=11, attn_implementation="eager"
    )
    model = sharpened(transformers.GPT2Model(config)).bfloat16()
    tables = {"h.1.attn.bias": torch.ones(1, 1, 9, 9), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    file = tmp_path / "model.safetensors"
    save_file({**model.state_dict(), **tables}, file)
    x, allowed = inputs(), np.tri(T, dtype=bool)[None, None]
    with torch.no_grad():
        attn = model.float().h[1].attn
        theirs = attn(torch.from_numpy(x), attention_mask=additive(allowed))[0].numpy()
    options = {"prefix": "h.1.attn", "cast": True}
    check_output(backend, file, {}, theirs, [x] * 3, allowed, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_llama_goes_in(backend):
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, head_dim=10)
    model = sharpened(transformers.LlamaModel(config))
    x, allowed = inputs(), np.tri(T, dtype=bool)[None, None]
    with torch.no_grad():
        places = model.rotary_emb(torch.from_numpy(x), torch.arange(T)[None])
        attn = model.layers[1].self_attn
        theirs = attn(torch.from_numpy(x), places, additive(allowed))[0].numpy()
    settings = {"num_kv_heads": 2, "head_dim": 10, "bias": False}
    settings |= {"process_heads": {"class": "rotary"}}
    prefix = "layers.1.self_attn"
    check_output(backend, model.state_dict(), settings, theirs, [x] * 3, allowed, prefix=prefix)


@pytest.mark.parametrize("backend", BACKENDS)
def test_jamba_has_llamas_names_and_turns_nothing(backend):
    config = transformers.JambaConfig(**SIZES, num_key_value_heads=2)
    modeling = import_module("transformers.models.jamba.modeling_jamba")
    module, x = sharpened(modeling.JambaAttention(config, 0)), inputs()
    allowed = np.tri(T, dtype=bool)[None, None]
    with torch.no_grad():
        theirs = module(torch.from_numpy(x), additive(allowed))[0].numpy()
    settings, weights = {"num_kv_heads": 2, "bias": False}, module.state_dict()
    before = MultiHeadCase({"embed_dim": E, "num_heads": H} | settings, kdim=E, vdim=E)
    call = ("attention", before.config, before.parameters("float32"), weights, "auto")
    error, _ = load(backend).import_weights(*call)
    assert "rename o_proj to out_proj and use layout 'rosetta'" in str(error)
    weights = {name.replace("o_proj", "out_proj"): array for name, array in weights.items()}
    check_output(backend, weights, settings, theirs, [x] * 3, allowed)


@pytest.mark.parametrize("layout", ["rosetta", "torch", "nnx", "equinox", "gpt2"])
@pytest.mark.parametrize(
    ("backend", "package"), [("numpy", "numpy"), ("torch", "torch"), ("jax", "flax")]
)
def test_what_goes_out_is_saved_by_safetensors_itself(backend, package, layout, tmp_path):
    subject, call = load(backend), MultiHeadCase()
    attn, wanted = subject.new("MultiHeadAttention", 14, 2), call.parameters("float32")
    subject.module.import_weights(attn, wanted)
    weights = subject.module.export_weights(attn, layout)
    import_module(f"safetensors.{package}").save_file(weights, tmp_path / "file")
    written, _ = tensors.read(tmp_path / "file")
    theirs = to_layout(layout, wanted, 2)
    assert set(written) == set(theirs)
    assert [name for name in theirs if not np.array_equal(written[name], theirs[name])] == []
