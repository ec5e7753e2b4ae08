"""One frozen case as a value: a call, what its answer must be, and why the case says something."""

from dataclasses import dataclass, field, replace

import numpy as np

from ..mask_spec import Spec
from ..oracle.tolerance import dtype

DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """What one tensor of the answer must be, in the region where that is said."""

    kind: str  # close, exact, zero, nan, finite, either or raises
    tensor: str = ""
    region: np.ndarray | None = None  # bool over the tensor's leading axes; None is everywhere
    expected: np.ndarray | None = None  # of close and exact
    allowed: dict[str, float] = field(default_factory=dict)  # of close: an error for each dtype
    alternatives: "dict[str, Part]" = field(default_factory=dict)  # of either
    contract: str | None = None  # of either: the alternative that the clause names
    taken_by: tuple[str, ...] = ()  # of an alternative: which libraries were seen to take it
    rule: str = ""  # of raises
    answered: str = ""  # of raises: the vector that is answered
    differs_in: tuple[str, ...] = ()  # of raises: where that one differs

    def everywhere(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the region, spread from a tensor's leading axes over all of them."""
        region = np.ones((), bool) if self.region is None else self.region
        axes = region.shape + (1,) * (len(shape) - region.ndim)
        return np.broadcast_to(region.reshape(axes), shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class Vector:
    """One frozen case; numbers are float64 that every dtype named can hold."""

    id: str
    shows: str
    call: str
    sizes: dict[str, int]
    expect: tuple[Part, ...]
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    mask: Spec | None = None
    seen: np.ndarray | None = None
    query_offset: int | list[int] | None = None
    scale: float | None = None
    softcap: float | None = None
    empty_rows: str = "zero"
    dtypes: tuple[str, ...] = DTYPES
    mixed: dict[str, str] = field(default_factory=dict)  # inputs of another dtype than the call's
    distractors: tuple[str, ...] = ()  # wrong answers of the clause's own that the vector refuses
    telling: dict[str, float] = field(default_factory=dict)
    exempt: dict[str, str] = field(default_factory=dict)

    @property
    def clause(self) -> str:
        return self.id.split(".")[0]

    @property
    def cells(self) -> tuple[int, int, int, int]:
        """Return the sizes of a mask: B, H, T, S."""
        return self.sizes["B"], self.sizes["H"], self.sizes["T"], self.sizes["S"]

    @property
    def refused(self) -> bool:
        return self.expect[0].kind == "raises"

    def cast(self, dtype_name: str) -> "Vector":
        """Return the vector with its numbers in a dtype, rounded to nearest."""

        def turn(name: str, array: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):  # -1e9 is -inf in float16
                own = dtype(self.mixed.get(name, dtype_name))
                return array.astype(own) if array.dtype.kind == "f" else array

        return replace(
            self,
            inputs={name: turn(name, x) for name, x in self.inputs.items()},
            parameters={name: turn(name, x) for name, x in self.parameters.items()},
        )

    def widened(self) -> "Vector":
        """Return the vector with the numbers that its calls see, in float64."""
        seen = self.cast(self.dtypes[0])
        widen = {
            name: x.astype(np.float64) if x.dtype.kind in "fV" else x
            for name, x in seen.inputs.items()
        }
        parameters = {name: x.astype(np.float64) for name, x in seen.parameters.items()}
        return replace(self, inputs=widen, parameters=parameters)

    def settled(self) -> "Vector":
        """Return the vector with 0 for whatever in query, key, value and sinks is not a number."""
        clean = {
            name: np.where(np.isfinite(x), x, 0) if name in ("query", "key", "value") else x
            for name, x in self.inputs.items()
        }
        if "sinks" in clean:  # -inf is one: there is no sink
            clean["sinks"] = np.where(clean["sinks"] < np.inf, clean["sinks"], 0)
        return replace(self, inputs=clean)
