"""Arrays of a framework, made of NumPy's and made NumPy's: adapters, peers and backends share them.

An adapter that says `arrays = "torch"` or `"jax"` is handed such arrays, and answers with them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import numpy as np

from ..oracle.tolerance import Differs

NATIVE = {"torch": "native_torch:TorchArrays", "jax": "native_jax:JaxArrays"}


class NativeArrays:
    """NumPy's own arrays, handed on as they are."""

    device = "cpu"
    has_autograd = False

    def array(self, array: np.ndarray) -> Any:
        """Return a NumPy array as the framework's, on the device and in the same dtype."""
        return array

    def numpy(self, array: Any) -> np.ndarray:
        """Return an array of the framework as NumPy's."""
        return np.asarray(array)

    def scope(self, dtype: str) -> AbstractContextManager:
        """Return the context in which the framework computes in a dtype."""
        return nullcontext()

    def check(self, found: Any) -> None:
        """Raise `Differs` unless an answer is an array of the framework on the device."""

    def take(self, found: Any) -> np.ndarray:
        """Return an answer as a NumPy array of its own."""
        self.check(found)
        array = np.array(self.numpy(found))
        if array.dtype == object:
            raise Differs(f"an answer must be an array: got {type(found).__name__}")
        return array

    def vjp(self, function: Callable, leaves: dict, grad: Any) -> dict[str, Any]:
        """Return the gradients of sum(grad * function(leaves)) by every leaf, by autograd."""
        raise NotImplementedError

    def check_output(self, output: Any, grad: Any) -> None:
        """Raise `Differs` unless an output can be differentiated with this gradient."""
        self.check(output)
        got, wanted = (f"{x.dtype} of shape {tuple(x.shape)}" for x in (output, grad))
        if got != wanted:
            raise Differs(f"an output to differentiate must be {wanted}: got {got}")


NUMPY = NativeArrays()


def native(name: Any, device: str = "cpu") -> NativeArrays:
    """Return the arrays that an adapter asks for by name. Raises ValueError for another name."""
    if name == "numpy":
        return NUMPY
    if not isinstance(name, str) or name not in NATIVE:
        raise ValueError(f"`arrays` must be one of numpy, {', '.join(NATIVE)}: got {name!r}")
    module, _, attribute = NATIVE[name].partition(":")
    arrays = getattr(import_module(f"{__package__}.{module}"), attribute)()
    arrays.device = device
    with arrays.scope("float32"):
        arrays.array(np.zeros(1, np.float32))  # a device that is not there is refused at once
    return arrays
