"""One sequence on two processes: a translator trains, and its losses are those of one process.

    python -m examples.sharded_torch

A sample is an English sentence and its Chinese, one behind the other. The mask says that all may
attend to the English and the Chinese is causal; each process has some rows of every sample.
"""

import sys
import tempfile
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.distributed.nn  # noqa: F401 - imported later, by Adam, it keeps the group alive
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attn_torch import TransformerEncoder, padding, planned, prefix, shard_sequences
from examples.translate.corpus import CHINESE, ENGLISH, PADDING, batch

WORLD, STEPS = 2, 30
WIDTH, HEADS = 32, 4


class Translator(nn.Module):
    """Embeddings of tokens and positions, two layers, and a projection to the vocabulary."""

    def __init__(self, length: int):
        super().__init__()
        self.tokens = nn.Embedding(len(ENGLISH) + len(CHINESE), WIDTH)
        self.positions = nn.Embedding(length, WIDTH)
        self.stack = TransformerEncoder(2, WIDTH, HEADS, 64, dropout=0.0)
        self.projection = nn.Linear(WIDTH, len(CHINESE))

    def forward(self, tokens: Tensor, positions: Tensor, mask) -> Tensor:
        x = self.tokens(tokens) + self.positions(positions)
        return self.projection(self.stack(x, mask))


def samples() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens and labels (B, T), and the lengths of the English and of all."""
    tokens, labels, english, lengths = [], [], [], []
    for source, target, label in zip(*map(torch.from_numpy, batch()), strict=True):
        source, target, label = (x[x != PADDING].long() for x in (source, target, label))
        tokens.append(torch.cat((source, target + len(ENGLISH))))
        labels.append(torch.cat((torch.full_like(source, PADDING), label)))
        english.append(len(source))
        lengths.append(len(tokens[-1]))
    both = (nn.utils.rnn.pad_sequence(x, batch_first=True) for x in (tokens, labels))
    return *both, torch.tensor(english), torch.tensor(lengths)


def train(rank: int, world: int, steps: int) -> list[float]:
    """Return the loss of each step; every process has its rows of all samples."""
    torch.manual_seed(0)
    tokens, labels, english, lengths = samples()
    size, length = tokens.shape
    mask = prefix(english) & padding(lengths)
    rows = planned(mask, (size, HEADS, length, length), world)
    mine, count = rows[rank], int((labels != PADDING).sum())
    model = Translator(length)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    with shard_sequences(rows) if world > 1 else nullcontext():
        for _ in range(steps):
            logits = model(tokens[:, mine], mine, mask)  # the mask is that of the whole sequences
            told = {"ignore_index": PADDING, "reduction": "sum"}
            loss = cross_entropy(logits.flatten(0, 1), labels[:, mine].flatten(), **told) / count
            optimizer.zero_grad()
            loss.backward()
            shares = [loss.detach(), *(p.grad for p in model.parameters())]
            for share in shares if world > 1 else ():
                dist.all_reduce(share)
            optimizer.step()
            losses.append(float(shares[0]))
    return losses


def work(rank: int, steps: int, store: str) -> None:
    """Train as one of two processes; the first compares and prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    losses = train(rank, WORLD, steps)
    dist.destroy_process_group()
    if rank == 0:
        single = train(0, 1, steps)
        print("step   one process   two processes")
        for step in range(0, steps, max(steps // 6, 1)):
            print(f"{step:4}   {single[step]:11.6f}   {losses[step]:13.6f}")
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(single), rtol=1e-4, atol=1e-4)


def main(steps: int = STEPS) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (steps, f"{folder}/store"), WORLD)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
