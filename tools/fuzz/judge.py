"""What a call should give, and whether a backend gives it."""

from collections.abc import Iterator

import numpy as np

from conformance.mask_spec import Spec
from conformance.oracle import expected, naive
from conformance.oracle.tolerance import MERGED, Differs, check_dtype, check_each, compare, eps

from .calls import RandomCall
from .parts import Split, more_of

SHUFFLES = 8  # of sixteen orders each
HOPELESS = 100  # no order of evaluation excuses so many times what another allows
NEAR = 2  # up to so many times what is allowed may be a kernel's own rounding: told, not counted
JUNK = (np.nan, np.inf, -np.inf)


def check(subject, call: RandomCall) -> None:
    """Check one call. Raises `Differs`."""
    query, key, value, grad = call.arrays
    cells = allowed(call.spec, call.shape.call, call.offset)
    seen = cells & (np.broadcast_to(call.options.get("bias", 0.0), cells.shape) != -np.inf)
    inputs, lost = _spoilt(call, seen)
    given = {"query_offset": call.offset} | call.options
    if call.split is not None:
        subject = Split(subject, call)
    elif call.spec is not None:
        given["mask"] = subject.mask(call.spec)
        if call.used:
            _use(subject, inputs, given)
    arrays = {"query": query, "key": key, "value": value}
    if call.backward:
        arrays["grad"] = grad
        _compare_gradients(subject.gradients(*inputs, grad, **given), call, arrays, cells, seen)
        return
    got = subject.attention(*inputs, **given)
    check_dtype(got, query.dtype, "output")
    exact = _textbook("attention", arrays, call, cells)["output"]
    check_each(np.isnan(got.astype(np.float64)) | ~lost[..., None], got, "output", "NaN")
    got = np.where(lost[..., None], exact, got).astype(got.dtype)  # the budget is the whole call's
    _compare(got, "output", exact, "attention", arrays, call, cells)


def near(error: Exception) -> bool:
    """Return whether a difference is as small as a kernel's own rounding."""
    found = error.found if isinstance(error, Differs) else {}
    return found.get("error", np.inf) < NEAR * found.get("allowed", 0)


def _use(subject, inputs, given: dict) -> None:
    """Ask a mask something else: at another offset, with other flags in the user's own arrays."""
    flags = [
        x for leaf in given["mask"].leaves() for x in leaf.arrays if str(x.dtype)[-4:] == "bool"
    ]
    flags = [_memory(x) for x in flags]
    subject.attention(*inputs, **given | {"query_offset": given["query_offset"] + 1})
    for table in flags:
        table[...] = ~table
    subject.attention(*inputs, **given)
    for table in flags:
        table[...] = ~table


def _memory(flags) -> np.ndarray:
    """Return an array's memory as one that can be written to, unseen by its framework."""
    array = np.asarray(flags)
    return array.base if isinstance(array.base, np.ndarray) else array


def _textbook(name: str, arrays: dict, call: RandomCall, cells: np.ndarray) -> dict:
    wide = np.longdouble if call.dtype == "float64" else np.float64  # finer, where there is such
    given = arrays | {n: x for n, x in call.options.items() if n in ("bias", "sinks")}
    options = call.options | {n: x.astype(wide) for n, x in given.items()}
    return getattr(naive, name)(**options, allowed=cells)


def _compare(got, part: str, exact, name: str, arrays: dict, call: RandomCall, cells) -> None:
    """Compare with the textbook in one order of evaluation after the other, till one excuses it."""
    inputs = arrays | call.options | {"allowed": cells}
    what, found = part if part == "output" else f"gradient of {part}", None
    roundings, more = (2, 0.0) if call.split is None else (MERGED, more_of(part, inputs))
    for naively in _orders(name, part, exact, inputs):
        try:
            return compare(got, exact, naively, what, roundings, more)
        except Differs as error:
            found = error
            if error.found.get("error", np.inf) > HOPELESS * error.found.get("allowed", 0):
                break
    raise found or Differs("no order of evaluation")


def _orders(name: str, part: str, exact: np.ndarray, inputs: dict) -> Iterator[np.ndarray]:
    """Yield the textbook's answer: in one order, in the suite's worst, and with sums shuffled.

    One call of thousands is one in which the suite's sixteen orders all happen to round well.
    """
    yield getattr(naive, name)(**inputs)[part]
    rng = np.random.default_rng(0)
    order = {
        "keys": np.arange(inputs["key"].shape[2]),
        "features": np.arange(inputs["key"].shape[3]),
    }
    for _ in range(SHUFFLES):
        again = _take({part: exact}, order), _take(inputs, order)
        worst = expected.furthest(name, expected.ATTENTION, *again)
        yield _take(worst, {along: index.argsort() for along, index in order.items()})[part]
        order = {along: rng.permutation(index) for along, index in order.items()}


def _take(arrays: dict, order: dict) -> dict:
    """Put keys and features in an order, in every array that has them."""
    arrays = dict(arrays)
    for along, index in order.items():
        for name, axis in expected.ATTENTION[along].items():
            if name in arrays and np.shape(arrays[name])[axis] > 1:
                arrays[name] = np.take(arrays[name], index, axis)
    return arrays


