"""The chapter on a cache of a window: fixed memory, and for ever what one pass gives."""

from itertools import pairwise

import numpy as np
import pytest

from .cases.compare import refused
from .cases.decoding import STREAMS, B, Stream, part, unless_handed_on
from .contract import clause
from .mask_spec import sliding_window
from .oracle.tolerance import same
from .subjects.protocol import require

LONG = 23
WINDOWS = [0, 1, 4, LONG]
CUTS = {
    "ones": range(LONG + 1),
    "uneven": (0, 1, 4, 5, 6, 6, 13, 14, 21, LONG),
    "long_prompt": (0, 17, 18, 19, LONG),
    "at_once": (0, LONG),
}
ATTENTION = STREAMS["attention"]
HIDDEN = np.random.default_rng(81).random((B, LONG)) < [[0.0], [0.4], [0.8]]


def start(subject, stream: Stream, window: int, dtype_name: str = "float32", **options):
    require(subject, "cache", "errors")
    return stream.start(subject, 1, dtype_name, window=window, **options)


def check_feeds(decoding, stream: Stream, x, window: int, cuts) -> None:
    exact, naive = stream.one_pass(x, mask=sliding_window(window))
    for first, last in pairwise(cuts):
        got = stream.feed(decoding, x[:, first:last])
        part(got, exact, naive, first, f"outputs of tokens {first}..{last - 1}")


@clause("CACHE-13")
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_cache_is_one_pass_under_its_window(subject, window, cuts):
    decoding = start(subject, ATTENTION, window)
    check_feeds(decoding, ATTENTION, ATTENTION.tokens(length=LONG), window, CUTS[cuts])
    same(decoding.lengths, [LONG] * B, "lengths")
    slots = decoding.cache.key.shape[2]
    assert slots == window + 1, f"CACHE-13: slots: expected {window + 1}, got {slots}"


@clause("CACHE-13")
@pytest.mark.parametrize("name", [name for name in STREAMS if name not in ("attention", "seq2seq")])
def test_a_model_with_window_caches_is_one_pass(subject, name):
    stream = STREAMS[name]
    decoding = start(subject, stream, 2)
    check_feeds(decoding, stream, stream.tokens(length=11), 2, (0, 5, 6, 7, 11))


@clause("CACHE-13")
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_a_window_cache_in_other_dtypes(subject, dtype):
    decoding = start(subject, ATTENTION, 3, dtype)
    x = ATTENTION.tokens(dtype, LONG)
    check_feeds(decoding, ATTENTION, x, 3, CUTS["uneven"])


@clause("CACHE-13")
@pytest.mark.parametrize("cuts", ["ones", "uneven", "at_once"])
@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_hidden_tokens_leave_a_window_as_it_is(subject, cuts, fill):
    window, x = 2, ATTENTION.tokens(length=LONG)
    decoding, outputs = start(subject, ATTENTION, window), []
    fed = np.where(HIDDEN[..., None], np.float32(fill), x)
    for first, last in pairwise(CUTS[cuts]):
        hidden = HIDDEN[:, first:last]
        outputs.append(ATTENTION.feed(decoding, fed[:, first:last], hidden=hidden))
    got = np.concatenate(outputs, 1)
    same(got[HIDDEN], np.zeros_like(got[HIDDEN]), "outputs of hidden tokens")
    for b in range(B):
        kept = x[b : b + 1, ~HIDDEN[b]]
        exact, naive = ATTENTION.one_pass(kept, mask=sliding_window(window))
        part(got[b : b + 1, ~HIDDEN[b]], exact, naive, 0, f"sample {b}")
    same(decoding.lengths, (~HIDDEN).sum(1), "lengths")


