"""Sharded calls as plain data: sixteen masks, and what else a shard may get wrong."""

from dataclasses import dataclass, field

import numpy as np

from conformance.cases.arrays import normal
from conformance.mask_spec import (
    Spec,
    allow,
    causal,
    hide,
    packed,
    padding,
    predicate,
    prefix,
    segments,
    sliding_window,
)
from conformance.oracle import expected, reference

B, H, G, T, D, E = 2, 4, 2, 37, 5, 3  # uneven for two, three and four ranks


def every_third(batch, head, query, key):
    return (query * 7 + key * 3 + head + 2 * batch) % 3 == 0


def masks() -> dict[str, Spec | None]:
    rng = np.random.default_rng(3)
    ids = np.cumsum(rng.random((B, T)) < 5 / T, 1)
    dead = np.zeros((B, T), bool)
    dead[0, 5:20] = dead[1] = True
    window = sliding_window(4)
    sinks = causal() & (window | prefix([2, 2]) & sliding_window(T))
    return {
        "none": None,
        "causal": causal(),
        "window": window,
        "band": sliding_window(4, 4),
        "packed": packed([[9, 20, 8], [30, 7, 0]]) & causal(),
        "both ways": segments(ids),
        "one empty": padding([T - 11, 0]),
        "causal, padded": causal() & padding([T // 4, T]),
        "scattered": padding(hidden=dead),
        "prefix": prefix([11, 3]),
        "predicate": predicate(every_third),
        "allow": allow(rng.random((B, H, T, T)) < 0.1),
        "hide": hide(rng.random((1, 1, T, T)) < 0.9),
        "outside": ~sliding_window(11, 11),
        "sinks": sinks,
        "nothing": ~(causal() | ~causal()),
    }


@dataclass(frozen=True)
class ShardedCall:
    """One call: a mask, a dtype, other options, and what stands in hidden keys."""

    name: str
    mask: Spec | None
    dtype: str = "float32"
    options: dict = field(default_factory=dict)
    poison: float | None = None
    visible: bool = False  # whether a key that some queries are allowed is poisoned, too

    def inputs(self, poisoned: bool = True) -> list[np.ndarray]:
        """Return query, key and value, and what a gradient begins with."""
        shapes = (B, H, T, D), (B, G, T, D), (B, G, T, E), (B, H, T, E)
        arrays = [normal(i, *shape, dtype_name=self.dtype) for i, shape in enumerate(shapes)]
        if self.poison is not None and (poisoned or self.visible):
            hidden = self.mask.arguments["hidden"] if self.mask.arguments else self.hidden()
            for array in arrays[1:3]:
                array[np.broadcast_to(hidden[:, None], array.shape[:3])] = self.poison
            if self.visible:
                arrays[1][0, 1, 23] = np.nan
        return arrays

    def hidden(self) -> np.ndarray:
        """Return the keys that no query is allowed."""
        return ~self.allowed().any((1, 2))

    def allowed(self) -> np.ndarray:
        return np.broadcast_to(reference.allowed(self.mask, (B, H, T, T)), (B, H, T, T))

    def oracle(self) -> tuple:
        """Return output and gradients: exact, naive, and what may cancel."""
        arrays = self.inputs(poisoned=False)
        told = {"allowed": self.allowed()} | self.options
        exact, naive = (steps["output"] for steps in expected.attention(*arrays[:3], **told))
        if self.visible or self.options.get("empty_rows", "zero") != "zero":
            return {"output": exact}, {"output": naive}, {"output": 0.0}
        exact_grads, naive_grads = expected.gradients(*arrays, **told)
        more = expected.cancelled(*arrays, **told)
        outputs = {"output": exact} | exact_grads, {"output": naive} | naive_grads
        return *outputs, {"output": 0.0, "sinks": 0.0, **more}

    def rounded(self, rows: list) -> dict[str, float]:
        """Return what gradients may miss where 16-bit shares of these rows are exchanged."""
        arrays = self.inputs(poisoned=False)
        return expected.rounded_shares(*arrays, rows, allowed=self.allowed(), **self.options)


def calls() -> list[ShardedCall]:
    named = masks()
    found = [ShardedCall(name, mask) for name, mask in named.items()]
    padded = causal() & padding([T // 2, 0])
    found += [ShardedCall(dtype, padded, dtype) for dtype in ("float16", "bfloat16", "float64")]
    found += [ShardedCall(f"hidden {bad}", padded, poison=bad) for bad in (np.nan, np.inf, 1e30)]
    found.append(ShardedCall("visible nan", named["packed"], poison=np.nan, visible=True))
    sinks = {"sinks": np.array([0.5, -3.0, 2.0, 0.0], np.float32)}
    bias = normal(9, 1, H, T, T, dtype_name="float32")
    found += [
        ShardedCall("learned sinks", padded, options=sinks),
        ShardedCall("bias", named["window"], options={"bias": bias, "softcap": 2.0, "scale": 0.7}),
        ShardedCall("bias of keys", padded, options={"bias": bias[:, :, :1]}),
        ShardedCall("bias of rank 2", named["prefix"], options={"bias": bias[0, 0]}),
        ShardedCall("far bias", None, options={"bias": np.full((T, T), -1e30, np.float32)}),
        ShardedCall("nan rows", padded, options={"empty_rows": "nan"}),
        ShardedCall("uniform rows", padded, options={"empty_rows": "uniform"}),
    ]
    return found


CALLS = {call.name: call for call in calls()}
