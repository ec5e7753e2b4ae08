"""What takes a gradient besides the inputs and parameters: a float mask, the weights, dropout.

With W^q, W^k and W^v the identity, multi-head attention is attention on the split inputs, so that
the oracle's gradients are the module's. With the identity as values, the output is the weights.
"""

from collections.abc import Callable

import numpy as np
import pytest

from conformance import subjects
from conformance.cases.arrays import normal
from conformance.oracle import expected
from conformance.oracle.tolerance import compare

DIFFERENTIABLE = ("torch", "jax")
B, H, T, S, D = 3, 2, 5, 7, 11
CONFIG = {"embed_dim": H * D, "num_heads": H, "bias": False}
EYE = {f"{name}.weight": np.eye(H * D, dtype=np.float32) for name in
       ("q_proj", "k_proj", "v_proj", "out_proj")}  # fmt: skip
SEEN = np.ones((B, H, T, S), bool)
ONE_EACH = np.broadcast_to(np.eye(S, dtype=np.float32), (B, H, S, S))


def gradients(backend: str, call: Callable, leaves: dict, grad: np.ndarray) -> dict:
    """Return the gradients of sum(grad * call(subject, **leaves)), by leaf."""
    subject = subjects.load(backend)
    leaves, grad = {n: subject.array(x) for n, x in leaves.items()}, subject.array(grad)
    if backend == "jax":
        import jax

        found = jax.vjp(lambda leaves: call(subject, **leaves), leaves)[1](grad)[0]
        return {name: subject.numpy(x) for name, x in found.items()}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    call(subject, **leaves).backward(grad)
    for name, leaf in leaves.items():
        assert leaf.grad is not None, f"{name} takes no gradient"
    return {name: subject.numpy(leaf.grad) for name, leaf in leaves.items()}


def single(*shape: int, seed: int) -> np.ndarray:
    return normal(seed, *shape, dtype_name="float32")


def merged(heads: np.ndarray) -> np.ndarray:
    """(B, H, T, D) -> (B, T, H * D)."""
    return heads.swapaxes(1, 2).reshape(B, -1, H * D)


QUERY, KEY, VALUE = (
    single(B, H, T, D, seed=1),
    single(B, H, S, D, seed=2),
    single(B, H, S, D, seed=3),
)
INPUTS = {"query": merged(QUERY), "key": merged(KEY), "value": merged(VALUE)}


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "output_alone"])
@pytest.mark.parametrize("shape", [(T, S), (B * H, T, S), (B, H, T, S)], ids=["2", "3", "4"])
def test_a_float_mask_takes_its_gradient(backend, shape, need_weights):
    added, grad = single(*shape, seed=4), single(B, H, T, D, seed=5)

    def call(subject, **leaves):
        attn = subject.module_with(CONFIG, EYE)
        return attn(**leaves, need_weights=need_weights)[0]

    got = gradients(backend, call, INPUTS | {"attn_mask": added}, merged(grad))
    bias = added if added.ndim == 2 else added.reshape(B, H, T, S)
    exact, naive = expected.gradients(QUERY, KEY, VALUE, grad, allowed=SEEN, bias=bias)
    exact, naive = (found["bias"].reshape(shape) for found in (exact, naive))
    compare(got["attn_mask"], exact, naive, "gradient of attn_mask")


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
@pytest.mark.parametrize("average", [True, False], ids=["averaged", "per_head"])
def test_the_returned_weights_pass_a_gradient_on(backend, average):
    added = single(T, S, seed=4)
    grad = single(B, T, S, seed=5) if average else single(B, H, T, S, seed=5)

    def call(subject, **leaves):
        return subject.module_with(CONFIG, EYE)(**leaves, average_weights=average)[1]

    leaves = {"query": INPUTS["query"], "key": INPUTS["key"], "attn_mask": added}
    got = gradients(backend, call, leaves, grad)
    if average:  # over two heads: each takes half
        grad = np.broadcast_to(grad[:, None] / 2, (B, H, T, S)).astype(np.float32)
    exact, naive = expected.gradients(QUERY, KEY, ONE_EACH, grad, allowed=SEEN, bias=added)
    for name in ("query", "key"):
        compare(got[name], merged(exact[name]), merged(naive[name]), f"gradient of {name}")
    compare(got["attn_mask"], exact["bias"], naive["bias"], "gradient of attn_mask")


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
@pytest.mark.parametrize("step", ["scores", "masked_scores", "weights"])
def test_every_step_passes_a_gradient_on(backend, step):
    grad = single(B, H, T, S, seed=5)

    def call(subject, **leaves):
        return getattr(subject.module.attention_steps(**leaves, value=subject.array(VALUE)), step)

    got = gradients(backend, call, {"query": QUERY, "key": KEY}, grad)
    if step == "weights":
        exact, naive = expected.gradients(QUERY, KEY, ONE_EACH, grad, allowed=SEEN)
    else:
        exact, naive = (_of_scores(grad.astype(d)) for d in (np.float64, np.float32))
    for name in ("query", "key"):
        compare(got[name], exact[name], naive[name], f"gradient of {name}")


def _of_scores(grad) -> dict:
    scale = grad.dtype.type(1 / np.sqrt(D))
    query, key = QUERY.astype(grad.dtype), KEY.astype(grad.dtype)
    return {"query": grad @ key * scale, "key": grad.swapaxes(2, 3) @ query * scale}


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_dropout_passes_on_the_gradient_of_what_it_kept(backend):
    rng = np.random.default_rng(6)
    value, grad = (rng.integers(-3, 4, (B, H, n, D)).astype(np.float32) for n in (S, T))

    def call(subject, **leaves):
        return subject.module.attention(**leaves, dropout=0.5, **subject.random(1))

    subject = subjects.load(backend)
    kept = subject.attention(QUERY, KEY, ONE_EACH, dropout=0.5, seed=1)  # doubled, or 0
    assert 0.3 < (kept != 0).mean() < 0.7
    got = gradients(backend, call, {"query": QUERY, "key": KEY, "value": value}, grad)
    of_weights = grad @ value.swapaxes(2, 3) * np.where(kept, 2, 0)  # small integers: exact
    exact, naive = expected.gradients(
        QUERY, KEY, ONE_EACH, of_weights.astype(np.float32), allowed=SEEN
    )
    for found, dtype in ((exact, np.float64), (naive, np.float32)):
        found["value"] = kept.swapaxes(2, 3).astype(dtype) @ grad.astype(dtype)
    for name in ("query", "key", "value"):
        compare(got[name], exact[name], naive[name], f"gradient of {name}")
