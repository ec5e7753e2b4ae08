"""The process in which the cases run: pytest, and a note of how it ended for the one that waits."""

import json
import os
import sys
from pathlib import Path

import pytest

# Options that leave cases out, as pytest names them.
FILTERS = (
    "clause", "profile", "case", "smoke",
    "keyword", "markexpr", "deselect", "ignore", "ignore_glob",
)  # fmt: skip
ENDED = "ended.json"


class Heard:
    """A pytest plugin that hears what pytest was told, by whatever way it was told."""

    whole = False  # whether every case was asked for
    collected = False  # whether cases were only collected

    def pytest_configure(self, config: pytest.Config) -> None:
        self.whole = not any(config.getoption(name, None) for name in FILTERS)
        self.collected = config.option.collectonly


def main(notes: str, words: list[str]) -> None:
    """Run pytest and write a note; whatever threads are left behind, the process ends here."""
    heard = Heard()
    status = int(pytest.main(words, plugins=[heard]))
    sys.stdout.flush()
    sys.stderr.flush()
    note = {"status": status, "whole": heard.whole, "collected": heard.collected}
    Path(notes, ENDED).write_text(json.dumps(note), "utf-8")
    os._exit(status)
