"""What a model should give: the oracle's answer, and the naive formula's for the budget.

As in `expected.py` the naive formula runs in sixteen orders, and every tensor keeps the answer that
lies furthest from the oracle's: folded or not, and there or back along the sequence, the features
and the feed-forward's units. Tokens keep their order, because their positions are counted.
"""

import re
from itertools import product

import numpy as np

from . import reference_layers
from .expected import _furthest
from .memo import remembered
from .naive_layers import Naive

# Which axes of a parameter run along the features, and along the feed-forward's units.
FEATURES = {
    r"(q|k|v)_proj\.weight|linear1\.weight": 1,
    r"(out_proj|linear2)\.(weight|bias)|norm\d?\.(weight|bias)": 0,
}
UNITS = {r"linear1\.(weight|bias)": 0, r"linear2\.weight": 1}


@remembered
@np.errstate(all="ignore")  # inf and NaN are answers
def layers(kind: str, parameters: dict, config: dict, inputs: dict, masks: dict):
    """Return output and weights, exact and naive."""
    call = (parameters, config, inputs, masks)
    exact = reference_layers.run(kind, *call)
    turns = 1 if kind == "seq2seq" else 3
    orders = product((False, True), repeat=1 + turns)
    candidates = [_in_order(kind, *call, *order) for order in orders]
    return exact, {name: _furthest([c[name] for c in candidates], exact[name]) for name in exact}


def _in_order(
    kind, parameters, config, inputs, masks, folded, units, features=False, sequence=False
) -> dict:
    if units:
        parameters = _turn(parameters, UNITS)
    if features:
        parameters = _turn(parameters, FEATURES)
        inputs = {name: x[..., ::-1] for name, x in inputs.items()}
    if sequence:
        inputs = {name: x[:, ::-1] for name, x in inputs.items()}
        masks = {name: {k: _back(x) for k, x in own.items()} for name, own in masks.items()}
    found = reference_layers.run(kind, parameters, config, inputs, masks, Naive(folded))
    if sequence:
        found = {n: x[:, ::-1] if n == "output" else _back(x) for n, x in found.items()}
    if features:
        found["output"] = found["output"][..., ::-1]
    return found


def _back(array):
    """Turn queries and keys of a mask, a bias or weights (..., T, S)."""
    return array[..., ::-1, ::-1]


def _turn(parameters: dict, axes: dict) -> dict:
    turned = dict(parameters)
    for name, pattern in product(parameters, axes):
        if re.search(f"(^|\\.)({pattern})$", name):
            turned[name] = np.flip(parameters[name], axes[pattern])
    return turned
