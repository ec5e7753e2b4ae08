"""What `test_jax_sharded.py` runs in a process with eight devices: python jax_sharded.py PART ...

Answers are compared with the suite's oracle, not with our own on one device.
"""

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import attn_jax
from attn_jax import (
    Partial,
    contiguous,
    devices,
    planned,
    ring,
    sharded,
    sharded_attention,
    zigzag,
)
from conformance.cases.attention import Case, Shape
from conformance.mask_spec import (
    allow,
    causal,
    hide,
    packed,
    padding,
    predicate,
    prefix,
    segments,
    sliding_window,
)
from conformance.oracle import expected
from conformance.oracle.tolerance import MERGED, Differs, check_dtype, compare
from conformance.subjects.attn_jax import Adapter

JAX = Adapter("cpu")
WORLD = 4
SHAPE = Shape(B=3, H=4, H_kv=2, T=24, S=24, D=3, D_v=5)
T, B = SHAPE.T, SHAPE.B
RANDOM = np.random.default_rng(7)
DOCUMENTS = np.cumsum(RANDOM.random((B, T)) < 0.2, 1)
LENGTHS = [17, 0, 24]


def _four(batch, head, query, key):
    return (7 * query + 3 * key + head + 5 * batch) % 4 == 0


MASKS = {
    "none": None,
    "causal": causal(),
    "window": causal() & sliding_window(5),
    "band": sliding_window(2, 3),
    "packed_causal": segments(DOCUMENTS) & causal(),
    "packed": packed([[7, 3, 11], [24, 0, 0], [1, 1, 5]]),
    "padding": padding(LENGTHS),
    "causal_and_padding": causal() & padding(LENGTHS),
    "scattered_padding": padding(hidden=RANDOM.random((B, T)) < 0.5),
    "prefix": prefix([8, 0, 20]),
    "predicate": predicate(_four),
    "allow": allow(RANDOM.random((B, 1, T, T)) < 0.2),
    "hide": hide(RANDOM.random((1, SHAPE.H, T, T)) < 0.7),
    "not_window": ~sliding_window(6, 4),
    "sinks_or_window": (causal() & padding([2] * B)) | (causal() & sliding_window(4)),
    "nothing": ~(causal() | ~causal()),
}
EXCHANGES = ("gathered", "exchanged", "ring")
LAYOUTS = ("zigzag", "contiguous", "planned")


def mesh(*sizes, names=("context",), kind=AxisType.Auto):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(names), devices=devices)


def rows_of(layout, case, world):
    if layout == "planned":
        mask = JAX.mask(case.mask or padding([T] * B))
        return planned(mask, case.shape.call, world)
    return {"contiguous": contiguous, "zigzag": zigzag}[layout](case.shape.T, world)


def answer(case, dtype_name, rows, inputs=None, **told):
    """Return output and gradients of a sharded call, in the order of the whole call."""
    inputs = case.inputs(dtype_name) if inputs is None else inputs
    options = JAX.options(case.options(dtype_name))
    leaves = dict(zip(("query", "key", "value"), inputs, strict=True))
    leaves |= {name: options.pop(name) for name in ("bias", "sinks") if name in options}
    order = slice(None) if rows is None else rows.reshape(-1)
    back = slice(None) if rows is None else np.argsort(order)

    def call(leaves):
        query, key, value = (leaves[name] for name in ("query", "key", "value"))
        others = {name: leaves[name] for name in leaves.keys() & {"bias", "sinks"}}
        return sharded_attention(query, key, value, rows=rows, **others, **options, **told)

    def both(leaves, grad):
        output, pull = jax.vjp(call, leaves)
        return output, pull(grad)[0]

    moved = ("query", "key", "value")
    leaves = {n: x[:, :, order] if n in moved else x for n, x in leaves.items()}
    output, grads = jax.jit(both)(leaves, case.grad(dtype_name)[:, :, order])
    output, grads = jax.tree.map(np.asarray, (output, grads))
    return output[:, :, back], {n: x[:, :, back] if n in moved else x for n, x in grads.items()}


