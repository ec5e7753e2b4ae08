"""What makes everyday calls cheap in JAX: that each short cut is taken, and gives the same."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_jax import (
    MultiHeadAttention,
    attention,
    attention_steps,
    causal,
    multihead,
    padding,
    sliding_window,
)
from attn_jax import cache as caches
from attn_jax.numerics import multiply

B, H, H_KV, C, D = 3, 4, 2, 257, 8
EMBED = H * D


def normal(*shape: int, dtype="bfloat16") -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


def main(compiled) -> str:
    """Return what a compiled program does on its way: not what is inside of a condition."""
    return compiled.as_text().split("ENTRY")[1]


# A step


def test_a_step_never_widens_its_cache():
    attn = MultiHeadAttention(EMBED, H, num_kv_heads=H_KV, dtype="bfloat16", rngs=nnx.Rngs(0))
    graph, state = nnx.split(attn)

    def step(state, x, cache):
        return nnx.merge(graph, state).decode(x, cache)

    inputs = state, normal(B, 1, EMBED), attn.new_cache(B, C)
    text = main(jax.jit(step, donate_argnums=2).lower(*inputs).compile())
    whole = f"[{B},{H_KV},{C},{D}]"
    assert f"bf16{whole}" in text
    assert f"f32{whole}" not in text, "XLA makes float32 of the whole cache"


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("mask", [None, sliding_window(3)], ids=["causal", "window"])
def test_a_step_writes_in_place(batch, mask):
    attn = MultiHeadAttention(EMBED, H, num_kv_heads=H_KV, rngs=nnx.Rngs(0))
    graph, state = nnx.split(attn)

    def step(state, x, cache):
        return nnx.merge(graph, state).decode(x, cache, attn_mask=mask)

    inputs = state, normal(batch, 1, EMBED, dtype="float32"), attn.new_cache(batch, C)
    text = main(jax.jit(step, donate_argnums=2).lower(*inputs).compile())
    copies = re.findall(rf"f32\[{batch},{H_KV},{C},{D}\]\S* copy\(", text)
    assert not copies, f"XLA copies the whole cache {len(copies)} times"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("way", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_a_token_goes_to_its_place_and_nowhere_else(way, dtype):
    slots, new = normal(B, H_KV, C, D, dtype=dtype), normal(B, H_KV, 1, D, dtype=dtype)
    first, counts = jnp.array([0, C - 1, C + 1]), jnp.array([1, 1, 1])
    written = way(caches._write)(slots, new, first, counts)
    wanted = np.array(slots)
    wanted[0, :, 0], wanted[1, :, C - 1] = np.array(new)[:2, :, 0]
    assert (np.asarray(written) == wanted).all()
    written = way(caches._write)(slots, new, first, jnp.array([0, 0, 0]))
    assert (np.asarray(written) == np.asarray(slots)).all()


@pytest.mark.parametrize("shape", [(0, 1, EMBED), (2, 0, EMBED)])
def test_no_sample_and_no_token_can_be_decoded(shape):
    attn = MultiHeadAttention(EMBED, H, dtype="bfloat16", rngs=nnx.Rngs(0))
    output, cache = attn.decode(jnp.ones(shape, jnp.bfloat16), attn.new_cache(shape[0], C))
    assert output.shape == shape
    assert not cache.lengths.any()


def test_the_way_of_a_token_is_the_same_for_every_transform():
    slots, new = normal(B, H_KV, C, D), normal(B, H_KV, 1, D)
    place = jnp.array([[5], [C - 1], [C]])
    moves = slots[::-1], new[::-1]
    found, wanted = (
        (
            jax.jvp(lambda *x: put(*x, place), (slots, new), moves),  # noqa: B023
            jax.vjp(lambda *x: put(*x, place), slots, new)[1](slots),  # noqa: B023
            jax.vmap(put, (0, 0, None))(jnp.stack(moves[:1] * 2), jnp.stack(moves[1:] * 2), place),
        )
        for put in (caches._put, caches._scatter)
    )
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), found, wanted))


def test_a_product_with_bfloat16_is_as_exact_as_float32():
    array, other = normal(2, 1, 3, C, dtype="float32"), normal(2, 1, C, D)
    given = "bkgs,bksd->bkgd", array, other
    exact = np.asarray(array, np.float64) @ np.asarray(other, np.float64)
    naive = np.asarray(array @ other.astype(jnp.float32))
    most = 2 * abs(naive - exact).max() + 2 * np.finfo(np.float32).eps * abs(exact).max()
    for found in (multiply(*given), jax.jit(multiply, static_argnums=0)(*given)):
        assert found.dtype == jnp.float32
        assert abs(np.asarray(found) - exact).max() <= most
        rounded = array.astype(jnp.bfloat16).astype(jnp.float32) @ other.astype(jnp.float32)
        assert abs(np.asarray(rounded) - exact).max() > most  # so the check sees a lost part


@pytest.mark.parametrize("bad", ["nan", "inf", "finite"])
def test_a_step_in_bfloat16_hides_what_is_not_finite(bad):
    query, key, value = (
        normal(B, H, 1, D),
        normal(B, H_KV, C, D),
        normal(B, H_KV, C + 1, D)[:, :, 1:],
    )
    if bad != "finite":
        key, value = (x.at[1, 0, 7].set(float(bad)) for x in (key, value))
    mask = padding([C, 7, 0])
    for way in (attention, jax.jit(partial(attention, mask=mask))):
        found = way(query, key, value, **({"mask": mask} if way is attention else {}))
        wide = (x.astype(jnp.float32) for x in (query, key, value))
        wanted = attention_steps(*wide, mask=mask).output
        assert abs(found.astype(jnp.float32) - wanted).max() <= 2**-7 * abs(wanted).max()


# Hidden keys


@pytest.fixture
def zeroed(monkeypatch) -> list:
    """The calls that look for keys that are hidden from every query."""
    calls, look = [], multihead._zero_where_hidden
    monkeypatch.setattr(multihead, "_zero_where_hidden", lambda *x: calls.append(x) or look(*x))
    return calls


CALLS = {
    "causal": (7, causal(), None, False),
    "no mask": (7, None, None, False),
    "the last positions": (3, causal(), 4, False),
    "the first positions": (3, causal(), 0, True),
    "offsets": (3, causal(), np.array([4, 4, 2]), True),
    "padding": (7, causal() & padding([7, 6, 5]), None, True),
}


@pytest.mark.parametrize("name", CALLS)
def test_keys_are_looked_through_only_where_one_may_be_hidden_from_all(zeroed, name):
    queries, mask, offset, hides = CALLS[name]
    attn = MultiHeadAttention(EMBED, H, rngs=nnx.Rngs(0))
    x = normal(B, 7, EMBED, dtype="float32")
    attn(x[:, :queries], x, x, attn_mask=mask, query_offset=offset, need_weights=False)
    assert bool(zeroed) == hides


# Heads


def test_heads_are_laid_out_once():
    """XLA would add the bias and turn the axes round again for each use of a projection."""
    attn = MultiHeadAttention(EMBED, H, rngs=nnx.Rngs(0))
    graph, state = nnx.split(attn)

    def attend(state, x):
        return nnx.merge(graph, state)(x, attn_mask=causal(), need_weights=False)[0]

    text = main(jax.jit(attend).lower(state, normal(2, 192, EMBED, dtype="float32")).compile())
    made = [
        line for line in text.splitlines() if line.split(" = ")[-1].startswith("f32[2,4,192,8]")
    ]
    made = [line for line in made if "fusion(" in line and "broadcast" not in line.split("=")[0]]
    assert len(made) == 3, "\n".join(made)


# Tiles


@pytest.mark.parametrize(("S", "loops"), [(300, 1), (1100, 2)])
def test_keys_that_fit_a_tile_are_not_looped_over(S, loops):
    query, key = normal(1, 2, 300, D, dtype="float32"), normal(1, 2, S, D, dtype="float32")
    attend = jax.jit(partial(attention, mask=causal(), query_offset=-1))
    program = attend.lower(query, key, key)
    assert program.as_text().count("stablehlo.while") == loops
    found, wanted = (
        attend(query, key, key),
        attention_steps(query, key, key, mask=causal(), query_offset=-1).output,
    )
    assert (found[:, :, 0] == 0).all()  # allowed no key
    assert abs(found - wanted).max() <= 1e-5 * abs(wanted).max()
