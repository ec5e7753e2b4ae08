"""Weights and files: what is imported is a copy, what is saved comes back, the rest is refused.

The suite asks whether numbers come back; here it is what frameworks do to a model on the way:
models without values, tied, pruned, replaced and changed ones, and other libraries' arrays.
"""

import json
import re
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrizations, prune, weight_norm

import attn_jax
import attn_numpy
import attn_torch

LIBRARIES = {"numpy": attn_numpy, "torch": attn_torch, "jax": attn_jax}
every = pytest.mark.parametrize("lib", LIBRARIES.values(), ids=LIBRARIES)
DTYPES = ["float16", "bfloat16", "float32", "float64"]
STACK = {"d_model": 10, "nhead": 2, "dim_feedforward": 7}
SEQ2SEQ = {**STACK, "num_encoder_layers": 2, "num_decoder_layers": 1}


def build(lib: Any, name: str, *sizes: int, **settings: Any) -> Any:
    """Return a model of one of the backends, in one of the dtypes by its name."""
    dtype = settings.pop("dtype", "float32")
    if lib is attn_torch:
        return getattr(lib, name)(*sizes, **settings, dtype=getattr(torch, dtype))
    settings |= {"rngs": nnx.Rngs(0)} if lib is attn_jax else {}
    return getattr(lib, name)(*sizes, **settings, dtype=jnp.dtype(dtype))


def numbers(array: Any) -> np.ndarray:
    """Return an array of any framework in NumPy, exactly: wider than it was."""
    if isinstance(array, torch.Tensor):
        return array.detach().double().numpy()
    return np.array(array).astype(np.float64)


def exported(lib: Any, model: Any) -> dict[str, np.ndarray]:
    return {name: numbers(array) for name, array in lib.export_weights(model).items()}


def check_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert sorted(got) == sorted(wanted)
    changed = [name for name in got if not np.array_equal(got[name], wanted[name])]
    assert not changed, f"other numbers in {changed}"


