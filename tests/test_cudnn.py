"""JAX's way on a GPU, without one: which calls cuDNN is handed, and what it is told of them.

`jax.nn.dot_product_attention` takes the same arguments in array operations, which stand in for the
kernel on a CPU. That the kernel itself is called is read off a program that is lowered for a GPU.
"""

import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as jaxs
from jax.interpreters import mlir

from attn_jax import attention, attention_steps, cudnn, kernel
from attn_jax.call import Call
from attn_jax.cudnn import known_to_cudnn
from attn_jax.kernel import CudnnCall
from attn_jax.masks import allow, causal, padding, predicate, segments, sliding_window

pytestmark = pytest.mark.untyped
f16, b16, f32 = jnp.float16, jnp.bfloat16, jnp.float32
SQUARE, OTHER = (2, 4, 160, 160), (2, 4, 150, 170)
LONG = (2, 4, 8192, 8192)
PLAIN, DENSE, ONE = CudnnCall(0.5), CudnnCall(0.5, dense=2), CudnnCall(0.5, dense=1)
CAUSAL, LENGTHS = PLAIN._replace(causal=True), PLAIN._replace(padded=True)

# Name: mask, sizes, dtype, widths, what else differs, and what cuDNN is told.
CALLS = {
    "none": (None, OTHER, b16, (64, 64), {}, PLAIN),
    "none_half": (None, OTHER, f16, (128, 128), {}, PLAIN),
    "single": (None, OTHER, f32, (64, 64), {}, None),
    "wide": (None, OTHER, b16, (136, 136), {}, None),
    "not_of_eight": (None, OTHER, b16, (68, 68), {}, None),
    "other_values": (None, OTHER, b16, (64, 32), {}, None),
    "causal": (causal(), SQUARE, b16, (64, 64), {}, CAUSAL),
    "causal_not_square": (causal(), OTHER, b16, (64, 64), {}, DENSE),
    "causal_later": (causal(), SQUARE, b16, (64, 64), {"query_offset": 1}, DENSE),
    "causal_offsets": (causal(), SQUARE, b16, (64, 64), {"query_offset": jnp.zeros(2, int)}, DENSE),
    "not_causal": (~causal(), SQUARE, b16, (64, 64), {}, DENSE),
    "window": (sliding_window(20), SQUARE, b16, (64, 64), {}, CAUSAL._replace(before=20)),
    "window_causal": (causal() & sliding_window(20), SQUARE, b16, (64, 64), {},
                      CAUSAL._replace(before=20)),
    "window_ahead": (sliding_window(20, 1), SQUARE, b16, (64, 64), {}, DENSE),
    "windows": (sliding_window(20) & sliding_window(30), SQUARE, b16, (64, 64), {}, DENSE),
    "padding": (padding([3, 170]), OTHER, b16, (64, 64), {"query_offset": 5}, LENGTHS),
    "padding_causal": (padding([3, 170]) & causal(), SQUARE, b16, (64, 64), {},
                       CAUSAL._replace(padded=True)),
    "padding_window": (padding([3, 9]) & sliding_window(2), SQUARE, b16, (64, 64), {}, DENSE),
    "padding_hidden": (padding(hidden=jnp.zeros((2, 170), bool)), OTHER, b16, (64, 64), {}, DENSE),
    "padding_or": (padding([3, 9]) | causal(), SQUARE, b16, (64, 64), {}, DENSE),
    "segments": (segments([[1] * 160] * 2), SQUARE, b16, (64, 64), {}, DENSE),
    "allow": (allow(jnp.ones((1, 1, 160, 160), bool)), SQUARE, b16, (64, 64), {}, DENSE),
    "predicate": (predicate(lambda b, h, q, k: k <= q), SQUARE, b16, (64, 64), {}, DENSE),
    "segments_half": (segments([[1] * 160] * 2), SQUARE, f16, (64, 64), {}, None),
    "long_segments": (segments(np.ones((1, 8192), int)), LONG, b16, (64, 64), {}, DENSE),
    "long_segments_each": (segments(np.ones((2, 8192), int)), LONG, b16, (64, 64), {}, ONE),
    "long_offsets": (causal(), LONG, b16, (64, 64), {"query_offset": jnp.arange(2)}, ONE),
    "long_predicate": (predicate(lambda b, h, q, k: k <= q), LONG, b16, (64, 64), {}, None),
    "too_long": (~causal(), (2, 4, 8192, 8193), b16, (64, 64), {}, None),
    "bias": (None, OTHER, b16, (64, 64), {"bias": jnp.zeros((150, 170))}, None),
    "softcap": (None, OTHER, b16, (64, 64), {"softcap": 2.0}, None),
    "traced_scale": (None, OTHER, b16, (64, 64), {"scale": jnp.ones(())}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_cudnn_knows_are_named(name):
    mask, sizes, dtype, widths, others, told = CALLS[name]
    call = Call(sizes, mask, None, 0.5, None, None, "zero", 0, 0.0, None)._replace(**others)
    assert known_to_cudnn(jnp.dtype(dtype), *widths, call) == told


def inputs(sizes, dtype=b16, kv_heads=2, width=16):
    batch, heads, queries, keys = sizes
    shapes = [(batch, heads, queries), (batch, kv_heads, keys), (batch, kv_heads, keys)]
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(*shape, width)), dtype) for shape in shapes]


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """Take a CPU for a GPU, and see what its kernel is told."""
    seen, own = [], jax.nn.dot_product_attention

    def public(query, *args, mask=None, **options):
        seen.append({"mask": mask is not None, "samples": len(query), **options})
        bias = jaxs.combine_bias_and_mask(None, mask, query.dtype)  # as cuDNN is told of it
        return own(query, *args, bias=bias, **options)

    def heads_first(*arrays, mask, q_seqlen, kv_seqlen, scale, mask_type, qkv_layout,
                    sliding_window_length):  # fmt: skip
        assert qkv_layout == "BNTH" and jaxs.has_padding(mask_type) == (kv_seqlen is not None)
        return public(
            *(x.swapaxes(1, 2) for x in arrays),
            mask=mask,
            query_seq_lengths=q_seqlen,
            key_value_seq_lengths=kv_seqlen,
            scale=scale,
            is_causal="CAUSAL" in mask_type.name,
            local_window_size=sliding_window_length and (sliding_window_length - 1, 0),
            implementation="xla",
        ).swapaxes(1, 2)

    monkeypatch.setattr(jax.nn, "dot_product_attention", public)
    own_way = SimpleNamespace(dot_product_attention=heads_first, MaskType=jaxs.MaskType)
    monkeypatch.setattr(kernel, "private", own_way)
    mlir.register_lowering(cudnn.known_p, cudnn._lower, platform="cpu", cacheable=False)
    monkeypatch.setattr(sys.modules["attn_jax.attention"], "has_cudnn", lambda: True)
    jax.clear_caches()
    yield seen
    mlir.register_lowering(cudnn.known_p, cudnn._lower_elsewhere, platform="cpu", cacheable=False)
    jax.clear_caches()


