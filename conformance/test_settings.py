"""The chapter on settings: each differs from its default, alone and together, saved and loaded."""

from functools import cache

import numpy as np
import pytest

from .cases import dropped
from .cases.arrays import coins, normal
from .cases.models import B, ModelCase, S, T
from .cases.multihead import CROSS, MultiHeadCase
from .cases.slopes import slope
from .cases.transforms import doubled
from .contract import clause
from .mask_spec import causal, padding, segments, sliding_window
from .oracle import reference, reference_layers
from .oracle.naive_layers import Naive
from .oracle.tolerance import Differs, check_dtype, compare
from .subjects.protocol import NotOffered, require
from .test_layers import (
    KEYS,
    LEFT,
    LEFT_HIDDEN,
    LOOK_AHEAD,
    SHALLOW,
    SOURCE,
    SOURCE_HIDDEN,
    TARGET,
    tokens,
)

ALL = {"embed_dim": 12, "num_heads": 4, "num_kv_heads": 2, "kdim": 11, "vdim": 5, "bias": False}
MODULE = MultiHeadCase(ALL, S=7, kdim=11, vdim=5)
STEP = MultiHeadCase(ALL, S=7, kdim=11, vdim=5, T=1)
HIDDEN = np.arange(7) >= np.array([7, 0, 4])[:, None]
SEEN = ~HIDDEN[:, None, None]
MODEL = {"norm_first": True, "activation": "gelu", "layer_norm_eps": 0.2, "bias": False,
         "empty_rows": "uniform"}  # fmt: skip
DEPTHS = {"num_encoder_layers": 2, "num_decoder_layers": 1}


def per_head(seed: int, call: MultiHeadCase) -> np.ndarray:
    return normal(seed, B, call.heads[0], call.T, 7, dtype_name="float32")


# Every setting of the module at once


def module_masks(call: MultiHeadCase) -> dict[str, tuple]:
    """Return options, what is allowed and the bias, by name."""
    sizes, heads = (B, call.heads[0], call.T, 7), call.heads[0]
    offset = np.array([2, 0, 5])
    spec, ids = sliding_window(3, 1), segments([[1, 1, 2, 2, 2, 9, 9]] * B)
    bias, cells = per_head(71, call), coins(72, *sizes, true=0.3)
    rank2 = normal(73, call.T, 7, dtype_name="float32")
    padded, both = {"key_padding_mask": HIDDEN}, {"key_padding_mask": padding([7, 0, 4])}
    window = reference.allowed(spec, sizes, offset)
    rank3 = bias.reshape(B * heads, call.T, 7)
    return {
        "padding": (padded, SEEN, None),
        "rank2": (padded | {"attn_mask": rank2}, SEEN, rank2),
        "rank3": (padded | {"attn_mask": rank3}, SEEN, bias),
        "bool": (padded | {"attn_mask": cells}, SEEN & ~cells, None),
        "masks": (both | {"attn_mask": spec, "query_offset": offset}, SEEN & window, None),
        "bias_and_mask": (both | {"attn_mask": bias}, SEEN, bias),
        "hidden_and_segments": (
            {"key_padding_mask": ~padding(hidden=HIDDEN), "attn_mask": ids, "query_offset": offset},
            ~SEEN & reference.allowed(ids, sizes, offset),
            None,
        ),
    }


ROWS = {"queries": MODULE, "one_query": STEP}
CALLS = [("queries", name) for name in module_masks(MODULE)]
CALLS += [("one_query", name) for name in ("rank2", "masks", "bias_and_mask")]


@clause("MHA-6")
@pytest.mark.parametrize(("rows", "name"), CALLS)
def test_grouped_heads_of_other_widths_without_bias(subject, rows, name):
    call = ROWS[rows]
    options, allowed, bias = module_masks(call)[name]
    allowed = np.broadcast_to(allowed, (B, call.heads[0], call.T, 7))
    for average in (True, False):
        call.check(subject, options, allowed, bias=bias, average_weights=average)
    call.check(subject, options, allowed, bias=bias, need_weights=False)


@clause("GRAD-2")
@pytest.mark.parametrize("name", ["masks", "bias_and_mask"])
def test_gradients_of_grouped_heads_of_other_widths(subject, name):
    options, allowed, bias = module_masks(MODULE)[name]
    options = options | {"need_weights": False}
    allowed = np.broadcast_to(allowed, (B, 4, 5, 7))
    MODULE.check_gradients(subject, options, allowed, bias=bias)


