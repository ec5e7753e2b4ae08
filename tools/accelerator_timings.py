"""The page's tables of timings: one for each framework and shape."""

from collections.abc import Iterable

WORDS = (
    "Medians in ms; ours and its rivals take turns in one process, each call waited for. In "
    "brackets stands how many times faster ours is: **above 1 ours is faster**; and the floor that "
    "the ratio should reach, where it does not. A call has a time "
    "only where one head of its answer is right, compared with float64. Where a rival compiles "
    "(flex), ours was timed again beside it. MiB is what one of our calls takes at most, its "
    "results included. An empty cell was not measured. window: causal, 256 keys back; packed: "
    "8 documents, causal; padded: lengths from all of T down to half of it; decode: one token "
    "behind a cache, all of a MultiHeadAttention, against the same by hand or flax's."
)


def timings(lines: list[dict]) -> list[str]:
    """Return the sections on how fast it is."""
    found = []
    for wanted in (line for line in lines if line["type"] == "rows"):
        own = [
            line
            for line in lines
            if line["type"] == "bench" and line["backend"] == wanted["backend"]
        ]
        found += _of_backend(wanted, own)
    return ["## Timings", WORDS, *found] if found else []


def _of_backend(wanted: dict, own: list[dict]) -> list[str]:
    merged, notes, found = merge(own), Notes(), []
    for shape in dict.fromkeys(key[0] for key in merged):
        group = {key: rivals for key, rivals in merged.items() if key[0] == shape}
        decode = next(iter(group))[1] == "decode"
        sizes = "(B, heads, context, width)" if decode else "(B, H, T, D)"
        text = ", ".join(map(str, shape))
        found.append(f"### {wanted['backend']}, {sizes} = ({text})")
        found.append(_table(group, notes))
    if notes.texts:
        found.append("\n".join(f"{at}. {text}" for at, text in enumerate(notes.texts, 1)))
    missing = len(wanted["names"]) - len(own)
    if missing:
        first = wanted["names"][len(own)]
        of_all = f"{missing} of {len(wanted['names'])} rows of {wanted['backend']}"
        told = f"{of_all} were not measured: the time box ended before {first!r}"
        found.append(f"{told}. The file beside this page names them all.")
    return found


class Notes:
    """Reasons, each numbered once for a backend."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the number under which a reason stands below the tables."""
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"


def merge(own: Iterable[dict]) -> dict[tuple, dict]:
    """Return each row's entries by (shape, work, dtype, backward): ours, then every rival."""
    found: dict[tuple, dict] = {}
    for line in own:
        key = (tuple(line["shape"]), line["work"], line["dtype"], line["backward"])
        entries = found.setdefault(key, {"ours": line["ours"]})
        entries |= line["rivals"]
    return found


def _table(group: dict[tuple, dict], notes: Notes) -> str:
    rivals = list(dict.fromkeys(name for row in group.values() for name in row if name != "ours"))
    head = ["work", "dtype", "pass", "ours", "MiB", *rivals]
    lines = [head, ["---"] * len(head)]
    for (_, work, dtype, backward), row in group.items():
        way = "forward + backward" if backward else "forward"
        mib = row["ours"].get("mib")
        ours = [_cell(row["ours"], notes), "" if mib is None else _figure(mib)]
        others = [_cell(row[name], notes) if name in row else "" for name in rivals]
        lines.append([work, dtype, way, *ours, *others])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(entry: dict, notes: Notes) -> str:
    if "refused" in entry:
        return f"refuses {notes.mark(entry['refused'])}"
    if "disagrees" in entry:
        return f"**wrong** {notes.mark(entry['disagrees'])}"
    shown = _figure(entry["ms"])
    if "ratio" not in entry:
        return shown
    missed = entry["ratio"] < entry.get("floor", 0)
    below = f", **below {entry['floor']:.2f}**" if missed else ""
    return f"{shown} ({entry['ratio']:.2f}{below})"


def _figure(number: float) -> str:
    return f"{number:.3f}" if number < 1 else f"{number:.2f}" if number < 100 else f"{number:.0f}"
