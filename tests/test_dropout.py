"""What dropout draws: anew in every call of a module, and apart for every sample and head."""

import jax
import numpy as np
import pytest
from flax import nnx

from conformance import subjects
from conformance.cases.arrays import normal

BACKENDS = ("numpy", "torch", "jax")
CONFIG = {"embed_dim": 14, "num_heads": 2, "dropout": 0.4}
X = normal(1, 3, 5, 14, dtype_name="float32")


def module(backend: str):
    subject = subjects.load(backend)
    parameters = subject.parameters(CONFIG)
    attn = subject.module_with(CONFIG, parameters, training=True, seed=1)
    return subject, attn, subject.array(X)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "output_alone"])
def test_two_calls_of_one_module_drop_apart(backend, need_weights):
    subject, attn, x = module(backend)
    outputs = [subject.numpy(attn(x, need_weights=need_weights)[0]) for _ in range(3)]
    assert _all_differ(outputs), "the calls share what they drop"


def test_two_compiled_calls_of_one_jax_module_drop_apart():
    _, attn, x = module("jax")
    call = nnx.jit(lambda attn, x: attn(x)[0])
    assert _all_differ([np.asarray(call(attn, x)) for _ in range(3)])


def test_two_jax_modules_made_one_after_the_other_drop_apart():
    subject = subjects.load("jax")
    parameters, rngs, outputs = subject.parameters(CONFIG), nnx.Rngs(1), []
    for _ in range(2):
        attn = subject.module.MultiHeadAttention(**CONFIG, rngs=rngs)
        for name, array in parameters.items():
            projection, kind = name.split(".")
            parameter = getattr(getattr(attn, projection), "kernel" if kind == "weight" else kind)
            parameter[...] = jax.numpy.asarray(array.T)
        outputs.append(np.asarray(attn(jax.numpy.asarray(X))[0]))
    assert _all_differ(outputs), "layers made from one source share what they drop"


def _all_differ(arrays: list[np.ndarray]) -> bool:
    pairs = [(a, b) for i, a in enumerate(arrays) for b in arrays[:i]]
    return all(abs(a - b).max() > 1e-3 for a, b in pairs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_heads_and_queries_drop_apart(backend):
    subject = subjects.load(backend)
    query, key = normal(2, 3, 2, 5, 11), normal(3, 3, 2, 67, 11)
    value = np.broadcast_to(np.eye(67), (3, 2, 67, 67))
    kept = subject.attention(query, key, value, dropout=0.5, seed=1) != 0
    rows = kept.reshape(30, 67)
    assert len(np.unique(rows, axis=0)) == 30, "rows share what they drop"