@clause("GRAD-2")
@pytest.mark.parametrize("name", ["masks", "bias_and_mask"])
def test_gradients_of_one_query_of_grouped_heads(subject, name):
    """Computed in float64 and held within the budget of float32, for the numbers are few."""
    require(subject, "gradients", "multihead")
    if "float64" not in subject.dtypes:
        raise NotOffered(f"{subject.name} has no float64")
    options, allowed, bias = module_masks(STEP)[name]
    given = (STEP.parameters("float32"), *STEP.inputs(), STEP.grad())
    given, options = [doubled(x) for x in given], {n: doubled(x) for n, x in options.items()}
    got = subject.multihead_gradients(ALL, *given, **options, need_weights=False)
    allowed = np.broadcast_to(allowed, (B, 4, 1, 7))
    exact, naive = STEP.expected_gradients(allowed, bias=bias)
    for gradient in exact:
        compare(got[gradient], exact[gradient], naive[gradient], f"gradient of {gradient}")


@clause("CACHE-7")
@pytest.mark.parametrize("name", ["padding", "masks", "bias_and_mask"])
def test_projected_keys_give_what_projecting_them_gives(subject, name):
    options, allowed, bias = module_masks(MODULE)[name]
    allowed = np.broadcast_to(allowed, (B, 4, 5, 7))
    MODULE.check(subject, options | {"projected": True}, allowed, bias=bias)


@clause("CACHE-7")
def test_projected_keys_may_have_the_sequence_first(subject):
    """There are as many keys as samples, and values are not the keys."""
    require(subject, "multihead", "sequence_first")
    call = MultiHeadCase(ALL, S=B, kdim=11, vdim=5)
    inputs = [x.swapaxes(0, 1) for x in call.inputs()]
    config, options = ALL | {"batch_first": False}, {"projected": True, "need_weights": False}
    got, _ = subject.multihead(config, call.parameters("float32"), *inputs, **options)
    exact, naive = call.expected(np.ones((B, 4, 5, B), bool))
    compare(got.swapaxes(0, 1), exact["output"], naive["output"], "output")


@clause("GRAD-2")
@pytest.mark.parametrize("name", ["MODULE", "CROSS"])
def test_gradients_of_projected_keys_reach_the_memory(subject, name):
    call = {"MODULE": MODULE, "CROSS": CROSS}[name]
    allowed = np.broadcast_to(SEEN, (B, call.heads[0], 5, 7))
    options = {"key_padding_mask": HIDDEN, "projected": True, "need_weights": False}
    call.check_gradients(subject, options, allowed)


@clause("MHA-12")
@pytest.mark.parametrize("name", ["rank3", "masks"])
def test_one_sample_with_the_sequence_first_takes_masks_and_gives_weights(subject, name):
    require(subject, "multihead", "sequence_first")
    options, allowed, bias = module_masks(MODULE)[name]
    exact, naive = MODULE.expected(np.broadcast_to(allowed, (B, 4, 5, 7)), bias=bias)
    config = ALL | {"batch_first": False}
    for b in (0, 2):
        own = {n: x[b : b + 1] if isinstance(x, np.ndarray) else x for n, x in options.items()}
        if name == "rank3":
            own["attn_mask"] = options["attn_mask"][4 * b : 4 * b + 4]
        else:
            own["key_padding_mask"] = padding([[7, 0, 4][b]])
        inputs = [x[b : b + 1].swapaxes(0, 1) for x in MODULE.inputs()]
        got = subject.multihead(config, MODULE.parameters("float32"), *inputs, **own)
        wanted = [(y["output"][b : b + 1], y["weights"][b : b + 1].mean(1)) for y in (exact, naive)]
        compare(got[0].swapaxes(0, 1), wanted[0][0], wanted[1][0], f"output of sample {b}")
        if got[1] is not None:
            compare(got[1], wanted[0][1], wanted[1][1], f"weights of sample {b}")


# Every setting of layers and models at once


def model_case(kind: str, **changes) -> ModelCase:
    """Return a model of which every setting differs from its default."""
    own = {"encoder": {"norm": True}, "decoder": {"norm": True}, "transformer": DEPTHS}
    own["seq2seq"] = DEPTHS | {"positions": "none", "padding_idx": 5}
    own["decoder_layer"] = {"nhead": 7}
    return ModelCase(kind, MODEL | own.get(kind, {}) | changes)


