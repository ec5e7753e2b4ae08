"""The chapter on the cache: tokens one by one, in chunks or at once give what one pass gives."""

from functools import cache

import numpy as np
import pytest

from .cases.arrays import coins, normal
from .cases.compare import refused
from .cases.decoding import SOURCE_HIDDEN, STEPS, STREAMS, B, N, S, Stream, part, unless_handed_on
from .cases.models import ModelCase
from .contract import clause
from .mask_spec import allow, causal, hide, padding, predicate, prefix, sliding_window
from .oracle import reference
from .oracle.expected import multihead
from .oracle.tolerance import Differs, allowance, check_dtype, check_each, close, compare, same
from .subjects.protocol import require

EVERY = pytest.mark.parametrize("name", STREAMS)
ATTENTION, ENCODER = STREAMS["attention"], STREAMS["encoder"]
STACKS = ["attention", "encoder", "decoder", "transformer"]


@clause("CACHE-1")
@EVERY
def test_token_by_token_is_one_pass(subject, name):
    stream = STREAMS[name]
    decoding = stream.start(subject)
    stream.check_feeds(decoding, stream.tokens(), STEPS, *stream.whole())
    same(decoding.lengths, [N] * B, "lengths")


@clause("CACHE-1")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*(("attention", dtype) for dtype in ("float64", "float16")),
     *((name, "bfloat16") for name in ("attention", "decoder"))],
)  # fmt: skip
def test_token_by_token_in_other_dtypes(subject, name, dtype):
    stream = STREAMS[name]
    x, (exact, naive) = stream.tokens(dtype), stream.whole(dtype)
    decoding = stream.start(subject, dtype_name=dtype)
    check_dtype(stream.feed(decoding, x[:, :1]), x.dtype, "output")
    decoding = stream.start(subject, dtype_name=dtype)
    stream.check_feeds(decoding, x, (3, *STEPS[3:]), exact, naive)


@clause("CACHE-1")
@pytest.mark.parametrize("name", ["attention", "encoder", "decoder_layer"])
def test_sequence_first_is_one_pass(subject, name):
    require(subject, "cache")
    plain = STREAMS[name]
    stream = Stream(name, plain.changes | {"batch_first": False})
    x, (exact, naive) = plain.tokens().swapaxes(0, 1), plain.whole()
    given = stream.given()
    if "memory" in given:
        given["memory"] = given["memory"].swapaxes(0, 1)
    arguments = (stream.kind, stream.config, stream.parameters())
    decoding = subject.decoding(*arguments, capacity=N, **given)
    for first, last in ((0, 4), (4, 5), (5, 7)):
        got = stream.feed(decoding, x[first:last]).swapaxes(0, 1)
        part(got, exact, naive, first, f"tokens {first}..{last - 1}")


@clause("CACHE-2")
@pytest.mark.untyped
@pytest.mark.parametrize(
    ("name", "prompt"),
    [*(("attention", n) for n in STEPS), *((name, n) for name in STACKS[1:] for n in (2, N))],
)
def test_every_split_of_prompt_and_steps(subject, name, prompt):
    """A stack does with a prompt what its attentions do, so that two of its splits are enough."""
    stream = STREAMS[name]
    decoding = stream.start(subject)
    stream.check_feeds(decoding, stream.tokens(), STEPS[prompt - 1 :], *stream.whole())


@clause("CACHE-2")
@pytest.mark.parametrize("cuts", [(3, 5, 7), (1, 5, 7), (2, 3, 7)], ids=str)
@EVERY
def test_chunks(subject, name, cuts):
    stream = STREAMS[name]
    stream.check_feeds(stream.start(subject), stream.tokens(), cuts, *stream.whole())


@clause("CACHE-2")
@pytest.mark.parametrize("capacity", [N, N + 4])
def test_capacity_beyond_what_is_fed_changes_nothing(subject, capacity):
    decoding = ENCODER.start(subject, capacity)
    ENCODER.check_feeds(decoding, ENCODER.tokens(), (4, 5, 7), *ENCODER.whole())


@clause("CACHE-2")
def test_no_token_changes_nothing(subject):
    decoding, x = ATTENTION.start(subject), ATTENTION.tokens()
    ATTENTION.feed(decoding, x[:, :3])
    got = ATTENTION.feed(decoding, x[:, :0])
    assert got.shape == (B, 0, 14), f"CACHE-2: no token gives {got.shape}"
    same(decoding.lengths, [3] * B, "lengths")
    part(ATTENTION.feed(decoding, x[:, 3:]), *ATTENTION.whole(), 3, "the tokens after it")


MASKS = {
    "causal": causal(),
    "window": sliding_window(2),
    "prefix": prefix([2, 0, 3]),
    "causal_and_padding": causal() & padding([7, 4, 6]),
}


@clause("CACHE-2")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["attention", "encoder", "decoder"])
def test_a_positional_mask_goes_by_the_tokens_positions(subject, name, mask):
    stream, spec = STREAMS[name], MASKS[mask]
    decoding = stream.start(subject, N + 2)
    exact, naive = stream.one_pass(stream.tokens(), mask=spec)
    argument = {"attention": "attn_mask", "encoder": "mask", "decoder": "tgt_mask"}[name]
    cuts = (4, 5, 7)  # the prefix lies within the first
    stream.check_feeds(decoding, stream.tokens(), cuts, exact, naive, **{argument: spec})