def _compare_gradients(found: dict, call: RandomCall, arrays: dict, cells, seen) -> None:
    exact = _textbook("gradients", arrays, call, cells)
    if found.keys() != exact.keys():
        raise Differs(f"gradients: expected {sorted(exact)}, got {sorted(found)}")
    few = (seen.sum(-1) > 1).mean() < 0.25
    for part, gradient in found.items():
        constant = part == "bias" and call.options["bias"].shape[-1] == 1
        if constant or (few and part != "value"):
            # Rows of one key and a bias that all keys share have a gradient of exactly 0, and no
            # budget can be read off it: a product is taken away from itself after two roundings.
            sides = [float(abs(np.float64(x)).max()) for x in arrays.values()]
            noise = 4 * eps(gradient.dtype) * np.prod(sides[2:]) * call.shape.D_v * max(sides) * 1.5
            sums = max(call.shape.T, call.shape.S) * call.shape.H * call.shape.B
            if not (abs(np.float64(gradient) - exact[part]) <= noise * sums).all():
                raise Differs(f"gradient of {part}: more than {noise * sums:.3g} from the textbook")
            continue
        _compare(gradient, part, exact[part], "gradients", arrays, call, cells)


def allowed(spec: Spec | None, sizes: tuple[int, int, int, int], offset) -> np.ndarray:
    """Return bool (B, H, T, S), as the oracle's loops do, but all cells at once."""
    cells = (
        _allowed(spec, list(np.ogrid[tuple(map(slice, sizes))]), offset) if spec else np.array(True)
    )
    return np.broadcast_to(cells, sizes)


def _allowed(spec: Spec, at: list, offset) -> np.ndarray:
    b, h, row, key = at
    query = row + np.reshape(offset, (-1, 1, 1, 1))
    own = lambda table: table[b % len(table)]  # noqa: E731
    a = spec.arguments
    parts = [] if spec.kind == "part" else [_allowed(part, at, offset) for part in spec.parts]
    match spec.kind:
        case "and":
            return parts[0] & parts[1]
        case "or":
            return parts[0] | parts[1]
        case "not":
            return ~parts[0]
        case "causal":
            return key <= query
        case "sliding_window":
            return (key >= query - a["before"]) & (key <= query + a["after"])
        case "chunked":
            return query // a["size"] == key // a["size"]
        case "packed":
            ends = np.cumsum(a["lengths"], axis=1)[b % len(a["lengths"])]  # (B, 1, 1, 1, N)
            number = lambda at: (at[..., None] >= ends).sum(-1)  # noqa: E731
            inside = (query >= 0) & (query < ends[..., -1])
            return inside & (number(query) == number(key))
        case "part":
            places = a["rows"][row], a["columns"][key]
            return _allowed(spec.parts[0], [b, h, *places], a["query_offset"])
        case "prefix":
            return (key < own(a["lengths"])) | (key <= query)
        case "padding":
            return (
                key < own(a["lengths"])
                if "lengths" in a
                else ~a["hidden"][b % len(a["hidden"]), key]
            )
        case "segments":
            ids = a["query_ids"]
            if "key_ids" in a:
                keys = a["key_ids"]
                return ids[b % len(ids), row] == keys[b % len(keys), key]
            inside = (query >= 0) & (query < ids.shape[1])
            mine = ids[b % len(ids), np.clip(query, 0, ids.shape[1] - 1)]
            return inside & (mine == ids[b % len(ids), key])
        case "predicate":
            return a["function"](b, h, query, key)
    table = a["array"][b % len(a["array"]), h % a["array"].shape[1], row, key]
    return table if spec.kind == "allow" else ~table


def _spoilt(call: RandomCall, seen: np.ndarray) -> tuple[tuple, np.ndarray]:
    """Return the arrays with junk in them, and which output rows it makes NaN: (B, H, T)."""
    query, key, value, _ = call.arrays
    uniform, group = call.options["empty_rows"] == "uniform", call.shape.H // call.shape.H_kv
    uniform = uniform and "sinks" not in call.options
    looked = seen | (~seen.any(-1, keepdims=True) & uniform)  # cells whose values are taken
    by_key = looked.reshape(call.shape.B, call.shape.H_kv, group, *seen.shape[2:]).any((2, 3))
    if call.junk == "none":
        return (query, key, value), np.zeros(seen.shape[:3], bool)
    rng = np.random.default_rng(call.seeds)
    spoilt = ~by_key if call.junk == "hidden" else rng.random(by_key.shape) < 2 / by_key.shape[2]
    of_key = rng.random(by_key.shape) < 0.5
    put = lambda x, where: np.where(  # noqa: E731
        where[..., None] & (rng.random(x.shape) < 0.7), rng.choice(JUNK, x.shape), x
    ).astype(x.dtype)
    key, value = put(key, spoilt & of_key), put(value, spoilt & ~of_key)
    lost = ~(np.isfinite(key.astype(float)).all(-1) & np.isfinite(value.astype(float)).all(-1))
    return (query, key, value), (looked & lost.repeat(group, 1)[:, :, None]).any(-1)
