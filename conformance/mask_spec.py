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
        if self.kind == "not":
            return f"~{self.parts[0]!r}"
        if self.parts:
            sign = " & " if self.kind == "and" else " | "
            return f"({sign.join(map(repr, self.parts))})"
        shown = {
            k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in self.arguments.items()
        }
        return f"{self.kind}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


def causal() -> Spec:
    return Spec("causal")


def sliding_window(before: int, after: int = 0) -> Spec:
    return Spec("sliding_window", {"before": before, "after": after})


def prefix(lengths) -> Spec:
    return Spec("prefix", {"lengths": np.array(lengths)})


def padding(lengths=None, *, hidden=None) -> Spec:
    if hidden is None:
        return Spec("padding", {"lengths": np.array(lengths)})
    return Spec("padding", {"hidden": np.array(hidden, bool)})


def segments(query_ids, key_ids=None) -> Spec:
    ids = {"query_ids": query_ids, "key_ids": key_ids}
    return Spec("segments", {name: np.array(i) for name, i in ids.items() if i is not None})


def allow(array) -> Spec:
    return Spec("allow", {"array": np.array(array, bool)})


def hide(array) -> Spec:
    return Spec("hide", {"array": np.array(array, bool)})


def predicate(function: Callable) -> Spec:
    return Spec("predicate", {"function": function})


def positional(spec: Spec) -> bool:
    """Whether some part of a mask looks at positions, and so needs to know where queries start."""
    if spec.parts:
        return any(positional(part) for part in spec.parts)
    one_sided = spec.kind == "segments" and "key_ids" not in spec.arguments
    return one_sided or spec.kind in ("causal", "sliding_window", "prefix", "predicate")


def conjuncts(spec: Spec) -> list[Spec]:
    """Return the masks that an `&` puts together, or the mask alone."""
    return [c for p in spec.parts for c in conjuncts(p)] if spec.kind == "and" else [spec]
