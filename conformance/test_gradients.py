"""The chapter on gradients: of attention, of every parameter, on every path."""

import numpy as np
import pytest

from .cases import multihead
from .cases.attention import BY_NAME, GROUPED, LENGTHS, MASKED, PLAIN, Case, names
from .cases.compare import check_gradients
from .contract import clause
from .mask_spec import causal, padding
from .oracle import reference
from .oracle.tolerance import close
from .subjects.protocol import require

MIXED = [
    PLAIN,
    Case("bias_rank2", bias="rank2", mask=padding(LENGTHS)),
    Case("bias_heads", bias="heads", mask=causal(), query_offset=2),
    Case("softcap", softcap=0.9, bias="rank4", mask=causal(), query_offset=2),
    Case("scale", scale=-0.7, mask=causal(), query_offset=2),
    Case("grouped", GROUPED, causal() & padding(LENGTHS), query_offset=2),
    Case("uniform", mask=padding(LENGTHS), empty_rows="uniform"),
]

BOTH = [*(BY_NAME[name] for name in ("plain", "causal", "causal_and_padding", "allow")), *MIXED[1:]]


@clause("GRAD-1")
@pytest.mark.parametrize("case", [*MASKED, *MIXED], ids=names([*MASKED, *MIXED]))
def test_gradients_are_the_oracles(subject, case):
    check_gradients(subject, case)


@clause("GRAD-1")
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_gradients_are_the_oracles_in_other_dtypes(subject, dtype):
    check_gradients(subject, BY_NAME["causal_and_padding"], dtype)


@clause("GRAD-2")
@pytest.mark.parametrize("name", ["CROSS", "GROUPED", "WIDTHS", "NO_BIAS"])
def test_parameter_gradients_are_the_oracles(subject, name):
    call = getattr(multihead, name)
    allowed = reference.allowed(padding(LENGTHS), (3, call.heads[0], 5, 7))
    hidden = np.arange(7) >= np.array(LENGTHS)[:, None]
    call.check_gradients(subject, {"key_padding_mask": hidden}, allowed)


@clause("GRAD-3")
@pytest.mark.needs("gradients")
@pytest.mark.parametrize("through", ["attention", "blocked"])
@pytest.mark.parametrize("case", BOTH, ids=names(BOTH))
def test_gradients_of_both_paths_agree(subject, case, through):
    require(subject, "blocked")
    arguments = (*case.inputs("float32"), case.grad("float32"))
    fast = subject.gradients(*arguments, through=through, **case.options("float32"))
    textbook = subject.gradients(*arguments, through="steps", **case.options("float32"))
    exact, naive = case.expected_gradients("float32")
    for role in fast:
        close(fast[role], textbook[role], exact[role], naive[role], f"gradient of {role}")
