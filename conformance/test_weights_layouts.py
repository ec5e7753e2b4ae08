"""The chapter on weights, of other libraries: by their layouts, told or recognised, or a part."""

from dataclasses import replace

import numpy as np
import pytest

from .cases.arrays import normal
from .cases.multihead import CROSS, GROUPED, NO_BIAS, WIDTHS, MultiHeadCase
from .cases.weight_layouts import nested, to_layout, to_torch
from .contract import clause
from .oracle import expected
from .oracle.tolerance import Differs, compare, dtype, same
from .subjects.protocol import NotOffered, require
from .test_weights import MODELS, same_parameters
from .vectors import tensors

WIDE = MultiHeadCase({"embed_dim": 14, "num_heads": 2, "head_dim": 5}, S=7)
OUT_BIAS = MultiHeadCase({"embed_dim": 14, "num_heads": 2, "qkv_bias": False}, S=7)
TURN = {"class": "rotary", "dim": 2}
NORM = {"class": "QKNorm", "head_dim": 6, "then": TURN}
NORMED = MultiHeadCase({"embed_dim": 14, "num_heads": 2, "head_dim": 6, "process_heads": NORM})
# What an attention of each layout may be; the kernels of a layout by heads are 3 axes there.
PLAIN = {"cross": CROSS, "no_bias": NO_BIAS}
UNGROUPED = PLAIN | {"widths": WIDTHS, "wide": WIDE}
BY_HEAD = UNGROUPED | {"grouped": GROUPED}
LAYOUTS = {
    "rosetta": PLAIN,
    "torch": PLAIN | {"widths": WIDTHS},
    "nnx": BY_HEAD,
    "linen": UNGROUPED,
    "keras": BY_HEAD,
    "equinox": UNGROUPED | {"out_bias": OUT_BIAS},
    "timm": PLAIN | {"out_bias": OUT_BIAS},
    "bert": PLAIN,
    "gpt2": PLAIN,
    "llama": {
        name: replace(call, config=call.config | {"process_heads": TURN})
        for name, call in (PLAIN | {"grouped": GROUPED, "out_bias": OUT_BIAS}).items()
    },
}
CASES = [(layout, name) for layout, cases in LAYOUTS.items() for name in cases]
# The layout in which `auto` reads what is written in another.
AUTO = {"linen": "nnx"}


def theirs(layout: str, call: MultiHeadCase, dtype_name: str = "float32") -> dict:
    return to_layout(layout, call.parameters(dtype_name), call.heads[0])


def check_taken(subject, call, weights, layout, dtype_name="float32", **options) -> None:
    """Import into an attention that has other parameters, and hold what it has then."""
    require(subject, "checkpoints")
    parameters = call.parameters(dtype_name)
    before = {name: -array for name, array in parameters.items()}
    given = ("attention", call.config, before, weights, layout)
    error, after = subject.import_weights(*given, **options)
    if error is not None:
        raise Differs(f"weights of {layout}, {options}: expected to go in, got {error}")
    same_parameters(after, parameters, f"imported from {layout}, {options}")


def check_refused(subject, call, weights, layout, *texts, **options) -> None:
    """See that weights are refused in these words, and that nothing has changed."""
    require(subject, "checkpoints")
    before = call.parameters("float32")
    given = ("attention", call.config, before, weights, layout)
    error, after = subject.import_weights(*given, **options)
    if type(error) is not ValueError or any(text not in str(error) for text in texts):
        raise Differs(f"{layout}, {options}: expected a ValueError with {texts}, got {error!r}")
    same_parameters(after, before, "after the refusal")


@clause("WGT-6")
@pytest.mark.parametrize(("layout", "name"), CASES)
def test_a_layout_goes_in_and_out(subject, layout, name):
    require(subject, "checkpoints")
    call = LAYOUTS[layout][name]
    parameters = call.parameters("float32")
    got = subject.export_weights("attention", call.config, parameters, layout)
    same_parameters(got, theirs(layout, call), f"exported to {layout}")
    check_taken(subject, call, theirs(layout, call), layout)


