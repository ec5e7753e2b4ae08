"""Libraries called as their users call them, sharing no line with the adapters of the peers.

Each function takes NumPy's query, key and value (B, H, T, D), a mask or a bias as it is to be
handed over, and the causal flag; it returns the output (B, H, T, D) or raises the library's error.
"""
# mypy: disable-error-code="import-not-found"

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

HIDES, ADDS = ("torch-mha",), ("transformers-eager",)  # where True hides, where a mask is added
BIASES = ("jax-nn", "nnx-function", "keras-ops", "torch-flex", "x-transformers")


def joined(x):
    """Return (B, T, H * D) for (B, H, T, D)."""
    return np.concatenate([x[:, h] for h in range(x.shape[1])], -1)


def apart(x, like):
    """Return (B, H, T, D) for (B, T, H * D)."""
    return np.stack(np.split(np.asarray(x), like.shape[1], -1), 1)


def tensor(x):
    import torch

    if x is None or x.dtype.name != "bfloat16":
        return None if x is None else torch.tensor(x)
    return torch.tensor(x.astype(np.float32)).bfloat16()


def back(x):
    return x.detach().float().numpy() if x.is_floating_point() else x.numpy()


def sdpa(q, k, v, mask=None, causal=False, math=False):
    import torch

    backends = [torch.nn.attention.SDPBackend.MATH] if math else list(
        torch.nn.attention.SDPBackend.__members__.values()
    )  # fmt: skip
    with torch.nn.attention.sdpa_kernel(backends):
        q, k, v, mask = map(tensor, (q, k, v, mask))
        f = torch.nn.functional.scaled_dot_product_attention
        return back(f(q, k, v, mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]))


def mha(q, k, v, mask=None, causal=False, train=True, weights=False):
    """The layer asked of three tensors, its projections the identity."""
    import torch

    H, E = q.shape[1], q.shape[1] * q.shape[3]
    layer = torch.nn.MultiheadAttention(E, H, bias=False, batch_first=True).train(train)
    layer.in_proj_weight.data = torch.eye(E).repeat(3, 1)
    layer.out_proj.weight.data = torch.eye(E)
    layer = layer.to(tensor(q).dtype)
    options = {"attn_mask": layer_mask(q, k, mask), "is_causal": causal, "need_weights": weights}
    inputs = [tensor(joined(x)) for x in (q, k, v)]
    return apart(back(layer(*inputs, **options)[0]), q)


def layer_mask(q, k, mask):
    if mask is not None and mask.ndim == 4:
        sizes = (*q.shape[:3], k.shape[2])
        mask = np.concatenate(list(np.broadcast_to(mask, sizes)))  # (B * H, T, S)
    return tensor(mask)


def fast(q, k, v, mask=None, causal=False, weights=False):
    """The layer asked of one tensor without gradients: q, k and v lie in its features, with one
    zero more to each head, so that a head is four features to one."""
    import torch

    H, D = q.shape[1], q.shape[3]
    E = H * 4 * D
    one, zero = torch.eye(D), torch.zeros(D, D)
    takes = [torch.cat([2 * one if i == j == 0 else one if i == j else zero for j in range(4)], 1)
             for i in range(3)]  # fmt: skip
    rows = [torch.cat([take, torch.zeros(3 * D, 4 * D)]) for take in takes]
    layer = torch.nn.MultiheadAttention(E, H, batch_first=True).eval()  # its biases are 0
    layer.in_proj_weight.data = torch.cat([torch.block_diag(*[row] * H) for row in rows])
    layer.out_proj.weight.data = torch.eye(E)
    layer = layer.to(tensor(q).dtype)
    x = tensor(joined(np.concatenate([q, k, v, 0 * q], -1)))
    with torch.no_grad():
        options = {"attn_mask": layer_mask(q, k, mask), "is_causal": causal}
        return apart(back(layer(x, x, x, need_weights=weights, **options)[0]), q)[..., :D]


def flex(q, k, v, mask=None, bias=None):
    import torch
    from torch.nn.attention import flex_attention as module

    B, H, T, S = sizes = (*q.shape[:3], k.shape[2])
    options: dict[str, Any] = {"enable_gqa": q.shape[1] != k.shape[1]}
    if mask is not None:
        cell = tensor(np.array(np.broadcast_to(mask, sizes)))
        options["block_mask"] = module.create_block_mask(
            lambda b, h, i, j: cell[b, h, i, j], B, H, T, S, device="cpu"
        )
    if bias is not None:
        add = tensor(np.array(np.broadcast_to(bias, sizes)))
        options["score_mod"] = lambda s, b, h, i, j: s + add[b, h, i, j]
    with torch.no_grad():
        return back(module.flex_attention(tensor(q), tensor(k), tensor(v), **options))


