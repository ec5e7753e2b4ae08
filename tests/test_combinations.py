"""The kept rows of the suite's combinations: whole, valid, and what the command would write."""

import pytest

from conformance.cases.combinations import HERE, PLANS, Plan, rows
from tools import combinations

COMMAND = "run `python -m tools.combinations`"


@pytest.mark.parametrize("name", PLANS)
def test_every_pair_of_values_that_may_meet_is_in_a_row(name):
    lacking = combinations.uncovered(PLANS[name], list(rows(name).values()))
    assert not lacking, f"{name}.txt has no row with {lacking[:3]}: {COMMAND}"


@pytest.mark.parametrize("name", PLANS)
def test_every_row_is_valid(name):
    plan, table = PLANS[name], rows(name)
    for id, row in table.items():
        assert row.keys() == plan.options.keys(), f"{name}.txt has other columns: {COMMAND}"
        unknown = [f"{n}={v}" for n, v in row.items() if v not in plan.options[n]]
        assert not unknown, f"{name} {id} has {unknown}: {COMMAND}"
        assert combinations.is_valid(plan, row), f"{name} {id} is forbidden: {COMMAND}"


@pytest.mark.parametrize("name", PLANS)
def test_the_command_writes_what_is_kept(name):
    kept = (HERE / f"{name}.txt").read_text("utf-8")
    assert combinations.text(PLANS[name]) == kept, f"{name}.txt is not of its plan: {COMMAND}"


@pytest.mark.parametrize("name", PLANS)
def test_every_rule_of_a_plan_names_its_options_and_values(name):
    plan = PLANS[name]
    for reason, values in plan.never:
        assert reason and len(values) > 1
        for option, apart in values.items():
            assert set(apart) <= set(plan.options[option]), f"{name}, {reason}: {option}"


TOY = Plan(
    {"a": ("0", "1"), "b": ("0", "1"), "c": ("0", "1")},
    (
        ("not both", {"a": ("1",), "b": ("1",)}),
        ("c needs both", {"a": ("0",), "c": ("1",)}),
        ("c needs both", {"b": ("0",), "c": ("1",)}),
    ),
)


def test_a_pair_that_no_row_may_have_is_not_missed():
    """c = 1 needs a = 1 and b = 1, which never meet: so it meets nothing."""
    assert not combinations.can_be(TOY, {"a": "1", "c": "1"})
    assert combinations.uncovered(TOY, combinations.made(TOY)) == []


def test_a_pair_without_a_row_is_found():
    table = list(rows("multihead").values())
    alone = [row for row in table if row["attn_mask"] != "allow" or row["batch"] != "one"]
    assert {"attn_mask": "allow", "batch": "one"} in combinations.uncovered(
        PLANS["multihead"], alone
    )
