"""Queries, keys and values of one width, for a library that takes no other.

Where values are not as wide as keys, all three are filled with zeros to four times the keys' width
and the query is doubled: 2 / sqrt(4 D) is 1 / sqrt(D) to the bit, so the library's own scale
stays under test. Zeros add nothing to a product, and what they give is cut off again.
"""

import numpy as np

from ..protocol import NotOffered


class Fitted:
    """The inputs of one call of attention, where it is wanted all of one width."""

    def __init__(self, query, key, value, scale=None, wanted: bool = True):
        self.own = {"query": query.shape[3], "key": key.shape[3], "value": value.shape[3]}
        fits = not wanted or self.own["query"] == self.own["value"]
        self.width = None if fits else 4 * self.own["query"]
        self.factor = 2 if self.width and scale is None else 1  # a scale that is given stays
        if self.width and self.own["value"] > self.width:
            raise NotOffered("values are more than four times as wide as keys")
        inputs = {"query": query * query.dtype.type(self.factor), "key": key, "value": value}
        self.inputs = {name: self.fill(x) for name, x in inputs.items()}

    def fill(self, x: np.ndarray) -> np.ndarray:
        added = 0 if self.width is None else self.width - x.shape[3]
        return np.pad(x, ((0, 0), (0, 0), (0, 0), (0, added)))

    def output(self, output: np.ndarray) -> np.ndarray:
        return output[..., : self.own["value"]]

    def gradients(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return gradients by the inputs as they were given; a bias's is as it is."""
        found = {name: x[..., : self.own.get(name)] for name, x in found.items()}
        return found | {"query": found["query"] * found["query"].dtype.type(self.factor)}