def check(case, dtype_name, rows, what, inputs=None, backward=True, **told):
    """Compare a sharded call with the oracle; what is merged may miss by one more rounding."""
    numbers = case.numbers(dtype_name)
    call = (*case.inputs(dtype_name), case.grad(dtype_name))
    output, grads = answer(case, dtype_name, rows, inputs, **told)
    exact, rough = (steps["output"] for steps in case.expected(dtype_name))
    check_dtype(output, rough.dtype, what)
    compare(output, exact, rough, f"output, {what}", MERGED)
    if not backward:
        return
    exact, rough = case.expected_gradients(dtype_name)
    more = expected.cancelled(*call, allowed=case.allowed(), **numbers)
    for name in exact:
        check_dtype(grads[name], rough[name].dtype, what)
        compare(
            grads[name],
            exact[name],
            rough[name],
            f"gradient of {name}, {what}",
            MERGED,
            more.get(name, 0),
        )


def every_mask():
    """Every mask by every exchange, in every layout: no test has the time."""
    masks(every=True)


def masks(every=False):
    """Every mask by two exchanges, in one layout each; `every` takes all of both."""
    where, turns, ways = mesh(WORLD), cycle(LAYOUTS), cycle(EXCHANGES)
    for name, mask in MASKS.items():
        case = Case(name, SHAPE, mask)
        for exchange in EXCHANGES if every else [next(ways), next(ways)]:
            for layout in LAYOUTS if every else [next(turns)]:
                rows, what = rows_of(layout, case, WORLD), f"{name} {layout} {exchange}"
                check(case, "float32", rows, what, mesh=where, length="context", exchange=exchange)
        if name in ("packed_causal", "prefix"):
            next(turns)  # so that every pair comes up


OPTIONS = {
    "rank2": Case("rank2", SHAPE, causal(), bias="rank2", softcap=0.9),
    "heads": Case("heads", SHAPE, padding(LENGTHS), bias="heads", scale=-0.7),
    "rank4": Case("rank4", SHAPE, MASKS["packed"], bias="rank4", empty_rows="nan"),
    "hiding": Case("hiding", SHAPE, bias="hiding"),
    "BTS": Case("BTS", SHAPE, sliding_window(4), bias="BTS", sinks="normal", empty_rows="nan"),
    "sinks": Case("sinks", SHAPE, causal() & padding(LENGTHS), sinks="none_in_head_0"),
    "uniform": Case("uniform", SHAPE, padding(LENGTHS), empty_rows="uniform", bias="hiding"),
    "cross": Case("cross", SHAPE._replace(T=8), padding(LENGTHS), softcap=1.3),
    "cross_part": Case("cross_part", SHAPE._replace(S=8), causal().part(range(24), range(8), -9)),
    "one_row": Case("one_row", SHAPE._replace(T=4, S=4), causal()),
    "one_kv_head": Case("one_kv_head", SHAPE._replace(H_kv=1), causal() & sliding_window(6)),
}


def options():
    """Bias, softcap, scale, sinks, policies, cross-attention, one row a device."""
    where, turns, turn = mesh(WORLD), cycle(["zigzag", "contiguous"]), cycle(EXCHANGES)
    for name, case in OPTIONS.items():
        way = "auto" if case.empty_rows == "uniform" else next(turn)
        for exchange in {way, "ring"} if name == "rank4" else {way}:
            fits = case.shape.T == case.shape.S and case.shape.T % (2 * WORLD) == 0
            rows = rows_of(next(turns), case, WORLD) if fits else None
            check_forward_only = case.empty_rows == "nan" and case.sinks is None
            what = f"{name} {exchange}"
            told = {"mesh": where, "length": "context", "exchange": exchange}
            check(case, "float32", rows, what, backward=not check_forward_only, **told)


def tiles():
    """The loop over tiles, in small ones."""
    where = mesh(WORLD)
    cases = [Case(name, SHAPE, MASKS[name]) for name in ("causal_and_padding", "allow")]
    cases += [Case("predicate", SHAPE, MASKS["predicate"], bias="rank4", softcap=0.9)]
    cases += [replace(OPTIONS["sinks"], bias="heads")]
    for i, (case, exchange) in enumerate(zip(cases, ("ring", *EXCHANGES), strict=True)):
        rows = rows_of(LAYOUTS[i % 3], case, WORLD)
        told = {"mesh": where, "length": "context", "exchange": exchange}
        with JAX.small_blocks(i):
            check(case, "float32", rows, f"tiles of {case.name} {exchange}", **told)


def halves():
    """16 bits: what moves is summed in float32."""
    where = mesh(WORLD)
    for name in ("float16", "bfloat16"):
        for exchange in EXCHANGES:
            case = Case("halves", SHAPE, causal() & padding(LENGTHS), seed=len(exchange))
            rows = zigzag(T, WORLD)
            told = {"mesh": where, "length": "context", "exchange": exchange}
            check(case, name, rows, f"{name} {exchange}", **told)
            sums_of_halves(name, told)


