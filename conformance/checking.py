"""The two comparisons that most tests make: a subject's answer to a call, against the oracle."""

from collections.abc import Callable

import numpy as np

from . import expected
from .budget import Differs, check_dtype, compare
from .cases import Case
from .subject import Subject, require


def hold(got, query, key, value, what: str, *, seen=None, **numbers) -> None:
    """Hold an output against the oracle's for these very inputs."""
    if seen is None:
        seen = np.ones((*query.shape[:3], key.shape[2]), bool)
    exact, rough = expected.attention(query, key, value, seen=seen, **numbers)
    compare(got, exact["output"], rough["output"], what)


def check_steps(subject: Subject, case: Case, dtype: str) -> dict[str, np.ndarray]:
    """Run a case by every path, hold each output and each step against the oracle; return these."""
    require(subject, "attention")
    got = subject.steps(*case.inputs(dtype), **case.options(dtype))
    output = subject.attention(*case.inputs(dtype), **case.options(dtype))
    exact, rough = case.expected(dtype)
    for name in ("scores", "masked_scores", "weights", "output"):
        check_dtype(got[name], rough[name].dtype, name)
        compare(got[name], exact[name], rough[name], name)
    check_dtype(output, rough["output"].dtype, "output without steps")
    compare(output, exact["output"], rough["output"], "output without steps")
    return got


def check_gradients(subject: Subject, case: Case, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Run a case backwards and hold every gradient against the oracle's; return them."""
    require(subject, "gradients")
    got = subject.gradients(*case.inputs(dtype), case.grad(dtype), **case.options(dtype))
    exact, rough = case.expected_gradients(dtype)
    if set(got) != set(exact):
        raise Differs(f"gradients: expected {sorted(exact)}, got {sorted(got)}")
    for name in exact:
        check_dtype(got[name], rough[name].dtype, f"gradient of {name}")
        compare(got[name], exact[name], rough[name], f"gradient of {name}")
    return got


def refused(call: Callable, *texts: str) -> None:
    """See that a call raises a ValueError that holds these texts."""
    try:
        call()
    except ValueError as error:
        lacking = [text for text in texts if text not in str(error)]
        if lacking:
            raise Differs(f"expected a ValueError with {lacking}, got {error}") from error
    else:
        raise Differs(f"expected a ValueError with {list(texts)}, got no error")
