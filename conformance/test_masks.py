"""The chapter on masks: the documents' builders, and every question a `Mask` answers."""

import operator
from contextlib import suppress
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from .cases.arrays import coins
from .cases.attention import LENGTHS, MAIN, MASKS, Case
from .cases.compare import check_output, check_steps, refused
from .contract import clause
from .mask_spec import (
    allow,
    causal,
    chunked,
    hide,
    packed,
    padding,
    predicate,
    prefix,
    segments,
    sliding_window,
)
from .oracle import reference
from .oracle.tolerance import compare, same
from .subjects.protocol import require

pytestmark = pytest.mark.needs("masks")


def allowed(subject, spec, sizes=MAIN.call, query_offset=None):
    """Return the subject's answer, spread over (B, H, T, S)."""
    B, H, T, S = sizes
    options = {"query_offset": query_offset, "batch": B, "heads": H}
    return np.broadcast_to(subject.ask("allowed", spec, T, S, **options), sizes)


@clause("MASK-1")
@pytest.mark.parametrize("dtype_name", ["int8", "uint8", "int16", "int32", "int64", "uint32"])
@pytest.mark.parametrize("padding_idx", [0, 3, -1, 255, 300])
def test_sequence_mask_marks_padding(subject, dtype_name, padding_idx):
    tokens = np.random.default_rng(7).integers(0, 5, (3, 7)).astype(dtype_name)
    tokens[0, 2:] = np.array(padding_idx).astype(dtype_name)  # wraps where it does not fit
    expected = [[int(token) == padding_idx for token in row] for row in tokens]
    same(subject.sequence_mask(tokens, padding_idx), expected, "sequence_mask")


@clause("MASK-1")
@pytest.mark.parametrize("fill", [0, 4])
def test_sequence_mask_of_nothing_and_of_everything(subject, fill):
    got = subject.sequence_mask(np.full((3, 5), fill), 0)
    assert got.dtype == bool, f"MASK-1: sequence_mask must be bool: got {got.dtype}"
    same(got, np.full((3, 5), fill == 0), "sequence_mask")


@clause("MASK-2")
@pytest.mark.parametrize(("T", "S"), [(5, 7), (7, 5), (1, 7), (7, 1), (0, 3), (3, 0), (6, 6)])
def test_look_ahead_mask_is_zero_up_to_the_diagonal(subject, T, S):
    got = subject.look_ahead_mask(T, S)
    assert got.dtype.kind == "f", f"MASK-2: look_ahead_mask must be float: got {got.dtype}"
    expected = [[0.0 if s <= t else -np.inf for s in range(S)] for t in range(T)]
    same(got, np.reshape(expected, (T, S)), "look_ahead_mask")


@clause("MASK-3")
@pytest.mark.parametrize("n", [1, 2, 7])
def test_look_ahead_mask_is_the_square_subsequent_mask(subject, n):
    got = subject.look_ahead_mask(n, n)
    zeros = [int((row == 0).sum()) for row in got]
    assert zeros == list(range(1, n + 1)), f"MASK-3: zeros a row: got {zeros}"
    same(got[np.triu_indices(n, 1)], np.full(n * (n - 1) // 2, -np.inf), "above the diagonal")


@clause("MASK-4")
@pytest.mark.parametrize("name", MASKS)
def test_three_forms_of_a_mask_agree(subject, name):
    spec, offset = MASKS[name]
    options = {"query_offset": offset, "batch": 3, "heads": 2}
    allowed = subject.ask("allowed", spec, 5, 7, **options)
    hidden = subject.ask("hidden", spec, 5, 7, **options)
    additive = subject.ask("additive", spec, 5, 7, **options)
    assert allowed.ndim == 4, f"MASK-4: allowed must have rank 4: got {allowed.shape}"
    assert (allowed.dtype, hidden.dtype) == (bool, bool), (
        f"MASK-4: got {allowed.dtype}, {hidden.dtype}"
    )
    same(np.broadcast_to(allowed, MAIN.call), reference.allowed(spec, MAIN.call, offset), "allowed")
    same(hidden, ~allowed, "hidden")
    same(additive, np.where(allowed, 0.0, -np.inf), "additive")


@clause("MASK-4")
@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (causal(), (1, 1, 7, 7)),
        (padding(LENGTHS), (3, 1, 1, 7)),
        (causal() & padding(LENGTHS), (3, 1, 7, 7)),
        (hide(coins(3, 1, 2, 7, 7)), (1, 2, 7, 7)),
    ],
    ids=["causal", "padding", "both", "heads"],
)
def test_dims_are_one_where_nothing_varies(subject, spec, shape):
    got = subject.ask("allowed", spec, 7, 7).shape
    assert got == shape, f"MASK-4: allowed must be {shape}: got {got}"


