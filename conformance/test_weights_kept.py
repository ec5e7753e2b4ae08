"""The chapter on weights, second part: what a file keeps or refuses, and whose arrays go in."""

import copy

import numpy as np
import pytest

from .cases import models
from .cases.models import ModelCase
from .cases.multihead import CROSS
from .contract import clause
from .oracle.tolerance import Differs, close, same
from .oracle.tolerance import dtype as numpy_dtype
from .subjects.protocol import NotOffered, require
from .test_agreement import others
from .test_weights import same_parameters

pytestmark = pytest.mark.untyped
STACK = ModelCase("encoder")
HIDDEN = np.arange(models.S) >= np.array([7, 0, 4])[:, None]
ALTERED = ["subclassed", "headed", "wrapped", "other_activation", "other_order", "other_policy",
           "other_dropout", "tied", "pruned", "mixed", "compiled"]  # fmt: skip


def saved(subject, how: str, path, case=STACK) -> bool:
    """Save an altered model; return whether it was saved, or refused in words."""
    require(subject, "checkpoints", "altered")
    with subject.altered(how):
        try:
            subject.save(case.kind, case.config, case.parameters(), path)
        except (TypeError, ValueError) as refusal:
            if ": got" not in str(refusal):
                raise Differs(f"expected a rule and what was got, got {refusal}") from refusal
            if path.exists():
                raise Differs("expected no file of a model that is refused") from refusal
            return False
    return True


@clause("WGT-5")
@pytest.mark.parametrize("how", ALTERED)
def test_what_is_saved_can_be_loaded(subject, tmp_path, how):
    """Loaded, it does what the altered model did, in training too."""
    path = tmp_path / "saved.safetensors"
    if not saved(subject, how, path):
        return
    try:
        _, run = subject.load(path)
    except ValueError as refusal:
        raise Differs(f"{how}: saved, and refused when it is loaded: {refusal}") from refusal
    inputs, options = STACK.inputs(), {"src_key_padding_mask": HIDDEN}
    with subject.altered(how):
        wanted = subject.layer("encoder", STACK.config, STACK.parameters(), inputs, **options)
    exact, naive = STACK.expected(inputs, src=(~HIDDEN[:, None, None], None))
    got, budget = run(inputs, **options)["output"], (exact["output"], naive["output"])
    close(got, wanted["output"], *budget, f"{how}: output after loading")
    first = run(inputs, training=True, **options)["output"]
    drops = not np.array_equal(first, run(inputs, training=True, **options)["output"])
    if drops != (how == "other_dropout"):
        raise Differs(f"{how}: dropout after loading is {'on' if drops else 'off'}")


@clause("WGT-5")
@pytest.mark.parametrize("name", ["encoder_layer", "encoder", "transformer"])
def test_dropout_comes_back(subject, tmp_path, name):
    """With all dropped the residuals alone are left."""
    require(subject, "checkpoints")
    path = tmp_path / "saved.safetensors"
    case = ModelCase(name, {"norm_first": True, "dropout": 1.0})
    parameters, inputs = case.parameters(), case.inputs()
    subject.save(name, case.config, parameters, path)
    _, run = subject.load(path)
    got = run(inputs, training=True)["output"]
    wanted = subject.layer(name, case.config, parameters, inputs, training=True, seed=1)["output"]
    same(got, wanted, "output in training")
    if name != "transformer":
        same(got, inputs["src"], "what is left of the residuals")
    evaluated = run(inputs)["output"]
    exact, naive = case.expected(inputs, parameters)
    plain = subject.layer(name, case.config, parameters, inputs)["output"]
    close(evaluated, plain, exact["output"], naive["output"], "output in evaluation")


@clause("WGT-5")
def test_tied_parameters_come_back_tied(subject, tmp_path):
    path = tmp_path / "saved.safetensors"
    if saved(subject, "tied", path) and not subject.is_tied(path):
        raise Differs("expected tied parameters, or a refusal, got parameters of their own")


@clause("WGT-5")
@pytest.mark.parametrize("rounding", [2.0**-20, 0.5])
def test_weights_that_break_a_tie_are_refused_and_nothing_is_written(subject, rounding):
    require(subject, "checkpoints", "altered")
    before = STACK.parameters()
    tied = {n: before[n.replace("layers.1.linear1", "layers.0.linear1")] for n in before}
    wrong = {name: 2 * array for name, array in tied.items()}
    wrong["layers.1.linear1.bias"] = wrong["layers.1.linear1.bias"] * np.float32(1 + rounding)
    with subject.altered("tied"):
        arguments = (STACK.kind, STACK.config, before, wrong, "rosetta")
        error, after = subject.import_weights(*arguments)
    if error is None:
        raise Differs(f"expected a refusal of tied weights that differ by {rounding:g}")
    for name, array in after.items():
        same(array, tied[name], f"{name} after the refusal")


