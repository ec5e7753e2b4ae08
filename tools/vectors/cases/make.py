"""How the cases are written: numbers that every dtype can hold, and the parts of an expectation.

Normal random numbers come from a seed by Python's own generator and are rounded to eight binary
digits, so that float64, float32, float16 and bfloat16 hold the very same numbers.
"""

import math
from functools import cache
from random import Random
from statistics import NormalDist

import numpy as np

from conformance.cases.attention import Shape
from conformance.vectors.vector import Part, Vector

MAIN = Shape(B=3, H=2, H_kv=2, T=5, S=7, D=11, D_v=13)
SQUARE = MAIN._replace(T=7)
TALL = MAIN._replace(T=7, S=5)
GROUPED = Shape(B=2, H=6, H_kv=3, T=5, S=7, D=11, D_v=13)
LENGTHS = [7, 0, 4]  # one sample whole, one empty, one ragged

# Why a vector lacks a property.
NO_MASK = "the call has no mask"
NO_WEIGHTS = "a mask alone has no weights and no scale"
NO_ANSWER = "a refused call has no answer"
SQUARE_CALL = "the clause is about as many queries as keys"
BY_HAND = "small enough to follow by hand"
ONE_HEAD = "the clause is about one head, which is as wide as the whole"
ALL_SEEN = "the clause is about a query that sees every key"
SCALE_OF_ONE = "the scale under test is 1"
SCALE_OF_ZERO = "a scale of 0 makes all visible keys alike"
ONE_KEY = "a single visible key has weight 1, whatever the scores"
EQUAL = "equal logits cannot have a weight above 0.5"
EMPTY = "there is no number to compare"
PRINTED = "the document's own sizes"
ONE_ROW = "a single row reads the same either way"
TWICE = "every weight is shared by two keys"


def grid(number: float) -> float:
    """Round to eight binary digits.

    >>> grid(3.14159)
    3.140625
    """
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(mantissa * 256), exponent - 8)


@cache
def _normals(seed: int, count: int) -> np.ndarray:
    draw, curve = Random(seed), NormalDist()
    return np.array([grid(curve.inv_cdf(draw.random())) for _ in range(count)], float)


def normal(seed: int, *shape: int) -> np.ndarray:
    """Return normal random numbers from a seed, eight binary digits each."""
    return _normals(seed, math.prod(shape)).reshape(shape)


def coins(seed: int, *shape: int, true: float = 0.5) -> np.ndarray:
    """Return random booleans from a seed, True with the given share."""
    draw = Random(seed)
    return np.array([draw.random() < true for _ in range(math.prod(shape))], bool).reshape(shape)


def sizes_of(shape: Shape) -> dict[str, int]:
    return shape._asdict()


def numbers(shape: Shape, seed: int, *, grad: bool = False) -> dict[str, np.ndarray]:
    """Return query, key and value, and for gradients that of the output."""
    B, H, H_kv, T, S, D, D_v = shape
    found = {
        "query": normal(10 * seed + 1, B, H, T, D),
        "key": normal(10 * seed + 2, B, H_kv, S, D),
        "value": normal(10 * seed + 3, B, H_kv, S, D_v),
    }
    return found | {"grad": normal(10 * seed + 4, B, H, T, D_v)} if grad else found


def attend(id: str, shows: str, *expect: Part, shape=MAIN, seed=0, grad=False, **fields) -> Vector:
    """Return a vector of attention; `inputs` given are instead of, or besides, the random ones."""
    inputs = numbers(shape, seed, grad=grad) | fields.pop("inputs", {})
    expect = expect or (*close("output", "weights"),)
    if grad:
        expect += gradients(inputs)
    return Vector(
        id=id, shows=shows, call="attention", sizes=sizes_of(shape), inputs=inputs, expect=expect,
        **fields,
    )  # fmt: skip


def gradients(inputs: dict, region: dict | None = None) -> tuple[Part, ...]:
    names = ("query", "key", "value", "bias", "sinks")
    return close(*(f"grad_{name}" for name in names if name in inputs))


def close(*tensors: str, region: np.ndarray | None = None) -> tuple[Part, ...]:
    return tuple(Part(kind="close", tensor=tensor, region=region) for tensor in tensors)


def ulp(tensor: str, number: float, region: np.ndarray) -> Part:
    """To one unit in the last place of a number, as the clause says, in every dtype."""
    bits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
    exponent = math.frexp(number)[1]
    allowed = {name: math.ldexp(1.0, exponent - digits) for name, digits in bits.items()}
    return Part(kind="close", tensor=tensor, region=region, allowed=allowed)


def exact(tensor: str, region: np.ndarray | None = None) -> Part:
    return Part(kind="exact", tensor=tensor, region=region)


def zero(tensor: str, region: np.ndarray | None = None) -> Part:
    return Part(kind="zero", tensor=tensor, region=region)


def nan(tensor: str, region: np.ndarray | None = None) -> Part:
    return Part(kind="nan", tensor=tensor, region=region)


def finite(*tensors: str) -> tuple[Part, ...]:
    return tuple(Part(kind="finite", tensor=tensor) for tensor in tensors)


def either(tensor: str, contract: str | None, region=None, **alternatives: Part) -> Part:
    return Part(
        kind="either", tensor=tensor, region=region, contract=contract, alternatives=alternatives
    )


def raises(rule: str, answered: str, *differs_in: str) -> Part:
    return Part(kind="raises", rule=rule, answered=answered, differs_in=differs_in)


def exempt(reason: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, reason)


WEIGHTS = exempt(NO_WEIGHTS, "top_weight", "uniform", "unscaled")
ANSWERS = ("hidden", "visible", "top_weight", "unmasked", "transposed", "uniform", "unscaled")
REFUSED = exempt(NO_ANSWER, *ANSWERS)
UNMASKED = exempt(NO_MASK, "hidden", "unmasked", "transposed")
EVERYTHING = exempt(EMPTY, *ANSWERS)
