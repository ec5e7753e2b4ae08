"""Wrong answers of calls with sinks, and of parts that are merged."""

from dataclasses import replace

import numpy as np

from conformance.vectors.vector import Vector

from . import oracle
from .answers import Answers, answer


def sinks_forgotten(vector: Vector) -> Answers:
    nothing = {"grad_sinks": np.zeros_like(vector.inputs["sinks"])}
    return nothing | answer(vector, sinks=None)


def sinks_forgotten_backward(vector: Vector) -> Answers:
    """Query, key and value get the gradients of a call without sinks."""
    found, wrong = answer(vector), answer(vector, sinks=None)
    return found | {name: x for name, x in wrong.items() if name.startswith("grad_")}


def sinks_capped(vector: Vector) -> Answers:
    cap = vector.softcap
    return answer(vector, sinks=cap * np.tanh(vector.inputs["sinks"] / cap))


def sinks_scaled(vector: Vector) -> Answers:
    return answer(vector, sinks=vector.inputs["sinks"] * vector.sizes["D"] ** -0.5)


def sinks_turned(vector: Vector) -> Answers:
    """Each head has the next one's sink."""
    return answer(vector, sinks=np.roll(vector.inputs["sinks"], 1))


def sink_in_the_log_sum_exp(vector: Vector) -> Answers:
    found, sinks = answer(vector), vector.inputs["sinks"][:, None]
    return found | {"lse": np.logaddexp(found["lse"], sinks)}


def parts_of(vector: Vector) -> list[Answers]:
    """Return what each piece gives alone."""
    pieces = vector.settings["pieces"]
    return [answer(replace(vector, settings={"pieces": [piece]})) for piece in pieces]


def parts_averaged(vector: Vector) -> Answers:
    found = [part["output"] for part in parts_of(vector)]
    return answer(vector) | {"output": np.mean(found, axis=0)}


def masked_parts_counted(vector: Vector) -> Answers:
    """A part in which a row is fully masked has a log-sum-exp of 0 there, not of -inf."""
    parts = parts_of(vector)
    lse = np.stack([np.where(np.isneginf(part["lse"]), 0, part["lse"]) for part in parts])
    shares = np.exp(lse) / np.exp(lse).sum(0)
    outputs = np.stack([part["output"] for part in parts])
    return answer(vector) | {"output": (shares[..., None] * outputs).sum(0)}


def gradient_of_lse_forgotten(vector: Vector) -> Answers:
    return answer(vector, grad_lse=np.zeros_like(vector.inputs["grad_lse"]))


def keys_of_no_piece(vector: Vector) -> Answers:
    """All keys that the mask allows, those of no piece too."""
    return answer(vector, oracle.allowed_cells(vector))


ALL = (
    sinks_forgotten, sinks_forgotten_backward, sinks_capped, sinks_scaled, sinks_turned,
    sink_in_the_log_sum_exp, parts_averaged, masked_parts_counted, gradient_of_lse_forgotten,
    keys_of_no_piece,
)  # fmt: skip
