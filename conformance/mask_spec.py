"""Masks as plain data: what a case says, before any backend or the oracle makes a mask of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Spec:
    """A mask by the name of its constructor and its arguments, or a combination of such."""

    kind: str
    arguments: dict = field(default_factory=dict)
    parts: "tuple[Spec, ...]" = ()

    def __and__(self, other: "Spec") -> "Spec":
        return Spec("and", parts=(self, other))

    def __or__(self, other: "Spec") -> "Spec":
        return Spec("or", parts=(self, other))

    def __invert__(self) -> "Spec":
        return Spec("not", parts=(self,))

    def __repr__(self) -> str:
        plain = {
            k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in self.arguments.items()
        }
        shown = ", ".join(f"{k}={v!r}" for k, v in plain.items())
        if self.kind == "part":
            return f"{self.parts[0]!r}.part({shown})"
        if self.kind == "not":
            return f"~{self.parts[0]!r}"
        if self.parts:
            sign = " & " if self.kind == "and" else " | "
            return f"({sign.join(map(repr, self.parts))})"
        return f"{self.kind}({shown})"

    def part(self, rows, columns, query_offset=0) -> "Spec":
        """Return the mask of some queries and keys of a whole call."""
        places = {"rows": np.array(rows, int), "columns": np.array(columns, int)}
        return Spec("part", places | {"query_offset": query_offset}, (self,))


def causal() -> Spec:
    return Spec("causal")


def sliding_window(before: int, after: int = 0) -> Spec:
    return Spec("sliding_window", {"before": before, "after": after})


def chunked(size: int) -> Spec:
    return Spec("chunked", {"size": size})


def prefix(lengths) -> Spec:
    return Spec("prefix", {"lengths": np.array(lengths)})


def padding(lengths=None, *, hidden=None) -> Spec:
    if hidden is None:
        return Spec("padding", {"lengths": np.array(lengths)})
    return Spec("padding", {"hidden": np.array(hidden, bool)})


def segments(query_ids, key_ids=None) -> Spec:
    ids = {"query_ids": query_ids, "key_ids": key_ids}
    return Spec("segments", {name: np.array(i) for name, i in ids.items() if i is not None})


def packed(lengths) -> Spec:
    return Spec("packed", {"lengths": np.array(lengths)})


def allow(array) -> Spec:
    return Spec("allow", {"array": np.array(array, bool)})


def hide(array) -> Spec:
    return Spec("hide", {"array": np.array(array, bool)})


def predicate(function: Callable) -> Spec:
    return Spec("predicate", {"function": function})


POSITIONAL = ("causal", "sliding_window", "chunked", "prefix", "packed", "predicate")


def positional(spec: Spec) -> bool:
    """Whether some part of a mask looks at positions, and so needs to know where queries start."""
    if spec.kind == "part":
        return False
    if spec.parts:
        return any(positional(part) for part in spec.parts)
    one_sided = spec.kind == "segments" and "key_ids" not in spec.arguments
    return one_sided or spec.kind in POSITIONAL


def conjuncts(spec: Spec) -> list[Spec]:
    """Return the masks that an `&` puts together, or the mask alone."""
    return [c for p in spec.parts for c in conjuncts(p)] if spec.kind == "and" else [spec]
