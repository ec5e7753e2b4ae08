"""What a mutant is, and how its mistake is put in front of one method of a right subject."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Mutant:
    """A right subject with one mistake, and the clauses that must catch it.

    `method` is the method of the subject that is broken, or "module.NAME" for a function of the
    backend's module. `raises`: it fails by an exception, as an error and not as another answer.
    """

    name: str
    sentence: str
    clauses: tuple[str, ...]
    method: str
    mistake: Callable
    base: str = "numpy"
    raises: bool = False

    @property
    def chapter(self) -> str:
        return self.mistake.__module__.rpartition(".")[2]

    @property
    def methods(self) -> set[str]:
        """What a test must use for the mistake to reach it; `attention` is made of `steps`."""
        return {"steps", "attention"} if self.method == "steps" else {self.method}


MUTANTS: dict[str, Mutant] = {}


def breaks(method: str, *clauses: str, base: str = "numpy", raises: bool = False) -> Callable:
    """Make a function the mistake of a mutant, whose name and sentence are the function's own.

    The function is given the right method, and then the call.
    """

    def register(mistake: Callable) -> Callable:
        name = mistake.__name__.replace("_", "-")
        if name in MUTANTS:
            raise ValueError(f"a mutant has a name of its own: got {name} twice")
        sentence = " ".join((mistake.__doc__ or "").split())
        MUTANTS[name] = Mutant(name, sentence, clauses, method, mistake, base, raises)
        return mistake

    return register


class Altered:
    """A module of which some functions are others."""

    def __init__(self, right: Any, others: dict[str, Callable]):
        self.__dict__ |= {"right": right, **others}

    def __getattr__(self, name: str):
        return getattr(self.right, name)


def broken(subject: Any, method: str, mistake: Callable) -> Any:
    """Put a mistake in front of one method of a subject; attention is then made of the steps."""
    _, _, name = method.rpartition("module.")
    if name == method:
        setattr(subject, method, partial(_quietly, mistake, getattr(subject, method)))
    else:
        wrong = partial(_quietly, mistake, getattr(subject.module, name))
        subject.module = Altered(subject.module, {name: wrong})
    if method == "steps":
        subject.attention = lambda *inputs, **options: subject.steps(*inputs, **options)["output"]
    return subject


@np.errstate(all="ignore")  # a wrong answer shall be seen, not warned of
def _quietly(mistake: Callable, right: Callable, *call, **options):
    return mistake(right, *call, **options)
