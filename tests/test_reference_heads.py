"""The oracle of changed heads against what is known of them: differences, angles and lengths."""

import math

import numpy as np
import pytest

from conformance.oracle import naive_heads, reference_heads

ROTARY = {"class": "rotary", "base": 30.0}
NORM = {"class": "QKNorm", "eps": 0.1}
SPECS = {
    "rotary": ROTARY,
    "interleaved": ROTARY | {"interleaved": True, "dim": 4, "scale": 2.5},
    "norm": NORM,
    "norm_then_rotary": NORM | {"then": ROTARY},
}
PLACES = np.array([[0, 1, 5], [4, 7, 2]])


def arrays() -> tuple[dict, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    p = {f"process_heads.{role}_norm.weight": rng.normal(size=6) for role in "qk"}
    return p, rng.normal(size=(2, 2, 3, 6)), rng.normal(size=(2, 2, 3, 6))


@pytest.mark.parametrize("name", SPECS)
def test_gradients_are_differences(name):
    (p, x, grad), step = arrays(), 1e-6

    def loss(p, x):
        return (reference_heads.process(p, SPECS[name], "k", x, PLACES) * grad).sum()

    by_x, weights = reference_heads.process_gradients(p, SPECS[name], "k", x, PLACES, grad)
    for index in [(0, 0, 1, 2), (1, 1, 2, 5), (1, 0, 0, 0)]:
        there = np.zeros_like(x)
        there[index] = step
        slope = (loss(p, x + there) - loss(p, x - there)) / (2 * step)
        assert by_x[index] == pytest.approx(slope, abs=1e-7)
    for weight, found in weights.items():
        there = p | {weight: p[weight] + step * np.eye(6)[4]}
        back = p | {weight: p[weight] - step * np.eye(6)[4]}
        slope = (loss(there, x) - loss(back, x)) / (2 * step)
        assert found[4] == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("folded", [False, True])
def test_naive_formula_in_float64_is_the_oracle(name, folded):
    p, x, grad = arrays()
    exact = reference_heads.process(p, SPECS[name], "q", x, PLACES)
    naive = naive_heads.process(p, SPECS[name], "q", x, PLACES, folded)
    np.testing.assert_allclose(naive, exact, rtol=0, atol=1e-14)
    exact = reference_heads.process_gradients(p, SPECS[name], "q", x, PLACES, grad)
    naive = naive_heads.process_gradients(p, SPECS[name], "q", x, PLACES, grad, folded)
    np.testing.assert_allclose(naive[0], exact[0], rtol=0, atol=1e-13)
    for weight, found in exact[1].items():
        np.testing.assert_allclose(naive[1][weight], found, rtol=0, atol=1e-13)


def test_a_pair_is_turned_by_its_angle():
    x = np.zeros((1, 1, 1, 6))
    x[..., 1] = 2.0
    turned = reference_heads.rotate(ROTARY, x, np.array([[3]]))[0, 0, 0]
    angle = 3 * 30.0 ** (-2 / 6)
    wanted = [0, 2 * math.cos(angle), 0, 0, 2 * math.sin(angle), 0]
    np.testing.assert_allclose(turned, wanted, atol=1e-15)


def test_scores_depend_on_distances_alone():
    _, x, y = arrays()
    spec = SPECS["rotary"]
    scores = []
    for start in (0, 1000):
        query, key = (reference_heads.rotate(spec, a, PLACES + start) for a in (x, y))
        scores.append(np.einsum("bhtd,bhsd->bhts", query, key))
    np.testing.assert_allclose(*scores, atol=1e-11)
