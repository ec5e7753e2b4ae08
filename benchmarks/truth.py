"""Whether what was measured was also right: one head in float64, and how far rounding may lead.

The textbook formula is computed with NumPy for the last head of the last sample. Beside it stands
its condition: the same sums with every term positive, which is what relative errors multiply. The
roundings that are counted are those which all the ways of computing attention share:

- 16-bit inputs are exact; weights, their gradient and results may be rounded to the inputs' dtype;
- a score is a sum of D products in float32, and its error reaches the weight twice (the softmax's
  numerator and denominator);
- a mean over S values is a sum in float32, in any order.
"""

from functools import lru_cache

import ml_dtypes
import numpy as np

FLOAT32 = float(np.finfo(np.float32).eps)


@lru_cache(maxsize=2)
def given(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return query, key, value and the output's gradient in float32, kept for the next row."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape, np.float32) for _ in range(4))


def truth(allowed: np.ndarray, shape, dtype: str, backward: bool) -> list[tuple]:
    """Return (name, exact, tolerance) of each tensor; `allowed` (T, S) is the last sample's."""
    inputs = [array[-1, -1].astype(ml_dtypes.finfo(dtype).dtype) for array in given(shape)]
    query, key, value, grad = (array.astype(np.float64) for array in inputs)
    scale = 1 / np.sqrt(query.shape[1])
    weights = _softmax(query @ key.T * scale, allowed)
    share = _share(query, key, scale, dtype)
    sizes = [abs(array) for array in (query, key, value, grad)]
    output, size = weights @ value, weights @ sizes[2]
    if not backward:
        return [("output", output, share * size)]
    d_weights = grad @ value.T
    d_scores = weights * (d_weights - (grad * output).sum(-1, keepdims=True))
    small = [array.astype(np.float32) for array in (*sizes, size, weights)]  # a bound, no answer
    query_size, key_size, value_size, grad_size, size, positive = small
    d_sizes = grad_size @ value_size.T + (grad_size * size).sum(-1, keepdims=True)
    d_sizes *= positive
    return [
        ("d_query", d_scores @ key * scale, 2 * share * (d_sizes @ key_size) * scale),
        ("d_key", d_scores.T @ query * scale, 2 * share * (d_sizes.T @ query_size) * scale),
        ("d_value", weights.T @ grad, share * (positive.T @ grad_size)),
    ]


def _softmax(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    scores = np.where(allowed, scores, -np.inf)
    scores -= scores.max(-1, keepdims=True)
    weights = np.exp(scores, out=scores)
    return weights / weights.sum(-1, keepdims=True)


def _share(query, key, scale: float, dtype: str) -> float:
    """Return the relative error that rounding excuses."""
    head_dim, keys = query.shape[1], len(key)
    largest = np.linalg.norm(query, axis=1).max() * np.linalg.norm(key, axis=1).max() * scale
    sums = FLOAT32 * (2 * head_dim * largest + keys)
    return float(2 * float(ml_dtypes.finfo(dtype).eps) + sums)


def disagreement(found: list[np.ndarray], expected: list[tuple]) -> str | None:
    """Say what is wrong with an answer in a few words, or None where it is right."""
    for got, (name, exact, tolerance) in zip(found, expected, strict=True):
        if got.shape != exact.shape:
            return f"{name}: expected shape {exact.shape}, got {got.shape}"
        error = abs(got.astype(np.float64) - exact)
        wrong = ~(error <= tolerance)  # NaN is wrong, too
        if wrong.any():
            excess = np.where(wrong, error - tolerance, -np.inf)
            index = np.unravel_index(excess.argmax(), got.shape)
            if np.isnan(error).any():
                index = np.unravel_index(np.isnan(error).argmax(), got.shape)
            return (
                f"{name} at {tuple(map(int, index))}: expected {exact[index]:.4g}, "
                f"got {float(got[index]):.4g}, error {error[index]:.2g} of {tolerance[index]:.2g}"
            )
    return None