@clause("WGT-6")
@pytest.mark.parametrize(("layout", "name"), CASES)
def test_auto_recognises_a_layout_by_its_names(subject, layout, name):
    call = LAYOUTS[layout][name]
    check_taken(subject, call, theirs(layout, call), "auto")
    check_taken(subject, call, nested(theirs(layout, call)), "auto")


@clause("WGT-6")
@pytest.mark.parametrize("name", ["encoder", "transformer"])
@pytest.mark.parametrize("layout", ["rosetta", "torch"])
def test_auto_recognises_the_layout_of_a_model(subject, layout, name):
    require(subject, "checkpoints")
    call = MODELS[name]
    parameters = call.parameters("float32")
    weights = parameters if layout == "rosetta" else to_torch(parameters)
    before = {name: -array for name, array in parameters.items()}
    kept = {f"model.{name}": array for name, array in weights.items()}
    for mapping, options in ((weights, {}), (kept, {"prefix": "model"})):
        given = (call.kind, call.config, before, mapping, "auto")
        error, after = subject.import_weights(*given, **options)
        if error is not None:
            raise Differs(f"weights of {layout}: expected to be recognised, got {error}")
        same_parameters(after, parameters, f"recognised as {layout}")


class Untouchable:
    """An array that must not be read."""

    shape, dtype, ndim = (3, 3), np.dtype("float32"), 2

    def __array__(self, *given, **options):
        raise Differs("what is not under the prefix: expected to be left alone, got read")


def surrounded(weights: dict, path: str) -> dict:
    """Return weights of a model of which one layer, between others, has these."""
    others = {f"{path}{digit}.{name}": Untouchable() for name in weights for digit in (0, 2)}
    return others | {f"{path}.{name}": array for name, array in weights.items()}


@clause("WGT-6")
@pytest.mark.parametrize("prefix", ["layers.1", "layers.1.", "layers/1"])
@pytest.mark.parametrize("layout", ["bert", "keras", "auto"])
def test_a_prefix_takes_a_part(subject, layout, prefix):
    weights = surrounded(theirs("keras" if layout == "auto" else layout, CROSS), "layers.1")
    if "/" in prefix:
        weights = {name.replace(".", "/"): array for name, array in weights.items()}
    check_taken(subject, CROSS, weights, layout, prefix=prefix)


@clause("WGT-6")
def test_a_prefix_takes_a_part_of_a_file_or_a_nested_mapping(subject, tmp_path):
    weights = {f"a.b.{name}": array for name, array in theirs("gpt2", CROSS).items()}
    tensors.write(tmp_path / "more.safetensors", weights | {"a.bc": np.ones(3, np.float32)})
    check_taken(subject, CROSS, tmp_path / "more.safetensors", "gpt2", prefix="a.b.")
    check_taken(subject, CROSS, nested(weights | {"c": np.ones(3)}), "auto", prefix="a.b")


@clause("WGT-6")
@pytest.mark.parametrize(
    ("layout", "beside"),
    [
        ("bert", {"output.LayerNorm.weight": (14,), "output.LayerNorm.bias": (14,)}),
        ("gpt2", {"bias": (1, 1, 9, 9), "masked_bias": ()}),
        ("llama", {"rotary_emb.inv_freq": (3,)}),
    ],
)
def test_what_stands_beside_an_attention_is_left_out(subject, layout, beside):
    call = LAYOUTS[layout]["cross"]
    weights = theirs(layout, call)
    weights |= {name: np.ones(shape, np.float32) for name, shape in beside.items()}
    check_taken(subject, call, weights, layout)
    check_taken(subject, call, weights, "auto")
    check_refused(subject, call, weights | {"gate": np.ones(3)}, layout, "gate, which is unexp")


@clause("WGT-6")
@pytest.mark.parametrize("layout", ["auto", "llama", "qwen3", "gemma", "gpt_oss"])
@pytest.mark.parametrize("call", [CROSS, GROUPED], ids=["cross", "grouped"])
def test_heads_that_nobody_turns_are_refused(subject, call, layout):
    """Names and shapes fit, but a Llama turns its heads: another output would come out."""
    told = repr("llama" if layout == "auto" else layout)
    text = f"layout {told} turns heads by position and needs process_heads"
    check_refused(subject, call, theirs("llama", call), layout, text)


