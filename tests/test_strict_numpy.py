"""NumPy's backend gives the same numbers under any error state, with warnings as errors too."""

import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attn_numpy import (
    MultiHeadAttention,
    Seq2SeqTransformer,
    TransformerDecoderLayer,
    TransformerEncoder,
    attention,
    attention_part,
    attention_steps,
    causal,
    draw_weights,
    finish,
    greedy_decode,
    merge,
    padding,
)

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SIZES = [1e-30, 1e-4, 1.0, 30.0, 6e4, 1e19]  # of inputs: what underflows, and what overflows
SMALL = {"d_model": 10, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
SMALL |= {"dim_feedforward": 7}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=[np.dtype(dtype).name for dtype in DTYPES])


def same_under_any_error_state(call: Callable[[], Any]) -> None:
    with np.errstate(all="ignore"):
        wanted = call()
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        got = call()
    for one, other in zip(arrays(got), arrays(wanted), strict=True):
        np.testing.assert_array_equal(one.astype(np.float64), other.astype(np.float64))


def arrays(result: Any) -> list[np.ndarray]:
    if isinstance(result, np.ndarray):
        return [result]
    return [array for part in result for array in arrays(part)]


def normal(dtype: Any, size: float, *shape: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        return (np.random.default_rng(3).normal(size=shape) * size).astype(dtype)


@dtypes
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 257), (7, 13), (131, 257)])
@pytest.mark.parametrize("call", [attention, attention_steps])
def test_attention(call, T, S, size, dtype):
    query, key, value = (normal(dtype, size, 2, 2, length, 5) for length in (T, S, S))
    mask = padding([S // 2, 0])
    for hidden in (None, np.nan, np.inf):
        if hidden is not None:
            key[:, :, S // 2 :] = value[:, :, S // 2 :] = hidden
        bias = np.where(np.arange(S) == 1, -np.inf, normal(np.float32, 1, T, S))
        for settings in (
            {},
            {"bias": bias.astype(np.float32)},
            {"bias": bias.astype(np.float32), "softcap": 3.0},
            {"empty_rows": "nan"},
            {"empty_rows": "uniform"},
        ):
            same_under_any_error_state(lambda s=settings: call(query, key, value, mask=mask, **s))


@dtypes
@pytest.mark.parametrize("size", [1e-38, *SIZES])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_layers(activation, norm_first, size, dtype):
    settings = {"activation": activation, "norm_first": norm_first, "dtype": dtype}
    x = normal(dtype, size, 2, 7, 10)
    layer = TransformerDecoderLayer(10, 2, 11, layer_norm_eps=0, **settings)
    stack = TransformerEncoder(2, 10, 2, 11, norm=True, **settings).eval()
    same_under_any_error_state(lambda: layer.eval()(x, x, causal(), need_weights=True))
    same_under_any_error_state(lambda: decoded(layer, x))
    same_under_any_error_state(lambda: stack(x, need_weights=True))
    same_under_any_error_state(lambda: stack.decode(x, stack.start(2, 9))[0])
    with np.errstate(all="raise"):
        layer.train()(x, x, need_weights=True)


def decoded(layer: TransformerDecoderLayer, x: np.ndarray) -> np.ndarray:
    cache, memory = layer.self_attn.new_cache(2, 9), layer.multihead_attn.project(x)
    return layer.decode(x, cache, memory)[0]


@dtypes
@pytest.mark.parametrize("size", [1e-6, 1.0, 300.0])
def test_tokens(size, dtype):
    with np.errstate(all="raise"):
        model = Seq2SeqTransformer(11, 13, **SMALL, dtype=dtype)
    for module, name in model.parameters().values():
        with np.errstate(all="ignore"):
            setattr(module, name, (getattr(module, name).astype(np.float32) * size).astype(dtype))
    src = np.random.default_rng(0).integers(0, 11, (2, 7))
    model.eval()
    same_under_any_error_state(lambda: model(src, src[:, 1:5], need_weights=False))
    prompt = np.array([[1], [2]])
    same_under_any_error_state(
        lambda: greedy_decode(model, src, prompt, eos_idx=2, max_new_tokens=5)
    )


@dtypes
@pytest.mark.parametrize("apart", [-95, -1e4])
def test_parts_of_which_one_counts_for_nothing(apart, dtype):
    inputs = [normal(dtype, 1.0, 1, 2, 7, 5) for _ in range(3)]
    bias = np.full((7, 7), apart, dtype)

    def merged() -> np.ndarray:
        return finish(merge(attention_part(*inputs), attention_part(*inputs, bias=bias)))

    same_under_any_error_state(merged)


@dtypes
def test_masks_and_averaged_weights(dtype):
    same_under_any_error_state(lambda: causal().additive(5, 5, dtype))
    attn, x = MultiHeadAttention(10, 5, dtype=dtype), normal(dtype, 30, 1, 7, 10)
    same_under_any_error_state(lambda: attn(x)[1])
    weights = attention_steps(*(normal(np.float32, 30, 1, 1, 7, 5),) * 3).weights[0, 0]
    with np.errstate(all="raise"):
        draw_weights(weights)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("mask", [None, causal() & padding([3, 0])], ids=["none", "both"])
def test_bytes_in_the_other_order_are_the_same_numbers(dtype, mask):
    arrays = np.random.default_rng(0).normal(size=(3, 2, 3, 5, 4)).astype(f"<{dtype}")
    turned = attention(*arrays.astype(f">{dtype}"), mask=mask)
    np.testing.assert_array_equal(turned, attention(*arrays, mask=mask))
