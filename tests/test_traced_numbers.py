"""Which numbers stay right where nobody may look: traced attention, called without a graph."""

import math

import pytest
import torch

from attn_torch import attention_steps, fused, traced
from attn_torch.call import check_call
from attn_torch.fused import call_kernel, fused_step

LOWEST = torch.finfo(torch.float32).min
BIASES = {
    "fill": [LOWEST] * 7,  # of a whole row: no key counts more than another
    "two_fills": [LOWEST, -3.0e38, -3.1e38, LOWEST, -3.3e38, -3.2e38, -3.0e38],
    "far_and_near": [LOWEST, 0.5, -1.5e38, -1e30, 0.25, 1e-3, -1.0],
    "high": [3.0e38, -LOWEST, 2.0, 1.5e38, 3.3e38, -LOWEST, 0.0],
}


def inputs(*shapes):
    make = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=make) for shape in shapes]


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_is_far_off_and_can_be_multiplied(monkeypatch, name):
    masks = []

    def kernel(query, key, value, scale, causal, mask):
        masks.append(mask)
        return call_kernel(query, key, value, scale, causal, mask)

    monkeypatch.setattr(traced, "call_kernel", kernel)
    query, key, value = inputs((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8))
    bias = torch.tensor(BIASES[name]).expand(5, 7)
    call = check_call(query, key, value, bias=bias)
    allowed = traced.allowed_cells(call, query.device)
    output = traced.attend_traced(query, key, value, call, allowed)
    steps = attention_steps(query, key, value, bias=bias).output
    limit = 8 * torch.finfo(torch.float32).eps * value.abs().max()  # 7 weights, of 1 together
    assert (output - steps).abs().max() <= limit
    assert (masks[0] / math.log(2)).isfinite().all(), "a GPU's kernel would make NaN of it"


@pytest.mark.parametrize("mask", ["none", "hidden"])
def test_products_that_are_scaled_down_do_not_overflow(mask):
    query, key, value = inputs((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8))
    query, key = query * 2e20, key * 2e20
    call = check_call(query, key, value, scale=1e-41)
    allowed = None if mask == "none" else torch.ones(2, 1, 5, 7, dtype=torch.bool)
    output = traced.attend_traced(query, key, value, call, allowed)
    exact = attention_steps(query.double(), key.double(), value.double(), scale=1e-41).output
    assert (output - exact).abs().max() <= 1e-4


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_a_step_without_an_exact_kernel_is_the_formula(monkeypatch, heads):
    query, key, value = inputs((3, 4, 1, 8), (3, heads, 11, 8), (3, heads, 11, 8))
    value[:, :, 7:] = torch.nan  # beyond what is written
    before = fused_step(query, key, value, [7, 7, 2])
    monkeypatch.setattr(fused, "is_exact", lambda *question: False)
    monkeypatch.setattr(fused, "call_kernel", None)
    after = fused_step(query, key, value, [7, 7, 2])
    assert after.shape == query.shape and (after - before).abs().max() <= 1e-6
    key[1, :, 3] = torch.nan
    rows = fused_step(query, key, value, [7, 7, 2]).isnan().all(-1).all(1)[:, 0]
    assert rows.tolist() == [False, True, False]