@clause("CACHE-2")
def test_a_mask_of_arrays_is_over_all_slots(subject):
    allowed = coins(75, B, 2, N, N + 2)
    x = ATTENTION.tokens()
    exact, naive = ATTENTION.one_pass(x, mask=allow(allowed[..., :N]))
    got = ATTENTION.start(subject, N + 2).feed(x, attn_mask=allow(allowed))
    compare(got, exact, naive, "output")


# Ragged batches: which of the fed tokens are padding, sample by sample

RAGGED = {
    "left": np.array([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], bool),
    "right": np.array([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]], bool),
    "middle": np.array([[0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 1, 0]], bool),
    "nothing": np.array([[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]], bool),
}


def check_ragged(subject, stream: Stream, pieces, garbage=0.0) -> None:
    """Feed pieces with hidden tokens; check each sample against a pass over its own tokens."""
    x, whole = stream.tokens(length=sum(h.shape[1] for h in pieces)), np.hstack(pieces)
    tokens = stream.kind == "seq2seq"
    x = np.where(whole, 0, x) if tokens else np.where(whole[..., None], np.float32(garbage), x)
    decoding, first, outputs = stream.start(subject, x.shape[1]), 0, []
    for hidden in pieces:
        piece = x[:, first : first + hidden.shape[1]]
        outputs.append(stream.feed(decoding, piece, **{} if tokens else {"hidden": hidden}))
        first += hidden.shape[1]
    got = np.concatenate(outputs, 1)
    for b in range(B):
        kept = ~whole[b]
        exact, naive = stream.one_pass(x[b : b + 1, kept], rows=slice(b, b + 1))
        compare(got[b : b + 1, kept], exact, naive, f"sample {b} as if alone")
    same(decoding.lengths, (~whole).sum(1), "lengths")
    if stream.kind == "attention":
        same(got[whole], np.zeros_like(got[whole]), "output of hidden tokens")


@clause("CACHE-3")
@pytest.mark.untyped
@pytest.mark.parametrize("side", RAGGED)
@EVERY
def test_a_ragged_prompt_then_steps(subject, name, side):
    step = np.zeros((B, 1), bool)
    check_ragged(subject, STREAMS[name], [RAGGED[side], step, step])


@clause("CACHE-3")
def test_a_long_ragged_prompt_keeps_its_order(subject):
    require(subject, "any_shape")
    hidden = coins(76, B, 20, true=0.4)
    check_ragged(subject, ATTENTION, [hidden])


@clause("CACHE-3")
@pytest.mark.parametrize("name", STACKS)
def test_ragged_chunks_at_lengths_of_their_own(subject, name):
    ended = np.array([[0], [1], [0]], bool)
    pieces = [RAGGED["right"], RAGGED["nothing"], ended, RAGGED["middle"], ended]
    check_ragged(subject, STREAMS[name], pieces)


@clause("CACHE-3")
@pytest.mark.parametrize("name", STACKS)
def test_ragged_chunks_that_end_at_one_length(subject, name):
    """A sample's tokens stand where its own ones end, though all samples end alike."""
    first = np.array([[0, 0, 1], [0, 1, 1], [0, 0, 0]], bool)
    then = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 1]], bool)
    check_ragged(subject, STREAMS[name], [first, then])


@clause("CACHE-3")
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("name", ["attention", "encoder"])
def test_hidden_tokens_may_hold_anything(subject, name, garbage):
    check_ragged(subject, STREAMS[name], [RAGGED["left"], RAGGED["middle"]], garbage)


@clause("CACHE-3")
def test_a_positional_mask_leaves_hidden_tokens_uncounted(subject):
    x, hidden, spec = ATTENTION.tokens(), RAGGED["middle"], sliding_window(1)
    decoding = ATTENTION.start(subject)
    got = [decoding.feed(x[:, :4], hidden=hidden, attn_mask=spec)]
    got = np.concatenate([*got, decoding.feed(x[:, 4:], attn_mask=spec)], 1)
    for b in range(B):
        kept = np.append(~hidden[b], [True] * 3)
        exact, naive = ATTENTION.one_pass(x[b : b + 1, kept], mask=spec)
        compare(got[b : b + 1, kept], exact, naive, f"sample {b} as if alone")


def hidden_levels():
    """Every level that decodes: norms on either side, a last norm, batch or sequence first."""
    for name in ("attention", "encoder_layer", "decoder_layer", *STACKS[1:], "seq2seq"):
        last = {"norm": True} if name in ("encoder", "decoder") else {}
        sides = [{}] if name == "attention" else [{"norm_first": False}, {"norm_first": True}]
        layouts = [{}] if name == "seq2seq" else [{}, {"batch_first": False}]
        for changes in (last | side | layout for side in sides for layout in layouts):
            words = [key if value else f"not_{key}" for key, value in changes.items()]
            yield pytest.param(Stream(name, changes), id="-".join([name, *words]))


