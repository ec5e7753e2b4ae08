"""What the suite allows a call that is played in parts: what PART-1 allows one that is merged."""

import numpy as np

from conformance.oracle import expected, tolerance


class Merged(np.ndarray):
    """An expected gradient, which may be missed by `more` than that of one call."""

    more = 0.0

    def __array_finalize__(self, other):
        self.more = getattr(other, "more", 0.0)


def allow_merged() -> None:
    """Have the suite judge so, for the rest of this process."""
    allowance, gradients = tolerance.allowance, expected.gradients

    def allow(exact, naive, dtype, roundings=2):
        roundings = max(roundings, tolerance.MERGED)
        return allowance(exact, naive, dtype, roundings) + getattr(exact, "more", 0.0)

    def expect(*call, **options):
        exact, naive = gradients(*call, **options)
        cancelled = expected.cancelled(*call, **options)
        exact = {name: np.asarray(array).view(Merged) for name, array in exact.items()}
        for name, array in exact.items():
            array.more = cancelled.get(name, 0.0)
        return exact, naive

    tolerance.allowance, expected.gradients = allow, expect
