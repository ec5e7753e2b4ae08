"""Torch's ways on a GPU, without one: which is chosen, and that FlexAttention is handed the call.

Where a GPU compiles FlexAttention, its definition in array operations runs here, also backward.
Only a compiled program looks at the tiles, so one is compiled for the CPU; the lists of tiles that
all others are handed are checked cell by cell.
"""

import gc
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from fuzz_blocked import Structure, dirtied
from torch.nn.attention import flex_attention as torchs

from attn_torch import attention, attention_steps, flex, fused
from attn_torch.call import Call, check_call
from attn_torch.fused import ways_on_gpu
from attn_torch.masks import (
    allow,
    causal,
    hide,
    padding,
    predicate,
    prefix,
    segments,
    sliding_window,
)
from attn_torch.plan import SCORES
from conformance.oracle import expected
from conformance.oracle.tolerance import compare
from conformance.subjects import load

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it itself
f16, b16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
LONG, WIDE, SHORT, LONGEST = (8, 16, 4096, 4096), (32, 12, 128, 128), (1, 8, 16, 16), (2**15,) * 2
BOTH, DENSE, BLOCKS = ["flex", "dense", "blocks"], ["dense", "blocks"], ["blocks"]
PADDED = causal() & padding([100] * 8)
ODD = predicate(lambda batch, head, query, key: (query + key) % 2 == 1)

