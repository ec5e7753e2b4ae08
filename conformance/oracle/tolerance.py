"""How large an error is allowed: derived from the case itself, never tuned.

One rule for every tensor: allowed = 2 x max|naive - exact| + 2 x eps(dtype) x max|exact|, where
exact is the oracle's answer and naive the textbook formula's in the precision under test, in the
worst of sixteen orders of evaluation (`expected.py`). The first term is what rounding costs on this
very case, the second a floor for the cases in which the naive formula happens to be exact. Where
parts are merged every term is multiplied once more, by its part's share: `roundings` is 3 then, and
a gradient may miss by what `expected.cancelled` says.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Ledger:
    """What one test has used of its budget, and under which clause: read by the report."""

    clause: str = ""
    used: float = 0.0
    what: str = ""

    def open(self, clause: str) -> None:
        self.clause, self.used, self.what = clause, 0.0, ""

    def enter(self, used: float, what: str) -> None:
        if used >= self.used:
            self.used, self.what = used, what


LEDGER = Ledger()


class Differs(AssertionError):
    """An answer that the contract does not allow; the text says where and by how much.

    `found` has the same as data: index, expected, got, error and allowed where a number is wrong,
    and the name of the alternative that was taken where that is plain.
    """

    def __init__(self, text: str, **found):
        super().__init__(f"{LEDGER.clause}: {text}" if LEDGER.clause else text)
        self.found = found


def dtype(name: str) -> np.dtype:
    """Return a NumPy dtype by name, bfloat16 included."""
    if name == "bfloat16":
        import ml_dtypes  # here: whoever judges float32 answers does not need it

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def eps(dtype) -> float:
    """The spacing of 1 in a dtype, bfloat16 included.

    >>> eps("float16")
    0.0009765625
    """
    return float(finfo(dtype).eps)


def finfo(dtype):
    """Return the limits of a dtype, bfloat16 included."""
    own = np.dtype(dtype)
    if own.kind == "f":
        return np.finfo(own)
    import ml_dtypes  # NumPy's finfo does not know bfloat16

    return ml_dtypes.finfo(own)


MERGED = 3  # roundings of what was merged


def allowance(exact, naive, dtype, roundings: int = 2) -> float:
    """Return the largest error that rounding excuses for this tensor."""
    exact, naive = _finite_parts(exact, naive)
    if not exact.size:
        return 0.0
    return float(2 * np.abs(naive - exact).max() + roundings * eps(dtype) * np.abs(exact).max())


def compare(got, exact, naive, what: str, roundings: int = 2, more: float = 0.0) -> None:
    """Check an answer against the oracle, within the budget of its own dtype and `more`.

    NaN and inf must stand exactly where the oracle has them. Raises `Differs`.
    """
    got = np.asarray(got)
    check_shape(got, np.shape(exact), what)
    _check_floats(got, what)
    limit = allowance(exact, naive, got.dtype, roundings) + more
    wide, exact = got.astype(np.float64), np.asarray(exact, np.float64)
    error = np.where(np.isnan(wide) & np.isnan(exact), 0.0, _off(wide, exact))
    _within(limit, error, wide, exact, what)


def close(got, other, exact, naive, what: str) -> None:
    """Check that two answers agree within the budget of the case; neither is the reference.

    Both must be finite: NaN and infinity are close to nothing.
    """
    got, other = np.asarray(got), np.asarray(other)
    check_shape(got, other.shape, what)
    _check_floats(got, what)
    limit = allowance(exact, naive, got.dtype)
    _check_floats(other, what)
    got, other = got.astype(np.float64), other.astype(np.float64)
    _check_finite(got, what)
    _check_finite(other, f"{what}, the other answer")
    _within(limit, _off(got, other), got, other, what)


def _off(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return how far each number is off: 0 where equal, inf where one of the two is none."""
    with np.errstate(invalid="ignore"):
        error = np.where(got == expected, 0.0, np.abs(got - expected))
    return np.where(np.isnan(error), np.inf, error)


def _within(limit: float, error, got, expected, what: str) -> None:
    """Enter how much of what is allowed was used. Raises `Differs` where that is too much."""
    worst = float(error.max(initial=0.0))
    used = worst / limit if limit else (np.inf if worst else 0.0)
    if used > 1:
        index = _index(error)
        raise Differs(
            f"{what} at {index}: expected {expected[index]:.9g}, got {got[index]:.9g}, "
            f"error {worst:.3g} of {limit:.3g} allowed ({used:.3g} x)",
            index=index,
            expected=float(expected[index]),
            got=float(got[index]),
            error=worst,
            allowed=limit,
        )
    LEDGER.enter(used, what)


def _index(error: np.ndarray) -> tuple[int, ...]:
    """Return where the error is largest."""
    return tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))


def same(got, expected, what: str) -> None:
    """Check that an answer equals another bit for bit, NaN where NaN, dtype aside."""
    got, expected = np.asarray(got), np.asarray(expected)
    check_shape(got, expected.shape, what)
    a, b = _plain(got), _plain(expected)
    unequal = ~((a == b) | (_isnan(a) & _isnan(b)))
    if unequal.any():
        error = np.where(unequal, _off(a.astype(np.float64), b.astype(np.float64)), -1.0)
        index = _index(error)
        raise Differs(
            f"{what} at {index}: expected exactly {b[index]}, got {a[index]} "
            f"({int(unequal.sum())} of {unequal.size} differ)",
            index=index,
            expected=float(b[index]),
            got=float(a[index]),
            error=float(error[index]),
            allowed=0.0,
        )
    LEDGER.enter(0.0, what)


def check_each(right, got, what: str, rule: str) -> None:
    """Check every number of an answer by a rule; `right` says of which it is true."""
    got = np.asarray(got)
    wrong = ~np.broadcast_to(right, got.shape)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise Differs(
            f"{what} at {index}: expected {rule}, got {got[index]} "
            f"({int(wrong.sum())} of {wrong.size} differ)",
            index=index,
            got=float(got[index]),
        )
    LEDGER.enter(0.0, what)


def check_shape(got: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    if tuple(got.shape) != tuple(shape):
        text = f"{what}: expected shape {tuple(shape)}, got {tuple(got.shape)}"
        raise Differs(text, took="shape")


def check_dtype(got: np.ndarray, dtype, what: str) -> None:
    if got.dtype != dtype:
        text = f"{what}: expected {np.dtype(dtype).name}, got {got.dtype.name}"
        raise Differs(text, took="dtype")


def _check_floats(got: np.ndarray, what: str) -> None:
    if got.dtype.kind not in "fV":  # NumPy knows bfloat16 as V, not as a float
        raise Differs(f"{what}: expected floats, got {got.dtype.name}", took="dtype")


def _check_finite(array: np.ndarray, what: str) -> None:
    wrong = ~np.isfinite(array)
    if wrong.any():
        index = _index(wrong)
        text = f"{what} at {index}: expected a finite number, got {array[index]}"
        raise Differs(text, index=index, got=float(array[index]))


def _plain(array: np.ndarray) -> np.ndarray:
    """Return 16-bit floats as float64, which holds them exactly; anything else as it is."""
    return array.astype(np.float64) if array.dtype.itemsize == 2 and array.dtype != bool else array


def _isnan(array: np.ndarray) -> np.ndarray:
    return np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)


def _finite_parts(exact, naive) -> tuple[np.ndarray, np.ndarray]:
    exact, naive = np.broadcast_arrays(*(np.asarray(x).astype(float) for x in (exact, naive)))
    keep = np.isfinite(exact) & np.isfinite(naive)
    return exact[keep], naive[keep]
