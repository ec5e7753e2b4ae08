"""A step of torch's decoding in 16 bits on a CPU: a few heads at a time, and float32's numbers."""

import numpy as np
import pytest
import torch

from attn_torch import MultiHeadAttention, fused
from conformance.oracle import expected
from conformance.oracle.tolerance import compare, dtype

KINDS = [torch.bfloat16, torch.float16]


@pytest.fixture
def parts(monkeypatch) -> list[tuple[int, torch.dtype]]:
    """How many heads each call of the kernel had, and in which dtype; each part has three."""
    seen, real = [], fused.call_kernel

    def note(query, key, *rest, **options):
        seen.append((len(key) * key.shape[1], key.dtype))
        return real(query, key, *rest, **options)

    monkeypatch.setattr(fused, "call_kernel", note)
    monkeypatch.setattr(fused, "STEP_NUMBERS", 3 * 40 * 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return seen


def inputs(kind: torch.dtype, keys: int = 40) -> list[torch.Tensor]:
    """Return the queries of four heads, and keys and values of two, for four samples."""
    rng = torch.Generator().manual_seed(0)
    shapes = (4, 4, 1, 8), (4, 2, keys, 8), (4, 2, keys, 8)
    return [torch.randn(shape, generator=rng).to(kind) for shape in shapes]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_give_what_all_of_float32_gives(parts, kind):
    query, key, value = inputs(kind)
    got = fused.fused_step(query, key, value, [40, 40, 40, 17])
    assert parts == [(3, torch.float32), (3, torch.float32), (2, torch.float32)]
    whole = fused.fused_step(query.float(), key.float(), value.float(), [40, 40, 40, 17])
    assert torch.equal(got, whole.to(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_other_widths_are_not_split(parts, kind):
    query, key, value = (x.float() for x in inputs(kind))
    fused.fused_step(query, key, value, [40] * 4)
    assert parts == [(8, torch.float32)]


@pytest.mark.parametrize("keys", [2048, 8192])
@pytest.mark.parametrize("kind", KINDS)
def test_long_caches_are_the_oracles(kind, keys):
    query, key, value = inputs(kind, keys)
    got = fused.fused_step(query, key, value, [keys] * 4)
    name = str(kind)[len("torch.") :]
    arrays = [x.float().numpy().astype(dtype(name)) for x in (query, key, value)]
    allowed = np.ones((4, 4, 1, keys), bool)
    exact, naive = expected.attention(*arrays, allowed=allowed)
    compare(got.float().numpy().astype(dtype(name)), exact["output"], naive["output"], "output")


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_without_a_token_is_let_be(parts, kind):
    attn = MultiHeadAttention(16, 2, dtype=kind).eval()
    x, hidden = torch.ones(2, 1, 16, dtype=kind), torch.tensor([[False], [True]])
    output, cache = attn.decode(x, attn.new_cache(2, 3), hidden=hidden)
    assert (cache.lengths.tolist(), output[1].abs().max().item()) == ([1, 0], 0)
    assert output[0].isfinite().all()
