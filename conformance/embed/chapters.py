"""Every case of the suite, read from its chapters.

In somebody else's session pytest does not collect the suite's files: its settings there are for
other tests. So the cases are read from the marks of the test functions, and named as pytest names
them.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from ..runs.examples import steady
from ..subjects.protocol import NotOffered, Subject, require
from .plugin import declare_marks

SUITE = Path(__file__).parents[1]
PARAMETERS = type(pytest.param())


class ClauseCase(NamedTuple):
    """A test function of the suite with one set of its parameters."""

    function: Callable[..., None]
    parameters: dict[str, Any]
    clause: str
    name: str  # the case, as a report names it
    needs: tuple[str, ...]

    @property
    def chapter(self) -> str:
        """Return the module, its dotted path in the suite: `test_empty`."""
        return self.function.__module__.partition(".")[2]

    @property
    def dtype(self) -> str:
        return str(self.parameters.get("dtype", "float32"))

    def ask(self, subject: Subject) -> None:
        """Put the case to a subject. Raises NotOffered where the subject does not offer it."""
        __tracebackhide__ = True
        require_case(subject, self.needs, self.parameters.get("dtype"))
        if not inspect.signature(self.function).parameters.keys() <= {"subject", *self.parameters}:
            raise NotOffered(f"{subject.name} has no files, and no other subject beside it")
        self.function(subject=subject, **self.parameters)


def require_case(subject: Subject, needs: Iterable[str], dtype: Any) -> None:
    """Raise NotOffered unless a subject declares what a test needs, and the dtype of its case."""
    require(subject, *needs)
    if dtype and dtype not in subject.dtypes:
        raise NotOffered(f"{subject.name} on {subject.device} has no {dtype}")


@cache
def clause_cases() -> tuple[ClauseCase, ...]:
    """Return every case of the suite, chapter by chapter."""
    declare_marks()
    with steady(), warnings.catch_warnings():  # Hypothesis reads its settings at a definition
        warnings.simplefilter("ignore")  # where this package is not installed, its marks are new
        paths = [path.relative_to(SUITE) for path in sorted(SUITE.rglob("test_*.py"))]
        names = [".".join(path.with_suffix("").parts) for path in paths]
        modules = [import_module(f"conformance.{name}") for name in names]
    return tuple(case for module in modules for case in _of_module(module))


def _of_module(module: ModuleType) -> Iterator[ClauseCase]:
    for name, function in vars(module).items():
        if name.startswith("test") and inspect.isfunction(function):
            yield from _of_function(function, [*_marks(function), *_marks(module)])


def _marks(holder: object) -> list[pytest.Mark]:
    """Return the marks of a function or a module, the nearest first."""
    given = getattr(holder, "pytestmark", [])
    given = given if isinstance(given, list) else [given]
    return [mark if isinstance(mark, pytest.Mark) else mark.mark for mark in given]


def _of_function(function: Callable[..., None], marks: list[pytest.Mark]) -> Iterator[ClauseCase]:
    (clause,) = (mark.args[0] for mark in marks if mark.name == "clause")
    needs = tuple(need for mark in marks if mark.name == "needs" for need in mark.args)
    axes = [_axis(*mark.args, **mark.kwargs) for mark in marks if mark.name == "parametrize"]
    for chosen in product(*axes):
        parameters = {name: value for _, values in chosen for name, value in values.items()}
        words = "-".join([clause, *(id for id, _ in chosen)])
        yield ClauseCase(function, parameters, clause, f"{function.__name__}[{words}]", needs)


def _axis(argnames, argvalues, ids=None) -> list[tuple[str, dict[str, Any]]]:
    """Return the sets of parameters of one `pytest.mark.parametrize`, each after its id."""
    names = [n.strip() for n in argnames.split(",")] if isinstance(argnames, str) else argnames
    axis = []
    for number, entry in enumerate(argvalues):
        wrapped = isinstance(entry, PARAMETERS)
        values = entry.values if wrapped else entry if len(names) > 1 else (entry,)
        named = dict(zip(names, values, strict=True))
        id = entry.id if wrapped else None
        if id is None and ids is not None and not callable(ids):
            id = list(ids)[number]
        if id is None:
            parts = (_id(value, f"{name}{number}", ids) for name, value in named.items())
            id = "-".join(parts)
        axis.append((str(id).encode("unicode_escape").decode("ascii"), named))
    return axis


def _id(value: object, otherwise: str, ids: Callable[[Any], object] | None) -> str:
    """Return a value's part of an id, as pytest writes it."""
    made = ids(value) if callable(ids) else None
    value = value if made is None else made
    if value is None or isinstance(value, str | int | float | complex):
        return str(value)
    return getattr(value, "__name__", otherwise)
