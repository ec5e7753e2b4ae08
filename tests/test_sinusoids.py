"""Positional encodings of far positions in narrow dtypes: rounded once, at the end."""

from importlib import import_module

import ml_dtypes
import numpy as np
import pytest

FAR = [[0, 257, 2049, 5000]]  # 16 bits hold no such number, float32 no such angle in radians


def sinusoids(backend: str, dtype: str) -> np.ndarray:
    """Return a backend's encodings (1, 4, 4), widened."""
    module = pytest.importorskip(f"attn_{backend}.seq2seq")
    if backend == "torch":
        torch = import_module("torch")
        return module.sinusoids(torch.tensor(FAR), 4, getattr(torch, dtype)).float().numpy()
    return np.asarray(module.sinusoids(np.array(FAR), 4, np.dtype(dtype))).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_positions_are_not_rounded_to_the_dtype(backend, dtype):
    angles = np.array(FAR)[..., None] * np.array([1, 1, 0.01, 0.01])
    exact = np.where([False, True] * 2, np.cos(angles), np.sin(angles))
    ulp = float(ml_dtypes.finfo(np.dtype(dtype)).eps)
    np.testing.assert_allclose(sinusoids(backend, dtype), exact, rtol=0, atol=ulp)
