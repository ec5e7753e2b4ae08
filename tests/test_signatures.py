"""What a parameter may default to: nothing that torch.compile cannot make again from source."""

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module

import pytest

WHY = "torch.compile of torch 2.11 cannot trace a call that leaves a slice to its default, use None"


def functions(package) -> Iterator[tuple[str, object]]:
    """Yield every function and method that a package defines, private ones too, by its place."""
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = import_module(info.name)
        for name, member in _own(module, module.__name__):
            yield f"{module.__name__}.{name}", member
            if inspect.isclass(member):
                found = _own(member, module.__name__)
                yield from ((f"{module.__name__}.{name}.{key}", method) for key, method in found)


def _own(place, module: str) -> Iterator[tuple[str, object]]:
    for name, member in vars(place).items():
        member = getattr(member, "__func__", member)  # of a class method
        member = inspect.unwrap(member)  # of jax.jit, of torch.no_grad
        if callable(member) and getattr(member, "__module__", "") == module:
            yield name, member


def sliced(package) -> list[str]:
    """Return the parameters whose default is a slice."""
    found = []
    for place, function in functions(package):
        if inspect.isclass(function):
            continue  # its methods are looked at
        for name, parameter in inspect.signature(function).parameters.items():
            if isinstance(parameter.default, slice):
                found.append(f"{place}({name}={parameter.default})")
    return found


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_no_default_is_a_slice(backend):
    package = import_module(f"attn_{backend}")
    places = {place for place, _ in functions(package)}
    assert f"attn_{backend}.tiles.Cells.__init__" in places
    assert f"attn_{backend}.attention._softmax" in places
    found = sliced(package)
    assert not found, f"{WHY}: got {', '.join(found)}"
