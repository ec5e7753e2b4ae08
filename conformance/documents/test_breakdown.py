"""Document B, "In-Depth Breakdown of Self-Attention, Multi-Head and Masked Attention (Part 2)"."""

import numpy as np
import pytest

from conformance.cases.arrays import normal
from conformance.contract import clause
from conformance.mask_spec import allow, causal, hide
from conformance.oracle import expected, reference
from conformance.oracle.naive import linear as naive_linear
from conformance.oracle.tolerance import compare, same
from conformance.oracle.tolerance import dtype as numpy_dtype
from conformance.subjects.protocol import require

EIGHT_HEADS = {"embed_dim": 512, "num_heads": 8, "empty_rows": "nan"}
SENTENCE = "机器学习真好玩"


def sentence(features: int = 16) -> np.ndarray:
    """Embed the document's sentence of seven characters: (1, 1, 7, features)."""
    vectors = {c: normal(ord(c), features, dtype_name="float32") for c in SENTENCE}
    return np.stack([vectors[c] for c in SENTENCE])[None, None]


@clause("DOC-B1")
def test_eight_heads_of_width_512_keep_the_shape(subject):
    require(subject, "multihead")
    x = normal(0, 2, 7, 512, dtype_name="float32")
    output, _ = subject.multihead(EIGHT_HEADS, subject.parameters(EIGHT_HEADS), x)
    assert output.shape == (2, 7, 512) and np.isfinite(output).all()


@clause("DOC-B2")
def test_the_split_and_back_is_the_identity(subject):
    require(subject, "multihead")
    config = {"embed_dim": 128, "num_heads": 8, "bias": False, "empty_rows": "nan"}
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    parameters = {f"{name}.weight": np.eye(128, dtype=np.float32) for name in names}
    x = normal(0, 1, 7, 128, dtype_name="float32")
    diagonal = ~np.eye(7, dtype=bool)  # each token sees itself alone: what is split comes back
    output, weights = subject.multihead(
        config, parameters, x, attn_mask=diagonal, average_weights=False
    )
    assert weights.shape == (1, 8, 7, 7), "DOC-B2: (1, 7, 128) is eight heads of (7, 16)"
    same(output, x, "split into (1, 8, 7, 16) and joined again")


@clause("DOC-B3")
def test_the_number_of_parameters_does_not_depend_on_heads(subject):
    require(subject, "multihead")
    for heads in (1, 4, 8):
        found = subject.parameters({"embed_dim": 128, "num_heads": heads})
        count = sum(x.size for x in found.values())
        assert (len(found), count) == (8, 4 * (128 * 128 + 128)), f"DOC-B3: {heads}: {count}"


@clause("DOC-B4")
def test_one_head_is_not_self_attention(subject):
    require(subject, "multihead")
    config = {"embed_dim": 16, "num_heads": 1, "empty_rows": "nan"}
    x, parameters = sentence()[:, 0], subject.parameters(config)
    output, _ = subject.multihead(config, parameters, x)
    projected = [reference.linear(x, parameters[f"{n}_proj.weight"], None) for n in "qkv"]
    projected = [p[:, None].astype(np.float32) for p in projected]
    alone = expected.attention(*projected, allowed=np.ones((1, 1, 7, 7)))
    exact, naive = (steps["output"][:, 0] for steps in alone)
    assert abs(output - exact).max() > 0.05, "DOC-B4: W^o changes nothing"
    last = parameters["out_proj.weight"]
    naive = naive_linear(naive, parameters, "out_proj")
    compare(output, reference.linear(exact, last, None), naive, "self-attention, then W^o")


@clause("DOC-B5")
def test_the_formula_with_its_shapes(subject):
    require(subject, "attention")
    n, d_k, d_v = 7, 16, 24
    inputs = [normal(i, 1, 1, n, d, dtype_name="float32") for i, d in enumerate((d_k, d_k, d_v))]
    steps = subject.steps(*inputs, empty_rows="nan")
    assert steps["weights"].shape == (1, 1, n, n) and steps["output"].shape == (1, 1, n, d_v)
    exact, naive = expected.attention(*inputs, allowed=np.ones((1, 1, n, n)))
    for name in ("weights", "output"):
        compare(steps[name], exact[name], naive[name], name)


@clause("DOC-B6")
def test_the_first_output_never_changes_under_the_mask(subject):
    require(subject, "attention")
    x = sentence()
    allowed = np.tri(7, dtype=bool)[None, None]
    exact, naive = expected.attention(x, x, x, allowed=allowed)
    for n in range(1, 8):
        part = x[:, :, :n]
        steps = subject.steps(part, part, part, mask=causal(), empty_rows="nan")
        same(steps["weights"][0, 0] > 0, np.tri(n, dtype=bool), f"A' of {n} tokens is triangular")
        grown = [y["output"][:, :, :n] for y in (exact, naive)]
        compare(steps["output"], *grown, f"outputs of {n} tokens")


