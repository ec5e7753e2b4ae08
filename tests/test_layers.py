"""NumPy's own layers against what torch.nn gives the other backends."""

import numpy as np
import pytest
import torch

import attn_numpy.layers as layers
from conformance.oracle.tolerance import eps

X = np.random.default_rng(3).normal(size=(3, 5, 7)).astype(np.float32)


def check(got, expected, factor: float = 8) -> None:
    """Both are float32 sums of seven terms: they may differ by a few roundings of the largest."""
    limit = factor * eps("float32") * abs(expected).max()
    assert got.shape == expected.shape
    assert abs(got - expected).max() <= limit


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_torchs(bias):
    ours, theirs = layers.Linear(7, 11, bias=bias), torch.nn.Linear(7, 11, bias=bias)
    ours.weight = theirs.weight.detach().numpy()
    if bias:
        ours.bias = theirs.bias.detach().numpy()
    check(ours(X), theirs(torch.from_numpy(X)).detach().numpy())


@pytest.mark.parametrize("eps_", [1e-5, 0.1])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_is_torchs(eps_, bias):
    ours, theirs = layers.LayerNorm(7, eps=eps_, bias=bias), torch.nn.LayerNorm(7, eps_, bias=bias)
    rng = np.random.default_rng(4)
    for kind in ("weight", "bias")[: 1 + bias]:
        array = rng.normal(size=7).astype(np.float32)
        setattr(ours, kind, array)
        getattr(theirs, kind).data = torch.from_numpy(array)
    small = X * 0.01  # where eps matters
    check(ours(small), theirs(torch.from_numpy(small)).detach().numpy())


def test_layer_norm_defaults_to_torchs_epsilon():
    assert layers.LayerNorm(7).eps == torch.nn.LayerNorm(7).eps


def test_embedding_looks_rows_up_and_pads_with_zero():
    embedding = layers.Embedding(10, 4, padding_idx=3, rng=np.random.default_rng(5))
    tokens = np.array([[3, 9, 0], [1, 3, 3]])
    got = embedding(tokens)
    assert (got[tokens == 3] == 0).all()
    assert (got[0, 1] == embedding.weight[9]).all()
    assert abs(got[tokens != 3]).min() > 0


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_dropout_keeps_its_share_and_scales_it(rate):
    dropout = layers.Dropout(rate, rng=np.random.default_rng(6))
    x = np.full((100, 100), 3.0)
    got = dropout(x)
    share = (got == 0).mean()
    assert abs(share - rate) <= 4 * np.sqrt(rate * (1 - rate) / x.size)
    if rate < 1:
        assert np.allclose(got[got != 0], 3 / (1 - rate), rtol=1e-15)
    dropout.training = False
    assert (dropout(x) == x).all()


def test_sixteen_bit_sums_do_not_stall():
    linear = layers.Linear(4096, 1, bias=False, dtype=np.float16)
    linear.weight = np.ones((1, 4096), np.float16)
    assert linear(np.full((1, 4096), 0.5, np.float16)).item() == 2048


def test_attn_torch_is_not_undone_by_autocast():
    import attn_torch

    query, key, value = torch.full((3, 1, 1, 5, 512), 60.0)
    plain = attn_torch.attention_steps(query, key, value).scores
    with torch.autocast("cpu", torch.float16):
        cast = attn_torch.attention_steps(query, key, value).scores
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)
