"""The chapter on wrong calls: one type and one text, whatever the backend, compiled or not."""

import numpy as np
import pytest

from .cases.refusals import WRONG
from .cases.refusals_models import MODELS
from .contract import clause
from .oracle.tolerance import Differs, same
from .oracle.tolerance import dtype as numpy_dtype
from .subjects.protocol import require

pytestmark = pytest.mark.untyped


class Arrays:
    """Makes the arrays of one call, and remembers them, to see that the call left them alone."""

    def __init__(self, subject):
        self.subject, self.made = subject, []

    def __call__(self, *shape: int, dtype: str = "float32"):
        numbers = np.random.default_rng(len(self.made)).normal(size=shape)
        numbers = numbers > 0 if dtype == "bool" else (3 * numbers).astype(numpy_dtype(dtype))
        array = self.subject.array(numbers)
        self.made.append((array, numbers))
        return array

    def module(self, *config, **settings):
        names = ("embed_dim", "num_heads")
        return self.subject.module_with(dict(zip(names, config, strict=True)) | settings, {})

    def new(self, name: str, *args, **settings):
        if "dtype" in settings:
            settings["dtype"] = numpy_dtype(settings["dtype"])
        return self.subject.new(name, *args, **settings)


def check_refusal(wrong, call) -> None:
    try:
        call()
    except Exception as error:  # the type is what is tested
        if type(error) is not wrong.error or str(error) != wrong.text:
            expected = f"{wrong.error.__name__}: {wrong.text}"
            raise Differs(f"expected {expected}, got {type(error).__name__}: {error}") from error
    else:
        raise Differs(f"expected {wrong.error.__name__}: {wrong.text}, got no error")


@clause("ERR-1")
@pytest.mark.parametrize("wrong", WRONG, ids=[wrong.name for wrong in WRONG])
def test_wrong_call_gets_its_own_text(subject, wrong):
    require(subject, "errors")
    arrays = Arrays(subject)
    check_refusal(wrong, lambda: wrong.call(subject.module, arrays))
    for array, before in arrays.made:
        same(subject.numpy(array), before, "an argument after the refused call")


@clause("ERR-1")
@pytest.mark.parametrize("wrong", MODELS, ids=[wrong.name for wrong in MODELS])
def test_wrong_call_of_a_model_gets_its_own_text(subject, wrong):
    require(subject, "layers")
    test_wrong_call_gets_its_own_text(subject, wrong)


TRACED = [wrong for wrong in WRONG if wrong.traced]
TRACED_MODELS = [wrong for wrong in MODELS if wrong.traced]


@clause("ERR-1")
@pytest.mark.parametrize("wrong", TRACED, ids=[wrong.name for wrong in TRACED])
def test_wrong_call_gets_its_own_text_under_compilation(subject, wrong):
    require(subject, "errors")
    require(subject, "traced")
    check_refusal(wrong, lambda: subject.traced(lambda trace: wrong.call(subject.module, trace)))


@clause("ERR-1")
@pytest.mark.parametrize("wrong", TRACED_MODELS, ids=[wrong.name for wrong in TRACED_MODELS])
def test_wrong_call_of_a_model_gets_its_own_text_under_compilation(subject, wrong):
    require(subject, "layers")
    test_wrong_call_gets_its_own_text_under_compilation(subject, wrong)
