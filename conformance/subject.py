"""What a thing under test offers: the adapter protocol, NumPy arrays in and out.

An adapter declares its `capabilities`; what it does not declare is "not offered", which is neither
a pass nor a failure. Masks arrive as `Spec`s (plain data), a random source as a seed.
"""

from typing import Protocol

import numpy as np

from .specs import Spec

CAPABILITIES = {
    "masks": "mask builders and the questions a mask answers",
    "attention": "attention and its steps",
    "gradients": "gradients of attention and of multi-head attention",
    "blocked": "a path that walks the mask's tiles",
    "compiled": "a compiled form of attention",
    "multihead": "multi-head attention",
    "any_shape": "a new shape without the cost of a compilation",
    "traced": "calls whose arrays have no values yet",
    "errors": "the contract's errors, call by call",
}


TILE = (2, 3)  # queries by keys: small, so that small cases have many


class NotOffered(Exception):
    """The subject declares that it has no such thing."""


class Subject(Protocol):
    """One implementation on one device."""

    name: str
    device: str
    capabilities: frozenset[str]
    dtypes: tuple[str, ...]

    def versions(self) -> dict[str, str]:
        """Return the versions of what is under test, by package name."""

    def sequence_mask(self, tokens: np.ndarray, padding_idx: int) -> np.ndarray:
        """Return bool (B, S), True at padding."""

    def look_ahead_mask(self, tgt_len: int, src_len: int) -> np.ndarray:
        """Return float (T, S), 0 where seen and -inf where hidden."""

    def ask(self, question: str, spec: Spec, *args, **options):
        """Put `allowed`, `hidden`, `additive`, `tile`, `explain` or `draw` to a mask."""

    def attention(self, query, key, value, **options) -> np.ndarray:
        """Attend; options as in the contract, with `mask` a Spec and `seed` for dropout."""

    def steps(self, query, key, value, **options) -> dict[str, np.ndarray]:
        """Return scores, masked_scores, weights and output of the same call."""

    def compiled(self, query, key, value, **options) -> np.ndarray:
        """Attend by the compiled form."""

    def blocked(self, query, key, value, *, tile: tuple[int, int], **options) -> np.ndarray:
        """Attend tile by tile, in tiles of so many queries by keys."""

    def gradients(self, query, key, value, grad, **options) -> dict[str, np.ndarray]:
        """Return the gradients of sum(grad * output) by query, key, value and bias.

        `through="steps"` takes the textbook path and "blocked" the other, in tiles of TILE.
        """

    def parameters(self, config: dict) -> dict[str, np.ndarray]:
        """Return the registered parameters of a new multi-head attention, (out, in) matrices."""

    def multihead(self, config: dict, parameters: dict, *inputs, training=False, **options):
        """Return output and weights of a multi-head attention with the given parameters."""

    def multihead_gradients(
        self, config: dict, parameters: dict, query, key, value, grad, **options
    ) -> dict[str, np.ndarray]:
        """Return the gradients of sum(grad * output) by every parameter, query, key and value."""


def require(subject: Subject, capability: str) -> None:
    """Raise `NotOffered` unless the subject declares the capability."""
    if capability not in subject.capabilities:
        raise NotOffered(f"{subject.name} does not offer {CAPABILITIES[capability]}")
