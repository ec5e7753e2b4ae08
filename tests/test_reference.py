"""The oracle is held against what it cannot share a mistake with.

Forward: exact rational arithmetic. Backward: central differences of its own forward. Masks: tables
typed out by hand. The tolerances count the roundings that float64 cannot avoid.
"""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from conformance import mask_spec
from conformance.oracle import reference

UNIT = 2.0**-53  # the relative error of one rounding in float64
B, H, H_KV, T, S, D, D_V = 2, 4, 2, 3, 5, 7, 11
KV_HEAD = [0, 0, 1, 1]  # which key/value head each query head reads: neighbours share


def normal(seed: int, *shape: int) -> np.ndarray:
    """Return float32 numbers as float64: the product of two of them is exact."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)


def quarters(seed: int, *shape: int) -> np.ndarray:
    """Return multiples of 1/4 from -1 to 1: sums of their products are exact."""
    return np.random.default_rng(seed).integers(-4, 5, size=shape) / 4


# Rational arithmetic


def shortened(x: Fraction) -> Fraction:
    return Fraction(round(x * 2**200), 2**200)


def exact_exp(x: Fraction) -> Fraction:
    """Halve x until it is below 1/8, sum Taylor's series, square as often as it was halved."""
    halvings = 0
    while abs(x) > Fraction(1, 8):
        x, halvings = x / 2, halvings + 1
    term = total = Fraction(1)
    for n in range(1, 31):  # the rest is below 8**-31 / 31! < 1e-61
        term = shortened(term * x / n)
        total += term
    for _ in range(halvings):
        total = shortened(total * total)
    return total


def rational(array) -> np.ndarray:
    """Return an array of Fractions, each exactly the number that was given."""
    return np.vectorize(Fraction, otypes=[object])(np.asarray(array, float))


def rational_row(logits: dict[int, Fraction], empty_rows: str) -> list:
    """Return the weights of one row; `logits` holds the visible keys alone."""
    if not logits:
        return [{"zero": Fraction(0), "uniform": Fraction(1, S), "nan": math.nan}[empty_rows]] * S
    exps = {s: exact_exp(logit) for s, logit in logits.items()}
    total = sum(exps.values())
    return [exps[s] / total if s in exps else Fraction(0) for s in range(S)]


def rational_attention(query, key, value, allowed, scale, bias=0.0, empty_rows="zero") -> dict:
    """Return every step of attention in Fractions."""
    query, key, value = rational(query), rational(key), rational(value)
    bias = rational(np.broadcast_to(bias, allowed.shape))
    scores, masked, weights = (np.empty(allowed.shape, object) for _ in range(3))
    output = np.empty((*allowed.shape[:3], value.shape[3]), object)
    for b, h, t in np.ndindex(allowed.shape[:3]):
        group = KV_HEAD[h]
        scores[b, h, t] = [scale * (query[b, h, t] @ row) for row in key[b, group]]
        visible = [s for s in range(S) if allowed[b, h, t, s]]
        logits = {s: scores[b, h, t, s] + bias[b, h, t, s] for s in visible}
        masked[b, h, t] = [logits.get(s, -math.inf) for s in range(S)]
        weights[b, h, t] = rational_row(logits, empty_rows)
        output[b, h, t] = weights[b, h, t] @ value[b, group]
    return {"scores": scores, "masked_scores": masked, "weights": weights, "output": output}


def largest(*arrays) -> float:
    """Return the largest finite magnitude."""
    wide = np.concatenate([np.asarray(x, float).ravel() for x in arrays])
    return float(abs(wide[np.isfinite(wide)]).max())


def tolerance(exact: dict, value, bias=0.0) -> float:
    """Count the oracle's roundings in units of 2**-53, to first order.

    With L the largest score, bias or logit: a score errs by 2 L (its sum, the scale), a logit by
    3 L, its distance from the row's largest by 8 L; so exp by 8 L + 2 relatively, a weight by
    16 L + 6 (exp, the total, the quotient), and an output by 16 L + 8 times the largest value.
    """
    top = largest(exact["scores"], exact["masked_scores"], bias)
    return (16 * top + 8) * UNIT * max(1.0, top, largest(value))


