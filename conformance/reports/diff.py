"""What has changed between two reports."""

from collections import defaultdict

from .report import results

# How well a case does; a case that is not offered, or absent, has no rank.
RANKS: dict[str | None, int] = {"conforms": 2, "known difference": 1, "differs": 0, "error": 0}


def diff(old: list[dict], new: list[dict]) -> tuple[str, bool]:
    """Return what changed between two reports, case by case, and whether anything got worse.

    Worse is a case that fell in `RANKS`, or that conformed and is not tried any more.
    """
    keys = ("subject", "device", "case")
    before, after = ({tuple(r[k] for k in keys): r for r in results(x)} for x in (old, new))
    groups: dict[str, list[str]] = defaultdict(list)
    worse = False
    for key in [*after, *(k for k in before if k not in after)]:
        was, now = (x[key]["outcome"] if key in x else None for x in (before, after))
        if was != now and {was, now} != {None, "not offered"}:
            clause = (after.get(key) or before[key])["clause"]
            where = f"{clause} {key[0]} on {key[1]}: {key[2]}"
            worse |= _is_worse(was, now)
            groups[_change(was, now)].append(f"  {where} ({was or 'absent'} -> {now or 'absent'})")
    text = "\n".join(f"{word}: {len(groups[word])}\n" + "\n".join(groups[word]) for word in groups)
    return text or "nothing has changed", worse


def _change(was: str | None, now: str | None) -> str:
    if was is None:
        return "new"
    if now is None:
        return "gone"
    if now == "conforms":
        return "began to conform"
    if was == "conforms":
        return "ceased to conform"
    return "got worse" if _is_worse(was, now) else "otherwise"


def _is_worse(was: str | None, now: str | None) -> bool:
    """Whether a case got worse; `diff` says when."""
    if now not in RANKS:
        return was == "conforms"  # nobody knows that it still does
    return RANKS[now] < RANKS.get(was, 0)