@clause("DOC-B6")
def test_the_first_output_changes_without_the_mask(subject):
    require(subject, "attention")
    x = sentence()
    one, two = (subject.attention(*[x[:, :, :n]] * 3, empty_rows="nan")[0, 0, 0] for n in (1, 2))
    assert abs(one - two).max() > 0.01, "DOC-B6: o_1 must change at n = 2 without a mask"


@clause("DOC-B7")
def test_zero_before_the_softmax_is_not_a_mask(subject):
    require(subject, "attention")
    x = sentence()
    allowed = np.tri(7, dtype=bool)[None, None]
    scores = subject.steps(x, x, x)["scores"]
    to_zero = np.where(allowed, 0, -scores)[0, 0].astype(np.float32)  # score + bias is exactly 0
    weights = subject.steps(x, x, x, bias=to_zero, empty_rows="nan")["weights"]
    hidden = weights[~np.broadcast_to(allowed, weights.shape)]
    assert (hidden > 0).all(), "DOC-B7: a score of 0 still gets a weight"


@clause("DOC-B7")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("fill", [-1e9, -np.inf], ids=["-1e9", "-inf"])
def test_fills_become_zero_after_the_softmax(subject, fill, dtype):
    require(subject, "attention")
    x = sentence().astype(numpy_dtype(dtype))
    with np.errstate(over="ignore"):  # in float16 -1e9 is -inf
        bias = np.where(np.tri(7, dtype=bool), 0, fill).astype(numpy_dtype(dtype))
    weights = subject.steps(x, x, x, bias=bias, empty_rows="nan")["weights"]
    above = np.triu_indices(7, 1)
    same(weights[0, 0][above], np.zeros(21), "weights above the diagonal")


@clause("DOC-B7")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_row_of_nothing_but_minus_1e9(subject, dtype):
    require(subject, "attention")
    x = sentence().astype(dtype)
    with np.errstate(over="ignore"):
        bias = np.full((7, 7), -1e9).astype(dtype)
    weights = subject.steps(x, x, x, bias=bias, empty_rows="nan")["weights"]
    if dtype == "float16":  # -inf: nothing is left
        same(weights, np.full((1, 1, 7, 7), np.nan), "weights")
    else:  # a finite fill that swallows every score: all alike
        exact = np.full((1, 1, 7, 7), 1 / 7)
        compare(weights, exact, exact.astype(np.float32), "weights")


@clause("DOC-B8")
def test_mask_equal_to_zero_hides_is_allow(subject):
    require(subject, "attention")
    x, ones = sentence(), np.tril(np.ones((1, 1, 7, 7), np.int64))
    hidden = ones == 0
    by_allow = subject.attention(x, x, x, mask=allow(ones == 1), empty_rows="nan")
    by_hide = subject.attention(x, x, x, mask=hide(hidden), empty_rows="nan")
    same(by_allow, by_hide, "allow(mask == 1) against hide(mask == 0)")
    exact, naive = expected.attention(x, x, x, allowed=~hidden)
    compare(by_allow, exact["output"], naive["output"], "output")


@clause("DOC-B9")
def test_training_shifts_the_target_by_one(subject):
    require(subject, "attention")
    target = np.array([[1, 5, 6, 7, 8, 9, 2]])  # <bos> ... <eos>: seven tokens
    given, labels = target[:, :-1], target[:, 1:]
    assert (given.shape, labels.shape) == ((1, 6), (1, 6))
    rows = normal(9, 10, 16, dtype_name="float32")
    x = rows[given][:, None]
    output = subject.attention(x, x, x, mask=causal(), empty_rows="nan")
    for n in range(1, 6):  # what predicts labels[n - 1] has seen the tokens before it, no more
        changed = np.where(np.arange(6) < n, given, 3)
        y = rows[changed][:, None]
        again = subject.attention(y, y, y, mask=causal(), empty_rows="nan")
        same(again[:, :, :n], output[:, :, :n], f"outputs for the first {n} labels")


@clause("DOC-B12")
@pytest.mark.parametrize("row", range(1, 7))
def test_later_rows_cannot_influence_earlier_ones(subject, row):
    require(subject, "attention")
    x = sentence()
    changed = np.array(x)
    changed[:, :, row:] += 1
    before, after = (
        subject.attention(y, y, y, mask=causal(), empty_rows="nan") for y in (x, changed)
    )
    same(after[:, :, :row], before[:, :, :row], f"rows before {row}")
    assert abs(after - before)[:, :, row:].max() > 0.1, "DOC-B12: nothing was changed"
