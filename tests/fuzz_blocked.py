"""Random calls of JAX's blocked path, in tiny tiles, against the oracle.

A structure (shapes, masks, kinds of bias, dtype) costs a compilation, so each is drawn once and met
with several sets of numbers: lengths, ids, offsets, arrays. As a program it takes more of both:
python tests/fuzz_blocked.py STRUCTURES NUMBERS GRADIENTS [SEED]
"""

import sys
from dataclasses import dataclass

import jax
import numpy as np

from conformance import mask_spec
from conformance.cases.arrays import coins
from conformance.cases.attention import Shape
from conformance.oracle import expected, reference
from conformance.oracle.tolerance import MERGED, Differs, compare, dtype, eps
from conformance.subjects import load
from conformance.subjects.protocol import SMALL_BLOCKS
from tools.fuzz.calls import RandomCall
from tools.fuzz.parts import Split, more_of

SHAPES = [
    Shape(B=3, H=2, H_kv=2, T=5, S=7, D=3, D_v=2),
    Shape(B=2, H=6, H_kv=2, T=7, S=5, D=2, D_v=3),
    Shape(B=2, H=4, H_kv=1, T=4, S=11, D=3, D_v=1),
    Shape(B=1, H=3, H_kv=3, T=9, S=8, D=5, D_v=3),
]
TILES = [(2, 3), (2, 4), (3, 2), (4, 4)]
DTYPES = ["float64", "float32", "float16", "bfloat16"]
LEAVES = {
    "causal": lambda rng, s, fixed: mask_spec.causal(),
    "sliding_window": lambda rng, s, fixed: mask_spec.sliding_window(*fixed.integers(0, 4, 2)),
    "chunked": lambda rng, s, fixed: mask_spec.chunked(int(fixed.integers(1, 9))),
    "packed": lambda rng, s, fixed: mask_spec.packed(rng.integers(0, s.S // 4 + 1, (s.B, 4))),
    "part": lambda rng, s, fixed: (
        mask_spec.causal() | mask_spec.padding(rng.integers(0, 9, s.B))
    ).part(rng.integers(0, 20, s.T), rng.integers(0, 20, s.S), rng.integers(-3, 3, s.B)),
    "prefix": lambda rng, s, fixed: mask_spec.prefix(rng.integers(0, s.S + 1, s.B)),
    "padding": lambda rng, s, fixed: mask_spec.padding(rng.integers(0, s.S + 1, s.B)),
    "hidden": lambda rng, s, fixed: mask_spec.padding(hidden=rng.random((s.B, s.S)) < 0.4),
    "segments": lambda rng, s, fixed: mask_spec.segments(rng.integers(0, 3, (s.B, s.S))),
    "pairs": lambda rng, s, fixed: mask_spec.segments(
        rng.integers(0, 3, (s.B, s.T)), rng.integers(0, 3, (s.B, s.S))
    ),
    "allow": lambda rng, s, fixed: mask_spec.allow(_cells(rng, s, fixed)),
    "hide": lambda rng, s, fixed: mask_spec.hide(_cells(rng, s, fixed)),
    "predicate": lambda rng, s, fixed: mask_spec.predicate(_rule),
}


def _cells(rng, shape: Shape, fixed):
    heads, samples = fixed.choice([1, shape.H]), fixed.choice([1, shape.B])
    return coins(int(rng.integers(2**31)), samples, heads, shape.T, shape.S)


def _rule(batch, head, query, key):
    return (query + 2 * key + head * batch) % 3 != 0


@dataclass(frozen=True)
class Structure:
    """All that JAX compiles for: drawn from a seed."""

    seed: int

    def draw(self, numbers: int):
        """Return what one call takes, its numbers from a seed; the mask and the offset last."""
        fixed, rng = np.random.default_rng(self.seed), np.random.default_rng([self.seed, numbers])
        shape = SHAPES[fixed.integers(len(SHAPES))]
        tile = TILES[fixed.integers(len(TILES))]
        kind = str(fixed.choice(DTYPES, p=[0.3, 0.4, 0.15, 0.15]))
        options = {"empty_rows": str(fixed.choice(["zero", "nan", "uniform"]))}
        mask = self._mask(fixed, rng, shape, int(fixed.integers(4)))
        offsets = rng.integers(-3, shape.S, shape.B)
        offset = offsets if fixed.random() < 0.5 else int(offsets[0])
        if fixed.random() < 0.4:
            options["softcap"] = float(rng.choice([0.7, 5.0, 30.0]))
        if fixed.random() < 0.5:
            options["scale"] = float(rng.choice([0.0, 1.5, -0.3]))
        if fixed.random() < 0.5:
            options["bias"] = self._bias(fixed, rng, shape).astype(dtype(kind))
        if fixed.random() < 0.3:
            hidden = rng.random(shape.H) < 0.3
            sinks = np.where(hidden, -np.inf, rng.normal(size=shape.H))
            options["sinks"] = sinks.astype(dtype(kind))
        B, H, H_kv, T, S, D, D_v = shape
        sizes = (B, H, T, D), (B, H_kv, S, D), (B, H_kv, S, D_v), (B, H, T, D_v)
        arrays = [rng.normal(size=size).astype(dtype(kind)) for size in sizes]
        allowed = np.broadcast_to(reference.allowed(mask, shape.call, offset), shape.call)
        given = {"query_offset": offset} | ({} if mask is None else {"mask": mask})
        return shape, tile, arrays, allowed, options, given

    def _mask(self, fixed, rng, shape, leaves: int):
        if not leaves:
            return None
        mask = LEAVES[str(fixed.choice(list(LEAVES)))](rng, shape, fixed)
        for _ in range(leaves - 1):
            other = LEAVES[str(fixed.choice(list(LEAVES)))](rng, shape, fixed)
            mask = mask & other if fixed.random() < 0.6 else mask | other
            mask = ~mask if fixed.random() < 0.2 else mask
        return mask

    def _bias(self, fixed, rng, shape):
        sizes = tuple(int(fixed.choice([1, size], p=[0.4, 0.6])) for size in shape.call)
        sizes = shape.call[2:] if fixed.random() < 0.2 else sizes
        hidden = rng.random(sizes) < fixed.choice([0, 0.3, 0.8])
        return np.where(hidden, -np.inf, rng.normal(size=sizes))


def dirtied(rng, shape: Shape, allowed, options, key, value):
    """Put NaN, inf and huge numbers where no query of a key's group looks."""
    if options["empty_rows"] == "uniform" and "sinks" not in options:
        return key, value  # there every row without a key looks at all of them
    allowed = allowed & (np.broadcast_to(options.get("bias", 0.0), shape.call) != -np.inf)
    groups = allowed.reshape(shape.B, shape.H_kv, -1, shape.T, shape.S)
    unseen = ~groups.any((2, 3))[..., None]
    junk = rng.choice([np.nan, np.inf, -np.inf, 3e4], unseen.shape)
    return (np.where(unseen, junk, x).astype(x.dtype) for x in (key, value))


def check(structure: Structure, numbers: int, backward: bool) -> bool:
    """Check one call; return whether there was anything to check."""
    subject = load("jax", "cpu")
    shape, tile, (query, key, value, grad), allowed, options, given = structure.draw(numbers)
    if backward and options["empty_rows"] == "nan":
        return False
    rng, split = np.random.default_rng(numbers), options["empty_rows"] != "uniform"
    split = split and np.random.default_rng(structure.seed).random() < 0.3
    if split:
        return check_split(subject, shape, given, options, (query, key, value, grad), backward)
    mine = (query, *dirtied(rng, shape, allowed, options, key, value))
    if not backward:
        exact, naive = expected.attention(query, key, value, allowed=allowed, **options)
        got = subject.blocked(*mine, tile=tile, **options, **given)
        compare(got, exact["output"], naive["output"], "output")
        return True
    exact, naive = expected.gradients(query, key, value, grad, allowed=allowed, **options)
    found = subject.gradients(*mine, grad, through="blocked", **options, **given)
    for name in exact:
        if name in ("query", "key", "bias") and not exact[name].any():
            # Each row sees one key at most. The budget of 0 is the textbook's; here a product is
            # taken away from itself after two roundings.
            noise = eps(grad.dtype) * abs(np.float64(grad)).max() * abs(np.float64(value)).max()
            sides = [abs(np.float64(x)).max() for x in (query, key)] + [1.0]
            limit = 2 * noise * shape.D_v * shape.S * shape.H * max(sides) * 1.5  # largest scale
            if not abs(np.float64(found[name])).max() <= limit:
                raise Differs(f"gradient of {name}: expected 0, got {found[name]}")
            continue
        compare(found[name], exact[name], naive[name], f"gradient of {name}")
    return True


def check_split(subject, shape: Shape, given: dict, options: dict, arrays, backward: bool) -> bool:
    """Check the same call of parts that are merged, in small blocks."""
    *inputs, grad = arrays
    mask, offset = given.get("mask"), given["query_offset"]
    ends = np.arange(2, shape.S, 3)
    pieces = np.split(np.random.default_rng(shape.S).permutation(shape.S), ends)
    call = RandomCall(shape, str(grad.dtype), mask, offset, options, split=pieces)
    whole = dict(zip(("query", "key", "value", "grad"), arrays, strict=True)) | options
    whole["allowed"] = np.broadcast_to(reference.allowed(mask, shape.call, offset), shape.call)
    own = options | {"allowed": whole["allowed"]}
    with subject.small_blocks(shape.T % SMALL_BLOCKS):
        if not backward:
            exact, naive = expected.attention(*inputs, **own)
            got = Split(subject, call).attention(*inputs)
            compare(got, exact["output"], naive["output"], "merged output", MERGED)
            return True
        found = Split(subject, call).gradients(*inputs, grad)
    exact, naive = expected.gradients(*inputs, grad, **own)
    for name in exact:
        what, more = f"merged gradient of {name}", more_of(name, whole)
        compare(found[name], exact[name], naive[name], what, MERGED, more)
    return True


def fuzz(structures: int, numbers: int, backward: bool, seed: int = 0) -> tuple[int, list[str]]:
    """Return how many calls were held, and what differed."""
    held, found = 0, []
    for structure in (Structure(seed + i) for i in range(structures)):
        jax.clear_caches()  # hundreds of programs run out of memory maps
        for i in range(numbers):
            try:
                held += check(structure, i, backward)
            except Differs as error:
                held += 1
                found.append(f"check({structure}, {i}, {backward}): {error}")
    return held, found


if __name__ == "__main__":
    structures, numbers, gradients, *seed = map(int, sys.argv[1:])
    for backward, count in ((False, structures), (True, gradients)):
        held, found = fuzz(count, numbers, backward, *seed)
        print(f"{'gradients' if backward else 'outputs'}: {held} held, {len(found)} differ")
        print("\n".join(found))
