"""The two comparisons that most tests make: a subject's answer to a call, against the oracle."""

from collections.abc import Callable
from functools import partial

import numpy as np

from ..oracle import expected
from ..oracle.tolerance import Differs, check_dtype, compare
from ..subjects.protocol import NotOffered, Subject, require
from .attention import Case
from .cuts import dirtied


def check_output(got, query, key, value, what: str, *, allowed=None, **numbers) -> None:
    """Check an output against the oracle's for the same inputs."""
    if allowed is None:
        allowed = np.ones((*query.shape[:3], key.shape[2]), bool)
    exact, naive = expected.attention(query, key, value, allowed=allowed, **numbers)
    compare(got, exact["output"], naive["output"], what)


def steps_of(subject: Subject) -> list[str]:
    """Return the names of the steps that a subject offers, in the order of the formula."""
    scores = ["scores", "masked_scores"] if "steps" in subject.capabilities else []
    offered = subject.capabilities & {"weights", "steps"}
    return [*scores, *(["weights"] if offered else []), "output"]


def check_steps(subject: Subject, case: Case, dtype: str) -> dict[str, np.ndarray]:
    """Run a case by every path, check each output and step against the oracle; return the steps."""
    require(subject, "attention")
    got = subject.steps(*case.inputs(dtype), **case.options(dtype))
    output = subject.attention(*case.inputs(dtype), **case.options(dtype))
    exact, naive = case.expected(dtype)
    for name in steps_of(subject):
        if name != "weights" or "steps" in subject.capabilities:  # else of whatever dtype they are
            check_dtype(got[name], naive[name].dtype, name)
        compare(got[name], exact[name], naive[name], name)
    check_dtype(output, naive["output"].dtype, "output without steps")
    compare(output, exact["output"], naive["output"], "output without steps")
    return got


def check_gradients(subject: Subject, case: Case, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Run a case backwards and check every gradient against the oracle's; return them."""
    require(subject, "gradients")
    got = subject.gradients(*case.inputs(dtype), case.grad(dtype), **case.options(dtype))
    exact, naive = case.expected_gradients(dtype)
    if set(got) != set(exact):
        raise Differs(f"gradients: expected {sorted(exact)}, got {sorted(got)}")
    for name in exact:
        check_dtype(got[name], naive[name].dtype, f"gradient of {name}")
        compare(got[name], exact[name], naive[name], f"gradient of {name}")
    return got


def check_cut(
    subject: Subject, case: Case, dtype: str, setting: int, tile: tuple[int, int]
) -> None:
    """Check a call's output in small blocks, by each path, and beside what nobody is allowed."""
    require(subject, "attention", "small_blocks")
    exact, naive = (steps["output"] for steps in case.expected(dtype))
    options, walk = case.options(dtype), partial(subject.blocked, tile=tile)
    calls = {"attention": subject.attention}
    calls |= {f"tiles of {tile}": walk} if "blocked" in subject.capabilities else {}
    inputs = {"": case.inputs(dtype), " beside hidden NaN and inf": dirtied(case, dtype)}
    with subject.small_blocks(setting):
        for way, call in calls.items():
            for beside, arrays in inputs.items():
                if arrays is not None:
                    got = call(*arrays, **options)
                    check_dtype(got, naive.dtype, "output")
                    compare(
                        got, exact, naive, f"output by {way}{beside}, in small blocks {setting}"
                    )


def check_cut_gradients(subject: Subject, case: Case, dtype: str, setting: int) -> None:
    """Check a call's gradients in small blocks, and beside what nobody is allowed."""
    require(subject, "small_blocks")
    exact, naive = case.expected_gradients(dtype)
    options = {"grad": case.grad(dtype)} | case.options(dtype)
    inputs = {"": case.inputs(dtype), " beside hidden NaN and inf": dirtied(case, dtype)}
    for beside, arrays in inputs.items():
        if arrays is None:
            continue
        with subject.small_blocks(setting):
            got = subject.gradients(*arrays, **options)
        for name in exact:
            what = f"gradient of {name}{beside}, in small blocks {setting}"
            check_dtype(got[name], naive[name].dtype, what)
            compare(got[name], exact[name], naive[name], what)


def refused(
    subject: Subject, call: Callable, error: type[Exception], *texts: str, beside: Callable
) -> None:
    """Check that a call is refused, with this error and these texts if the subject offers "errors".

    Other implementations may use their own words. The call `beside` is right and must not be
    refused: it shows that the subject does not refuse everything.
    """
    beside()
    own = "errors" in subject.capabilities
    wanted = f"{error.__name__} with {list(texts)}" if own else "an error"
    try:
        call()
    except (NotOffered, Differs):
        raise
    except Exception as refusal:
        lacking = [text for text in texts if text not in str(refusal)]
        if own and (type(refusal) is not error or lacking):
            got = f"{type(refusal).__name__}: {refusal}"
            raise Differs(f"expected {wanted}, got {got}") from refusal
    else:
        raise Differs(f"expected {wanted}, got no error")
