"""The chapter on causal masks: alignment, growth, and padding on either side."""

from functools import partial

import numpy as np
import pytest

from .cases.arrays import normal
from .cases.attention import LENGTHS, MAIN, SQUARE, Case
from .cases.compare import check_output, check_steps, refused
from .contract import clause
from .mask_spec import causal, chunked, packed, padding, prefix, segments, sliding_window
from .oracle import reference
from .oracle.tolerance import Differs, same
from .subjects.protocol import TILE, require

CAUSAL = Case("causal", SQUARE, causal())
POSITIONAL = {
    "causal": causal(),
    "window": sliding_window(1, 1),
    "chunked": chunked(2),
    "packed": packed([[3, 2, 2]] * 3),
    "prefix": prefix([3, 0, 7]),
    "segments": segments([[1, 1, 2, 2, 2, 3, 3]] * 3),
    "causal_and_padding": causal() & padding(LENGTHS),
}


@clause("CAUSE-1")
def test_square_causal_is_the_lower_triangle(subject):
    weights = check_steps(subject, CAUSAL, "float32")["weights"]
    triangle = np.broadcast_to(np.tri(7, dtype=bool), weights.shape)
    same(weights > 0, triangle, "where weights are above 0")


@pytest.mark.untyped
@clause("CAUSE-2")
@pytest.mark.parametrize("name", POSITIONAL)
@pytest.mark.parametrize("T", [1, 5, 9])
def test_missing_offset_names_both_readings(subject, name, T):
    require(subject, "causal")
    query, key = (normal(1, 3, 2, n, 11, dtype_name="float32") for n in (T, 7))
    texts = ("0 where ", f"S - T = {7 - T} where", "got None")
    refused(
        subject,
        lambda: subject.attention(query, key, key, mask=POSITIONAL[name]),
        ValueError,
        *texts,
        beside=lambda: subject.attention(query, key, key),
    )


@clause("CAUSE-2")
def test_masks_without_positions_need_no_offset(subject):
    check_steps(subject, Case("padding", MAIN, padding(LENGTHS)), "float32")


@clause("CAUSE-3")
@pytest.mark.parametrize("offset", [0, 2, np.array([0, 2, 1])], ids=["0", "S-T", "per_sample"])
def test_offsets_see_what_they_say(subject, offset):
    weights = check_steps(
        subject, Case("offset", MAIN, causal(), query_offset=offset), "float32"
    )["weights"]  # fmt: skip
    counts = np.broadcast_to(offset, 3)[:, None, None] + np.arange(1, 6)
    same((weights > 0).sum(-1), np.broadcast_to(counts, (3, 2, 5)), "keys seen by each query")


@clause("CAUSE-3")
def test_one_query_against_a_cache_of_five_sees_five_keys(subject):
    require(subject, "attention")
    query, key, value = (normal(n, 3, 2, n, 11, dtype_name="float32") for n in (1, 5, 5))
    got = subject.attention(query, key, value, mask=causal(), query_offset=4)
    check_output(got, query, key, value, "output over all five keys")


@clause("CAUSE-4")
@pytest.mark.parametrize("later", [1, 4, 6])
@pytest.mark.parametrize("through", ["attention", "blocked"])
def test_later_tokens_never_change_earlier_outputs(subject, through, later):
    require(subject, through)
    inputs = CAUSAL.inputs("float32")
    changed = [np.array(x) for x in inputs]
    for x in changed:
        x[:, :, later:] = normal(later, *x[:, :, later:].shape)
    call = subject.attention if through == "attention" else partial(subject.blocked, tile=TILE)
    before, after = (call(*x, mask=causal()) for x in (inputs, changed))
    same(after[:, :, :later], before[:, :, :later], f"outputs before token {later}")
    assert abs(after - before)[:, :, later:].max() > 0.1, "the tokens were not changed"


@clause("CAUSE-4")
@pytest.mark.parametrize("t", [0, 3, 6])
def test_gradient_reaches_exactly_what_a_query_sees(subject, t):
    require(subject, "gradients")
    grad = np.zeros_like(CAUSAL.grad("float32"))
    grad[:, :, t] = CAUSAL.grad("float32")[:, :, t]
    got = subject.gradients(*CAUSAL.inputs("float32"), grad, mask=causal())
    reached = {name: np.abs(x).max((0, 1, 3)) > 0 for name, x in got.items()}
    same(reached["value"], np.arange(7) <= t, "values reached")
    if reached["key"][t + 1 :].any() or np.delete(reached["query"], t).any():
        raise Differs(f"query {t} reaches keys {reached['key']} and queries {reached['query']}")


@clause("CAUSE-5")
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_equals_its_trimmed_samples(subject, side):
    require(subject, "attention")
    inputs, lengths = CAUSAL.inputs("float32"), [7, 2, 5]
    real = [np.s_[:n] if side == "right" else np.s_[7 - n :] for n in lengths]
    hidden = np.ones((3, 7), bool)
    for b, part in enumerate(real):
        hidden[b, part] = False
    spec = causal() & (padding(lengths) if side == "right" else padding(hidden=hidden))
    padded = subject.attention(*inputs, mask=spec)
    for b, part in enumerate(real):
        alone = [x[b : b + 1, :, part] for x in inputs]
        allowed = reference.allowed(causal(), (1, 2, lengths[b], lengths[b]))
        check_output(padded[b : b + 1, :, part], *alone, f"sample {b} as if alone", allowed=allowed)


FAR = [
    Case("window_of_thousands", MAIN, sliding_window(5000), 4998),
    Case(
        "window_from_far",
        MAIN,
        sliding_window(4100, 3) & padding(LENGTHS),
        np.array([4103, 4099, 4102]),
    ),
    Case("window_ahead", MAIN, sliding_window(1, 3001), np.array([-3000, -2999, 2])),
    Case("causal_from_far", MAIN, causal(), np.array([5000, -3000, 3])),
    Case("causal_moved_on", SQUARE._replace(D_v=SQUARE.D), causal(), 2),
    Case("causal_moved_back", SQUARE._replace(D_v=SQUARE.D), causal(), -2),
    Case("prefix_from_far", MAIN, prefix([3, 0, 7]), np.array([-5000, 5000, -2])),
    Case(
        "segments_from_far", MAIN, segments([[1, 1, 2, 2, 2, 3, 3]] * 3), np.array([-4000, 4000, 3])
    ),
]


@clause("CAUSE-3")
@pytest.mark.parametrize("case", FAR, ids=[case.name for case in FAR])
def test_positions_of_thousands_see_what_they_say(subject, case):
    assert 0 < case.allowed().mean() < 1, "CAUSE-3: the case is blind"
    check_steps(subject, case, "float32")
