"""The oracle for layers: the Transformer of the paper, with the names of torch.nn.

The wiring is written once and takes its arithmetic from `ops`: `Exact` here, float64 with exact
sums, and the naive formulas of `naive_layers.py`, whose distance from it makes the budget. It is
checked against torch.nn in float64 in `tests/test_reference_layers.py`.

A model is a kind and a flat dict of parameters under dotted names, matrices (out, in). Its masks
are options of attention (`allowed`, `bias`) under "src", "tgt" and "memory". What it gives is
a flat dict: "output", and each attention's weights under the attention's own dotted name.
"""

import math
from itertools import product

import numpy as np

from . import reference

DEFAULTS = {"activation": "relu", "layer_norm_eps": 1e-5, "norm_first": False, "norm": False}


class Exact:
    """Float64; a sum is exact, every other operation is rounded once."""

    def cast(self, x):
        return np.asarray(x).astype(np.float64)

    def linear(self, x, p: dict, name: str):
        return reference.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    def norm(self, x, p: dict, name: str, eps: float):
        y, weight, bias = np.zeros(x.shape), p[f"{name}.weight"], p.get(f"{name}.bias")
        for index in np.ndindex(x.shape[:-1]):
            row = x[index].tolist()
            mean = math.fsum(row) / len(row)
            centred = [number - mean for number in row]
            root = math.sqrt(math.fsum(c * c for c in centred) / len(row) + eps)
            y[index] = [c / root * w for c, w in zip(centred, weight.tolist(), strict=True)]
        return y if bias is None else y + bias

    def activate(self, x, name: str):
        function = {"relu": lambda number: max(number, 0.0), "gelu": gelu}[name]
        return np.array([function(number) for number in x.ravel().tolist()]).reshape(x.shape)

    def attend(self, p: dict, heads: int, query, key, **masks) -> dict:
        return reference.multihead(p, heads, heads, query, key, key, **masks)

    def embed(self, rows, positions):
        return rows if positions is None else rows * math.sqrt(rows.shape[-1]) + positions


EXACT = Exact()


def gelu(x: float) -> float:
    """x times the normal distribution's share below x."""
    return x * math.erfc(-x / math.sqrt(2)) / 2


def within(named: dict, prefix: str) -> dict:
    """Return what stands under a prefix, without it.

    >>> within({"norm1.weight": 1, "norm2.weight": 2}, "norm1.")
    {'weight': 1}
    """
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}


def _add(ops, p, config, norm: str, x, sublayer):
    """Add to x what a sublayer makes of it; the norm comes before the sublayer, or after all."""
    eps = config["layer_norm_eps"]
    if config["norm_first"]:
        return x + sublayer(ops.norm(x, p, norm, eps))
    return ops.norm(x + sublayer(x), p, norm, eps)


def _attention(ops, p, config, name: str, key, masks: dict, found: dict):
    """Return an attention as a sublayer that leaves its weights in `found`."""

    def sublayer(x):
        options = {"empty_rows": config.get("empty_rows", "zero")} | masks
        memory = x if key is None else key
        steps = ops.attend(within(p, f"{name}."), config["nhead"], x, memory, **options)
        found[name] = steps["weights"]
        return steps["output"]

    return sublayer


def _feed_forward(ops, p, config):
    def sublayer(x):
        return ops.linear(
            ops.activate(ops.linear(x, p, "linear1"), config["activation"]), p, "linear2"
        )

    return sublayer


def encoder_layer(ops, p, config, inputs, masks) -> dict:
    found: dict = {}
    own = _attention(ops, p, config, "self_attn", None, masks["src"], found)
    x = _add(ops, p, config, "norm1", inputs["src"], own)
    return {"output": _add(ops, p, config, "norm2", x, _feed_forward(ops, p, config))} | found


def decoder_layer(ops, p, config, inputs, masks) -> dict:
    found: dict = {}
    own = _attention(ops, p, config, "self_attn", None, masks["tgt"], found)
    cross = _attention(ops, p, config, "multihead_attn", inputs["memory"], masks["memory"], found)
    x = _add(ops, p, config, "norm1", inputs["tgt"], own)
    x = _add(ops, p, config, "norm2", x, cross)
    return {"output": _add(ops, p, config, "norm3", x, _feed_forward(ops, p, config))} | found


