"""One case of the suite as the argument of a test: calling it is the test."""

import os
import shlex
import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest

from ..contract import clauses
from ..oracle.tolerance import LEDGER
from ..reports.diagnosis import first_name
from ..reports.failure import explain, repeating
from ..reports.known import MISSED, RAISES, Known
from ..reports.raised import DIFFERS, message_of, notes_of, without_the_suite
from ..reports.recorded import watch
from ..reports.report import outdated, subject_part
from ..reports.verdict import is_must, many
from ..runs.examples import steady
from ..runs.mappings import forget_programs
from ..subjects.protocol import NotOffered
from .chapters import ClauseCase


@dataclass(frozen=True, eq=False)
class Offer:
    """What one subject offers of what is asked for."""

    subject: Any
    not_offered: int  # clauses of which no case is offered
    file: str | None  # of known differences
    is_named: bool  # by a text, which the command line takes too
    checks: list["Check"] = field(default_factory=list)

    def __str__(self) -> str:
        about = f"{self.subject.name} on {self.subject.device}"
        return f"{about}, {len(self.checks)} cases, {many(self.not_offered, 'clause')} not offered"


class Check:
    """A case that is put to a subject when it is called, with the outcome of a run of the suite.

    A wrong answer fails the test with the suite's text; an exception of the subject goes through,
    with that text as a note. A known difference and a SHOULD clause are expected to fail.
    """

    def __init__(self, case: ClauseCase, offer: Offer, known: Known | None):
        self.case, self.offer, self.known = case, offer, known
        self.subject, self.clause = offer.subject, clauses()[case.clause]
        self.called = False

    def __repr__(self) -> str:
        return f"<check of {self.case.name}>"

    @property
    def name(self) -> str:
        """Return the test's name in a run of the suite."""
        return self.case.name.replace("[", subject_part(self.subject), 1)

    def __call__(self) -> None:
        __tracebackhide__ = True
        self.called = True
        error = self._error()
        if isinstance(error, NotOffered):
            pytest.skip(str(error))
        if error is None and self.known:
            message = outdated(self.known, str(self.offer.file))
            pytest.fail(self._text(message, None), pytrace=False)
        if error is None:
            return
        self._expect(error)
        text = self._text(message_of(error), error)
        if isinstance(error, DIFFERS):
            pytest.fail(text, pytrace=False)
        error.add_note(text)
        raise without_the_suite(error)

    def _error(self) -> BaseException | None:
        """Put the case to the subject; return what it raises. The session stays as it is."""
        __tracebackhide__ = True
        LEDGER.open(self.clause.id)
        watch(self.subject)
        with steady(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning is no verdict
            try:
                self.case.ask(self.subject)
            except (Exception, MISSED) as error:
                return error
            finally:
                LEDGER.open("")
                forget_programs()
        return None

    def _expect(self, error: BaseException) -> None:
        """End the test as xfailed if it is expected to fail like this."""
        if self.known and isinstance(error, RAISES[self.known.outcome]):
            pytest.xfail(self.known.expected)
        if not is_must(self.clause.id):
            pytest.xfail("a SHOULD clause")

    def _text(self, message: str, error: BaseException | None) -> str:
        took = first_name(self.subject.calls) if isinstance(error, DIFFERS) else None
        result: dict[str, Any] = {"message": message, "took": took}
        result |= {"dtype": self.case.dtype, "case": self.case.name}
        return explain(self.clause, self.subject, result, notes_of(error), self._command())

    def _command(self) -> str:
        """Return the command that asks this alone."""
        if self.offer.is_named:
            return repeating(self.subject, self.case.name, self.offer.file if self.known else None)
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        return f"python -m pytest {shlex.quote(test)}"
