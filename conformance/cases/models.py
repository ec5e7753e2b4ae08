"""Calls of layers, stacks and whole models: configuration, parameters, inputs, expectation."""

import re
from dataclasses import dataclass, field

import numpy as np

from ..oracle import expected_layers
from ..oracle.tolerance import Differs, check_dtype, compare, dtype
from ..subjects.protocol import Subject, require
from .arrays import normal

B, T, S, E, H = 3, 5, 7, 14, 2
SMALL = {"d_model": E, "nhead": H, "dim_feedforward": 11, "dropout": 0.0}
STACK = SMALL | {"num_layers": 2}
WHOLE = SMALL | {"num_encoder_layers": 2, "num_decoder_layers": 3}
TOKENS = WHOLE | {"src_vocab": 17, "tgt_vocab": 19}
CONFIGS = {
    "encoder_layer": SMALL,
    "decoder_layer": SMALL,
    "encoder": STACK,
    "decoder": STACK,
    "transformer": WHOLE,
    "seq2seq": TOKENS,
}
INPUTS = {
    "encoder_layer": {"src": S},
    "decoder_layer": {"tgt": T, "memory": S},
    "encoder": {"src": S},
    "decoder": {"tgt": T, "memory": S},
    "transformer": {"src": S, "tgt": T},
}
ATTENTIONS = {"src": ("src", "src"), "tgt": ("tgt", "tgt"), "memory": ("tgt", "memory")}


def shapes(kind: str, config: dict) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter, by its dotted name."""
    if kind in ("encoder_layer", "decoder_layer"):
        found = _layer_shapes(config, kind == "decoder_layer")
    elif kind in ("encoder", "decoder"):
        own = shapes(f"{kind}_layer", config)
        layers = range(config["num_layers"])
        found = {f"layers.{i}.{name}": shape for i in layers for name, shape in own.items()}
        if config.get("norm"):
            found |= {"norm.weight": (config["d_model"],), "norm.bias": (config["d_model"],)}
    elif kind == "transformer":
        found = {}
        for part in ("encoder", "decoder"):
            own = config | {"num_layers": config[f"num_{part}_layers"], "norm": True}
            found |= {f"{part}.{name}": shape for name, shape in shapes(part, own).items()}
    else:
        found = {f"transformer.{n}": shape for n, shape in shapes("transformer", config).items()}
        sides = ("src", "tgt")
        found |= {f"{s}_embedding.weight": (config[f"{s}_vocab"], config["d_model"]) for s in sides}
        found |= {"projection.weight": (config["tgt_vocab"], config["d_model"])}
        return found | {"projection.bias": (config["tgt_vocab"],)}
    if config.get("bias", True):
        return found
    return {name: shape for name, shape in found.items() if not name.endswith("bias")}


def _layer_shapes(config: dict, has_memory: bool) -> dict[str, tuple[int, ...]]:
    width, units = config["d_model"], config["dim_feedforward"]
    found: dict[str, tuple[int, ...]] = {}
    for attention in ("self_attn", "multihead_attn")[: 1 + has_memory]:
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found[f"{attention}.{projection}"] = (width, width)
    found |= {"linear1": (units, width), "linear2": (width, units)}
    found |= {f"norm{i + 1}": (width,) for i in range(2 + has_memory)}
    weights = {f"{name}.weight": shape for name, shape in found.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in found.items()}


def draw(shapes: dict, seed: int, dtype_name: str) -> dict[str, np.ndarray]:
    """Return random parameters: matrices that keep the size of what they map, norms near 1."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        numbers = rng.normal(size=shape)
        if len(shape) == 2 and "embedding" not in name:
            numbers /= np.sqrt(shape[1])
        elif re.search(r"norm\d?\.weight", name):
            numbers = 1 + 0.3 * numbers
        elif name.endswith("bias"):
            numbers *= 0.3
        found[name] = numbers.astype(dtype(dtype_name))
    return found


@dataclass(frozen=True, eq=False)
class ModelCase:
    """One model of a kind; B=3 samples, T=5 targets, S=7 sources, E=14 features, 2 heads of 7."""

    kind: str
    changes: dict = field(default_factory=dict)
    seed: int = 0

    @property
    def config(self) -> dict:
        return CONFIGS[self.kind] | self.changes

    def parameters(self, dtype_name: str = "float32") -> dict[str, np.ndarray]:
        return draw(shapes(self.kind, self.config), self.seed + 7, dtype_name)

    def inputs(self, dtype_name: str = "float32", batch: int = B) -> dict[str, np.ndarray]:
        width = self.config["d_model"]
        return {
            name: normal(self.seed + i, batch, length, width, dtype_name=dtype_name)
            for i, (name, length) in enumerate(INPUTS[self.kind].items())
        }

    def masks(self, inputs: dict, **masks) -> dict:
        """Return the options of every attention; `src=(seen, bias)` where one is not plain."""
        found = {}
        for name, (rows, columns) in ATTENTIONS.items():
            columns = "src" if columns not in inputs else columns
            if rows not in inputs or columns not in inputs:
                continue
            sizes = (*inputs[rows].shape[:1], self.config["nhead"])
            sizes += (inputs[rows].shape[1], inputs[columns].shape[1])
            allowed, bias = masks.get(name, (True, None))
            found[name] = {"allowed": np.broadcast_to(allowed, sizes)}
            if bias is not None:
                found[name]["bias"] = np.broadcast_to(bias, sizes)
        return found

    def expected(self, inputs: dict, parameters: dict | None = None, **masks):
        """Return output and weights, exact and naive, for these inputs and masks."""
        if parameters is None:
            parameters = self.parameters(next(iter(inputs.values())).dtype.name)
        masks = {} if self.kind == "seq2seq" else self.masks(inputs, **masks)
        return expected_layers.layers(self.kind, parameters, self.config, inputs, masks)

    def run(self, subject: Subject, inputs: dict, **options) -> dict[str, np.ndarray]:
        """Run the subject's model with the call's parameters."""
        require(subject, "layers")
        parameters = self.parameters(next(iter(inputs.values())).dtype.name)
        return subject.layer(self.kind, self.config, parameters, inputs, **options)

    def check(
        self, subject: Subject, options: dict | None = None, *, dtype_name="float32", **masks
    ) -> dict[str, np.ndarray]:
        """Run the model, check its output and every attention's weights against the oracle."""
        inputs = self.inputs(dtype_name)
        got = self.run(subject, inputs, need_weights=True, **options or {})
        exact, naive = self.expected(inputs, **masks)
        if set(got) != set(exact):
            raise Differs(f"weights: expected {sorted(exact)}, got {sorted(got)}")
        check_dtype(got["output"], naive["output"].dtype, "output")
        for name in exact:
            compare(got[name], exact[name], naive[name], name)
        return got
