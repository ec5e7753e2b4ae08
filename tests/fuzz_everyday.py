"""Random calls of torch at the sizes where everyday calls change their way, against the textbook.

As a program it takes more of them: python tests/fuzz_everyday.py CALLS [SEED]
"""

import sys
from collections import Counter
from dataclasses import replace
from unittest import mock

import numpy as np

from attn_torch import everyday
from conformance import mask_spec
from conformance.cases.attention import Shape
from conformance.oracle.tolerance import dtype
from conformance.subjects import load
from tools.fuzz import judge
from tools.fuzz.calls import RandomCall

LENGTHS = (1, 2, 5, 12, 31, 64)
SMALLER = {"CALL": 2**10, "ROW": 16, "DENSE": 2**13, "DENSE_HEAD": 2**10}  # as the lengths are
DTYPES = ("float32", "float64", "float16", "bfloat16")


def _draw(rng):
    """Return shape, mask, offset and options of a call."""
    T = int(rng.choice(LENGTHS))
    S = T if rng.random() < 0.6 else int(rng.choice(LENGTHS))
    kv_heads, groups, D = (int(rng.integers(1, 3)) for _ in range(3))
    D *= 4
    D_v = D if rng.random() < 0.9 else D + 3
    shape = Shape(int(rng.integers(1, 4)), kv_heads * groups, kv_heads, T, S, D, D_v)
    leaves = [_leaf(rng, shape) for _ in range(rng.integers(1, 4))]
    mask = leaves[0]
    for leaf in leaves[1:]:
        mask = mask & leaf if rng.random() < 0.8 else mask | leaf
    mask = ~mask if rng.random() < 0.1 else mask
    offset = int(rng.choice([0, 0, S - T, rng.integers(-3, S + 1)]))
    if rng.random() < 0.2:
        offset = rng.integers(-3, S, shape.B)
    options = {"empty_rows": str(rng.choice(["zero", "nan", "uniform"]))}
    if rng.random() < 0.3:
        options["scale"] = float(rng.choice([0.0, 1.5, -0.3]))
    if rng.random() < 0.15:
        hidden = rng.random(shape.H) < 0.2
        options["sinks"] = np.where(hidden, -np.inf, rng.normal(size=shape.H)).astype("float32")
    return shape, mask, offset, options


def _leaf(rng, shape):
    """Draw a mask; more often one that leaves a range of keys a sample."""
    B, S = shape.B, shape.S
    lengths = rng.integers(0, S + 1, B)
    lengths = np.full(B, lengths[0]) if rng.random() < 0.3 else lengths
    kind = rng.choice(["causal", "lengths", "left", "holes", "window", "prefix", "segments",
                       "chunked", "packed", "part"],
                      p=[0.25, 0.2, 0.15, 0.1, 0.1, 0.04, 0.04, 0.04, 0.04, 0.04])  # fmt: skip
    return {
        "chunked": lambda: mask_spec.chunked(int(rng.integers(1, S + 2))),
        "packed": lambda: mask_spec.packed(
            np.diff(np.sort(rng.integers(0, S + 1, (B, 4)), axis=1), axis=1, prepend=0)
        ),
        "part": lambda: (mask_spec.causal() & mask_spec.padding(lengths)).part(
            rng.integers(0, 2 * shape.T, shape.T), rng.integers(0, 2 * S, S), int(rng.integers(4))
        ),
        "causal": mask_spec.causal,
        "lengths": lambda: mask_spec.padding(lengths),
        "left": lambda: mask_spec.padding(hidden=np.arange(S) < lengths[:, None]),
        "holes": lambda: mask_spec.padding(hidden=rng.random((B, S)) < 0.3),
        "window": lambda: mask_spec.sliding_window(*map(int, rng.integers(0, S + 1, 2))),
        "prefix": lambda: mask_spec.prefix(lengths),
        "segments": lambda: mask_spec.segments(
            np.sort(rng.integers(0, 3, (B, max(S, shape.T))))[:, :S]
        ),
    }[str(kind)]()


def check(seed: int) -> str:
    """Check one call, and mostly its gradients; return the way that it went."""
    rng, subject = np.random.default_rng(seed), load("torch", "cpu")
    shape, mask, offset, options = _draw(rng)
    name = str(rng.choice(DTYPES, p=[0.5, 0.3, 0.1, 0.1]))
    B, H, H_kv, T, S, D, D_v = shape
    sizes = (B, H, T, D), (B, H_kv, S, D), (B, H_kv, S, D_v), (B, H, T, D_v)
    if "sinks" in options and rng.random() < 0.7:
        options["sinks"] = options["sinks"].astype(dtype(name))
    arrays = tuple(rng.normal(size=size).astype(dtype(name)) for size in sizes)
    split = None
    if options["empty_rows"] != "uniform" and rng.random() < 0.1:
        split = np.split(rng.permutation(S), np.sort(rng.integers(0, S + 1, 2)))
    call = RandomCall(shape, name, mask, offset, options, arrays, split, seeds=(seed, 0))
    ways, choose = [], everyday.way_on_cpu

    def noted(*call):
        ways.append(choose(*call)[0])
        return choose(*call)

    with mock.patch.multiple(everyday, way_on_cpu=noted, **SMALLER):
        judge.check(subject, call)
        judge.check(subject, replace(call, junk="hidden"))
        if options["empty_rows"] != "nan":
            judge.check(subject, replace(call, backward=True))
            judge.check(subject, replace(call, backward=True, junk="hidden"))
    return ways[0] if ways else "another"  # beside a sink, and of parts


def fuzz(calls: int, seed: int = 0) -> tuple[Counter, list[str]]:
    """Return how many calls went which way, and what differed."""
    ways, found = Counter(), []
    for number in range(seed, seed + calls):
        try:
            ways[check(number)] += 1
        except Exception as error:
            near = "near: " * judge.near(error)
            found.append(f"{near}check({number}): {error!r}"[:600])
    return ways, found


if __name__ == "__main__":
    ways, found = fuzz(*map(int, sys.argv[1:]))
    print(dict(ways), f"{len(found)} differ", *found, sep="\n")
