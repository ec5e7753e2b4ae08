"""Attention whose arrays lie on several devices: each attends for its own samples and heads."""

from typing import Any

import jax
from jax import lax


def vary_alike(arrays: Any) -> Any:
    """Mark arrays as varying over every mesh axis that one of them varies over.

    `jax.shard_map` asks for it where a loop or a condition hands arrays on.
    """
    axes = frozenset().union(*map(_varying, jax.tree.leaves(arrays)))

    def mark(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - _varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, arrays)


def _varying(x: jax.Array) -> frozenset:
    return jax.typeof(x).manual_axis_type.varying
