"""The same training with every sentence spread over four devices, which need no accelerator.

It is done in float64: in float32 Adam makes steps of roundings, and losses part from digit 4 on.
`python -m examples.sharded_jax [STEPS]` prints the losses of both.
"""

import sys

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from attn_jax import Seq2SeqTransformer, shard_sequences
from examples.translate.corpus import PADDING, batch
from examples.translate.settings import LEARNING_RATE, MODEL, SEED
from examples.translate.train_jax import step

DEVICES = 4


def losses(steps: int, arrays: list) -> list[float]:
    """Train for a number of steps; return the loss before each."""
    model = Seq2SeqTransformer(**MODEL, dtype=np.float64, rngs=nnx.Rngs(SEED))
    optimizer = nnx.Optimizer(model, optax.adam(LEARNING_RATE), wrt=nnx.Param)
    return [float(step(model, optimizer, *arrays)) for _ in range(steps)]


def sharded_losses(steps: int, arrays: list) -> list[float]:
    """Do the same with a share of each sentence's tokens on every device."""
    kind = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((DEVICES,), ("context",), axis_types=kind)
    places = NamedSharding(mesh, PartitionSpec(None, "context"))
    arrays = [jax.device_put(array, places) for array in arrays]
    with shard_sequences(mesh, length="context"):
        return losses(steps, arrays)


def even_batch() -> list[np.ndarray]:
    """Return the corpus, padded to lengths that the devices share evenly."""
    arrays = []
    for array in batch():
        missing = -array.shape[1] % DEVICES
        arrays.append(np.pad(array, ((0, 0), (0, missing)), constant_values=PADDING))
    return arrays


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    arrays = even_batch()
    pairs = zip(losses(count, arrays), sharded_losses(count, arrays), strict=True)
    for number, (one, four) in enumerate(pairs):
        print(f"step {number}: loss {one:.6f} on one device, {four:.6f} on {DEVICES}")
