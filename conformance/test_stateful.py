"""Decoding that nobody thought of: Hypothesis feeds, branches, reorders and cuts off as it likes.

The same steps every time, unless `--fuzz` asks for new ones. Where every new shape would cost a
compilation, the sizes and the models are few. A failure prints a snippet that runs on its own.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from .cases.histories import KINDS, WORDS, History
from .contract import clause
from .subjects.protocol import NotOffered, require
from .test_fuzz import loading

MOST = 4  # samples
FEW = ("attention", "grouped", "sequence_first", "decoder")  # where each costs compilations
BRANCH = st.integers(0, 2)
WORD = st.sampled_from([0, *range(WORDS)])  # twice as often a hidden one
JUNK = st.sampled_from(["0", "nan", "inf", "1e30"])
CALLS = ["samples", "dtype", "index", "negative", "longer", "hidden", "width", "mask"]
WRONG = st.sampled_from(CALLS)


def rows(columns) -> st.SearchStrategy[list[list[int]]]:
    """Tokens by sample, as many as there may be."""
    return columns.flatmap(
        lambda T: st.lists(st.lists(WORD, min_size=T, max_size=T), min_size=MOST, max_size=MOST)
    )


def machine(subject, name: str) -> type[RuleBasedStateMachine]:
    """Return the machine that takes random steps with a subject's model of a kind."""
    any_shape = "any_shape" in subject.capabilities
    tokens, one = rows(st.sampled_from([1, 2, 3, 4, 0] if any_shape else [1, 3])), rows(st.just(1))
    samples = st.integers(1, MOST) if any_shape else st.just(3)
    windows = [("window", 2), *(("ring", n) for n in ((0, 1, 3) if any_shape else (1,)))]
    each = st.integers(0, 11)
    index = samples.flatmap(lambda n: st.lists(each, min_size=n, max_size=n)) | st.just([0, 1, 2])

    class DecodingMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.history, self.failed = History(subject, name), False

        def take(self, *step) -> None:
            self._noted(lambda: self.history.do(*step))

        def _noted(self, call) -> None:
            try:
                call()
            except Exception as error:
                self.failed = True
                error.add_note(f"run it alone:\n\n{snippet(subject, name, self.history.steps)}")
                raise

        @initialize(chosen=st.sampled_from([None, *windows]))
        def window(self, chosen):
            if chosen is not None:
                self.take(chosen[0], 0, chosen[1])

        @rule(branch=BRANCH, ids=tokens, junk=JUNK)
        def feed(self, branch, ids, junk):
            self.take("feed", branch, ids, junk)

        @rule(branch=BRANCH, ids=tokens, junk=JUNK)
        def feed_more(self, branch, ids, junk):  # twice as often
            self.take("feed", branch, ids, junk)

        @rule(branch=BRANCH, ids=one)
        def feed_earlier(self, branch, ids):
            self.take("feed_earlier", branch, ids)

        @rule(branch=BRANCH)
        def copy(self, branch):
            self.take("copy", branch)

        @rule(branch=BRANCH, index=index)
        def reorder(self, branch, index):
            self.take("reorder", branch, index)

        @rule(
            branch=BRANCH, shares=st.lists(each, min_size=MOST, max_size=MOST), alike=st.booleans()
        )
        def truncate(self, branch, shares, alike):
            self.take("truncate", branch, shares, alike)

        @rule(branch=BRANCH, number=JUNK)
        def poison(self, branch, number):
            self.take("poison", branch, number)

        @rule(branch=BRANCH, ids=one)
        def look(self, branch, ids):
            self.take("look", branch, ids)

        @rule(branch=BRANCH, what=WRONG)
        def refuse(self, branch, what):
            self.take("refuse", branch, what)

        def teardown(self):
            if not self.failed:
                self._noted(self.history.check)

    return DecodingMachine


def snippet(subject, name: str, steps: list[tuple]) -> str:
    """Return Python that takes these steps alone."""
    lines = "\n".join(f"    {step!r}," for step in steps)
    return (
        "from conformance import mutants, subjects\n"
        "from conformance.cases.histories import replay\n\n"
        f"steps = [\n{lines}\n]\n"
        f"replay({loading(subject)}, {name!r}, steps)\n"
    )


@pytest.mark.untyped
@clause("CACHE-1")
@pytest.mark.parametrize("name", KINDS)
def test_any_history_is_one_pass_over_what_was_told(subject, name):
    require(subject, "cache")
    any_shape, many = "any_shape" in subject.capabilities, settings.default.max_examples
    if settings.default.derandomize and not any_shape and name not in FEW:
        raise NotOffered(f"{subject.name} would compile another model")
    History(subject, name)  # a kind that is not offered
    many //= 8 if any_shape else 25
    run_state_machine_as_test(
        machine(subject, name),
        settings=settings(
            max_examples=many,
            stateful_step_count=12,
            suppress_health_check=list(HealthCheck),
        ),
    )
