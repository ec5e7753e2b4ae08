"""The chapter on derivatives of derivatives, by every route that a framework has."""

import numpy as np
import pytest

from .cases.models import ModelCase
from .cases.transforms import ALONG
from .contract import clause
from .oracle import reference_layers
from .oracle.tolerance import Differs
from .subjects.protocol import ROUTES, NotOffered, require

pytestmark = pytest.mark.untyped
LONG = ["long", "long_softcap"]
FEW = ["plain", "everything", "one_cell"]  # of every route; the first has them all
PAIRS = [(ROUTES[1], name) for name in ALONG if name not in LONG]
PAIRS += [(route, name) for route in ROUTES if route != ROUTES[1] for name in FEW]


@clause("TRF-4")
@pytest.mark.parametrize(("route", "name"), PAIRS)
def test_derivatives_of_derivatives_are_the_oracles(subject, route, name):
    require(subject, "second")
    ALONG[name].check(subject, route)


@clause("TRF-4")
@pytest.mark.parametrize(
    ("route", "name"), [(ROUTES[1], "long"), *((route, "long_softcap") for route in ROUTES)]
)
def test_what_can_be_differentiated_does_not_depend_on_the_size(subject, route, name):
    require(subject, "second")
    ALONG[name].check(subject, route)


# A model: one inner step of MAML, whose meta-gradient is w - rate * H w

LAYER = ModelCase(
    "encoder_layer", {"d_model": 4, "dim_feedforward": 3, "activation": "gelu", "norm_first": True}
)
HIDDEN = np.arange(5) >= np.array([5, 0, 3])[:, None]
RATE = 0.5


def curvatures(loss, parameters: dict, along: dict, step: float) -> dict[str, tuple[float, float]]:
    """Return for each parameter its reversed direction . H . along, and how far that may err.

    They are mixed second differences; two step sizes cancel the first term that each cuts off.
    """

    def mixed(name: str, size: float) -> float:
        total = 0.0
        for a in (1, -1):
            for b in (1, -1):
                moved = {n: x + b * size * along[n] for n, x in parameters.items()}
                moved[name] = moved[name] + a * size * along[name][::-1]
                total += a * b * loss(moved)
        return total / (4 * size**2)

    found = {}
    for name in parameters:
        coarse, fine = mixed(name, step), mixed(name, step / 2)
        found[name] = (4 * fine - coarse) / 3, abs(coarse - fine)
    return found


@clause("TRF-4")
@pytest.mark.parametrize("route", ["reverse_reverse", "forward_reverse"])
def test_a_meta_gradient_through_a_layer(subject, route):
    require(subject, "second", "layers")
    if "float64" not in subject.dtypes:
        raise NotOffered(f"{subject.name} has no float64")
    rng = np.random.default_rng(3)
    parameters = LAYER.parameters("float64")
    along = {n: rng.normal(size=x.shape) / 2 for n, x in parameters.items()}
    x, grad = rng.normal(size=(3, 5, 4)), rng.normal(size=(3, 5, 4))
    call = {"inputs": {"src": x}, "options": {"src_key_padding_mask": HIDDEN}, "grad": grad}
    call["parameters"] = parameters
    got = subject.derivatives(route, call, along, kind=LAYER.kind, config=LAYER.config)
    masks = LAYER.masks({"src": x}, src=(~HIDDEN[:, None, None], None))

    def loss(own: dict) -> float:
        found = reference_layers.run(LAYER.kind, own, LAYER.config, {"src": x}, masks)
        return float((found["output"] * grad).sum())

    size, step = abs(loss(parameters)), 1e-2
    wanted = curvatures(loss, parameters, along, step)
    for name, (curvature, cut_off) in wanted.items():
        direction = along[name][::-1]
        own = float((along[name] - RATE * got[name]).ravel() @ direction.ravel())
        exact = float(along[name].ravel() @ direction.ravel()) - RATE * curvature
        rounded = 64 * np.finfo(float).eps * max(size, 1) / step**2
        if abs(own - exact) > cut_off + rounded:
            text = f"expected {exact:.9g}, got {own:.9g}, {cut_off + rounded:.2g} allowed"
            raise Differs(f"meta-gradient by {name}: {text}")
