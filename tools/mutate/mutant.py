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
class Mutant:
    """What is wrong, and how the file reads with it."""

    name: str
    file: str
    sentence: str  # of an operator: the line, before and after
    text: str  # the whole file
    first: int  # the lines of the original that it changes
    last: int
    equivalent: str = ""  # why no call can show it
    kind: str = "patch"

    @property
    def backend(self) -> str:
        return self.file.split("/", 1)[0].removeprefix("attn_")

    @property
    def id(self) -> str:
        return f"{self.backend}/{self.name}"


def changed(file: str, source: str, start: int, old: str, new: str, **about) -> Mutant:
    """Return the mutant whose file has `new` where `old` begins at the offset `start`."""
    text = source[:start] + new + source[start + len(old) :]
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    same = min(len(old), len(new)) if same is None else same
    end = len(old)
    while (
        end > same
        and len(new) - (len(old) - end) > same
        and old[end - 1] == new[end - 1 - len(old)]
    ):
        end -= 1
    first = source.count("\n", 0, start + same) + 1
    last = source.count("\n", 0, max(start + end - 1, start + same)) + 1
    return Mutant(file=file, text=text, first=first, last=last, **about)


def patches(folder: Path = PATCHES, root: Path = ROOT) -> list[Mutant]:
    """Return the mutants written by hand. Raises ValueError where a table cannot be used."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        tables = tomllib.loads(path.read_text("utf-8")).get("patch", [])
        found += [patch(table, path.name, root) for table in tables]
    ids = [mutant.id for mutant in found]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise ValueError(f"a patch's name must be its own: got {', '.join(twice)} twice")
    return found


def patch(table: dict[str, str], where: str, root: Path = ROOT) -> Mutant:
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
    about_it = {key: table[key] for key in ("name", "sentence")}
    mutant = changed(
        file,
        source,
        source.index(old),
        old,
        new,
        **about_it,
        equivalent=table.get("equivalent", ""),
    )
    try:
        ast.parse(mutant.text)
    except SyntaxError as error:
        raise ValueError(f"{about}: {file} must compile with `new`: got {error}") from error
    return mutant