def sums_of_halves(name, told):
    """Every query is allowed key 0 alone; a sum in 16 bits, or a share that is, leaves out ones."""
    large = 2.0 ** (jnp.finfo(name).nmant + 1)
    shares = jnp.array([large, 1, large, 1, large, 1, 1, 0], name)
    one = jnp.ones((1, 1, 8, 1), name)

    def attend(value):
        return sharded_attention(one, one, value, mask=JAX.mask(padding([1])), **told)

    grad = jax.jit(lambda value: jax.vjp(attend, value)[1](shares[None, None, :, None])[0])(one)
    found, exact = grad.ravel().astype(float).tolist(), 3 * large + 4
    assert found == [exact] + [0.0] * 7, f"{name}, {told['exchange']}: {found}, not {exact}"


def worlds():
    """Two, three and all eight devices, and rows in no order at all."""
    for world, length in ((2, 20), (3, 30), (8, 48)):
        case = Case("worlds", SHAPE._replace(T=length, S=length), causal() & sliding_window(9))
        order = np.random.default_rng(world).permutation(length).reshape(world, -1)
        for exchange, rows in zip(EXCHANGES, (order, None, zigzag(length, world)), strict=True):
            told = {"mesh": mesh(world), "length": "context", "exchange": exchange}
            check(case, "float32", rows, f"{world} devices {exchange}", **told)
    check(case, "float32", None, "a ring of two hops", **told)  # keys go home by as many


def hygiene():
    """What stands in hidden keys changes nothing; NaN reaches the rows that may attend to it."""
    where, hidden = mesh(WORLD), RANDOM.random((B, T)) < 0.4
    hidden[1] = True
    case = Case("hygiene", SHAPE, causal() & padding(hidden=hidden))
    for exchange in EXCHANGES:
        told = {"mesh": where, "length": "context", "exchange": exchange}
        for fill in (np.nan, np.inf, 1e30):
            query, *others = case.inputs("float32")
            dirty = [np.where(hidden[:, None, :, None], np.float32(fill), x) for x in others]
            what = f"{fill} beside {exchange}"
            check(case, "float32", zigzag(T, WORLD), what, (query, *dirty), **told)
        query, key, value = case.inputs("float32")
        key = np.array(key)
        key[2, 1, (at := int(np.flatnonzero(~hidden[2])[1]))] = np.nan
        output, _ = answer(case, "float32", zigzag(T, WORLD), (query, key, value), **told)
        lost = np.zeros(output.shape[:3], bool)
        lost[2, 2:, at:] = True
        assert (np.isnan(output).any(-1) == lost).all(), f"NaN in key {at} of {exchange}"
        equal_scores(told, exchange)


def equal_scores(told, what):
    """Scores of -1e30 swallow what they are added to: the mean of the allowed values is left."""
    case, fill = Case("far", SHAPE, causal()), np.full((T, T), -1e30, np.float32)
    told = told | {"mask": JAX.mask(case.mask), "bias": fill}
    output = np.asarray(sharded_attention(*case.inputs("float32"), **told))
    value = case.inputs("float32")[2].repeat(2, 1)
    mean = np.cumsum(value.astype(float), 2) / np.arange(1, T + 1)[:, None]
    compare(output, mean, mean.astype(np.float32), f"output of equal scores {what}", MERGED)


def traced():
    """Masks that are arguments, of which only the structure is known; and calls that are eager."""
    where, rows = mesh(WORLD), zigzag(T, WORLD)
    order = rows.reshape(-1)
    case = Case("traced", SHAPE, causal() & padding(LENGTHS) & MASKS["allow"])
    exact, rough = (steps["output"][:, :, order] for steps in case.expected("float32"))
    inputs = [x[:, :, order] for x in case.inputs("float32")]
    for exchange in EXCHANGES:

        def call(mask, *inputs, exchange=exchange):
            told = {"mesh": where, "length": "context", "exchange": exchange}
            return sharded_attention(*inputs, mask=mask, rows=rows, **told)

        for way in (jax.jit(call), call):
            output = np.asarray(way(JAX.mask(case.mask), *inputs))
            compare(output, exact, rough, f"traced {exchange}", MERGED)