def over_jax(function, q, k, v, **options):
    import jax.numpy as jnp

    given = {
        name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in options.items()
    }
    inputs = [jnp.asarray(np.moveaxis(x, 1, 2)) for x in (q, k, v)]
    return np.moveaxis(np.asarray(function(*inputs, **given)), 2, 1)


def jax_nn(q, k, v, mask=None, bias=None, causal=False):
    import jax

    f = jax.nn.dot_product_attention
    return over_jax(f, q, k, v, mask=mask, bias=bias, is_causal=causal)


def nnx_function(q, k, v, mask=None, bias=None, causal=False):
    from flax import nnx

    f = nnx.dot_product_attention
    return over_jax(f, q, k, v, mask=mask, bias=bias, is_causal=causal)


def nnx_mha(q, k, v, mask=None, causal=False):
    import jax.numpy as jnp
    from flax import nnx

    H, E = q.shape[1], q.shape[1] * q.shape[3]
    settings = {"use_bias": False, "decode": False, "rngs": nnx.Rngs(0), "dtype": q.dtype}
    layer = nnx.MultiHeadAttention(H, E, **settings)
    for part in (layer.query, layer.key, layer.value, layer.out):
        part.kernel[...] = jnp.eye(E).reshape(part.kernel.shape)
    x = [jnp.asarray(joined(x)) for x in (q, k, v)]
    return apart(layer(*x, mask=None if mask is None else jnp.asarray(mask), is_causal=causal), q)


def linen_mha(q, k, v, mask=None):
    import jax.numpy as jnp
    from flax import linen

    H, D, E = q.shape[1], q.shape[3], q.shape[1] * q.shape[3]
    inner = {"kernel": jnp.eye(E).reshape(E, H, D)}
    params = dict.fromkeys(("query", "key", "value"), inner)
    params["out"] = {"kernel": jnp.eye(E).reshape(H, D, E)}
    layer = linen.MultiHeadDotProductAttention(H, use_bias=False, dtype=q.dtype)
    mask = None if mask is None else jnp.asarray(mask)
    return apart(layer.apply({"params": params}, *map(joined, (q, k, v)), mask=mask), q)


def equinox_mha(q, k, v, mask=None):
    import equinox
    import jax
    import jax.numpy as jnp

    H, E = q.shape[1], q.shape[1] * q.shape[3]
    layer = equinox.nn.MultiheadAttention(H, E, key=jax.random.key(0))
    names = ("query_proj", "key_proj", "value_proj", "output_proj")
    eyes = [jnp.eye(E, dtype=q.dtype)] * 4
    layer = equinox.tree_at(lambda m: [getattr(m, name).weight for name in names], layer, eyes)
    samples = [jnp.asarray(joined(x)) for x in (q, k, v)]
    masks = [None] * len(q) if mask is None else [*mask] * (len(q) // len(mask))
    found = [layer(*(x[b] for x in samples), mask=masks[b]) for b in range(len(q))]
    return apart(np.stack(found), q) if found else q


def keras_ops(q, k, v, mask=None, bias=None, causal=False):
    import keras

    inputs = [keras.ops.convert_to_tensor(np.moveaxis(x, 1, 2)) for x in (q, k, v)]
    given = {"mask": mask, "bias": bias}
    given = {n: None if x is None else keras.ops.convert_to_tensor(x) for n, x in given.items()}
    found = keras.ops.dot_product_attention(*inputs, **given, is_causal=causal)
    return np.moveaxis(numbers(found), 2, 1)


def keras_mha(q, k, v, mask=None, causal=False, scores=False):
    import keras

    H, D, E = q.shape[1], q.shape[3], q.shape[1] * q.shape[3]
    layer = keras.layers.MultiHeadAttention(H, D, use_bias=False, dtype=q.dtype.name)
    query, key, value = map(joined, (q, k, v))
    layer.build(query.shape, value.shape, key.shape)
    layer.set_weights([np.eye(E).reshape(E, H, D)] * 3 + [np.eye(E).reshape(H, D, E)])
    options = {"attention_mask": mask, "use_causal_mask": causal}
    options = {n: keras.ops.convert_to_tensor(x) if isinstance(x, np.ndarray) else x
               for n, x in options.items()}  # fmt: skip
    found = layer(query, value, key, return_attention_scores=scores, **options)
    return apart(numbers(found[0] if scores else found), q)


def numbers(x):
    import keras

    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")))


def onnx_model(q, mask, causal, opset, softcap=None):
    import onnx

    kind = {"float32": "float", "float16": "float16", "float64": "double", "bool": "bool"}
    x = kind.get(q.dtype.name, q.dtype.name)
    inputs = [f"{x}[b{n}, h{n}, t{n}, d{n}] {n}" for n in "QKV"]
    names = "Q, K, V"
    if mask is not None:
        axes = ", ".join(f"m{i}" for i in range(mask.ndim))
        inputs.append(f"{kind.get(mask.dtype.name, mask.dtype.name)}[{axes}] M")
        names += ", M"
    settings = f"is_causal = {int(causal)}" + (f", softcap = {softcap}" if softcap else "")
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]> graph ({", ".join(inputs)}) => '
        f"({x}[b, h, t, d] Y) {{ Y = Attention <{settings}> ({names}) }}"
    )


