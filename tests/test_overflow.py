"""JAX's blocked path where logits leave float32: what is allowed and overflows is not hidden.

NumPy and torch look at the numbers and send such calls to the textbook formula; under jax.jit
nobody can look, so the blocked path must know an overflow from a fully masked row by itself.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax import attention, attention_steps, causal, padding
from attn_jax.blocked import attention_blocked
from attn_jax.call import check_call

pytestmark = pytest.mark.untyped
LOWEST = np.finfo(np.float32).min
T, S = 5, 7
KEYS = jnp.where(jnp.arange(S)[:, None] == 3, 0, -1e20 * jnp.ones((S, 3)))  # the fourth is 0
BIAS = jnp.full((T, S), LOWEST)
HIDDEN = BIAS.at[:3, :4].set(-jnp.inf).at[0].set(-jnp.inf)  # all of the first row
# Name: query, keys, options, and the rows that are NaN whatever becomes of empty ones.
CASES = {
    "down": (1e20, jnp.full((S, 3), -1e20), {}, [0, 1, 2, 3, 4]),
    "down_and_hidden": (1e20, jnp.full((S, 3), -1e20), {"mask": padding([2])}, [0, 1, 2, 3, 4]),
    "down_after_empty_rows": (1e20, KEYS, {"mask": causal(), "query_offset": -2}, [2, 3, 4]),
    "down_but_one": (1e20, KEYS, {}, []),
    "down_until_one": (1e20, KEYS, {"mask": causal(), "query_offset": 0}, [0, 1, 2]),
    "up_until_one": (1e20, -KEYS, {"mask": causal(), "query_offset": 0}, [0, 1, 2, 3, 4]),
    "no_overflow_but_lowest": (1.0, jnp.ones((S, 3)), {"bias": BIAS}, []),
    "lowest_and_hidden": (1.0, -jnp.ones((S, 3)), {"bias": HIDDEN}, []),
    "bias_pushes_it_over": (1e17, jnp.full((S, 3), -1e17), {"bias": BIAS}, [0, 1, 2, 3, 4]),
    "softcap_catches_it": (1e20, jnp.full((S, 3), -1e20), {"softcap": 3.0}, []),
}


@pytest.mark.parametrize("policy", ["zero", "uniform", "nan"])
@pytest.mark.parametrize("case", list(CASES))
def test_the_blocked_path_overflows_as_the_textbook_does(case, policy):
    size, key, options, lost = CASES[case]
    query = jnp.full((1, 1, T, 3), size)
    value = jnp.asarray(np.random.default_rng(7).normal(size=(1, 1, S, 2)).astype(np.float32))
    inputs = (query, key[None, None].astype(jnp.float32), value)
    options = options | {"empty_rows": policy}
    expected = np.asarray(attention_steps(*inputs, **options).output)[0, 0]
    assert set(lost) <= set(np.isnan(expected).any(-1).nonzero()[0]), "the case is another one"
    got = np.asarray(attention_blocked(*inputs, check_call(*inputs, **options), tile=(2, 3)))[0, 0]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_allclose(got, expected, rtol=S * np.finfo(np.float32).eps)


@pytest.mark.parametrize("policy", ["zero", "uniform"])
def test_a_large_call_that_overflows_has_no_empty_rows(policy):
    query, key = jnp.full((1, 1, 131, 3), 1e20), jnp.full((1, 1, 137, 3), -1e20)
    got = attention(query, key, jnp.ones((1, 1, 137, 1)), empty_rows=policy)
    assert bool(jnp.isnan(got).all()), f"every logit is -inf: expected NaN, got {got[0, 0, 0]}"
