"""The chapter on attention itself: scale, shapes, bias, heads, softcap, large logits, symmetry."""

import numpy as np

from conformance.cases.attention import Shape
from conformance.mask_spec import allow, causal, hide, padding, prefix, sliding_window
from conformance.vectors.vector import Part

from .make import (
    BY_HAND,
    EVERYTHING,
    GROUPED,
    LENGTHS,
    MAIN,
    ONE_KEY,
    REFUSED,
    SCALE_OF_ONE,
    SCALE_OF_ZERO,
    TALL,
    TWICE,
    UNMASKED,
    attend,
    close,
    coins,
    either,
    exact,
    exempt,
    normal,
    numbers,
    raises,
    zero,
)

CAUSAL = {"mask": causal(), "query_offset": 2}
RAGGED = {"mask": causal() & padding(LENGTHS), "query_offset": 2}
SOME = coins(11, *MAIN.call, true=0.6)
SOME[..., 0] |= ~SOME.any(-1)  # every row sees something
HAND = Shape(B=1, H=1, H_kv=1, T=2, S=3, D=4, D_v=2)
HAND_INPUTS = {
    "query": np.array([[[[2.0, 0, 0, 0], [0, 2, 0, 1]]]]),
    "key": np.array([[[[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 2]]]]),
    "value": np.array([[[[1.0, 0], [0, 1], [2, -1]]]]),
}

FORMULA = [
    attend("ATT-1.by_hand", "the output is softmax(Q K^T / sqrt(D)) V over what is seen",
           shape=HAND, inputs=HAND_INPUTS, mask=causal(), query_offset=1,
           exempt=exempt(BY_HAND, "distinct_sizes")),
    attend("ATT-1.plain", "without a mask every query sees every key", exempt=UNMASKED,
           distractors=("scaled_by_the_values_width",)),
    attend("ATT-1.causal", "left out, the scale is 1/sqrt(D) of the keys and not of the values",
           seed=1, **CAUSAL, distractors=("scaled_by_the_values_width", "offset_of_zero")),
    attend("ATT-1.window_or_prefix", "the mask may be a union of structures",
           seed=2, mask=sliding_window(1) | prefix([2, 0, 5]), query_offset=2),
    attend("ATT-1.negative_scale", "a scale may be negative", scale=-0.75, **CAUSAL),
    attend("ATT-1.unit_scale", "a scale of 1 is not the scale that is left out", scale=1.0,
           **CAUSAL, exempt=exempt(SCALE_OF_ONE, "unscaled")),
    attend("ATT-1.zero_scale", "a scale of 0 gives the mean of what is seen", scale=0.0, **CAUSAL,
           exempt=exempt(SCALE_OF_ZERO, "uniform", "top_weight")),
]  # fmt: skip


TRIANGLE = np.broadcast_to(np.tri(5, 7, 2, dtype=bool), MAIN.call)
DISTRIBUTION = [
    attend("ATT-2.hidden_weights", "the weights of a row sum to 1, and a hidden one is exactly 0",
           *close("weights", "output"), zero("weights", ~TRIANGLE), seed=3, **CAUSAL),
    attend("ATT-2.any_cells", "weights are a distribution over what is seen, cell by cell",
           *close("weights", "output"), zero("weights", ~SOME), seed=3, mask=allow(SOME)),
]  # fmt: skip
NARROW = MAIN._replace(D=13, D_v=11)
SHAPES = [
    attend("ATT-3.narrow_values", "values may be narrower than keys", shape=NARROW, seed=4,
           **RAGGED, distractors=("scaled_by_the_values_width",)),
    attend("ATT-3.tall", "there may be more queries than keys", shape=TALL, seed=4, mask=causal(),
           query_offset=0, distractors=("offset_of_the_end",)),
    attend("ATT-3.no_query", "no query gives an output of no rows", shape=MAIN._replace(T=0),
           **CAUSAL, exempt=EVERYTHING),
    attend("ATT-3.no_key", "without any key every row is empty", zero("output"),
           shape=MAIN._replace(S=0), mask=causal(), query_offset=0, exempt=EVERYTHING),
]  # fmt: skip

ROWS = normal(21, 3, 2, 5, 1)
HOLES = np.where(coins(22, *MAIN.call, true=0.4), -np.inf, normal(23, *MAIN.call))
BIASES = [
    attend("ATT-4.rank_2", "a bias (T, S) is added for all samples and heads",
           inputs={"bias": normal(24, 5, 7)}, mask=padding(LENGTHS),
           distractors=("bias_forgotten",)),
    attend("ATT-4.rank_4", "a bias (B, H, T, S) is added beside a mask",
           inputs={"bias": normal(25, *MAIN.call)}, **CAUSAL, distractors=("bias_forgotten",)),
    attend("ATT-4.per_head", "a bias may have axes of 1", mask=padding([7, 1, 4]),
           inputs={"bias": normal(26, 1, 2, 1, 7)}, distractors=("bias_forgotten",)),
    attend("ATT-4.minus_infinity", "-inf in a bias hides like a mask, its finite numbers are added",
           inputs={"bias": HOLES}, distractors=("bias_forgotten",)),
    attend("ATT-4.constant_along_a_row", "a bias that is constant along a row changes nothing",
           inputs={"bias": ROWS}, **CAUSAL),
    attend("ATT-4.without_the_constant", "the call without that constant has the same answer",
           **CAUSAL),
]  # fmt: skip

