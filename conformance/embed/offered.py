"""Which cases a subject offers, found out without running it.

Each case is put to the subject with an adapter that stops at its first call. What the suite refuses
to ask before that call is not offered. A case may still turn out not to be offered later, when its
test asks for more; that test is skipped.
"""

import copy
import warnings
from collections.abc import Iterable
from functools import wraps
from typing import Any

import pytest

from ..runs.examples import steady
from ..subjects.protocol import NotOffered
from .chapters import ClauseCase


class Reached(BaseException):
    """A case has called the adapter: no `except Exception` of a test stops it."""


class _Stopping:
    """An adapter that is like another and stops at the first call."""

    def __init__(self, adapter: Any):
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        there = getattr(self._adapter, name)
        if not callable(there) or name == "versions":
            return there

        @wraps(there)
        def stop(*args, **options):
            raise Reached

        return stop


def offered_cases(subject: Any, cases: Iterable[ClauseCase]) -> list[ClauseCase]:
    """Return the cases that the suite puts to a plugged subject."""
    stopping = copy.copy(subject)
    stopping.adapter = _Stopping(subject.adapter)
    with steady(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [case for case in cases if _is_offered(case, stopping)]


def _is_offered(case: ClauseCase, stopping: Any) -> bool:
    try:
        case.ask(stopping)
    except (NotOffered, pytest.skip.Exception):
        return False
    except (Reached, Exception):
        return True
    return True