def heads():
    """Heads on more devices than there are key heads, on fewer, and on as many."""
    for kv_heads in (1, 2, 4, 8):
        case = Case("heads", SHAPE._replace(H=8, H_kv=kv_heads), MASKS["predicate"])
        check(case, "float32", None, f"{kv_heads} heads", mesh=mesh(WORLD), heads="context")
        what = f"{kv_heads} heads and a ring"
        told = {"mesh": mesh(4, 2, names=("m", "c")), "heads": "m", "length": "c"}
        check(case, "float32", None, what, exchange="ring", **told)


def meshes():
    """Samples, heads and rows on axes of their own, in both modes of axes."""
    for kind in (AxisType.Auto, AxisType.Explicit):
        where = mesh(2, 2, 2, names=("d", "m", "c"), kind=kind)
        with jax.set_mesh(where) if kind == AxisType.Explicit else nullcontext():
            for i, name in enumerate(("predicate", "allow", "causal_and_padding")):
                case = Case(name, SHAPE._replace(B=2, H_kv=1 + i % 2), _two_samples(MASKS[name]))
                case = replace(case, bias=[None, "BTS", "rank4"][i], sinks=["normal", None][i > 0])
                told = {"mesh": where, "batch": "d", "heads": "m", "length": "c"}
                exchange = EXCHANGES[i - (kind == AxisType.Auto)]
                rows = zigzag(T, 2) if exchange == "ring" else None
                check(case, "float32", rows, f"{kind} {name}", exchange=exchange, **told)
            told = {"mesh": where, "batch": "d", "heads": ("m", "c")}
            check(case, "float32", None, f"{kind} without rows", **told)
            check_places(where, NamedSharding(where, P("d", "m", "c")))


def _two_samples(spec):
    """Return a mask for the first two samples of its tables."""
    arguments = {n: x[:2] if isinstance(x, np.ndarray) else x for n, x in spec.arguments.items()}
    return replace(spec, arguments=arguments, parts=tuple(map(_two_samples, spec.parts)))


def check_places(where, places):
    """Check that outputs and gradients lie as what was given."""

    def loss(*inputs):
        output = sharded_attention(*inputs, mesh=where, batch="d", heads="m", length="c")
        return output.sum(), output

    inputs = Case("places", SHAPE._replace(B=2, H_kv=4)).inputs("float32")
    inputs = [jax.device_put(x, places) for x in inputs]
    grads, output = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs)
    for array in (output, *grads):
        assert array.sharding.is_equivalent_to(places, 4), f"lies as {array.sharding}"


def _merge_lse(*partials):
    """Merge outputs by their log-sum-exp, as others do."""
    lse = jnp.stack([part.lse for part in partials])
    top = lse.max(0)
    shares = jnp.exp(lse - top)
    sums = sum(share[..., None] * part.output for share, part in zip(shares, partials, strict=True))
    return Partial(sums, top, shares.sum(0))


def _merge_empty(*partials):
    """Subtract the maximum, which is -inf in two parts of hidden keys."""
    top = jnp.stack([part.maximum for part in partials]).max(0)
    shares = [jnp.exp(part.maximum - top) for part in partials]
    sums = sum(share[..., None] * part.sums for share, part in zip(shares, partials, strict=True))
    return Partial(sums, top, sum(s * p.total for s, p in zip(shares, partials, strict=True)))


IN_ORDER, PASS_ON = sharded._in_order, ring._pass_on


def _stay_away(layout, arrays, distance):
    """Leave the gradients of keys where the ring has brought them."""
    return arrays if distance < 0 else PASS_ON(layout, arrays, distance)


def _pass_on_keys(layout, arrays, distance):
    """Pass keys on, and not the gradients beside them."""
    keys = PASS_ON(layout, arrays[:2], distance)
    return keys if len(arrays) == 2 else (*keys, *arrays[2:])


def _add_first(_layout, _step, _key, total, part):
    """Add the gradient of a bias to that of the first keys, whosever these are."""
    return None if total is None else total.at[..., : part.shape[3]].add(part)


MUTANTS = {  # what is wrong: where it stands, what is put there, the call that shows it, and where
    "forgotten hop": (ring, "_pass_on", lambda layout, arrays, _: arrays, "causal", "ring"),
    "hop the other way": (ring, "_first_column", lambda _, step, key: step * 6, "causal", "ring"),
    "contiguous rows": (
        sharded,
        "_in_order",
        lambda call, *orders: IN_ORDER(call, *map(np.sort, orders)),
        "causal",
        "gathered",
    ),
    "heads of a shard": (devices, "place", lambda mask, _: mask, "predicate", "none"),
    "log-sum-exps": (ring, "merge", _merge_lse, "far", "ring"),
    "two empty parts": (ring, "merge", _merge_empty, "padding", "ring"),
    "nobody needs it": (sharded, "needed_blocks", lambda *_: np.zeros((4, 4, 6)), "causal", "ring"),
    "gradients away": (ring, "_pass_on", _stay_away, "causal", "ring", "gradient of key"),
    "gradients left behind": (ring, "_pass_on", _pass_on_keys, "causal", "ring", "gradient of key"),
    "bias of others": (ring, "_add_columns", _add_first, "bias", "ring", "gradient of bias"),
}