def weights_of(lib: Any, dtype: str = "float32") -> dict[str, Any]:
    """Return weights (10 features, 2 heads) as arrays of a framework, parameters in torch."""
    rng = np.random.default_rng(1)
    arrays = {}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        for part, shape in (("weight", (10, 10)), ("bias", (10,))):
            array = rng.normal(size=shape).astype(np.float32)
            if lib is attn_torch:
                tensor = torch.from_numpy(array).to(getattr(torch, dtype))
                arrays[f"{name}.{part}"] = nn.Parameter(tensor)
            elif lib is attn_jax:
                arrays[f"{name}.{part}"] = jnp.asarray(array, dtype)
            else:
                arrays[f"{name}.{part}"] = array.astype(dtype)
    return arrays


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a copy at an address that JAX would use as it is."""
    room = np.zeros(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


# Arrays that come in


@every
@pytest.mark.parametrize("source", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_framework_and_dtype_go_in(lib, source, dtype):
    with jax.enable_x64(dtype == "float64"):
        model = build(lib, "MultiHeadAttention", 10, 2, dtype=dtype)
        weights = weights_of(source, dtype)
        lib.import_weights(model, weights)
        check_same(exported(lib, model), {n: numbers(array) for n, array in weights.items()})
        assert {array.dtype.itemsize for array in lib.export_weights(model).values()} == {
            np.dtype(dtype).itemsize
        }


@every
@pytest.mark.parametrize("layout", ["rosetta", "torch"])
def test_state_dict_of_torchs_own_in_16_bits_goes_in(lib, layout):
    theirs = nn.MultiheadAttention(10, 2, dtype=torch.bfloat16)
    if layout == "rosetta":
        theirs = attn_torch.MultiHeadAttention(10, 2, dtype=torch.bfloat16)
    model = build(lib, "MultiHeadAttention", 10, 2, dtype="bfloat16")
    lib.import_weights(model, theirs.state_dict(), layout)
    wanted = {name: numbers(array) for name, array in theirs.state_dict().items()}
    got = {name: numbers(array) for name, array in lib.export_weights(model, layout).items()}
    check_same(got, wanted)


@every
def test_sixteen_bits_of_torch_keep_what_is_not_finite(lib):
    tensor = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3e38, 1, 2, 3])
    weights = weights_of(attn_torch, "bfloat16") | {"q_proj.bias": tensor.bfloat16()}
    model = build(lib, "MultiHeadAttention", 10, 2, dtype="bfloat16")
    lib.import_weights(model, weights)
    got, wanted = exported(lib, model)["q_proj.bias"], numbers(weights["q_proj.bias"])
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(wanted))


@every
@pytest.mark.parametrize("source", ["numpy", "torch"])
@pytest.mark.parametrize("layout", ["rosetta", "torch", "nnx"])
def test_writing_to_the_source_afterwards_changes_nothing(lib, source, layout):
    origin = build(attn_torch, "MultiHeadAttention", 10, 2)
    weights: dict[str, Any] = attn_torch.export_weights(origin, layout)
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    if source == "numpy":
        weights = {name: aligned(tensor.numpy()) for name, tensor in weights.items()}
    model = build(lib, "MultiHeadAttention", 10, 2)
    lib.import_weights(model, weights, layout)
    before = exported(lib, model)
    for array in weights.values():
        array[...] = 7
    check_same(exported(lib, model), before)
    check_same(before, exported(attn_torch, origin))


@every
def test_a_models_own_weights_change_places(lib):
    model = build(lib, "MultiHeadAttention", 10, 2)
    weights, before = lib.export_weights(model), exported(lib, model)
    names = "q_proj.weight", "k_proj.weight"
    weights |= dict(zip(names, map(weights.get, reversed(names)), strict=True))
    lib.import_weights(model, weights)
    wanted = before | dict(zip(names, map(before.get, reversed(names)), strict=True))
    check_same(exported(lib, model), wanted)


@every
def test_byte_order_of_another_machine_is_read(lib):
    weights = weights_of(attn_numpy)
    model = build(lib, "MultiHeadAttention", 10, 2)
    lib.import_weights(model, {name: array.astype(">f4") for name, array in weights.items()})
    check_same(exported(lib, model), {n: numbers(array) for n, array in weights.items()})
    if lib is attn_numpy:
        assert all(array.dtype.isnative for array in lib.export_weights(model).values())


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.ones(10)


def deleted() -> jax.Array:
    array = jnp.ones(10)
    array.delete()
    return array


UNREADABLE: dict[str, Callable[[], Any]] = {
    "meta": lambda: torch.ones(10, device="meta"),
    "fake": fake,
    "abstract": lambda: jax.ShapeDtypeStruct((10,), np.float32),
    "deleted": deleted,
    "object": object,
}


@every
@pytest.mark.parametrize("layout", ["rosetta", "torch", "nnx"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_named_and_nothing_is_loaded(lib, layout, kind):
    model, other = (build(lib, "MultiHeadAttention", 10, 2) for _ in range(2))
    before, weights = exported(lib, model), lib.export_weights(other, layout)
    name = "out.bias" if layout == "nnx" else "out_proj.bias"
    weights |= {name: UNREADABLE[kind](), "extra.weight": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=rf"^weights must be those .*{name}, which .*") as error:
        lib.import_weights(model, weights, layout)
    assert "extra.weight, which is unexpected" in str(error.value)
    check_same(exported(lib, model), before)


# Models without values


def abstract(lib: Any, name: str, *sizes: int, **settings: Any) -> Any:
    if lib is attn_jax:
        return nnx.eval_shape(lambda: build(lib, name, *sizes, **settings))
    with torch.device("meta"):
        return build(lib, name, *sizes, **settings)


without_values = pytest.mark.parametrize("lib", [attn_torch, attn_jax], ids=["torch", "jax"])


@without_values
@pytest.mark.parametrize("layout", ["rosetta", "torch"])
def test_a_model_without_values_takes_them(lib, layout):
    sizes = {"num_layers": 2, **STACK, "norm": True}
    model = abstract(lib, "TransformerEncoder", **sizes)
    origin = build(lib, "TransformerEncoder", **sizes)
    lib.import_weights(model, lib.export_weights(origin, layout), layout)
    check_same(exported(lib, model), exported(lib, origin))
    x = np.random.default_rng(0).normal(size=(1, 3, 10)).astype(np.float32)
    x = torch.from_numpy(x) if lib is attn_torch else jnp.asarray(x)
    model.eval(), origin.eval()
    np.testing.assert_array_equal(numbers(model(x)), numbers(origin(x)))


def test_a_model_without_values_trains_after_import():
    model = abstract(attn_torch, "MultiHeadAttention", 10, 2)
    model.q_proj.weight.requires_grad_(False)
    origin = build(attn_torch, "MultiHeadAttention", 10, 2)
    attn_torch.import_weights(model, attn_torch.export_weights(origin, "torch"), "torch")
    model(torch.ones(1, 3, 10))[0].sum().backward()
    assert model.q_proj.weight.grad is None
    assert model.k_proj.weight.grad is not None
    spaces = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    assert len(set(spaces)) == len(spaces), "parameters share memory"


@without_values
def test_weights_tied_in_a_model_without_values_stay_tied(lib):
    model = abstract(lib, "Seq2SeqTransformer", 11, 11, **SEQ2SEQ)
    model.tgt_embedding = model.src_embedding
    origin = build(lib, "Seq2SeqTransformer", 11, 11, **SEQ2SEQ)
    origin.tgt_embedding = origin.src_embedding
    lib.import_weights(model, lib.export_weights(origin))
    assert ties(lib, model) == {"tgt_embedding.weight": "src_embedding.weight"}
    check_same(exported(lib, model), exported(lib, origin))


def go_out(lib: Any, model: Any, layout: str, folder: Path) -> Any:
    """Export a model in a layout, or save it."""
    if layout == "file":
        return lib.save(model, folder / "m.safetensors")
    return lib.export_weights(model, layout)


@without_values
@pytest.mark.parametrize("layout", ["rosetta", "torch", "file"])
def test_a_model_without_values_cannot_be_exported_or_saved(lib, layout, tmp_path):
    model = abstract(lib, "MultiHeadAttention", 10, 2)
    rule = r"must have values to be exported.*: got none for .*q_proj"
    with pytest.raises(ValueError, match=rule):
        go_out(lib, model, layout, tmp_path)
    assert not list(tmp_path.iterdir())


def test_load_gives_weights_under_any_default_device(tmp_path):
    model = build(attn_torch, "Seq2SeqTransformer", 11, 13, **SEQ2SEQ)
    attn_torch.save(model, tmp_path / "m.safetensors")
    state = torch.get_rng_state()
    with torch.device("meta"):
        loaded = attn_torch.load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), state), "numbers were drawn for weights that are read"
    check_same(exported(attn_torch, loaded), exported(attn_torch, model))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


# What is tied


def ties(lib: Any, model: Any) -> dict[str, str]:
    return import_module(f"{lib.__name__}.weights").ties(model)


def tie_embeddings(model: Any) -> None:
    model.tgt_embedding = model.src_embedding


def tie_layers(model: Any) -> None:
    model.transformer.encoder.layers[1] = model.transformer.encoder.layers[0]


def tie_attentions(model: Any) -> None:
    layer = model.transformer.decoder.layers[0]
    layer.multihead_attn.v_proj = layer.self_attn.v_proj
    for name in ("weight", "kernel"):
        if hasattr(layer.self_attn.q_proj, name):
            setattr(layer.multihead_attn.q_proj, name, getattr(layer.self_attn.q_proj, name))


@every
@pytest.mark.parametrize("how", [tie_embeddings, tie_layers, tie_attentions])
def test_tied_parameters_come_back_tied(lib, how, tmp_path):
    model = build(lib, "Seq2SeqTransformer", 11, 11, **SEQ2SEQ)
    how(model)
    tied = ties(lib, model)
    assert tied
    lib.save(model, tmp_path / "m.safetensors")
    for other in LIBRARIES.values():
        loaded = other.load(tmp_path / "m.safetensors")
        assert ties(other, loaded) == tied
        check_same(exported(other, loaded), exported(lib, model))
        other.import_weights(loaded, other.export_weights(loaded))
        assert ties(other, loaded) == tied, "an import unties them"


@every
def test_tied_layers_go_out_and_in_by_every_name(lib):
    model, plain = encoder(lib), encoder(lib)
    model.layers[1] = model.layers[0]
    weights = lib.export_weights(model, "torch")
    assert set(weights) == set(lib.export_weights(plain, "torch"))
    lib.import_weights(plain, weights, "torch")
    check_same(exported(lib, plain), exported(lib, model))


def expanded(attn: Any) -> None:
    attn.q_proj.bias = nn.Parameter(torch.zeros(1).expand(8))


def shifted(attn: Any) -> None:
    memory = torch.zeros(12)
    attn.q_proj.bias, attn.k_proj.bias = nn.Parameter(memory[:8]), nn.Parameter(memory[4:])


def transposed(attn: Any) -> None:
    attn.k_proj.weight = nn.Parameter(attn.q_proj.weight.detach().T)


def windows(attn: Any) -> None:
    attn.q_proj.weight = nn.Parameter(torch.zeros(15).unfold(0, 8, 1))


OVERLAPPING: list[tuple[Callable[[Any], None], str]] = [
    (expanded, r"q_proj\.bias"),
    (shifted, r"q_proj\.bias, k_proj\.bias"),
    (transposed, r"q_proj\.weight, k_proj\.weight"),
    (windows, r"q_proj\.weight"),
]


@pytest.mark.parametrize(("share", "names"), OVERLAPPING)
def test_parameters_that_overlap_in_memory_take_nothing(share, names):
    attn, other = (attn_torch.MultiHeadAttention(8, 2) for _ in range(2))
    share(attn)
    before = {name: value.clone() for name, value in attn.state_dict().items()}
    with pytest.raises(ValueError, match=f"must not share memory, clone them: got {names}$"):
        attn_torch.import_weights(attn, attn_torch.export_weights(other))
    assert all(torch.equal(value, before[name]) for name, value in attn.state_dict().items())


@pytest.mark.parametrize("dim", [0, 1])
def test_parameters_side_by_side_in_one_memory_take_their_weights(dim):
    attn, other = (attn_torch.MultiHeadAttention(8, 2) for _ in range(2))
    parts = torch.zeros(24, 24).narrow(1 - dim, 0, 8).chunk(3, dim)
    for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
        getattr(attn, name).weight = nn.Parameter(part)
    attn_torch.import_weights(attn, attn_torch.export_weights(other))
    for name, value in attn_torch.export_weights(attn).items():
        assert torch.equal(value, other.state_dict()[name]), name


@every
def test_tied_parameters_take_equal_weights_alone(lib):
    model = build(lib, "Seq2SeqTransformer", 11, 11, **SEQ2SEQ)
    tie_embeddings(model)
    before, weights = exported(lib, model), lib.export_weights(model)
    weights["src_embedding.weight"] = weights["src_embedding.weight"] + 1
    rule = "weights of tied parameters must be equal: got others for tgt_embedding.weight and src"
    with pytest.raises(ValueError, match=rule):
        lib.import_weights(model, weights)
    check_same(exported(lib, model), before)


def test_what_jax_cannot_tie_is_refused(tmp_path):
    model = build(attn_torch, "Seq2SeqTransformer", 11, 11, **SEQ2SEQ)
    model.projection.weight = model.src_embedding.weight
    attn_torch.save(model, tmp_path / "m.safetensors")
    assert len(ties(attn_numpy, attn_numpy.load(tmp_path / "m.safetensors"))) == 1
    with pytest.raises(ValueError, match=r"must lie alike in this backend: got projection\.weight"):
        attn_jax.load(tmp_path / "m.safetensors")


@every
@pytest.mark.parametrize(
    "tied",
    ["nonsense", "3", '["a"]', '{"a": "b"}', '{"q_proj.weight": 3}', "[" * 10**5,
     '{"q_proj.weight": ["k_proj.weight"]}', '{"q_proj.weight": "q_proj.bias"}',
     '{"q_proj.weight": "k_proj.weight"}'],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_ties_that_do_not_fit_are_refused(lib, tied, tmp_path):
    from safetensors.numpy import save_file

    model = build(attn_numpy, "MultiHeadAttention", 10, 2)
    attn_numpy.save(model, tmp_path / "m.safetensors")
    _, metadata = import_module("attn_numpy.weights").open_file(tmp_path / "m.safetensors")
    save_file(attn_numpy.export_weights(model), tmp_path / "m.safetensors", metadata)
    lib.load(tmp_path / "m.safetensors")
    metadata["tied"] = tied
    save_file(attn_numpy.export_weights(model), tmp_path / "m.safetensors", metadata)
    with pytest.raises(ValueError, match=r"^path must be a safetensors file that fits"):
        lib.load(tmp_path / "m.safetensors")


# What is saved can be loaded, or is refused


def derived(lib: Any) -> Any:
    class Mine(lib.MultiHeadAttention):
        pass

    if lib is attn_jax:
        return Mine(10, 2, rngs=nnx.Rngs(0))
    return Mine(10, 2)


def wrapped_projection(lib: Any) -> Any:
    model = encoder(lib)
    attn = model.layers[1].self_attn
    if lib is attn_jax:
        attn.q_proj = nnx.LoRA(10, 2, 10, base_module=attn.q_proj, rngs=nnx.Rngs(0))
    elif lib is attn_torch:
        attn.q_proj = nn.Sequential(attn.q_proj, nn.Linear(10, 10))
    else:

        class Around(attn_numpy.layers.Module):
            def __init__(self, inner: Any):
                self.inner = inner

        attn.q_proj = Around(attn.q_proj)
    return model


def encoder(lib: Any, **settings: Any) -> Any:
    return build(lib, "TransformerEncoder", 2, **STACK, **settings)


def changed(lib: Any, path: str, value: Any, **settings: Any) -> Any:
    """Return an encoder of two layers in which one attribute has another value."""
    model = encoder(lib, **settings)
    *parts, name = path.split(".")
    part = model
    for step in parts:
        part = part[int(step)] if step.isdigit() else getattr(part, step)
    assert getattr(part, name) != value
    setattr(part, name, value)
    return model


RATE = {attn_numpy: "rate", attn_torch: "p", attn_jax: "rate"}
EPS = {attn_numpy: "eps", attn_torch: "eps", attn_jax: "epsilon"}


def fewer_weights(lib: Any) -> Any:
    model = encoder(lib)
    model.layers[0].norm1.bias = None
    return model


def another_dtype(lib: Any) -> Any:
    model = encoder(lib, dtype="bfloat16")
    model.layers[0].norm1 = encoder(lib).layers[0].norm1
    return model


def added(lib: Any) -> Any:
    model = encoder(lib)
    model.head = build(lib, "MultiHeadAttention", 10, 2)
    return model


def wider(lib: Any) -> Any:
    model = encoder(lib)
    model.layers[1] = build(lib, "TransformerEncoderLayer", **{**STACK, "dim_feedforward": 13})
    return model


def another_layer(lib: Any) -> Any:
    model = encoder(lib)
    model.layers[1] = build(lib, "TransformerDecoderLayer", **STACK)
    return model


def no_layers(lib: Any) -> Any:
    model = encoder(lib)
    if lib is attn_torch:
        model.layers = nn.ModuleList([nn.Linear(3, 3)])
    elif lib is attn_jax:
        model.layers = nnx.List([model.layers[0].linear1])
    else:
        model.layers = []
    return model


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "subclass": (derived, "model must be a MultiHeadAttention or .*: got Mine"),
    "wrapped projection": (wrapped_projection, r"got layers\.1\.self_attn\.q_proj .* for .*Linear"),
    "part added": (added, r"got head attn_\w+\.multihead\.MultiHeadAttention for nothing$"),
    "part missing": (fewer_weights, r"got layers\.0\.norm1\.bias missing for float32 \(10,\)"),
    "two dtypes": (another_dtype, r"layers\.0\.norm1\.\w+ float32 .* for bfloat16"),
    "wider layer": (wider, r"layers\.1\.dim_feedforward 13 for 7"),
    "layer of another class": (another_layer, r"layers\.1 .*TransformerDecoderLayer for .*Encoder"),
    "no layer of ours": (no_layers, "has no attribute|out of range"),
    "activation": (lambda lib: changed(lib, "layers.1.activation", "gelu"), "gelu for relu"),
    "dropout": (lambda lib: changed(lib, "layers.1.dropout", 0.3), r"layers\.1\.dropout 0.3 for"),
    "dropout of attention": (
        lambda lib: changed(lib, "layers.0.self_attn.dropout", 0.0),
        r"layers\.0\.self_attn\.dropout 0.0 for 0.1",
    ),
    "dropout of sublayers": (
        lambda lib: changed(lib, f"layers.0.drop.{RATE[lib]}", 0.0),
        r"layers\.0\.drop\.\w+ 0.0 for 0.1",
    ),
    "attribute alone": (
        lambda lib: changed(lib, "layers.0.dropout", 0.0),
        r"layers\.0\.self_attn\.dropout 0.1 for 0.0",
    ),
    "norm_first": (lambda lib: changed(lib, "layers.1.norm_first", True), "norm_first True for"),
    "eps": (lambda lib: changed(lib, f"layers.1.norm2.{EPS[lib]}", 1e-3), "0.001 for 1e-05"),
    "eps alone": (lambda lib: changed(lib, "layers.1.layer_norm_eps", 1e-3), "0.001 for 1e-05"),
    "empty_rows": (
        lambda lib: changed(lib, "layers.1.self_attn.empty_rows", "nan"),
        "empty_rows nan for zero",
    ),
    "heads": (lambda lib: changed(lib, "layers.1.self_attn.num_heads", 1), "num_heads 1 for 2"),
    "head_dim": (lambda lib: changed(lib, "layers.1.self_attn.head_dim", 1), "head_dim 1 for 5"),
    "batch_first": (
        lambda lib: changed(lib, "layers.1.self_attn.batch_first", False),
        "batch_first False for True",
    ),
}


@every
@pytest.mark.parametrize("case", REFUSED)
def test_what_a_file_cannot_keep_is_refused(lib, case, tmp_path):
    make, message = REFUSED[case]
    model = make(lib)
    with pytest.raises(ValueError, match=message) as error:
        lib.save(model, tmp_path / "m.safetensors")
    assert str(error.value).startswith("model must be "), "the rule comes first"
    assert not list(tmp_path.iterdir()), "a file was written"


def quantized() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(encoder(attn_torch).eval(), {nn.Linear})


def made(how: Callable[[nn.Linear], Any]) -> Callable[[], Any]:
    def make() -> Any:
        model = encoder(attn_torch)
        how(model.layers[1].self_attn.q_proj)
        return model

    return make


class Sharded(torch.Tensor):
    """A parameter without memory of its own, as DTensor is."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(function)


