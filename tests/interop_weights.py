"""Weights of keras, equinox and timm go in by name, and give these libraries' outputs.

`nox -s interop` makes an environment that has them and runs this file, whose name no other finds.
"""

from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from test_foreign_weights import BACKENDS, LENGTHS, E, H, T, additive, check_output, sharpened

S = 9


def inputs(*widths: int) -> list[np.ndarray]:
    """Return query (3, T, E), key and value (3, S, width), each with numbers of its own."""
    rng = np.random.default_rng(5)
    shapes = [(3, T, E), *((3, S, width) for width in widths)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def shaken(array: np.ndarray) -> np.ndarray:
    return array + np.random.default_rng(array.size).normal(size=array.shape, scale=0.4)


@pytest.fixture
def keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    return pytest.importorskip("keras")


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")  # theirs
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["multi_head", "multi_head_wide", "grouped"])
def test_keras_layers_go_in(keras, backend, kind):
    import jax

    if kind == "grouped":
        layer = keras.layers.GroupQueryAttention(5, H, 2)
        config = {"num_kv_heads": 2, "head_dim": 5}
    else:
        layer = keras.layers.MultiHeadAttention(H, 5 if "wide" in kind else E // H)
        config = {"head_dim": 5} if "wide" in kind else {}
    (x, memory), allowed = inputs(E), np.arange(S) < np.array(LENGTHS)[:, None, None]
    layer.build(x.shape, memory.shape)
    for weight in layer.weights:
        weight.assign(shaken(keras.ops.convert_to_numpy(weight)))
    with jax.default_matmul_precision("highest"):
        theirs = np.asarray(layer(x, memory, attention_mask=np.broadcast_to(allowed, (3, T, S))))
    weights = {weight.path: weight for weight in layer.weights}
    prefix = layer.name if next(iter(weights)).startswith(layer.name) else ""
    arrays = [x, memory, memory]
    check_output(backend, weights, config, theirs, arrays, allowed[:, None], prefix=prefix)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("biases", ["none", "out", "all"])
def test_equinox_modules_go_in(backend, biases):
    equinox = pytest.importorskip("equinox")
    import jax

    inner, out = biases == "all", biases != "none"
    names = dict.fromkeys(("use_query_bias", "use_key_bias", "use_value_bias"), inner)
    module = equinox.nn.MultiheadAttention(
        H, E, 5, 3, E, 7, 7, **names, use_output_bias=out, key=jax.random.key(0)
    )
    arrays, static = equinox.partition(module, equinox.is_array)
    arrays = jax.tree.map(lambda array: shaken(array).astype(np.float32), arrays)
    module, (x, key, value) = equinox.combine(arrays, static), inputs(5, 3)
    allowed = np.arange(S) < np.array(LENGTHS)[:, None, None]
    with jax.default_matmul_precision("highest"):
        masks = np.broadcast_to(allowed, (3, T, S))
        theirs = np.asarray(jax.vmap(module)(x, key, value, masks))
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    weights = {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}
    config = {"kdim": 5, "vdim": 3, "head_dim": 7, "bias": out, "qkv_bias": inner}
    check_output(backend, weights, config, theirs, [x, key, value], allowed[:, None])


@pytest.fixture(scope="module")
def timm():
    """Import timm, and with it torchvision, whose compiled half may be of another build of torch.

    That half then defines no operator, and without these two torchvision cannot be imported.
    """
    if find_spec("torchvision") is None:
        pytest.skip("timm needs torchvision")
    try:
        import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    return pytest.importorskip("timm")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_timm_blocks_go_in(timm, backend, qkv_bias):
    block = timm.models.vision_transformer.Block
    blocks = torch.nn.Sequential(*(block(E, H, qkv_bias=qkv_bias) for _ in range(2)))
    (x,) = inputs()
    allowed = np.broadcast_to(np.arange(T) < np.array(LENGTHS)[:, None, None], (3, T, T))[:, None]
    with torch.no_grad():
        attn = sharpened(blocks)[1].attn
        theirs = attn(torch.from_numpy(x), attn_mask=additive(allowed)).numpy()
    config, prefix = {"qkv_bias": qkv_bias}, "1.attn."
    check_output(backend, blocks.state_dict(), config, theirs, [x] * 3, allowed, prefix=prefix)
