"""The chapters on sinks, and on attention to some of the keys and how it is merged."""

import numpy as np

from conformance.cases.attention import Shape
from conformance.mask_spec import causal, padding
from conformance.vectors.vector import Part, Vector

from .make import attend, close, coins, nan, normal, numbers, sizes_of, zero

SHAPE = Shape(B=2, H=6, H_kv=3, T=5, S=7, D=4, D_v=8)
CAUSAL = {"mask": causal(), "query_offset": 2}
PADDED = {"mask": causal() & padding([7, 0]), "query_offset": 2}
EMPTY = np.arange(2) == 1
SINKS = normal(71, 6)
ONE_LESS = np.where(np.arange(6) == 4, -np.inf, SINKS)  # head 4 has none
SPOILT = np.array([0, np.nan, 0, 0, np.inf, 0]) + SINKS
BIAS = np.where(coins(72, 1, 6, 5, 7, true=0.3), -np.inf, normal(73, 1, 6, 5, 7))
OF_SPOILT = np.broadcast_to(~np.isfinite(SPOILT)[:, None], SHAPE.call[:3])
FORGOTTEN = ("sinks_forgotten", "sinks_turned")
BACKWARD = (*FORGOTTEN, "sinks_forgotten_backward")


def sunk(id: str, shows: str, *parts: Part, sinks=ONE_LESS, inputs=None, **fields) -> Vector:
    given = {"sinks": sinks} | (inputs or {})
    return attend(id, shows, *parts, shape=SHAPE, seed=31, inputs=given, **fields)


ATTENTION = [
    sunk("ATT-15.sinks", "a sink is one more logit in each row of its head, and is not scaled",
         sinks=SINKS, **CAUSAL, distractors=(*FORGOTTEN, "sinks_scaled")),
    sunk("ATT-15.fully_masked", "beside a sink a fully masked row is 0 whatever the policy, beside "
         "one of -inf too", zero("output", EMPTY), zero("weights", EMPTY),
         *close("output", "weights", region=~EMPTY), **PADDED, empty_rows="uniform",
         distractors=FORGOTTEN),
    sunk("ATT-15.not_finite", "a sink that is NaN or inf makes its head NaN, and no other",
         nan("output", OF_SPOILT), *close("output", region=~OF_SPOILT), sinks=SPOILT, **CAUSAL),
    sunk("ATT-15.gradients", "query, key, value and sinks get the gradients of the formula, and a "
         "sink of -inf gets 0", *close("output"), zero("grad_sinks", np.isneginf(ONE_LESS)),
         grad=True, **PADDED, distractors=BACKWARD),
    sunk("ATT-15.everything", "a sink is not capped, and has no bias", inputs={"bias": BIAS},
         softcap=0.75, scale=-0.75, grad=True, **CAUSAL,
         distractors=(*BACKWARD, "sinks_capped", "softcap_after_the_bias", "bias_forgotten")),
]  # fmt: skip


def split(id: str, shows: str, pieces: list[list[int]], *parts: Part, **fields) -> Vector:
    """Return a vector of attention to some of the keys after others."""
    grad, more = fields.pop("grad", False), fields.pop("inputs", {})
    inputs = numbers(SHAPE, 31, grad=grad) | more
    parts = parts or close("output", "lse")
    if grad:
        inputs["grad_lse"] = normal(74, *SHAPE.call[:3])
        parts += close("grad_query", "grad_key", "grad_value")
    return Vector(
        id=id, shows=shows, call="parts", sizes=sizes_of(SHAPE), inputs=inputs, expect=parts,
        settings={"pieces": pieces}, **fields,
    )  # fmt: skip


# Of five queries at positions 2 to 6 the first see no key of [6, 4], and all a key of [3, 0].
PIECES = [[5], [3, 0, 2], [], [6, 4, 1]]
MERGED = ("parts_averaged", "masked_parts_counted")
FIRST = np.broadcast_to((np.arange(2) == 0)[:, None, None] & (np.arange(5) > 1), SHAPE.call[:3])
PARTS = [
    split("ATT-16.part", "attention to some of the keys gives their output and log-sum-exp: a "
          "fully masked row is 0, and its log-sum-exp -inf", [[6, 4]], zero("output", ~FIRST),
          *close("output", region=FIRST), *close("lse"), **PADDED,
          distractors=("keys_of_no_piece",)),
    split("ATT-16.merged", "unequal pieces of the keys, one of them empty, give the whole", PIECES,
          **CAUSAL, distractors=MERGED),
    split("ATT-16.everything", "a bias, a softcap and a scale are those of each piece", PIECES,
          inputs={"bias": BIAS}, softcap=0.75, scale=-0.75, **PADDED,
          distractors=(*MERGED, "softcap_after_the_bias", "bias_forgotten")),
    split("ATT-16.gradients", "the gradients of output and log-sum-exp go through the merge",
          PIECES, grad=True, **PADDED, distractors=("gradient_of_lse_forgotten",)),
    split("ATT-15.in_parts", "a sink has its share once, after the merge, and is in no "
          "log-sum-exp", PIECES, inputs={"sinks": ONE_LESS}, **PADDED,
          distractors=(*FORGOTTEN, "sink_in_the_log_sum_exp")),
]  # fmt: skip

CASES = [*ATTENTION, *PARTS]
