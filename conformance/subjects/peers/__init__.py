"""Peers: other libraries' attention, checked like any adapter.

    python -m conformance run --subject torch-sdpa

Nothing is imported before a peer is asked for; it needs its packages, and some need to be told
something by their process's environment.
"""

from typing import NamedTuple


class PeerEntry(NamedTuple):
    """One peer's adapter."""

    adapter: str  # package.module:Class
    packages: tuple[str, ...]  # what pip is to install
    environment: dict[str, str]  # what its process must be told before it starts
    about: str


JAX, FLAX = ("jax",), ("flax", "jax")


def _peer(adapter: str, packages: tuple[str, ...], about: str, **environment: str) -> PeerEntry:
    return PeerEntry(f"{__name__}.{adapter}", packages, environment, about)


def _keras(name: str) -> dict[str, PeerEntry]:
    """Return Keras on one of its backends; a process has one."""
    packages, told = ("keras", name), {"KERAS_BACKEND": name}
    layer = f"keras.layers.MultiHeadAttention on {name}"
    function = f"keras.ops.dot_product_attention on {name}"
    return {
        f"keras-ops-{name}": _peer(f"keras_{name}:Ops", packages, function, **told),
        f"keras-mha-{name}": _peer(f"keras_{name}:MultiHead", packages, layer, **told),
        f"keras-mha-{name}-scores": _peer(
            f"keras_{name}:Scores", packages, f"{layer}, with return_attention_scores", **told
        ),
    }


PEERS: dict[str, PeerEntry] = {
    "torch-sdpa": _peer(
        "torch_sdpa:Default", ("torch",), "F.scaled_dot_product_attention, the kernel it chooses"
    ),
    "torch-sdpa-math": _peer(
        "torch_sdpa:Math", ("torch",), "F.scaled_dot_product_attention, the MATH kernel"
    ),
    "torch-mha-train": _peer(
        "torch_mha:Train", ("torch",), "torch.nn.MultiheadAttention in training"
    ),
    "torch-mha-train-weights": _peer(
        "torch_mha:TrainWeights", ("torch",), "the same with need_weights=True"
    ),
    "torch-mha-eval": _peer(
        "torch_mha:Eval",
        ("torch",),
        "torch.nn.MultiheadAttention in evaluation, where it does not take its fast path: three "
        "tensors, or gradients",
    ),
    "torch-mha-eval-weights": _peer(
        "torch_mha:EvalWeights", ("torch",), "the same with need_weights=True"
    ),
    "torch-mha-fast": _peer(
        "torch_mha:Fast",
        ("torch",),
        "torch.nn.MultiheadAttention in evaluation under no_grad, where it takes its fast path: "
        "self-attention",
    ),
    "torch-mha-fast-weights": _peer(
        "torch_mha:FastWeights", ("torch",), "the same with need_weights=True"
    ),
    "torch-flex": _peer("torch_flex:Flex", ("torch",), "flex_attention, not compiled"),
    "jax-nn": _peer("jax_nn:DotProduct", JAX, "jax.nn.dot_product_attention"),
    "jax-splash": _peer("jax_splash:Splash", JAX, "splash attention, interpreted on the CPU"),
    "nnx-function": _peer("nnx:NnxDotProduct", FLAX, "flax.nnx.dot_product_attention"),
    "nnx-mha": _peer("nnx:NnxMultiHead", FLAX, "flax.nnx.MultiHeadAttention, and its cache"),
    "linen-mha": _peer("linen:LinenMultiHead", FLAX, "flax.linen.MultiHeadDotProductAttention"),
    **_keras("numpy"),
    **_keras("torch"),
    **_keras("jax"),
    "equinox-mha": _peer(
        "equinox:EquinoxMultiHead", ("equinox", "jax"), "equinox.nn.MultiheadAttention"
    ),
    "onnx-reference": _peer(
        "onnx:Reference", ("onnx",), "ONNX's Attention by its reference evaluator"
    ),
    "onnxruntime": _peer(
        "onnx:Runtime", ("onnxruntime", "onnx"), "ONNX's newest Attention by ONNX Runtime"
    ),
    "onnxruntime-kernel": _peer(
        "onnx:Kernel", ("onnxruntime", "onnx"), "ONNX Runtime's own kernel, up to opset 24"
    ),
    "transformers-eager": _peer(
        "transformers:Eager",
        ("transformers", "torch"),
        "Llama's eager_attention_forward in transformers, told to hide by -inf",
    ),
    "transformers-eager-own": _peer(
        "transformers:EagerOwn",
        ("transformers", "torch"),
        "the same with transformers' own eager_mask, which hides by the smallest float",
    ),
    "transformers-gpt-oss": _peer(
        "transformers:GptOss",
        ("transformers", "torch"),
        "gpt-oss' eager_attention_forward in transformers, with a sink and transformers' own mask",
    ),
    "transformers-sdpa": _peer(
        "transformers:Sdpa", ("transformers", "torch"), "transformers' sdpa attention function"
    ),
    "hf-eager": _peer(
        "registered:RegisteredEager",
        ("transformers", "torch"),
        "transformers' eager as Llama has it, with eager_mask: what a model's layers do",
    ),
    "hf-sdpa": _peer(
        "registered:RegisteredSdpa",
        ("transformers", "torch"),
        "transformers' sdpa with sdpa_mask: what a model's layers do",
    ),
    "hf-attn-rosetta": _peer(
        "registered:RegisteredRosetta",
        ("transformers", "torch"),
        "attn_torch inside transformers, by attn_torch.interop.transformers",
    ),
    "x-transformers": _peer(
        "x_transformers:Unfused", ("x-transformers", "torch"), "x-transformers' Attend"
    ),
    "x-transformers-flash": _peer(
        "x_transformers:Flash", ("x-transformers", "torch"), "x-transformers' Attend, flash=True"
    ),
}