@clause("WGT-6")
@pytest.mark.untyped
@pytest.mark.parametrize("given", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float64", "float32", "float16", "bfloat16"])
def test_cast_alone_changes_dtypes(subject, given, wanted):
    require(subject, "checkpoints")
    if wanted not in subject.dtypes:
        raise NotOffered(f"{subject.name} has no {wanted}")
    weights = CROSS.parameters(given)
    rounded = {name: array.astype(dtype(wanted)) for name, array in weights.items()}
    before = {name: -array for name, array in CROSS.parameters(wanted).items()}
    for cast in (True, False):
        call = ("attention", CROSS.config, before, theirs("equinox", CROSS, given), "auto")
        error, after = subject.import_weights(*call, cast=cast)
        if cast and error is not None:
            raise Differs(f"{given} cast to {wanted}: expected to go in, got {error}")
        if (error is None) != (cast or given == wanted):
            raise Differs(f"{given} for {wanted}, cast={cast}: got {error}")
        same_parameters(after, rounded if error is None else before, f"{given} for {wanted}")


@clause("WGT-6")
@pytest.mark.untyped
@pytest.mark.parametrize("value", [7e4, -1e30])
def test_cast_refuses_what_the_dtype_cannot_hold(subject, value):
    require(subject, "checkpoints")
    before, weights = CROSS.parameters("float16"), CROSS.parameters("float32")
    weights["k_proj.weight"][3, 5] = value
    given = ("attention", CROSS.config, before, weights, "rosetta")
    error, after = subject.import_weights(*given, cast=True)
    text = "k_proj.weight, which is beyond float16"
    if type(error) is not ValueError or text not in str(error):
        raise Differs(f"{value:g}: expected a ValueError with {text!r}, got {error!r}")
    same_parameters(after, before, "after the refusal")


@clause("WGT-6")
@pytest.mark.untyped
def test_cast_takes_nan_and_inf_as_they_are_and_no_integers(subject):
    require(subject, "checkpoints")
    before, weights = CROSS.parameters("float16"), CROSS.parameters("float32")
    weights["q_proj.bias"][:3] = np.nan, np.inf, -np.inf
    given = ("attention", CROSS.config, before, weights, "rosetta")
    error, after = subject.import_weights(*given, cast=True)
    if error is not None:
        raise Differs(f"expected NaN and inf to go in, got {error}")
    same(after["q_proj.bias"], weights["q_proj.bias"].astype(np.float16), "q_proj.bias")
    whole = CROSS.parameters("float32")
    whole["v_proj.weight"] = np.ones((14, 14), np.int8)
    texts = ("v_proj.weight int8 for float32",)
    check_refused(subject, CROSS, whole, "rosetta", *texts, cast=True)


HINTS = [(told, layout) for layout in LAYOUTS for told in ("rosetta", "torch", "nnx", "bert")
         if AUTO.get(layout, layout) != told]  # fmt: skip


@clause("WGT-6")
@pytest.mark.untyped
@pytest.mark.parametrize(("told", "layout"), HINTS)
def test_an_error_names_the_layout_that_the_names_look_like(subject, told, layout):
    look = f"these look like layout {AUTO.get(layout, layout)!r}"
    weights = theirs(layout, CROSS)
    check_refused(subject, CROSS, weights, told, f"{look}: got")
    kept = {f"encoder.attn.{name}": array for name, array in weights.items()}
    check_refused(subject, CROSS, kept, told, f"{look} under prefix 'encoder.attn.': got")


@clause("WGT-6")
@pytest.mark.untyped
def test_an_error_names_no_layout_where_that_is_right_or_unknown(subject):
    require(subject, "checkpoints")
    weights = theirs("bert", CROSS)
    for name in ("self.key.bias", "self.value.weight"):
        lacking = {n: array for n, array in weights.items() if n != name}
        error, _ = subject.import_weights(
            "attention", CROSS.config, CROSS.parameters("float32"), lacking, "bert"
        )
        if f"no {name}" not in str(error) or "look like" in str(error):
            raise Differs(f"expected that {name} is missing and no other layout, got {error}")
    check_refused(subject, CROSS, {"a": np.ones(3)}, "bert", "of the model: got")
    check_refused(subject, CROSS, {"a": np.ones(3)}, "auto", "the names of one layout", "got a")


@clause("WGT-6")
@pytest.mark.untyped
def test_auto_refuses_what_it_cannot_tell(subject):
    require(subject, "process_heads")
    weights = {
        name.removeprefix("process_heads."): array
        for name, array in theirs("llama", NORMED).items()
    }
    check_refused(subject, NORMED, weights, "auto", "'qwen3' from 'gemma'", "got q_norm.weight")
    check_taken(subject, NORMED, weights, "qwen3")
    alone = MultiHeadCase(NORMED.config | {"process_heads": {"class": "QKNorm", "head_dim": 6}})
    check_refused(subject, alone, theirs("llama", NORMED), "qwen3", "got a QKNorm without then")
    two = theirs("bert", CROSS) | theirs("gpt2", CROSS)
    check_refused(subject, CROSS, two, "auto", "'bert' under prefix ''", "'gpt2' under prefix ''")
    under = {f"h.0.attn.{name}": array for name, array in theirs("gpt2", CROSS).items()}
    check_refused(subject, CROSS, under, "auto", "'gpt2' under prefix 'h.0.attn.'")


@clause("WGT-6")
@pytest.mark.untyped
@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("modl.h.1.attn", "some of the names, try 'model.h.1.attn.' or"),
        ("h.1.attn.", "try 'model.h.1.attn.' or"),
        ("model.h.12.attn", "'model.h.1.attn.'"),
        ("vision", "some of the names: got 'vision.' for model.h.0.attn.c_"),
        ("model.h.1", "these look like layout 'gpt2' under prefix 'model.h.1.attn.': got"),
        ("model", "these look like layout 'gpt2' under prefix 'model.h.0.attn.': got"),
    ],
)
def test_an_error_names_the_prefix_that_is_there(subject, tmp_path, prefix, text):
    layers = (f"model.h.{i}.attn.{name}" for i in range(3) for name in theirs("gpt2", CROSS))
    weights = dict.fromkeys(layers, np.ones(3, np.float32))
    check_refused(subject, CROSS, weights, "bert", text, prefix=prefix)
    tensors.write(tmp_path / "more", weights)
    given = ("attention", CROSS.config, CROSS.parameters("float32"), tmp_path / "more", "bert")
    error, _ = subject.import_weights(*given, prefix=prefix)
    if text not in str(error) or "path" in str(error):
        raise Differs(f"prefix {prefix!r} of a file: expected {text!r} of the prefix, got {error}")
    if "look like" in text:
        under = text.removeprefix("these look like layout ").removesuffix(": got")
        check_refused(
            subject, CROSS, weights, "auto", f"give its prefix: got {under}", prefix=prefix
        )


