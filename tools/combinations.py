"""Write the rows of the suite's combinations: `python -m tools.combinations`.

covertable makes them: few rows in which every pair of values meets that the plan allows.
"""

from itertools import combinations, product

from covertable import make

from conformance.cases.combinations import HERE, PLANS, Plan


def made(plan: Plan) -> list[dict[str, str]]:
    """Return rows in which every pair of values meets, sorted as the plan names them."""
    found = make(plan.options, constraints=[_apart(values) for _, values in plan.never])
    options = plan.options.items()
    return sorted(
        ({name: row[name] for name in plan.options} for row in found),
        key=lambda row: [values.index(row[name]) for name, values in options],
    )


def _apart(values: dict[str, tuple[str, ...]]) -> dict:
    parts = [{"operator": "in", "left": name, "values": list(v)} for name, v in values.items()]
    return {"operator": "not", "condition": {"operator": "and", "conditions": parts}}


def is_valid(plan: Plan, row: dict[str, str]) -> bool:
    """Whether values meet that may meet; a row may be in part."""
    return not any(
        all(row.get(name) in apart for name, apart in values.items()) for _, values in plan.never
    )


def can_be(plan: Plan, row: dict[str, str]) -> bool:
    """Whether some whole row has these values."""
    if not is_valid(plan, row):
        return False
    bound = {name for _, values in plan.never for name in values}
    free = [name for name in plan.options if name in bound and name not in row]
    return not free or any(can_be(plan, row | {free[0]: value}) for value in plan.options[free[0]])


def uncovered(plan: Plan, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return every pair of values that may meet and does not."""
    lacking = []
    for first, second in combinations(plan.options, 2):
        there = {(row[first], row[second]) for row in rows}
        pairs = product(plan.options[first], plan.options[second])
        lacking += [{first: a, second: b} for a, b in pairs if (a, b) not in there]
    return [pair for pair in lacking if can_be(plan, pair)]


def text(plan: Plan) -> str:
    """Return the rows as a table in words."""
    table = [list(plan.options), *(list(row.values()) for row in made(plan))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name, plan in PLANS.items():
        path = HERE / f"{name}.txt"
        path.write_text(text(plan), "utf-8")
        print(f"{path}: {len(text(plan).splitlines()) - 1} rows")
