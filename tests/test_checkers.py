"""Every checker can fail: wrong subjects, each refused by the suite's own test of the clause named.

A wrong subject is a right one with a mistake in front of one method. A mistake is a function that
is given the right method, and then the call. All rows run in one run of the suite, as its users
start it; the right subject runs the same cases, so that what is refused is the mistake alone.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import wrong_models

from conformance import multi, reference, subjects
from conformance.budget import LEDGER, Differs
from conformance.cases import BY_NAME, PLAIN, SQUARE, Case
from conformance.checking import check_gradients, check_steps, hold
from conformance.report import read
from conformance.report import results as lines
from conformance.specs import allow, causal
from conformance.subject import NotOffered

ROOT = Path(__file__).parents[1]

# Mistakes in attention: (right method, query, key, value, **options) -> steps


def seen_by(mask, query, key, query_offset) -> np.ndarray:
    return reference.allowed(mask, (*query.shape[:3], key.shape[2]), query_offset)


def mask_inverted(right, *inputs, mask=None, **options):
    return right(*inputs, mask=mask and ~mask, **options)


def mask_forgotten(right, *inputs, mask=None, **options):
    return right(*inputs, **options)


def mask_transposed(right, *inputs, mask=None, query_offset=None, **options):
    seen = seen_by(mask, *inputs[:2], query_offset)
    return right(*inputs, mask=allow(seen.swapaxes(2, 3)), **options)


def mask_of_the_first_sample(right, *inputs, mask=None, query_offset=None, **options):
    seen = seen_by(mask, *inputs[:2], query_offset)
    return right(*inputs, mask=allow(np.broadcast_to(seen[:1], seen.shape)), **options)


def offset_ignored(right, *inputs, query_offset=None, **options):
    return right(*inputs, query_offset=None if query_offset is None else 0, **options)


def bias_forgotten(right, *inputs, bias=None, **options):
    return right(*inputs, **options)


def scale_forgotten(right, *inputs, scale=None, **options):
    return right(*inputs, scale=1.0, **options)


def scale_of_the_values_width(right, *inputs, scale=None, **options):
    scale = inputs[2].shape[3] ** -0.5 if scale is None else scale
    return right(*inputs, scale=scale, **options)


def heads_tiled(right, query, key, value, **options):
    group = query.shape[1] // key.shape[1]
    return right(query, *(np.tile(x, (1, group, 1, 1)) for x in (key, value)), **options)


def softcap_after_the_bias(right, *inputs, softcap=None, bias=None, mask=None, **options):
    if softcap is None:
        return right(*inputs, bias=bias, mask=mask, **options)
    plain = right(*inputs, bias=bias, **options)
    capped = softcap * np.tanh(plain["masked_scores"] / softcap)
    return right(*inputs, bias=capped - plain["scores"], mask=mask, **options)


def filled_with_a_finite_number(right, *inputs, mask=None, query_offset=None, **options):
    seen = seen_by(mask, *inputs[:2], query_offset)
    return right(*inputs, bias=np.where(seen, 0, -1e9).astype(inputs[0].dtype), **options)


def no_maximum_subtracted(right, *inputs, **options):
    steps = right(*inputs, **options)
    with np.errstate(over="ignore", invalid="ignore"):
        exp = np.exp(steps["masked_scores"])
        weights = exp / exp.sum(-1, keepdims=True)
    return steps | {"weights": weights, "output": weights @ inputs[2]}


def mean_for_empty_rows(right, *inputs, **options):
    return right(*inputs, **options | {"empty_rows": "uniform"})


def zero_for_empty_rows(right, *inputs, **options):
    return right(*inputs, **options | {"empty_rows": "zero"})


def nan_in_bias_forgiven(right, *inputs, bias=None, **options):
    return right(*inputs, bias=None if bias is None else np.nan_to_num(bias), **options)


def nan_in_bias_for_everyone(right, *inputs, bias=None, **options):
    steps = right(*inputs, bias=bias, **options)
    return steps | {"output": steps["output"] + (0 if bias is None else 0 * bias.sum())}


def nan_in_empty_rows(right, *inputs, **options):
    steps = right(*inputs, **options)
    return steps | {"output": steps["output"] + 0 * inputs[0].sum(-1, keepdims=True)}


def nan_in_padding_leaks(right, *inputs, **options):
    steps = right(*inputs, **options)
    return steps | {"output": steps["weights"] @ inputs[2]}  # 0 * NaN is NaN


def future_leaks(right, *inputs, **options):
    steps = right(*inputs, **options)
    return steps | {"output": steps["output"] + np.float32(1e-6) * inputs[2][:, :, -1:]}


def float32_for_float16(right, *inputs, **options):
    steps = right(*inputs, **options)
    return steps | {"output": steps["output"].astype(np.float32)}


def sums_in_float16(right, *inputs, **options):
    steps = right(*inputs, **options)
    output = np.zeros_like(steps["output"])
    for s in range(inputs[2].shape[2]):
        part = steps["weights"][..., s, None] * inputs[2][:, :, s, None]
        output = (output + part).astype(output.dtype)
    return steps | {"output": output}


def fast_path_apart(right, *inputs, **options):
    return right(*inputs, **options) * np.float32(1.00001)


def kept_weights_not_scaled(right, *inputs, dropout=0.0, **options):
    steps = right(*inputs, dropout=dropout, **options)
    return steps | {"output": steps["output"] * np.float32(1 - dropout)}


# Mistakes in multi-head attention: (right method, config, parameters, *inputs, **options)


def weights_averaged_over_queries(right, *call, average_weights=True, **options):
    output, weights = right(*call, average_weights=False, **options)
    return output, weights.mean(2) if average_weights else weights


def padding_shown(right, *call, key_padding_mask=None, **options):
    hidden = None if key_padding_mask is None else ~key_padding_mask
    return right(*call, key_padding_mask=hidden, **options)


def rank_three_read_heads_first(right, config, *call, attn_mask=None, **options):
    if np.ndim(attn_mask) == 3:
        heads, (_, T, S) = config["num_heads"], attn_mask.shape
        attn_mask = attn_mask.reshape(heads, -1, T, S).swapaxes(0, 1)
    return right(config, *call, attn_mask=attn_mask, **options)


def padded_queries_zeroed(right, *call, key_padding_mask=None, **options):
    output, weights = right(*call, key_padding_mask=key_padding_mask, **options)
    batch_first = call[0].get("batch_first", True)
    rows = key_padding_mask if batch_first else key_padding_mask.T
    return np.where(rows[..., None], 0, output), weights


def last_map_forgotten(right, config, parameters, *inputs, **options):
    eye = np.eye(config["embed_dim"], dtype=np.float32)
    return right(config, parameters | {"out_proj.weight": eye}, *inputs, **options)


def last_bias_forgotten(right, config, parameters, *inputs, **options):
    zero = np.zeros_like(parameters["out_proj.bias"])
    return right(config, parameters | {"out_proj.bias": zero}, *inputs, **options)


def always_training(right, *call, training=False, seed=None, **options):
    return right(*call, training=True, seed=seed or 7, **options)


def refused_in_other_words(right, *call, **options):
    try:
        return right(*call, **options)
    except ValueError as error:
        raise ValueError(f"invalid argument: {error}") from error


def refused_as_another_type(right, *call, **options):
    try:
        return right(*call, **options)
    except ValueError as error:
        raise RuntimeError(str(error)) from error


def not_refused(right, *call, **options):
    try:
        return right(*call, **options)
    except ValueError:
        return lambda *inputs, **options: None


# Mistakes in masks


def builder_inverted(right, *arguments):
    return ~right(*arguments)


def diagonal_hidden(right, tgt_len, src_len):
    return right(tgt_len + 1, src_len + 1)[:-1, 1:]


def always_look(right, question, *arguments, **options):
    return "look" if question == "tile" else right(question, *arguments, **options)


def hidden_is_allowed(right, question, *arguments, **options):
    return right("allowed" if question == "hidden" else question, *arguments, **options)


def verdict_inverted(right, *arguments, **options):
    parts = right(*arguments, **options).split("allowed")
    return "hidden".join(part.replace("hidden", "allowed") for part in parts)


def offset_not_asked(right, question, *arguments, query_offset=None, **options):
    return right(question, *arguments, query_offset=0, **options)


# Mistakes in gradients: (right method, *call, **options) -> gradients by name


def scale_forgotten_backward(right, *call, **options):
    found = right(*call, **options)
    return found | {"query": found["query"] * call[0].shape[3] ** 0.5}


def groups_averaged(right, query, key, *call, **options):
    found = right(query, key, *call, **options)
    return found | {"key": found["key"] * (key.shape[1] / query.shape[1])}


def bias_left_out(right, *call, **options):
    return {name: x for name, x in right(*call, **options).items() if name != "bias"}


def bias_not_summed(right, *call, **options):
    found = right(*call, **options)
    return found | {"bias": np.broadcast_to(found["bias"], (3, 2, 5, 7))}


def matrix_transposed(right, *call, **options):
    found = right(*call, **options)
    return found | {"q_proj.weight": found["q_proj.weight"].T}


def averaged_over_samples(right, *call, **options):
    found = right(*call, **options)
    return {name: x / 3 if "proj" in name else x for name, x in found.items()}


def nan_for_empty_rows(right, *call, **options):
    found = right(*call, **options)
    return found | {"query": np.where(found["query"] == 0, np.nan, found["query"])}


def nan_reaches_keys(right, query, key, *call, **options):
    found = right(query, key, *call, **options)
    return found | {"key": np.where(np.isnan(key), np.nan, found["key"])}


def values_of_the_future(right, *call, **options):
    found = right(*call, **options)
    return found | {"value": found["value"] + 1e-9}


def fast_gradients_apart(right, *call, through="attention", **options):
    found = right(*call, through=through, **options)
    return found if through == "steps" else found | {"key": found["key"] * 1.001}


class Row(NamedTuple):
    """A mistake, and the case that must refuse it: its clause, its test, the rest of its id."""

    clause: str
    mistake: Callable
    test: str
    case: str = ""

    @property
    def id(self) -> str:
        return f"{self.mistake.__name__}-{self.clause}-{self.case}".rstrip("-")

    def item(self, subject: str) -> str:
        """Return the name that pytest gives to the case of one subject."""
        return (
            f"test_{self.test}[{'-'.join(filter(None, (subject, 'cpu', self.clause, self.case)))}]"
        )


FORMULA = "output_is_the_formula"
WHATEVER = "an_empty_row_is_zero_whatever_its_query_holds"
WHO_SEES = "a_bias_that_is_nan_reaches_exactly_those_who_see_it"
LEFT_OUT = "parameter_gradients_are_those_of_leaving_the_sample_out"
METHODS = {
    "steps": [
        Row("ATT-1", mask_inverted, FORMULA, "causal"),
        Row("ATT-1", mask_transposed, FORMULA, "square"),
        Row("ATT-1", mask_of_the_first_sample, FORMULA, "padding"),
        Row("ATT-1", scale_forgotten, FORMULA, "plain"),
        Row("ATT-1", scale_of_the_values_width, FORMULA, "plain"),
        Row("ATT-2", mask_forgotten, "weights_are_a_distribution_over_what_is_seen", "padding"),
        Row("ATT-4", bias_forgotten, "minus_infinity_in_a_bias_hides_like_a_mask"),
        Row("ATT-5", heads_tiled, "grouped_heads_repeat_their_keys", "grouped"),
        Row("ATT-6", softcap_after_the_bias, "softcap_comes_before_bias_and_mask"),
        Row("ATT-7", no_maximum_subtracted, "large_logits_do_not_overflow", "10000.0"),
        Row("ATT-8", future_leaks, "one_visible_key_gives_its_value"),
        Row("ATT-12", kept_weights_not_scaled, "kept_weights_are_scaled_by_what_is_left"),
        Row("ATT-13", softcap_after_the_bias, "each_step_is_what_its_name_says", "softcap"),
        Row("CAUSE-3", offset_ignored, "offsets_see_what_they_say", "S-T"),
        Row("CAUSE-4", future_leaks, "later_tokens_never_change_earlier_outputs", "attention-4"),
        Row("EMPTY-1", filled_with_a_finite_number, "zero_gives_exact_zeros", "float32"),
        Row("EMPTY-1", mean_for_empty_rows, "zero_gives_exact_zeros", "float32"),
        Row("EMPTY-1", nan_in_empty_rows, WHATEVER, "steps-nan"),
        Row("EMPTY-2", zero_for_empty_rows, "nan_gives_nan_in_that_row_alone"),
        Row("CLEAN-4", nan_in_bias_forgiven, WHO_SEES, "steps-4-seen"),
        Row("CLEAN-4", nan_in_bias_for_everyone, WHO_SEES, "steps-4-hidden"),
        Row("CLEAN-2", nan_in_padding_leaks, "a_hidden_value_may_hold_anything", "nan-lengths"),
        Row("HALF-1", float32_for_float16, "output_has_the_dtype_of_the_input", "float16"),
        Row("HALF-2", sums_in_float16, "4096_equal_weights_sum_to_one", "float16"),
        Row("DOC-A3", filled_with_a_finite_number, "masking_scores_touches_padded_columns_only"),
        Row("DOC-A12", zero_for_empty_rows, "a_sample_of_length_zero_is_nan_alone"),
        Row("DOC-B5", scale_forgotten, "the_formula_with_its_shapes"),
        Row("DOC-B6", mask_forgotten, "the_first_output_never_changes_under_the_mask"),
        Row("DOC-B12", future_leaks, "later_rows_cannot_influence_earlier_ones", "4"),
    ],
    "attention": [
        Row("ATT-9", fast_path_apart, "asking_for_steps_does_not_change_the_output", "causal"),
    ],
    "sequence_mask": [
        Row("MASK-1", builder_inverted, "sequence_mask_marks_padding", "3-int32"),
        Row("DOC-A1", builder_inverted, "token_table_gives_the_printed_mask"),
    ],
    "look_ahead_mask": [
        Row("MASK-2", diagonal_hidden, "look_ahead_mask_is_zero_up_to_the_diagonal", "5-7"),
    ],
    "ask": [
        Row("MASK-4", hidden_is_allowed, "three_forms_of_a_mask_agree", "causal"),
        Row("MASK-10", always_look, "tile_agrees_with_allowed_everywhere", "causal"),
        Row("MASK-11", verdict_inverted, "explain_concludes_what_allowed_says", "causal"),
        Row("MASK-12", offset_not_asked, "offset_is_honoured_for_square_calls"),
    ],
    "multihead": [
        Row("MHA-3", last_map_forgotten, "one_head_differs_from_attention_by_the_last_map"),
        Row("MHA-4", padding_shown, "every_kind_of_mask", "key_padding"),
        Row("MHA-4", rank_three_read_heads_first, "every_kind_of_mask", "bool_rank3"),
        Row("MHA-4", rank_three_read_heads_first, "every_kind_of_mask", "float_rank3"),
        Row("MHA-5", weights_averaged_over_queries, "weights_come_averaged_or_per_head"),
        Row("MHA-7", padded_queries_zeroed, "padding_hides_keys_and_not_queries"),
        Row("MHA-7", last_bias_forgotten, "an_empty_row_gives_the_bias_of_the_last_map"),
        Row("DOC-A5", padding_shown, "self_attention_gives_the_printed_weights"),
        Row("DOC-A7", padded_queries_zeroed, "outputs_at_padded_positions_are_not_zero"),
        Row("DOC-A14", always_training, "evaluation_switches_dropout_off"),
    ],
    "module_with": [
        Row("ERR-1", refused_in_other_words, "wrong_call_gets_its_own_text", "embed_dim"),
        Row("ERR-1", refused_as_another_type, "wrong_call_gets_its_own_text", "embed_dim"),
        Row("ERR-1", not_refused, "wrong_call_gets_its_own_text", "embed_dim"),
    ],
    "gradients": [
        Row("GRAD-1", scale_forgotten_backward, "gradients_are_the_oracles", "plain"),
        Row("GRAD-1", groups_averaged, "gradients_are_the_oracles", "grouped"),
        Row("GRAD-1", bias_left_out, "gradients_are_the_oracles", "bias_rank2"),
        Row("GRAD-1", bias_not_summed, "gradients_are_the_oracles", "bias_rank2"),
        Row("GRAD-3", fast_gradients_apart, "gradients_of_both_paths_agree", "causal-attention"),
        Row("EMPTY-6", nan_for_empty_rows, "gradients_of_empty_rows_are_zero"),
        Row("CLEAN-3", nan_reaches_keys, "hidden_garbage_reaches_no_gradient", "attention-key-nan-lengths"),  # noqa: E501
        Row("CAUSE-4", values_of_the_future, "gradient_reaches_exactly_what_a_query_sees", "3"),
    ],
    "multihead_gradients": [
        Row("GRAD-2", matrix_transposed, "parameter_gradients_are_the_oracles", "CROSS"),
        Row("EMPTY-5", averaged_over_samples, LEFT_OUT),
    ],
}  # fmt: skip
METHODS |= {method: [Row(*row) for row in rows] for method, rows in wrong_models.ROWS.items()}
BACKENDS = {method: "torch" if "gradients" in method else "numpy" for method in METHODS}
ROWS = [pytest.param(BACKENDS[m], row, id=row.id) for m, rows in METHODS.items() for row in rows]


def installed() -> list[str]:
    return [backend for backend in ("numpy", "torch") if not subjects.missing(backend)]


def broken(subject, method: str, mistake: Callable):
    """Put a mistake into one method of a subject; attention is the output of its steps."""
    setattr(subject, method, partial(mistake, getattr(subject, method)))
    if method == "steps":
        subject.attention = lambda *inputs, **options: subject.steps(*inputs, **options)["output"]
    subject.name = mistake.__name__
    return subject


class WrongSubjects:
    """A pytest plugin: the suite runs on every wrong subject too, and on the rows' cases only."""

    def pytest_sessionstart(self, session):
        from conformance.conftest import SUBJECTS

        wrong = {}
        for method, rows in METHODS.items():
            if BACKENDS[method] in installed():
                own = {row.mistake: subjects.load(BACKENDS[method]) for row in rows}
                wrong |= {m.__name__: broken(subject, method, m) for m, subject in own.items()}
        session.config.stash[SUBJECTS].extend(wrong.values())

    def pytest_pycollect_makeitem(self, name):
        rows = [row for rows in METHODS.values() for row in rows]
        wanted = {f"test_{row.test}" for row in rows}
        return [] if name.startswith("test_") and name not in wanted else None

    def pytest_collection_modifyitems(self, items):
        pairs = [(BACKENDS[m], row) for m, rows in METHODS.items() for row in rows]
        wanted = {row.item(s) for right, row in pairs for s in (right, row.mistake.__name__)}
        items[:] = [item for item in items if item.name in wanted]


