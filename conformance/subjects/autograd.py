"""Gradients that an adapter need not return: those of its output, by its framework's autograd."""

from collections.abc import Callable
from typing import Any

from .native import NativeArrays

LEARNED = ("bias", "sinks")


def gradients(
    native: NativeArrays, attention: Callable, query, key, value, grad, **options
) -> dict[str, Any]:
    """Return the gradients of sum(grad * attention(...)), as an adapter's `gradients` does."""
    inputs = {"query": query, "key": key, "value": value}
    learned = {name: options.pop(name) for name in LEARNED if name in options}

    def call(leaves: dict):
        own = {name: leaves[name] for name in learned}
        return attention(*(leaves[name] for name in inputs), **own, **options)

    return native.vjp(call, inputs | learned, grad)


def multihead_gradients(
    native: NativeArrays,
    multihead: Callable,
    config,
    parameters,
    query,
    key,
    value,
    grad,
    **options,
) -> dict[str, Any]:
    """The same of a module, by its parameters too."""
    inputs = {"query": query, "key": key, "value": value}
    options |= {"need_weights": False, "average_weights": True}

    def call(leaves: dict):
        own = {name: leaves[name] for name in parameters}
        return multihead(config, own, *(leaves[name] for name in inputs), **options)[0]

    return native.vjp(call, inputs | parameters, grad)
