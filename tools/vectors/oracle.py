"""The first derivation: what the loop oracle says, and how large an error rounding excuses."""

from decimal import ROUND_CEILING, Context

import numpy as np

from conformance.oracle import expected, naive, naive_heads, reference, reference_heads
from conformance.oracle.tolerance import MERGED, allowance, dtype
from conformance.vectors.vector import Vector

Answers = dict[str, np.ndarray]


def derive(vector: Vector) -> Answers:
    """Return every tensor of the answer that can be had, float64 or bool."""
    wide = vector.widened()
    match vector.call:
        case "sequence_mask":
            tokens, padding = vector.inputs["tokens"], vector.settings["padding_idx"]
            return {"mask": np.array([[token == padding for token in row] for row in tokens])}
        case "look_ahead_mask":
            T, S = vector.settings["tgt_len"], vector.settings["src_len"]
            rows = [[0.0 if s <= t else -np.inf for s in range(S)] for t in range(T)]
            return {"mask": np.reshape(np.array(rows, float), (T, S))}
        case "allowed":
            allowed = allowed_cells(vector)
            additive = np.where(allowed, 0.0, -np.inf)
            return {"allowed": allowed, "hidden": ~allowed, "additive": additive}
        case "multihead":
            return _multihead(wide, reference.multihead)
        case "parts":
            return merged(wide)
        case "rotary":
            return turned(wide, reference_heads.process)
    return _attention(wide)


def allowed_cells(vector: Vector) -> np.ndarray:
    """Return what may be seen, bool (B, H, T, S), from the structure and the mask arguments."""
    allowed = reference.allowed(vector.mask, vector.cells, vector.query_offset)
    hidden = vector.inputs.get("key_padding_mask")
    if hidden is not None:
        allowed = allowed & ~hidden[:, None, None]
    given = vector.inputs.get("attn_mask")
    if given is not None and given.dtype == bool:
        allowed = allowed & ~spread(given, vector.cells)
    return allowed


def allowed_with_bias(vector: Vector) -> np.ndarray:
    """Return what may be seen, bool (..., T, S); what a bias hides or no piece has is not."""
    if vector.call in ("sequence_mask", "look_ahead_mask"):
        mask = derive(vector)["mask"]
        return ~mask if mask.dtype == bool else mask == 0
    bias = options(vector.widened()).get("bias")
    allowed = allowed_cells(vector)
    if vector.call == "parts":
        columns = [s for piece in vector.settings["pieces"] for s in piece]
        allowed = allowed & np.isin(np.arange(allowed.shape[3]), columns)
    return allowed if bias is None else allowed & ~np.isneginf(bias)