@clause("MASK-4")
def test_draw_shows_the_sample_and_head_that_is_asked_for(subject):
    spec = allow(coins(11, *MAIN.call))
    for b, h in product(range(3), range(2)):
        drawn = subject.ask("draw", spec, 5, 7, batch=b, head=h).split("\n")
        shown = [[cell == "■" for cell in row.split(" ")] for row in drawn]
        same(shown, reference.allowed(spec, MAIN.call)[b, h], f"drawing of sample {b}, head {h}")


@clause("MASK-4")
def test_what_a_mask_answers_is_not_what_it_holds(subject):
    require(subject, "errors")
    array = subject.array(coins(12, *MAIN.call))
    mask = subject.module.allow(array)
    answer, before = mask.allowed(5, 7), subject.numpy(mask.allowed(5, 7)).copy()
    if isinstance(answer, np.ndarray):
        assert not np.shares_memory(answer, array), "MASK-4: the answer shares memory"
    with suppress(TypeError, ValueError, RuntimeError):  # an array that cannot be changed
        answer[...] = ~answer
    same(subject.numpy(mask.allowed(5, 7)), before, "what a mask allows once an answer was changed")
    same(subject.numpy(array), before, "the caller's array once an answer was changed")


@pytest.mark.untyped
@clause("MASK-4")
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_a_mask_stays_as_it_was_built(subject, kind):
    require(subject, "errors")
    lengths, ids = np.array([3, 1, 2], kind), np.array([[1, 1, 2]] * 3, kind)
    built = {
        "padding": (subject.module.padding, lengths),
        "prefix": (subject.module.prefix, lengths),
        "segments": (subject.module.segments, ids),
    }
    for name, (builder, numbers) in built.items():
        for array in (numbers.copy(), subject.cache_array(numbers)):
            mask = builder(array)
            before = subject.numpy(mask.allowed(3, 3))
            with suppress(TypeError):  # JAX's arrays cannot be changed
                array[...] = 0
            same(subject.numpy(mask.allowed(3, 3)), before, f"{name} of numbers that changed")


LAWS = {
    "commutative": (lambda a, b, c: a & b, lambda a, b, c: b & a),
    "commutative_or": (lambda a, b, c: a | b, lambda a, b, c: b | a),
    "associative": (lambda a, b, c: (a & b) & c, lambda a, b, c: a & (b & c)),
    "associative_or": (lambda a, b, c: (a | b) | c, lambda a, b, c: a | (b | c)),
    "de_morgan": (lambda a, b, c: ~(a & b), lambda a, b, c: ~a | ~b),
    "de_morgan_or": (lambda a, b, c: ~(a | b), lambda a, b, c: ~a & ~b),
    "absorption": (lambda a, b, c: a & (a | b), lambda a, b, c: a),
    "distributive": (lambda a, b, c: a & (b | c), lambda a, b, c: (a & b) | (a & c)),
    "double_complement": (lambda a, b, c: ~~a, lambda a, b, c: a),
}


@clause("MASK-5")
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("seed", [0, 1])
def test_masks_obey_the_laws_of_sets(subject, law, seed):
    masks = (
        allow(coins(10 + seed, *MAIN.call)),
        padding([5, 0, 2 + seed]),
        sliding_window(2, seed),
    )
    left, right = (side(*masks) for side in LAWS[law])
    got = allowed(subject, left, query_offset=1)
    same(got, reference.allowed(left, MAIN.call, 1), law)
    same(got, allowed(subject, right, query_offset=1), law)


@clause("MASK-5")
def test_operators_are_and_or_not(subject):
    a, b = coins(20, *MAIN.call), coins(21, *MAIN.call)
    same(allowed(subject, allow(a) & allow(b)), a & b, "&")
    same(allowed(subject, allow(a) | allow(b)), a | b, "|")
    same(allowed(subject, ~allow(a)), ~a, "~")


@clause("MASK-6")
def test_padding_hides_keys_and_never_queries(subject):
    got = allowed(subject, padding([7, 0, 1]))
    assert got[0].all(), "MASK-6: a whole sample sees every key"
    assert not got[1].any(), "MASK-6: an empty sample sees no key"
    same(got[2], np.broadcast_to(np.arange(7) < 1, (2, 5, 7)), "padding of length 1, every query")
    rows = [[True, False, False, True, False, False, True]] * 3
    same(allowed(subject, padding(hidden=rows))[0, 1, 4], ~np.array(rows[0]), "padding(hidden=...)")