@clause("CACHE-11")
@pytest.mark.untyped
@pytest.mark.parametrize("stream", list(hidden_levels()))
def test_hidden_tokens_come_out_as_zero(subject, stream):
    biases = [b for name, b in stream.parameters().items() if name.endswith("bias")]
    assert all(np.all(bias != 0) for bias in biases), "CACHE-11: a bias of 0 would hide a mistake"
    tokens, first = stream.kind == "seq2seq", not stream.config.get("batch_first", True)
    given = {name: flipped(x, first) for name, x in stream.given().items() if name in SOURCES}
    pieces = [*RAGGED.values(), np.array([[0], [1], [0]], bool)]
    decoding = stream.start(subject, sum(h.shape[1] for h in pieces), **given)
    for i, hidden in enumerate(pieces):
        x = stream.tokens(length=hidden.shape[1])
        if tokens:
            got = stream.feed(decoding, np.where(hidden, 0, x))
        else:
            got = flipped(stream.feed(decoding, flipped(x, first), hidden=hidden), first)
        same(got[hidden], np.zeros_like(got[hidden]), f"hidden tokens of chunk {i}")
        check_each(got[~hidden].any(-1), got[~hidden].any(-1), f"tokens of chunk {i}", "not all 0")


SOURCES = ("src", "memory")


def flipped(x: np.ndarray, sequence_first: bool) -> np.ndarray:
    """Return (B, T, E) as (T, B, E), or back, where the sequence comes first."""
    return x.swapaxes(0, 1) if sequence_first and x.ndim == 3 else x


def check_full(subject, call, text: str) -> None:
    """See that tokens are refused; those before them were not, as the callers have seen."""
    text = f"capacity must hold every token: got {text}"
    refused(subject, call, ValueError, text, beside=lambda: None)


@clause("CACHE-4")
@pytest.mark.untyped
@EVERY
def test_beyond_capacity_is_refused_and_writes_nothing(subject, name):
    stream = STREAMS[name]
    decoding = stream.start(subject, 5)
    x, (exact, naive) = stream.tokens(), stream.whole()
    stream.check_feeds(decoding, x, STEPS[:4], exact, naive)
    check_full(subject, lambda: stream.feed(decoding, x[:, 4:]), "7 tokens for 5 slots")
    same(decoding.lengths, [4] * B, "lengths after the refusal")
    got = stream.feed(decoding, x[:, 4:5])
    part(got, exact, naive, 4, "the token that still fits")
    check_full(subject, lambda: stream.feed(decoding, x[:, 5:6]), "6 tokens for 5 slots")


@clause("CACHE-4")
def test_hidden_tokens_take_no_slot(subject):
    x, hidden = ATTENTION.tokens(), RAGGED["middle"]
    decoding = ATTENTION.start(subject, 3)
    decoding.feed(x[:, :4], hidden=hidden)  # 2, 3 and 2 of four
    same(decoding.lengths, [2, 3, 2], "lengths")
    check_full(subject, lambda: decoding.feed(x[:, 4:5]), "4 tokens for 3 slots")


@clause("CACHE-4")
@pytest.mark.parametrize("name", ["attention", "encoder"])
def test_beyond_capacity_is_nan_where_nobody_can_look(subject, name):
    require(subject, "cache")
    require(subject, "traced")
    stream = STREAMS[name]
    x, (exact, naive) = stream.tokens(), stream.whole()
    decoding = stream.start(subject, 5, compiled=True)
    for t in range(N):
        got = stream.feed(decoding, x[:, t : t + 1])
        if t < 5:
            part(got, exact, naive, t, f"token {t}")
        else:
            same(got, np.full(got.shape, np.nan), f"token {t} of five slots")


@clause("CACHE-4")
@pytest.mark.parametrize("name", STACKS)
def test_a_cache_handed_on_raises_or_is_what_it_was(subject, name):
    stream = STREAMS[name]
    x, (exact, naive) = stream.tokens(), stream.whole()
    decoding = stream.start(subject)
    stream.check_feeds(decoding, x, (3, 4), exact, naive)
    other = np.concatenate([x[:, :3], x[::-1, 3:4]], 1)
    got = unless_handed_on(lambda: stream.feed(decoding.earlier(), other[:, 3:]))
    if got is not None:
        part(got, *stream.one_pass(other), 3, "another token on the earlier cache")
    part(stream.feed(decoding, x[:, 4:6]), exact, naive, 4, "the tokens after it")
    shorter = decoding.truncate(2)
    got = stream.feed(shorter, other[:, 2:])
    part(got, *stream.one_pass(other), 2, "other tokens on what was left")
    got = unless_handed_on(lambda: stream.feed(decoding, x[:, 6:]))
    if got is not None:
        part(got, exact, naive, 6, "a token on what was truncated")


@clause("CACHE-4")
@pytest.mark.untyped
def test_a_stack_that_cannot_be_truncated_is_what_it_was(subject):
    """The second layer has too few tokens: the first must not be truncated before that is seen."""
    require(subject, "errors", "cache")
    empty, two = subject.module.KVCache.empty, np.ones((2, 1, 2, 4), np.float32)
    layers = tuple(
        empty(2, 1, 5, 4).append(*(subject.array(two[:, :, :n]) for _ in "kv")) for n in (2, 1)
    )
    with pytest.raises(ValueError, match="at most what is written: got 2 of 1"):
        subject.module.StackCache(layers).truncate(2)
    same(subject.numpy(layers[0].truncate(1).lengths), [1, 1], "lengths of the first layer")