def spread(mask: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Spread an attn_mask of rank 2, 3 (B*H, T, S) or 4 over (B, H, T, S)."""
    return np.broadcast_to(mask.reshape(sizes) if mask.ndim == 3 else mask, sizes)


def options(vector: Vector) -> dict:
    """Return the options of the oracle's call, the mask apart."""
    found: dict = {"empty_rows": vector.empty_rows, "bias": vector.inputs.get("bias")}
    found["sinks"] = vector.inputs.get("sinks")
    given = vector.inputs.get("attn_mask")
    if given is not None and given.dtype != bool:
        found["bias"] = spread(given, vector.cells)
    if vector.call in ("attention", "parts"):
        found |= {"scale": vector.scale, "softcap": vector.softcap}
    elif vector.call == "multihead":
        found |= {name: vector.settings.get(name) for name in ("scale", "softcap")}
        if "process_heads" in vector.settings:
            places = np.arange(vector.sizes["T"])[None]
            found |= {"process": vector.settings["process_heads"]}
            found |= {"query_places": places, "key_places": places}
    return {name: value for name, value in found.items() if value is not None}


def call_of(vector: Vector) -> tuple:
    """Return the arguments of a call: query, key, value, and what multi-head attention needs."""
    inputs = [vector.inputs[name] for name in ("query", "key", "value")]
    if vector.call in ("attention", "parts"):
        return tuple(inputs)
    if not vector.settings["batch_first"]:
        inputs = [x.swapaxes(0, 1) for x in inputs]
    heads = vector.settings["num_heads"]
    return (vector.parameters, heads, vector.settings.get("num_kv_heads", heads), *inputs)


def _attention(vector: Vector) -> Answers:
    clean, allowed, sees = vector.settled(), allowed_cells(vector), allowed_with_bias(vector)
    found = reference.attention(*call_of(clean), allowed=allowed, **options(clean))
    found = {name: found[name] for name in ("weights", "output")}
    group = allowed.shape[1] // vector.inputs["key"].shape[1]
    query, key, value = (~np.isfinite(x).all(-1) for x in call_of(vector))
    key, value = (sees & x.repeat(group, 1)[:, :, None] for x in (key, value))
    query |= ~(vector.inputs.get("sinks", np.zeros(1)) < np.inf)[:, None]
    lost = key.any(-1) | (sees.any(-1) & query)  # the rows of which NaN is made
    found["weights"][lost[..., None] & sees] = np.nan
    found["output"][lost | value.any(-1)] = np.nan
    if "grad" in vector.inputs:
        arguments = (*call_of(clean), vector.inputs["grad"])
        by_name = reference.gradients(*arguments, allowed=allowed, **options(clean))
        found |= {f"grad_{name}": array for name, array in by_name.items()}
    return found


def merged(vector: Vector) -> Answers:
    """Return what all the pieces' keys give at once, and the log-sum-exp without a sink."""
    given = options(vector) | {"allowed": allowed_with_bias(vector)}
    steps = reference.attention(*call_of(vector), **given)
    found = {"output": steps["output"], "weights": steps["weights"]}
    found["lse"] = reference.log_sum_exp(steps["masked_scores"])
    if "grad" in vector.inputs:
        arguments = (*call_of(vector), vector.inputs["grad"])
        by_name = reference.gradients(*arguments, grad_lse=vector.inputs["grad_lse"], **given)
        found |= {f"grad_{name}": array for name, array in by_name.items()}
    return found


def turned(vector: Vector, process, *more) -> Answers:
    """Return query and key as rotary embeddings turn them."""
    spec, places = {"class": "rotary"} | vector.settings, vector.inputs["positions"]
    return {
        f"turned_{name}": process({}, spec, name[0], vector.inputs[name], places, *more)
        for name in ("query", "key")
    }


def _multihead(vector: Vector, call, **given) -> Answers:
    found = call(*call_of(vector), **{"allowed": allowed_cells(vector)} | options(vector) | given)
    return laid_out(vector, found)


def laid_out(vector: Vector, found: Answers) -> Answers:
    """Return the answers of multi-head attention in the call's own layout."""
    output, weights = found["output"], found["weights"]
    if not vector.settings["batch_first"]:
        output = output.swapaxes(0, 1)
    return {"output": output, "weights": weights, "mean_weights": weights.mean(1)}


def allowances(vector: Vector, exact: Answers) -> dict[str, dict[str, float]]:
    """Return the allowed error of what is `close`, in every dtype, by the suite's rule."""
    found: dict[str, dict[str, float]] = {name: {} for name in exact}
    roundings = MERGED if vector.call == "parts" else 2
    for name in vector.dtypes:
        own = vector.settled().cast(name)
        more = _cancelled(own)
        for tensor, rough in naive_answers(own, exact).items():
            covered = _covered(vector, tensor, rough.shape)
            kind = dtype("float32" if tensor == "lse" and dtype(name).itemsize < 4 else name)
            rough = rough.astype(kind)[covered]
            allowed = allowance(exact[tensor][covered], rough, kind, roundings)
            found[tensor][name] = up(allowed + more.get(tensor, 0.0))
    return found


def _cancelled(vector: Vector) -> dict[str, float]:
    """Return by what else the gradients of parts may miss."""
    if vector.call != "parts" or "grad" not in vector.inputs:
        return {}
    given = {"allowed": allowed_with_bias(vector), "grad_lse": vector.inputs["grad_lse"]}
    query, key, value = call_of(vector)
    own = options(vector) | given
    found = expected.cancelled(query, key, value, vector.inputs["grad"], **own)
    return {f"grad_{name}": error for name, error in found.items()}


def _covered(vector: Vector, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return where some part says that a tensor is close to a number."""
    covered = np.zeros(shape, bool)
    for part in vector.expect:
        kinds = {part.kind, *(other.kind for other in part.alternatives.values())}
        if part.tensor == tensor and "close" in kinds:
            covered |= part.everywhere(shape)
    return covered


def naive_answers(vector: Vector, exact: Answers) -> Answers:
    """Return the naive formula's answers in the dtype that the vector has been cast to."""
    if vector.call == "rotary":
        ways = [turned(vector, naive_heads.process, folded) for folded in (False, True)]
        return {name: _furthest([way[name] for way in ways], exact[name]) for name in exact}
    given = {"allowed": allowed_cells(vector)} | options(vector)
    if vector.call == "multihead":
        return laid_out(vector, expected.multihead(*call_of(vector), **given)[1])
    if vector.call == "parts":
        given["allowed"] = allowed_with_bias(vector)
    rough = expected.attention(*call_of(vector), **given)[1]
    found = {name: rough[name] for name in ("weights", "output")}
    if vector.call == "parts":
        found["lse"] = naive.log_sum_exp(rough["masked_scores"])
    if "grad" in vector.inputs:
        arguments = (*call_of(vector), vector.inputs["grad"])
        if "grad_lse" in vector.inputs:
            given["grad_lse"] = vector.inputs["grad_lse"]
        by_name = expected.gradients(*arguments, **given)[1]
        found |= {f"grad_{name}": array for name, array in by_name.items()}
    return found


def _furthest(answers: list[np.ndarray], exact: np.ndarray) -> np.ndarray:
    return max(answers, key=lambda x: np.abs(x.astype(np.float64) - exact).max(initial=0.0))


def up(number: float) -> float:
    """Round up to three digits.

    >>> up(1.23401e-06)
    1.24e-06
    """
    return float(Context(prec=3, rounding=ROUND_CEILING).create_decimal(number))
