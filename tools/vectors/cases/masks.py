"""The chapter on masks: the documents' builders, and what each structure lets be seen."""

from dataclasses import replace
from typing import Any

import numpy as np

from conformance.mask_spec import (
    Spec,
    allow,
    causal,
    chunked,
    hide,
    packed,
    padding,
    prefix,
    segments,
    sliding_window,
)
from conformance.vectors.vector import Vector

from .make import (
    LENGTHS,
    MAIN,
    ONE_ROW,
    REFUSED,
    SQUARE_CALL,
    WEIGHTS,
    coins,
    exact,
    exempt,
    raises,
)

CALL = {"B": 3, "H": 2, "T": 5, "S": 7}
SQUARE = exempt(SQUARE_CALL, "distinct_sizes") | WEIGHTS
IDS = [[4, 4, 4, 9, 9, 9, 9], [1, 2, 2, 2, 3, 3, 3], [5, 5, 6, 6, 5, 5, 5]]
PAIR = ([[1, 1, 2, 2, 3]] * 3, [[3, 3, 2, 2, 2, 1, 8]] * 3)
BOOLS = coins(1, *MAIN.call)
WHOLE = causal() & padding([9, 6, 0])


def tokens(id: str, shows: str, rows: list, padding_idx: int) -> Vector:
    table = np.array(rows, np.int64)
    sizes = dict(zip("BS", table.shape, strict=True))
    return Vector(
        id=id, shows=shows, call="sequence_mask", sizes=sizes, inputs={"tokens": table},
        settings={"padding_idx": padding_idx}, expect=(exact("mask"),), exempt=WEIGHTS,
    )  # fmt: skip


def look_ahead(id: str, shows: str, T: int, S: int, reason: str = SQUARE_CALL) -> Vector:
    square = exempt(reason, "distinct_sizes") if T == S else {}
    return Vector(
        id=id, shows=shows, call="look_ahead_mask", sizes={"T": T, "S": S},
        settings={"tgt_len": T, "src_len": S}, expect=(exact("mask"),), exempt=WEIGHTS | square,
    )  # fmt: skip


def ask(id: str, shows: str, mask: Spec, offset=None, *forms: str, **fields: Any) -> Vector:
    parts = tuple(exact(form) for form in forms or ("allowed",))
    given: dict[str, Any] = {"sizes": CALL, "exempt": WEIGHTS, "expect": parts} | fields
    return Vector(id=id, shows=shows, call="allowed", mask=mask, query_offset=offset, **given)


def refuse(id: str, lengths: list[int]) -> Vector:
    part = raises("a length lies in 0..S", "MASK-6.lengths", "mask")
    shows = f"a length of {max(lengths, key=abs)} among {MAIN.S} keys is refused"
    return ask(id, shows, padding(lengths), expect=(part,), exempt=REFUSED)


ONE_QUERY = look_ahead("MASK-2.one_query", "one query sees key 0 alone", 1, 7)
BUILDERS = [
    tokens("MASK-1.ragged", "a token is padding exactly where it is the padding id",
           [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], 0),
    tokens("MASK-1.other_id", "the padding id may be any number, and 0 is then a token like others",
           [[0, 2, -1, 0, -1], [7, -1, 0, 3, 3]], -1),
    look_ahead("MASK-2.wide", "more keys than queries leave the last columns hidden", 5, 7),
    look_ahead("MASK-2.tall", "more queries than keys leave the last rows open", 7, 5),
    replace(ONE_QUERY, exempt=WEIGHTS | exempt(ONE_ROW, "transposed")),
    look_ahead("MASK-3.square", "row t of the square mask has t + 1 zeros, then -inf", 7, 7),
]  # fmt: skip

