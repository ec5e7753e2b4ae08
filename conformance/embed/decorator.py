"""`parametrize_with_clauses`: the suite's cases as the cases of a test in somebody's own file."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .. import subjects
from ..contract import clauses, profiles
from ..reports import known as differences
from ..reports.suggest import must_be_one_of
from ..reports.verdict import is_must
from .chapters import clause_cases
from .check import Check, Offer
from .offered import offered_cases


class RefusedError(ValueError, pytest.Collector.CollectError):
    """A refusal; pytest shows its sentence, and no traceback."""


def parametrize_with_clauses(
    subject: type | ModuleType | str,
    *,
    profiles: Sequence[str] | None = None,
    known: str | Path | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make one test of each case that the suite puts to an implementation of attention.

        @parametrize_with_clauses(MySubject, profiles=["attention", "empty"], known="known.toml")
        def test_my_attention(check):
            check()

    The subject is an adapter's class, a module that has a class `Subject`, or a text as `--subject`
    takes it. `profiles` are the parts of the contract that are asked about, by default all. `known`
    is a file of known differences, its path relative to the file of the test; their cases are
    expected to fail. Cases that the subject does not offer are left out.

    Raises ValueError where a profile or the subject does not exist, where nothing is offered, or
    where a known difference matches no case; and TypeError where the subject is something else.

    >>> @parametrize_with_clauses("torch-sdpa", profiles=["causal"])
    ... def test_causal(check):
    ...     check()
    """
    if isinstance(profiles, str):
        raise TypeError(f"profiles must be a list of names: got {profiles!r}")
    names = None if profiles is None else list(profiles)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        file = None if known is None else Path(inspect.getfile(function)).parent / known
        found = offers([subject], names, file)
        checks = [check for offer in found for check in offer.checks]
        ids = [check.name for check in checks]
        return pytest.mark.parametrize("check", checks, ids=ids)(function)

    return decorate


def offers(
    asked_of: Sequence[type | ModuleType | str], names: list[str] | None, file: Path | None
) -> list[Offer]:
    """Return what subjects offer of some profiles, each on each of its devices."""
    for name in names or []:
        if name not in profiles():
            raise RefusedError(must_be_one_of("a profile", profiles(), name))
    chosen = profiles() if names is None else names
    asked = {id for id, clause in clauses().items() if clause.profile in chosen}
    try:
        known = [] if file is None else differences.read(file)
    except (OSError, ValueError) as error:
        raise RefusedError(str(error)) from error
    path = None if file is None else str(file)
    found = [
        _offer(one, asked, known, path, isinstance(subject, str))
        for subject in asked_of
        for one in _plugged(subject)
    ]
    checks = [check for offer in found for check in offer.checks]
    if not checks:
        raise RefusedError("nothing would be tested: got a subject that offers nothing of it")
    tried = [(c.clause.id, c.case.name, c.subject.name, c.subject.device) for c in checks]
    if idle := differences.unmatched([one for one in known if one.clause in asked], tried):
        rule = "a known difference must match a case of the suite that is offered"
        raise RefusedError(f"{rule}: got {'; '.join(map(str, idle))} in {file}")
    return found


def _plugged(subject: type | ModuleType | str) -> list[Any]:
    if isinstance(subject, ModuleType):
        subject = f"{subject.__name__}:Subject"
    if not isinstance(subject, str | type):
        rule = "a subject must be a class, a module that has a class Subject, or a text"
        raise TypeError(f"{rule}: got an instance of {type(subject).__name__}")
    return subjects.plug(subject)


def _offer(
    subject: Any,
    asked: set[str],
    known: list[differences.Known],
    file: str | None,
    is_named: bool,
) -> Offer:
    cases = [case for case in clause_cases() if case.clause in asked]
    there = offered_cases(subject, cases)
    absent = asked - {case.clause for case in there}
    offer = Offer(subject, sum(map(is_must, absent)), file, is_named)
    about = (subject.name, subject.device)
    for case in there:
        entry = next((e for e in known if e.matches(case.clause, case.name, *about)), None)
        offer.checks.append(Check(case, offer, entry))
    return offer
