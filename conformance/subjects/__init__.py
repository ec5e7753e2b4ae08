"""Adapters, one file each; a framework is imported when its adapter is asked for, not before."""

import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from .adapter import Plugged
from .peers import PEERS
from .protocol import Subject

BACKENDS = {  # and what each cannot be imported without
    "numpy": ("numpy", "jaxtyping"),
    "torch": ("torch", "jaxtyping"),
    "jax": ("jax", "flax", "jaxtyping"),
}
ALIASES = {"gpu": "cuda"}  # JAX says gpu where torch says cuda
ENTRY_POINTS = "attn_rosetta.subjects"
ENVIRONMENT = "ATTN_ROSETTA_SUBJECT"
PREFIXES = {  # of `prefix:rest`, and what returns the adapter class of the rest
    "hf": "conformance.subjects.peers.registered:registered",
    "pipe": "conformance.subjects.pipe:piped",
}


def missing(backend: str) -> list[str]:
    """Return the packages that a backend cannot be imported without and that are not installed."""
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


def find(name: str) -> Callable[..., Any]:
    """Return the adapter class of `package.module:Class`, an entry point's or a peer's name.

    What stands behind a prefix, as in `pipe:./program`, is an argument of the prefix's function.

    Raises ValueError where there is none; an ImportError inside the module goes through.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        if name in points:
            return points[name].load()
        if name in BACKENDS:
            raise ValueError(f"it must be an adapter, a backend is --backend {name}: got {name}")
        if name not in PEERS:
            rule = f"it must be package.module:Class, or an entry point of {ENTRY_POINTS}"
            there = f"({', '.join(points) or 'none is installed'}), or a peer ({', '.join(PEERS)})"
            raise ValueError(f"{rule} {there}: got {name}")
        return find(PEERS[name].adapter)
    if module in PREFIXES:
        return find(PREFIXES[module])(attribute)
    try:
        return getattr(import_module(module), attribute)
    except AttributeError as error:
        raise ValueError(f"it must name a class of {module}: got {attribute}") from error


def plug(named: str | type, device: str = "auto") -> list[Plugged]:
    """Return a third-party adapter as a subject, on each of its devices or on one of them.

    It is a class, or a text that names one. A class with `devices` is called with one of them, any
    other without arguments.
    """
    name = named if isinstance(named, str) else f"{named.__module__}:{named.__qualname__}"
    with warnings.catch_warnings():  # a framework's warnings are not shown
        warnings.simplefilter("ignore")
        adapter = find(named) if isinstance(named, str) else named
    has = getattr(adapter, "devices", ["cpu"])
    if isinstance(has, str):
        raise ValueError(f"devices must be a set of names: got {has!r}")
    own, device = list(has), ALIASES.get(device, device)
    wanted = [d for d in own if device in ("auto", d, ALIASES.get(d))]
    if not wanted:
        rule = f"--device must be one that {name} declares, {', '.join(own)}"
        raise ValueError(f"{rule}: got {device}")
    label = name.rpartition(":")[0].rpartition(".")[2] or name
    made = [adapter(d) if hasattr(adapter, "devices") else adapter() for d in wanted]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DeprecationWarning)
        plugged = [Plugged(one, label, d, name) for one, d in zip(made, wanted, strict=True)]
    if "PYTEST_XDIST_WORKER" not in os.environ:  # whoever runs the suite reads it once
        for text in dict.fromkeys(f"{one.category.__name__}: {one.message}" for one in told):
            print(text, file=sys.stderr)
    return plugged
