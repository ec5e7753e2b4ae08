"""What is drawn: sizes near the edges of tiles, kinds of masks and options, and their numbers."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from conformance import mask_spec
from conformance.cases.attention import Shape
from conformance.mask_spec import Spec
from conformance.oracle.tolerance import dtype

# Tiles, blocks and thresholds are multiples of these; a length is one of them, or one more or less.
EDGES = (1, 4, 12, 16, 32, 48, 64, 96, 128, 144, 192, 256, 384, 512)
EVERYDAY_EDGES = EDGES[4:12]
CELLS = (2**16, 2**18, 2**20)  # how many scores a call may have, most, some and few calls


@dataclass
class RandomCall:
    """One call, drawn from a seed for its structure and one for its numbers."""

    shape: Shape
    dtype: str
    spec: Spec | None
    offset: int | np.ndarray
    options: dict = field(default_factory=dict)
    arrays: tuple = ()  # query, key, value and the output's gradient, all finite
    split: list[np.ndarray] | None = None  # which keys each part has, where they are merged
    junk: str = "none"  # or "hidden" or "allowed"
    backward: bool = False
    used: bool = False  # whether the mask was asked something else before
    seeds: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        own = ("bias", "sinks")
        shown = {n: np.shape(x) if n in own else x for n, x in self.options.items()}
        shown |= {} if self.split is None else {"pieces": [len(piece) for piece in self.split]}
        does = "backward" if self.backward else "forward"
        sizes = ", ".join(f"{name}={size}" for name, size in self.shape._asdict().items())
        tail = f"offset={np.array(self.offset).tolist()}, {shown}, {self.junk} junk"
        return f"{does} {self.dtype} {sizes}, {_kinds(self.spec)}, {tail}, used={self.used}"


def _kinds(spec: Spec | None) -> str:
    if spec is None or not spec.parts:
        return "no mask" if spec is None else f"{spec.kind}({', '.join(spec.arguments)})"
    return f"{spec.kind}({', '.join(map(_kinds, spec.parts))})"


def draw(seed: int, numbers: int, gradients: bool, used: bool) -> RandomCall:
    """Return a call; those of one seed share whatever a compiler looks at.

    `gradients` and `used` say whether it may ask for gradients, and use its mask twice.
    """
    fixed, rng = np.random.default_rng(seed), np.random.default_rng([seed, numbers])
    everyday = (
        fixed.random() < 0.35
    )  # padded, maybe causal, and nothing else: it has ways of its own
    shape = _everyday_shape(fixed) if everyday else _shape(fixed)
    kind = str(fixed.choice(["float32", "bfloat16", "float16"], p=[0.8, 0.1, 0.1]))
    kinds = str(fixed.choice(EVERYDAY)).split() if everyday else None
    spec = _mask(fixed, rng, shape, kinds)
    last = shape.S - shape.T
    offset: int | np.ndarray = int(fixed.choice([0, last, 1], p=[0.6, 0.3, 0.1]))
    if fixed.random() < 0.1:
        offset = rng.integers(min(-2, last), shape.S, shape.B)
    B, H, H_kv, T, S, D, D_v = shape
    sizes = (B, H, T, D), (B, H_kv, S, D), (B, H_kv, S, D_v), (B, H, T, D_v)
    arrays = tuple(rng.normal(size=size).astype(dtype(kind)) for size in sizes)
    options = {"empty_rows": str(fixed.choice(["zero", "nan", "uniform"], p=[0.5, 0.2, 0.3]))}
    if not everyday:
        options |= _options(fixed, rng, shape, kind)
    backward = gradients and options["empty_rows"] != "nan" and fixed.random() < 0.5
    junk = str(rng.choice(["none", "hidden", "allowed"], p=[0.5, 0.3, 0.2]))
    junk = "hidden" if backward and junk == "allowed" else junk
    used = used and fixed.random() < 0.4
    split = None
    if options["empty_rows"] != "uniform" and fixed.random() < 0.15:
        ends = np.sort(fixed.integers(0, S + 1, fixed.integers(1, 4)))
        split = np.split(np.arange(S) if fixed.random() < 0.5 else rng.permutation(S), ends)
    return RandomCall(
        shape, kind, spec, offset, options, arrays, split, junk, backward, used, (seed, numbers)
    )


def _shape(fixed) -> Shape:
    lengths = [max(1, int(fixed.choice(EDGES)) + int(fixed.integers(-1, 2))) for _ in range(2)]
    T, S = (lengths[0], lengths[0]) if fixed.random() < 0.65 else lengths
    T = 1 if fixed.random() < 0.1 else T
    B, H_kv = int(fixed.choice([1, 2, 3, 5, 8])), int(fixed.choice([1, 2, 3, 4]))
    group, limit = int(fixed.choice([1, 1, 2, 3])), int(fixed.choice(CELLS, p=[0.88, 0.08, 0.04]))
    while B * H_kv * group * T * S > limit and B * H_kv * group > 1:
        B, H_kv, group = (max(1, size - 1) for size in (B, H_kv, group))
    D = int(fixed.choice([4, 8, 16, 64]))
    return Shape(B, H_kv * group, H_kv, T, S, D, D if fixed.random() < 0.8 else D + 3)


def _everyday_shape(fixed) -> Shape:
    length = int(fixed.choice(EVERYDAY_EDGES)) + int(fixed.integers(-1, 2))
    B, H, H_kv = ((2, 3, 3), (3, 4, 2), (5, 2, 2), (8, 4, 4))[fixed.integers(4)]
    B = max(2, min(B, CELLS[1] // (H * length**2)))
    return Shape(B, H, H_kv, length, length, 8, 8)


def _options(fixed, rng, shape: Shape, kind: str) -> dict:
    options: dict = {}
    if fixed.random() < 0.1:
        options["softcap"] = float(fixed.choice([0.7, 30.0]))
    if fixed.random() < 0.15:
        options["scale"] = float(fixed.choice([0.0, 1.5, -0.3]))
    if fixed.random() < 0.15:
        sizes = [size if fixed.random() < 0.5 else 1 for size in shape.call]
        hidden = rng.random(sizes) < fixed.choice([0, 0.3])
        options["bias"] = np.where(hidden, -np.inf, rng.normal(size=sizes)).astype(dtype(kind))
    if fixed.random() < 0.15:
        sinks = rng.choice([1.0, 1.0, 30.0]) * rng.normal(size=shape.H)
        sinks[rng.random(shape.H) < rng.choice([0, 0.3])] = -np.inf
        options["sinks"] = sinks.astype(dtype(kind if fixed.random() < 0.7 else "float32"))
    return options


def _lengths(rng, samples: int, length: int) -> np.ndarray:
    """Return lengths: ragged, all alike, near an edge, of few kinds, or all but one full."""
    ragged = rng.integers(0, length + 1, samples)
    edges = np.clip(rng.choice(EDGES, samples) + rng.integers(-1, 2, samples), 0, length)
    one_short = np.where(np.arange(samples) == 0, ragged, length)
    ways = [ragged, np.maximum(ragged, 1), np.repeat(ragged[:1], samples), np.sort(edges)]
    return [*ways, edges, rng.choice(ragged[:2], samples), one_short][rng.integers(7)]


def _hidden(rng, samples: int, length: int) -> np.ndarray:
    """Return (B, S): padding in front, behind, on both sides, in between, or anywhere."""
    at, ends = np.arange(length), _lengths(rng, samples, length)[:, None]
    starts = rng.integers(0, length + 1, (samples, 1))
    anywhere = rng.random((samples, length)) < 0.3
    ways = [
        at < length - ends,
        at >= ends,
        (at < starts) | (at >= ends),
        (at >= starts) & (at < ends),
    ]
    return [*ways, anywhere][rng.integers(5)]


def _ids(fixed, rng, samples: int, length: int) -> np.ndarray:
    cuts = rng.random((samples, length)) < rng.choice([0.02, 0.2])
    return cuts.cumsum(-1) if fixed.random() < 0.7 else rng.integers(0, 3, (samples, length))


def _cells(fixed, rng, shape: Shape) -> np.ndarray:
    samples, heads = (1 if fixed.random() < 0.5 else size for size in shape.call[:2])
    return rng.random((samples, heads, *shape.call[2:])) < rng.choice([0.05, 0.5, 0.95])


def _documents(rng, samples: int, length: int) -> np.ndarray:
    """Return (B, 5) lengths of documents, some of them empty, that fill a part of all positions."""
    ends = np.sort(rng.integers(0, length + 1, (samples, 5)), axis=1)
    return np.diff(ends, axis=1, prepend=0)


def _part(fixed, rng, shape: Shape) -> Spec:
    """Return a shard of a mask: rows and columns in order, turned round, in zigzag or anywhere."""
    _, _, T, S = shape.call
    whole = (mask_spec.causal(), mask_spec.sliding_window(17, 3), mask_spec.chunked(31))
    kinds = [*whole, mask_spec.segments(_ids(fixed, rng, shape.B, 2 * S))]
    spec = kinds[fixed.integers(4)] & mask_spec.padding(_lengths(rng, shape.B, 2 * S))
    found = []
    for count in (T, S):
        start, at = int(rng.integers(0, 2 * S)), np.arange(count)
        zigzag = np.where(at < count // 2, at, 2 * S - 1 - (at - count // 2))
        ways = [np.minimum(start + at, 2 * S - 1), (at % (2 * S))[::-1], zigzag % (2 * S)]
        ways.append(rng.integers(0, 2 * S, count))
        found.append(ways[fixed.integers(4)])
    offset = int(rng.integers(-3, S)) if fixed.random() < 0.7 else rng.integers(-3, S, shape.B)
    return spec.part(*found, offset)


LEAVES: dict[str, Callable] = {
    "causal": lambda fixed, rng, s: mask_spec.causal(),
    "padding": lambda fixed, rng, s: mask_spec.padding(_lengths(rng, s.B, s.S)),
    "hidden": lambda fixed, rng, s: mask_spec.padding(hidden=_hidden(rng, s.B, s.S)),
    "window": lambda fixed, rng, s: mask_spec.sliding_window(
        *(int(x) for x in fixed.choice([0, 1, 15, 16, 17, 64, 255], 2))
    ),
    "chunked": lambda fixed, rng, s: mask_spec.chunked(int(fixed.choice([1, 15, 16, 33, 128]))),
    "packed": lambda fixed, rng, s: mask_spec.packed(_documents(rng, s.B, s.S)),
    "part": _part,
    "prefix": lambda fixed, rng, s: mask_spec.prefix(_lengths(rng, s.B, s.S)),
    "segments": lambda fixed, rng, s: mask_spec.segments(_ids(fixed, rng, s.B, s.S)),
    "pairs": lambda fixed, rng, s: mask_spec.segments(
        _ids(fixed, rng, s.B, s.T), _ids(fixed, rng, s.B, s.S)
    ),
    "allow": lambda fixed, rng, s: mask_spec.allow(_cells(fixed, rng, s)),
    "hide": lambda fixed, rng, s: mask_spec.hide(_cells(fixed, rng, s)),
    "predicate": lambda fixed, rng, s: mask_spec.predicate(_rule),
}
EVERYDAY = ("causal padding", "padding", "causal hidden", "hidden")
USUAL = ("causal padding", "padding", "causal", "causal hidden", "hidden", "causal segments",
         "window padding", "causal packed", "causal chunked", "part", "part padding",
         "")  # fmt: skip


def _rule(batch, head, query, key):
    return (query + 2 * key + head * batch) % 3 != 0


def _mask(fixed, rng, shape: Shape, kinds: list[str] | None) -> Spec | None:
    usual = kinds is not None or fixed.random() < 0.6
    kinds = kinds or str(fixed.choice(USUAL)).split()
    if not usual:
        kinds = list(fixed.choice(list(LEAVES), fixed.integers(1, 4)))
    mask = None
    for kind in kinds:
        leaf = LEAVES[kind](fixed, rng, shape)
        both = mask is None or usual or fixed.random() < 0.6
        mask = leaf if mask is None else mask & leaf if both else mask | leaf
        mask = ~mask if not usual and fixed.random() < 0.15 else mask
    return mask
