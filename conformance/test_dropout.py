"""The chapter on dropout inside modules, layers and models: what is drawn, and the way back."""

from itertools import combinations

import numpy as np
import pytest

from .cases import dropped
from .cases.arrays import normal
from .cases.models import B, ModelCase
from .cases.multihead import MultiHeadCase
from .cases.slopes import slope
from .contract import clause
from .mask_spec import causal
from .oracle import expected
from .oracle.tolerance import Differs, check_dtype, compare, eps, same
from .subjects.protocol import NotOffered, require

# An attention whose output is its dropped weights: the values are unit vectors, the last map is I

RATE = 0.25
HIDDEN = np.arange(7) >= np.array([7, 0, 5])[:, None]
SEEN = ~HIDDEN[:, None, None]
HEADS = {"heads": (2, 2), "grouped": (4, 2)}


class Telling(MultiHeadCase):
    """An attention with heads of 7 over 7 keys, that gives its dropped weights."""

    def parameters(self, dtype_name):
        found, (heads, kv_heads) = super().parameters(dtype_name), self.heads
        found["v_proj.weight"] = np.eye(7 * kv_heads, 7 * heads, dtype=np.float32)
        found["out_proj.weight"] = np.eye(7 * heads, dtype=np.float32)
        return found

    def inputs(self, dtype_name="float32"):
        query, key, value = super().inputs(dtype_name)
        value[..., : 7 * self.heads[1]] = np.tile(np.eye(7), self.heads[1])
        return [query, key, value]


def telling(name: str) -> Telling:
    heads, kv_heads = HEADS[name]
    config = {"embed_dim": 7 * heads, "num_heads": heads, "dropout": RATE, "bias": False}
    config |= {} if heads == kv_heads else {"num_kv_heads": kv_heads}
    return Telling(config, S=7, kdim=7 * heads, vdim=7 * heads)


def drop(subject, call: Telling, seed: int, **options):
    """Return the dropped weights (B, H, T, S), and those that come beside the output."""
    require(subject, "multihead")
    given = (call.config, call.parameters("float32"), *call.inputs())
    options = {"key_padding_mask": HIDDEN, "average_weights": False} | options
    output, weights = subject.multihead(*given, training=True, seed=seed, **options)
    return output.reshape(*output.shape[:2], -1, 7).swapaxes(1, 2), weights


def seen_by(call: Telling) -> np.ndarray:
    return np.broadcast_to(SEEN, (B, call.heads[0], 5, 7))


@clause("ATT-12")
@pytest.mark.parametrize("need_weights", [False, True], ids=["output", "weights"])
@pytest.mark.parametrize("heads", HEADS)
def test_a_module_scales_what_it_keeps_and_drops_cell_by_cell(subject, heads, need_weights):
    call = telling(heads)
    got, weights = drop(subject, call, 3, need_weights=need_weights)
    exact, naive = (found["weights"] for found in call.expected(seen_by(call)))
    kept = got != 0
    left = np.float32(1 - RATE)
    compare(got, kept * exact / left, kept * naive / left, "weights in the output")
    if weights is not None:
        compare(weights, exact, naive, "weights beside the output, before dropout")
    cells = exact > 0
    check_share(kept[cells])
    patterns = {
        f"sample {b}, head {h}": kept[b, h, :, :5] for b in (0, 2) for h in range(len(got[0]))
    }
    check_own(patterns)


def check_share(kept: np.ndarray) -> None:
    """Check that a quarter is dropped, within 4.5 standard deviations."""
    kept = kept[~np.isnan(kept)] if kept.dtype.kind == "f" else kept
    share, sigma = 1 - kept.mean(), np.sqrt(RATE * (1 - RATE) / kept.size)
    if abs(share - RATE) > 4.5 * sigma:
        raise Differs(f"dropped: expected a share of {RATE} +- {4.5 * sigma:.3f}, got {share:.3f}")


def check_own(patterns: dict[str, np.ndarray]) -> None:
    """Check that no two patterns are one draw."""
    for (one, first), (other, second) in combinations(patterns.items(), 2):
        if first.shape == second.shape and not (abs(1.0 * first - second) > 0).any():
            raise Differs(f"{one} and {other}: expected draws of their own, got one pattern")


@clause("GRAD-2")
@pytest.mark.parametrize("heads", HEADS)
def test_a_modules_gradients_are_those_of_what_was_drawn(subject, heads):
    """As values are unit vectors, dropping the gradient too makes plain weights dropped ones."""
    require(subject, "gradients", "dropout")
    call = telling(heads)
    got, _ = drop(subject, call, 3, need_weights=False)
    draw = (got != 0) / np.float32(1 - RATE)
    parameters, inputs, grad = call.parameters("float32"), call.inputs(), call.grad()
    found = subject.multihead_gradients(
        call.config, parameters, *inputs, grad, training=True, seed=3, key_padding_mask=HIDDEN,
        need_weights=False,
    )  # fmt: skip
    by_cell = grad * draw.swapaxes(1, 2).reshape(grad.shape)
    arguments = (parameters, *call.heads, *inputs, by_cell)
    both = expected.multihead_gradients(*arguments, allowed=seen_by(call))
    weights = (steps["weights"] * draw for steps in call.expected(seen_by(call)))
    for gradients, dropped_weights in zip(both, weights, strict=True):
        gradients |= value_gradients(call, dropped_weights, grad, inputs[2])
    for name in parameters.keys() | {"query", "key", "value"}:
        check_dtype(found[name], np.dtype("float32"), f"gradient of {name}")
        compare(found[name], both[0][name], both[1][name], f"gradient of {name}, of what was drawn")


