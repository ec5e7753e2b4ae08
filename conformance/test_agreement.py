"""The subjects of one run against each other, pair by pair, besides the oracle that all share."""

import pytest

from .cases import multihead
from .cases.attention import BY_NAME, GROUPED, LENGTHS, Case, names
from .contract import clause
from .mask_spec import causal, padding
from .oracle import reference
from .oracle.tolerance import close
from .subjects.protocol import NotOffered, require
from .subjects.stash import SUBJECTS

CASES = [
    *(BY_NAME[name] for name in ("plain", "causal_per_sample", "allow", "window_or_prefix")),
    Case("grouped", GROUPED, causal() & padding(LENGTHS), query_offset=2),
    Case("uniform", mask=padding(LENGTHS), empty_rows="uniform", bias="rank2"),
]


def others(request, subject, capability: str) -> list:
    """Return the other subjects of the run that offer the capability, of the project's own.

    Somebody else's mistake is none of an adapter's.
    """
    require(subject, capability, "errors")
    found = [s for s in request.config.stash[SUBJECTS] if s is not subject]
    found = [other for other in found if {capability, "errors"} <= other.capabilities]
    if not found:
        raise NotOffered("there is no other subject in this run")
    return found


@clause("ATT-1")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_subjects_agree_pair_by_pair(request, subject, case, dtype):
    inputs, options = case.inputs(dtype), case.options(dtype)
    exact, naive = case.expected(dtype)
    ours = subject.attention(*inputs, **options)
    for other in others(request, subject, "attention"):
        theirs = other.attention(*inputs, **options)
        close(ours, theirs, exact["output"], naive["output"], f"against {other.name}")


@clause("GRAD-1")
@pytest.mark.parametrize("case", CASES[1:], ids=names(CASES[1:]))
def test_gradients_agree_pair_by_pair(request, subject, case):
    arguments = (*case.inputs("float32"), case.grad("float32"))
    exact, naive = case.expected_gradients("float32")
    for other in others(request, subject, "gradients"):
        ours, theirs = (
            s.gradients(*arguments, **case.options("float32")) for s in (subject, other)
        )
        for name in exact:
            close(
                ours[name], theirs[name], exact[name], naive[name], f"{name} against {other.name}"
            )


@clause("MHA-4")
@pytest.mark.parametrize("name", ["CROSS", "GROUPED", "WIDTHS"])
def test_modules_agree_pair_by_pair(request, subject, name):
    call = getattr(multihead, name)
    allowed = reference.allowed(padding(LENGTHS), (3, call.heads[0], 5, 7))
    hidden = ~allowed[:, 0, 0]
    exact, naive = call.expected(allowed)
    arguments = (call.config, call.parameters("float32"), *call.inputs())
    ours, _ = subject.multihead(*arguments, key_padding_mask=hidden)
    for other in others(request, subject, "multihead"):
        theirs, _ = other.multihead(*arguments, key_padding_mask=hidden)
        close(ours, theirs, exact["output"], naive["output"], f"against {other.name}")