@pytest.mark.untyped
@clause("MASK-6")
@pytest.mark.parametrize("lengths", [[8, 0, 4], [7, -1, 4]])
def test_padding_refuses_lengths_out_of_range(subject, lengths):
    with pytest.raises(ValueError, match=str(lengths[0] if lengths[0] == 8 else -1)):
        subject.ask("allowed", padding(lengths), 5, 7)


@clause("MASK-7")
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0), (0, 3), (1, 1), (9, 9)])
def test_sliding_window_counts_besides_its_own_position(subject, before, after):
    got = allowed(subject, sliding_window(before, after), (1, 1, 7, 7))[0, 0]
    for t in range(7):
        keys = [s for s in range(7) if t - before <= s <= t + after]
        same(np.flatnonzero(got[t]), keys, f"keys that query {t} sees")


@clause("MASK-8")
def test_prefix_is_seen_by_all_and_causal_after(subject):
    got = allowed(subject, prefix([3, 0, 7]), (3, 1, 7, 7))[:, 0]
    same(got[0, 0], np.arange(7) < 3, "the first query of a prefix of 3")
    same(got[0, 4], np.arange(7) < 5, "the fifth query of a prefix of 3")
    same(got[1], np.tri(7, dtype=bool), "a prefix of 0 is causal")
    assert got[2].all(), "MASK-8: a prefix of S is allowed to every query"


@clause("MASK-8")
@pytest.mark.parametrize("two", [False, True], ids=["one_argument", "two_arguments"])
def test_packed_sequences_equal_the_same_sequences_alone(subject, two):
    ids = [[4, 4, 4, 9, 9, 1, 1]]
    spec = segments(ids, ids if two else None) & causal()
    rng = np.random.default_rng(31)
    query, key, value = (rng.normal(size=(1, 2, 7, d)).astype(np.float32) for d in (11, 11, 13))
    packed = subject.attention(query, key, value, mask=spec)
    for start, stop in ((0, 3), (3, 5), (5, 7)):
        part = np.s_[:, :, start:stop]
        allowed = np.broadcast_to(
            np.tri(stop - start, dtype=bool), (1, 2, stop - start, stop - start)
        )

        check_output(
            packed[part], query[part], key[part], value[part], f"{start}..{stop}", allowed=allowed
        )


@pytest.mark.untyped
@clause("MASK-9")
@pytest.mark.parametrize("kind", ["bool", "float32", "int32"])
def test_a_bare_array_is_no_mask(subject, kind):
    require(subject, "errors")
    array = subject.array(np.tri(5, 7).astype(kind))
    inputs = [subject.array(np.ones((1, 1, n, 3), np.float32)) for n in (5, 7, 7)]
    with pytest.raises(TypeError, match=rf"allow\(array\) or hide\(array\): got {kind}"):
        subject.module.attention(*inputs, mask=array)


@pytest.mark.untyped
@clause("MASK-9")
@pytest.mark.parametrize("builder", ["allow", "hide"])
@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (7,), (1, 1, 1, 5, 7)], ids=str)
def test_allow_and_hide_take_rank_four_only(subject, builder, shape):
    require(subject, "errors")
    with pytest.raises(ValueError, match="must be"):
        getattr(subject.module, builder)(subject.array(np.ones(shape, bool)))


@pytest.mark.untyped
@clause("MASK-9")
@pytest.mark.parametrize("builder", ["allow", "hide"])
@pytest.mark.parametrize("kind", ["int32", "uint8", "float32"])
def test_allow_and_hide_take_bool_only(subject, builder, kind):
    require(subject, "errors")
    with pytest.raises(TypeError, match=f"must be bool.*got {kind}"):
        getattr(subject.module, builder)(subject.array(np.ones((1, 1, 5, 7), kind)))


@pytest.mark.untyped
@clause("MASK-9")
def test_a_mask_has_no_truth_value(subject):
    require(subject, "errors")
    mask = subject.mask(causal())
    with pytest.raises(TypeError, match="truth value"):
        bool(mask)
    with pytest.raises(TypeError, match="truth value"):
        assert mask and mask


def verdict(block: np.ndarray) -> str:
    if not block.any():
        return "none"
    return "all" if block.all() else "partial"