@clause("CACHE-4")
@pytest.mark.parametrize("name", STACKS)
def test_copies_go_their_own_ways(subject, name):
    stream = STREAMS[name]
    x, (exact, naive) = stream.tokens(), stream.whole()
    other = np.concatenate([x[:, :3], x[::-1, 3:]], 1)
    decoding = stream.start(subject)
    stream.check_feeds(decoding, x, (3,), exact, naive)
    branch = decoding.copy()
    pieces = {
        "first": (decoding, x, exact, naive),
        "copy": (branch, other, *stream.one_pass(other)),
    }
    for t in (3, 5):  # in turns
        for what, (own, y, *wanted) in pieces.items():
            got = stream.feed(own, y[:, t : t + 2])
            part(got, *wanted, t, f"{what}, tokens {t}, {t + 1}")
    same(branch.lengths, [N] * B, "the copy's lengths")


@clause("CACHE-5")
@pytest.mark.untyped
@pytest.mark.parametrize("number", [np.nan, np.inf, 1e30])
@EVERY
def test_unwritten_slots_may_hold_anything(subject, name, number):
    stream = STREAMS[name]
    x, (exact, naive) = stream.tokens(), stream.whole()
    decoding = stream.start(subject, N + 1).poison(number)
    stream.check_feeds(decoding, x, (3, 4), exact, naive)
    later = decoding.poison(number)
    for t in (4, 5, 6):
        part(stream.feed(later, x[:, t : t + 1]), exact, naive, t, f"token {t}")


@clause("CACHE-5")
@pytest.mark.parametrize("number", [np.nan, 1e30])
@pytest.mark.parametrize("name", ["attention", "encoder"])
def test_unwritten_slots_of_a_ragged_batch_may_hold_anything(subject, name, number):
    stream, hidden = STREAMS[name], RAGGED["right"]
    x = stream.tokens()
    plain, poisoned = stream.start(subject), stream.start(subject).poison(number)
    for decoding in (plain, poisoned):
        stream.feed(decoding, x[:, :4], hidden=hidden)
    poisoned = poisoned.poison(number)
    for t in (4, 5):
        wanted, got = (stream.feed(d, x[:, t : t + 1]) for d in (plain, poisoned))
        same(got, wanted, f"token {t} behind poisoned slots")
        check_each(np.isfinite(got), got, f"token {t} behind poisoned slots", "a finite number")


@clause("CACHE-5")
def test_uniform_is_the_mean_over_the_written_slots(subject):
    stream = Stream("attention", {"empty_rows": "uniform"})
    x, hidden, sizes = stream.tokens(), RAGGED["right"], (B, 2, 4, N)
    decoding = stream.start(subject).poison(np.nan)
    nothing = hide(np.ones(sizes, bool))
    decoding.feed(x[:, :4], hidden=hidden)
    got = decoding.feed(x[:, 4:5], attn_mask=hide(np.ones((B, 2, 1, N), bool)))
    looked, _ = decoding.look(x[:, 5:6], attn_mask=np.full((1, N), -np.inf, np.float32))
    bias, everything = normal(75, 1, N, dtype_name="float32"), np.ones((B, N), bool)
    padded, _ = decoding.look(x[:, 5:6], attn_mask=bias, key_padding_mask=everything)
    for b in range(B):
        kept = x[b : b + 1, [*np.flatnonzero(~hidden[b]), 4]]
        wanted = stream.one_pass(kept, mask=~causal() & causal())
        last = kept.shape[1] - 1
        part(got[b : b + 1], *wanted, last, f"sample {b}, mean of its values")
        part(looked[b : b + 1], *wanted, last, f"sample {b}, that a bias hides, mean of its values")
        part(padded[b : b + 1], *wanted, last, f"sample {b}, hidden beside a bias")
    alone = stream.start(subject).feed(x[:, :4], attn_mask=nothing)
    wanted = stream.one_pass(x[:, :4], mask=~causal() & causal())
    compare(alone, *wanted, "a prompt that may see nothing")


@clause("CACHE-6")
@pytest.mark.parametrize(
    ("name", "index"),
    [*((name, [2, 0, 2]) for name in STREAMS),
     *((name, [1, 1, 0, 2, 0]) for name in ("attention", "decoder_layer", "seq2seq"))],
    ids=str,
)  # fmt: skip
def test_reordered_samples_go_on_as_those_they_were(subject, name, index):
    stream = STREAMS[name]
    index = np.array(index)
    x = stream.tokens()
    decoding = stream.start(subject)
    stream.check_feeds(decoding, x, (3,), *stream.whole())
    beams = decoding.reorder(index)
    options = {"memory_key_padding_mask": SOURCE_HIDDEN[index]} if stream.every_feed else {}
    tail = np.concatenate([x, x[::-1]])[: len(index), 3:]  # other than the samples' own
    told = np.concatenate([x[index, :3], tail], 1)
    exact, naive = stream.one_pass(told, rows=index)
    for t in (3, 4):
        got = beams.feed(told[:, t : t + 1], **options)
        part(got, exact, naive, t, f"token {t} of beams {index}")
    same(beams.lengths, [5] * len(index), "lengths")


