"""The process in which the cases run: pytest, and word of how it ended for the one that waits."""

import json
import os
import sys
from pathlib import Path

import pytest

from .reporter import REPORTER

# Options that leave cases out, as pytest names them.
FILTERS = (
    "clause", "profile", "case", "smoke",
    "keyword", "markexpr", "deselect", "ignore", "ignore_glob",
)  # fmt: skip
ENDED = "ended.json"


class Heard:
    """A pytest plugin that hears what pytest was told, by whatever way it was told."""

    whole = False  # whether every case was asked for
    reported = False  # whether a report was written

    def pytest_configure(self, config: pytest.Config) -> None:
        self.whole = not any(config.getoption(name, None) for name in FILTERS)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        reporter = session.config.pluginmanager.get_plugin(REPORTER)
        self.reported = reporter is not None and reporter.file is not None


def main(notes: str, words: list[str]) -> None:
    """Run pytest and leave word; whatever threads are left behind, the process ends here."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    heard = Heard()
    status = int(pytest.main(words, plugins=[heard]))
    word = {"status": status, "whole": heard.whole, "reported": heard.reported}
    Path(notes, ENDED).write_text(json.dumps(word), "utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