PRIME, ODD = (2, 4, 149, 167), (2, 4, 161, 161)
IDS = np.repeat([[1, 2, 3, 2], [4, 4, 5, 6]], [50, 40, 60, 11], 1)
ROWS = np.random.default_rng(1).integers(0, 4, (2, 149))  # 0 is no key's
SOME = np.random.default_rng(2).random((2, 4, *PRIME[2:])) < 0.1
SOME[:, :, ::7] = False
MASKS = {
    "none": (None, OTHER, {}),
    "none_odd": (None, (2, 4, 5501, 3), {}),  # one key more would be a quarter of each mean
    "causal": (causal(), SQUARE, {"is_causal": True}),
    "causal_odd": (causal(), ODD, {"is_causal": True}),
    "window": (sliding_window(20), SQUARE, {"is_causal": True, "local_window_size": (20, 0)}),
    "padding": (padding([0, 90]), OTHER, {"key_value_seq_lengths": ...}),
    "padding_odd": (padding([0, 167]), PRIME, {"key_value_seq_lengths": ...}),
    "padding_causal": (padding([0, 90]) & causal(), SQUARE,
                       {"is_causal": True, "key_value_seq_lengths": ...}),
    "packed": (segments(IDS) & causal(), ODD, {"mask": True}),
    "segments_pair": (segments(ROWS, ROWS[:, :1] + np.arange(167) % 3 + 1), PRIME, {"mask": True}),
    "allow": (allow(jnp.asarray(SOME)), PRIME, {"mask": True}),
    "padding_hidden": (padding(hidden=np.arange(170) % 3 > np.array([[-1], [1]])), OTHER,
                       {"mask": True}),
    "predicate": (predicate(lambda b, h, q, k: (q + b < 140) & ((3 * k + q + h) % 5 == 0)), PRIME,
                  {"mask": True}),
    "offsets": (causal(), PRIME, {"mask": True, "query_offset": jnp.array([3, 18])}),
}  # fmt: skip
EPS = float(jnp.finfo(b16).eps)


