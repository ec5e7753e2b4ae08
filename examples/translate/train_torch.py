"""Teacher forcing in PyTorch: all target tokens are asked for their next one at once."""

from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from attn_torch import Seq2SeqTransformer

from .corpus import PADDING, batch
from .settings import ENOUGH, LEARNING_RATE, MODEL, MOST_STEPS, SEED


def train(settings: dict = MODEL) -> Iterator[tuple[Seq2SeqTransformer, float]]:
    """Yield the model and its loss after each step, until it has learned enough."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for a second one
    try:
        yield from _steps(settings)
    finally:
        torch.set_num_threads(threads)


def _steps(settings: dict) -> Iterator[tuple[Seq2SeqTransformer, float]]:
    torch.manual_seed(SEED)
    model = Seq2SeqTransformer(**settings)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    source, target, labels = (torch.from_numpy(array).long() for array in batch())
    for _ in range(MOST_STEPS):
        logits = model(source, target)
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PADDING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield model, loss.item()
        if loss < ENOUGH:
            return
    raise RuntimeError(f"the model has not learned its corpus: got a loss of {loss.item():.3f}")
