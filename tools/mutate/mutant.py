"""A mutant: a backend's file with one mistake in it. Here are those written by hand, as patches.

They stand in `patches/BACKEND.toml`, a table each:

    [[patch]]
    name = "blocked-last-tile"
    file = "attn_numpy/blocked.py"
    sentence = "The last tile of keys is left out. Seen: more keys than a tile."
    old = "text that occurs exactly once in the file"
    new = "what replaces it"
    equivalent = "why no call can show it"     (only where none can)
"""

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BACKENDS = ("numpy", "torch", "jax")
PATCHES = Path(__file__).with_name("patches")
KEYS = {"name", "file", "sentence", "old", "new"}


@dataclass(frozen=True)
class SourceMutant:
    """What is wrong, and where: `new` stands in place of `old`."""

    name: str
    file: str
    sentence: str  # of an operator: the line, before and after
    source: str  # the whole file
    start: int
    old: str
    new: str
    equivalent: str = ""  # why no call can show it
    kind: str = "patch"

    @property
    def backend(self) -> str:
        return self.file.split("/", 1)[0].removeprefix("attn_")

    @property
    def id(self) -> str:
        return f"{self.backend}/{self.name}"

    @property
    def text(self) -> str:
        """The file with the mistake in it."""
        return self.source[: self.start] + self.new + self.source[self.start + len(self.old) :]

    @property
    def lines(self) -> tuple[int, int]:
        """The first and the last line that differ from the original's."""
        same = equal_ends(self.old, self.new)
        end = len(self.old) - equal_ends(self.old[same:][::-1], self.new[same:][::-1])
        first = self.source.count("\n", 0, self.start + same) + 1
        return first, first + self.old.count("\n", same, max(same, end - 1))

    def before_and_after(self) -> tuple[str, str]:
        """Return the lines that change, on one line, as they were and as they are."""
        top, end = self.source.rfind("\n", 0, self.start) + 1, self.start + len(self.old)
        rest = self.source[end:].split("\n", 1)[0]
        head = self.source[top : self.start]
        return " ".join((head + self.old + rest).split()), " ".join(
            (head + self.new + rest).split()
        )


def equal_ends(one: str, other: str) -> int:
    """Return how many characters two texts have in common from their beginning.

    >>> equal_ends("mask", "map")
    2
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def patches(folder: Path = PATCHES, root: Path = ROOT) -> list[SourceMutant]:
    """Return the mutants written by hand. Raises ValueError where a table cannot be used."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        tables = tomllib.loads(path.read_text("utf-8")).get("patch", [])
        found += [patch(table, path.name, root) for table in tables]
    ids = [mutant.id for mutant in found]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise ValueError(f"a patch's name must be its own: got {', '.join(twice)} twice")
    return found


def patch(table: dict[str, str], where: str, root: Path = ROOT) -> SourceMutant:
    """Return one table of a TOML file as a mutant. Raises ValueError where it does not apply."""
    about = f"{where}, {table.get('name', 'a patch without a name')}"
    if wrong := KEYS - table.keys() or table.keys() - KEYS - {"equivalent"}:
        raise ValueError(f"{about}: a patch has {', '.join(sorted(KEYS))}: got {sorted(wrong)}")
    file, old, new = table["file"], table["old"], table["new"]
    if file.split("/")[0] not in {f"attn_{name}" for name in BACKENDS}:
        raise ValueError(f"{about}: file must be one of a backend: got {file}")
    source = (root / file).read_text("utf-8")
    if (times := source.count(old)) != 1 or old == new:
        rule = "`old` must occur once and differ from `new`; write it anew from today's source"
        raise ValueError(f"{about}: {rule}: got {times} times in {file}")
    words = table["name"], file, table["sentence"]
    mutant = SourceMutant(*words, source, source.index(old), old, new, table.get("equivalent", ""))
    try:
        ast.parse(mutant.text)
    except SyntaxError as error:
        raise ValueError(f"{about}: {file} must compile with `new`: got {error}") from error
    return mutant
