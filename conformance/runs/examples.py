"""Hypothesis as the suite uses it: the same examples every time, and nothing kept between runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import settings

USUAL: dict[str, Any] = {"deadline": None, "database": None, "report_multiple_bugs": False}
STEADY = "attn-rosetta"  # a name of its own: other people's profiles have plain ones


@contextmanager
def steady() -> Iterator[None]:
    """Let Hypothesis try the same examples every time, then go on with the profile it had."""
    before = settings.get_current_profile_name()
    settings.register_profile(STEADY, derandomize=True, **USUAL)
    settings.load_profile(STEADY)
    try:
        yield
    finally:
        settings.load_profile(before)