ASKED = [
    ask("MASK-4.ragged_causal", "hidden is the complement of allowed, and additive is 0 or -inf",
        causal() & padding(LENGTHS), 2, "allowed", "hidden", "additive"),
    ask("MASK-4.per_head", "the three forms agree where samples and heads differ",
        hide(BOOLS), None, "allowed", "hidden", "additive"),
    ask("MASK-5.intersection", "& shows what both show", sliding_window(2) & padding([5, 0, 2]), 1),
    ask("MASK-5.union", "| shows what either shows", sliding_window(1) | padding([5, 0, 2]), 1),
    ask("MASK-5.complement", "~ shows what is hidden", ~sliding_window(1, 1), 2),
    ask("MASK-5.de_morgan", "~(a & b) is what ~a | ~b is", ~(causal() & allow(BOOLS)), 1),
    ask("MASK-5.de_morgan_apart", "~a | ~b is what ~(a & b) is", ~causal() | ~allow(BOOLS), 1),
    ask("MASK-5.absorption", "a & (a | b) is a", causal() & (causal() | allow(BOOLS)), 1),
    ask("MASK-6.lengths", "padding hides keys from its length on, and never a query",
        padding([7, 0, 1])),
    ask("MASK-6.hidden", "padding may stand anywhere", padding(hidden=coins(2, 3, 7))),
    refuse("MASK-6.too_long", [8, 0, 1]),
    refuse("MASK-6.negative", [1, 0, -7]),
    ask("MASK-7.itself", "a window of 0 and 0 shows the own position alone", sliding_window(0), 1),
    ask("MASK-7.before", "`before` counts besides the own position", sliding_window(2), 2),
    ask("MASK-7.after", "`after` counts besides the own position", sliding_window(0, 3), 0),
    ask("MASK-7.around", "a window may reach both ways", sliding_window(1, 2), 1),
    ask("MASK-8.prefix", "everyone sees the prefix, and what follows it is causal",
        prefix([3, 0, 6]), 1),
    ask("MASK-8.segments", "a query sees its own segment alone", segments(IDS), 2),
    ask("MASK-8.packed", "packed sequences are causal each for itself", segments(IDS) & causal(),
        2),
    ask("MASK-8.two_lists", "queries and keys may have segments of their own", segments(*PAIR)),
    ask("MASK-12.causal", "an offset moves the queries along the square mask's rows", causal(), 2),
    ask("MASK-12.window", "a window moves with its query", sliding_window(1, 2), 2),
    ask("MASK-12.prefix", "a prefix stays where it is, what follows it moves",
        prefix([3, 0, 6]), 2),
    ask("MASK-12.per_sample", "each sample may have an offset of its own", causal(), [4, 0, 2]),
    ask("MASK-12.before_the_keys", "an offset may be negative: such a query sees nothing",
        causal(), -2),
    ask("MASK-12.square", "an offset is honoured at T == S too", causal(), 3,
        sizes=CALL | {"T": 7}, exempt=SQUARE),
    ask("MASK-13.chunked", "a query sees the chunk of three that its position is in",
        chunked(3), 1),
    ask("MASK-13.chunked_before", "chunks are counted downwards too, and there is no key below 0",
        chunked(3), [-2, 0, 4]),
    ask("MASK-13.chunked_causal", "chunked local attention", chunked(3) & causal(), 2),
    ask("MASK-13.packed", "documents see themselves, and nothing behind the last one",
        packed([[3, 2, 1], [0, 4, 3], [1, 0, 0]]), 2),
    ask("MASK-13.packed_causal", "packed documents are causal each for itself",
        packed([[2, 4], [7, 0], [3, 3]]) & causal(), [-1, 0, 2]),
    ask("MASK-14.part", "a part shows what the whole shows at its rows and columns, in any order",
        WHOLE.part([7, 1, 4, 4, 9], [8, 0, 3, 2, 5, 4, 4], np.array([1, -1, 3]))),
    ask("MASK-14.part_of_a_part", "no other offset moves a part, of a part and beside others too",
        WHOLE.part([7, 1, 4, 9], [8, 0, 3, 2, 5], 1).part([3, 0, 1, 1, 2], [4, 1, 0, 2, 2, 3, 0])
        | sliding_window(0), 2),
    ask("MASK-12.arrays", "arrays are in the call's own coordinates and are not shifted",
        (allow(BOOLS) & padding(hidden=coins(3, 3, 7)) & segments(*PAIR))
        | hide(coins(4, 1, 2, 5, 7)), 2),
]  # fmt: skip

CASES = [*BUILDERS, *ASKED]
