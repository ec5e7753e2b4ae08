"""Putting a vector to a subject: the call that it makes, and the tensors of the answer."""

from dataclasses import replace
from functools import partial

import numpy as np

from ..mask_spec import allow
from ..oracle.tolerance import Differs
from ..subjects.protocol import NotOffered, Subject, require
from .check_answer import Refused
from .vector import Vector

NEEDS = {
    "attention": "attention",
    "multihead": "multihead",
    "parts": "parts",
    "rotary": "process_heads",
    "allowed": "masks",
    "sequence_mask": "masks",
    "look_ahead_mask": "masks",
}

WEIGHTS = {"weights", "mean_weights"}
# Clauses of which an output alone says too little.
ABOUT_WEIGHTS = ("ATT-2", "EMPTY-3", "MHA-5", "DOC-A5")

Answers = dict[str, np.ndarray]


def offered(subject: Subject, vector: Vector) -> Vector:
    """Return the vector without the weights, for a subject that has none to show.

    Raises NotOffered where nothing else is left, or the clause is about them.
    """
    own = {"weights"} if vector.call == "multihead" else {"weights", "steps"}
    kept = [part for part in vector.expect if part.tensor not in WEIGHTS]
    if subject.capabilities & own or len(kept) == len(vector.expect):
        return vector
    if not kept or vector.clause in ABOUT_WEIGHTS:
        require(subject, "weights")
    return replace(vector, expect=tuple(kept))


def run_vector(subject: Subject, vector: Vector, dtype: str) -> Answers | Refused:
    """Return a subject's answer in a dtype: arrays by the tensors' names, or its refusal.

    An error is a refusal only where the vector wants one: a ValueError or a TypeError where the
    contract's errors are offered, any elsewhere.
    """
    require(subject, NEEDS[vector.call])
    ask = {
        "attention": attention,
        "multihead": multihead,
        "parts": parts,
        "rotary": rotary,
        "allowed": allowed,
        "sequence_mask": sequence_mask,
        "look_ahead_mask": look_ahead_mask,
    }[vector.call]
    if not vector.refused:
        return ask(subject, vector.cast(dtype), {part.tensor for part in vector.expect})
    try:
        return ask(subject, vector.cast(dtype), {""})
    except (NotOffered, Differs):
        raise
    except Exception as error:
        if "errors" in subject.capabilities and not isinstance(error, ValueError | TypeError):
            raise
        refusal = Refused(str(error))
        refusal.__cause__ = error
        return refusal


def options(vector: Vector) -> dict:
    """Return the options of a call that are not left out."""
    offset = vector.query_offset
    found = {
        "mask": vector.mask,
        "query_offset": np.array(offset) if isinstance(offset, list) else offset,
        "bias": vector.inputs.get("bias"),
        "sinks": vector.inputs.get("sinks"),
        "scale": vector.scale,
        "softcap": vector.softcap,
    }
    return {name: value for name, value in found.items() if value is not None}


def attention(subject: Subject, vector: Vector, wanted: set[str]) -> Answers:
    query, key, value = (vector.inputs[name] for name in ("query", "key", "value"))
    given = options(vector) | {"empty_rows": vector.empty_rows}
    answer: Answers = {}
    if wanted & {"output", ""}:
        answer["output"] = subject.attention(query, key, value, **given)
    if "weights" in wanted:
        answer["weights"] = subject.steps(query, key, value, **given)["weights"]
    if any(name.startswith("grad_") for name in wanted):
        require(subject, "gradients")
        found = subject.gradients(query, key, value, vector.inputs["grad"], **given)
        answer |= {f"grad_{name}": array for name, array in found.items()}
    return answer


def parts(subject: Subject, vector: Vector, wanted: set[str]) -> Answers:
    """Attend to each piece of the keys alone, and merge what comes of them."""
    query, sinks = vector.inputs["query"], vector.inputs.get("sinks")
    columns = [np.array(piece, int) for piece in vector.settings["pieces"]]
    pieces = [piece_of(vector, own) for own in columns]
    finish = {"empty_rows": vector.empty_rows} | ({} if sinks is None else {"sinks": sinks})
    answer = subject.merged(query, pieces, **finish)
    if any(name.startswith("grad_") for name in wanted):
        require(subject, "gradients")
        grads = {"output": vector.inputs["grad"], "lse": vector.inputs["grad_lse"]}
        found = subject.merged_gradients(query, pieces, grads)
        answer["grad_query"] = found["query"]
        order = np.argsort(np.concatenate(columns))
        for name in ("key", "value"):
            answer[f"grad_{name}"] = np.concatenate(found[name], 2)[:, :, order]
    return answer


def piece_of(vector: Vector, columns: np.ndarray) -> dict:
    """Return what attention to some of the keys takes: they, their cells and the options."""
    given = {name: x for name, x in options(vector).items() if name in ("scale", "softcap")}
    given |= {name: vector.inputs[name][:, :, columns] for name in ("key", "value")}
    if vector.seen is not None:
        given["mask"] = allow(vector.seen[..., columns])
    if "bias" in vector.inputs:
        given["bias"] = vector.inputs["bias"][..., columns]
    return given


def rotary(subject: Subject, vector: Vector, wanted: set[str]) -> Answers:
    spec = {"class": "rotary"} | vector.settings
    heads = (vector.inputs[name] for name in ("query", "key", "positions"))
    turned = subject.processed(spec, *heads)
    return dict(zip(("turned_query", "turned_key"), turned, strict=True))


def multihead(subject: Subject, vector: Vector, wanted: set[str]) -> Answers:
    # heads that go by positions are for self-attention, which gets its tokens once
    names = ("query",) if "process_heads" in vector.settings else ("query", "key", "value")
    inputs = [vector.inputs[name] for name in names]
    masks = {name: vector.inputs.get(name) for name in ("key_padding_mask", "attn_mask")}
    given = {name: mask for name, mask in masks.items() if mask is not None} | options(vector)
    if "mask" in given:
        given["attn_mask"] = given.pop("mask")
    config = vector.settings | {"empty_rows": vector.empty_rows}
    call = partial(subject.multihead, config, vector.parameters, *inputs, **given)
    answer: Answers = {}
    answer["output"], answer["weights"] = call(average_weights=False)
    if "mean_weights" in wanted:
        answer["output"], answer["mean_weights"] = call(average_weights=True)
    return answer


def allowed(subject: Subject, vector: Vector, wanted: set[str]) -> Answers:
    if vector.mask is None:
        raise KeyError(f"a vector that asks a mask has one: got {vector.id}")
    B, H, T, S = vector.cells
    given = {"batch": B, "heads": H, "query_offset": options(vector).get("query_offset")}
    forms = sorted(wanted - {""}) or ["allowed"]
    found = {form: subject.ask(form, vector.mask, T, S, **given) for form in forms}
    return {form: np.broadcast_to(array, vector.cells) for form, array in found.items()}


def sequence_mask(subject: Subject, vector: Vector, wanted: set[str]) -> Answers:
    tokens, padding = vector.inputs["tokens"], vector.settings["padding_idx"]
    return {"mask": subject.sequence_mask(tokens, padding)}


def look_ahead_mask(subject: Subject, vector: Vector, wanted: set[str]) -> Answers:
    return {"mask": subject.look_ahead_mask(*(vector.settings[n] for n in ("tgt_len", "src_len")))}
