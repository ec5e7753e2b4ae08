"""What a case raised: whether it is a verdict, and what it says."""

import pytest

from .failure import printable

# A wrong answer, or no exception where one was expected, as pytest.raises says.
DIFFERS = (AssertionError, pytest.fail.Exception)
INTROSPECTION = "\nassert "  # after it pytest shows the source of an assertion


def message_of(error: BaseException) -> str:
    """Return what an exception says, with its type where it is no verdict."""
    text = str(error).partition(INTROSPECTION)[0].strip() or type(error).__name__
    if not isinstance(error, (*DIFFERS, pytest.skip.Exception)):
        text = f"{type(error).__name__}: {text}"
    return printable("\n".join([text, *notes_of(error)]))


def notes_of(error: BaseException | None) -> list[str]:
    return getattr(error, "__notes__", [])
