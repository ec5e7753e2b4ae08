"""What adapters of peers share: NumPy arrays into a library's own call, and out of it.

An adapter mixes a framework (`torch.Torch`, `jax.Jax`, `numpy.NumPy`) with `FunctionPeer` or
`ModulePeer`, and writes one method, `call`, in its framework's arrays.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any, ClassVar
from unittest import mock

import numpy as np

from ..native import NativeArrays
from . import heads
from .widths import Fitted


class Peer(NativeArrays):
    """Says what it is, and hands every array on as it is, masks too.

    After a call `path` says which way through the library answered, and `did` what was done to the
    mask before it arrived. A path is known by the function it goes by: `paths` names those that are
    watched, `otherwise` is the path that goes by none of them.
    """

    paths: ClassVar[Mapping[str, str]] = {}
    otherwise = ""
    path = ""
    did: tuple[str, ...] = ()
    mask_polarity = "attend"
    capabilities: frozenset[str] = frozenset()
    further: frozenset[str] = frozenset()  # what the atlas asks and no clause does
    dtypes: tuple[str, ...] = ("float32", "float64", "float16", "bfloat16")
    packages: tuple[str, ...] = ()

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in self.packages}

    def converted(self, given: dict[str, Any]) -> dict[str, Any]:
        """Convert what is an array; one array given twice stays one."""
        known: dict[int, object] = {}
        for value in given.values():
            if isinstance(value, np.ndarray) and id(value) not in known:
                known[id(value)] = self.array(value)
        return {name: known.get(id(value), value) for name, value in given.items()}

    def differentiate(
        self, function: Callable, leaves: dict, grad: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the gradients of sum(grad * function(leaves)) by every leaf."""
        found = self.vjp(function, self.converted(leaves), self.array(grad))
        return {name: self.numpy(x) for name, x in found.items()}

    def answer(self, dtype: str, *args, **given):
        """Call the library; return output and weights, None where there are none."""
        with self.scope(dtype):
            output, weights = self.watched(*args, **self.converted(given))
            return self.numpy(output), None if weights is None else self.numpy(weights)

    def watched(self, *args, **given) -> tuple:
        """Call the library, and note the path that it goes."""
        seen: list[str] = []
        try:
            with ExitStack() as stack:
                for name, path in self.paths.items():
                    stack.enter_context(watch(name, path, seen))
                return self.call(*args, **given)
        finally:
            self.path = seen[-1] if seen else self.otherwise

    def tell(self, text: str) -> None:
        """Say what was done to a mask, once."""
        self.did = tuple(dict.fromkeys((*self.did, text)))

    call: Callable[..., tuple]  # output and weights, or None, in the framework's arrays


@contextmanager
def watch(name: str, path: str, seen: list[str]) -> Iterator[None]:
    """Note a path whenever the function of this name is called."""
    module, _, attribute = name.rpartition(".")
    function = getattr(import_module(module), attribute)

    def noted(*args, **options):
        seen.append(path)
        return function(*args, **options)

    with mock.patch(name, noted):
        yield


class FunctionPeer(Peer):
    """A function of query, key and value; `call` takes attention's options and `need_weights`."""

    one_width = False  # whether values must be as wide as keys; see `widths`

    def attention(self, query, key, value, **options):
        return self.asked(query, key, value, options)[0]

    def weights(self, query, key, value, **options):
        return self.asked(query, key, value, options | {"need_weights": True})

    def gradients(self, query, key, value, grad, **options):
        fitted = self.fitted(query, key, value, options)
        learned = [name for name in ("bias", "sinks") if name in options]
        leaves = fitted.inputs | {name: options.pop(name) for name in learned}
        with self.scope(query.dtype.name):
            options = self.converted(options)

            def call(own: dict):
                return self.watched(**own, **options)[0]

            return fitted.gradients(self.differentiate(call, leaves, fitted.fill(grad)))

    def asked(self, query, key, value, options: dict) -> tuple:
        fitted = self.fitted(query, key, value, options)
        output, weights = self.answer(query.dtype.name, **fitted.inputs, **options)
        return fitted.output(output), weights

    def fitted(self, query, key, value, options: dict) -> Fitted:
        return Fitted(query, key, value, options.get("scale"), self.one_width)


class ModulePeer(Peer):
    """A multi-head attention; attention is asked of it through projections that are the identity.

    `call` takes config, parameters and inputs by the contract's names; see `heads` for what a
    module cannot be asked.
    """

    mask_argument = "mask"

    def multihead(self, config, parameters, query, key, value, *, average_weights=True, **options):
        given = {"query": query, "key": key, "value": value, **options}
        with self.scope(query.dtype.name):
            parameters = self.converted(parameters)
        output, weights = self.answer(query.dtype.name, config, parameters, **given)
        return output, weights.mean(1) if average_weights and weights is not None else weights

    def multihead_gradients(self, config, parameters, query, key, value, grad, **options):
        inputs = {"query": query, "key": key, "value": value}
        with self.scope(query.dtype.name):
            options = self.converted(options)

            def call(leaves):
                own = {name: leaves[name] for name in parameters}
                inputs = {n: leaves[n] for n in ("query", "key", "value")}
                return self.watched(config, own, **inputs, **options)[0]

            return self.differentiate(call, inputs | parameters, grad)

    def attention(self, query, key, value, **options):
        asked, options = self.asked(query, key, value, options)
        return asked.output(self.multihead(*asked.call, need_weights=False, **options)[0])

    def weights(self, query, key, value, **options):
        asked, options = self.asked(query, key, value, options)
        options |= {"need_weights": True, "average_weights": False}
        output, weights = self.multihead(*asked.call, **options)
        return asked.output(output), weights

    def gradients(self, query, key, value, grad, **options):
        asked, options = self.asked(query, key, value, options)
        return asked.gradients(self.multihead_gradients(*asked.call, asked.grad(grad), **options))

    def as_module(self, query, key, value) -> heads.Asked:
        return heads.Asked(query, key, value)

    def asked(self, query, key, value, options: dict) -> tuple[heads.Asked, dict]:
        """Return a call of attention as one of the module's, and its options."""
        asked = self.as_module(query, key, value)
        options = {self.mask_argument if n == "mask" else n: x for n, x in options.items()}
        if "dropout" in options:
            asked.config["dropout"] = options.pop("dropout")
            options["training"] = True
        return asked, options