@clause("MASK-10")
@pytest.mark.parametrize("name", MASKS)
def test_tile_agrees_with_allowed_everywhere(subject, name):
    spec, own = MASKS[name]
    for offset in (own, 4, -2) if own is not None else (None,):
        allowed = reference.allowed(spec, MAIN.call, offset)
        for r0, r1, s0, s1 in product(range(5), range(1, 6), range(0, 7, 2), range(1, 8, 2)):
            if r0 < r1 and s0 < s1:
                options = {"query_offset": offset, "batch": 3, "heads": 2}
                got = subject.ask("tile", spec, 5, 7, slice(r0, r1), slice(s0, s1), **options)
                expected = verdict(allowed[:, :, r0:r1, s0:s1])
                text = f"MASK-10: tile {r0}:{r1} x {s0}:{s1} at offset {offset}"
                assert got == expected, f"{text}: expected {expected}, got {got}"


@clause("MASK-10")
@pytest.mark.parametrize(("both", "expected"), [(operator.or_, "all"), (operator.and_, "none")])
@pytest.mark.parametrize("name", ["causal", "window", "prefix", "segments"])
def test_a_tile_that_is_whole_only_cell_by_cell_is_whole(subject, name, both, expected):
    """Of a mask and its complement neither allows a tile by itself."""
    spec, offset = MASKS[name]
    options = {"query_offset": offset, "batch": 3, "heads": 2}
    got = subject.ask("tile", both(spec, ~spec), 5, 7, slice(0, 4), slice(0, 6), **options)
    assert got == expected, f"MASK-10: expected {expected}, got {got}"


@clause("MASK-11")
@pytest.mark.parametrize("name", MASKS)
def test_explain_concludes_what_allowed_says(subject, name):
    spec, offset = MASKS[name]
    allowed = reference.allowed(spec, MAIN.call, offset)
    for cell in product((0, 1, 2), (0, 1), (0, 2, 4), (0, 3, 6)):
        got = subject.ask("explain", spec, *cell, query_offset=0 if offset is None else offset)
        got = got.splitlines()
        expected = "allowed" if allowed[cell] else "hidden"
        assert got[0].startswith(expected), f"MASK-11: {cell}: expected {expected}, got {got[0]}"


@clause("MASK-11")
def test_explain_gives_every_part_its_verdict(subject):
    spec = causal() & padding([7, 0, 4]) | sliding_window(0, 2)
    parts = [causal(), padding([7, 0, 4]), sliding_window(0, 2)]
    for cell in product((0, 1, 2), (0,), range(5), range(7)):
        lines = subject.ask("explain", spec, *cell, query_offset=1).splitlines()[1:]
        assert len(lines) == 3, f"MASK-11: three parts: got {lines}"
        for line, part in zip(lines, parts, strict=True):
            expected = "allowed" if reference.is_allowed(part, *cell, 1) else "hidden"
            text = f"MASK-11: {cell}: {part} says {expected}: got {line}"
            assert line.strip().startswith(f"{expected} by {part.kind}"), text


@clause("MASK-11")
def test_explain_reads_a_complement_as_a_part(subject):
    spec = causal() & ~(padding([7, 0, 4]) | sliding_window(0, 2))
    parts = [causal(), ~padding([7, 0, 4]), ~sliding_window(0, 2)]
    for cell in product((0, 1, 2), (0,), range(5), range(7)):
        lines = subject.ask("explain", spec, *cell, query_offset=1).splitlines()[1:]
        for line, part, sign in zip(lines, parts, ("", "~", "~"), strict=True):
            expected = "allowed" if reference.is_allowed(part, *cell, 1) else "hidden"
            name = part.parts[0].kind if sign else part.kind
            text = f"MASK-11: {cell}: {part} says {expected}: got {line}"
            assert line.strip().startswith(f"{expected} by {sign}{name}"), text


POSITIONAL = {
    "causal": causal(),
    "window": sliding_window(1, 2),
    "chunked": chunked(2),
    "packed": packed([[3, 2, 0], [0, 4, 3], [1, 0, 0]]),
    "prefix": prefix([3, 0, 7]),
    "segments": segments([[4, 4, 4, 9, 9, 9, 9], [1, 2, 2, 2, 3, 3, 3], [5] * 7]),
}


@clause("MASK-12")
@pytest.mark.parametrize("name", POSITIONAL)
@pytest.mark.parametrize("offset", [0, 2, 4])
def test_offset_takes_rows_of_the_square_mask(subject, name, offset):
    square = allowed(subject, POSITIONAL[name], (3, 1, 7, 7))
    got = allowed(subject, POSITIONAL[name], (3, 1, 3, 7), query_offset=offset)
    same(got, square[:, :, offset : offset + 3], f"rows {offset}..{offset + 3}")


