"""Document A, "Transformer, Multi-head Attention Pytorch Guide Focusing on Masking", by example."""

import numpy as np
import pytest

from conformance.cases.arrays import normal
from conformance.contract import clause
from conformance.documents.printed import (
    KEY_PADDING,
    LOOK_AHEAD,
    MEMORY_LOOK_AHEAD,
    SOURCE,
    SOURCE_LENGTHS,
    embedded,
    table,
)
from conformance.mask_spec import hide, padding
from conformance.oracle import expected
from conformance.oracle.tolerance import Differs, compare, same
from conformance.subjects.protocol import require

N, E, S, T = 5, 16, 10, 20
CONFIG = {"embed_dim": E, "num_heads": 2, "empty_rows": "nan"}
SEQUENCE_FIRST = CONFIG | {"batch_first": False}
HIDDEN = table(KEY_PADDING).astype(bool)
SEEN = np.broadcast_to(~HIDDEN[:, None, None] & np.tri(S, dtype=bool), (N, 2, S, S))


def first_parameters(subject):
    """Return the module's own first parameters: Xavier-uniform weights, biases of 0."""
    require(subject, "multihead")
    return subject.parameters(CONFIG)


def self_attention(subject, parameters, **options):
    """The document's call: sequence first, both masks. Returns output (S, N, E) and weights."""
    x = embedded(SOURCE, E).swapaxes(0, 1)
    masks = {"key_padding_mask": HIDDEN, "attn_mask": subject.look_ahead_mask(S, S)}
    return subject.multihead(SEQUENCE_FIRST, parameters, x, x, x, **masks | options)


def oracle(parameters):
    x = embedded(SOURCE, E)
    return expected.multihead(parameters, 2, 2, x, x, x, allowed=SEEN, empty_rows="nan")


@clause("DOC-A1")
def test_token_table_gives_the_printed_mask(subject):
    require(subject, "masks")
    same(subject.sequence_mask(SOURCE, 0), HIDDEN, "key padding mask")


@clause("DOC-A2")
def test_padding_spreads_over_every_query(subject):
    require(subject, "masks")
    hidden = subject.ask("hidden", padding(hidden=subject.sequence_mask(SOURCE, 0)), T, S)
    spread = np.broadcast_to(hidden, (N, 1, T, S))[:, 0]
    for n, length in enumerate(SOURCE_LENGTHS):
        row = [False] * length + [True] * (S - length)
        same(spread[n], [row] * T, f"sample {n}, every query")


@clause("DOC-A3")
def test_masking_scores_touches_padded_columns_only(subject):
    require(subject, "attention")
    query, key = normal(3, N, 1, T, E), normal(4, N, 1, S, E)
    query, key = query.astype(np.float32), key.astype(np.float32)
    steps = subject.steps(query, key, key, mask=padding(hidden=HIDDEN), empty_rows="nan")
    columns = np.broadcast_to(HIDDEN[:, None, None], (N, 1, T, S))
    masked, scores = steps["masked_scores"], steps["scores"]
    same(masked[columns], np.full(columns.sum(), -np.inf), "padded columns")
    same(masked[~columns], scores[~columns], "every other score")
    same(np.isneginf(masked[0, 0, 0]), HIDDEN[0], "sample 0 as printed")


@clause("DOC-A4")
@pytest.mark.parametrize(
    ("rows", "printed"), [(S, LOOK_AHEAD), (T, MEMORY_LOOK_AHEAD)], ids=["own", "memory"]
)
def test_look_ahead_mask_is_as_printed(subject, rows, printed):
    require(subject, "masks")
    got = subject.look_ahead_mask(rows, S)
    same(got, table(printed), f"look-ahead mask {rows} x {S}")
    same(got[9:], np.zeros((rows - 9, S)), "rows 9 and on")


@clause("DOC-A5")
def test_self_attention_gives_the_printed_weights(subject):
    parameters = first_parameters(subject)
    output, weights = self_attention(subject, parameters)
    assert (output.shape, weights.shape) == ((S, N, E), (N, S, S))
    first = weights[0]
    same(first[0], np.eye(S)[0], "row 0 sees itself alone")
    same(first[~SEEN[0, 0]], np.zeros((~SEEN[0, 0]).sum()), "upper triangle and columns 5..")
    fifth = np.float32(0.2)
    off = abs(first[5:, :5] - fifth).max()
    if off > np.spacing(fifth):
        raise Differs(f"rows 5 to 9 are 0.2 to one ulp over five columns: off by {off:.3g}")
    exact, naive = oracle(parameters)
    compare(weights, exact["weights"].mean(1), naive["weights"].mean(1), "weights")
    compare(output.swapaxes(0, 1), exact["output"], naive["output"], "output")


@clause("DOC-A6")
def test_rows_sum_to_one_and_weights_are_averaged(subject):
    parameters = first_parameters(subject)
    _, weights = self_attention(subject, parameters)
    _, per_head = self_attention(subject, parameters, average_weights=False)
    _, naive = oracle(parameters)
    compare(weights.sum(-1), np.ones((N, S)), naive["weights"].mean(1).sum(-1), "sums of rows")
    compare(weights, per_head.astype(float).mean(1), per_head.mean(1), "mean over the heads")
    assert abs(per_head[:, 0] - per_head[:, 1]).max() > 0.01, "DOC-A6: the heads are alike"


@clause("DOC-A7")
def test_outputs_at_padded_positions_are_not_zero(subject):
    parameters = first_parameters(subject)
    output, _ = self_attention(subject, parameters)
    padded = output.swapaxes(0, 1)[HIDDEN]
    least = abs(padded).max(-1).min()
    assert np.isfinite(output).all() and least > 1e-3, f"DOC-A7: a padded output is {least}"


