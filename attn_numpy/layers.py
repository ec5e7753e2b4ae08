"""Linear maps, and what else the framework lacks.

Parameters are plain arrays in torch's layout. Sums of 16-bit inputs are taken in float32.
"""

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import DTypeLike

from . import checks
from .numerics import upcast, without_warnings

# Not Self, which shape checkers refuse in a method.
SomeModule = TypeVar("SomeModule", bound="Module")


class Module:
    """What has parameters, or parts that have some: arrays and modules that are its attributes.

    >>> list(Linear(3, 2).parameters())
    ['weight', 'bias']
    """

    training = True

    def train(self: SomeModule, mode: bool = True) -> SomeModule:
        """Switch dropout on, or off with `mode=False`."""
        self.training = mode
        for _, part in self.parts():
            part.train(mode)
        return self

    def eval(self: SomeModule) -> SomeModule:
        """Switch dropout off."""
        return self.train(False)

    def parts(self) -> "Iterator[tuple[str, Module]]":
        """Every module right below this one, with its name; those in a list are numbered."""
        for name, value in vars(self).items():
            named = {name: value}
            if isinstance(value, list):
                named = {f"{name}.{i}": part for i, part in enumerate(value)}
            yield from ((n, part) for n, part in named.items() if isinstance(part, Module))

    def parameters(self, prefix: str = "") -> "dict[str, tuple[Module, str]]":
        """Return where each parameter stands, by its dotted name: the module and its attribute."""
        arrays = [name for name, value in vars(self).items() if isinstance(value, np.ndarray)]
        places = {f"{prefix}{name}": (self, name) for name in arrays}
        for name, part in self.parts():
            places |= part.parameters(f"{prefix}{name}.")
        return places


class Linear(Module):
    """x W^T + b, with W of (out, in): Xavier-uniform at first, b zero.

    >>> Linear(3, 2, rng=np.random.default_rng(0))(np.ones((5, 3), np.float32)).shape
    (5, 2)
    """

    @without_warnings
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
    ):
        bound = math.sqrt(6 / (in_features + out_features))
        rng = np.random.default_rng(rng)
        self.weight = rng.uniform(-bound, bound, (out_features, in_features)).astype(dtype)
        self.bias = np.zeros(out_features, dtype) if bias else None

    @without_warnings
    def __call__(self, x: Float[np.ndarray, "*batch in"]) -> Float[np.ndarray, "*batch out"]:
        rows = upcast(x).reshape(-1, x.shape[-1])  # one product, where a batch would make many
        y = rows @ upcast(self.weight).T
        y = (y if self.bias is None else y + upcast(self.bias)).astype(x.dtype)
        return y.reshape(*x.shape[:-1], y.shape[-1])  # -1 would fail where there is nothing


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last axis, then weight and bias; `eps` as in torch.

    >>> LayerNorm(2)(np.array([[1.0, 3.0]], np.float32)).round(3)
    array([[-1.,  1.]], dtype=float32)
    """

    def __init__(
        self, features: int, *, eps: float = 1e-5, bias: bool = True, dtype: DTypeLike = np.float32
    ):
        self.eps = eps
        self.weight = np.ones(features, dtype)
        self.bias = np.zeros(features, dtype) if bias else None

    @without_warnings
    def __call__(self, x: Float[np.ndarray, "*batch E"]) -> Float[np.ndarray, "*batch E"]:
        x_float = upcast(x)
        centred = x_float - x_float.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        y = y * upcast(self.weight)
        return (y if self.bias is None else y + upcast(self.bias)).astype(x.dtype)


class RMSNorm(Module):
    """Root mean square 1 over the last axis, then weight; `eps` as in torch.

    >>> RMSNorm(2)(np.array([[1.0, 7.0]], np.float32))
    array([[0.2, 1.4]], dtype=float32)
    """

    def __init__(self, features: int, *, eps: float = 1e-6, dtype: DTypeLike = np.float32):
        self.eps = eps
        self.weight = np.ones(features, dtype)

    @without_warnings
    def __call__(self, x: Float[np.ndarray, "*batch E"]) -> Float[np.ndarray, "*batch E"]:
        x_float = upcast(x)
        y = x_float / np.sqrt((x_float**2).mean(-1, keepdims=True) + self.eps)
        return (y * upcast(self.weight)).astype(x.dtype)


class Embedding(Module):
    """A row of `weight` for each token; the row of `padding_idx` starts at zero.

    >>> Embedding(10, 4, padding_idx=0)(np.array([[3, 0]]))[0, 1]
    array([0., 0., 0., 0.], dtype=float32)
    """

    @without_warnings
    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        padding_idx: int | None = None,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
    ):
        rng = np.random.default_rng(rng)
        self.weight = rng.normal(size=(num_embeddings, features)).astype(dtype)
        if padding_idx is not None:
            self.weight[padding_idx] = 0

    def __call__(self, tokens: Integer[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch E"]:
        return self.weight[tokens]


class Dropout(Module):
    """While training, put 0 with probability `rate` and scale the rest by 1 / (1 - rate).

    >>> Dropout(1.0)(np.ones(3))
    array([0., 0., 0.])
    """

    def __init__(self, rate: float, *, rng: np.random.Generator | None = None):
        checks.check_dropout(rate)
        self.rate, self.rng = rate, np.random.default_rng(rng)

    @without_warnings
    def __call__(self, x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        if not self.training or self.rate == 0:
            return x
        if self.rate == 1:
            return np.zeros_like(x)
        kept = self.rng.random(x.shape) >= self.rate
        return np.where(kept, upcast(x) / (1 - self.rate), 0).astype(x.dtype)


def relu(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return x where it is above 0, else 0."""
    return np.maximum(x, 0)


@without_warnings
def gelu(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return x times the normal distribution's share below x, exactly: by erf, not tanh.

    >>> gelu(np.array([-1.0, 0.0, 2.0])).round(4)
    array([-0.1587,  0.    ,  1.9545])
    """
    x_float = upcast(x)
    share = 0.5 * (1 + _erf(x_float / math.sqrt(2)).astype(x_float.dtype))
    return (x_float * share).astype(x.dtype)


_erf: Any = np.frompyfunc(math.erf, 1, 1)  # NumPy has none of its own
