"""The second derivation of masks: for each query the set of keys it sees, by sets and ranges.

It shares nothing with `reference.is_allowed`, which asks about one cell at a time.
"""

import numpy as np

from conformance.mask_spec import Spec
from conformance.vectors.vector import Vector


def allowed_cells(vector: Vector) -> np.ndarray:
    """Return what may be seen, bool (B, H, T, S)."""
    B, H, T, S = vector.cells
    offsets = vector.query_offset
    offsets = [offsets or 0] * B if isinstance(offsets, int | None) else offsets
    allowed = np.zeros((B, H, T, S), bool)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                keys = set(range(S))
                if vector.mask is not None:
                    keys &= allowed_keys(vector.mask, (b, h, t), offsets[b], S)
                keys -= hidden_by_arguments(vector, b, h, t)
                allowed[b, h, t, sorted(keys)] = True
    return allowed


def allowed_keys(spec: Spec, query: tuple[int, int, int], offset: int, size: int) -> set[int]:
    """Return the keys that the query (sample, head, row) sees among `size` keys."""
    keys, (sample, head, row) = set(range(size)), query
    if spec.kind == "part":
        return _part(spec, query)
    parts = [allowed_keys(part, query, offset, size) for part in spec.parts]
    own, upto = row + offset, range(row + offset + 1)
    tables = {name: _of(table, sample) for name, table in spec.arguments.items()}
    match spec.kind:
        case "and":
            return set.intersection(*parts)
        case "or":
            return set.union(*parts)
        case "not":
            return keys.difference(*parts)
        case "causal":
            return keys.intersection(upto)
        case "sliding_window":
            return keys.intersection(range(own - tables["before"], own + tables["after"] + 1))
        case "chunked":
            first = own // tables["size"] * tables["size"]
            return keys.intersection(range(first, first + tables["size"]))
        case "prefix":
            return keys.intersection({*upto, *range(tables["lengths"])})
        case "padding" if "lengths" in tables:
            return keys.intersection(range(tables["lengths"]))
        case "padding":
            return keys.difference(_places(tables["hidden"]))
        case "segments":
            return _segment(tables, row, own)
        case "packed":
            ends = [0, *(int(end) for end in np.cumsum(tables["lengths"]))]
            documents = map(range, ends, ends[1:])
            return next((keys.intersection(span) for span in documents if own in span), set())
        case "allow":
            return _places(_of(tables["array"], head)[row])
        case "hide":
            return keys.difference(_places(_of(tables["array"], head)[row]))
    raise ValueError(f"a mask that data can express: got {spec.kind}")


def _part(spec: Spec, query: tuple[int, int, int]) -> set[int]:
    """Return the keys of a part: where those stand that the whole call's row sees."""
    sample, head, row = query
    rows, columns = (spec.arguments[name].tolist() for name in ("rows", "columns"))
    offset = int(_of(np.ravel(spec.arguments["query_offset"]), sample))
    whole = allowed_keys(spec.parts[0], (sample, head, rows[row]), offset, max(columns) + 1)
    return {s for s, column in enumerate(columns) if column in whole}


def _segment(tables: dict, row: int, own: int) -> set[int]:
    """Return the keys whose id is the query's; a position beyond the ids has none."""
    by_id: dict[int, set[int]] = {}
    for key, id in enumerate(tables.get("key_ids", tables["query_ids"])):
        by_id.setdefault(int(id), set()).add(key)
    if "key_ids" in tables:
        return by_id.get(int(tables["query_ids"][row]), set())
    ids = dict(enumerate(tables["query_ids"]))
    return by_id[int(ids[own])] if own in ids else set()


def _of(table, index: int):
    """Return the entry of a sample or head; one of its axes' length is for all of them."""
    if np.ndim(table) == 0:
        return table
    return table[min(index, len(table) - 1)]


def _places(flags) -> set[int]:
    return {place for place, flag in enumerate(flags) if flag}


def hidden_by_arguments(vector: Vector, sample: int, head: int, row: int) -> set[int]:
    """Return the keys that multi-head attention's own mask arguments hide from a query."""
    hidden: set[int] = set()
    if "key_padding_mask" in vector.inputs:
        hidden |= _places(vector.inputs["key_padding_mask"][sample])
    mask = vector.inputs.get("attn_mask")
    if mask is not None and mask.dtype == bool:
        hidden |= _places(argument_row(mask, vector.sizes["H"], sample, head, row))
    return hidden


def argument_row(mask: np.ndarray, heads: int, sample: int, head: int, row: int) -> np.ndarray:
    """Return one query's row of an attn_mask: rank 2, 3 (sample-major) or 4."""
    if mask.ndim == 2:
        return mask[row]
    if mask.ndim == 3:
        return mask[sample * heads + head, row]
    return _of(_of(mask, sample), head)[row]


def added(vector: Vector) -> np.ndarray | None:
    """Return an additive attn_mask, spread over (B, H, T, S)."""
    mask = vector.inputs.get("attn_mask")
    if mask is None or mask.dtype == bool:
        return None
    B, H, T, S = vector.cells
    rows = [argument_row(mask, H, b, h, t) for b in range(B) for h in range(H) for t in range(T)]
    return np.array(rows).reshape(B, H, T, S)


def built(vector: Vector) -> np.ndarray:
    """Return what the documents' mask builders give, row by row."""
    if vector.call == "look_ahead_mask":
        T, S = vector.settings["tgt_len"], vector.settings["src_len"]
        zeros = [min(t + 1, S) for t in range(T)]
        return np.array([[0.0] * n + [-np.inf] * (S - n) for n in zeros]).reshape(T, S)
    mask = np.zeros(vector.inputs["tokens"].shape, bool)
    for row, tokens in zip(mask, vector.inputs["tokens"].tolist(), strict=True):
        places: dict[int, list[int]] = {}
        for place, token in enumerate(tokens):
            places.setdefault(token, []).append(place)
        row[places.get(vector.settings["padding_idx"], [])] = True
    return mask