@clause("CACHE-6")
@pytest.mark.untyped
@pytest.mark.parametrize("kind", ["uint8", "int32"])
def test_an_index_may_be_of_any_kind_of_integers(subject, kind):
    x, index = ENCODER.tokens(), np.array([1, 0, 1], kind)
    decoding = ENCODER.start(subject)
    ENCODER.feed(decoding, x[:, :3])
    wanted = ENCODER.one_pass(x[[1, 0, 1]])
    part(ENCODER.feed(decoding.reorder(index), x[[1, 0, 1], 3:4]), *wanted, 3, "a step of beams")


@clause("CACHE-6")
def test_a_reordered_cache_stands_on_its_own(subject):
    x, (exact, naive) = ENCODER.tokens(), ENCODER.whole()
    decoding = ENCODER.start(subject)
    ENCODER.check_feeds(decoding, x, (3,), exact, naive)
    beams = decoding.reorder(np.array([0, 1, 2]))
    ENCODER.feed(beams, -x[:, 3:5])
    part(ENCODER.feed(decoding, x[:, 3:]), exact, naive, 3, "the tokens after it")
    told = np.concatenate([x[:, :3], -x[:, 3:6]], 1)
    part(ENCODER.feed(beams, -x[:, 5:6]), *ENCODER.one_pass(told), 5, "a token of the beams")


@clause("CACHE-6")
@pytest.mark.parametrize("lengths", [2, [1, 0, 4]], ids=str)
@pytest.mark.parametrize("name", STACKS)
def test_what_is_truncated_is_forgotten(subject, name, lengths):
    stream = STREAMS[name]
    x = stream.tokens()
    decoding = stream.start(subject)
    stream.feed(decoding, x[:, :5])
    given = lengths if isinstance(lengths, int) else np.array(lengths)
    counts = np.broadcast_to(lengths, B)
    writes = {"errors", "any_shape"} <= subject.capabilities and isinstance(lengths, list)
    given = subject.cache_array(given) if writes else given
    shorter = decoding.truncate(given)
    if writes:
        given[...] = 5  # the caller's own
    same(shorter.lengths, counts, "lengths")
    got = stream.feed(shorter, x[:, 5:])
    for b in range(B):
        told = np.concatenate([x[b, : counts[b]], x[b, 5:]])[None]
        exact, naive = stream.one_pass(told, rows=slice(b, b + 1))
        part(got[b : b + 1], exact, naive, counts[b], f"sample {b} after {counts[b]}")


@clause("CACHE-7")
@pytest.mark.parametrize("name", ["decoder_layer", "decoder", "transformer"])
def test_a_memory_mask_goes_by_the_targets_positions(subject, name):
    stream, spec = STREAMS[name], sliding_window(1, 2)
    decoding = stream.start(subject)
    exact, naive = stream.one_pass(stream.tokens(), memory_mask=spec)
    cuts = (3, 4, 5, 7)
    stream.check_feeds(decoding, stream.tokens(), cuts, exact, naive, memory_mask=spec)


@clause("CACHE-7")
@pytest.mark.parametrize("name", ["decoder", "transformer"])
def test_a_memory_mask_leaves_hidden_tokens_uncounted(subject, name):
    stream, spec, hidden = STREAMS[name], sliding_window(1), RAGGED["left"]
    x = stream.tokens()
    decoding = stream.start(subject)
    got = [stream.feed(decoding, x[:, :4], hidden=hidden, memory_mask=spec)]
    got = np.concatenate([*got, stream.feed(decoding, x[:, 4:], memory_mask=spec)], 1)
    for b in range(B):
        kept = np.append(~hidden[b], [True] * 3)
        own = slice(b, b + 1)
        exact, naive = stream.one_pass(x[own, kept], memory_mask=spec, rows=own)
        compare(got[own, kept], exact, naive, f"sample {b} as if alone")


MEMORYS = {  # the lengths of SOURCE_HIDDEN: 5, 2, 3
    "lengths": padding((~SOURCE_HIDDEN).sum(1)),
    "predicate": predicate(lambda batch, head, query, key: key < 5 - 5 * batch + 2 * batch * batch),
}


@clause("CACHE-7")
@pytest.mark.parametrize("name", MEMORYS)
def test_the_memorys_padding_may_be_a_mask(subject, name):
    stream = STREAMS["decoder"]
    decoding = stream.start(subject, memory_key_padding_mask=MEMORYS[name])
    stream.check_feeds(decoding, stream.tokens(), (3, 4), *stream.whole())


@clause("CACHE-7")
def test_the_memorys_padding_is_the_caches_own(subject):
    require(subject, "errors", "cache", "any_shape")  # JAX's arrays cannot be changed
    stream, hidden = STREAMS["decoder"], subject.cache_array(SOURCE_HIDDEN)
    decoding = stream.start(subject, memory_key_padding_mask=hidden)
    hidden[...] = True
    stream.check_feeds(decoding, stream.tokens(), (3, 4), *stream.whole())