def model_call(case: ModelCase) -> tuple[dict, dict, dict]:
    """Return inputs, options and what is allowed; an array beside a Mask, and a Mask beside one."""
    if case.kind == "seq2seq":
        given = tokens(case.config)
        src = np.where(given["src"] == 0, 5, np.where(given["src"] == 5, 0, given["src"]))
        tgt = np.where(given["tgt"] == 0, 5, np.where(given["tgt"] == 5, 0, given["tgt"]))
        return {"src": src, "tgt": tgt}, {}, {}
    options, allowed = {}, {}
    if case.kind.startswith("encoder") or case.kind == "transformer":
        mask = "mask" if case.kind == "encoder" else "src_mask"
        options |= {mask: causal(), "src_key_padding_mask": padding(hidden=LEFT_HIDDEN)}
        allowed["src"] = (LEFT & np.tri(S, dtype=bool), None)
    if case.kind != "encoder_layer" and case.kind != "encoder":
        options |= {"tgt_mask": causal(), "tgt_key_padding_mask": padding(TARGET.sum(3)[:, 0, 0])}
        options |= {"memory_mask": sliding_window(1, 2), "memory_key_padding_mask": SOURCE_HIDDEN}
        window = reference.allowed(sliding_window(1, 2), (B, case.config["nhead"], T, S), 0)
        allowed["tgt"] = (LOOK_AHEAD & TARGET, None)
        allowed["memory"] = (window & SOURCE, None)
    return case.inputs(), options, allowed


MODELS = ["encoder_layer", "decoder_layer", "encoder", "decoder", "transformer", "seq2seq"]


def check_model(case: ModelCase, found: dict, inputs: dict, allowed: dict) -> None:
    exact, naive = case.expected(inputs, case.parameters(), **allowed)
    kept = inputs["tgt"] != 5 if case.kind == "seq2seq" else slice(None)
    compare(found["output"][kept], exact["output"][kept], naive["output"][kept], "output")
    if case.kind == "seq2seq":
        return
    for name in exact.keys() - {"output"}:
        compare(found[name], exact[name], naive[name], f"weights of {name}")


@clause("LAYER-1")
@pytest.mark.parametrize("kind", MODELS)
def test_every_setting_at_once(subject, kind):
    require(subject, "layers")
    case = model_case(kind)
    inputs, options, allowed = model_call(case)
    call = (kind, case.config, case.parameters(), inputs)
    check_model(case, subject.layer(*call, **options, need_weights=True), inputs, allowed)


@clause("WGT-5")
@pytest.mark.parametrize("kind", MODELS)
def test_every_setting_comes_back(subject, tmp_path, kind):
    require(subject, "checkpoints")
    first = {} if kind == "seq2seq" else {"batch_first": False}
    case = model_case(kind, dropout=0.3, **first)
    inputs, options, allowed = model_call(case)
    subject.save(kind, case.config, case.parameters(), tmp_path / "saved.safetensors")
    _, run = subject.load(tmp_path / "saved.safetensors")
    turned = {n: x.swapaxes(0, 1) if first else x for n, x in inputs.items()}
    found = run(turned, **options, need_weights=True)
    found["output"] = found["output"].swapaxes(0, 1) if first else found["output"]
    check_model(case, found, inputs, allowed)


@clause("WGT-5")
@pytest.mark.parametrize("kind", dropped.PLACES)
def test_a_dropouts_share_comes_back_everywhere(subject, tmp_path, kind):
    """The rate is read off the scale of what every sublayer keeps, inside it and behind it."""
    require(subject, "checkpoints")
    case = dropped.telling(kind, norm_first=True)
    parameters = dropped.telling_parameters(case)
    subject.save(kind, case.config, parameters, tmp_path / "saved.safetensors")
    _, run = subject.load(tmp_path / "saved.safetensors")
    output = run(dropped.telling_inputs(case), training=True)["output"]
    found = dropped.read(case, output, dropped.RATE)
    for name, drawn in found.items():
        some = np.nanmin(drawn.inside) == 0 and drawn.behind.min() == 0
        if not some:
            raise Differs(f"{name}: expected that something is dropped after loading, got nothing")


@clause("WGT-5")
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch_first", "sequence_first"])
def test_an_attentions_settings_come_back(subject, tmp_path, batch_first):
    require(subject, "checkpoints")
    parameters, path = MODULE.parameters("float32"), tmp_path / "saved.safetensors"
    config = ALL | {"dropout": 0.25, "empty_rows": "uniform", "batch_first": batch_first}
    subject.save("attention", config, parameters, path)
    _, run = subject.load(path)
    names = ("query", "key", "value")
    inputs = dict(zip(names, MODULE.inputs(), strict=True))
    turned = inputs if batch_first else {n: x.swapaxes(0, 1) for n, x in inputs.items()}
    options = {"key_padding_mask": HIDDEN, "average_weights": False}
    allowed = np.broadcast_to(SEEN, (B, 4, 5, 7))
    exact, naive = MODULE.expected(allowed, empty_rows="uniform")
    found = run(turned, **options)
    found["output"] = found["output"] if batch_first else found["output"].swapaxes(0, 1)
    for name in exact:
        compare(found[name], exact[name], naive[name], name)
    first, second = (run(turned, training=True, **options)["output"] for _ in range(2))
    if abs(first - second).max() < 1e-3:
        raise Differs("training after loading: expected two draws, got one output twice")


# Norms: numbers that hardly differ, and numbers that lie far from 0