def hold(got: dict, exact: dict, allowed: float) -> None:
    for name, expected in exact.items():
        expected = expected.astype(float)
        assert (np.isfinite(got[name]) == np.isfinite(expected)).all(), f"{name} is not finite"
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(got[name][~finite], expected[~finite], name)
        error = abs(got[name] - np.where(finite, expected, 0))[finite].max()
        assert error <= allowed, f"{name}: off by {error:.3g} of {allowed:.3g} allowed"


def call(head_dim: int = D) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shapes = ((B, H, T, head_dim), (B, H_KV, S, head_dim), (B, H_KV, S, D_V))
    return tuple(normal(seed, *shape) for seed, shape in enumerate(shapes))


def ragged() -> np.ndarray:
    """Return a random table of what is seen, with one row of nothing and one of a single key."""
    allowed = np.random.default_rng(5).random((B, H, T, S)) < 0.6
    allowed[1, 2, 0] = False
    allowed[0, 3, 1] = np.arange(S) == 4
    return allowed


def test_exp_is_right_to_thirty_digits():
    e = Fraction("2.71828182845904523536028747135266249775724709369995")
    assert abs(exact_exp(Fraction(1)) - e) < Fraction(1, 10**49)
    for x in (Fraction(-17, 3), Fraction(41, 7), Fraction(1, 1000), Fraction(0)):
        assert abs(exact_exp(x) * exact_exp(-x) - 1) < Fraction(1, 10**30)
        assert abs(exact_exp(2 * x) / exact_exp(x) ** 2 - 1) < Fraction(1, 10**30)