@clause("CACHE-7")
def test_a_cache_as_key_is_looked_at_and_not_written(subject):
    x = ATTENTION.tokens()
    decoding = ATTENTION.start(subject, 4)  # one sample fills its slots
    decoding.feed(x[:, :4], hidden=RAGGED["right"])
    decoding.feed(x[:, 6:], hidden=np.ones((B, 1), bool))  # which leaves all slots as they are
    decoding = decoding.poison(np.nan)
    written = (~RAGGED["right"]).sum(1)
    output, weights = decoding.look(x[:, 4:])
    for b in range(B):
        keys = x[b : b + 1, np.flatnonzero(~RAGGED["right"][b])]
        exact, naive = reference_of(ATTENTION, x[b : b + 1, 4:], keys)
        compare(output[b : b + 1], exact["output"], naive["output"], f"sample {b}")
        own = weights[b : b + 1, ..., : written[b]]
        compare(own, exact["weights"], naive["weights"], f"weights of sample {b}")
        rest = weights[b, ..., written[b] :]
        same(rest, np.zeros_like(rest), "weights of slots that are not written")
    same(decoding.lengths, written, "lengths")


@clause("CACHE-3")
@pytest.mark.untyped
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_that_is_hidden_leaves_a_full_sample_as_it_is(subject, compiled):
    """While the other samples store their tokens."""
    if compiled:
        require(subject, "transforms")
    x, hidden = ATTENTION.tokens(), np.array([[0, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0]], bool)
    decoding = ATTENTION.start(subject, 3, **({"compiled": True} if compiled else {}))
    for t in range(4):
        decoding.feed(x[:, t : t + 1], hidden=hidden[:, t : t + 1])
    output, _ = decoding.look(x[:, 4:])
    for b, kept in enumerate(([0, 1, 2], [0, 3], [0, 1, 3])):
        exact, naive = reference_of(ATTENTION, x[b : b + 1, 4:], x[b : b + 1, kept])
        compare(output[b : b + 1], exact["output"], naive["output"], f"sample {b}")


@clause("CACHE-6")
def test_of_a_memory_that_is_truncated_the_rest_is_forgotten(subject):
    x, lengths = ATTENTION.tokens(), [2, 0, N]
    given, parameters = (x[:, :3], x), ATTENTION.parameters()
    output, weights = subject.multihead(
        ATTENTION.config, parameters, *given, projected=lengths, average_weights=False
    )
    seen = reference.allowed(padding(lengths), (B, 2, 3, N))
    exact, naive = multihead(parameters, 2, 2, *given, x, allowed=seen)
    compare(output, exact["output"], naive["output"], "output")
    compare(weights, exact["weights"], naive["weights"], "weights")


def reference_of(stream: Stream, query, key):
    allowed = np.ones((1, stream.heads, query.shape[1], key.shape[1]), bool)
    return multihead(stream.parameters(), 2, 2, query, key, key, allowed=allowed)


# Why decoding needs a mask


@clause("CACHE-8")
@pytest.mark.parametrize("name", STACKS)
def test_without_the_mask_one_pass_is_another(subject, name):
    """The last token of one attention sees all either way; every other output must differ."""
    stream = STREAMS[name]
    x = stream.tokens()
    decoding = stream.start(subject)
    exact, naive = stream.one_pass(x, unmasked=True)
    got = np.concatenate([stream.feed(decoding, x[:, t : t + 1]) for t in range(N)], 1)
    far = abs(got - exact).max(-1)
    earlier = far[:, :-1].min()
    text = f"CACHE-8: a step and an unmasked pass are only {earlier:.3g} apart"
    assert earlier > 100 * allowance(exact, naive, got.dtype), text
    if name == "attention":
        part(got[:, -1:], exact, naive, N - 1, "the last token")


@clause("CACHE-8")
def test_a_prompt_without_the_mask_leaks_and_its_steps_cannot(subject):
    """`~causal() | causal()` shows a prompt everything: its tokens see what steps never see."""
    x, spec = ENCODER.tokens(), ~causal() | causal()
    exact, naive = ENCODER.one_pass(x, unmasked=True)
    got = ENCODER.feed(ENCODER.start(subject), x, mask=spec)
    compare(got, exact, naive, "a whole prompt that sees itself")
    decoding = ENCODER.start(subject)
    steps = np.concatenate(
        [ENCODER.feed(decoding, x[:, t : t + 1], mask=spec) for t in range(N)], 1
    )
    compare(steps, *ENCODER.whole(), "steps, which cannot see what is not there yet")
    far = abs(got - steps)[:, :-1].max(-1).min()
    assert far > 0.01, f"CACHE-8: prompt and steps are only {far:.3g} apart"


@clause("CACHE-9")
@EVERY
def test_nothing_is_projected_twice(subject, name):
    require(subject, "counting")
    stream = STREAMS[name]
    x, decoding = stream.tokens(), stream.start(subject, counted=True)
    memory = {"multihead_attn": [B * S]}
    for first, last in ((0, 3), (3, 4), (4, 5), (5, 7)):
        stream.feed(decoding, x[:, first:last])
    assert decoding.sent, "CACHE-9: no projection is counted"
    for attention, sent in decoding.sent.items():
        wanted = memory.get(attention.rpartition(".")[2], [B * n for n in (3, 1, 1, 2)])
        if sent != wanted:
            text = f"tokens through k_proj of {attention or 'the attention'}"
            raise Differs(f"{text}: expected {wanted}, got {sent}")