HEADS = {"mask": causal() & padding([7, 4]), "query_offset": 2}
GROUPS = [
    attend("ATT-5.grouped", "query head h reads key/value head h // (H / H_kv)", shape=GROUPED,
           seed=5, **HEADS, distractors=("heads_tiled",)),
    attend("ATT-5.one_kv_head", "one key/value head serves all query heads", seed=5,
           shape=GROUPED._replace(H=3, H_kv=1), mask=hide(coins(31, 2, 3, 5, 7, true=0.3))),
    attend("ATT-5.not_divisible", "4 query heads over 3 key/value heads are refused",
           raises("H is a multiple of H_kv", "ATT-5.grouped", "sizes", "inputs.query"),
           shape=GROUPED._replace(H=4), seed=5, **HEADS, exempt=REFUSED),
]  # fmt: skip
SOFTCAP = [
    attend("ATT-6.before_bias_and_mask", "the softcap is applied to the scaled scores, then the "
           "bias is added, then the mask applied", inputs={"bias": normal(32, 5, 7)}, softcap=0.75,
           **CAUSAL, distractors=("softcap_after_the_bias", "softcap_forgotten")),
]  # fmt: skip

# Rows 0 to 2 see one key each, far below zero; rows 3 and 4 see several, without a bias.
FIRST = np.broadcast_to(np.arange(5) < 3, MAIN.call[:3])
ONE = np.arange(7) == np.array([6, 0, 3, 3, 1])[:, None]
FEW = np.broadcast_to(np.where(np.arange(5)[:, None] < 3, ONE, np.tri(5, 7, 1)), MAIN.call) > 0
LOW = np.where(np.arange(5) < 3, -(2.0**31), 0.0)[:, None] * np.ones(7)
NOT_HALF = ("float64", "float32", "bfloat16")  # in float16 such numbers are infinite
SINGLE = ("float32", "bfloat16")  # computed in float32, beyond which 2**132 lies

OVERFLOW = np.zeros(MAIN.call[:3], bool)
OVERFLOW[1, 1, 3] = True


def overflowing(policy: str):
    """One row's only visible logit is below float32's range, and is seen all the same."""
    inputs = {name: x.copy() for name, x in numbers(MAIN, 6).items()}
    inputs["query"][1, 1, 3], inputs["key"][1, 1, 0] = 2.0**66, -(2.0**66)
    names = {"nan": Part(kind="nan"), "the_visible_value": Part(kind="exact")}
    parts = (*close("output", region=~OVERFLOW), either("output", None, OVERFLOW, **names))
    return attend(
        f"ATT-7.overflow_{policy}", "a row whose visible logit overflows is not an empty one: it "
        "is NaN, or the value that it sees", *parts, inputs=inputs, mask=padding([7, 1, 4]),
        empty_rows=policy, dtypes=SINGLE,
    )  # fmt: skip


LARGE = [
    attend("ATT-7.large", "logits of 1e4 do not overflow", seed=7, scale=8192.0, **RAGGED),
    attend("ATT-7.large_negative", "logits of 1e4 by a negative scale do not overflow", seed=7,
           scale=-8192.0, **RAGGED),
    attend("ATT-7.constant", "a large constant added to a row's logits changes nothing", seed=7,
           inputs={"bias": 512 * ROWS}, **RAGGED),
    attend("ATT-7.very_negative", "a visible logit of -2e9 beats every hidden one",
           exact("output", FIRST), *close("output", "weights"), seed=7, inputs={"bias": LOW},
           mask=allow(FEW), dtypes=NOT_HALF),
    overflowing("zero"),
    overflowing("uniform"),
]  # fmt: skip

ORDER = [3, 6, 0, 5, 1, 4, 2]
BASE = numbers(MAIN, 8)
ZEROS = np.where(np.isin(np.arange(5), (1, 3))[:, None], 0.0, BASE["query"])


def turned(**changed) -> dict:
    return {"seed": 8, "inputs": changed}


SYMMETRIES = [
    attend("ATT-8.cells", "a call has the answer that the next three must repeat", seed=8,
           mask=allow(SOME)),
    attend("ATT-8.permuted_keys", "permuting keys, values and mask together changes nothing",
           *close("output"), mask=allow(SOME[..., ORDER]),
           **turned(key=BASE["key"][:, :, ORDER], value=BASE["value"][:, :, ORDER])),
    attend("ATT-8.duplicated_keys", "showing every key twice changes nothing", *close("output"),
           shape=MAIN._replace(S=14), mask=allow(np.tile(SOME, 2)),
           exempt=exempt(TWICE, "top_weight"),
           **turned(**{name: np.tile(BASE[name], (1, 1, 2, 1)) for name in ("key", "value")})),
    attend("ATT-8.doubled_values", "twice the values give twice the output", *close("output"),
           mask=allow(SOME), **turned(value=2 * BASE["value"])),
    attend("ATT-8.one_visible_key", "one visible key gives its value", exact("output"), seed=8,
           mask=allow(np.broadcast_to(ONE, MAIN.call)),
           exempt=exempt(ONE_KEY, "uniform", "unscaled")),
    attend("ATT-8.equal_logits", "rows 1 and 3, whose logits are equal, are the mean of what they "
           "see", mask=allow(SOME), **turned(query=ZEROS)),
]  # fmt: skip

CASES = [
    *FORMULA, *DISTRIBUTION, *SHAPES, *BIASES, *GROUPS, *SOFTCAP, *LARGE, *SYMMETRIES
]  # fmt: skip