@clause("MASK-12")
@pytest.mark.parametrize("name", POSITIONAL)
def test_offset_may_differ_by_sample(subject, name):
    square = allowed(subject, POSITIONAL[name], (3, 1, 7, 7))
    offsets = np.array([4, 0, 2])
    got = allowed(subject, POSITIONAL[name], (3, 1, 3, 7), query_offset=offsets)
    for b, offset in enumerate(offsets):
        same(got[b], square[b, :, offset : offset + 3], f"sample {b} at offset {offset}")


@clause("MASK-12")
def test_offset_is_honoured_for_square_calls(subject):
    got = allowed(subject, causal(), (1, 1, 5, 5), query_offset=3)[0, 0]
    same(got, np.tri(5, 5, 3, dtype=bool), "causal at T == S with offset 3")


@clause("MASK-12")
def test_offset_never_shifts_arrays(subject):
    arrays = [
        allow(coins(41, *MAIN.call)),
        hide(coins(42, *MAIN.call)),
        padding(LENGTHS),
        padding(hidden=coins(43, 3, 7)),
        segments([[1, 1, 2, 2, 3]] * 3, [[3, 3, 2, 2, 2, 1, 8]] * 3),
    ]
    for spec in arrays:
        same(allowed(subject, spec, query_offset=2), allowed(subject, spec), repr(spec)[:40])


BEYOND = np.array(
    [[7, 7 + 2**32, 7, 7, 7 - 2**32, 2**62, 0], [3] * 7, [-1, 2**32 - 1, 1, 1, 1, 1, 1]]
)


@clause("MASK-8")
@pytest.mark.parametrize("dtype", ["float64"])
@pytest.mark.parametrize("kind", ["positions", "pair", "unsigned"])
def test_ids_beyond_32_bits_are_not_cut(subject, kind, dtype):
    spec = segments(abs(BEYOND).astype(np.uint32) if kind == "unsigned" else BEYOND)
    if kind == "pair":
        spec = segments(BEYOND[:, :5], BEYOND)
    check_steps(subject, Case("beyond", MAIN, spec, None if kind == "pair" else 2), dtype)


@pytest.mark.untyped
@clause("MASK-8")
@pytest.mark.parametrize("number", [2**63 + 1, 2**64 - 1])
def test_ids_beyond_64_bits_are_refused(subject, number):
    require(subject, "errors")
    ids = np.array([[number, 1]], np.uint64)
    with pytest.raises(ValueError, match=rf"query_ids must fit int\d\d: got {number}"):
        subject.module.segments(ids)


@clause("MASK-11")
@pytest.mark.parametrize("name", ["twice", "thrice"])
def test_complements_over_complements_are_explained(subject, name):
    spec = ~~(causal() & padding([2, 0, 4])) if name == "twice" else ~~~padding([2, 0, 4])
    expected = reference.allowed(spec, (3, 1, 5, 5))
    for b, t, s in [(0, 3, 1), (0, 3, 2), (1, 0, 0), (2, 4, 3), (2, 1, 3)]:
        text = subject.ask("explain", spec, b, 0, t, s)
        other = subject.ask("explain", ~~spec, b, 0, t, s)
        first = (text.splitlines()[0], other.splitlines()[0])
        wanted = subject.ask("explain", allow(expected), b, 0, t, s).splitlines()[0]
        assert first == (wanted, wanted), f"MASK-11: expected {wanted!r}, got {first}"
        plain = subject.ask("explain", spec.parts[0].parts[0], b, 0, t, s)
        parts, wanted = text.splitlines()[1:], plain.splitlines()[1:]
        assert parts == wanted, f"MASK-11: parts of {name}: expected {wanted}, got {parts}"


@clause("MASK-4")
@pytest.mark.parametrize("question", ["allowed", "hidden", "additive"])
def test_samples_and_heads_are_those_asked_for(subject, question):
    spec = predicate(lambda batch, head, query, key: (batch + 2 * head + query + key) % 3 != 0)
    got = subject.ask(question, spec, 5, 7, query_offset=1, batch=3, heads=2)
    expected = reference.allowed(spec, MAIN.call, 1)
    form = {"allowed": expected, "hidden": ~expected, "additive": np.where(expected, 0.0, -np.inf)}
    same(got, form[question], question)
    got = subject.ask(question, spec & padding([5]), 5, 7, query_offset=1, batch=0, heads=2)
    assert got.shape == (0, 2, 5, 7), f"MASK-4: {question} of no sample: got {got.shape}"