SPREADS = {"near_constant": (0.004, 0.0), "far_from_0": (1.0, 300.0), "both": (0.05, -40.0)}


@clause("LAYER-1")
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("kind", ["encoder_layer", "decoder"])
def test_norms_of_other_means_and_spreads(subject, kind, norm_first, spread):
    """The epsilon is left at its default: beside a variance of 0.000016 it is seen."""
    require(subject, "layers")
    factor, shift = SPREADS[spread]
    norm = {"norm": True} if kind == "decoder" else {}
    case = ModelCase(kind, {"norm_first": norm_first} | norm)
    inputs = {n: np.float32(factor) * x + np.float32(shift) for n, x in case.inputs().items()}
    got = case.run(subject, inputs, need_weights=True)
    exact, naive = case.expected(inputs)
    for name in exact:
        compare(got[name], exact[name], naive[name], name)


# Layers' gradients, parameter by parameter

GRADIENTS = {
    "encoder_layer": {"norm_first": True, "activation": "gelu"},
    "decoder_layer": {"layer_norm_eps": 0.2},
    "seq2seq": {"num_encoder_layers": 1, "num_decoder_layers": 1, "activation": "gelu"},
}


def gradient_call(kind: str) -> tuple[ModelCase, dict, dict, dict, np.ndarray]:
    """Return a model in float64, its inputs, options, masks, and the output's gradient."""
    case = ModelCase(kind, GRADIENTS[kind])
    if kind == "seq2seq":
        inputs = tokens(case.config)
        grad = normal(35, B, T, case.config["tgt_vocab"]) * (inputs["tgt"] != 0)[..., None]
        return case, inputs, {}, {}, grad
    inputs, options, allowed = model_call(case)
    inputs = {name: x.astype(np.float64) for name, x in inputs.items()}
    first = next(iter(inputs.values()))
    return case, inputs, options, case.masks(inputs, **allowed), normal(35, *first.shape)


@cache
def slopes(kind: str) -> dict[str, tuple[np.ndarray, float, float]]:
    """Return for each parameter and input a direction, the slope along it, and its error."""
    case, inputs, _, masks, grad = gradient_call(kind)
    parameters, found = case.parameters("float64"), {}
    floats = {name: x for name, x in inputs.items() if x.dtype.kind == "f"}

    def output(name: str, moved: np.ndarray) -> np.ndarray:
        own = parameters | ({name: moved} if name in parameters else {})
        given = inputs | ({name: moved} if name in inputs else {})
        return reference_layers.run(kind, own, case.config, given, masks, Naive())["output"]

    size = float(abs(grad * output("", grad)).sum())
    for i, (name, array) in enumerate((parameters | floats).items()):
        along = normal(200 + i, *array.shape)

        def total(step: float, name=name, array=array, along=along) -> float:
            return float((grad * output(name, array + step * along)).sum())

        found[name] = (along, *slope(total, size))
    return found


@clause("LAYER-1")
@pytest.mark.parametrize("kind", GRADIENTS)
def test_every_gradient_of_a_model_is_the_papers(subject, kind):
    """In float64, each along a direction of its own."""
    require(subject, "layers", "gradients")
    if "float64" not in subject.dtypes:
        raise NotOffered(f"{subject.name} has no float64")
    case, inputs, options, _, grad = gradient_call(kind)
    given = (kind, case.config, case.parameters("float64"), inputs, grad)
    got, wanted = subject.layer_gradients(*given, **options), slopes(kind)
    if sorted(got) != sorted(wanted):
        raise Differs(f"gradients: expected {sorted(wanted)}, got {sorted(got)}")
    for name, (along, exact, limit) in wanted.items():
        check_dtype(got[name], along.dtype, f"gradient of {name}")
        found = float((got[name] * along).sum())
        if not abs(found - exact) <= limit:
            text = f"expected {exact:.9g} +- {limit:.2g}, got {found:.9g}"
            raise Differs(f"slope along the gradient of {name}: {text}")


# A Mask beside a Mask in every attention of a model


@clause("LAYER-2")
def test_masks_beside_masks_reach_their_own_attentions(subject):
    rows = {"src": (S, S), "tgt": (T, T), "memory": (T, S)}
    specs = {"src": sliding_window(2, 1), "tgt": causal(), "memory": sliding_window(1, 2)}
    options, allowed = {}, {}
    for name, (queries, keys) in rows.items():
        _, _, padded, seen = KEYS[f"{name}_key_padding_mask"]
        options |= {f"{name}_mask": specs[name], f"{name}_key_padding_mask": padded}
        cells = reference.allowed(specs[name], (B, 2, queries, keys), 0)
        allowed[name] = (cells & seen, None)
    SHALLOW.check(subject, options, **allowed)