# Name: mask, sizes, dtype, widths, what differs from a plain call, and the ways to try.
WAYS = {
    "no_mask": (None, LONG, b16, (64, 64), {}, BLOCKS),  # the kernel knows it
    "causal": (causal(), LONG, b16, (64, 64), {}, BLOCKS),
    "causal_wide_values": (causal(), LONG, b16, (64, 72), {}, DENSE),  # filled up, without a mask
    "causal_longest": (causal(), (1, 1, *LONGEST), b16, (7, 7), {}, DENSE),
    "causal_offset": (causal(), LONG, b16, (64, 64), {"query_offset": 1}, BOTH),
    "window": (sliding_window(256), LONG, b16, (64, 64), {}, BOTH),
    "window_longest": (sliding_window(256), (1, 8, *LONGEST), b16, (64, 64), {},
                       ["flex", "blocks"]),
    "window_double": (sliding_window(256), LONG, f64, (64, 64), {}, BLOCKS),
    "window_single": (sliding_window(256), LONG, f32, (64, 64), {}, BLOCKS),
    "window_narrow": (sliding_window(256), LONG, f16, (8, 8), {}, DENSE),
    "window_widest": (sliding_window(256), LONG, b16, (256, 256), {}, ["flex", "blocks"]),
    "window_wide_backward": (sliding_window(256), LONG, b16, (192, 192), {"derived": True}, BLOCKS),
    "padded": (PADDED, LONG, f16, (64, 64), {"derived": True}, ["flex", "blocks"]),
    "padded_short": (padding([16]), SHORT, f16, (64, 64), {}, DENSE),
    "padded_short_backward": (padding([16]), SHORT, f16, (64, 64), {"derived": True}, BLOCKS),
    "padded_wide": (causal() & padding([100] * 32), WIDE, b16, (64, 64), {}, DENSE),
    "predicate": (ODD, LONG, b16, (64, 64), {}, ["flex", "blocks"]),  # may look at every head
    "softcap": (None, LONG, b16, (64, 64), {"softcap": 3.0}, ["flex", "blocks"]),
    "softcap_short": (None, SHORT, f16, (64, 64), {"softcap": 3.0}, BLOCKS),
    "bias": (None, LONG, b16, (64, 64), {"bias": torch.zeros(1, 1, 1, 1)}, DENSE),
    "bias_of_all": (None, LONG, b16, (64, 64), {"bias": torch.zeros(8, 1, 1, 1)}, BLOCKS),
    "bias_learned": (None, SHORT, f32, (64, 64),
                     {"bias": torch.zeros(16, 16, requires_grad=True), "derived": True}, BLOCKS),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_ways_on_a_gpu_are_named(name):
    mask, sizes, dtype, widths, others, ways = WAYS[name]
    derived = others.get("derived", False)
    call = Call(sizes, mask, None, 1.0, None, None, "zero", 0, 0.0, None)
    call = call._replace(**{name: x for name, x in others.items() if name != "derived"})
    assert ways_on_gpu(dtype, *widths, call, derived) == ways


@pytest.mark.parametrize(("batch", "ways"), [(8, DENSE), (9, BLOCKS)])
def test_a_dense_mask_is_no_larger_than_a_blocks_scores(batch, ways):
    sizes = (batch, 4, 2**10, SCORES // 2**13)
    call = Call(sizes, padding([1] * batch), None, 1.0, None, None, "zero", 0, 0.0, None)
    assert ways_on_gpu(f16, 8, 8, call, False) == ways


def inputs(queries=37, keys=45, kv_heads=2, dtype=f32, width=8):
    make = torch.Generator().manual_seed(0)
    sizes = (queries, 4), (keys, kv_heads), (keys, kv_heads)
    return [torch.randn(2, heads, n, width, generator=make).to(dtype) for n, heads in sizes]


@pytest.fixture
def defined(monkeypatch):
    """FlexAttention by its definition, which has a gradient on a CPU, too."""
    monkeypatch.setattr(flex, "COMPILER", "aot_eager")
    monkeypatch.setattr(torchs, "_validate_device", lambda *arrays: None)
    flex._program.cache_clear()
    yield
    flex._program.cache_clear()


@pytest.fixture
def taken(monkeypatch) -> list[str]:
    """Go as on a GPU in 16 bits, with float32 that shows more; what each way gone is called."""
    seen = []

    def spied(name, way):
        def spy(*args):
            seen.append(name)
            return way(*args)

        return spy

    for name in ("attend_flex", "attend_traced", "attention_blocked"):
        monkeypatch.setattr(flex, name, spied(name, getattr(flex, name)))
    called = sys.modules["attn_torch.attention"]  # the package has a function of this name
    monkeypatch.setattr(called, "attention_on_cpu", flex.attention_on_gpu)
    monkeypatch.setattr(fused, "is_exact", lambda *question: True)
    return seen


@pytest.mark.parametrize("seed", range(8))
def test_flex_is_the_oracles(defined, seed):
    draw = Structure(seed).draw(0)
    shape, _, (query, key, value, grad), allowed, options, given = draw
    options.pop("bias", None)
    rng = np.random.default_rng(seed)
    mine = (query, *dirtied(rng, shape, allowed, options, key, value))
    subject = load("torch", "cpu")
    arrays = [subject.array(x).requires_grad_() for x in mine]
    call = check_call(*arrays, **subject.options(options | given))
    output = flex.attend_flex(*arrays, call)
    exact, naive = expected.attention(query, key, value, allowed=allowed, **options)
    compare(subject.numpy(output), exact["output"], naive["output"], "output")
    if options["empty_rows"] != "nan":
        exact, naive = expected.gradients(query, key, value, grad, allowed=allowed, **options)
        found = torch.autograd.grad(output, arrays, subject.array(grad))
        for name, gradient in zip(("query", "key", "value"), found, strict=True):
            compare(subject.numpy(gradient), exact[name], naive[name], f"gradient of {name}")


MASKS = {
    "causal": (causal(), 0),
    "causal_later": (causal(), 130),
    "window": (sliding_window(100, 20), 3),
    "window_each": (sliding_window(100, 20), torch.tensor([0, 150])),
    "prefix": (~prefix([3, 290]), 0),
    "padding": (causal() & padding([300, 0]), 100),
    "hidden": (padding(hidden=torch.arange(420).expand(2, 420) % 290 > 140), 0),
    "segments": (segments(torch.arange(420).expand(2, 420) // 150), 20),
    "pairs": (segments(torch.arange(300)[None] // 128, torch.arange(420)[None] // 256), 0),
    "allow": (allow(torch.ones(1, 4, 300, 420, dtype=torch.bool).tril()), 0),
    "hide": (hide(torch.ones(2, 1, 300, 420, dtype=torch.bool).tril(40)), 0),
    "predicate": (ODD & causal(), 0),
}
SIZES = (2, 4, 300, 420)


@pytest.mark.parametrize("name", MASKS)
def test_tiles_are_listed_as_the_mask_has_them(name):
    mask, offset = MASKS[name]
    call = Call(SIZES, mask, None, 1.0, None, None, "zero", offset, 0.0, None)
    blocks = flex.block_mask(call, torch.device("cpu"))
    cells = mask.allowed(*SIZES[2:], query_offset=offset, batch=2, heads=4).expand(SIZES)
    listed = (blocks.kv_num_blocks, blocks.kv_indices)
    listed = listed, (blocks.full_kv_num_blocks, blocks.full_kv_indices)
    needed, full = (torchs._ordered_to_dense(*x, 4).bool().expand(2, 4, 3, 4) for x in listed)
    assert not (needed & full).any(), "a tile is listed twice"
    for batch, head, row, column in np.ndindex(2, 4, 3, 4):
        at = (slice(row * 128, row * 128 + 128), slice(column * 128, column * 128 + 128))
        tile = cells[batch, head][at]
        if full[batch, head, row, column]:
            assert tile.shape == (128, 128) and tile.all(), "a full tile is neither cut nor masked"
        elif not needed[batch, head, row, column]:
            assert not tile.any(), "a tile that is left out has an allowed cell"
    assert full.any() or not needed.all(), "no tile is left out, and none is full"
    places = [torch.arange(size) for size in SIZES]
    rule = torchs._vmap_for_bhqkv(blocks.mask_mod, prefix=())
    assert torch.equal(rule(*places), cells), "the rule differs from the mask's cells"


def tolerance(query, key, value, width=8):
    """Bound what two orders of summing up in float32 may differ by."""
    scores = query.abs().max() * key.abs().max() * query.shape[3]
    return 4 * torch.finfo(f32).eps * (scores + key.shape[2]) * value.abs().nan_to_num(0).max()


CALLS = {
    "none": ({}, "kernel"),
    "flex": ({"mask": causal() & padding([45, 0]), "query_offset": 8}, "attend_flex"),
    "dense": ({"mask": causal(), "query_offset": 8, "bias": torch.ones(37, 45)}, "attend_traced"),
    "blocks": ({"bias": torch.ones(37, 45), "softcap": 2.0}, "attention_blocked"),
}


@pytest.mark.parametrize("empty_rows", ["zero", "uniform", "nan"])
@pytest.mark.parametrize("name", CALLS)
def test_way_that_is_named_is_gone(defined, taken, monkeypatch, name, empty_rows):
    monkeypatch.setattr(fused, "COMPILED", 1)
    options, way = CALLS[name]
    arrays = [x.requires_grad_() for x in inputs(width=16)]
    with torch.set_grad_enabled(way != "attend_traced"):
        output = attention(*arrays, **options, empty_rows=empty_rows)
    assert taken == [way if way != "kernel" else "attention_blocked"]
    steps = attention_steps(*arrays, **options, empty_rows=empty_rows).output
    limit = tolerance(*(x.detach() for x in arrays))
    torch.testing.assert_close(output, steps, rtol=0, atol=limit, equal_nan=True)
    if empty_rows != "nan" and output.requires_grad:
        found, right = (torch.autograd.grad(x.square().sum(), arrays, create_graph=True)
                        for x in (output, steps))  # fmt: skip
        for one, other in zip(found, right, strict=True):
            assert (one - other).abs().max() <= 100 * limit and other.isfinite().all()
        assert torch.autograd.grad(found[0].sum(), arrays)[1].isfinite().all()


def test_what_does_not_compile_is_answered_another_way(taken, monkeypatch):
    monkeypatch.setattr(fused, "COMPILED", 1)
    tried = []

    def fails(*args):
        tried.append(1)
        raise NotImplementedError("no compiler")

    monkeypatch.setattr(flex, "COMPILER", fails)
    flex._program.cache_clear()
    arrays, mask = inputs(width=16), causal() & padding([45, 9])
    for _ in range(2):
        with torch.no_grad():
            output = attention(*arrays, mask=mask, query_offset=8)
    flex._program.cache_clear()
    assert taken == ["attend_flex", "attend_traced"] * 2 and len(tried) == 1  # once is enough
    steps = attention_steps(*arrays, mask=mask, query_offset=8).output
    torch.testing.assert_close(output, steps, rtol=0, atol=tolerance(*arrays))


def test_nothing_is_compiled_anew_for_other_values(monkeypatch):
    compiled = []

    def counting(graph, inputs):
        compiled.append(1)
        return graph

    monkeypatch.setattr(flex, "COMPILER", counting)
    flex._program.cache_clear()
    for i in range(1, 7):
        arrays = inputs(30 + i, 40 + i)
        odd = predicate(lambda batch, head, query, key: (query + key) % 2 == 1)
        mask = (causal() & padding([20 + i, 40])) | odd
        call = check_call(*arrays, mask=mask, query_offset=i)
        assert flex.attend_flex(*arrays, call) is not None
    flex._program.cache_clear()
    assert len(compiled) == 2, "one program for the first sizes, and one for all others"


def test_flex_is_left_alone_where_compiling_is_switched_off(monkeypatch):
    arrays, called = inputs(), []
    monkeypatch.setattr(flex, "flex_attention", lambda *args: called.append(args))
    flex._program.cache_clear()
    with torch.compiler.set_stance("force_eager"):
        assert flex.attend_flex(*arrays, check_call(*arrays, mask=padding([9, 9]))) is None
    flex._program.cache_clear()
    assert not called, "uncompiled it holds all scores"


def test_tiles_that_are_kept_in_inference_serve_a_gradient(defined):
    mask, arrays = padding([40, 9]), inputs()
    call = check_call(*arrays, mask=mask)
    with torch.inference_mode():
        flex.attend_flex(*arrays, call)
    leaves = [x.requires_grad_() for x in arrays]
    flex.attend_flex(*leaves, call).sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)


def test_numbers_that_are_too_large_are_left_to_the_blocks(defined):
    query, key, value = inputs()
    value[0, 0, 3] = 1e38
    assert flex.attend_flex(query, key, value, check_call(query, key, value)) is None


def kept(mask, offset=0):
    call = Call((2, 4, 300, 420), mask, None, 1.0, None, None, "zero", offset, 0.0, None)
    return flex.block_mask(call, torch.device("cpu"))


def test_tiles_are_kept_with_a_mask_that_cannot_change():
    mask = sliding_window(100) & padding([300, 200])
    assert kept(mask) is kept(mask)
    assert kept(mask, 1) is not kept(mask, 2)
    gc.collect()
    count = len(flex._KEPT)
    del mask
    gc.collect()
    assert len(flex._KEPT) == count - 1, "they outlive the mask"


def test_tiles_are_asked_anew_where_the_caller_may_write():
    cells = torch.zeros(1, 1, 300, 420, dtype=torch.bool)
    offset = torch.tensor([0, 1])
    for mask, at in ((hide(cells), 0), (ODD, 0), (causal(), offset)):
        assert kept(mask, at) is not kept(mask, at)
    mask = causal() | hide(cells)
    before = kept(mask, 0).full_kv_num_blocks.sum()
    cells.numpy()[:] = True  # which no version counter sees
    assert kept(mask, 0).full_kv_num_blocks.sum() < before


def test_lengths_that_the_caller_writes_to_change_nothing():
    lengths = torch.tensor([420, 100])
    mask = padding(lengths)
    before = kept(mask).kv_num_blocks.clone()
    lengths[:] = 0
    assert torch.equal(kept(replace(mask)).kv_num_blocks, before)


@pytest.mark.parametrize("dtype", [f32, b16])
def test_compiled_program_is_right(monkeypatch, dtype):
    """Tiles are left out and taken unmasked; keys that are not finite show where allowed."""
    if shutil.which("g++") is None or not torch.cpu._is_avx2_supported():
        pytest.skip("torch compiles FlexAttention for no such CPU")
    flex._program.cache_clear()
    query, key, value = inputs(257, 300, dtype=dtype)
    mask = causal() & padding([200, 0])
    key[0, 0, 250], value[0, 1, 190] = torch.nan, torch.inf  # hidden, and allowed to some
    call = check_call(query, key, value, mask, query_offset=20, empty_rows="uniform")
    output = flex.attend_flex(query, key, value, call)
    assert output is not None, "it does not compile"
    steps = attention_steps(
        *(x.float() for x in (query, key, value)), mask=mask, query_offset=20, empty_rows="uniform"
    ).output
    finite = [x.float().nan_to_num(0, 0, 0) for x in (query, key, value)]
    rounding = 0 if dtype == f32 else 2 * torch.finfo(dtype).eps * finite[2].abs().max()
    torch.testing.assert_close(
        output.float(), steps, rtol=0, atol=tolerance(*finite) + rounding, equal_nan=True
    )
    assert output[0, 2:, 170:].isnan().all() and output[0, :2].isfinite().all()
