"""Models whose output tells what dropout has drawn: every sublayer writes it into its own features.

The weights of each attention are equal, and key s has a value of 2^s: what a head gives is a number
whose bits say which weights were kept. The feed-forward's unit u gives 2^u. A norm with an epsilon
of 4^20 and a weight of 2^20 takes the mean away and does nothing else, so that differences of
features pass through it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..oracle.tolerance import check_each
from .models import E, H, ModelCase, S, T

RATE = 0.25
CODE, ZERO, REFERENCE = 11, 12, 13  # what a key's value is read from, and a feature of 0
CENTRING = 2.0**20  # a norm's weight; its square is the epsilon
UNITS = 11
D = E // H

# Which features a sublayer of a layer writes, head by head
ENCODER = [
    {"self_attn": [[0], [1]], "linear2": [[2, 3, 4]]},
    {"self_attn": [[5], [6]], "linear2": [[7, 8, 9, 10]]},
]
DECODER = [{"self_attn": [[0, 1], [2, 3]], "multihead_attn": [[4, 5], [6, 7]],
            "linear2": [[8, 9, 10]]}]  # fmt: skip
PLACES = {"encoder": ENCODER, "decoder_layer": DECODER}
BITS = {"encoder": {"self_attn": S}, "decoder_layer": {"self_attn": T, "multihead_attn": S}}


def silent(case: ModelCase) -> dict[str, np.ndarray]:
    """Return parameters with which every sublayer gives 0 and every norm takes the mean away."""
    found = {name: np.zeros_like(array) for name, array in case.parameters().items()}
    for name, array in found.items():
        if "norm" in name:
            array += CENTRING if name.endswith("weight") else 0.3
    return found


@dataclass(frozen=True)
class Drawn:
    """What one sublayer has drawn: the bits inside it, and which features were kept behind it."""

    inside: np.ndarray  # (heads, B, T, bits): 1 kept, 0 dropped, NaN where the head cannot be read
    behind: np.ndarray  # (B, T, features)


def telling(kind: str, norm_first: bool, rate: float = RATE) -> ModelCase:
    """Return the model; a stack has two layers."""
    changes = {"norm_first": norm_first, "dropout": rate, "layer_norm_eps": CENTRING**2}
    return ModelCase(kind, changes)


def telling_parameters(case: ModelCase) -> dict[str, np.ndarray]:
    """Return parameters with which every sublayer writes what it has kept."""
    found = silent(case)
    for i, layer in enumerate(PLACES[case.kind]):
        prefix = f"layers.{i}." if case.kind == "encoder" else ""
        found[f"{prefix}linear1.bias"][:] = 1
        for name, features in layer.items():
            last = name if name == "linear2" else f"{name}.out_proj"
            weight, bias = (found[f"{prefix}{last}.{part}"] for part in ("weight", "bias"))
            for h, places in enumerate(features):
                bias[places] = 1
                if name == "linear2":
                    weight[places] = 2.0 ** np.arange(UNITS)
                    continue
                weight[places, h * D] = 1
                keys = BITS[case.kind][name]
                found[f"{prefix}{name}.v_proj.weight"][h * D, [CODE, ZERO]] = [keys, -keys]
    return found


def telling_inputs(case: ModelCase) -> dict[str, np.ndarray]:
    found = {name: np.zeros_like(x) for name, x in case.inputs().items()}
    for x in found.values():
        x[..., CODE] = 2.0 ** np.arange(x.shape[1])
    return found


def read(case: ModelCase, output: np.ndarray, rate: float) -> dict[str, Drawn]:
    """Return what each sublayer has drawn, by its name; every number must be one it can give."""
    x = next(iter(telling_inputs(case).values()))
    given = output.astype(float) - x
    given = (given - given[..., REFERENCE:]) * (1 - rate)
    rest = given[..., [CODE, ZERO]]
    check_each(abs(rest) < 0.01, rest, "features that no sublayer writes", "0")
    found = {}
    for i, layer in enumerate(PLACES[case.kind]):
        for name, features in layer.items():
            bits = UNITS if name == "linear2" else BITS[case.kind][name]
            parts = [_codes(given[..., places], bits, rate, name) for places in features]
            inside = np.stack([_bits(part, bits) for part in parts])
            behind = np.concatenate([part >= 0 for part in parts], -1)
            found[f"layer {i}, {name}"] = Drawn(inside, behind)
    return found


def _codes(given: np.ndarray, bits: int, rate: float, name: str) -> np.ndarray:
    """Return the numbers that features tell, -1 where the feature is dropped."""
    codes = np.where(abs(given) < 0.01, -1, (given - 1) * (1 - rate))
    whole = np.round(codes)
    rule = f"1 + n / (1 - p) with n of {bits} bits, divided by 1 - p, or 0"
    right = (abs(codes - whole) < 0.05) & (whole >= -1) & (whole < 2**bits)
    check_each(right, given / (1 - rate), f"what dropout leaves of {name}", rule)
    top = whole.max(-1, keepdims=True)
    check_each((whole == top) | (whole == -1), whole, f"what the features of {name} tell", "one n")
    return whole.astype(int)


def _bits(codes: np.ndarray, bits: int) -> np.ndarray:
    top = codes.max(-1)[..., None]
    return np.where(top < 0, np.nan, (top >> np.arange(bits)) & 1)


def gradients(
    case: ModelCase, drawn: dict[str, Drawn], grad: np.ndarray, rounding: float = 0.0
) -> dict[str, tuple]:
    """Return gradients of sum(grad * output) by parameter, each with the part that they are of.

    The norms come first, so that the output is the input and what each sublayer has written.
    `rounding` is what a norm's taking the mean away does to the features that values are read from.
    """
    left = grad.dtype.type(1 - RATE)
    found: dict[str, tuple[Any, np.ndarray]] = {}
    for i, layer in enumerate(PLACES[case.kind]):
        prefix = f"layers.{i}." if case.kind == "encoder" else ""
        for name, features in layer.items():
            own = drawn[f"layer {i}, {name}"]
            places = [place for own_places in features for place in own_places]
            back = grad[..., places] * own.behind / left  # (B, T, features)
            inside = np.nan_to_num(own.inside).astype(grad.dtype) / left
            if name == "linear2":
                units = (2.0 ** np.arange(UNITS)).astype(grad.dtype)
                by_unit = back.sum(-1, keepdims=True) * inside[0] * units
                found[f"{prefix}linear1.bias"] = slice(None), by_unit.sum((0, 1))
                weight = np.einsum("bto,btu->ou", back, inside[0])
                found[f"{prefix}linear2.weight"] = places, weight
                found[f"{prefix}linear2.bias"] = places, back.sum((0, 1))
                continue
            values = (2.0 ** np.arange(inside.shape[-1]) + rounding).astype(grad.dtype)
            joined = inside @ values  # (H, B, T)
            heads = [h for h, own_places in enumerate(features) for _ in own_places]
            out = np.einsum("bto,obt->o", back, joined[heads])  # from the head that each reads
            out_proj = f"{prefix}{name}.out_proj"
            found[f"{out_proj}.weight"] = (places, [h * D for h in heads]), out
            found[f"{out_proj}.bias"] = places, back.sum((0, 1))
    return found