def old_weight_norm(linear: nn.Linear) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight_norm(linear)


COMPUTED: dict[str, tuple[Callable[[], Any], str]] = {
    "pruned": (
        made(lambda linear: prune.l1_unstructured(linear, "weight", 0.5)),
        r"call prune\.remove.*: got a computed layers\.1\.self_attn\.q_proj\.weight",
    ),
    "bias pruned": (
        made(lambda linear: prune.random_unstructured(linear, "bias", 0.5)),
        r"got a computed layers\.1\.self_attn\.q_proj\.bias",
    ),
    "weight norm": (made(old_weight_norm), r"remove_weight_norm.*computed .*q_proj\.weight"),
    "parametrized": (
        made(parametrizations.weight_norm),
        r"parametrize\.remove_parametrizations.*got a computed .*q_proj\.weight",
    ),
    "quantized": (quantized, r"layers\.0\.self_attn\.q_proj must have parameters"),
    "sparse": (
        made(lambda linear: setattr(linear, "weight", nn.Parameter(torch.eye(10).to_sparse()))),
        r"must lie in memory, .*: got layers\.1\.self_attn\.q_proj\.weight$",
    ),
    "sharded": (
        made(lambda linear: linear._parameters.update(weight=Sharded(torch.eye(10)))),
        r"must lie in memory, .*: got layers\.1\.self_attn\.q_proj\.weight$",
    ),
}


