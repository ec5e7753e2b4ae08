"""Judging answers to the frozen vectors: by the suite, of wrong subjects, without NumPy."""

import re
from dataclasses import replace

import numpy as np
import pytest

from conformance import subjects
from conformance.oracle.tolerance import Differs
from conformance.subjects.protocol import NotOffered
from conformance.test_vectors import check
from conformance.vectors import HERE, load
from conformance.vectors.check_answer import Refused, check_answer
from conformance.vectors.run_vector import offered, run_vector
from conformance.vectors.vector import Part, Vector
from tools.vectors.cases import make

VECTORS = load()
README = (HERE / "README.md").read_text("utf-8")
RIGHT = np.array([[[[1.0, -4.0], [0.5, 2.0]]]])  # an output: B = H = 1, T = D_v = 2
ROW = np.array([[[False, True]]])  # the second row
LIMIT = 0.25


def vector_of(*parts: Part) -> Vector:
    sizes = {"B": 1, "H": 1, "H_kv": 1, "T": 2, "S": 3, "D": 5, "D_v": 2}
    return Vector(id="ATT-1.x", shows="y", call="attention", sizes=sizes, expect=parts)


def close(**fields) -> Part:
    allowed = {"float32": LIMIT, "float16": 1.0}
    return Part(kind="close", tensor="output", expected=RIGHT, allowed=allowed, **fields)


def changed(number: float, index=(0, 0, 1, 1)) -> np.ndarray:
    got = RIGHT.copy()
    got[index] = number
    return got