@clause("CACHE-13")
@pytest.mark.parametrize("name", ["decoder", "transformer"])
def test_windows_of_a_stack_go_on_from_other_samples(subject, name):
    stream, order = STREAMS[name], np.array([2, 0, 0])
    x, ragged = stream.tokens(length=14), np.arange(7) >= np.array([7, 2, 5])[:, None]
    decoding = start(subject, stream, 2)
    stream.feed(decoding, np.where(ragged[..., None], np.nan, x[:, :7]), hidden=ragged)
    decoding = decoding.reorder(order)
    pieces = [stream.feed(decoding, x[:, t : t + 1]) for t in range(7, 12)]
    got = np.concatenate([*pieces, stream.feed(decoding, x[:, 12:])], 1)
    same(decoding.lengths, [12, 14, 14], "lengths")
    for sample, row in enumerate(order):
        told = np.concatenate((x[row, :7][~ragged[row]], x[sample, 7:]))[None]
        exact, naive = stream.one_pass(told, mask=sliding_window(2), rows=[row])
        part(got[sample : sample + 1], exact, naive, told.shape[1] - 7, f"sample {sample}")


@clause("CACHE-13")
def test_branches_of_a_window_go_their_own_ways(subject):
    x = ATTENTION.tokens(length=LONG)
    decoding = start(subject, ATTENTION, 2)
    ATTENTION.feed(decoding, x[:, :9])
    other, turned = decoding.copy(), decoding.reorder(np.array([2, 0, 0]))
    ATTENTION.feed(other, x[:, :4] + 1)
    again = x[[2, 0, 0]]
    for branch, tokens in ((decoding, x), (turned, again)):
        exact, naive = ATTENTION.one_pass(tokens, mask=sliding_window(2))
        got = ATTENTION.feed(branch, tokens[:, 9:12])
        part(got, exact, naive, 9, "a branch")


@clause("CACHE-13")
def test_a_window_is_not_touched_by_what_is_refused(subject):
    x = ATTENTION.tokens(length=LONG)
    decoding = start(subject, ATTENTION, 3)
    ATTENTION.feed(decoding, x[:, :7])
    wrong = {
        "attn_mask must be None where the cache has a window": lambda: decoding.feed(
            x[:, 7:9], attn_mask=sliding_window(3)
        ),
        "key must be a cache without a window": lambda: decoding.look(x[:, 7:9]),
        "lengths must be 0, or all, once": lambda: decoding.truncate(6),
    }
    for rule, call in wrong.items():
        refused(subject, call, ValueError, rule, beside=decoding.copy)
    exact, naive = ATTENTION.one_pass(x, mask=sliding_window(3))
    part(ATTENTION.feed(decoding, x[:, 7:9]), exact, naive, 7, "what follows a refusal")
    unless_handed_on(lambda: decoding.earlier().feed(x[:, 7:8]))


@clause("CACHE-13")
@pytest.mark.parametrize("kept", [0, 2, 4])
def test_a_window_that_is_not_full_forgets(subject, kept):
    x = ATTENTION.tokens(length=LONG)
    decoding = start(subject, ATTENTION, 6)
    ATTENTION.feed(decoding, x[:, :4] + 1)
    decoding = decoding.truncate(0)
    ATTENTION.feed(decoding, x[:, :kept])
    ATTENTION.feed(decoding, x[:, :2] - 1)
    decoding = decoding.truncate(kept)
    exact, naive = ATTENTION.one_pass(x, mask=sliding_window(6))
    for first, last in ((kept, kept + 3), (kept + 3, kept + 4), (kept + 4, 15)):
        part(ATTENTION.feed(decoding, x[:, first:last]), exact, naive, first, "after truncate")


@clause("CACHE-13")
def test_nothing_shows_of_slots_that_are_not_written(subject):
    x = ATTENTION.tokens(length=9)
    decoding = start(subject, ATTENTION, 4)
    ATTENTION.feed(decoding, x[:, :2])
    decoding = decoding.poison(np.nan)
    exact, naive = ATTENTION.one_pass(x, mask=sliding_window(4))
    for first, last in ((2, 4), (4, 5), (5, 9)):
        part(ATTENTION.feed(decoding, x[:, first:last]), exact, naive, first, "beside NaN")


@clause("CACHE-13")
@pytest.mark.untyped
def test_a_compiled_step_of_a_window(subject):
    require(subject, "transforms")
    decoding = start(subject, ATTENTION, 3, compiled=True)
    x = ATTENTION.tokens(length=LONG)
    check_feeds(decoding, ATTENTION, x, 3, CUTS["ones"])
    assert decoding.programs == 1, f"CACHE-13: programs: expected 1, got {decoding.programs}"
