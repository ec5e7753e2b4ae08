"""Greedy decoding: one token at a time, the likeliest, until each sample has ended."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Integer

from . import checks
from .arrays import signed_copy
from .seq2seq import Seq2SeqTransformer

Step = Callable[[np.ndarray], np.ndarray]  # from new tokens to their logits


def greedy_decode(
    model: Seq2SeqTransformer,
    src: Integer[np.ndarray, "B S"],
    prompt: Integer[np.ndarray, "B P"],
    *,
    eos_idx: int,
    max_new_tokens: int,
    capacity: int | None = None,
    cached: bool = True,
) -> Integer[np.ndarray, "B N"]:
    """Return the tokens that follow each prompt, `eos_idx` included and padding behind it.

    A prompt holds at least one token (such as `<bos>`) and may be padded on either side. A sample
    that has ended takes no more slots. `cached=False` runs the whole prefix again for each token:
    the same tokens, slower. `capacity`, where given, is checked before anything runs. Call it on a
    model in evaluation mode. Raises ValueError for an empty prompt or too small a capacity.

    >>> from attn_numpy import Seq2SeqTransformer
    >>> model = Seq2SeqTransformer(11, 13, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, dim_feedforward=32).eval()
    >>> src, prompt = np.array([[5, 3, 4], [7, 0, 0]]), np.array([[1], [1]])
    >>> greedy_decode(model, src, prompt, eos_idx=2, max_new_tokens=4).shape
    (2, 4)
    """
    checks.check_greedy(model, src, prompt, eos_idx, max_new_tokens, capacity)
    max_new_tokens = int(max_new_tokens)
    step = _uncached_step(model, src)
    if cached:
        step = _cached_step(model, src, prompt, max_new_tokens, capacity)
    prompt = signed_copy(prompt)
    dtype = np.promote_types(prompt.dtype, np.int32)  # so that every token fits
    chosen = np.full((len(src), max_new_tokens), model.padding_idx, dtype)
    ended, new = np.zeros(len(src), bool), prompt
    for i in range(max_new_tokens):
        likeliest = _last(step(new), new, model.padding_idx).argmax(-1)
        chosen[:, i] = np.where(ended, model.padding_idx, likeliest)
        ended |= chosen[:, i] == eos_idx
        if ended.all():
            break
        new = chosen[:, i : i + 1]
    return chosen


def _cached_step(
    model: Seq2SeqTransformer,
    src: np.ndarray,
    prompt: np.ndarray,
    max_new_tokens: int,
    capacity: int | None,
) -> Step:
    """Return a function from new tokens to their logits that remembers those before."""
    cache = model.start(src, capacity or prompt.shape[1] + max_new_tokens - 1)

    def step(new: np.ndarray) -> np.ndarray:
        nonlocal cache
        logits, cache = model.decode(new, cache)
        return logits

    return step


def _uncached_step(model: Seq2SeqTransformer, src: np.ndarray) -> Step:
    """Return the same, but everything before is computed again."""
    tokens = np.zeros((len(src), 0), np.int32)

    def step(new: np.ndarray) -> np.ndarray:
        nonlocal tokens
        tokens = np.concatenate([tokens, new], 1)
        return model(src, tokens)[:, -new.shape[1] :]

    return step


def _last(logits: np.ndarray, tokens: np.ndarray, padding_idx: int) -> np.ndarray:
    """Return the logits behind the last token of each sample, without the choice of padding."""
    columns = np.arange(tokens.shape[1])
    last = np.where(tokens != padding_idx, columns, 0).max(1)
    logits = np.take_along_axis(logits, last[:, None, None], 1)[:, 0]
    return np.where(np.arange(logits.shape[1]) == padding_idx, -np.inf, logits)
