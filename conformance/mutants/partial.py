"""Mistakes in parts of a call: how they are made, how they merge, and their gradients."""

import numpy as np

from .mutant import breaks


def _each(right, query, pieces, options) -> list[dict]:
    """Return what each piece alone gives, in the order of the pieces."""
    flat: list[dict] = []
    for piece in pieces:
        flat += (
            _each(right, query, piece, options)
            if isinstance(piece, list)
            else [right(query, [piece], **options)]
        )
    return flat


def _finished(right, query, pieces, options, sums, maximum, total) -> dict:
    """Return a merged part and its output, made of arrays."""
    found = right(query, pieces, **options)
    empty = 1.0 if options.get("empty_rows", "zero") == "zero" else np.nan
    divisor = np.where(np.isneginf(maximum), empty, total)
    output = (sums / divisor[..., None]).astype(found["output"].dtype)
    lse = maximum + np.log(np.where(np.isneginf(maximum), 1, total))
    return {"sums": sums, "maximum": maximum, "total": total, "lse": lse, "output": output}


@breaks("merged", "ATT-16")
def log_sum_exp_alone(right, query, pieces, **options):
    """Parts are an output and a log-sum-exp, which beside -1e30 forgets how many keys there are."""
    parts = _each(right, query, pieces, options)
    top = np.max([part["lse"] for part in parts], 0)
    base = np.where(np.isneginf(top), 0, top)
    shares = [np.exp(part["lse"] - base) for part in parts]
    total = np.sum(shares, 0)
    outputs = [np.nan_to_num(part["output"]).astype(total.dtype) for part in parts]
    sums = sum(share[..., None] * x for share, x in zip(shares, outputs, strict=True))
    return _finished(right, query, pieces, options, sums, top, total)


@breaks("merged", "ATT-16")
def two_empty_parts_are_nan(right, query, pieces, **options):
    """Where a row is fully masked in every part, -inf is taken from -inf."""
    found = right(query, pieces, **options)
    rows = np.isneginf(found["maximum"])[..., None] & (len(pieces) > 1)
    return found | {"output": np.where(rows, np.nan, found["output"]).astype(found["output"].dtype)}


@breaks("merged", "ATT-16")
def maximum_forgotten(right, query, pieces, **options):
    """Sums and totals are added, each below a maximum of its own."""
    parts = _each(right, query, pieces, options)
    sums, total = (np.sum([part[name] for part in parts], 0) for name in ("sums", "total"))
    top = np.max([part["maximum"] for part in parts], 0)
    return _finished(right, query, pieces, options, sums, top, total)


@breaks("merged", "ATT-16")
def first_part_leads(right, query, pieces, **options):
    """All is scaled to the maximum of the part that comes first, so that the order matters."""
    parts = _each(right, query, pieces, options)
    top = parts[0]["maximum"]
    shares = [np.exp(part["maximum"] - top) for part in parts]
    total = sum(share * part["total"] for share, part in zip(shares, parts, strict=True))
    sums = sum(share[..., None] * x["sums"] for share, x in zip(shares, parts, strict=True))
    return _finished(right, query, pieces, options, sums, top, total)


@breaks("merged", "ATT-16")
def empty_part_counts(right, query, pieces, **options):
    """A fully masked row of a part counts as one key, the exponent of 0."""
    found = right(query, pieces, **options)
    parts = _each(right, query, pieces, options)
    more = np.sum([np.isneginf(part["maximum"]) for part in parts], 0)
    total = (found["total"] + more).astype(found["total"].dtype)
    return _finished(right, query, pieces, options, found["sums"], found["maximum"], total)


@breaks("merged", "ATT-16")
def parts_of_16_bits(right, query, pieces, **options):
    """A part has the dtype of its inputs, so that it is rounded before it is merged."""
    found = right(query, pieces, **options)
    return {name: array.astype(query.dtype) for name, array in found.items()}


@breaks("merged", "ATT-16")
def overflowed_part_is_empty(right, query, pieces, **options):
    """A row whose every logit overflows to -inf is taken for a fully masked one."""
    found = right(query, pieces, **options)
    lost = (found["maximum"] == np.finfo(found["maximum"].dtype).min)[..., None]
    return found | {"output": np.where(lost, 0, found["output"]).astype(found["output"].dtype)}


@breaks("merged", "ATT-16")
def fully_masked_is_always_zero(right, query, pieces, *, empty_rows="zero", **options):
    """A fully masked row is 0, whatever is asked for."""
    return right(query, pieces, **options)


@breaks("merged_gradients", "ATT-16", base="torch")
def pieces_differentiated_alone(right, query, pieces, grads, **options):
    """Each piece's gradients are those of a call of its keys alone, without its share."""
    alone = [right(query, [piece], grads, **options) for piece in pieces]
    found = {n: [one[n][0] for one in alone] for n in alone[0] if n != "query"}
    total = np.sum([one["query"].astype(np.float64) for one in alone], 0)
    return found | {"query": total.astype(query.dtype)}


@breaks("merged_gradients", "ATT-16", base="torch")
def log_sum_exp_without_gradient(right, query, pieces, grads, **options):
    """The gradient of the log-sum-exp is lost."""
    if "output" not in grads:
        return right(query, pieces, grads, **options)
    return right(query, pieces, {"output": grads["output"]}, **options)
