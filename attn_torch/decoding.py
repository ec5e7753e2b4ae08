"""Greedy decoding: one token at a time, the likeliest, until each sample has ended."""

from collections.abc import Callable

import torch
from jaxtyping import Integer
from torch import Tensor

from . import checks
from .arrays import has_values, signed_copy
from .seq2seq import Seq2SeqTransformer

Step = Callable[[Tensor], Tensor]  # from new tokens to their logits


@torch.inference_mode()
def greedy_decode(
    model: Seq2SeqTransformer,
    src: Integer[Tensor, "B S"],
    prompt: Integer[Tensor, "B P"],
    *,
    eos_idx: int,
    max_new_tokens: int,
    capacity: int | None = None,
    cached: bool = True,
) -> Integer[Tensor, "B N"]:
    """Return the tokens that follow each prompt, `eos_idx` included and padding behind it.

    A prompt holds at least one token (such as `<bos>`) and may be padded on either side. A sample
    that has ended takes no more slots. `cached=False` runs the whole prefix again for each token:
    the same tokens, slower. `capacity`, where given, is checked before anything runs. Call it on a
    model in evaluation mode. Raises ValueError for an empty prompt or too small a capacity.

    >>> from attn_torch import Seq2SeqTransformer
    >>> model = Seq2SeqTransformer(11, 13, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, dim_feedforward=32).eval()
    >>> src, prompt = torch.tensor([[5, 3, 4], [7, 0, 0]]), torch.tensor([[1], [1]])
    >>> greedy_decode(model, src, prompt, eos_idx=2, max_new_tokens=4).shape
    torch.Size([2, 4])
    """
    checks.check_greedy(model, src, prompt, eos_idx, max_new_tokens, capacity)
    max_new_tokens = int(max_new_tokens)
    step = _uncached_step(model, src)
    if cached:
        step = _cached_step(model, src, prompt, max_new_tokens, capacity)
    prompt = signed_copy(prompt)
    prompt = prompt.to(torch.promote_types(prompt.dtype, torch.int32))  # so that every token fits
    chosen = prompt.new_full((len(src), max_new_tokens), model.padding_idx)
    ended, new = torch.zeros(len(src), dtype=torch.bool, device=prompt.device), prompt
    for i in range(max_new_tokens):
        likeliest = _last(step(new), new, model.padding_idx).argmax(-1)
        chosen[:, i] = torch.where(ended, model.padding_idx, likeliest)
        ended |= chosen[:, i] == eos_idx
        if has_values(ended) and ended.all():
            break
        new = chosen[:, i : i + 1]
    return chosen


def _cached_step(
    model: Seq2SeqTransformer,
    src: Tensor,
    prompt: Tensor,
    max_new_tokens: int,
    capacity: int | None,
) -> Step:
    """Return a function from new tokens to their logits that remembers those before."""
    cache = model.start(src, capacity or prompt.shape[1] + max_new_tokens - 1)

    def step(new: Tensor) -> Tensor:
        nonlocal cache
        logits, cache = model.decode(new, cache)
        return logits

    return step


def _uncached_step(model: Seq2SeqTransformer, src: Tensor) -> Step:
    """Return the same, but everything before is computed again."""
    tokens = src.new_zeros((len(src), 0), dtype=torch.int32)

    def step(new: Tensor) -> Tensor:
        nonlocal tokens
        tokens = torch.cat([tokens, new], 1)
        return model(src, tokens)[:, -new.shape[1] :]

    return step


def _last(logits: Tensor, tokens: Tensor, padding_idx: int) -> Tensor:
    """Return the logits behind the last token of each sample, without the choice of padding."""
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    last = torch.where(tokens != padding_idx, columns, 0).amax(1)
    logits = logits.take_along_dim(last[:, None, None], 1)[:, 0]
    choices = torch.arange(logits.shape[1], device=logits.device)
    return torch.where(choices == padding_idx, -torch.inf, logits)
