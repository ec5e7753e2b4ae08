"""What JAX's `tile` says of traced data: none or all where structure decides, else look."""

import jax
import jax.numpy as jnp
import pytest

from attn_jax import allow, causal, padding, prefix, segments, sliding_window

T = 8
BELOW = slice(6, 8), slice(0, 1)
ON, ABOVE = ((slice(r, r + 2), slice(c, c + 2)) for r, c in ((4, 4), (0, 6)))
LENGTHS = jnp.array([3, 8])
IDS = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2]] * 2)
CELLS = jnp.ones((1, 1, T, T), bool)

# mask of a traced table, table, and what is said of a tile below, on and above the diagonal
TILES = {
    "padding": (padding, LENGTHS, ("partial", "partial", "partial")),
    "padding_hidden": (lambda x: padding(hidden=x), IDS == 2, ("partial", "partial", "partial")),
    "not_padding": (lambda x: ~padding(x), LENGTHS, ("partial", "partial", "partial")),
    "causal_and_padding": (
        lambda x: causal() & padding(x), LENGTHS, ("partial", "partial", "none")),
    "causal_or_padding": (lambda x: causal() | padding(x), LENGTHS, ("all", "partial", "partial")),
    "window_and_padding": (
        lambda x: sliding_window(2, 2) & padding(x), LENGTHS, ("none", "partial", "none")),
    "prefix": (prefix, LENGTHS, ("all", "partial", "partial")),
    "not_prefix": (lambda x: ~prefix(x), LENGTHS, ("none", "partial", "partial")),
    "segments": (segments, IDS, ("partial", "partial", "partial")),
    "segments_pair": (lambda x: segments(x, x), IDS, ("partial", "partial", "partial")),
    "causal_and_segments": (lambda x: causal() & segments(x), IDS, ("partial", "partial", "none")),
    "allow": (allow, CELLS, ("partial", "partial", "partial")),
}  # fmt: skip


def said(make, table, traced: bool, query_offset=None) -> tuple[str, ...]:
    """Ask about the three tiles, with the table an argument of a compiled function or not."""
    found = []

    def ask(table):
        offset = None if query_offset is None else query_offset(table)
        found.extend(make(table).tile(T, T, *tile, offset, batch=2) for tile in (BELOW, ON, ABOVE))
        return table

    jax.jit(ask)(table) if traced else ask(table)
    return tuple(found)


@pytest.mark.parametrize("name", TILES)
def test_traced_table_is_looked_at_where_structure_does_not_decide(name):
    make, table, answers = TILES[name]
    assert said(make, table, traced=True) == answers


@pytest.mark.parametrize("name", TILES)
def test_known_table_is_decided_while_something_else_is_traced(name):
    make, table, _ = TILES[name]
    while_tracing = said(lambda _: make(table), jnp.zeros(()), traced=True)
    assert while_tracing == said(make, table, traced=False)


@pytest.mark.parametrize(
    ("make", "answers"),
    [
        (lambda _: causal(), ("partial", "partial", "partial")),
        (lambda _: causal() & padding([0, 0]), ("none", "none", "none")),
        (lambda _: causal() | padding([8, 8]), ("all", "all", "all")),
    ],
    ids=["causal", "none_is_left", "all_is_left"],
)
def test_traced_offset_leaves_open_what_hangs_on_it(make, answers):
    assert said(make, jnp.array(0), traced=True, query_offset=lambda table: table) == answers


def test_empty_tile_is_none_even_of_a_traced_table():
    found = []

    @jax.jit
    def ask(lengths):
        found.append(padding(lengths).tile(T, T, slice(3, 3), slice(0, 8), batch=2))
        return lengths

    ask(LENGTHS)
    assert found == ["none"]
