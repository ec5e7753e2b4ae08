"""Calls for what frameworks make of a function: the same call at other values and other sizes."""

from dataclasses import dataclass, replace

import numpy as np

from ..mask_spec import Spec, allow, causal, padding, segments, sliding_window
from ..oracle import expected
from ..oracle.tolerance import Differs, compare
from ..subjects.protocol import NotOffered
from .arrays import coins, normal
from .attention import GROUPED, LENGTHS, MAIN, MASKED, PLAIN, Case, Shape

OTHERS = [
    PLAIN,
    Case("bias_and_padding", bias="rank2", mask=padding(LENGTHS)),
    Case("bias_rank4", bias="rank4"),
    Case("everything", GROUPED, causal() & padding(LENGTHS), 2, "heads", None, 0.9),
    Case("nan_rows", mask=padding(LENGTHS), empty_rows="nan"),
    Case("uniform_rows", mask=causal() & padding(LENGTHS), query_offset=-1, empty_rows="uniform"),
    Case("one_query", MAIN._replace(T=1), causal() & padding(LENGTHS), np.array([6, 0, 2])),
]
EVERY = [*MASKED, *OTHERS]
LONG = Shape(B=1, H=2, H_kv=1, T=129, S=131, D=3, D_v=2)  # more cells than a tile of JAX's has


def rolled(tree):
    """Return a mask or an array in which every sample has what the one before it had."""
    if isinstance(tree, np.ndarray):
        return np.roll(tree, 1, 0) if tree.ndim else tree
    if isinstance(tree, Spec):
        arguments = {name: rolled(value) for name, value in tree.arguments.items()}
        return replace(tree, arguments=arguments, parts=tuple(map(rolled, tree.parts)))
    return tree


def other(case: Case) -> Case:
    """Return the same call at other values: its masks', its offsets' and its inputs'."""
    mask, offset = rolled(case.mask), rolled(case.query_offset)
    return replace(case, mask=mask, query_offset=offset, seed=case.seed + 1)


def call_of(case: Case, gradients: bool = False) -> dict:
    """Return a case as plain data.

    A long one is computed in float64 and held within the budget of float32: in sums of so many
    numbers the naive formula's own order would be luck.
    """
    inputs = dict(zip(("query", "key", "value"), case.inputs("float32"), strict=True))
    call: dict = {"inputs": inputs, "options": case.options("float32")}
    call |= {"grad": case.grad("float32")} if gradients else {}
    return doubled(call) if case.shape == LONG else call


def doubled(tree):
    """Return plain data with its floats as float64, the same numbers."""
    if isinstance(tree, dict):
        return {name: doubled(value) for name, value in tree.items()}
    is_float = isinstance(tree, np.ndarray) and tree.dtype == np.float32
    return tree.astype(np.float64) if is_float else tree


def check_calls(subject, how: str, cases: list[Case], gradients: bool = False) -> int:
    """Check what one program gives for each case; return how many programs were made."""
    calls = [call_of(case, gradients) for case in cases]
    found, programs = subject.transformed(how, calls)
    for case, got in zip(cases, found, strict=True):
        if not gradients:
            exact, naive = (steps["output"] for steps in case.expected("float32"))
            compare(got, exact, naive, f"{how} output")
            continue
        exact, naive = case.expected_gradients("float32")
        for name in calls[0]["inputs"]:
            compare(got[name], exact[name], naive[name], f"{how} gradient of {name}")
    return programs


SIZES = [(2, 5, 7), (3, 4, 11), (5, 2, 3)]  # (B, T, S): exported at the first, run at all


def grown(name: str) -> list[Case]:
    """Return a call of a name at each of the sizes."""
    cases = []
    for i, (B, T, S) in enumerate(SIZES):
        lengths = np.arange(B) * 3 % (S + 1)
        hidden = coins(i, B, S)
        ids = np.random.default_rng(i).integers(0, 3, (B, S))
        masks: dict = {
            "plain": (None, None),
            "causal": (causal(), 1),
            "window": (sliding_window(2, 1), 1),
            "lengths": (padding(lengths), None),
            "hidden": (padding(hidden=hidden), None),
            "causal_and_lengths": (causal() & padding(lengths), lengths),
            "segments": (segments(ids[:, :T], ids), None),
            "allow": (allow(coins(i, B, 1, T, S)), None),
            "bias": (padding(lengths), None),
        }
        mask, offset = masks[name]
        shape, bias = Shape(B, 4, 2, T, S, 3, 5), "rank4" if name == "bias" else None
        cases.append(Case(name, shape, mask, offset, bias, seed=i))
    return cases


GROWN = ["plain", "causal", "window", "lengths", "hidden", "causal_and_lengths", "segments",
         "allow", "bias"]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Along:
    """A call and a direction along which it is differentiated once more.

    It is computed in float64 and held within the budget of float32: each route sums in an order of
    its own.
    """

    case: Case

    def directions(self) -> dict[str, np.ndarray]:
        B, H, H_kv, T, S, D, D_v = self.case.shape
        shapes = {"query": (B, H, T, D), "key": (B, H_kv, S, D), "value": (B, H_kv, S, D_v)}
        numbers = self.case.numbers("float32")
        shapes |= {n: numbers[n].shape for n in ("bias", "sinks") if n in numbers}
        named = enumerate(shapes.items())
        return {n: normal(90 + i, *s, dtype_name="float32") for i, (n, s) in named}

    def check(self, subject, route: str) -> None:
        """Check every derivative that a route gives; a refusal must name the textbook path."""
        if "float64" not in subject.dtypes:
            raise NotOffered(f"{subject.name} has no float64")
        try:
            call = doubled(call_of(self.case, True))
            got = subject.derivatives(route, call, doubled(self.directions()))
        except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
            if "attention_steps" in str(error):
                return
            raise
        exact, naive = self.expected()
        names = {"tangent"} if route == "forward" else set(exact) - {"tangent"}
        if not names <= set(got):
            raise Differs(f"derivatives: expected {sorted(names)}, got {sorted(got)}")
        for name, array in got.items():
            compare(array, exact[name], naive[name], f"{route} derivative: {name}")

    def expected(self) -> tuple[dict, dict]:
        numbers, case = self.case.numbers("float32"), self.case
        inputs = (*case.inputs("float32"), case.grad("float32"), self.directions())
        return expected.seconds(*inputs, allowed=case.allowed(), **numbers)


_ALONG = {
    "plain": PLAIN,
    "causal_and_padding": Case("empty", mask=causal() & padding(LENGTHS), query_offset=-1),
    "everything": OTHERS[3],
    "allow_and_bias": Case("bias", mask=allow(coins(2, 3, 2, 5, 7, true=0.4)), bias="rank2"),
    "uniform": Case("uniform", mask=padding(LENGTHS), empty_rows="uniform"),
    "one_query": OTHERS[6],
    "one_cell": Case("one_cell", Shape(1, 1, 1, 1, 1, 3, 2)),
    "sinks": Case("sinks", mask=padding(LENGTHS), sinks="normal"),
    "long": Case("long", LONG, causal() & padding([97]), 2),
    "long_softcap": Case("long_softcap", LONG, sliding_window(40, 3), 1, "heads", None, 0.9),
}
ALONG = {name: Along(case) for name, case in _ALONG.items()}
