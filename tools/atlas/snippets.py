"""Snippets: the most surprising answer to a question, by the library itself and nothing of ours.

They stand in snippets.toml. The page shows what each printed when it was made, and a test runs
those whose packages are installed and compares.
"""

import ast
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

LINES = 10


@dataclass(frozen=True)
class Snippet:
    """A program of ten lines at most, for one question."""

    question: str
    says: str
    code: str

    @property
    def packages(self) -> list[str]:
        """The packages that it imports, Keras's backend among them."""
        found = set(re.findall(r'KERAS_BACKEND"\] = "(\w+)"', self.code))
        for node in ast.walk(ast.parse(self.code)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
        return sorted(found)

    @property
    def missing(self) -> list[str]:
        return [name for name in self.packages if not find_spec(name)]


@cache
def snippets() -> tuple[Snippet, ...]:
    """Return the snippets. Raises ValueError where one is longer than it may be."""
    text = Path(__file__).with_name("snippets.toml").read_text("utf-8")
    found = [Snippet(**entry | {"code": entry["code"].strip()}) for entry in _entries(text)]
    for snippet in found:
        if len(snippet.code.splitlines()) > LINES:
            rule = f"a snippet has at most {LINES} lines"
            raise ValueError(f"{rule}: got {len(snippet.code.splitlines())} in {snippet.question}")
    return tuple(found)


def _entries(text: str) -> list[dict]:
    return tomllib.loads(text)["snippet"]
