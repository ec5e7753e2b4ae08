"""What a case raised: whether it is a verdict, and what it says."""

from pathlib import Path
from types import TracebackType

import pytest

from .failure import printable

# A wrong answer, or no exception where one was expected, as pytest.raises says.
DIFFERS = (AssertionError, pytest.fail.Exception)
SUITE = Path(__file__).parents[1]
INTROSPECTION = "\nassert "  # after it pytest shows the source of an assertion


def message_of(error: BaseException) -> str:
    """Return what an exception says, with its type where it is no verdict."""
    text = str(error).partition(INTROSPECTION)[0].strip() or type(error).__name__
    if not isinstance(error, (*DIFFERS, pytest.skip.Exception)):
        text = f"{type(error).__name__}: {text}"
    return printable("\n".join([text, *notes_of(error)]))


def notes_of(error: BaseException | None) -> list[str]:
    return getattr(error, "__notes__", [])


def without_the_suite(error: BaseException) -> BaseException:
    """Return an error from outside without the suite's own frames in its traceback."""
    if not comes_from_outside(error):
        return error
    traceback = None
    for entry in reversed(_entries(error)):
        if not _is_of_the_suite(entry):
            traceback = TracebackType(traceback, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return error.with_traceback(traceback)


def comes_from_outside(error: BaseException) -> bool:
    """Whether an error was raised outside of the suite."""
    return not any(map(_is_of_the_suite, _entries(error)[-1:]))


def _entries(error: BaseException) -> list[TracebackType]:
    found, entry = [], error.__traceback__
    while entry:
        found.append(entry)
        entry = entry.tb_next
    return found


def _is_of_the_suite(entry: TracebackType) -> bool:
    return Path(entry.tb_frame.f_code.co_filename).is_relative_to(SUITE)
