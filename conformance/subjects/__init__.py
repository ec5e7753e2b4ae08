"""Adapters, one file each; a framework is imported when its adapter is asked for, not before."""

from importlib import import_module
from importlib.util import find_spec

from ..subject import Subject

BACKENDS = {"numpy": ("numpy",), "torch": ("torch",), "jax": ("jax", "flax")}
ALIASES = {"gpu": "cuda"}  # JAX says gpu where torch says cuda


def missing(backend: str) -> list[str]:
    """Return the packages that a backend needs and that are not installed."""
    return [name for name in (*BACKENDS[backend], f"attn_{backend}") if not find_spec(name)]


def devices(backend: str) -> list[str]:
    """Return the devices that a backend's framework reports, cpu first."""
    return import_module(f"conformance.subjects.attn_{backend}").devices()


def load(backend: str, device: str = "cpu") -> Subject:
    """Return the adapter of one backend on one device.

    >>> load("numpy").device
    'cpu'
    """
    return import_module(f"conformance.subjects.attn_{backend}").Adapter(device)