def output(arrays, query_offset=0, **options):
    return attention(*arrays, **options, query_offset=query_offset)


def textbook(arrays, query_offset=0, **options):
    wide = [x.astype(f32) for x in arrays]
    return attention_steps(*wide, **options, query_offset=query_offset).output


def lost_by_loops(query, key, value, call, *grad):
    """Stand in for the loops, where the kernel alone is asked for."""
    return [jnp.full_like(x, jnp.nan) for x in ((query, key, value) if grad else (query,))]


CASES = [(name, "zero", False) for name in MASKS] + [
    (name, how, name == "allow") for name in ("padding", "allow") for how in ("uniform", "nan")
] + [(name, "zero", True) for name in ("packed", "allow", "predicate", "offsets")]  # fmt: skip


@pytest.mark.parametrize(("name", "empty_rows", "one_at_a_time"), CASES)
def test_kernel_is_told_the_mask_and_gives_what_the_textbook_gives(
    calls, name, empty_rows, one_at_a_time, monkeypatch
):
    mask, sizes, told = MASKS[name]
    arrays, options = inputs(sizes), {"mask": mask, "empty_rows": empty_rows}
    options["query_offset"] = told.get("query_offset", 0)
    if one_at_a_time:  # as many cells as one sample has, in all heads where they differ
        heads = 4 if name in ("allow", "predicate") else 1
        monkeypatch.setattr(cudnn, "CELLS", heads * sizes[2] * sizes[3])
    monkeypatch.setattr(cudnn, "_by_loops", lost_by_loops)
    got, right = (way(arrays, **options).astype(f32) for way in (output, textbook))
    (call,) = calls
    assert call["implementation"] == "xla" and call["scale"] == 0.25
    assert call["is_causal"] == told.get("is_causal", False)
    assert call["local_window_size"] == told.get("local_window_size")
    assert (call["key_value_seq_lengths"] is not None) == ("key_value_seq_lengths" in told)
    assert call["mask"] == ("mask" in told) and call["samples"] == (1 if one_at_a_time else 2)
    # Weights and output are rounded to 16 bits, each once; a mean of values is no larger than they.
    limit = 2 * EPS * abs(arrays[2].astype(f32)).max()
    np.testing.assert_allclose(got, right, rtol=0, atol=limit)
    if empty_rows == "nan":
        return
    grad = inputs(sizes, width=16)[0]
    pull, exactly = (jax.vjp(lambda *x, way=way: way(x, **options), *arrays)[1]
                     for way in (output, textbook))  # fmt: skip
    seen = len(calls)
    found, exact = pull(grad), exactly(grad.astype(f32))
    assert len(calls) > seen, "the gradient is not the kernel's"
    for one, other in zip(found, exact, strict=True):
        error = abs(one.astype(f32) - other.astype(f32))
        assert error.max() <= 8 * EPS * abs(other.astype(f32)).max()


@pytest.mark.parametrize("name", ["window", "padding_causal", "packed"])
def test_the_public_way_gives_what_the_textbook_gives(calls, name, monkeypatch):
    monkeypatch.setattr(kernel, "IMPLEMENTATION", "xla")
    monkeypatch.setattr(kernel, "private", None)
    monkeypatch.setattr(cudnn, "_by_loops", lost_by_loops)
    mask, sizes, told = MASKS[name]
    arrays = inputs(sizes)
    got, right = (way(arrays, mask=mask).astype(f32) for way in (output, textbook))
    assert len(calls) == 1 and "query_seq_lengths" not in calls[0]
    assert told.items() <= {**calls[0], **dict.fromkeys(["key_value_seq_lengths"], ...)}.items()
    np.testing.assert_allclose(got, right, rtol=0, atol=2 * EPS * abs(arrays[2].astype(f32)).max())