RUN = """
import sys, pytest, test_checkers
sys.exit(pytest.main(sys.argv[1:], plugins=[test_checkers.WrongSubjects()]))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """Run the suite once, and return its report: a result for the name of each case."""
    report = tmp_path_factory.mktemp("checkers") / "report.jsonl"
    suite = ROOT / "conformance"
    given = [str(suite), f"-c{suite / 'pytest.ini'}", f"--rootdir={suite}", "--device=cpu"]
    given += [f"--backend={backend}" for backend in installed()] + [f"--report={report}", "--tb=no"]
    paths = [str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *given],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, (done.stdout + done.stderr)[-3000:]
    return {line["test"]: line for line in lines(read(report))}


def of(results: dict, row: Row, subject: str, backend: str) -> dict:
    if backend not in installed():
        pytest.skip(f"{backend} is not installed")
    name = row.item(subject)
    assert name in results, f"the suite has no case {name}"
    return results[name]


@pytest.mark.parametrize(("backend", "row"), ROWS)
def test_wrong_subject_is_refused_under_its_clause(results, backend, row):
    result = of(results, row, row.mistake.__name__, backend)
    assert (result["outcome"], result["clause"]) == ("differs", row.clause), result["message"]
    assert result["message"].startswith(f"{row.clause}: "), result["message"]


@pytest.mark.parametrize(("backend", "row"), ROWS)
def test_right_subject_passes_the_same_case(results, backend, row):
    result = of(results, row, backend, backend)
    assert result["outcome"] == "conforms", result["message"]


# The checkers alone: one tensor is wrong by a thousandth, and the text names it


@pytest.fixture(autouse=True)
def no_clause():
    """Close the ledger, so that a text begins with the tensor and not with an earlier clause."""
    LEDGER.open("")


@pytest.fixture
def numpy_subject():
    return subjects.load("numpy")


@pytest.fixture
def torch_subject():
    if "torch" not in installed():
        pytest.skip("torch is not installed")
    return subjects.load("torch")


def off(name: str) -> Callable:
    """Return a mistake: the named tensor is a thousandth too large."""

    def mistake(right, *call, **options):
        found = right(*call, **options)
        return found | {name: found[name] * np.float32(1.001)}

    return mistake


@pytest.mark.parametrize("name", ["scores", "masked_scores", "weights", "output"])
def test_check_steps_looks_at_every_step(numpy_subject, name):
    check_steps(numpy_subject, BY_NAME["causal"], "float32")
    subject = broken(numpy_subject, "steps", off(name))
    with pytest.raises(Differs, match=rf"^{name} at \("):
        check_steps(subject, BY_NAME["causal"], "float32")


def test_hold_looks_at_what_is_seen(numpy_subject):
    case = Case("square", SQUARE, causal())
    inputs = case.inputs("float32")
    got = numpy_subject.attention(*inputs, mask=causal())
    hold(got, *inputs, "output", seen=case.seen())
    with pytest.raises(Differs, match=r"^output at \("):
        hold(got, *inputs, "output")
    with pytest.raises(Differs, match=r"^output at \("):
        hold(got, *inputs, "output", seen=case.seen(), scale=1.0)


@pytest.mark.parametrize("name", ["query", "key", "value", "bias"])
def test_check_gradients_looks_at_every_gradient(torch_subject, name):
    case = Case("bias", bias="rank4")
    check_gradients(torch_subject, case)
    with pytest.raises(Differs, match=rf"^gradient of {name} at \("):
        check_gradients(broken(torch_subject, "gradients", off(name)), case)


def test_check_gradients_misses_what_is_left_out(torch_subject):
    subject = broken(torch_subject, "gradients", bias_left_out)
    with pytest.raises(Differs, match=r"^gradients: expected \['bias', 'key', 'query', 'value'\]"):
        check_gradients(subject, Case("bias", bias="rank4"))


EVERYTHING = np.ones((3, 2, 5, 7), bool)


@pytest.mark.parametrize("average", [True, False], ids=["averaged", "per_head"])
@pytest.mark.parametrize("wrong", [0, 1], ids=["output", "weights"])
def test_multihead_check_looks_at_output_and_weights(numpy_subject, wrong, average):
    def mistake(right, *call, **options):
        found = list(right(*call, **options))
        found[wrong] = found[wrong] * np.float32(1.001)
        return found

    options = {"average_weights": average}
    multi.CROSS.check(numpy_subject, {}, EVERYTHING, **options)
    with pytest.raises(Differs, match=rf"^{('output', 'weights')[wrong]} at \("):
        multi.CROSS.check(broken(numpy_subject, "multihead", mistake), {}, EVERYTHING, **options)


def test_multihead_check_wants_no_weights_that_nobody_asked_for(numpy_subject):
    def mistake(right, *call, need_weights=True, **options):
        return right(*call, **options)

    multi.CROSS.check(numpy_subject, {}, EVERYTHING, need_weights=False)
    subject = broken(numpy_subject, "multihead", mistake)
    with pytest.raises(Differs, match=r"^weights were not asked for"):
        multi.CROSS.check(subject, {}, EVERYTHING, need_weights=False)


@pytest.mark.parametrize(
    "name", ["query", "value", "k_proj.weight", "q_proj.bias", "out_proj.weight"]
)
def test_multihead_check_gradients_looks_at_every_gradient(torch_subject, name):
    multi.CROSS.check_gradients(torch_subject, {}, EVERYTHING)
    subject = broken(torch_subject, "multihead_gradients", off(name))
    with pytest.raises(Differs, match=rf"^gradient of {name} at \("):
        multi.CROSS.check_gradients(subject, {}, EVERYTHING)


def test_multihead_check_gradients_misses_what_is_left_out(torch_subject):
    def mistake(right, *call, **options):
        return {name: x for name, x in right(*call, **options).items() if name != "key"}

    subject = broken(torch_subject, "multihead_gradients", mistake)
    with pytest.raises(Differs, match=r"^gradients: expected \['k_proj.bias', .*'key', "):
        multi.CROSS.check_gradients(subject, {}, EVERYTHING)


@pytest.mark.parametrize("name", ["scores", "weights", "output"])
def test_check_steps_wants_the_dtype_that_is_due(numpy_subject, name):
    """Judged by the spacing of its own dtype, a coarse answer would be allowed its coarseness."""

    def mistake(right, *call, **options):
        steps = right(*call, **options)
        return steps | {name: steps[name].astype(np.float16)}

    with pytest.raises(Differs, match=rf"^{name}\b.* float32.* float16"):
        check_steps(broken(numpy_subject, "steps", mistake), PLAIN, "float32")


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_multihead_check_wants_the_dtype_that_is_due(numpy_subject, dtype):
    def mistake(right, *call, **options):
        output, weights = right(*call, **options)
        return output.astype(dtype), weights

    with pytest.raises(Differs, match=rf"^output\b.* float32.* {dtype}"):
        multi.CROSS.check(broken(numpy_subject, "multihead", mistake), {}, EVERYTHING)


def test_what_a_subject_does_not_declare_is_not_a_failure(numpy_subject):
    with pytest.raises(NotOffered, match="numpy does not offer gradients"):
        check_gradients(numpy_subject, PLAIN)
