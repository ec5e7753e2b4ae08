"""Wrong answers that a vector must tell from the right one: what a mistake would have given.

Four go for every vector with weights; a vector names others that its own clause is about.
"""

from dataclasses import replace

import numpy as np

from conformance.vectors.vector import Vector

from . import distractors_of_heads, distractors_of_sinks, oracle
from .answers import Answers, answer
from .oracle import allowed_with_bias


def column_by_column(mask: np.ndarray) -> np.ndarray:
    """Read the cells of each mask, stored row by row, as if they were stored column by column.

    Where T == S that is the transposed mask; where not, it still has every cell once.
    """
    *outer, T, S = mask.shape
    return mask.reshape(*outer, S, T).swapaxes(-1, -2)


def unmasked(vector: Vector) -> Answers:
    return answer(vector, np.ones_like(allowed_with_bias(vector)))


def transposed(vector: Vector) -> Answers:
    return answer(vector, column_by_column(allowed_with_bias(vector)))


def uniform(vector: Vector) -> Answers:
    """Every visible key alike."""
    bias = oracle.options(vector.widened()).get("bias")
    return answer(vector, scale=0.0, **({} if bias is None else {"bias": np.zeros_like(bias)}))


def unscaled(vector: Vector) -> Answers:
    return answer(vector, scale=1.0)


def scaled_by_the_values_width(vector: Vector) -> Answers:
    return answer(vector, scale=vector.sizes["D_v"] ** -0.5)


def bias_forgotten(vector: Vector) -> Answers:
    bias = oracle.options(vector.widened())["bias"]
    return answer(vector, bias=np.zeros_like(bias))


def heads_tiled(vector: Vector) -> Answers:
    """Query head h reads key/value head h % H_kv."""
    group = vector.sizes["H"] // vector.sizes["H_kv"]
    tiled = {name: np.tile(vector.inputs[name], (1, group, 1, 1)) for name in ("key", "value")}
    found = answer(vector, **tiled)
    for name in ("grad_key", "grad_value"):
        if name in found:
            parts = np.split(found[name], group, 1)
            found[name] = np.sum(parts, 0)
    return found


def softcap_after_the_bias(vector: Vector) -> Answers:
    wide, cap = vector.widened(), vector.softcap
    plain = answer(vector, softcap=None)["scores"]
    total = plain + np.where(np.isneginf(wide.inputs["bias"]), 0, wide.inputs["bias"])
    return answer(vector, softcap=None, bias=cap * np.tanh(total / cap) - plain)


def softcap_forgotten(vector: Vector) -> Answers:
    return answer(vector, softcap=None)


def offset_of_zero(vector: Vector) -> Answers:
    return answer(vector, oracle.allowed_cells(replace(vector, query_offset=0)))


def offset_of_the_end(vector: Vector) -> Answers:
    last = vector.sizes["S"] - vector.sizes["T"]
    return answer(vector, oracle.allowed_cells(replace(vector, query_offset=last)))


def heads_interleaved(vector: Vector) -> Answers:
    """Head h takes every H-th feature instead of a run of neighbours."""
    heads, embed = vector.settings["num_heads"], vector.settings["embed_dim"]
    order = np.arange(embed).reshape(-1, heads).T.ravel()
    parameters = dict(vector.parameters)
    for name in parameters:
        if name.startswith("out_proj"):
            continue
        parameters[name] = parameters[name][order]
    parameters["out_proj.weight"] = parameters["out_proj.weight"][:, order]
    return answer(replace(vector, parameters=parameters))


def last_map_forgotten(vector: Vector) -> Answers:
    parameters = {n: x for n, x in vector.parameters.items() if n != "out_proj.bias"}
    parameters["out_proj.weight"] = np.eye(vector.settings["embed_dim"])
    return answer(replace(vector, parameters=parameters))


def padded_queries_zeroed(vector: Vector) -> Answers:
    found, padded = answer(vector), vector.inputs["key_padding_mask"]
    return found | {"output": np.where(padded[..., None], 0, found["output"])}


def uniform_rows(vector: Vector) -> Answers:
    return answer(vector, empty_rows="uniform")


ALWAYS = {f.__name__: f for f in (unmasked, transposed, uniform, unscaled)}
OTHERS = {
    f.__name__: f
    for f in (
        scaled_by_the_values_width,
        bias_forgotten,
        heads_tiled,
        softcap_after_the_bias,
        softcap_forgotten,
        offset_of_zero,
        offset_of_the_end,
        heads_interleaved,
        last_map_forgotten,
        padded_queries_zeroed,
        uniform_rows,
        *distractors_of_heads.ALL,
        *distractors_of_sinks.ALL,
    )
}