def test_lengths_that_are_traced_may_be_beyond_the_keys(calls):
    arrays = inputs(OTHER)
    got = jax.jit(lambda n: output(arrays, mask=padding(n)))(jnp.array([0, 400]))
    assert calls and not got[0].any()
    np.testing.assert_allclose(
        got[1].astype(f32), textbook(arrays)[1], rtol=0, atol=2 * EPS * abs(arrays[2]).max()
    )


@pytest.mark.parametrize("name", ["causal", "padding", "packed"])
def test_what_is_not_finite_shows_where_it_is_allowed(calls, name):
    mask, sizes, _ = MASKS[name]
    query, key, value = inputs(sizes)
    key = key.at[1, 0, 80, 3].set(jnp.nan)
    value = value.at[1, 1, 159, 3].set(jnp.inf).at[0, 0, 5].set(-jnp.inf)
    arrays = query, key, value
    got, right = (way(arrays, mask=mask).astype(f32) for way in (output, textbook))
    assert calls and jnp.isnan(right).any() and not jnp.isnan(right).all()
    np.testing.assert_allclose(got, right, rtol=0, atol=EPS * 8)
    grads = jax.grad(lambda q: jnp.where(jnp.isnan(right), 0, output((q, key, value), mask=mask))
                     .astype(f32).sum())(query)  # fmt: skip
    finite = ~jnp.isnan(right).any(-1)
    assert jnp.isfinite(grads.astype(f32))[finite].all()


def test_scores_that_could_reach_a_hidden_ones_go_by_the_loops(calls):
    """A dense mask adds -2**41: a hidden key of a score of 2**44 would win over one of -2**44."""
    query, key, value = inputs(ODD)
    query, key = jnp.full_like(query, 2**20), jnp.full_like(key, -(2**20))
    arrays = query, key.at[:, :, 100:].set(2**20), value
    mask = segments(IDS) & causal()
    got, right = (way(arrays, mask=mask).astype(f32) for way in (output, textbook))
    assert calls[0]["mask"], "no dense mask was tried"
    np.testing.assert_allclose(got, right, rtol=0, atol=2 * EPS * abs(value.astype(f32)).max())


def test_a_gradient_that_is_not_finite_reaches_no_hidden_key(calls):
    mask, sizes, _ = MASKS["packed"]
    query, key, value = inputs(sizes)
    grad = inputs(sizes)[0].at[0, 0, 5].set(jnp.nan)
    (d_key,) = jax.vjp(lambda key: output((query, key, value), mask=mask), key)[1](grad)
    lost = jnp.isnan(d_key).any((0, 1, 3))
    assert calls and lost[:6].all(), "it does not reach the keys that row 5 is allowed"
    assert not lost[6:].any(), "it reaches keys that are hidden from row 5"


def test_mapped_calls_go_by_the_loops(calls):
    mask, sizes, _ = MASKS["padding_causal"]
    arrays = inputs(sizes)
    several = [jnp.stack([x, x[::-1]], 1) for x in arrays]
    call = lambda q, k, v: output((q, k, v), mask=mask)  # noqa: E731
    got = jax.vmap(call, (1, 1, 1))(*several)
    right = jnp.stack([textbook([x[:, i] for x in several], mask=mask) for i in range(2)])
    np.testing.assert_allclose(got.astype(f32), right, rtol=0, atol=8 * EPS)
    one = jax.vmap(call, (None, None, 1))(*arrays[:2], several[2])
    np.testing.assert_array_equal(one[0], got[0])
    grads = jax.vmap(jax.grad(lambda *x: call(*x).astype(f32).sum()), (1, 1, 1))(*several)
    assert grads.shape == (2, *sizes[:3], 16) and jnp.isfinite(grads).all()