def mutants():
    """Each mistake is found, and told apart by what it says."""
    for name, (module, function, wrong, which, exchange, *where) in MUTANTS.items():
        jax.clear_caches()
        told = {"mesh": mesh(WORLD), "length": "context", "exchange": exchange}
        rows = zigzag(T, WORLD)
        if exchange == "none":
            told, rows = {"mesh": mesh(WORLD), "heads": "context"}, None
        case = Case(
            which, SHAPE, MASKS.get(which, causal()), bias="rank4" if which == "bias" else None
        )
        call = partial(check, case, "float32", rows, name, **told)
        if which == "far":
            call = partial(equal_scores, told, name)
        found = pytest.raises(Differs, match=f"^({'|'.join(where or ['output'])})")
        with mock.patch.object(module, function, wrong), found:
            call()
    jax.clear_caches()
    with mock.patch.object(sharded, "_move", lambda collect, *arrays: collect(*arrays)):
        told = {"mesh": mesh(WORLD), "length": "context", "exchange": "gathered"}
        with pytest.raises(AssertionError, match="bfloat16, gathered: "):
            sums_of_halves("bfloat16", told)
    jax.clear_caches()


REFUSED = {  # what a call is told, and what it answers
    "mesh must have the axis 'x': got ('context',)": {"length": "x"},
    "batch, heads and length must be on axes of their own: got ('context', 'context')": {
        "batch": "context",
        "length": "context",
    },
    "B must be a multiple of 4, as shares are equal: got 3": {"batch": "context"},
    "rows need length, the axis that they are spread over: got int64 array": {
        "rows": zigzag(24, 4)
    },
    "rows must be (devices, T / devices), (4, 6): got (2, 12)": {
        "length": "context",
        "rows": zigzag(24, 2),
    },
    "rows must have every position 0..23 once: got no 1": {
        "length": "context",
        "rows": np.zeros((4, 6), int),
    },
    "rows must be integers: got float64": {"length": "context", "rows": np.zeros((4, 6))},
    "exchange must be 'auto', 'gathered', 'exchanged' or 'ring': got 'all'": {
        "length": "context",
        "exchange": "all",
    },
    "empty_rows must be 'zero' or 'nan' in exchange 'ring', in which no device knows the mean of "
    "all values: got 'uniform'": {"length": "context", "exchange": "ring", "empty_rows": "uniform"},
}


def refusals():
    """What cannot be right is refused in words."""
    inputs, where = Case("", SHAPE).inputs("float32"), mesh(WORLD)
    for text, told in REFUSED.items():
        with pytest.raises((ValueError, TypeError)) as refused:
            sharded_attention(*inputs, mesh=where, **told)
        assert str(refused.value) == text, f"{refused.value} for {text}"
    with pytest.raises(TypeError, match=r"as jax\.make_mesh makes it: got str"):
        sharded_attention(*inputs, mesh="context", length="context")
    uneven = Case("", SHAPE._replace(T=22, S=22)).inputs("float32")
    with pytest.raises(ValueError, match="T must be a multiple of 4, as shares are equal: got 22"):
        sharded_attention(*uneven, mesh=where, length="context")
    query = Case("", SHAPE._replace(T=8)).inputs("float32")[0]
    told = {"mesh": where, "length": "context", "rows": zigzag(8, 4)}
    with pytest.raises(ValueError, match="need T == S: got 8 and 24"):
        sharded_attention(query, *inputs[1:], **told)
    with pytest.raises(ValueError, match=r"needs T == S where .*: got T = 8 and S = 24"):
        sharded_attention(query, *inputs[1:], mask=attn_jax.causal(), mesh=where, length="context")
    with pytest.raises(ValueError, match=r"length must be a multiple of 8, as .* equal: got 12"):
        zigzag(12, 4)


if __name__ == "__main__":
    for part in sys.argv[1:]:
        globals()[part]()
