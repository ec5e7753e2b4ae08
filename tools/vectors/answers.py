"""The oracle's answers to changed calls, of which wrong answers are made."""

from dataclasses import replace

import numpy as np

from conformance.oracle import reference
from conformance.vectors.vector import Vector

from . import oracle
from .oracle import Answers, allowed_with_bias


def answer(vector: Vector, allowed: np.ndarray | None = None, **changed) -> Answers:
    """Return the oracle's answer to a changed call: another mask, other options or inputs."""
    wide = vector.widened().settled()
    inputs = wide.inputs | {name: changed.pop(name) for name in wide.inputs.keys() & changed.keys()}
    wide = replace(wide, inputs=inputs)
    options = oracle.options(wide)
    if "bias" in options:  # what it hides is in `visible`
        options["bias"] = np.where(np.isneginf(options["bias"]), 0, options["bias"])
    options |= {"allowed": allowed_with_bias(vector) if allowed is None else allowed} | changed
    if vector.call == "multihead":
        return oracle.laid_out(wide, reference.multihead(*oracle.call_of(wide), **options))
    found = reference.attention(*oracle.call_of(wide), **options)
    found["lse"] = reference.log_sum_exp(found["masked_scores"])
    if "grad" in wide.inputs:
        arguments = (*oracle.call_of(wide), wide.inputs["grad"])
        by_name = reference.gradients(*arguments, grad_lse=wide.inputs.get("grad_lse"), **options)
        found |= {f"grad_{name}": array for name, array in by_name.items()}
    return found
