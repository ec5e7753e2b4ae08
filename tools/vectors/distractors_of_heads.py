"""Wrong answers of what happens to heads: rotary embeddings, QK-norm, a width of their own."""

from dataclasses import replace

import numpy as np

from conformance.vectors.vector import Vector

from . import oracle
from .answers import Answers, answer


def with_rotary(vector: Vector, **changed) -> Answers:
    """Return the answer with other settings of the rotary embeddings, wherever they stand."""
    if vector.call == "rotary":
        return oracle.derive(replace(vector, settings=vector.settings | changed))
    spec = dict(vector.settings["process_heads"])
    own = spec if spec["class"] == "rotary" else dict(spec["then"])
    own |= changed
    spec |= {} if spec["class"] == "rotary" else {"then": own}
    return with_process(vector, own if spec["class"] == "rotary" else spec)


def with_process(vector: Vector, spec: dict | None) -> Answers:
    settings = {n: x for n, x in vector.settings.items() if n != "process_heads"}
    settings |= {} if spec is None else {"process_heads": spec}
    return answer(replace(vector, settings=settings))


def pairs_of_the_other_kind(vector: Vector) -> Answers:
    """Neighbours are turned where halves should be, or halves for neighbours."""
    spec = vector.settings.get("process_heads", vector.settings)
    spec = spec.get("then", spec)
    return with_rotary(vector, interleaved=not spec.get("interleaved", False))


def turned_back(vector: Vector) -> Answers:
    places = {"positions": -vector.inputs["positions"]}
    return oracle.derive(replace(vector, inputs=vector.inputs | places))


def not_turned(vector: Vector) -> Answers:
    return {f"turned_{name}": vector.inputs[name] for name in ("query", "key")}


def one_samples_positions(vector: Vector) -> Answers:
    """All samples have the positions of the first."""
    places = vector.inputs["positions"]
    own = {"positions": np.broadcast_to(places[:1], places.shape)}
    return oracle.derive(replace(vector, inputs=vector.inputs | own))


def frequencies_of_the_whole_head(vector: Vector) -> Answers:
    """Part of the head is turned, by the frequencies that a whole one would begin with."""
    dim, base = vector.settings["dim"], vector.settings.get("base", 10000.0)
    steps = [base ** (-2 * i / vector.sizes["D"]) for i in range(dim // 2)]
    return with_rotary(vector, frequencies=steps)


def all_features_turned(vector: Vector) -> Answers:
    return with_rotary(vector, dim=vector.sizes["D"])


def positions_unscaled(vector: Vector) -> Answers:
    return with_rotary(vector, scale=1.0)


def positions_multiplied(vector: Vector) -> Answers:
    return with_rotary(vector, scale=1 / vector.settings["scale"])


def usual_frequencies(vector: Vector) -> Answers:
    settings = {n: x for n, x in vector.settings.items() if n != "frequencies"}
    dim = 2 * len(vector.settings["frequencies"])
    return oracle.derive(replace(vector, settings=settings | {"dim": dim}))


def heads_as_they_are(vector: Vector) -> Answers:
    return with_process(vector, None)


def norm_without_weights(vector: Vector) -> Answers:
    ones = {n: np.ones_like(x) for n, x in vector.parameters.items() if "_norm." in n}
    return answer(replace(vector, parameters=vector.parameters | ones))


def norms_exchanged(vector: Vector) -> Answers:
    names = [f"process_heads.{role}_norm.weight" for role in "qk"]
    other = dict(zip(names, (vector.parameters[name] for name in names[::-1]), strict=True))
    return answer(replace(vector, parameters=vector.parameters | other))


def rotary_forgotten(vector: Vector) -> Answers:
    spec = vector.settings["process_heads"]
    return with_process(vector, {n: x for n, x in spec.items() if n != "then"})


def scaled_by_the_embedding(vector: Vector) -> Answers:
    """The scale is that of heads of embed_dim / num_heads features."""
    settings = vector.settings
    return answer(vector, scale=(settings["embed_dim"] / settings["num_heads"]) ** -0.5)


def sinks_left_out(vector: Vector) -> Answers:
    kept = {name: x for name, x in vector.parameters.items() if name != "sinks"}
    return answer(replace(vector, parameters=kept))


ALL = (
    pairs_of_the_other_kind, turned_back, not_turned, one_samples_positions,
    frequencies_of_the_whole_head, all_features_turned, positions_unscaled, positions_multiplied,
    usual_frequencies, heads_as_they_are, norm_without_weights, norms_exchanged, rotary_forgotten,
    scaled_by_the_embedding, sinks_left_out,
)  # fmt: skip
