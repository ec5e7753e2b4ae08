"""Libraries called as their users call them, sharing no line with the adapters of the peers.

Each function takes NumPy's query, key and value (B, H, T, D), a mask or a bias as it is to be
handed over, and the causal flag; it returns the output (B, H, T, D) or raises the library's error.
"""

from collections.abc import Callable
from typing import Any

from .jax import equinox_mha, jax_nn, jax_splash, linen_mha, nnx_function, nnx_mha
from .keras import keras_mha, keras_ops
from .onnx import onnx_reference, onnxruntime
from .torch import attend, fast, flex, in_a_model, llama, mha, sdpa

HIDES = ("torch-mha",)  # where True hides
BIASES = ("jax-nn", "nnx-function", "keras-ops", "torch-flex", "x-transformers",
          "hf-sdpa", "hf-attn-rosetta")  # fmt: skip

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
    "jax-splash": (jax_splash, {}),
    "nnx-function": (nnx_function, {}),
    "nnx-mha": (nnx_mha, {}),
    "linen-mha": (linen_mha, {}),
    "equinox-mha": (equinox_mha, {}),
    "onnx-reference": (onnx_reference, {}),
    "onnxruntime": (onnxruntime, {}),
    "onnxruntime-kernel": (onnxruntime, {"opset": 24}),
    "transformers-eager": (llama, {}),
    "transformers-eager-own": (llama, {"fill": "smallest"}),
    "transformers-gpt-oss": (llama, {"fill": "smallest", "function": "gpt-oss"}),
    "transformers-sdpa": (llama, {"function": "sdpa"}),
    "hf-eager": (in_a_model, {}),
    "hf-sdpa": (in_a_model, {"name": "sdpa"}),
    "hf-attn-rosetta": (in_a_model, {"name": "attn_rosetta"}),
    "x-transformers": (attend, {}),
    "x-transformers-flash": (attend, {"flash": True}),
}
for _backend in ("numpy", "torch", "jax"):
    CALLS |= {
        f"keras-ops-{_backend}": (keras_ops, {}),
        f"keras-mha-{_backend}": (keras_mha, {}),
        f"keras-mha-{_backend}-scores": (keras_mha, {"scores": True}),
    }