def _stack(layer, first: str, ops, p, config, inputs, masks) -> dict:
    """Run layers one after the other, then the last norm if there is one."""
    x, found = inputs[first], dict[str, np.ndarray]()
    for i in range(config["num_layers"]):
        name = f"layers.{i}."
        steps = layer(ops, within(p, name), config, inputs | {first: x}, masks)
        x = steps.pop("output")
        found |= {name + attention: weights for attention, weights in steps.items()}
    if config["norm"]:
        x = ops.norm(x, p, "norm", config["layer_norm_eps"])
    return {"output": x} | found


def encoder(*call) -> dict:
    return _stack(encoder_layer, "src", *call)


def decoder(*call) -> dict:
    return _stack(decoder_layer, "tgt", *call)


def transformer(ops, p, config, inputs, masks) -> dict:
    found: dict = {}
    for name, run in (("encoder", encoder), ("decoder", decoder)):
        own = config | {"num_layers": config.get(f"num_{name}_layers", 6), "norm": True}
        steps = run(ops, within(p, f"{name}."), own, inputs, masks)
        inputs = inputs | {"memory": steps["output"]}
        output = steps.pop("output")
        found |= {f"{name}.{attention}": weights for attention, weights in steps.items()}
    return {"output": output} | found


def seq2seq(ops, p, config, inputs, masks) -> dict:
    """Tokens to logits; the masks follow from the tokens: padding hidden, the target causal."""
    masks = token_masks(config, inputs["src"], inputs["tgt"])
    x = {side: _embed(ops, p, config, side, tokens) for side, tokens in inputs.items()}
    found = transformer(ops, within(p, "transformer."), config, x, masks)
    output = ops.linear(found.pop("output"), p, "projection")
    return {"output": output} | {f"transformer.{name}": w for name, w in found.items()}


def _embed(ops, p, config, side: str, tokens):
    rows = p[f"{side}_embedding.weight"][tokens]
    if config.get("positions", "sinusoidal") == "none":
        return ops.embed(rows, None)
    return ops.embed(rows, sinusoids(tokens != config.get("padding_idx", 0), rows.shape[-1]))


def sinusoids(kept: np.ndarray, features: int) -> np.ndarray:
    """The paper's positional encodings, section 3.5, where positions count the kept tokens."""
    found = np.zeros((*kept.shape, features))
    for b, row in enumerate(kept.tolist()):
        position = -1
        for t, is_token in enumerate(row):
            position += is_token
            for feature in range(features):
                rate = 10000.0 ** ((feature - feature % 2) / features)
                function = math.cos if feature % 2 else math.sin
                found[b, t, feature] = function(max(position, 0) / rate)
    return found


def token_masks(config: dict, src, tgt) -> dict:
    """Hide padding from everyone, and from each target what follows it."""
    padding_idx = config.get("padding_idx", 0)
    (B, S), T, H = src.shape, tgt.shape[1], config["nhead"]
    shapes = {"src": (B, H, S, S), "tgt": (B, H, T, T), "memory": (B, H, T, S)}
    allowed = {name: np.zeros(shape, bool) for name, shape in shapes.items()}
    for name, array in allowed.items():
        keys = tgt if name == "tgt" else src
        for b, h, t, s in product(*map(range, array.shape)):
            array[b, h, t, s] = keys[b, s] != padding_idx and (name != "tgt" or s <= t)
    return {name: {"allowed": array} for name, array in allowed.items()}


KINDS = {
    "encoder_layer": encoder_layer,
    "decoder_layer": decoder_layer,
    "encoder": encoder,
    "decoder": decoder,
    "transformer": transformer,
    "seq2seq": seq2seq,
}


def run(kind: str, parameters: dict, config: dict, inputs: dict, masks: dict, ops=EXACT) -> dict:
    """Return a model's output and every attention's weights."""
    p = {name: ops.cast(array) for name, array in parameters.items()}
    inputs = {name: x if x.dtype.kind in "iu" else ops.cast(x) for name, x in inputs.items()}
    return KINDS[kind](ops, p, DEFAULTS | config, inputs, masks)
