"""JAX's way on a GPU, without one: which calls cuDNN is handed, and what it is told of them.

`jax.nn.dot_product_attention` takes the same arguments in array operations, which stand in for the
kernel on a CPU. That the kernel itself is called is read off a program that is lowered for a GPU.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as jaxs
from jax.interpreters import mlir

from attn_jax import attention, attention_steps, cudnn
from attn_jax.call import Call
from attn_jax.cudnn import CudnnCall, known_to_cudnn
from attn_jax.masks import allow, causal, padding, predicate, segments, sliding_window

pytestmark = pytest.mark.untyped
f16, b16, f32 = jnp.float16, jnp.bfloat16, jnp.float32
SQUARE, OTHER = (2, 4, 160, 160), (2, 4, 150, 170)
PLAIN = CudnnCall(0.5, False, None, False)
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
    "causal_not_square": (causal(), OTHER, b16, (64, 64), {}, None),
    "causal_later": (causal(), SQUARE, b16, (64, 64), {"query_offset": 1}, None),
    "causal_offsets": (causal(), SQUARE, b16, (64, 64), {"query_offset": jnp.zeros(2, int)}, None),
    "not_causal": (~causal(), SQUARE, b16, (64, 64), {}, None),
    "window": (sliding_window(20), SQUARE, b16, (64, 64), {}, CAUSAL._replace(before=20)),
    "window_causal": (causal() & sliding_window(20), SQUARE, b16, (64, 64), {},
                      CAUSAL._replace(before=20)),
    "window_ahead": (sliding_window(20, 1), SQUARE, b16, (64, 64), {}, None),
    "windows": (sliding_window(20) & sliding_window(30), SQUARE, b16, (64, 64), {}, None),
    "padding": (padding([3, 170]), OTHER, b16, (64, 64), {"query_offset": 5}, LENGTHS),
    "padding_causal": (padding([3, 170]) & causal(), SQUARE, b16, (64, 64), {},
                       CAUSAL._replace(padded=True)),
    "padding_window": (padding([3, 9]) & sliding_window(2), SQUARE, b16, (64, 64), {}, None),
    "padding_hidden": (padding(hidden=jnp.zeros((2, 170), bool)), OTHER, b16, (64, 64), {}, None),
    "padding_or": (padding([3, 9]) | causal(), SQUARE, b16, (64, 64), {}, None),
    "segments": (segments([[1] * 160] * 2), SQUARE, b16, (64, 64), {}, None),
    "allow": (allow(jnp.ones((1, 1, 160, 160), bool)), SQUARE, b16, (64, 64), {}, None),
    "predicate": (predicate(lambda b, h, q, k: k <= q), SQUARE, b16, (64, 64), {}, None),
    "bias": (None, OTHER, b16, (64, 64), {"bias": jnp.zeros((150, 170))}, None),
    "softcap": (None, OTHER, b16, (64, 64), {"softcap": 2.0}, None),
    "traced_scale": (None, OTHER, b16, (64, 64), {"scale": jnp.ones(())}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_cudnn_knows_are_named(name):
    mask, sizes, dtype, widths, others, told = CALLS[name]
    call = Call(sizes, mask, None, 0.5, None, "zero", 0, 0.0, None)._replace(**others)
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

    def kernel(*args, **options):
        seen.append(options)
        return own(*args, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")
    mlir.register_lowering(cudnn.known_p, cudnn._lower, platform="cpu", cacheable=False)
    monkeypatch.setattr(sys.modules["attn_jax.attention"], "has_cudnn", lambda: True)
    jax.clear_caches()
    yield seen
    mlir.register_lowering(cudnn.known_p, cudnn._lower_elsewhere, platform="cpu", cacheable=False)
    jax.clear_caches()


MASKS = {
    "none": (None, OTHER, {}),
    "causal": (causal(), SQUARE, {"is_causal": True}),
    "window": (sliding_window(20), SQUARE, {"is_causal": True, "local_window_size": (20, 0)}),
    "padding": (padding([0, 90]), OTHER, {"key_value_seq_lengths": ...}),
    "padding_causal": (padding([0, 90]) & causal(), SQUARE,
                       {"is_causal": True, "key_value_seq_lengths": ...}),
}  # fmt: skip
EPS = float(jnp.finfo(b16).eps)


def output(arrays, **options):
    return attention(*arrays, **options, query_offset=0)


def textbook(arrays, **options):
    wide = [x.astype(f32) for x in arrays]
    return attention_steps(*wide, **options, query_offset=0).output


CASES = [(name, "zero") for name in MASKS] + [("padding", "uniform"), ("padding", "nan")]


@pytest.mark.parametrize(("name", "empty_rows"), CASES)
def test_kernel_is_told_the_mask_and_gives_what_the_textbook_gives(calls, name, empty_rows):
    mask, sizes, told = MASKS[name]
    arrays, options = inputs(sizes), {"mask": mask, "empty_rows": empty_rows}
    got, right = (way(arrays, **options).astype(f32) for way in (output, textbook))
    (call,) = calls
    assert call["implementation"] == "xla" and call["scale"] == 0.25
    assert call["is_causal"] == told.get("is_causal", False)
    assert call["local_window_size"] == told.get("local_window_size")
    assert (call["key_value_seq_lengths"] is not None) == ("key_value_seq_lengths" in told)
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


def test_lengths_that_are_traced_may_be_beyond_the_keys(calls):
    arrays = inputs(OTHER)
    got = jax.jit(lambda n: output(arrays, mask=padding(n)))(jnp.array([0, 400]))
    assert calls and not got[0].any()
    np.testing.assert_allclose(
        got[1].astype(f32), textbook(arrays)[1], rtol=0, atol=2 * EPS * abs(arrays[2]).max()
    )


@pytest.mark.parametrize("name", ["causal", "padding"])
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


def test_a_program_for_a_gpu_calls_the_kernel(monkeypatch):
    """Of a program for a GPU the kernel's calls are read; one for a CPU has none."""
    monkeypatch.setattr(jaxs, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(sys.modules["attn_jax.attention"], "has_cudnn", lambda: True)
    arrays, mask = inputs(SQUARE, kv_heads=4, width=64), padding([160, 9]) & causal()
    program = jax.jit(jax.value_and_grad(lambda *x: attention(*x, mask=mask).astype(f32).sum()))
    texts = {
        platform: program.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cuda", "cpu")
    }
    for way in ("fmhaSoftmax(", "fmhaSoftmaxBackward("):
        assert f"__cudnn${way}" in texts["cuda"] and f"__cudnn${way}" not in texts["cpu"]
    assert "PADDING_CAUSAL" in texts["cuda"]
    exported = jax.export.export(program, platforms=["cuda"])(*arrays)
    assert "fmhaSoftmax" not in exported.mlir_module()


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