@clause("MASK-4")
def test_draw_goes_by_the_offset_of_the_sample_that_is_asked_for(subject):
    drawn = [subject.ask("draw", causal(), 2, 4, batch=b, query_offset=np.array([2, 0]))
             for b in (0, 1)]  # fmt: skip
    counts = [text.count("\u25a0") for text in drawn]
    assert counts == [7, 3], f"MASK-4: keys drawn by sample: expected 7 and 3, got {counts}"


@clause("MASK-4")
def test_draw_shows_the_padding_of_the_sample_that_is_asked_for(subject):
    drawn = [subject.ask("draw", padding([3, 1, 2]), 1, 3, batch=b) for b in range(3)]
    counts = [text.count("\u25a0") for text in drawn]
    assert counts == [3, 1, 2], f"MASK-4: keys drawn by sample: expected 3, 1 and 2, got {counts}"


@clause("MASK-11")
def test_a_notebook_explains_the_cells_of_the_sample_that_is_drawn(subject):
    require(subject, "errors")
    mask = subject.mask(padding([3, 1, 2]))
    tables = [mask.draw(1, 3, batch=b)._repr_html_() for b in range(3)]
    counts = [table.count('title="allowed') for table in tables]
    assert counts == [3, 1, 2], (
        f"MASK-11: allowed cells by sample: expected 3, 1 and 2, got {counts}"
    )


@clause("MASK-7")
@pytest.mark.parametrize("before", [2**30 - 1, 2**30 + 5, 2**31, 2**40])
def test_windows_of_any_width_count_from_their_query(subject, before):
    for offset in (0, 2**30, -(2**30)):
        spec, sizes = sliding_window(before, 1), (3, 2, 3, 7)
        expected = reference.allowed(spec, sizes, offset)
        same(allowed(subject, spec, sizes, offset), expected, f"window from {offset}")


@clause("MASK-8")
@pytest.mark.parametrize("offset", [-6, -3, -1, 3, 5, 7])
def test_queries_outside_the_ids_are_in_no_segment(subject, offset):
    spec = segments([[4, 4, 4, 9, 9, 9, 9], [1, 2, 2, 2, 3, 3, 3], [5] * 7])
    same(allowed(subject, spec, query_offset=offset),
         reference.allowed(spec, MAIN.call, offset), "segments")  # fmt: skip


@clause("MASK-12")
@pytest.mark.parametrize("name", ["padding", "~causal", "padding & causal", "padding | window"])
def test_masks_of_several_parts_ask_where_queries_start(subject, name):
    require(subject, "errors", "attention")
    spec = {"padding": padding(LENGTHS) & padding([4, 5, 6]), "~causal": ~causal(),
            "padding & causal": padding(LENGTHS) & causal(),
            "padding | window": padding(LENGTHS) | sliding_window(1)}[name]  # fmt: skip
    query, key = np.ones((3, 2, 5, 4), np.float32), np.ones((3, 2, 7, 4), np.float32)
    if name == "padding":
        subject.attention(query, key, key, mask=spec)
        spec = spec & causal()
    refused(
        subject,
        lambda: subject.attention(query, key, key, mask=spec),
        ValueError,
        "S - T = 2",
        beside=lambda: subject.attention(query, key, key, mask=spec, query_offset=0),
    )


@clause("MASK-12")
def test_one_mask_serves_any_call(subject):
    """Whatever is kept of a mask must not be of another call: of other offsets, sizes or dtypes."""
    require(subject, "errors", "attention")
    spec = sliding_window(2) & padding(LENGTHS)
    mask = subject.mask(spec)
    calls = [(MAIN, 2), (MAIN, 0), (MAIN._replace(T=7), 0), (MAIN._replace(T=7), -1), (MAIN, 2)]
    for shape, offset in calls:
        check_kept(subject, mask, Case("one_mask", shape, spec, offset))


@clause("MASK-12")
def test_one_mask_serves_any_batch(subject):
    require(subject, "errors", "attention")
    mask = subject.mask(causal())
    for samples in (2, 3, 1, 5):
        case = Case("one_mask", MAIN._replace(B=samples), causal(), 0)
        for dtype_name in ("float32", "bfloat16"):
            check_kept(subject, mask, case, dtype_name)


def check_kept(subject, mask, case: Case, dtype_name: str = "float32") -> None:
    """Check a call of a mask that served other calls before."""
    case = replace(case, shape=case.shape._replace(D_v=case.shape.D))
    inputs = (subject.array(x) for x in case.inputs(dtype_name))
    got = subject.module.attention(*inputs, mask=mask, query_offset=case.query_offset)
    exact, naive = (steps["output"] for steps in case.expected(dtype_name))
    what = f"{dtype_name} output of {case.shape.B} samples at {case.query_offset}"
    compare(subject.numpy(got), exact, naive, what)


