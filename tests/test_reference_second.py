"""The oracle's second derivatives, against central differences of its first ones."""

import numpy as np
import pytest

from conformance.oracle import expected, reference

SHAPES = {"query": (2, 4, 3, 5), "key": (2, 2, 7, 5), "value": (2, 2, 7, 3), "bias": (1, 4, 1, 7),
          "sinks": (4,)}  # fmt: skip
OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 0.9},
    "scale": {"scale": -0.7},
    "uniform": {"empty_rows": "uniform"},
}


def drawn(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("more", [(), ("bias",), ("sinks",), ("bias", "sinks")])
def test_second_derivatives_are_differences_of_first_ones(name, more):
    inputs, along, grad = drawn(1), drawn(2), np.random.default_rng(3).normal(size=(2, 4, 3, 3))
    for absent in {"bias", "sinks"} - set(more):
        del inputs[absent], along[absent]
    allowed = np.random.default_rng(4).random((2, 4, 3, 7)) < 0.6
    allowed[1, 2, 1] = False  # a fully masked row
    options = OPTIONS[name] | {"allowed": allowed}

    def at(step: float) -> dict[str, np.ndarray]:
        moved = {n: x + step * along[n] for n, x in inputs.items()}
        first = reference.gradients(**moved, grad=grad, **options)
        return first | {"tangent": reference.attention(**moved, **options)["output"]}

    exact, naive = expected.seconds(**inputs, grad=grad, directions=along, **options)
    step, before, after = 1e-5, at(-1e-5), at(1e-5)
    assert set(exact) == set(naive) == set(after)
    for part, wanted in exact.items():
        found = (after[part] - before[part]) / (2 * step)
        # what is cut off: step**2 / 6 of the third derivative; what is rounded: eps / step
        allowed_error = (step**2 + np.finfo(float).eps / step) * 30 * (1 + abs(wanted).max())
        assert abs(found - wanted).max() < allowed_error, part
        assert abs(wanted).max() > 0.1
        assert abs(naive[part] - wanted).max() < 1e-12 * (1 + abs(wanted).max())