@pytest.mark.parametrize("case", COMPUTED)
@pytest.mark.parametrize("layout", ["rosetta", "torch", "file"])
def test_a_weight_that_is_no_parameter_is_refused(case, layout, tmp_path):
    make, message = COMPUTED[case]
    model = make()
    with pytest.raises(ValueError, match=message):
        go_out(attn_torch, model, layout, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", COMPUTED)
def test_nothing_goes_into_a_weight_that_is_no_parameter(case):
    make, message = COMPUTED[case]
    with pytest.raises(ValueError, match=message):
        attn_torch.import_weights(make(), attn_torch.export_weights(encoder(attn_torch)))


def test_a_pruned_model_is_saved_after_prune_remove(tmp_path):
    model = COMPUTED["pruned"][0]()
    prune.remove(model.layers[1].self_attn.q_proj, "weight")
    attn_torch.save(model, tmp_path / "m.safetensors")
    check_same(
        exported(attn_torch, attn_torch.load(tmp_path / "m.safetensors")),
        exported(attn_torch, model),
    )
    assert (model.layers[1].self_attn.q_proj.weight == 0).sum() == 50


def test_a_compiled_model_is_saved_as_its_own(tmp_path):
    model = encoder(attn_torch)
    attn_torch.save(torch.compile(model), tmp_path / "m.safetensors")
    check_same(
        exported(attn_torch, attn_torch.load(tmp_path / "m.safetensors")),
        exported(attn_torch, model),
    )


@every
def test_wrapped_projections_go_out_and_in_by_their_own_names_alone(lib):
    model, other = wrapped_projection(lib), wrapped_projection(lib)
    weights = lib.export_weights(model)
    assert any(re.match(r"layers\.1\.self_attn\.q_proj\.\w+\.weight", name) for name in weights)
    lib.import_weights(other, weights)
    check_same(exported(lib, other), exported(lib, model))
    with pytest.raises(
        ValueError, match=r"layout 'torch' has a weight and a bias a projection: got"
    ):
        lib.export_weights(model, "torch")


@every
def test_parts_of_an_attention_are_not_dropped_by_a_layout(lib):
    model = build(lib, "MultiHeadAttention", 10, 2)
    model.gate = build(lib, "MultiHeadAttention", 10, 2).q_proj
    assert "gate.weight" in lib.export_weights(model)
    for layout in ("nnx", "torch"):
        with pytest.raises(ValueError, match=r"a projection: got gate\.bias, gate\.weight"):
            lib.export_weights(model, layout)


@every
def test_projections_of_two_dtypes_are_not_joined(lib):
    model = build(lib, "MultiHeadAttention", 10, 2)
    model.k_proj = build(lib, "MultiHeadAttention", 10, 2, dtype="bfloat16").k_proj
    with pytest.raises(
        ValueError, match=r"one dtype .*k_proj\.bias bfloat16, .*q_proj\.bias float"
    ):
        lib.export_weights(model, "torch")
    assert len(lib.export_weights(model)) == 8


# What is like what load builds is saved, however it came about


@every
def test_settings_that_agree_are_saved_as_they_are_now(lib, tmp_path):
    model = encoder(lib)
    for layer in model.layers:
        layer.dropout = layer.self_attn.dropout = 0.25
        setattr(layer.drop, RATE[lib], 0.25)
        layer.activation = "gelu"
    model.eval()
    lib.save(model, tmp_path / "m.safetensors")
    for other in LIBRARIES.values():
        loaded = other.load(tmp_path / "m.safetensors")
        rates = [getattr(layer.drop, RATE[other]) for layer in loaded.layers]
        rates += [layer.self_attn.dropout for layer in loaded.layers]
        assert rates == [0.25] * 4
        assert [layer.activation for layer in loaded.layers] == ["gelu"] * 2


@every
def test_numbers_of_numpy_are_settings(lib, tmp_path):
    settings = {"num_layers": np.int64(2), "d_model": np.int32(10), "nhead": np.int64(2)}
    settings |= {"dim_feedforward": np.int16(7), "dropout": np.float32(0.3)}
    lib.save(build(lib, "TransformerEncoder", **settings), tmp_path / "m.safetensors")
    for other in LIBRARIES.values():
        loaded = other.load(tmp_path / "m.safetensors")
        assert loaded.layers[1].dropout == np.float32(0.3)
    turned = lib.rotary(frequencies=list(np.array([1, 0.25], np.float32)))
    lib.save(build(lib, "MultiHeadAttention", 8, 2, process_heads=turned), tmp_path / "m")
    assert lib.load(tmp_path / "m").process_heads.frequencies == (1.0, 0.25)


@every
def test_a_file_says_nothing_of_ties_where_there_are_none(lib, tmp_path):
    lib.save(encoder(lib), tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert sorted(header["__metadata__"]) == ["class", "configuration", "format"]


def test_a_model_with_random_streams_of_its_own_comes_back(tmp_path):
    model = attn_jax.TransformerEncoder(2, **STACK, rngs=nnx.Rngs(params=0, dropout=1))
    attn_jax.save(model, tmp_path / "m.safetensors")
    check_same(
        exported(attn_jax, attn_jax.load(tmp_path / "m.safetensors")), exported(attn_jax, model)
    )


def test_jax_keeps_parameters_where_they_are():
    model = build(attn_jax, "MultiHeadAttention", 10, 2)
    bias = model.q_proj.bias
    bias.set_value(jax.device_put(bias[...], jax.devices()[0]))
    weights = {name: aligned(array) for name, array in weights_of(attn_numpy).items()}
    attn_jax.import_weights(model, weights)
    assert bias[...].committed, "a parameter bound to a device is bound no more"
    assert not model.k_proj.bias[...].committed
    before = exported(attn_jax, model)
    for array in weights.values():  # which JAX would use as they are
        array[...] = 7
    check_same(exported(attn_jax, model), before)


@every
def test_two_weights_of_one_model_are_exchanged(lib):
    model = build(lib, "MultiHeadAttention", 12, 3)
    weights, wanted, names = dict(lib.export_weights(model)), exported(lib, model), ("k", "v")
    one, other = (f"{name}_proj.weight" for name in names)
    lib.import_weights(model, weights | {one: weights[other], other: weights[one]})
    check_same(exported(lib, model), wanted | {one: wanted[other], other: wanted[one]})


@every
@pytest.mark.parametrize("mode", [None, 0o640])
def test_a_file_is_as_readable_as_any_other(lib: Any, mode: int | None, tmp_path: Path) -> None:
    path, other, behind = (tmp_path / name for name in ("model.safetensors", "other", "behind"))
    other.touch()
    usual = other.stat().st_mode
    if mode is not None:  # what was written before keeps its own
        path.touch(mode)
        other.chmod(mode)
    lib.save(build(lib, "MultiHeadAttention", 8, 2), path)
    assert oct(path.stat().st_mode) == oct(other.stat().st_mode)
    behind.touch()
    assert oct(behind.stat().st_mode) == oct(usual), "the process makes its files as before"


@every
def test_a_file_that_cannot_be_written_is_not_begun(lib: Any, tmp_path: Path, monkeypatch) -> None:
    def fail(*inputs: Any) -> None:
        raise OSError("no space left")

    import safetensors.numpy
    import safetensors.torch

    for package in (safetensors.numpy, safetensors.torch):
        monkeypatch.setattr(package, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        lib.save(build(lib, "MultiHeadAttention", 8, 2), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
