"""Everyday calls of torch on a CPU: which way they go, what is kept of masks, random ones."""

import gc
from importlib import import_module

import pytest
import torch
from fuzz_everyday import fuzz

from attn_torch import (
    allow,
    attention,
    attention_steps,
    causal,
    everyday,
    padding,
    segments,
    sliding_window,
)
from attn_torch.call import check_call
from attn_torch.everyday import SamplePart as Part
from attn_torch.everyday import parts_of, way_on_cpu

pytestmark = pytest.mark.untyped

LEFT = torch.tensor([[True, True, False, False], [True, False, False, False]])
HOLES = torch.tensor([[False, True, False, False], [False, False, False, False]])


def inputs(*sizes, grad: bool = False):
    make = torch.Generator().manual_seed(0)
    return [torch.randn(sizes, generator=make).requires_grad_(grad) for _ in range(3)]


PARTS = {
    "lengths": (padding([3, 4]), 0, [Part(0, 0, 3, False), Part(0, 0, 4, False)]),
    "causal": (causal(), 0, [Part(0, 0, 4, True)] * 2),
    "both": (causal() & padding([3, 4]), 0, [Part(0, 0, 3, True), Part(0, 0, 4, True)]),
    "left": (causal() & padding(hidden=LEFT), 0, [Part(2, 2, 4, True), Part(1, 1, 4, True)]),
    "left_with_offset": (
        causal() & padding(hidden=LEFT), 1, [Part(1, 2, 4, True), Part(0, 1, 4, True)],
    ),
    "left_and_lengths": (
        padding(hidden=LEFT) & padding([2, 3]), 0, [Part(4, 0, 0, False), Part(0, 1, 3, False)],
    ),
    "everything_is_past": (causal() & padding([3]), 2, [Part(0, 0, 3, False)] * 2),
    "diagonal_inside": (causal(), 1, []),
    "offset_a_sample": (causal(), torch.zeros(2, dtype=torch.int64), []),
    "nothing": (padding([0, 0]), 0, []),
    "before_all": (causal(), -9, []),
    "holes": (padding(hidden=HOLES), 0, []),
    "window": (sliding_window(1), 0, []),
    "either": (causal() | padding([3, 4]), 0, []),
    "not": (~padding([3, 4]), 0, []),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_what_the_mask_allows(name):
    mask, query_offset, wanted = PARTS[name]
    call = check_call(*inputs(2, 1, 4, 8), mask, query_offset=query_offset)
    parts = parts_of(call)
    assert parts == wanted
    for sample, (row, start, stop, below) in enumerate(parts):
        cells = mask.allowed(4, 4, query_offset=query_offset, batch=2).expand(2, 1, 4, 4)
        drawn = torch.zeros(4, 4, dtype=torch.bool)
        square = torch.ones(4 - row, stop - start, dtype=torch.bool)
        drawn[row:, start:stop] = square.tril() if below else square
        assert torch.equal(cells[sample, 0], drawn)


STEPS = {
    "window": (sliding_window(3), 30, None),
    "window_ahead": (sliding_window(2, 1), torch.tensor([3, 38, 30]), None),
    "window_outside": (sliding_window(2), torch.tensor([36, 60, 30]), torch.ones(4)),
    "causal": (causal(), torch.tensor([5, 0, 9]), None),
    "cache": (sliding_window(4) & padding([8, 31, 12]), torch.tensor([7, 30, 11]), None),
    "nothing_written": (causal() & padding([8, 0, 12]), torch.tensor([7, 0, 11]), None),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_reads_only_what_it_may_be_allowed(name, monkeypatch):
    mask, query_offset, sinks = STEPS[name]
    query, key, value = inputs(3, 4, 40, 8, grad=True)
    options = {"mask": mask, "query_offset": query_offset, "sinks": sinks}
    steps = attention_steps(query[:, :, :1], key[:, :2], value[:, :2], **options).output
    read, real = [], everyday.narrow

    def note(*given):
        read.append((narrowed := real(*given))[0].shape[2])
        return narrowed

    monkeypatch.setattr(import_module("attn_torch.attention"), "narrow", note)
    output = attention(query[:, :, :1], key[:, :2], value[:, :2], **options)
    torch.testing.assert_close(output, steps, rtol=0, atol=1e-6)
    wanted = mask.allowed(1, 40, query_offset=query_offset, batch=3).flatten(0, 2).any(0)
    (columns,) = wanted.nonzero(as_tuple=True)
    spread = int(columns.max() - columns.min()) + 1
    assert read == [spread if 2 * spread <= 40 else 40]
    for grads in zip(
        *(torch.autograd.grad(x.sum(), (query, key, value)) for x in (output, steps)), strict=True
    ):
        torch.testing.assert_close(*grads, rtol=0, atol=1e-5)


RAGGED = [64, 9, 31, 20]
WAYS = {
    "known": (causal(), (4, 8, 64, 64), True, "kernel"),
    "known_not_finite": (None, (4, 8, 64, 64), False, "kernel"),
    "not_finite": (padding(RAGGED), (4, 8, 64, 64), False, "blocks"),
    "tiny": (padding([5, 2]), (2, 1, 5, 64), True, "dense"),
    "equal": (padding([5, 5]), (2, 1, 5, 64), True, "parts"),  # one call of the kernel
    "short": (padding(RAGGED), (4, 1, 64, 64), True, "dense"),
    "many_heads": (padding([128, 20, 60, 40]), (4, 8, 128, 64), True, "parts"),
    "long": (padding([300, 200]), (2, 1, 300, 64), True, "parts"),
    "window": (sliding_window(9), (4, 1, 256, 64), True, "dense"),
    "window_long": (sliding_window(9), (4, 1, 257, 64), True, "blocks"),
    "window_many": (sliding_window(9), (65, 8, 64, 64), True, "blocks"),
}


@pytest.mark.parametrize("name", WAYS)
def test_way_is_that_of_fewer_cells(name):
    mask, sizes, finite, way = WAYS[name]
    query, key, value = inputs(*sizes)
    call = check_call(query, key, value, mask)
    assert way_on_cpu(query, value, call, finite, False)[0] == way
    instead = {"dense": "blocks" if name == "window" else "parts"}  # for the sake of gradients
    assert way_on_cpu(query, value, call, finite, True)[0] == instead.get(way, way)


@pytest.mark.parametrize("name", ["hidden", "allow"])
@pytest.mark.parametrize("through", ["numpy", "torch"])
def test_array_that_was_written_to_is_read_again(name, through):
    query, key, value = inputs(2, 1, 4, 8)
    array = HOLES.clone() if name == "hidden" else torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    mask = padding(hidden=array) if name == "hidden" else allow(array)
    attention(query, key, value, mask=mask)
    if through == "numpy":
        array.numpy()[..., 0] ^= True
    else:
        array.data[..., 0] ^= True
    wanted = attention_steps(query, key, value, mask=mask).output
    torch.testing.assert_close(attention(query, key, value, mask=mask), wanted)


def test_dense_form_is_kept_while_the_mask_is(monkeypatch):
    query, key, value = inputs(2, 1, 4, 8)
    lengths, before = torch.tensor([3, 2]), len(everyday._kept)
    mask = segments([[0, 0, 1, 1]]) & padding(lengths)
    wanted = attention_steps(query, key, value, mask=mask).output
    torch.testing.assert_close(attention(query, key, value, mask=mask), wanted)
    asked = []
    monkeypatch.setattr(everyday, "Cells", lambda *sizes, **on: asked.append(sizes))
    lengths.zero_()  # the mask has a copy
    torch.testing.assert_close(attention(query, key, value, mask=mask), wanted)
    assert not asked and len(everyday._kept) == before + 1
    monkeypatch.undo()
    shorter = attention(query[:, :, 2:], key, value, mask=mask, query_offset=2)
    torch.testing.assert_close(shorter, wanted[:, :, 2:])
    double = [x.double() for x in (query, key, value)]
    assert attention(*double, mask=mask).dtype == torch.float64
    del mask
    gc.collect()
    assert len(everyday._kept) == before


@pytest.mark.parametrize("mask", [sliding_window(1) & padding([3, 2]), causal() & padding([4, 4])])
def test_kept_answer_is_that_of_the_offset(mask):
    query, key, value = inputs(2, 1, 4, 8)
    for offset in (0, 1, 3, 0):
        wanted = attention_steps(query, key, value, mask=mask, query_offset=offset).output
        output = attention(query, key, value, mask=mask, query_offset=offset)
        torch.testing.assert_close(output, wanted)


@pytest.mark.parametrize("mask", [sliding_window(2) & padding([3, 4]), causal() & padding([3, 4])])
def test_kept_answer_is_that_of_the_sizes_and_the_dtype(mask):
    for T, dtype in ((4, "float32"), (2, "float32"), (2, "float64"), (2, "bfloat16")):
        query, key, value = (x.to(getattr(torch, dtype)) for x in inputs(2, 1, 4, 8))
        wanted = attention_steps(query[:, :, :T], key, value, mask=mask, query_offset=0).output
        output = attention(query[:, :, :T], key, value, mask=mask, query_offset=0)
        torch.testing.assert_close(output, wanted)


@pytest.mark.parametrize("rest", [causal(), sliding_window(2)], ids=["parts", "dense"])
def test_kept_answer_is_that_of_tables_written_to(rest):
    query, key, value = inputs(2, 4, 4, 8)
    own = padding([4, 3])
    mask = rest & own
    before = attention(query, key, value, mask=mask)
    own.arrays[0][1] = 1
    wanted = attention_steps(query, key, value, mask=mask).output
    output = attention(query, key, value, mask=mask)
    torch.testing.assert_close(output, wanted)
    assert not torch.allclose(output, before)


def test_mask_that_served_inference_serves_all_calls():
    query, key, value = inputs(2, 1, 4, 8, grad=True)
    with torch.inference_mode():
        mask = causal() & segments(torch.tensor([[0, 0, 1, 1]]))
        first = attention(query, key, value, mask=mask).clone()
    with torch.no_grad():
        torch.testing.assert_close(attention(query, key, value, mask=mask), first)
    output = attention(query, key, value, mask=mask)
    output.sum().backward()
    torch.testing.assert_close(output, first)
    assert query.grad.isfinite().all() and value.grad.any()


@pytest.mark.parametrize("empty_rows", ["zero", "uniform"])
@pytest.mark.parametrize("mask", [padding([5, 0]), causal() & padding(hidden=LEFT.repeat(1, 2))])
def test_gradients_of_gradients_are_the_steps(mask, empty_rows):
    T = 8 if mask.parts else 6
    arrays = [x.double() for x in inputs(2, 1, T, 3)]
    arrays = [x.detach().requires_grad_() for x in arrays]
    both = []
    for attend in (attention, lambda *x, **on: attention_steps(*x, **on).output):
        output = attend(*arrays, mask=mask, empty_rows=empty_rows)
        first = torch.autograd.grad(output.sin().sum(), arrays, create_graph=True)
        both.append((*first, *torch.autograd.grad(sum(x.square().sum() for x in first), arrays)))
    torch.testing.assert_close(*both)


def test_random_calls_are_the_oracles():
    ways, found = fuzz(50)
    assert not found, "\n".join(found)
    assert min(ways[way] for way in ("parts", "dense", "blocks")) >= 3, ways


@pytest.mark.parametrize(
    "mask", [padding([5, 0]), padding([5, 5]), segments([[0, 0, 1, 1, 1, 2]] * 2)]
)
@pytest.mark.parametrize("bad", [torch.nan, 1e30])
def test_query_that_is_not_finite_changes_its_own_row_alone(mask, bad):
    query, key, value = inputs(2, 3, 6, 8)
    clean = attention(query, key, value, mask=mask)
    query[:, :, 4, 3] = bad
    output = attention(query, key, value, mask=mask)
    kept = [0, 1, 2, 3, 5]
    assert torch.equal(output[:, :, kept], clean[:, :, kept])
    wanted = attention_steps(query, key, value, mask=mask).output
    torch.testing.assert_close(output, wanted, equal_nan=True)


@pytest.mark.parametrize("mask", [None, causal(), *(mask for mask, *_ in PARTS.values())][:5])
def test_products_that_overflow_before_they_are_scaled(mask):
    query, key, value = inputs(2, 1, 4, 8)
    query, key = torch.full_like(query, 1e27), key.zero_()
    key[:, :, 1], key[:, :, 2] = -1e14, -2e14  # scores near -1 and -2
    wide = [array.double() for array in (query, key, value)]
    wanted = attention_steps(*wide, mask=mask, scale=1e-42).output
    torch.testing.assert_close(
        attention(query, key, value, mask=mask, scale=1e-42).double(), wanted, rtol=0, atol=2e-3
    )  # 1e-42 has four digits in float32


@pytest.mark.parametrize("mask", [None, padding([2])])
@pytest.mark.parametrize(("query", "scale"), [(3e38, 1e-57), (1e25, 1e-43)])
def test_products_of_one_number_overflow_too(mask, query, scale):
    query, key = torch.full((1, 1, 1, 1), query), torch.tensor([1e18, -1e18]).view(1, 1, 2, 1)
    value = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    wide = [array.double() for array in (query, key, value)]
    scale = torch.tensor(scale).item()  # what float32 has of it
    wanted = attention_steps(*wide, mask=mask, scale=scale).output
    output = attention(query, key, value, mask=mask, scale=scale).double()
    torch.testing.assert_close(output, wanted, rtol=0, atol=1e-6)
