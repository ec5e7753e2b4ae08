"""Teacher forcing in JAX: all target tokens are asked for their next one at once."""

from collections.abc import Iterator

import jax.numpy as jnp
import optax
from flax import nnx

from attn_jax import Seq2SeqTransformer

from .corpus import PADDING, batch
from .settings import ENOUGH, LEARNING_RATE, MODEL, MOST_STEPS, SEED


@nnx.jit
def step(model, optimizer, source, target, labels):
    """Take one step; return the loss before it."""

    def mean_loss(model):
        losses = optax.softmax_cross_entropy_with_integer_labels(model(source, target), labels)
        return losses.mean(where=labels != PADDING)

    loss, grads = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, grads)
    return loss


def train(settings: dict = MODEL) -> Iterator[tuple[Seq2SeqTransformer, float]]:
    """Yield the model and its loss after each step, until it has learned enough."""
    model = Seq2SeqTransformer(**settings, rngs=nnx.Rngs(SEED))
    optimizer = nnx.Optimizer(model, optax.adam(LEARNING_RATE), wrt=nnx.Param)
    arrays = [jnp.asarray(array) for array in batch()]
    for _ in range(MOST_STEPS):
        loss = float(step(model, optimizer, *arrays))
        yield model, loss
        if loss < ENOUGH:
            return
    raise RuntimeError(f"the model has not learned its corpus: got a loss of {loss:.3f}")