NANS = np.full(RIGHT.shape, np.nan)
OPEN = make.either("output", None, nan=Part(kind="nan"), zero=Part(kind="zero"))
SIDED = make.either("output", "zero", nan=Part(kind="nan"), zero=Part(kind="zero"))
REFUSAL = make.raises("heads divide", "ATT-1.causal", "inputs.key")
EXACT = Part(kind="exact", tensor="output", expected=RIGHT)
AT = r"ATT-1\.x: output at \(0, 0, 1, 1\): expected "
JUDGED = {
    "close": (close(), changed(2.2499), changed(2.26),
              AT + r"2, got 2\.26, error 0\.26 of 0\.25 allowed in float32 \(1\.04 x\)"),
    "close_nan": (close(), RIGHT, changed(np.nan), AT + "2, got nan, error inf of 0.25"),
    "close_inf": (close(), RIGHT, changed(-np.inf), AT + "2, got -inf"),
    "exact": (EXACT, RIGHT, changed(np.nextafter(2, 3)), AT + "exactly 2, got 2"),
    "exact_nan": (replace(EXACT, expected=NANS), NANS, RIGHT, "expected exactly nan, got 1"),
    "zero": (make.zero("output"), 0 * RIGHT, 0 * RIGHT + 1e-30, "expected exactly 0, got 1e-30"),
    "nan": (make.nan("output"), NANS, np.where(RIGHT == 2, 0, NANS), AT + "NaN, got 0"),
    "finite": (*make.finite("output"), RIGHT, changed(np.inf), AT + "a finite number, got inf"),
    "either": (OPEN, NANS, RIGHT, "takes no alternative: not 'nan': .* not 'zero': .* got 1"),
    "either_sided": (SIDED, 0 * RIGHT, NANS, "output takes 'nan', the contract says 'zero'"),
    "region": (close(region=ROW), changed(99, (0, 0, 0, 1)), changed(99), AT + "2, got 99"),
    "shape": (close(), RIGHT, RIGHT[0], r"output: expected shape \(1, 1, 2, 2\), got \(1, 2, 2\)"),
    "shape_of_zero": (make.zero("output"), 0 * RIGHT, np.zeros((1, 1, 2, 3)), "expected shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGED)
def test_judge_accepts_the_right_and_refuses_the_wrong(name):
    part, right, wrong, text = JUDGED[name]
    vector = vector_of(part)
    check_answer(vector, {"output": right}, "float32")
    with pytest.raises(Differs, match=text) as error:
        check_answer(vector, {"output": wrong}, "float32")
    assert ("expected shape" in text) == (error.value.found.get("took") == "shape")
    assert str(error.value).endswith("; it shows that y")


def test_judge_tells_place_and_numbers_as_data():
    wrong = changed(2.9)
    with pytest.raises(Differs) as caught:
        check_answer(vector_of(close()), {"output": wrong}, "float32")
    found = caught.value.found
    assert (found["got"], found["expected"]) == (wrong[found["index"]], RIGHT[found["index"]])
    assert found["error"] == abs(found["got"] - found["expected"]) > found["allowed"]


def test_judge_takes_the_allowed_error_of_the_calls_dtype():
    check_answer(vector_of(close()), {"output": changed(2.9)}, "float16")
    with pytest.raises(Differs):
        check_answer(vector_of(close()), {"output": changed(2.9)}, "float32")


def test_judge_reports_the_alternative_taken():
    assert check_answer(vector_of(OPEN), {"output": NANS}, "float32") == ["nan"]
    assert check_answer(vector_of(SIDED), {"output": 0 * RIGHT}, "float32") == ["zero"]


def test_judge_wants_a_refusal_where_one_is_due_and_nowhere_else():
    check_answer(vector_of(REFUSAL), Refused("heads"), "float32")
    with pytest.raises(Differs, match=r"expected a refusal \(heads divide\), got an answer"):
        check_answer(vector_of(REFUSAL), {"output": RIGHT}, "float32")
    with pytest.raises(Differs, match="expected an answer, got a refusal: not today"):
        check_answer(vector_of(close()), Refused("not today"), "float32")


def test_judge_wants_every_tensor_and_every_part():
    with pytest.raises(Differs, match="output: expected an array, got none"):
        check_answer(vector_of(close()), {"weights": RIGHT}, "float32")
    with pytest.raises(Differs, match="expected NaN"):
        check_answer(vector_of(close(), make.nan("output")), {"output": RIGHT}, "float32")


def test_judge_refuses_a_kind_that_it_does_not_know():
    with pytest.raises(ValueError, match="an expectation of the format: got almost"):
        check_answer(vector_of(Part(kind="almost", tensor="output")), {"output": RIGHT}, "float32")


# Wrong subjects: each mistake, and a vector of the clause that must refuse it


def mask_forgotten(call, *inputs, mask=None, query_offset=None, **options):
    return call(*inputs, **options)


def offset_of_zero(call, *inputs, query_offset=None, **options):
    return call(*inputs, query_offset=None if query_offset is None else 0, **options)


def scale_forgotten(call, *inputs, scale=None, **options):
    return call(*inputs, **options)


def tiled(call, query, key, value, **options):
    group = query.shape[1] // key.shape[1]
    return call(query, *(np.tile(x, (1, group, 1, 1)) for x in (key, value)), **options)


def zero_rows(call, *inputs, empty_rows="zero", **options):
    return call(*inputs, **options)


def softcap_forgotten(call, *inputs, softcap=None, **options):
    return call(*inputs, **options)


def dirty(call, *inputs, **options):
    return call(*inputs, **options) + 0 * inputs[2].sum()


def guesses_an_offset(call, *inputs, mask=None, query_offset=None, **options):
    offset = 0 if query_offset is None and mask is not None else query_offset
    return call(*inputs, mask=mask, query_offset=offset, **options)


def half_converted(call, *inputs, **options):
    return call(*(x.astype(np.float32) for x in inputs), **options)


def overflow_taken_for_empty(call, *inputs, **options):
    return np.nan_to_num(call(*inputs, **options))


def sinks_forgotten(call, *inputs, sinks=None, **options):
    return call(*inputs, **options)


def sinks_capped(call, *inputs, sinks=None, softcap=None, **options):
    sinks = softcap * np.tanh(sinks / softcap)
    return call(*inputs, sinks=sinks, softcap=softcap, **options)


MISTAKES = [
    (sinks_forgotten, "ATT-15.sinks"),
    (sinks_forgotten, "ATT-15.fully_masked"),
    (mask_forgotten, "ATT-1.causal"),
    (mask_forgotten, "CAUSE-3.last"),
    (offset_of_zero, "CAUSE-3.per_sample"),
    (scale_forgotten, "ATT-1.negative_scale"),
    (tiled, "ATT-5.grouped"),
    (zero_rows, "EMPTY-2.nan"),
    (zero_rows, "EMPTY-3.uniform"),
    (softcap_forgotten, "ATT-6.before_bias_and_mask"),
    (dirty, "CLEAN-2.nan"),
    (dirty, "CLEAN-6.value"),
    (guesses_an_offset, "CAUSE-2.no_offset"),
    (half_converted, "HALF-4.key"),
    (overflow_taken_for_empty, "ATT-7.overflow_zero"),
]


@pytest.mark.parametrize(("mistake", "id"), MISTAKES, ids=lambda x: getattr(x, "__name__", x))
def test_wrong_subject_is_refused_by_the_vector_of_the_clause(monkeypatch, mistake, id):
    subject, vector = subjects.load("numpy"), VECTORS[id]
    check_answer(vector, run_vector(subject, vector, vector.dtypes[-1]), vector.dtypes[-1])
    dtype = "float32" if "float32" in vector.dtypes else vector.dtypes[0]
    right = subject.attention
    monkeypatch.setattr(subject, "attention", lambda *x, **o: mistake(right, *x, **o))
    with pytest.raises(Differs, match=re.escape(f"vector {id}: ")):
        check_answer(vector, run_vector(subject, vector, dtype), dtype)


# Other calls and the gradients: what is wrong with a subject, and the vector that must refuse it


def backward_without_sinks(right, *inputs, sinks=None, **options):
    found = right(*inputs, **options)
    return found | {"sinks": right(*inputs, sinks=sinks, **options)["sinks"]}


def sinks_backwards(right, *inputs, **options):
    found = right(*inputs, **options)
    return found | {"sinks": -found["sinks"]}


def parts_averaged(right, query, pieces, **finish):
    found = [right(query, [piece], **finish) for piece in pieces]
    return found[0] | {name: np.mean([x[name] for x in found], axis=0) for name in found[0]}


def last_part_alone(right, query, pieces, **finish):
    return right(query, pieces[-1:], **finish)


def no_gradient_of_lse(right, query, pieces, grads):
    return right(query, pieces, grads | {"lse": np.zeros_like(grads["lse"])})


def turned_the_other_way(right, spec, query, key, places):
    return right(spec, query, key, -places)


def other_half_turned(right, spec, query, key, places):
    return right(spec | {"interleaved": not spec.get("interleaved")}, query, key, places)


def positions_of_one_sample(right, spec, query, key, places):
    return right(spec, query, key, places[:1])


def usual_scale(right, config, parameters, *inputs, **options):
    return right({n: x for n, x in config.items() if n != "scale"}, parameters, *inputs, **options)


def not_normed(right, config, parameters, *inputs, **options):
    spec = config["process_heads"].get("then")
    parameters = {n: x for n, x in parameters.items() if "_norm." not in n}
    return right(config | {"process_heads": spec}, parameters, *inputs, **options)


OF_OTHER_CALLS = [
    ("gradients", backward_without_sinks, "ATT-15.gradients"),
    ("gradients", sinks_backwards, "ATT-15.everything"),
    ("attention", sinks_capped, "ATT-15.everything"),
    ("merged", parts_averaged, "ATT-16.merged"),
    ("merged", last_part_alone, "ATT-16.everything"),
    ("merged_gradients", no_gradient_of_lse, "ATT-16.gradients"),
    ("processed", turned_the_other_way, "MHA-10.halves"),
    ("processed", other_half_turned, "MHA-10.partial"),
    ("processed", other_half_turned, "MHA-10.interleaved"),
    ("processed", positions_of_one_sample, "MHA-10.scaled"),
    ("multihead", usual_scale, "MHA-9.settings"),
    ("multihead", not_normed, "MHA-10.norm_then_rotary"),
]


@pytest.mark.parametrize(
    ("method", "mistake", "id"), OF_OTHER_CALLS, ids=lambda x: getattr(x, "__name__", x)
)
def test_wrong_call_is_refused_by_the_vector_of_the_clause(monkeypatch, method, mistake, id):
    subject = subjects.load("torch")
    check(subject, id, "float32")
    right = getattr(subject, method)
    monkeypatch.setattr(subject, method, lambda *x, **o: mistake(right, *x, **o))
    with pytest.raises(Differs, match=re.escape(f"vector {id}: ")):
        check(subject, id, "float32")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_allowed_errors_of_every_dtype_suit_a_right_subject(dtype):
    subject, judged = subjects.load("numpy"), 0
    for vector in VECTORS.values():
        if dtype not in vector.dtypes:
            continue
        try:
            with np.errstate(invalid="ignore"):  # NumPy's maximum of bfloat16 warns of a NaN
                answer = run_vector(subject, vector, dtype)
            check_answer(vector, answer, dtype)
            judged += 1
        except NotOffered:
            assert any(part.tensor.startswith("grad_") for part in vector.expect), vector.id
    assert judged > 100


class WithoutWeights:
    """A right subject that has no weights to show."""

    def __init__(self):
        self.right, self.name = subjects.load("numpy"), "plain"
        self.capabilities = self.right.capabilities - {"weights", "steps"}

    def __getattr__(self, name):
        return getattr(self.right, name)

    def steps(self, *inputs, **options):
        raise AssertionError("no steps are offered")

    def multihead(self, *inputs, **options):
        return self.right.multihead(*inputs, **options)[0], None


def test_who_has_no_weights_is_judged_by_the_output():
    subject, left = WithoutWeights(), {}
    for vector in VECTORS.values():
        dtype = "float32" if "float32" in vector.dtypes else vector.dtypes[0]
        try:
            own = offered(subject, vector)
            check_answer(own, run_vector(subject, own, dtype), dtype)
        except NotOffered:
            left[vector.id] = {part.tensor for part in vector.expect}
    about = {id for id in left if VECTORS[id].clause in ("ATT-2", "EMPTY-3", "MHA-5", "DOC-A5")}
    assert {"ATT-2.any_cells", "MHA-5.per_head"} <= about
    for id in left.keys() - about:  # of the rest, what has no output or asks for gradients too
        assert "output" not in left[id] or any(name.startswith("grad_") for name in left[id]), id


def test_wrong_output_is_seen_without_weights(monkeypatch):
    subject, id = WithoutWeights(), "MHA-4.key_padding"
    right = subject.multihead
    monkeypatch.setattr(subject, "multihead", lambda *x, **o: (1.01 * right(*x, **o)[0], None))
    vector = offered(subject, VECTORS[id])
    with pytest.raises(Differs, match=f"vector {id}: output at"):
        check_answer(vector, run_vector(subject, vector, "float32"), "float32")


def test_who_offers_steps_alone_has_weights_to_show():
    subject = WithoutWeights()
    subject.capabilities |= {"steps"}
    assert offered(subject, VECTORS["ATT-2.any_cells"]) is VECTORS["ATT-2.any_cells"]
    with pytest.raises(NotOffered):  # a module shows weights, and no steps
        offered(subject, VECTORS["MHA-5.per_head"])


@pytest.mark.parametrize("id", ["CAUSE-2.no_offset", "ATT-5.not_divisible", "HALF-4.key"])
def test_refusal_is_judged_without_weights(monkeypatch, id):
    subject = WithoutWeights()
    check(subject, id, "float32")
    answer = np.zeros((3, 2, 5, 13), np.float32)
    monkeypatch.setattr(subject, "attention", lambda *x, **o: answer, raising=False)
    with pytest.raises(Differs, match=f"vector {id}: expected a refusal"):
        check(subject, id, "float32")


def test_written_array_is_no_refusal(monkeypatch):
    subject = WithoutWeights()

    def spoil(*inputs, **options):
        raise Differs("your function changed its input `key` in place")

    monkeypatch.setattr(subject, "attention", spoil, raising=False)
    with pytest.raises(Differs, match="changed its input"):
        check(subject, "ATT-5.not_divisible", "float32")


def test_error_that_is_no_refusal_is_not_taken_for_one(monkeypatch):
    subject, vector = subjects.load("numpy"), VECTORS["CAUSE-2.no_offset"]

    def crash(*inputs, **options):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(subject, "attention", crash)
    with pytest.raises(ZeroDivisionError):
        run_vector(subject, vector, "float32")