@clause("ATT-12")
def test_decoding_in_training_drops_too(subject):
    stream = Stream("attention", {"dropout": 1.0})
    decoding, x = stream.start(subject, training=True), stream.tokens()
    bias = stream.parameters()["out_proj.bias"]
    for first, last in ((0, 1), (1, 4), (4, 5)):
        got = stream.feed(decoding, x[:, first:last])
        same(got, np.broadcast_to(bias, got.shape), f"tokens {first}..{last - 1}, all dropped")


@clause("LAYER-5")
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("name", ["encoder_layer", "decoder_layer"])
def test_decoding_with_a_dropout_of_one_leaves_the_residuals_alone(subject, name, norm_first):
    stream = Stream(name, {"dropout": 1.0, "norm_first": norm_first})
    x, given, case = stream.tokens(), stream.given(), ModelCase(name, stream.changes)
    inputs = {"tgt": x, "memory": given["memory"]} if "memory" in given else {"src": x}
    silent = {
        role: 0 * array if "out_proj" in role or "linear2" in role else array
        for role, array in stream.parameters().items()
    }
    decoding = stream.start(subject, training=True)
    exact, naive = (steps["output"] for steps in case.expected(inputs, silent))
    stream.check_feeds(decoding, x, (1, 4, 7), exact, naive)


# The whole model


@clause("CACHE-10")
@pytest.mark.untyped
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "again"])
@pytest.mark.parametrize("name", ["transformer", "seq2seq"])
def test_step_by_step_is_one_pass_for_each_prefix(subject, name, cached):
    stream = STREAMS[name]
    x, (exact, naive) = stream.tokens(), stream.whole()
    if cached:
        stream.check_feeds(stream.start(subject), x, STEPS, exact, naive)
        return
    require(subject, "layers")
    options = {} if name == "seq2seq" else {"tgt_mask": causal()}
    given = stream.given()
    source = {"src": given.pop("src")}
    for n in STEPS[::2]:
        inputs = source | {"tgt": x[:, :n]}
        arguments = (stream.kind, stream.config, stream.parameters(), inputs)
        got = subject.layer(*arguments, **options, **given)["output"]
        part(got, exact, naive, 0, f"prefix of {n}")


@clause("CACHE-10")
def test_a_mask_of_the_source_is_that_of_one_pass(subject):
    require(subject, "cache", "layers")
    stream, spec = STREAMS["transformer"], sliding_window(1)
    x, given = stream.tokens(), stream.given()
    inputs, masks = {"src": given.pop("src"), "tgt": x}, {"src_mask": spec, "tgt_mask": causal()}
    arguments = (stream.kind, stream.config, stream.parameters(), inputs)
    given["memory_key_padding_mask"] = None  # the source's padding is not the memory's
    once = subject.layer(*arguments, **masks, **given)["output"]
    decoding = stream.start(subject, src_mask=spec, memory_key_padding_mask=None)
    got = [stream.feed(decoding, x[:, first:last]) for first, last in ((0, 3), (3, 4), (4, 7))]
    close(np.concatenate(got, 1), once, *stream.whole(), "output, in pieces and at once")


PROMPTS = {
    "right": np.array([[1, 5, 7], [1, 0, 0], [1, 4, 0]]),
    "left": np.array([[1, 5, 7], [0, 0, 1], [0, 1, 4]]),
}
NEW = 5


@cache
def greedy_tokens() -> tuple[np.ndarray, int]:
    """Return the tokens that the oracle's logits give, and the one at which sample 0 shall end.

    The two largest logits differ by more than rounding excuses: the choice is not luck.
    """
    stream, found = STREAMS["seq2seq"], np.zeros((B, NEW), int)
    for b, prompt in enumerate(PROMPTS["right"]):
        told, own = [int(token) for token in prompt if token], slice(b, b + 1)
        for i in range(NEW):
            exact, naive = stream.one_pass(np.array([told]), rows=own)
            last = np.sort(exact[0, -1])
            limit = allowance(exact, naive, np.float32)
            assert last[-1] - last[-2] > 2 * limit, f"CACHE-10: {told} has no clear successor"
            found[b, i] = exact[0, -1].argmax()
            told.append(found[b, i])
    assert found.min() > 0, "CACHE-10: padding is the likeliest token"
    return found, int(found[0, 2])


@clause("CACHE-10")
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "again"])
@pytest.mark.parametrize("side", PROMPTS)
def test_greedy_decoding_takes_the_likeliest_token_until_the_end(subject, side, cached):
    require(subject, "cache")
    stream, (found, eos) = STREAMS["seq2seq"], greedy_tokens()
    ended = np.cumsum(found == eos, 1) - (found == eos) > 0
    arguments = (stream.config, stream.parameters(), stream.given()["src"], PROMPTS[side])
    got = subject.greedy(*arguments, eos_idx=eos, max_new_tokens=NEW, cached=cached)
    assert ended[0, 3:].all() and not ended.all(), "CACHE-10: nothing ends early"
    same(got, np.where(ended, 0, found), "tokens, padding after the end")


