"""The file of a report while its run writes it, and the move to its final place."""

import argparse
import errno
import os
from pathlib import Path
from tempfile import mkdtemp

REPORT = ".conformance/report.jsonl"


class Draft:
    """A report while it is written, under another name, until `settle` puts it in place.

    So two runs in one folder do not meet, and a device or a pipe is written to once, at the end.
    """

    made: Path | None = None  # the folder made for a report that has no other place

    def __init__(self, options: argparse.Namespace, notes: str):
        self.target = Path(options.report).absolute()
        self.stream = self.target.exists() and not self.target.is_file()
        self.stream |= self.target.parts[1:2] == ("dev",)  # standard output may be a file
        self.target = self.target if self.stream else self.target.resolve()
        if self.target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(options.report))
        name = f"{self.target.name}.{os.getpid()}"
        self.path = Path(notes) / name if self.stream else self.target.parent / name
        try:
            self._make()
        except OSError:
            if options.report != REPORT:
                raise
            self.made = Path(mkdtemp(prefix="conformance-"))  # no file was asked for here
            self.target, self.path = self.made / "report.jsonl", self.made / name
            options.report = str(self.target)
            self._make()

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.open("w", encoding="utf-8").close()

    def settle(self) -> None:
        """Move the report to its place; a run that tested nothing has written none."""
        if not self.path.stat().st_size:
            self.path.unlink()
            if self.made:
                self.made.rmdir()
        elif self.stream:
            text = self.path.read_text("utf-8")
            with self.target.open("a", encoding="utf-8") as stream:
                stream.write(text)
        else:
            self.path.replace(self.target)
