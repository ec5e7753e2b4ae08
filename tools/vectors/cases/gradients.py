"""The chapters on causal masks, on gradients and on 16 bits."""

import numpy as np

from conformance.cases.attention import Shape
from conformance.mask_spec import allow, causal, padding

from .make import (
    ALL_SEEN,
    EQUAL,
    GROUPED,
    LENGTHS,
    MAIN,
    REFUSED,
    SQUARE,
    SQUARE_CALL,
    attend,
    coins,
    exact,
    exempt,
    normal,
    numbers,
    raises,
)

CAUSAL = {"mask": causal(), "query_offset": 2}
ON_THE_SQUARE = exempt(SQUARE_CALL, "distinct_sizes")
LEFT = np.arange(7) < np.array([0, 5, 2])[:, None]  # (B, S): lengths 7, 2 and 5, from the right
SHORT = {name: x[2:, :, 2:] for name, x in numbers(SQUARE, 22).items()}
NEEDED = "query_offset is given where T != S and the mask looks at positions"

POSITIONS = [
    attend("CAUSE-1.square", "at T == S a query sees itself and what is before it", shape=SQUARE,
           seed=21, mask=causal(), exempt=ON_THE_SQUARE),
    attend("CAUSE-2.no_offset", "5 causal queries over 7 keys are refused without an offset",
           raises(NEEDED, "CAUSE-3.last", "query_offset"), seed=21, mask=causal(), exempt=REFUSED),
    attend("CAUSE-3.last", "an offset of S - T makes the queries the last positions", seed=21,
           **CAUSAL, distractors=("offset_of_zero",)),
    attend("CAUSE-3.first", "an offset of 0 lets queries and keys start together", seed=21,
           mask=causal(), query_offset=0, distractors=("offset_of_the_end",)),
    attend("CAUSE-3.per_sample", "each sample may have an offset of its own", seed=21,
           mask=causal(), query_offset=[2, 0, 5],
           distractors=("offset_of_zero", "offset_of_the_end")),
    attend("CAUSE-3.one_query", "one query at position 4 sees all five keys, not one", seed=21,
           shape=MAIN._replace(T=1, S=5), mask=causal(), query_offset=4,
           exempt=exempt(ALL_SEEN, "hidden", "unmasked", "transposed"),
           distractors=("offset_of_zero",)),
    attend("CAUSE-5.right", "padded on the right, a sample has its tokens alone", shape=SQUARE,
           seed=22, mask=causal() & padding([7, 2, 5]), exempt=ON_THE_SQUARE),
    attend("CAUSE-5.left", "padded on the left, sample 2 has its last five tokens alone",
           shape=SQUARE, seed=22, mask=causal() & padding(hidden=LEFT), exempt=ON_THE_SQUARE),
    attend("CAUSE-5.alone", "five tokens alone have the rows that they have in CAUSE-5.left",
           shape=SQUARE._replace(B=1, T=5, S=5), inputs=SHORT, mask=causal(),
           exempt=ON_THE_SQUARE),
]  # fmt: skip


def backward(id: str, shows: str, **fields):
    return attend(id, shows, seed=23, grad=True, **fields)


GRADIENTS = [
    backward("GRAD-1.causal", "query, key and value get the gradients of the formula", **CAUSAL),
    backward("GRAD-1.any_cells", "gradients go by a mask that is given cell by cell",
             mask=allow(coins(51, *MAIN.call, true=0.6))),
    backward("GRAD-1.bias_rank_2", "the gradient of a bias (T, S) is summed over samples and heads",
             mask=padding(LENGTHS), inputs={"bias": normal(52, 5, 7)},
             distractors=("bias_forgotten",)),
    backward("GRAD-1.bias_per_head", "the gradient of a bias is summed over its axes of 1",
             inputs={"bias": normal(53, 1, 2, 1, 7)}, **CAUSAL, distractors=("bias_forgotten",)),
    backward("GRAD-1.softcap", "the gradients go through the softcap and past the bias",
             softcap=0.75, inputs={"bias": normal(54, *MAIN.call)}, **CAUSAL,
             distractors=("softcap_after_the_bias", "softcap_forgotten")),
    backward("GRAD-1.negative_scale", "a negative scale goes into the gradients", scale=-0.75,
             **CAUSAL),
    backward("GRAD-1.grouped", "a key/value head's gradient is the sum over its query heads",
             shape=GROUPED, mask=causal() & padding([7, 4]), query_offset=2,
             distractors=("heads_tiled",)),
    backward("GRAD-1.uniform", "an empty row that is uniform gives to every value, and to no key",
             mask=padding(LENGTHS), empty_rows="uniform"),
]  # fmt: skip

# 4096 visible keys alike, and three hidden ones that are not.
MANY = Shape(B=1, H=1, H_kv=1, T=5, S=4099, D=2, D_v=3)
SHOWN = np.arange(4099) < 4096
MEAN = {
    "query": np.zeros((1, 1, 5, 2)),
    "key": np.ones((1, 1, 4099, 2)),
    "value": np.where(SHOWN[:, None], 1.0, 64.0)[None, None] * np.ones(3),
}
LARGE = {name: 256 * x if name != "value" else x for name, x in numbers(MAIN, 24).items()}
SHARED = "query, key and value share a dtype"

HALVES = [
    attend("HALF-2.mean_of_ones", "4096 equal weights over values of 1 give 1, in every dtype",
           exact("output"), shape=MANY, inputs=MEAN, mask=padding([4096]),
           exempt=exempt(EQUAL, "top_weight", "uniform", "unscaled", "distinct_sizes")),
    attend("HALF-3.large_products", "products of 1e5 and more are summed beyond float16's range",
           inputs=LARGE, scale=2.0**-17, **CAUSAL),
    attend("HALF-4.key", "a float16 key among float32 inputs is refused",
           raises(SHARED, "CAUSE-3.last", "mixed", "dtypes"), seed=21, **CAUSAL,
           mixed={"key": "float16"}, dtypes=("float32",), exempt=REFUSED),
    attend("HALF-4.value", "a float32 value among bfloat16 inputs is refused",
           raises(SHARED, "CAUSE-3.last", "mixed", "dtypes"), seed=21, **CAUSAL,
           mixed={"value": "float32"}, dtypes=("bfloat16",), exempt=REFUSED),
]  # fmt: skip

CASES = [*POSITIONS, *GRADIENTS, *HALVES]