@clause("WGT-5")
@pytest.mark.parametrize("layout", ["rosetta", "torch", "nnx"])
def test_imported_arrays_are_copies(subject, layout):
    require(subject, "checkpoints")
    parameters = CROSS.parameters("float32")
    weights = subject.export_weights("attention", CROSS.config, parameters, layout)
    weights = {name: np.array(array) for name, array in weights.items()}
    zeros = {name: np.zeros_like(array) for name, array in parameters.items()}
    error, after = subject.import_weights("attention", CROSS.config, zeros, weights, layout)
    if error is not None:
        raise Differs(f"expected the weights to go in, got {error}")
    same_parameters(after, parameters, "before the source is written to")
    for array in weights.values():
        array += 1
    same_parameters(after, parameters, "after the source was written to")


DTYPES = ["float64", "float32", "float16", "bfloat16"]


@clause("WGT-7")
@pytest.mark.parametrize("layout", ["rosetta", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_any_framework_go_in(request, subject, dtype, layout):
    require(subject, "checkpoints")
    parameters = CROSS.parameters(dtype)
    zeros = {name: np.zeros_like(array) for name, array in parameters.items()}
    weights = subject.export_weights("attention", CROSS.config, parameters, layout)
    there = [one for one in others(request, subject, "checkpoints") if dtype in one.dtypes]
    for other in (subject, *there):
        with other.scope(dtype):
            arrays = {name: other.array(array) for name, array in weights.items()}
        error, after = subject.import_weights("attention", CROSS.config, zeros, arrays, layout)
        if error is not None:
            raise Differs(f"{dtype} arrays of {other.name}: expected to go in, got {error}")
        same_parameters(after, parameters, f"arrays of {other.name}")


class Unreadable:
    """An array that says its shape and dtype, and cannot be read."""

    def __init__(self, like: np.ndarray):
        self.shape, self.dtype, self.ndim = like.shape, like.dtype, like.ndim

    def __array__(self, *given, **options):
        raise TypeError("there is no data")


def check_nothing_done(subject, weights: dict, name: str) -> None:
    """Check that an import is refused by the name of an array, and that nothing has changed."""
    parameters = CROSS.parameters("float32")
    error, after = subject.import_weights("attention", CROSS.config, parameters, weights, "rosetta")
    if not isinstance(error, TypeError | ValueError) or name not in str(error):
        raise Differs(f"expected a refusal of {name}, got {error!r}")
    same_parameters(after, parameters, "after the refusal")


@clause("WGT-7")
@pytest.mark.parametrize("name", ["q_proj.weight", "out_proj.bias"])
def test_an_array_that_cannot_be_read_is_refused(subject, name):
    require(subject, "checkpoints")
    weights = {n: x + 1 for n, x in CROSS.parameters("float32").items()}
    check_nothing_done(subject, weights | {name: Unreadable(weights[name])}, name)


@clause("WGT-7")
@pytest.mark.parametrize("name", ["q_proj.weight", "out_proj.bias"])
def test_an_array_without_values_is_refused(request, subject, name):
    require(subject, "checkpoints")
    weights = {n: x + 1 for n, x in CROSS.parameters("float32").items()}
    blanks = 0
    for other in (subject, *others(request, subject, "checkpoints")):
        try:
            blank = other.blank(*weights[name].shape)
        except NotOffered:
            continue
        blanks += 1
        check_nothing_done(subject, weights | {name: blank}, name)
    if not blanks:
        raise NotOffered("every array has values here")


@clause("WGT-7")
def test_a_model_without_values_gets_them_or_refuses(subject):
    require(subject, "checkpoints", "altered")
    parameters = CROSS.parameters("float32")
    weights = copy.deepcopy(parameters)
    with subject.altered("blank"):
        error, after = subject.import_weights(
            "attention", CROSS.config, parameters, weights, "rosetta"
        )
    if error is None:
        same_parameters(after, parameters, "in a model that had no values")
    elif ": got" not in str(error):
        raise Differs(f"expected a rule and what was got, got {error}")


@clause("WGT-7")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_goes_into_every_backend_in_every_dtype(request, subject, tmp_path, dtype):
    require(subject, "checkpoints")
    if dtype not in subject.dtypes:
        raise NotOffered(f"{subject.name} has no {dtype}")
    path, parameters = tmp_path / "saved.safetensors", CROSS.parameters(dtype)
    subject.save("attention", CROSS.config, parameters, path)
    zeros = {name: np.zeros(x.shape, numpy_dtype(dtype)) for name, x in parameters.items()}
    for other in (subject, *others(request, subject, "checkpoints")):
        error, after = other.import_weights("attention", CROSS.config, zeros, path, "rosetta")
        if error is not None:
            raise Differs(f"{other.name}: expected the file to go in, got {error}")
        same_parameters(after, parameters, f"the file in {other.name}")