@clause("WGT-6")
def test_flax_linens_own_module_gives_the_same(subject):
    require(subject, "checkpoints")
    try:
        import jax
        from flax import linen
    except ImportError:
        raise NotOffered("flax is not installed") from None
    peer = linen.MultiHeadDotProductAttention(2, qkv_features=10, out_features=14)
    inputs, random = WIDE.inputs(), jax.random.key(0)
    variables = peer.init(random, *inputs)
    moved = jax.tree.map(lambda x: x + 0.3 * normal(5, *x.shape, dtype_name="float32"), variables)
    parameters = {name: -array for name, array in WIDE.parameters("float32").items()}
    given = ("attention", WIDE.config, parameters, moved, "linen")
    error, ours = subject.import_weights(*given, prefix="params")
    if error is not None:
        raise Differs(f"flax.linen's own variables were refused: {error}")
    with jax.default_matmul_precision("highest"):
        wanted = np.asarray(peer.apply(moved, *inputs))
    got, _ = subject.multihead(WIDE.config, ours, *inputs)
    exact, naive = expected.multihead(ours, 2, 2, *inputs, allowed=np.ones((3, 2, 5, 7), bool))
    compare(wanted, exact["output"], naive["output"], "flax.linen's own output")
    compare(got, exact["output"], naive["output"], "output by flax.linen's weights")