BIASES = {
    "no_bias": None,
    "rank2": normal(6, T, S),
    "rank4": normal(7, B, H, T, S),
    "heads": normal(8, 1, H, 1, S),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("scale", [Fraction(3, 8), Fraction(-5, 4), Fraction(0)], ids=str)
def test_forward_is_the_rational_formula(scale, bias):
    query, key, value = call()
    allowed, bias = ragged(), BIASES[bias]
    exact = rational_attention(query, key, value, allowed, scale, 0.0 if bias is None else bias)
    got = reference.attention(query, key, value, allowed=allowed, scale=float(scale), bias=bias)
    hold(got, exact, tolerance(exact, value, 0.0 if bias is None else bias))


def test_default_scale_comes_from_the_keys_width():
    query, key, value = call(head_dim=4)  # 1/sqrt(4) is rational; the values are 11 wide
    exact = rational_attention(query, key, value, ragged(), Fraction(1, 2))
    hold(reference.attention(query, key, value, allowed=ragged()), exact, tolerance(exact, value))


@pytest.mark.parametrize("policy", ["zero", "nan", "uniform"])
def test_empty_row_goes_by_the_policy(policy):
    query, key, value = call(head_dim=4)
    exact = rational_attention(query, key, value, ragged(), Fraction(1, 2), empty_rows=policy)
    got = reference.attention(query, key, value, allowed=ragged(), empty_rows=policy)
    hold(got, exact, tolerance(exact, value))
    row = {"zero": 0.0, "nan": math.nan, "uniform": value[1, 1].mean(0)}[policy]
    np.testing.assert_allclose(got["output"][1, 2, 0], np.broadcast_to(row, D_V), rtol=1e-14)


@pytest.mark.parametrize("policy", ["zero", "nan", "uniform"])
def test_no_key_at_all_is_an_empty_row(policy):
    fill = 0.0 if policy == "zero" else math.nan  # the mean over no key is 0/0
    arrays = normal(1, B, H, T, D), np.zeros((B, H_KV, 0, D)), np.zeros((B, H_KV, 0, D_V))
    got = reference.attention(*arrays, allowed=np.ones((B, H, T, 0), bool), empty_rows=policy)
    np.testing.assert_array_equal(got["output"], np.full((B, H, T, D_V), fill))
    assert got["weights"].shape == (B, H, T, 0)


def test_minus_infinity_in_a_bias_hides_like_the_mask():
    query, key, value = call()
    bias = np.where(ragged(), 0.0, -np.inf)
    options = {"query": query, "key": key, "value": value}
    by_bias = reference.attention(**options, allowed=np.ones((B, H, T, S), bool), bias=bias)
    by_mask = reference.attention(**options, allowed=ragged())
    for name in by_mask:
        np.testing.assert_array_equal(by_bias[name], by_mask[name], name)


def test_softcap_bends_the_scores_before_the_bias():
    query, key, value = (np.array(x)[None, None] for x in ([[2.0]], [[3.0], [-1.0]], [[1.0], [0]]))
    options = {"scale": 0.5, "softcap": 2.0, "bias": np.array([[10.0, 0.0]])}
    got = reference.attention(query, key, value, allowed=np.ones((1, 1, 1, 2), bool), **options)
    # the scores 3 and -1 are capped to 2 tanh(1.5) = 1.81029... and 2 tanh(-0.5) = -0.92423...
    np.testing.assert_allclose(got["scores"][0, 0, 0], [1.810296507, -0.924234315], rtol=1e-9)
    np.testing.assert_allclose(got["masked_scores"][0, 0, 0], [11.810296507, -0.924234315])


def test_sums_are_exact():
    lost = np.array([1e16, 1.0, -1e16])  # added from left to right this is 0
    query, key = lost[None, None, None], np.ones((1, 1, 1, 3))
    got = reference.attention(query, key, key, allowed=np.ones((1, 1, 1, 1), bool), scale=1.0)
    assert got["scores"][0, 0, 0, 0] == 1
    assert reference.linear(lost[None, None], np.ones((1, 3)), None)[0, 0, 0] == 1


def test_sums_of_bias_gradients_are_exact():
    query, key = np.zeros((1, 1, 3, 1)), np.zeros((1, 1, 2, 1))
    value, grad = np.array([1.0, -1.0])[None, None, :, None], np.array([1e16, 1.0, -1e16])
    options = {"allowed": np.ones((1, 1, 3, 2), bool), "bias": np.zeros((1, 1, 1, 2))}
    got = reference.gradients(query, key, value, grad[None, None, :, None], **options)
    np.testing.assert_array_equal(got["bias"][0, 0, 0], [0.5, -0.5])  # grad / 2, summed over rows


# Gradients: central differences

STEP = 2.0**-10


def slope(function, arrays: dict, name: str, index: tuple, step: float) -> float:
    """Return the central difference of a function by one entry of one of its arrays."""
    ends = []
    for change in (step, -step):
        moved = arrays[name].copy()
        moved[index] += change
        ends.append(function(arrays | {name: moved}))
    return (ends[0] - ends[1]) / (2 * step)


def check_slopes(function, arrays: dict, found: dict, size: float) -> None:
    """Check gradients by central differences, every entry of every array.

    A difference over h errs by h^2 f''' / 6. The one over 2 h errs by four times that, so the
    two lie three such errors apart: that distance is allowed, and the noise of the function's own
    value besides: a thousand roundings of its terms' total `size`, over the step.
    """
    noise = 1000 * UNIT * size / STEP
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape, f"gradient of {name}: {found[name].shape}"
        for index in np.ndindex(array.shape):
            coarse, fine = (slope(function, arrays, name, index, h) for h in (2 * STEP, STEP))
            allowed, got = abs(coarse - fine) + noise, found[name][index]
            assert allowed < 1e-4, f"the differences by {name} are too rough: {allowed:.3g}"
            text = f"gradient of {name} at {index}: expected {fine:.9g}, got {got:.9g}"
            assert abs(got - fine) <= allowed, f"{text}, {allowed:.3g} allowed"


SMALL = (2, 4, 2, 3)  # B, H, T, S; two key/value heads of width 2, values of width 3
PART = np.random.default_rng(9).random(SMALL) < 0.7
PART[1, 2, 0] = False
GRADIENTS = {
    "plain": {},
    "scale": {"scale": -0.7},
    "bias_rank2": {"bias": normal(11, 2, 3)},
    "bias_rank4": {"bias": normal(12, *SMALL)},
    "bias_heads": {"bias": normal(13, 1, 4, 1, 3)},
    "bias_rows": {"bias": normal(14, 2, 1, 2, 1)},
    "softcap": {"softcap": 0.7},
    "softcap_and_bias": {"softcap": 0.7, "bias": normal(15, 2, 3), "scale": 1.3},
    "uniform": {"empty_rows": "uniform", "bias": normal(16, 2, 3)},
    "sinks": {"sinks": normal(17, 4), "bias": normal(18, 2, 3), "softcap": 0.7},
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_the_slopes_of_the_forward(name):
    options = dict(GRADIENTS[name])
    shapes = {"query": (2, 4, 2, 2), "key": (2, 2, 3, 2), "value": (2, 2, 3, 3)}
    arrays = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    arrays |= {name: options.pop(name) for name in ("bias", "sinks") if name in options}
    grad = normal(20, 2, 4, 2, 3)

    def objective(arrays):
        return (grad * reference.attention(**arrays, allowed=PART, **options)["output"]).sum()

    found = reference.gradients(**arrays, grad=grad, allowed=PART, **options)
    check_slopes(objective, arrays, found, abs(grad).sum() * largest(arrays["value"]))
    if options.get("empty_rows") != "uniform":
        assert not found["query"][1, 2, 0].any(), "the query of a fully masked row"


def test_a_sink_is_a_key_without_a_value():
    arrays = normal(1, 2, 4, 2, 2), normal(2, 2, 2, 3, 2), normal(3, 2, 2, 3, 3)
    sinks = np.array([0.5, -np.inf, 30.0, -2.0])
    found = reference.attention(*arrays, allowed=PART, sinks=sinks)
    more = np.zeros((2, 2, 1, 2)), np.zeros((2, 2, 1, 3))  # scores of 0, to which the bias is added
    key, value = (np.concatenate(pair, 2) for pair in zip(arrays[1:], more, strict=True))
    bias = np.zeros((1, 4, 1, 4))
    bias[0, :, 0, 3] = sinks
    allowed = np.concatenate((PART, np.ones((2, 4, 2, 1), bool)), 3)
    alike = reference.attention(arrays[0], key, value, allowed=allowed, bias=bias)
    np.testing.assert_array_equal(found["output"], alike["output"])
    np.testing.assert_array_equal(found["weights"], alike["weights"][..., :3])


@pytest.mark.parametrize("sink", [np.nan, np.inf])
def test_a_sink_that_is_not_finite_spoils_its_head(sink):
    arrays = normal(1, 2, 4, 2, 2), normal(2, 2, 2, 3, 2), normal(3, 2, 2, 3, 3)
    sinks = np.array([0.0, sink, 0.0, 0.0])
    output = reference.attention(*arrays, allowed=PART, sinks=sinks)["output"]
    assert np.isnan(output[:, 1]).all()
    assert np.isfinite(output[:, [0, 2, 3]]).all()


def test_gradients_of_a_hiding_bias_are_those_of_the_mask():
    arrays = normal(1, 2, 4, 2, 2), normal(2, 2, 2, 3, 2), normal(3, 2, 2, 3, 3)
    arrays = (*arrays, normal(4, 2, 4, 2, 3))
    bias = np.where(PART, 0.0, -np.inf)
    by_bias = reference.gradients(*arrays, allowed=np.ones(SMALL, bool), bias=bias)
    by_mask = reference.gradients(*arrays, allowed=PART, bias=np.zeros(SMALL))
    for name in by_mask:
        np.testing.assert_array_equal(by_bias[name], by_mask[name], name)
    assert not by_bias["bias"][~PART].any()


# Multi-head attention: 2 samples, 2 queries, 3 keys; 4 features in 2 heads of 2

KDIM, VDIM = 3, 5


def multihead_parameters(kv_heads: int, bias: bool) -> dict[str, np.ndarray]:
    kv = 2 * kv_heads
    shapes = {"q_proj": (4, 4), "k_proj": (kv, KDIM), "v_proj": (kv, VDIM), "out_proj": (4, 4)}
    found = {}
    for seed, (name, (out, into)) in enumerate(shapes.items()):
        found[f"{name}.weight"] = quarters(30 + seed, out, into)
        if bias:
            found[f"{name}.bias"] = quarters(40 + seed, out)
    return found


def multihead_inputs() -> dict[str, np.ndarray]:
    shapes = {"query": (2, 2, 4), "key": (2, 3, KDIM), "value": (2, 3, VDIM)}
    return {name: quarters(50 + i, *shape) for i, (name, shape) in enumerate(shapes.items())}


def rational_linear(x, parameters: dict, name: str) -> np.ndarray:
    bias = parameters.get(f"{name}.bias", 0.0)
    return x @ rational(parameters[f"{name}.weight"]).T + rational(bias)


SEEN = np.array([[[1, 1, 0], [0, 1, 1]], [[0, 0, 1], [1, 1, 1]]], bool)  # (B, T, S), all heads


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_multihead_is_the_rational_formula(kv_heads, bias):
    parameters, inputs = multihead_parameters(kv_heads, bias), multihead_inputs()
    allowed = np.repeat(SEEN[:, None], 2, 1)
    got = reference.multihead(parameters, 2, kv_heads, **inputs, allowed=allowed, scale=0.5)
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
    q, k, v = (rational_linear(rational(inputs[x]), parameters, n) for n, x in names.items())
    # These are exact in float64 too, being sums of quarters. A logit is the mean of two products,
    # and the last map adds four terms of one value at most; for the rest see `tolerance`.
    allowed = (16 * largest(q) * largest(k) + 12) * UNIT
    joined = np.empty((2, 2, 4), object)
    for b, head, t in np.ndindex(2, 2, 2):
        own = slice(2 * head, 2 * head + 2)
        theirs = own if kv_heads == 2 else slice(0, 2)
        keys = [s for s in range(3) if SEEN[b, t, s]]
        exps = [exact_exp((q[b, t, own] @ k[b, s, theirs]) / 2) for s in keys]
        weights = [e / sum(exps) for e in exps]
        joined[b, t, own] = sum(w * v[b, s, theirs] for w, s in zip(weights, keys, strict=True))
        expected = np.zeros(3)
        expected[keys] = [float(w) for w in weights]
        assert abs(got["weights"][b, head, t] - expected).max() <= allowed
    output = rational_linear(joined, parameters, "out_proj").astype(float)
    allowed = 4 * allowed * largest(v)
    assert abs(got["output"] - output).max() <= allowed


@pytest.mark.parametrize(
    ("kv_heads", "bias", "options"),
    [
        (2, True, {}),
        (1, True, {"bias": normal(61, 2, 2, 2, 3), "softcap": 0.7}),
        (1, False, {"scale": -0.7}),
    ],
    ids=["plain", "grouped_softcap_bias", "no_bias"],
)
def test_multihead_gradients_are_the_slopes_of_the_forward(kv_heads, bias, options):
    parameters, inputs = multihead_parameters(kv_heads, bias), multihead_inputs()
    allowed, grad = np.repeat(SEEN[:, None], 2, 1), normal(60, 2, 2, 4)
    allowed[1, 0, 0] = False

    def output(arrays):
        own = {name: arrays[name] for name in parameters}
        given = {name: arrays[name] for name in inputs}
        return reference.multihead(own, 2, kv_heads, **given, allowed=allowed, **options)["output"]

    found = reference.multihead_gradients(
        parameters, 2, kv_heads, **inputs, grad=grad, allowed=allowed, **options
    )
    arrays = parameters | inputs
    size = abs(grad).sum() * max(1, largest(output(arrays)))
    check_slopes(lambda arrays: (grad * output(arrays)).sum(), arrays, found, size)


def test_linear_is_x_times_the_transposed_weight_plus_bias():
    x = np.array([[[1.0, 2.0], [3.0, -1.0]]])
    weight, bias = np.array([[1.0, 0.0], [2.0, 1.0], [-1.0, 3.0]]), np.array([10.0, 20.0, 30.0])
    expected = [[[11, 24, 35], [13, 25, 24]]]
    np.testing.assert_array_equal(reference.linear(x, weight, bias), expected)
    np.testing.assert_array_equal(reference.linear(x, weight, None), expected - bias)


def test_heads_are_split_so_that_neighbours_stay_neighbours():
    x = np.array([[[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]], float)
    heads = [[[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]]
    np.testing.assert_array_equal(reference.split_heads(x, 3), heads)
    np.testing.assert_array_equal(reference.join_heads(np.array(heads, float)), x)


# Masks, typed out: three queries and five keys, a panel for each sample

ARRAY = [[[[1, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]]]
PAIRS = {(2, 0), (3, 4), (0, 1)}  # of positions
TABLES = {
    "causal": (mask_spec.causal(), None, """
        ■ · · · ·
        ■ ■ · · ·
        ■ ■ ■ · ·
    """),
    "causal_at_2": (mask_spec.causal(), 2, """
        ■ ■ ■ · ·
        ■ ■ ■ ■ ·
        ■ ■ ■ ■ ■
    """),
    "causal_before_the_keys": (mask_spec.causal(), -2, """
        · · · · ·
        · · · · ·
        ■ · · · ·
    """),
    "causal_beyond_the_keys": (mask_spec.causal(), 9, """
        ■ ■ ■ ■ ■
        ■ ■ ■ ■ ■
        ■ ■ ■ ■ ■
    """),
    "causal_per_sample": (mask_spec.causal(), [2, -1, 0], """
        ■ ■ ■ · · | · · · · · | ■ · · · ·
        ■ ■ ■ ■ · | ■ · · · · | ■ ■ · · ·
        ■ ■ ■ ■ ■ | ■ ■ · · · | ■ ■ ■ · ·
    """),
    "window_back": (mask_spec.sliding_window(1), 2, """
        · ■ ■ · ·
        · · ■ ■ ·
        · · · ■ ■
    """),
    "window_ahead": (mask_spec.sliding_window(0, 2), 0, """
        ■ ■ ■ · ·
        · ■ ■ ■ ·
        · · ■ ■ ■
    """),
    "window_of_itself": (mask_spec.sliding_window(0), -1, """
        · · · · ·
        ■ · · · ·
        · ■ · · ·
    """),
    "window_per_sample": (mask_spec.sliding_window(1, 1), [0, 3], """
        ■ ■ · · · | · · ■ ■ ■
        ■ ■ ■ · · | · · · ■ ■
        · ■ ■ ■ · | · · · · ■
    """),
    "prefix": (mask_spec.prefix([4, 0, 2]), 1, """
        ■ ■ ■ ■ · | ■ ■ · · · | ■ ■ · · ·
        ■ ■ ■ ■ · | ■ ■ ■ · · | ■ ■ ■ · ·
        ■ ■ ■ ■ · | ■ ■ ■ ■ · | ■ ■ ■ ■ ·
    """),
    "prefix_before_the_keys": (mask_spec.prefix([2, 0]), -2, """
        ■ ■ · · · | · · · · ·
        ■ ■ · · · | · · · · ·
        ■ ■ · · · | ■ · · · ·
    """),
    "padding_is_not_shifted": (mask_spec.padding([5, 0, 2]), 3, """
        ■ ■ ■ ■ ■ | · · · · · | ■ ■ · · ·
        ■ ■ ■ ■ ■ | · · · · · | ■ ■ · · ·
        ■ ■ ■ ■ ■ | · · · · · | ■ ■ · · ·
    """),
    "padding_hidden": (mask_spec.padding(hidden=[[0, 1, 0, 0, 1], [1, 1, 1, 1, 0]]), None, """
        ■ · ■ ■ · | · · · · ■
        ■ · ■ ■ · | · · · · ■
        ■ · ■ ■ · | · · · · ■
    """),
    "segments": (mask_spec.segments([[4, 4, 9, 9, 4], [7, 7, 7, 8, 8]]), [1, 3], """
        ■ ■ · · ■ | · · · ■ ■
        · · ■ ■ · | · · · ■ ■
        · · ■ ■ · | · · · · ·
    """),
    "segments_before_the_keys": (mask_spec.segments([[4, 9, 9, 9, 4]]), -1, """
        · · · · ·
        ■ · · · ■
        · ■ ■ ■ ·
    """),
    "segments_pair_is_not_shifted": (mask_spec.segments([[1, 2, 2]], [[2, 1, 1, 3, 2]]), 2, """
        · ■ ■ · ·
        ■ · · · ■
        ■ · · · ■
    """),
    "allow_is_not_shifted": (mask_spec.allow(ARRAY), 2, """
        ■ · · · ■
        · ■ ■ · ·
        · · · · ·
    """),
    "hide_is_not_shifted": (mask_spec.hide(ARRAY), 2, """
        · ■ ■ ■ ·
        ■ · · ■ ■
        ■ ■ ■ ■ ■
    """),
    "predicate": (mask_spec.predicate(lambda b, h, q, k: (q, k) in PAIRS or b > 0), [2, 0], """
        ■ · · · · | ■ ■ ■ ■ ■
        · · · · ■ | ■ ■ ■ ■ ■
        · · · · · | ■ ■ ■ ■ ■
    """),
    "and": (mask_spec.causal() & mask_spec.padding([5, 2, 0]), 1, """
        ■ ■ · · · | ■ ■ · · · | · · · · ·
        ■ ■ ■ · · | ■ ■ · · · | · · · · ·
        ■ ■ ■ ■ · | ■ ■ · · · | · · · · ·
    """),
    "or": (mask_spec.sliding_window(0) | mask_spec.padding([3, 0]), 2, """
        ■ ■ ■ · · | · · ■ · ·
        ■ ■ ■ ■ · | · · · ■ ·
        ■ ■ ■ · ■ | · · · · ■
    """),
    "not": (~mask_spec.causal(), 0, """
        · ■ ■ ■ ■
        · · ■ ■ ■
        · · · ■ ■
    """),
    "nested": (~(mask_spec.causal() & ~mask_spec.sliding_window(0)) & mask_spec.padding([4]), 1, """
        · ■ ■ ■ ·
        · · ■ ■ ·
        · · · ■ ·
    """),
}  # fmt: skip


def read(text: str) -> np.ndarray:
    """Read panels side by side into bool (panels, T, S)."""
    lines = [line.split("|") for line in text.strip().splitlines()]
    cells = np.array([[panel.split() for panel in line] for line in lines])  # (T, panels, S)
    assert set(cells.ravel()) <= {"■", "·"}
    return (cells == "■").swapaxes(0, 1)


@pytest.mark.parametrize("name", TABLES)
def test_masks_are_as_typed_out(name):
    spec, offset, text = TABLES[name]
    panels = read(text)
    got = reference.allowed(spec, (len(panels), 1, 3, 5), offset)
    np.testing.assert_array_equal(got[:, 0], panels)
    offsets = np.broadcast_to(0 if offset is None else offset, len(panels)).tolist()
    for b, t, s in np.ndindex(panels.shape):
        assert bool(reference.is_allowed(spec, b, 0, t, s, offsets[b])) == panels[b, t, s], (
            b,
            t,
            s,
        )


def test_masks_may_differ_by_head_and_repeat_over_samples():
    array = [[[[1, 0, 0]], [[0, 1, 1]]]]  # (1, 2, 1, 3): two heads, one query
    one, two = [[True, False, False]], [[False, True, True]]
    got = reference.allowed(mask_spec.allow(array), (2, 2, 1, 3))
    np.testing.assert_array_equal(got, [[one, two], [one, two]])
    got = reference.allowed(mask_spec.hide(array), (2, 2, 1, 3))
    np.testing.assert_array_equal(got, [[two, one], [two, one]])
    odd = mask_spec.predicate(lambda b, h, q, k: (b, h, k) == (1, 0, 2))
    got = reference.allowed(odd, (2, 2, 1, 3))
    assert np.argwhere(got).tolist() == [[1, 0, 0, 2]]


def test_no_mask_shows_everything():
    assert reference.allowed(None, (2, 1, 3, 5), -7).all()


def test_unknown_mask_is_refused():
    with pytest.raises(ValueError, match="mask of the contract: got diagonal"):
        reference.allowed(mask_spec.Spec("diagonal"), (1, 1, 1, 1))


def test_oracle_imports_no_backend():
    code = "import sys, conformance.oracle.reference; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "numpy" in loaded, "the subprocess says nothing"
    assert not loaded & {"torch", "jax", "flax", "attn_numpy", "attn_torch", "attn_jax"}
