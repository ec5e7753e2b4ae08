"""The chapters on rows that may see nothing, and on what a hidden position may hold."""

import numpy as np

from conformance.mask_spec import allow, causal, hide, padding
from conformance.vectors.vector import Part, Vector

from .make import (
    EVERYTHING,
    LENGTHS,
    MAIN,
    attend,
    close,
    coins,
    either,
    finite,
    nan,
    normal,
    numbers,
    ulp,
    zero,
)

# Some rows of nothing, and one key of sample 2 that nobody sees.
ROWS = coins(41, *MAIN.call, true=0.6) & ~coins(42, 3, 2, 5, 1, true=0.4)
ROWS[2, :, :, 3] = False
NONE = ~ROWS.any(-1)  # (B, H, T): the empty rows
UNSEEN = ~ROWS.any(2)  # (B, H, S): the keys that nobody sees
OTHER = close("output", "weights", region=~NONE)
TELLING = ("uniform_rows",)


def rows(policy: str, id: str, shows: str, *parts: Part, **fields) -> Vector:
    return attend(id, shows, *parts, *OTHER, mask=allow(ROWS), empty_rows=policy, seed=11, **fields)


POLICIES = [
    rows("zero", "EMPTY-1.zero", "an empty row's weights and output are exactly 0",
         zero("weights", NONE), zero("output", NONE)),
    rows("nan", "EMPTY-2.nan", "an empty row's weights and output are NaN, and no other row's",
         nan("weights", NONE), nan("output", NONE)),
    rows("uniform", "EMPTY-3.uniform", "an empty row's weights are 1/S over all keys",
         ulp("weights", 1 / 7, NONE), *close("output", region=NONE)),
]  # fmt: skip

# Every way to hide all keys from sample 1, and keys 4 to 6 from sample 2.
PADDED = np.arange(7) >= np.array(LENGTHS)[:, None]  # (B, S)
HIDDEN = np.broadcast_to(PADDED[:, None, None], (3, 1, 5, 7))
HOLE, MINUS = {"mask": hide(HIDDEN)}, {"bias": np.where(HIDDEN, -np.inf, 0.0)}
SAMPLE = np.arange(3) == 1
WAYS: dict[str, dict] = {
    "padding": {"mask": padding(LENGTHS)},
    "hide": HOLE,
    "bias": {"inputs": MINUS},
    "mask_and_bias": {"mask": padding([7, 3, 4]), "inputs": MINUS},
    "offset": {"mask": causal() & padding([7, 5, 4]), "query_offset": [9, -9, 9]},
}
SAME = [
    attend(f"EMPTY-4.{way}", "how a row was emptied makes no difference", zero("output", SAMPLE),
           zero("weights", SAMPLE), *close("output", "weights", region=~SAMPLE), seed=12, **fields)
    for way, fields in WAYS.items()
]  # fmt: skip
NO_KEY = [
    attend(f"EMPTY-4.no_key_{policy}", shows, part, shape=MAIN._replace(S=0), empty_rows=policy,
           exempt=EVERYTHING)
    for policy, part, shows in (
        ("nan", nan("output"), "no key at all is an empty row"),
        ("uniform", nan("output"), "the mean over no key is NaN"),
    )
]  # fmt: skip
GRADIENTS = [
    attend("EMPTY-6.gradients", "an empty row's query gets gradient 0, a key that nobody sees too, "
           "and nothing is NaN", zero("grad_query", NONE), zero("grad_key", UNSEEN),
           zero("grad_value", UNSEEN), *finite("grad_query", "grad_key", "grad_value"),
           mask=allow(ROWS), seed=11, grad=True),
]  # fmt: skip

FILL = np.where(np.arange(5)[:, None] == 2, -(2.0**100), normal(43, 5, 7))
FILLED = np.broadcast_to(np.arange(5) == 2, MAIN.call[:3])
BILLION = np.where(np.arange(5)[:, None] == 2, -1e9, normal(43, 5, 7))
COLUMN = np.where(np.arange(7) == 3, -np.inf, 0.0) * np.ones((5, 1))
FILLS = [
    attend("EMPTY-8.finite_fill", "row 2, filled with -1e30, is the mean of all values and not an "
           "empty row", seed=13, inputs={"bias": FILL}, mask=padding([7, 7, 4]),
           dtypes=("float64", "float32", "bfloat16"), distractors=("bias_forgotten",)),
    attend("EMPTY-8.float16", "in float16 -1e9 is -inf: row 2 is empty", zero("output", FILLED),
           zero("weights", FILLED), *close("output", "weights", region=~FILLED), seed=13,
           inputs={"bias": BILLION}, mask=padding([7, 7, 4]), dtypes=("float16",),
           distractors=("bias_forgotten",)),
    attend("EMPTY-9.column_of_a_bias", "a column of -inf is a key without influence, not a NaN",
           seed=13, inputs={"bias": COLUMN}, empty_rows="nan"),
    attend("EMPTY-9.hidden_column", "a column that a mask hides has no influence, nor is it a NaN",
           seed=13, empty_rows="nan",
           mask=hide(np.broadcast_to(np.arange(7) == 3, (1, 1, 5, 7)))),
]  # fmt: skip


