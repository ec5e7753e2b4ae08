"""Exact numbers: sums and products as `Fraction`s, what is irrational to 60 digits."""

from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np

DIGITS = 60
NOTHING = -800  # e^-800 stands beside a 1 here, and is below float64's smallest number
PLACES = 300  # binary places of what goes into a further sum
Number = Fraction | float  # a float is one that is no number


def rational(array: np.ndarray) -> np.ndarray:
    """Return exactly the numbers given, as Fractions; NaN and infinities as they are."""
    turn = np.frompyfunc(lambda x: Fraction(x) if np.isfinite(x) else float(x), 1, 1)
    return turn(np.asarray(array, float)).astype(object).reshape(np.shape(array))


def rounded(array: np.ndarray) -> np.ndarray:
    """Return the nearest float64s."""
    return np.array([float(x) for x in array.ravel()]).reshape(array.shape)


def shortened(x: Number) -> Number:
    """Round to a multiple of 2**-300, so that sums of quotients stay short."""
    return x if isinstance(x, float) else Fraction(round(x * 2**PLACES), 2**PLACES)


def exp(x: Fraction) -> Fraction:
    if x < NOTHING:
        return Fraction(0)
    with localcontext(Context(prec=DIGITS)):
        return Fraction((Decimal(x.numerator) / Decimal(x.denominator)).exp())


def log(x: Fraction) -> Fraction:
    with localcontext(Context(prec=DIGITS)):
        return Fraction((Decimal(x.numerator) / Decimal(x.denominator)).ln())


def root(x: int | Fraction) -> Fraction:
    with localcontext(Context(prec=DIGITS)):
        return Fraction((Decimal(x.numerator) / Decimal(x.denominator)).sqrt())