@clause("DOC-A9")
def test_a_mask_of_float_ones_equals_zeros_and_of_bool_ones_hides_all(subject):
    parameters = first_parameters(subject)
    x = embedded(SOURCE, E).swapaxes(0, 1)
    masks = [np.zeros((S, S), np.float32), np.ones((S, S), np.float32), np.ones((S, S), bool)]
    zeros, ones, hides = (
        subject.multihead(SEQUENCE_FIRST, parameters, x, attn_mask=m, key_padding_mask=HIDDEN)[0]
        for m in masks
    )
    allowed = np.broadcast_to(~HIDDEN[:, None, None], (N, 2, S, S))
    y = embedded(SOURCE, E)
    bias = np.ones((S, S), np.float32)
    exact, naive = expected.multihead(parameters, 2, 2, y, y, y, allowed=allowed, bias=bias)
    for got, name in ((zeros, "zeros"), (ones, "ones")):
        compare(got.swapaxes(0, 1), exact["output"], naive["output"], f"float mask of {name}")
    same(hides, np.full((S, N, E), np.nan), "bool mask of ones")


@clause("DOC-A11")
@pytest.mark.parametrize("place", ["encoder", "decoder_self", "decoder_cross"])
def test_each_mask_goes_where_the_table_says(subject, place):
    parameters = first_parameters(subject)
    target = np.where(np.arange(T) < np.array([12, 8, 10, 7, 17])[:, None], 3 + np.arange(T), 0)
    source, aim = embedded(SOURCE, E), embedded(target, E)
    aim_hidden = subject.sequence_mask(target, 0)
    query, key, hidden, mask = {
        "encoder": (source, source, HIDDEN, np.zeros((S, S), np.float32)),
        "decoder_self": (aim, aim, aim_hidden, subject.look_ahead_mask(T, T)),
        "decoder_cross": (aim, source, HIDDEN, subject.look_ahead_mask(T, S)),
    }[place]
    allowed = np.broadcast_to(~hidden[:, None, None], (N, 2, query.shape[1], key.shape[1]))
    allowed = allowed & ~np.isneginf(mask)
    exact, naive = expected.multihead(parameters, 2, 2, query, key, key, allowed=allowed)
    options = {"key_padding_mask": hidden, "attn_mask": mask}
    got, _ = subject.multihead(CONFIG, parameters, query, key, key, **options)
    assert np.isfinite(got).all(), "DOC-A11: NaN in a call that the table calls right"
    compare(got, exact["output"], naive["output"], f"{place} attention")


def attend(subject, S=10, D_v=16, **options):
    """Return the output for five samples of ten queries, fully masked rows as NaN."""
    require(subject, "attention")
    shapes = ((N, 2, 10, 16), (N, 2, S, 16), (N, 2, S, D_v))
    arrays = (normal(i, *shape).astype(np.float32) for i, shape in enumerate(shapes))
    return subject.attention(*arrays, empty_rows="nan", **options)


@clause("DOC-A12")
def test_a_sample_of_length_zero_is_nan_alone(subject):
    got = np.isnan(attend(subject, mask=padding([5, 4, 0, 2, 3])))
    same(got, np.broadcast_to(np.arange(N)[:, None, None, None] == 2, got.shape), "where NaN is")


@clause("DOC-A12")
def test_a_masked_row_is_nan_alone_and_a_masked_column_is_not(subject):
    bias = np.zeros((10, 10), np.float32)
    bias[:, 4] = -np.inf
    column = np.isnan(attend(subject, bias=bias))
    same(column, np.zeros(column.shape, bool), "NaN from a column of -inf")
    bias[3] = -np.inf
    row = np.isnan(attend(subject, bias=bias))
    same(row, np.broadcast_to(np.arange(10)[:, None] == 3, row.shape), "NaN from a row of -inf")


@clause("DOC-A12")
@pytest.mark.parametrize("sizes", [{"S": 1}, {"D_v": 7}], ids=["length_1", "d_v"])
def test_a_length_of_one_and_other_value_widths_work(subject, sizes):
    got = attend(subject, **sizes)
    assert np.isfinite(got).all(), "DOC-A12: the document's constraint is not one"
    if "S" in sizes:
        value = normal(2, N, 2, 1, 16).astype(np.float32)
        same(got, np.broadcast_to(value, got.shape), "the only value there is")


@clause("DOC-A12")
def test_plus_infinity_in_a_bias_is_nan(subject):
    bias = np.zeros((10, 10), np.float32)
    bias[3, 4] = np.inf
    got = np.isnan(attend(subject, bias=bias))
    same(got, np.broadcast_to(np.arange(10)[:, None] == 3, got.shape), "where NaN is")


@clause("DOC-A12")
def test_hiding_everything_hides_everything(subject):
    got = attend(subject, mask=hide(np.ones((1, 1, 10, 10), bool)))
    same(got, np.full(got.shape, np.nan), "output")


@clause("DOC-A14")
def test_evaluation_switches_dropout_off(subject):
    parameters = first_parameters(subject)
    x = embedded(SOURCE, E)
    dropped = CONFIG | {"dropout": 0.4}
    plain, _ = subject.multihead(CONFIG, parameters, x)
    evaluated, _ = subject.multihead(dropped, parameters, x, seed=1)
    same(evaluated, plain, "evaluation with a dropout of 0.4")
    first, second = (
        subject.multihead(dropped, parameters, x, training=True, seed=seed)[0] for seed in (1, 2)
    )
    assert abs(first - second).max() > 1e-3, "DOC-A14: two calls in training are the same"
