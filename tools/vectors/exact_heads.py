"""The second derivation of what happens to heads: turned and divided in sixty digits.

Angles become cosine and sine by their series and half-angles, not by complex numbers as in
`reference_heads`; a pair of features is found from the feature, not the other way round.
"""

from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np

from conformance.vectors.vector import Vector

from . import digits
from .digits import Number, rational, root, rounded, shortened

HALVINGS = 24
TERMS = 12  # of an angle below 2**-16 each is 2**-32 of the one before
EXTRA = 20  # digits that doubling the angle costs


def turned(vector: Vector) -> dict[str, np.ndarray]:
    """Return query and key as rotary embeddings turn them."""
    places, found = vector.inputs["positions"], {}
    for name in ("query", "key"):
        y = rotated(rational(vector.inputs[name]), vector.settings, places)
        found[f"turned_{name}"] = rounded(y)
    return found


def process(x: np.ndarray, role: str, spec: dict, parameters: dict, places) -> np.ndarray:
    """Return heads (B, H, T, D) of Fractions as they attend."""
    if spec["class"] == "rotary":
        return rotated(x, spec, places)
    y, eps = np.empty(x.shape, object), Fraction(spec["eps"])
    for at in np.ndindex(x.shape[:3]):
        norm = root(sum(a * a for a in x[at]) / x.shape[3] + eps)
        y[at] = [shortened(a / norm) for a in x[at]]
    y = y * parameters[f"process_heads.{role}_norm.weight"]
    return process(y, role, spec["then"], parameters, places) if "then" in spec else y


def rotated(x: np.ndarray, spec: dict, places: np.ndarray) -> np.ndarray:
    """Turn the features of (B, H, T, D), each with its partner, by its token's place."""
    own = int(spec.get("dim") or x.shape[3])
    dim = 2 * len(spec["frequencies"]) if "frequencies" in spec else own
    y, known = x.copy(), {}
    for b, h, t, d in np.ndindex(*x.shape[:3], dim):
        pair, second = divmod(d, 2) if spec.get("interleaved") else (d % (dim // 2), d >= dim // 2)
        away = 1 if spec.get("interleaved") else dim // 2
        place = int(places[min(b, len(places) - 1), t])
        if (place, pair) not in known:
            known[place, pair] = cosine_and_sine(place, frequency(spec, pair, dim))
        cos, sin = known[place, pair]
        other = x[b, h, t, d - away if second else d + away]
        y[b, h, t, d] = x[b, h, t, d] * cos + (other * sin if second else -other * sin)
    return y


def frequency(spec: dict, pair: int, dim: int) -> Decimal:
    """Return by how many radians a position turns a pair."""
    with localcontext(Context(prec=digits.DIGITS + EXTRA)):
        if "frequencies" in spec:
            own = Decimal(spec["frequencies"][pair])
        else:
            own = (-Decimal(spec.get("base", 10000.0)).ln() * 2 * pair / dim).exp()
        return own / Decimal(spec.get("scale", 1.0))


def cosine_and_sine(place: int, step: Decimal) -> tuple[Number, Number]:
    """Return both of place * step, from a small part of the angle that is doubled again."""
    with localcontext(Context(prec=digits.DIGITS + EXTRA)):
        angle = place * step / 2**HALVINGS
        sin, cos, term = Decimal(0), Decimal(0), Decimal(1)
        for n in range(1, 2 * TERMS):
            if n % 2:
                cos, term = cos + term, term * angle / n
            else:
                sin, term = sin + term, -term * angle / n
        for _ in range(HALVINGS):
            cos, sin = cos * cos - sin * sin, 2 * sin * cos
        return shortened(Fraction(cos)), shortened(Fraction(sin))