def test_forward_mode_and_second_derivatives_are_the_textbooks(calls):
    mask, sizes, _ = MASKS["padding_causal"]
    arrays = inputs(sizes)

    def second(way):
        def slope(query):
            loss = lambda q: jnp.square(way((q, *arrays[1:]), mask=mask).astype(f32)).sum()  # noqa: E731
            return jax.grad(loss)(query).astype(f32)

        return jax.jvp(slope, (arrays[0],), (jnp.ones_like(arrays[0]),))[1]

    got, right = second(output), second(textbook)
    assert abs(got - right).max() <= 32 * EPS * abs(right).max()


@pytest.fixture
def gpu(monkeypatch):
    """Return how to lower a value and its gradients for a GPU that is not here."""
    monkeypatch.setattr(jaxs, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(sys.modules["attn_jax.attention"], "has_cudnn", lambda: True)

    def trace(mask, sizes=SQUARE):
        arrays = inputs(sizes, width=64)
        loss = lambda *x: attention(*x, mask=mask, query_offset=0).astype(f32).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2))), arrays

    def lower(*args, platform="cuda"):
        program, arrays = trace(*args)
        return program.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()

    return SimpleNamespace(trace=trace, lower=lower)


def test_a_program_for_a_gpu_calls_the_kernel(gpu):
    """Of a program for a GPU the kernel's calls are read; one for a CPU has none."""
    mask = padding([160, 9]) & causal()
    texts = {name: gpu.lower(mask, SQUARE, platform=name) for name in ("cuda", "cpu")}
    for way in ("fmhaSoftmax(", "fmhaSoftmaxBackward("):
        assert f"__cudnn${way}" in texts["cuda"] and f"__cudnn${way}" not in texts["cpu"]
    assert "PADDING_CAUSAL" in texts["cuda"]
    program, arrays = gpu.trace(mask)
    exported = jax.export.export(program, platforms=["cuda"])(*arrays)
    assert "fmhaSoftmax" not in exported.mlir_module()


# How axes of an array of width 64 are moved.
MOVED = re.compile(r"stablehlo.transpose.*dims = \[(.*?)\].*x64xbf16>")
# What JAX tells cuDNN beside the layout, which is to differ.
SETTING = re.compile(r'"(mask_type|sliding_window_length|fmha_scale)": ([^,}]+)')


@pytest.mark.parametrize("name", MASKS)
def test_heads_are_not_moved_for_the_kernel(gpu, name, monkeypatch):
    """JAX's public function says the same to cuDNN, after it has moved the heads of every array."""
    monkeypatch.setattr(cudnn, "_by_loops", lost_by_loops)
    mask, sizes, told = MASKS[name]
    said = {}
    for way, private in {"own": kernel.private, "public": None}.items():
        monkeypatch.setattr(kernel, "private", private)
        jax.clear_caches()
        text = gpu.lower(mask, sizes).replace("\\22", '"')
        said[way] = SETTING.findall(text)
        moved = set(MOVED.findall(text)) - {"0, 1, 2, 3"}
        assert (way == "own") == (not moved), f"{way}: axes are moved, {moved}"
        kinds = ["ScaleBias" * ("mask" in told) + end for end in ("Softmax(", "SoftmaxBackward(")]
        assert all(f"__cudnn$fmha{kind}" in text for kind in kinds), f"{way}: {kinds}"
    assert len(said["own"]) >= 6 and said["own"] == said["public"]


def test_a_jax_without_the_known_way_moves_the_heads(monkeypatch):
    assert kernel.takes_heads_first()
    changed = SimpleNamespace(dot_product_attention=lambda query, key, value, layout: query)
    for private in (None, changed):
        monkeypatch.setattr(kernel, "private", private)
        assert not kernel.takes_heads_first()


def test_cudnn_is_asked_of_new_gpus_only(monkeypatch):
    class Device:
        compute_capability = "9.0"

    monkeypatch.setattr(jax, "devices", lambda platform: [Device()])
    assert cudnn.has_cudnn.__wrapped__()
    Device.compute_capability = "7.5"
    assert not cudnn.has_cudnn.__wrapped__()

    def none(platform):
        raise RuntimeError(f"Unknown backend {platform}")

    monkeypatch.setattr(jax, "devices", none)
    assert not cudnn.has_cudnn.__wrapped__()
