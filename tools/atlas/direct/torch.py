"""PyTorch's own, and what is written in PyTorch."""
# mypy: disable-error-code="import-not-found"

from types import SimpleNamespace
from typing import Any

import numpy as np

from .arrays import apart, joined


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


def llama(q, k, v, mask=None, causal=False, function="eager", fill=None):
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as with_sinks
    from transformers.models.llama.modeling_llama import eager_attention_forward

    groups = q.shape[1] // max(k.shape[1], 1)
    layer = SimpleNamespace(num_key_value_groups=groups, training=False, is_causal=causal)
    q, k, v, mask = map(tensor, (q, k, v, mask))
    if fill is not None and mask is not None:
        mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
    scale = {"scaling": q.shape[3] ** -0.5}
    if function == "gpt-oss":
        layer.sinks = torch.full((q.shape[1],), -torch.inf, dtype=q.dtype)
        found = with_sinks(layer, q, k, v, mask, **scale)
    elif function == "eager":
        found = eager_attention_forward(layer, q, k, v, mask, **scale)
    else:
        found = sdpa_attention_forward(layer, q, k, v, mask, **scale, is_causal=causal)
    return back(found[0].transpose(1, 2))


def in_a_model(q, k, v, mask=None, bias=None, causal=False, softcap=None, name="eager"):
    """What a layer of Llama computes, its mask made by the model's own helpers."""
    import torch
    from transformers import LlamaConfig, masking_utils
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama.modeling_llama import eager_attention_forward

    if name == "attn_rosetta":
        from attn_torch.interop import transformers

        transformers.register()
    config = LlamaConfig(attn_implementation=name)
    groups = q.shape[1] // max(k.shape[1], 1)
    layer = SimpleNamespace(num_key_value_groups=groups, training=False, is_causal=causal)
    q, k, v, mask, bias = map(tensor, (q, k, v, mask, bias))
    inputs, memory = torch.zeros(len(q), q.shape[2], 1), torch.zeros(len(q), k.shape[2], 1)
    options = {"attention_mask": mask, "cache": None}
    if mask is not None and mask.ndim == 4 and mask.dtype == torch.bool:
        cells = mask.expand(len(q), -1, *(q.shape[2], k.shape[2]))
        options["and_mask_function"] = lambda b, h, i, j: cells[b, 0, i, j]
        options["attention_mask"] = None
    if causal:
        mask = masking_utils.create_causal_mask(config, inputs.to(q.dtype), **options)
    else:
        options["encoder_hidden_states"] = memory.to(q.dtype)
        mask = masking_utils.create_bidirectional_mask(config, inputs.to(q.dtype), **options)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
    scale = {"scaling": q.shape[3] ** -0.5, "softcap": softcap, "position_bias": bias}
    return back(function(layer, q, k, v, mask, **scale)[0].transpose(1, 2))


def attend(q, k, v, mask=None, bias=None, causal=False, softcap=None, flash=False):
    from x_transformers.attend import Attend

    cap = {"softclamp_logits": True, "logit_softclamp_value": softcap} if softcap else {}
    layer = Attend(heads=q.shape[1], causal=causal, flash=flash, **cap)
    q, k, v, mask, bias = map(tensor, (q, k, v, mask, bias))
    return back(layer(q, k, v, mask=mask, attn_bias=bias)[0])
