"""JAX compiles a call once for its shapes and its mask's structure, and never for its values.

XLA's own report of a compilation is counted. Both paths are held: the textbook, which small calls
take, and the blocked one. Each call has a fresh key size, so that no other test has compiled it.
"""

from contextlib import contextmanager
from functools import cache, partial
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax import (
    allow,
    attention,
    causal,
    padding,
    predicate,
    prefix,
    segments,
    sliding_window,
)

B, H, D = 2, 4, 3
QUERIES = {"textbook": 5, "blocked": 129}
KEYS = {"textbook": count(11), "blocked": count(131)}
pytestmark = [
    pytest.mark.untyped,
    pytest.mark.usefixtures("compiles_quickly"),
    pytest.mark.parametrize("path", list(QUERIES)),
]


@contextmanager
def compilations():
    """Collect one entry for every program that XLA compiles meanwhile."""
    found: list[str] = []

    def listen(event: str, seconds: float, **about) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(str(about.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def run(way: str, path: str):
    """Return a function of a seed and options, T and S: it attends, with new arrays."""
    call = partial(attention, empty_rows="uniform")
    call = jax.jit(call) if way == "jit" else call
    T, S = QUERIES[path], next(KEYS[path])

    def attend(seed: int, make, T: int = T, S: int = S) -> list[str]:
        """Return what was compiled; making the arguments does not count."""
        rng = np.random.default_rng(seed)
        inputs = [jnp.asarray(rng.normal(size=(B, H, n, D)).astype(np.float32)) for n in (T, S, S)]
        options = make(rng, T, S)
        with compilations() as found:
            call(*inputs, **options).block_until_ready()
        return found

    return attend


def both_ways(eager, *jitted: str) -> pytest.MarkDecorator:
    """Give each case as it is, and some under the caller's own jit, too: it has the same keys."""
    pairs = [("eager", what) for what in eager] + [("jit", what) for what in jitted]
    return pytest.mark.parametrize(("way", "what"), pairs, ids=["-".join(p) for p in pairs])


def ids(rng, length):
    return rng.integers(0, 3, (B, length)).tolist()


def each(values):
    return jnp.asarray(values, jnp.int32)


VALUES = {
    "lengths": lambda rng, T, S: {"mask": padding(rng.integers(0, S, B).tolist())},
    "hidden": lambda rng, T, S: {"mask": padding(hidden=jnp.asarray(rng.random((B, S)) < 0.5))},
    "prefixes": lambda rng, T, S: {
        "mask": prefix(rng.integers(0, S, B).tolist()),
        "query_offset": 0,
    },
    "ids": lambda rng, T, S: {"mask": segments(ids(rng, T), ids(rng, S))},
    "ids_by_position": lambda rng, T, S: {
        "mask": causal() & segments(ids(rng, S)),
        "query_offset": 1,
    },
    "cells": lambda rng, T, S: {"mask": allow(jnp.asarray(rng.random((1, H, T, S)) < 0.5))},
    "offset": lambda rng, T, S: {"mask": causal(), "query_offset": int(rng.integers(0, S))},
    "offsets": lambda rng, T, S: {
        "mask": causal() | padding(rng.integers(0, S, B).tolist()),
        "query_offset": each(rng.integers(0, S, B)),
    },
    "bias": lambda rng, T, S: {"bias": jnp.asarray(rng.normal(size=(T, S)).astype(np.float32))},
}


def below(number: int, table):
    """A function made anew at every call; whatever it closes over is let go of."""
    return lambda batch, head, query, key: key < number + head + table[query % 2]


@pytest.mark.parametrize("change", ["nothing", "table", "number"])
def test_a_predicate_is_compiled_anew_where_its_program_is_another(path, change):
    attend = run("eager", path)

    def make(number: int, table: list):
        mask = predicate(below(number, jnp.asarray(table)))
        return lambda rng, T, S: {"mask": mask & causal(), "query_offset": S}

    assert attend(1, make(1, [0, 3])), "the first call must be counted"
    changed = {"nothing": (1, [0, 3]), "table": (1, [2, 4]), "number": (2, [0, 3])}[change]
    found = attend(2, make(*changed))
    rule = "must be compiled" if change == "number" else "must compile nothing anew"
    assert bool(found) == (change == "number"), f"a new {change} {rule}: got {found}"


@both_ways(VALUES, "lengths", "cells", "offset")
def test_new_values_compile_nothing(way, path, what):
    hold(run(way, path), VALUES[what], what)


def test_new_numbers_compile_nothing_where_they_are_not_part_of_a_program(path):
    def numbers(rng, T, S):
        return {"scale": float(rng.random()), "softcap": 1 + float(rng.random())}

    hold(run("eager", path), numbers, "scale and softcap")


def hold(attend, make, what: str) -> None:
    assert attend(1, make), "the first call must be counted"
    found = [attend(seed, make) for seed in (2, 3)]
    assert not any(found), f"new {what} must compile nothing anew: got {found}"


def causal_from(offset, **options):
    return lambda rng, T, S: {"mask": causal(), "query_offset": offset, **options}


@cache
def begun(way: str, path: str):
    """Return a function that has been compiled once, for a causal mask."""
    attend = run(way, path)
    attend(1, causal_from(3))
    return attend


CHANGES = {
    "more_queries": lambda attend: attend(2, causal_from(3), T=QUERIES["blocked"] + 1),
    "more_keys": lambda attend: attend(2, causal_from(3), S=next(KEYS["blocked"])),
    "another_mask": lambda attend: attend(
        2, lambda rng, T, S: {"mask": ~causal(), "query_offset": 3}
    ),
    "another_part": lambda attend: attend(
        2, lambda rng, T, S: {"mask": causal() & padding([1, 2]), "query_offset": 3}
    ),
    "another_window": lambda attend: attend(
        2, lambda rng, T, S: {"mask": sliding_window(2), "query_offset": 3}
    ),
    "offset_of_each": lambda attend: attend(2, causal_from(each([3, 4]))),
    "a_bias": lambda attend: attend(2, causal_from(3, bias=jnp.zeros((B, 1, 1, 1)))),
}


@both_ways(CHANGES, "more_keys", "another_mask", "offset_of_each")
def test_new_shapes_and_structures_are_compiled(way, path, what):
    assert CHANGES[what](begun(way, path)), f"{what.replace('_', ' ')} must be compiled"
