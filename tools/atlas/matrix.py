"""The contract run as a table: clause by peer, failures by fully masked rows set apart."""

from collections import Counter, defaultdict

from conformance.contract import clauses, profiles
from conformance.reports.report import in_short

WRONG = ("differs", "error")
SYMBOLS = {
    "conforms": "●",
    "differs": "○",
    "fully masked rows": "◐",
    "error": "✕",
    "not offered": "·",
}
LEGEND = {
    "conforms": "conforms in every case that it offers",
    "differs": "gives another answer in some case",
    "fully masked rows": "conforms but for fully masked rows, which are EMPTY-1's matter",
    "error": "raises where an answer is due",
    "not offered": "not offered",
}


def owed_to_empty_rows(result: dict) -> bool:
    """Whether a case of another chapter passes on the peer without fully masked rows.

    Or comes so far that the peer offers no more of it.
    """
    elsewhere = clauses()[result["clause"]].profile != "empty"
    return elsewhere and result.get("without_masked_rows") in ("conforms", "not offered")


def verdict(results: list[dict]) -> str:
    """Return one word for the results of one clause: the worst, refusals after differences."""
    outcomes = {"fully masked rows" if owed_to_empty_rows(r) else r["outcome"] for r in results}
    order = ("differs", "error", "fully masked rows", "conforms")
    return next((word for word in order if word in outcomes), "not offered")


def by_clause(results: list[dict]) -> dict[str, list[dict]]:
    groups = defaultdict(list)
    for result in results:
        groups[result["clause"]].append(result)
    return dict(groups)


def verdicts(results: list[dict]) -> dict[str, str]:
    """Return the word of every clause that the run knows."""
    return {clause: verdict(own) for clause, own in by_clause(results).items()}


def shown_profiles(found: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """Return the clauses by profile of which somebody offers something."""
    offered = {
        clause for own in found.values() for clause, word in own.items() if word != "not offered"
    }
    by_profile = {
        profile: [c.id for c in clauses().values() if c.profile == profile and c.id in offered]
        for profile in profiles()
    }
    return {profile: ids for profile, ids in by_profile.items() if ids}


def how(results: list[dict]) -> str:
    """Return how a clause is not kept: the alternatives taken, refusals, and how often.

    Nothing is said of what is owed to fully masked rows alone.
    """
    wrong = [r for r in results if r["outcome"] in WRONG and not owed_to_empty_rows(r)]
    if not wrong:
        return ""
    names = Counter(map(_name, wrong))
    shown = [f"{name} ({count})" for name, count in names.most_common(3)]
    if len(names) > 3:
        shown.append(f"and {len(names) - 3} more")
    offered = sum(r["outcome"] != "not offered" for r in results)
    return f"{', '.join(shown)}; {len(wrong)} of {offered} cases"


def _name(result: dict) -> str:
    """Return what a wrong result is called: an alternative, an error's type, or what is said."""
    hygiene = clauses()[result["clause"]].profile == "hygiene"
    if result["took"]:
        return "NaN or inf" if result["took"] == "poisoned" and not hygiene else result["took"]
    return in_short(result, "" if result["dtype"] == "float32" else f" in {result['dtype']}")
