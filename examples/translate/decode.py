"""Translation on any backend, token by token, from one file of weights."""

from importlib import import_module

import numpy as np

from .corpus import BOS, EOS, encode_english, pad

BACKENDS = ("numpy", "torch", "jax")


def load(backend: str, path):
    """Return the model of a file, ready to translate."""
    model = import_module(f"attn_{backend}").load(path)
    model.eval()
    return model


def array(backend: str, tokens: np.ndarray):
    """Return tokens as the backend's array."""
    if backend == "torch":
        return import_module("torch").from_numpy(tokens)
    return import_module("jax.numpy").asarray(tokens) if backend == "jax" else tokens


def translate(backend: str, model, sentences: list[str], *, cached: bool = True) -> np.ndarray:
    """Return the tokens (B, N) that the model writes for the sentences, <eos> included."""
    source = pad([encode_english(sentence) for sentence in sentences])
    prompt = np.full((len(sentences), 1), BOS, source.dtype)
    arrays = (array(backend, source), array(backend, prompt))
    decode = import_module(f"attn_{backend}").greedy_decode
    tokens = decode(model, *arrays, eos_idx=EOS, max_new_tokens=16, cached=cached)
    return np.asarray(tokens)


def cross_attention(backend: str, model, sentence: str, tokens: np.ndarray) -> np.ndarray:
    """Return how much each written token looked at each word (T, S): the last layer's mean."""
    written = tokens[: list(tokens).index(EOS) + 1]
    source = pad([encode_english(sentence)])
    target = np.concatenate([[BOS], written[:-1]])[None].astype(source.dtype)
    arrays = (array(backend, source), array(backend, target))
    _, weights = model(*arrays, need_weights=True)
    last = weights.decoder[-1][1][0]  # (H, T, S)
    return np.asarray(last.detach() if backend == "torch" else last).mean(0)
