"""The inside of that process: pytest, and a note of how it ended for the one that waits."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

# Options that leave cases out, as pytest names them.
FILTERS = (
    "clause", "profile", "case", "smoke",
    "keyword", "markexpr", "deselect", "ignore", "ignore_glob",
)  # fmt: skip
ENDED = "ended.json"


class Settings:
    """A pytest plugin that gives pytest the parsed options, and notes what else it was told."""

    whole = False  # whether every case was asked for
    collected = False  # whether cases were only collected

    def __init__(self, options: dict[str, Any]):
        self.options = options

    def pytest_configure(self, config: pytest.Config) -> None:
        vars(config.option).update(self.options)
        self.whole = not any(config.getoption(name, None) for name in FILTERS)
        self.collected = config.option.collectonly

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node) -> None:
        """Tell a worker the options: it parses only the words that pytest was given."""
        node.workerinput["options"] = {n: v for n, v in self.options.items() if n != "arguments"}


def main(options: dict[str, Any], words: list[str]) -> None:
    """Run pytest and write a note; even if threads are left behind, the process ends here."""
    sys.argv[1:] = options["arguments"]
    settings = Settings(options)
    status = int(pytest.main(words, plugins=[settings]))
    sys.stdout.flush()
    sys.stderr.flush()
    note = {"status": status, "whole": settings.whole, "collected": settings.collected}
    Path(options["notes"], ENDED).write_text(json.dumps(note), "utf-8")
    os._exit(status)