def value_gradients(call: Telling, weights, grad, value) -> dict[str, np.ndarray]:
    """Return the gradients that do not pass through the softmax, in the weights' precision."""
    (heads, kv_heads), grad = call.heads, grad.astype(weights.dtype)
    by_head = grad.reshape(*grad.shape[:2], heads, 7)
    d_value = np.einsum("bhts,bthd->bhsd", weights, by_head)
    d_value = d_value.reshape(B, kv_heads, heads // kv_heads, 7, 7).sum(2)
    d_value = d_value.swapaxes(1, 2).reshape(B, 7, -1)
    joined = weights.swapaxes(1, 2).reshape(grad.shape)
    return {
        "v_proj.weight": np.einsum("bso,bsi->oi", d_value, value.astype(weights.dtype)),
        "value": np.pad(d_value, ((0, 0), (0, 0), (0, value.shape[2] - d_value.shape[2]))),
        "out_proj.weight": np.einsum("bto,bti->oi", grad, joined),
    }


# Layers whose output tells what every sublayer has drawn


@clause("LAYER-5")
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("kind", dropped.PLACES)
def test_every_sublayer_drops_inside_and_behind_it_by_its_own_draw(subject, kind, norm_first):
    require(subject, "layers")
    case = dropped.telling(kind, norm_first)
    call = (kind, case.config, dropped.telling_parameters(case), dropped.telling_inputs(case))
    found = dropped.read(case, subject.layer(*call, training=True, seed=5)["output"], RATE)
    patterns = {}
    for name, drawn in found.items():
        check_share(drawn.inside)
        check_share(drawn.behind)
        for b in range(B):
            patterns[f"behind {name}, sample {b}"] = drawn.behind[b]
            for h, bits in enumerate(drawn.inside):
                patterns[f"inside {name}, head {h}, sample {b}"] = bits[b]
        rows = drawn.behind.reshape(-1, drawn.behind.shape[-1])
        if (rows == rows[0]).all():
            raise Differs(f"behind {name}: expected a draw for each token, got one")
    check_own(patterns)
    plain = dropped.read(case, subject.layer(*call, seed=5)["output"], 0)
    for name, drawn in plain.items():
        same(drawn.inside, np.ones_like(drawn.inside), f"inside {name}, in evaluation")
        same(drawn.behind, np.ones_like(drawn.behind), f"behind {name}, in evaluation")


@clause("LAYER-5")
@pytest.mark.parametrize("kind", dropped.PLACES)
def test_gradients_are_those_of_what_every_sublayer_has_drawn(subject, kind):
    require(subject, "layers", "gradients")
    case = dropped.telling(kind, norm_first=True)
    call = (kind, case.config, dropped.telling_parameters(case), dropped.telling_inputs(case))
    options = {"training": True, "seed": 5}
    output = subject.layer(*call, **options)["output"]
    drawn, rounding = dropped.read(case, output, RATE), 2 * eps("float32") * abs(output).max()
    grad = normal(33, *next(iter(call[3].values())).shape, dtype_name="float32")
    got = subject.layer_gradients(*call, grad, **options)
    exact = dropped.gradients(case, drawn, grad.astype(np.float64))
    naive = dropped.gradients(case, drawn, grad, rounding)
    for name, (part, wanted) in exact.items():
        compare(got[name][part], wanted, naive[name][1], f"gradient of {name}, of what was drawn")


@clause("LAYER-5")
def test_embeddings_of_sources_and_targets_are_dropped(subject):
    """A source of one token: what is left of its embedding is what its only key's value tells."""
    require(subject, "layers")
    config = {"num_encoder_layers": 1, "num_decoder_layers": 1, "positions": "none"}
    config |= {"dropout": RATE, "layer_norm_eps": dropped.CENTRING**2}
    case = ModelCase("seq2seq", config)
    parameters = dropped.silent(case)
    cross = "transformer.decoder.layers.0.multihead_attn"
    parameters["src_embedding.weight"][1:, :8] = 1
    parameters["tgt_embedding.weight"][1:, 8:13] = 1
    parameters[f"{cross}.v_proj.weight"][0, :8] = 2.0 ** np.arange(8)
    parameters[f"{cross}.v_proj.weight"][0, 13] = -255
    parameters[f"{cross}.out_proj.weight"][:8, 0] = 1
    parameters["projection.weight"][:14] = np.eye(14) - np.eye(14)[13]
    tokens = {"src": np.zeros((B, 7), int), "tgt": np.full((B, 5), 5)}
    tokens["src"][:, 0] = 4
    logits = subject.layer("seq2seq", case.config, parameters, tokens, training=True, seed=5)
    logits = logits["output"].astype(float)
    target = logits[..., 8:13] * (1 - RATE)
    right = (abs(target) < 1e-3) | (abs(target - 1) < 1e-3)
    if not right.all():
        raise Differs(f"a target's embedding: expected 0 or {1 / (1 - RATE):.4f}, got {target}")
    kept = target > 0.5
    check_share(kept)
    check_own({f"target {b}": kept[b] for b in range(B)})
    codes = logits[..., :8] * (1 - RATE) ** 3  # the embedding, the weight, the sublayer
    codes = codes.max((1, 2))  # one source token has one code
    whole = np.round(codes)
    if abs(codes - whole).max() > 0.05 or (whole < 1).any() or (whole > 255).any():
        raise Differs(f"a source's embedding: expected a number of 8 bits, got {codes}")
    if len(set(whole)) == 1:
        raise Differs(f"sources: expected draws of their own, got {whole} for each")
    each = np.round(logits[..., :8] * (1 - RATE) ** 3)
    same(each[each > 0], np.broadcast_to(whole[:, None, None], each.shape)[each > 0], "one source")


# The way back, by slopes: the same seed draws the same in every call

KINDS = {
    "encoder_layer": ({"norm_first": True, "activation": "gelu"}, {"src_mask": causal()}),
    "decoder_layer": ({"activation": "gelu"}, {"tgt_mask": causal()}),
    "seq2seq": ({"num_encoder_layers": 1, "num_decoder_layers": 1, "activation": "gelu"}, {}),
}


@clause("LAYER-5")
@pytest.mark.parametrize("kind", KINDS)
def test_the_way_back_drops_what_was_dropped(subject, kind):
    """In float64, along one direction of all parameters and inputs at once."""
    require(subject, "layers", "gradients", "dropout", "any_shape")
    if "float64" not in subject.dtypes:
        raise NotOffered(f"{subject.name} has no float64")
    changes, options = KINDS[kind]
    case = ModelCase(kind, changes | {"dropout": 0.4})
    parameters, options = case.parameters("float64"), options | {"training": True, "seed": 7}
    inputs, length = tokens_or_inputs(case)
    last = case.config["tgt_vocab"] if kind == "seq2seq" else case.config["d_model"]
    grad = normal(31, B, length, last)
    floats = {name: x for name, x in inputs.items() if x.dtype.kind == "f"}
    along = {n: normal(40 + i, *x.shape) for i, (n, x) in enumerate((parameters | floats).items())}

    def output(step: float) -> np.ndarray:
        moved = {n: x + step * along[n] for n, x in (parameters | floats).items()}
        own = {n: moved[n] for n in parameters}
        given = inputs | {n: moved[n] for n in floats}
        return subject.layer(kind, case.config, own, given, **options)["output"]

    found = subject.layer_gradients(kind, case.config, parameters, inputs, grad, **options)
    got = sum(float((found[name] * along[name]).sum()) for name in along)
    size = float(abs(grad * output(0.0)).sum())
    wanted, limit = slope(lambda step: float((grad * output(step)).sum()), size)
    if not abs(got - wanted) <= limit:
        text = f"expected {wanted:.9g} +- {limit:.2g}, got {got:.9g}"
        raise Differs(f"slope of {kind} in training: {text}")


def tokens_or_inputs(case: ModelCase) -> tuple[dict, int]:
    """Return a model's inputs in float64, or tokens, and how many targets there are."""
    if case.kind != "seq2seq":
        inputs = case.inputs("float64")
        return inputs, next(iter(inputs.values())).shape[1]
    rng = np.random.default_rng(32)
    return {"src": rng.integers(1, 17, (B, 7)), "tgt": rng.integers(1, 19, (B, 5))}, 5


@clause("LAYER-5")
@pytest.mark.parametrize("kind", ["encoder_layer", "decoder_layer"])
def test_a_layers_weights_are_taken_before_dropout(subject, kind):
    require(subject, "layers")
    case = ModelCase(kind, {"norm_first": True, "dropout": 0.4})
    options = {"need_weights": True, "training": True, "seed": 2}
    got = case.run(subject, case.inputs(), **options)
    exact, naive = case.expected(case.inputs())
    compare(got["self_attn"], exact["self_attn"], naive["self_attn"], "weights in training")
    asked, plain = (case.run(subject, case.inputs(), **options | {"need_weights": n})["output"]
                    for n in (True, False))  # fmt: skip
    if abs(asked - plain).max() > 1e-3:
        raise Differs(
            "output in training: expected the same draw with weights asked for, got another"
        )