def fed(q, k, v, mask):
    return {"Q": q, "K": k, "V": v} | ({} if mask is None else {"M": mask})


def onnx_reference(q, k, v, mask=None, causal=False, softcap=None):
    from onnx.reference import ReferenceEvaluator

    model = onnx_model(q, mask, causal, 25, softcap)
    (output,) = ReferenceEvaluator(model).run(None, fed(q, k, v, mask))
    return output


def onnxruntime(q, k, v, mask=None, causal=False, opset=25, softcap=None):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    model = onnx_model(q, mask, causal, opset, softcap).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(["Y"], fed(q, k, v, mask))[0]


def llama(q, k, v, mask=None, causal=False, function="eager", fill=None):
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.models.llama.modeling_llama import eager_attention_forward

    groups = q.shape[1] // max(k.shape[1], 1)
    layer = SimpleNamespace(num_key_value_groups=groups, training=False, is_causal=causal)
    q, k, v, mask = map(tensor, (q, k, v, mask))
    if fill is not None and mask is not None:
        mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
    scale = {"scaling": q.shape[3] ** -0.5}
    if function == "eager":
        found = eager_attention_forward(layer, q, k, v, mask, **scale)
    else:
        found = sdpa_attention_forward(layer, q, k, v, mask, **scale, is_causal=causal)
    return back(found[0].transpose(1, 2))


def attend(q, k, v, mask=None, bias=None, causal=False, softcap=None, flash=False):
    from x_transformers.attend import Attend

    cap = {"softclamp_logits": True, "logit_softclamp_value": softcap} if softcap else {}
    layer = Attend(heads=q.shape[1], causal=causal, flash=flash, **cap)
    q, k, v, mask, bias = map(tensor, (q, k, v, mask, bias))
    return back(layer(q, k, v, mask=mask, attn_bias=bias)[0])


CALLS: dict[str, tuple[Callable, dict[str, Any]]] = {
    "torch-sdpa": (sdpa, {}),
    "torch-sdpa-math": (sdpa, {"math": True}),
    "torch-mha-train": (mha, {}),
    "torch-mha-train-weights": (mha, {"weights": True}),
    "torch-mha-eval": (mha, {"train": False}),
    "torch-mha-eval-weights": (mha, {"train": False, "weights": True}),
    "torch-mha-fast": (fast, {}),
    "torch-mha-fast-weights": (fast, {"weights": True}),
    "torch-flex": (flex, {}),
    "jax-nn": (jax_nn, {}),
    "nnx-function": (nnx_function, {}),
    "nnx-mha": (nnx_mha, {}),
    "linen-mha": (linen_mha, {}),
    "equinox-mha": (equinox_mha, {}),
    "onnx-reference": (onnx_reference, {}),
    "onnxruntime": (onnxruntime, {}),
    "onnxruntime-kernel": (onnxruntime, {"opset": 24}),
    "transformers-eager": (llama, {}),
    "transformers-eager-own": (llama, {"fill": "smallest"}),
    "transformers-sdpa": (llama, {"function": "sdpa"}),
    "x-transformers": (attend, {}),
    "x-transformers-flash": (attend, {"flash": True}),
}
for _backend in ("numpy", "torch", "jax"):
    CALLS |= {
        f"keras-ops-{_backend}": (keras_ops, {}),
        f"keras-mha-{_backend}": (keras_mha, {}),
        f"keras-mha-{_backend}-scores": (keras_mha, {"scores": True}),
    }