STARTS = {"first": 0, "inside": 3, "before": -4, "behind": 6, "each": np.array([-1, 5, 2])}


@clause("MASK-13")
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 2**31 - 1, 2**40])
def test_chunks_are_counted_from_position_0(subject, size, start):
    got = allowed(subject, chunked(size), query_offset=STARTS[start])
    for b, offset in enumerate(np.broadcast_to(STARTS[start], 3)):
        for t in range(5):
            keys = [s for s in range(7) if (t + offset) // size == s // size]
            same(np.flatnonzero(got[b, 0, t]), keys, f"keys that position {t + offset} sees")


@clause("MASK-13")
@pytest.mark.parametrize("size", [1, 3, 2**31 - 1, 2**40])
@pytest.mark.parametrize("offset", [2**30, -(2**30)])
def test_far_chunks_are_chunks(subject, size, offset):
    expected = reference.allowed(chunked(size), MAIN.call, offset)
    same(allowed(subject, chunked(size), query_offset=offset), expected, f"chunks at {offset}")
    if "attention" in subject.capabilities:
        check_steps(subject, Case("far_chunks", mask=chunked(size), query_offset=offset), "float32")


DOCUMENTS = {
    "whole": [[3, 4], [7, 0], [1, 6]],
    "short": [[3, 2, 1], [0, 0, 0], [0, 1, 0]],
    "empty_between": [[0, 2, 0, 0, 3, 0], [2, 0, 2, 0, 2, 0], [0, 0, 0, 7, 0, 0]],
    "one": [[5], [0], [7]],
    "none": [[], [], []],
    "of_all_samples": [[2, 4]],
}


@clause("MASK-13")
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_packed_documents_are_segments_of_their_ids(subject, name, start):
    lengths = np.array(DOCUMENTS[name], int)
    numbers = [np.repeat(np.arange(len(line)), line) for line in lengths]
    ids = np.stack([np.pad(line, (0, 7 - len(line))) for line in numbers])
    spec = segments(ids) & padding(lengths.sum(1))
    offset = STARTS[start]
    expected = reference.allowed(spec, MAIN.call, offset)
    positions = np.broadcast_to(offset, 3)[:, None] + np.arange(5)
    expected &= (positions < lengths.sum(1)[:, None])[:, None, :, None]
    same(allowed(subject, packed(lengths), query_offset=offset), expected, f"packed {name}")


@pytest.mark.untyped
@clause("MASK-13")
@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint32", "int64"])
def test_lengths_of_documents_may_be_of_any_kind(subject, kind):
    lengths = np.array([[100, 100, 50], [0, 127, 120], [1, 2, 3]], kind)
    sizes = (3, 1, 3, 260)
    expected = reference.allowed(packed(lengths), sizes, 198)
    same(allowed(subject, packed(lengths), sizes, 198), expected, f"packed lengths of {kind}")


@pytest.mark.untyped
@clause("MASK-13")
def test_documents_of_a_long_call_may_end_beyond_their_dtype(subject):
    require(subject, "attention")
    rng, sizes = np.random.default_rng(34), (1, 1, 131, 131)
    query, key, value = (rng.normal(size=(1, 1, 131, 5)).astype(np.float32) for _ in range(3))
    spec = packed(np.array([[50, 0, 80]], np.int8))
    output = subject.attention(query, key, value, mask=spec)
    check_output(output, query, key, value, "output", allowed=reference.allowed(spec, sizes))


@clause("MASK-13")
def test_packed_documents_equal_the_same_documents_alone(subject):
    require(subject, "attention")
    rng = np.random.default_rng(32)
    query, key, value = (rng.normal(size=(1, 2, 7, d)).astype(np.float32) for d in (11, 11, 13))
    output = subject.attention(query, key, value, mask=packed([[3, 0, 2]]) & causal())
    for start, stop in ((0, 3), (3, 5)):
        part, length = np.s_[:, :, start:stop], stop - start
        tri = np.broadcast_to(np.tri(length, dtype=bool), (1, 2, length, length))
        inputs = (query[part], key[part], value[part])
        check_output(output[part], *inputs, f"{start}..{stop}", allowed=tri)
    assert not output[:, :, 5:].any(), "MASK-13: rows behind the last document are fully masked"


ROWS = {"in_order": [1, 2, 3], "repeated": [4, 0, 4, 4], "one": [2], "none": []}
COLUMNS = {"in_order": [2, 3, 4, 5], "repeated": [6, 6, 0, 3, 1], "one": [4], "none": []}


@clause("MASK-14")
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", MASKS)
def test_a_part_allows_what_the_whole_allows_there(subject, name, rows, columns):
    spec, own = MASKS[name]
    offset, (r, c) = 0 if own is None else own, (ROWS[rows], COLUMNS[columns])
    expected = reference.allowed(spec, MAIN.call, offset)[:, :, r][..., c]
    part, sizes = spec.part(r, c, offset), (3, 2, len(r), len(c))
    same(allowed(subject, part, sizes), expected, "a part")
    same(allowed(subject, part, sizes, 3), expected, "a part that an offset does not move")
    options = {"batch": 3, "heads": 2}
    for top, left in product(range(len(r)), range(len(c))):
        for height, width in ((1, 1), (2, 3), (3, 2)):
            at = slice(top, top + height), slice(left, left + width)
            got = subject.ask("tile", part, *sizes[2:], *at, **options)
            wanted = verdict(expected[:, :, at[0]][..., at[1]])
            assert got == wanted, f"MASK-14: tile {at}: expected {wanted}, got {got}"


@clause("MASK-14")
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", POSITIONAL)
def test_a_part_stands_where_its_queries_do(subject, name, start):
    spec, offset, r, c = POSITIONAL[name], STARTS[start], [4, 0, 3], [6, 2, 0, 1]
    expected = reference.allowed(spec, MAIN.call, offset)[:, :, r][..., c]
    same(allowed(subject, spec.part(r, c, offset), (3, 2, 3, 4)), expected, f"a part of {name}")


@clause("MASK-14")
@pytest.mark.parametrize("name", MASKS)
def test_a_part_of_a_part_is_a_part(subject, name):
    spec, own = MASKS[name]
    offset = 0 if own is None else own
    middle = spec.part([4, 2, 2, 0], [5, 1, 6, 0, 1, 3], offset)
    part = (middle | padding([3, 0, 6])).part([3, 0, 1], [4, 0, 2], 2)
    expected = reference.allowed(part, (3, 2, 3, 3))
    same(allowed(subject, part, (3, 2, 3, 3)), expected, "a part of a part")


@clause("MASK-14")
@pytest.mark.parametrize("name", MASKS)
def test_attention_of_a_part_is_that_of_its_rows_and_columns(subject, name):
    require(subject, "attention")
    spec, own = MASKS[name]
    rows, columns, offset = [4, 0, 3, 3], [6, 0, 2, 1, 5], 0 if own is None else own
    shape = MAIN._replace(T=4, S=5)
    check_steps(subject, Case("part", shape, spec.part(rows, columns, offset)), "float32")


@clause("MASK-14")
@pytest.mark.parametrize("name", ["causal", "segments", "predicate", "causal_and_padding"])
def test_a_part_is_explained_as_the_whole_is(subject, name):
    spec, offset = MASKS[name]
    rows, columns = [4, 0, 3], [6, 0, 2, 1]
    part = spec.part(rows, columns, offset)
    for b, t, s in product(range(3), range(3), range(4)):
        got = subject.ask("explain", part, b, 1, t, s).splitlines()
        place = (b, 1, rows[t], columns[s])
        whole = subject.ask("explain", spec, *place, query_offset=offset).splitlines()
        words = [[line.split()[0].rstrip(":") for line in text] for text in (got, whole)]
        assert words[0] == words[1], f"MASK-14: {place}: expected {words[1]}, got {words[0]}"


@clause("MASK-14")
def test_shards_of_a_long_call_give_the_whole(subject):
    require(subject, "attention")
    T, spec = 131, causal() & packed([[50, 0, 60]]) & chunked(37)
    order = np.random.default_rng(8).permutation(T)
    rng = np.random.default_rng(33)
    query, key, value = (rng.normal(size=(1, 2, T, 5)).astype(np.float32) for _ in range(3))
    options = {"allowed": reference.allowed(spec, (1, 2, T, T))}
    for rows in (order[:64], order[64:]):
        part = spec.part(rows, order)
        got = subject.attention(query[:, :, rows], key[:, :, order], value[:, :, order], mask=part)
        options = {"allowed": reference.allowed(spec, (1, 2, T, T))[:, :, rows][..., order]}
        inputs = (query[:, :, rows], key[:, :, order], value[:, :, order])
        check_output(got, *inputs, "a shard", **options)