def garbage(seed: int, *roles: str, fill: float, where: np.ndarray = PADDED) -> dict:
    """Return inputs with `fill` in the padded positions of "key" or "value", or both."""
    inputs = {name: x.copy() for name, x in numbers(MAIN, seed).items()}
    for role in roles:
        inputs[role].swapaxes(1, 2)[where] = fill
    return inputs


def hygiene(id: str, shows: str, *roles: str, fill: float, **fields) -> Vector:
    inputs = garbage(14, *roles, fill=fill) | fields.pop("inputs", {})
    if "mask" not in fields and "bias" not in inputs:
        fields["mask"] = padding(LENGTHS)
    return attend(id, shows, inputs=inputs, **fields)


CLEAN = "in a padded position has no effect"
HYGIENE = [
    hygiene("CLEAN-1.nan", f"NaN in a key {CLEAN}", "key", fill=np.nan),
    hygiene("CLEAN-1.inf", f"inf in a key {CLEAN}", "key", fill=np.inf, **HOLE),
    hygiene("CLEAN-1.minus_inf", f"-inf in a key {CLEAN}", "key", fill=-np.inf, inputs=MINUS),
    hygiene("CLEAN-2.nan", f"NaN in a value {CLEAN}", "value", fill=np.nan),
    hygiene("CLEAN-2.inf", f"inf in a value {CLEAN}", "value", fill=np.inf, **HOLE),
    hygiene("CLEAN-2.minus_inf", f"-inf in a value {CLEAN}", "value", fill=-np.inf, inputs=MINUS),
    hygiene("CLEAN-3.nan_key", f"NaN in a key {CLEAN} on a gradient", "key", fill=np.nan,
            grad=True),
    hygiene("CLEAN-3.nan_value", f"NaN in a value {CLEAN} on a gradient", "value", fill=np.nan,
            grad=True),
    hygiene("CLEAN-3.inf_both", f"inf in key and value {CLEAN} on a gradient", "key", "value",
            fill=np.inf, grad=True, **HOLE),
    hygiene("CLEAN-5.huge", f"6e29 in key and value {CLEAN}", "key", "value", fill=2.0**99,
            dtypes=("float64", "float32", "bfloat16")),
]  # fmt: skip

# Key 4 of sample 2 is spoilt; at offset 2 the rows from 2 on see it.
SPOILT = (np.arange(3) == 2)[:, None] & (np.arange(7) == 4)
SEES = np.broadcast_to((np.arange(3) == 2)[:, None, None] & (np.arange(5) >= 2), MAIN.call[:3])
QUERY = np.arange(30).reshape(3, 2, 5) == 28
VISIBLE = {"mask": causal(), "query_offset": 2}


def spoilt(id: str, shows: str, inputs: dict, where: np.ndarray) -> Vector:
    parts = (nan("output", where), *close("output", region=~where))
    return attend(id, shows, *parts, inputs=inputs, **VISIBLE)


def lost_query() -> dict:
    inputs = {name: x.copy() for name, x in numbers(MAIN, 15).items()}
    inputs["query"][QUERY] = np.nan
    return inputs


PROPAGATION = [
    spoilt("CLEAN-4.key", "NaN in a visible key reaches the rows that see it, and only those",
           garbage(15, "key", fill=np.nan, where=SPOILT), SEES),
    spoilt("CLEAN-4.value", "NaN in a visible value reaches the rows that see it, and only those",
           garbage(15, "value", fill=np.nan, where=SPOILT), SEES),
    spoilt("CLEAN-4.query", "a query that is NaN gives a row of NaN alone", lost_query(), QUERY),
]  # fmt: skip


# What float32 gave on a CPU, measured with these vectors.
TORCH = "torch.nn.functional.scaled_dot_product_attention 2.13.0"
JAX = ("jax.nn.dot_product_attention 0.10.2", "flax.nnx.dot_product_attention 0.12.8")


def leaks(role: str, clean: tuple[str, ...], lost: tuple[str, ...]) -> Vector:
    """Key 4 holds NaN and is hidden from the earlier rows of its sample, but not from all."""
    inputs = garbage(16, role, fill=np.nan, where=SPOILT)
    early = np.broadcast_to((np.arange(3) == 2)[:, None, None], SEES.shape) & ~SEES
    names = {
        "clean": Part(kind="close", taken_by=clean),
        "nan": Part(kind="nan", taken_by=lost),
    }
    parts = (
        nan("output", SEES),
        *close("output", region=~SEES & ~early),
        either("output", "clean", early, **names),
    )
    shows = f"queries do not notice NaN in a {role} that only they may not see"
    return attend(f"CLEAN-6.{role}", shows, *parts, inputs=inputs, **VISIBLE)


CASES = [
    *POLICIES, *SAME, *NO_KEY, *GRADIENTS, *FILLS, *HYGIENE, *PROPAGATION,
    leaks("key", JAX, (TORCH,)), leaks("value", (), (TORCH, *JAX)),
]  # fmt: skip
