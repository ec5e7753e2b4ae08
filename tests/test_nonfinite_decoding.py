"""CACHE-12: a model whose keys, values or queries are not finite decodes to what one pass gives."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import attn_jax
import attn_numpy
import attn_torch
from conformance.subjects import load

pytestmark = pytest.mark.usefixtures("compiles_quickly")
MODULES = {"numpy": attn_numpy, "torch": attn_torch, "jax": attn_jax}
PLACES = ["k_proj", "v_proj", "q_proj"]
MARK = 7.0  # no other token has such a feature


def new(backend: str, dtype: str = "float32", **options):
    """Return the adapter, and an attention in evaluation mode with its causal mask."""
    module, subject = MODULES[backend], load(backend, "cpu")
    kinds = {"torch": torch, "jax": jnp, "numpy": np}
    options |= {"dtype": getattr(kinds[backend], dtype)}
    options |= {"rngs": nnx.Rngs(0)} if backend == "jax" else {}
    options |= {"rng": np.random.default_rng(0)} if backend == "numpy" else {}
    torch.manual_seed(0)
    attn = module.MultiHeadAttention(12, 2, **options)
    attn.eval()
    return subject, attn, module.causal()


def tokens(batch: int, steps: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(steps).normal(size=(batch, steps, 12)).astype(dtype)


class Spoilt:
    """A projection that gives what is not finite for some tokens, known by a mark."""

    def __init__(self, inner, put):
        self.inner, self.put = inner, put

    def __call__(self, x):
        y, hit = self.inner(x), x[..., :1] == MARK
        if isinstance(y, torch.Tensor):
            return torch.where(hit, torch.tensor(self.put, dtype=y.dtype), y)
        where = np.where if isinstance(y, np.ndarray) else jnp.where
        return where(hit, self.put, y).astype(y.dtype)


def spoil(attn, name: str, put: float) -> None:
    spoilt = Spoilt(getattr(attn, name), put)
    if isinstance(attn, torch.nn.Module):
        delattr(attn, name)
        object.__setattr__(attn, name, spoilt)
    else:
        setattr(attn, name, spoilt)


def rows(subject, attn, mask, x, size: int, **options) -> tuple[np.ndarray, np.ndarray]:
    """Return one pass, and decoding in pieces of some size."""
    one, _ = attn(subject.array(x), attn_mask=mask, need_weights=False)
    cache, parts = attn.new_cache(len(x), x.shape[1]), []
    for start in range(0, x.shape[1], size):
        part, cache = attn.decode(subject.array(x[:, start : start + size]), cache, **options)
        parts.append(subject.numpy(part).astype(np.float32))
    return subject.numpy(one).astype(np.float32), np.concatenate(parts, 1)


def check(one: np.ndarray, parts: np.ndarray, dtype: str) -> None:
    assert np.array_equal(np.isnan(parts), np.isnan(one))
    spread = 1e-5 if dtype == "float32" else 0.02
    np.testing.assert_allclose(parts, one, atol=spread, rtol=spread)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("put", [np.nan, np.inf, -np.inf])
def test_torch_decodes_at_every_length(name, put):
    for options in ({}, {"num_kv_heads": 1}):
        subject, attn, mask = new("torch", **options)
        spoil(attn, name, put)
        for at in range(40):  # every length from 1 to 40 is met behind every token
            x = tokens(2, 40)
            x[1, at, 0] = MARK
            one, parts = rows(subject, attn, mask, x, 1)
            check(one, parts, "float32")
            assert np.isnan(one[1, at]).all()
            assert np.isfinite(one[0]).all()


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("size", [1, 5, 17])
def test_every_piece_is_that_of_one_pass(backend, dtype, name, size):
    for put in (np.nan, -np.inf):
        for steps in (15, 17) if backend == "torch" else (17,):  # torch has kernels by length
            subject, attn, mask = new(backend, dtype)
            spoil(attn, name, put)
            x = tokens(3, steps, dtype)
            x[0, 3, 0] = x[1, 0, 0] = x[1, steps - 1, 0] = MARK
            one, parts = rows(subject, attn, mask, x, size)
            check(one, parts, dtype)
            assert np.isnan(one).any()
            assert np.isfinite(one[2]).all()
            check(one, rows(subject, attn, mask, x, size, attn_mask=mask)[1], dtype)


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
@pytest.mark.parametrize("steps", [1, 2, 7, 15, 16, 33])
def test_a_weight_that_is_not_finite_is_seen_at_every_step(name, steps):
    subject, attn, mask = new("torch")
    with torch.no_grad():
        getattr(attn, name).weight[0, 0] = torch.nan
    one, parts = rows(subject, attn, mask, tokens(2, steps), 1)
    check(one, parts, "float32")
    assert np.isnan(one).all()


@pytest.mark.parametrize("name", ["k_proj", "v_proj", "q_proj"])
def test_samples_of_their_own_length_meet_only_their_own(name):
    for steps in (3, 15, 17):
        subject, attn, mask = new("torch")
        spoil(attn, name, np.nan)
        x = tokens(3, steps + 1)
        x[1, steps - 1, 0] = MARK
        hidden = np.zeros((3, steps), bool)
        hidden[0, 1:] = hidden[2, : steps // 2] = True
        cache = attn.new_cache(3, steps + 2)
        options = {"hidden": subject.array(hidden)}
        _, cache = attn.decode(subject.array(x[:, :steps]), cache, **options)
        got, cache = attn.decode(subject.array(x[:, steps:]), cache)
        got = subject.numpy(got)
        for b in range(3):
            alone = np.concatenate([x[b, :steps][~hidden[b]], x[b, steps:]])[None]
            one, _ = attn(subject.array(alone), attn_mask=mask)
            check(subject.numpy(one)[:, -1], got[b], "float32")
        assert np.isnan(got[1]).all() == (name != "q_proj")


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("steps", [1, 3, 15, 16, 33])
def test_scores_beyond_float32_are_those_of_one_pass(sign, steps):
    subject, attn, mask = new("torch")
    with torch.no_grad():
        for name, value in (("q_proj", 1e20), ("k_proj", sign * 1e20)):
            getattr(attn, name).weight.zero_()
            getattr(attn, name).bias.fill_(value)
    one, parts = rows(subject, attn, mask, tokens(2, steps), 1)
    check(one, parts, "float32")
    assert np.isnan(one).all()


@pytest.mark.parametrize("steps", [1, 5, 15, 16, 33])
@pytest.mark.parametrize("put", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_seen_by_the_kernel(steps, put):
    q, k = torch.rand(2, 2, 3, 4), torch.rand(2, 2, steps, 4) + 0.1
    q[0, 1, 2, 3] = put
    for mask in (None, attn_torch.causal()):
        options = {"mask": mask, "query_offset": steps}
        got = attn_torch.attention(q, k, k, **options)
        expected = attn_torch.attention_steps(q, k, k, **options).output
        torch.testing.assert_close(got, expected, equal_nan=True)
        assert got[0, 1, 2].isnan().all()
        assert got.isnan().sum() == 4