@clause("CACHE-10")
def test_greedy_tokens_fit_whatever_dtype_the_prompt_has(subject):
    require(subject, "cache", "any_shape")
    stream, prompt = Stream("seq2seq", {"tgt_vocab": 300}), PROMPTS["right"]
    arguments = (stream.config, stream.parameters(), stream.given()["src"])
    wide, narrow = (
        subject.greedy(*arguments, prompt.astype(kind), eos_idx=2, max_new_tokens=2)
        for kind in ("int32", "int8")
    )
    assert wide.max() > 127, "CACHE-10: the case has no token beyond 8 bits"
    same(narrow, wide, "tokens behind an int8 prompt")


# CACHE-12, keys and values that are not finite

CAPACITY = 23  # of every such cache, so that they share programs
SPLITS = {"steps": tuple(range(1, 21)), "chunks": (5, 6, 13, 20), "prompt": (16, 17, 18, 19, 20)}


def spoiled(stream: Stream, projection: str, number: float) -> dict:
    """Return a model's parameters with a number in one weight of each such projection."""
    parameters = {name: np.array(array) for name, array in stream.parameters().items()}
    for name, array in parameters.items():
        if name.endswith(f"{projection}.weight") and "multihead_attn" not in name:
            array[0, 0] = number
    return parameters


def check_like(got: np.ndarray, once: np.ndarray, what: str) -> None:
    """Check that NaN stands where one pass has it, and that it has some."""
    check_each(np.isfinite(got) == np.isfinite(once), got, what, "finite where one pass is")


@clause("CACHE-12")
@pytest.mark.untyped
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("projection", ["k_proj", "v_proj"])
@pytest.mark.parametrize("name", ["attention", "grouped", "encoder"])
def test_weights_that_are_not_finite_decode_to_what_one_pass_gives(
    subject, name, projection, number, split
):
    stream = STREAMS[name]
    require(subject, "cache")
    x, parameters = stream.tokens(length=20), spoiled(stream, projection, number)
    options = {"mask": causal()} if name == "encoder" else {"attn_mask": causal()}
    if name == "encoder":
        once = subject.layer("encoder", stream.config, parameters, {"src": x}, **options)["output"]
    else:
        once, _ = subject.multihead(stream.config, parameters, x, need_weights=False, **options)
    check_each(~np.isfinite(once), once, "one pass", "no finite number")
    given = {"capacity": CAPACITY, "batch_size": B}
    decoding = subject.decoding(stream.kind, stream.config, parameters, **given)
    first = 0
    for last in SPLITS[split]:
        got = decoding.feed(x[:, first:last])
        check_like(got, once[:, first:last], f"tokens {first}..{last - 1}")
        first = last


@clause("CACHE-12")
@pytest.mark.untyped
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["attention", "encoder_layer", "decoder"])
def test_a_token_that_is_not_finite_reaches_those_behind_it(subject, name, number, split):
    require(subject, "cache")
    stream = STREAMS[name]
    x = np.array(stream.tokens(length=20))
    exact, naive = map(np.array, stream.one_pass(x))
    x[1, 7], exact[1, 7:] = number, np.nan  # those before it do not notice
    decoding, first = stream.start(subject, CAPACITY), 0
    for last in SPLITS[split]:
        got = stream.feed(decoding, x[:, first:last])
        part(got, exact, naive, first, f"tokens {first}..{last - 1}")
        first = last


@clause("CACHE-12")
@pytest.mark.parametrize("projection", ["k_proj", "v_proj"])
def test_ragged_samples_decode_to_nan_too(subject, projection):
    require(subject, "cache")
    stream = ATTENTION
    x, parameters = stream.tokens(length=12), spoiled(stream, projection, np.nan)
    given = {"capacity": CAPACITY, "batch_size": B}
    decoding = subject.decoding("attention", stream.config, parameters, **given)
    hidden = np.array([[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1]], bool)
    for first in range(0, 12, 4):
        got = decoding.feed(x[:, first : first + 4], hidden=hidden)
        wanted = np.where(hidden[..., None], np.float32(0), np.float32(np.nan))
        same(got, np.broadcast_to(wanted, got.shape), f"tokens {first}..{first + 3}")


@clause("CACHE-12")
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("role", ["key", "value"])
def test_what_overflows_is_seen_by_every_later_token(subject, role, masked):
    """A key is infinite in one dim, where all queries are -1: -inf, as if it were hidden."""
    require(subject, "cache")
    stream = STREAMS["attention"]
    x, parameters = stream.tokens(), stream.parameters()
    for name in ("q_proj", "k_proj", "v_proj"):
        parameters[f"{name}.weight"][:, 0] = 0
    parameters[f"{role[0]}_proj.weight"][[0, 7], 0] = 10
    parameters["q_proj.weight"][[0, 7]], parameters["q_proj.bias"][[0, 7]] = 0, -1
    x[1, 1, 0] = 3e38
    start = {"capacity": N, "batch_size": B}
    decoding = subject.decoding(stream.kind, stream.config, parameters, **start)
    got = [decoding.feed(x[:, :3], **({"attn_mask": causal()} if masked else {}))]
    got = np.concatenate([*got, *(decoding.feed(x[:, t : t + 1]) for t in range(3, N))], 1)
    same(got[1, 1:], np.full_like(got[1, 1:], np.nan), "tokens that see the key")
    others = np.delete(got, 1, 0)
    check_each(np.isfinite(others), others, "samples that do not", "finite")
