"""What an adapter of one's own is given, what it may leave out, and what is refused of it."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from conformance import subjects
from conformance.cases.arrays import normal
from conformance.cases.attention import BY_NAME, MAIN, PLAIN, SQUARE, Case
from conformance.cases.compare import check_steps, refused
from conformance.cases.heads import check_turned
from conformance.mask_spec import causal, padding, segments, sliding_window
from conformance.oracle import reference
from conformance.oracle.tolerance import Differs
from conformance.subjects import adapter
from conformance.subjects.adapter import Plugged
from conformance.subjects.protocol import CAPABILITIES, NotOffered


class Recording:
    """An adapter that answers with zeros and remembers what it was given."""

    mask_polarity = "attend"
    capabilities = frozenset({"attention"})
    dtypes = ("float32", "float64")

    def __init__(self, **settings):
        vars(self).update(settings)
        self.given: dict = {}

    def attention(self, query, key, value, **options):
        self.given = options
        return np.zeros((*query.shape[:3], value.shape[3]), query.dtype)

    def weights(self, query, key, value, **options):
        output = self.attention(query, key, value, **options)
        return output, np.zeros((*query.shape[:3], key.shape[2]), query.dtype)

    def multihead(self, config, parameters, query, key, value, **options):
        self.given = options | {"config": config, "inputs": (query, key, value)}
        return np.zeros_like(query), None


def plugged(**settings) -> Plugged:
    return Plugged(Recording(**settings), "recording")


def given(case: Case = PLAIN, dtype: str = "float32", **settings) -> dict:
    """Return what reaches the adapter of a case's call."""
    subject = plugged(**settings)
    subject.attention(*case.inputs(dtype), **case.options(dtype))
    return subject.adapter.given


RAGGED = BY_NAME["causal_and_padding"]


@pytest.mark.parametrize("polarity", adapter.POLARITIES)
def test_mask_points_the_way_it_is_asked_for(polarity):
    mask = given(RAGGED, mask_polarity=polarity)["mask"]
    allowed = RAGGED.allowed()
    assert mask.shape == MAIN.call
    expected = {"attend": allowed, "hide": ~allowed, "add": np.where(allowed, 0, -np.inf)}[polarity]
    np.testing.assert_array_equal(mask, expected)
    assert mask.dtype == (np.float32 if polarity == "add" else bool)


@pytest.mark.parametrize("polarity", adapter.POLARITIES)
def test_the_old_name_of_mask_polarity_is_read_and_the_new_one_is_named(polarity):
    with pytest.warns(DeprecationWarning, match=f"write mask_polarity = '{polarity}'"):
        subject = plugged(mask_polarity=None, masks=polarity)
    assert subject.mask_polarity == polarity


def test_what_is_left_out_is_not_passed():
    assert given(PLAIN) == {}


OPTIONS = {"bias": {"bias": "rank2"}, "scale": {"scale": 0.3}, "softcap": {"softcap": 2.0}}


@pytest.mark.parametrize("name", OPTIONS)
def test_option_reaches_only_who_declares_it(name):
    case = Case("one", **OPTIONS[name])
    with pytest.raises(NotOffered, match=CAPABILITIES[name]):
        given(case)
    assert set(given(case, capabilities={"attention", name})) == {name}


def test_policy_of_empty_rows_is_passed_where_it_is_not_the_contracts():
    offered = {"attention", "empty_rows"}
    assert given(Case("zero"), capabilities=offered) == {}
    nan = Case("nan", empty_rows="nan")
    assert given(nan, capabilities=offered) == {"empty_rows": "nan"}
    with pytest.raises(NotOffered):
        given(nan)


def test_dropout_comes_with_its_seed():
    subject = plugged(capabilities={"attention", "dropout"})
    subject.attention(*PLAIN.inputs("float32"), dropout=0.5, seed=3)
    assert subject.adapter.given == {"dropout": 0.5, "seed": 3}


def test_causal_flag_is_used_where_nobody_said_an_offset():
    offered = {"attention", "causal"}
    assert given(Case("square", SQUARE, causal()), capabilities=offered) == {"causal": True}
    shifted = given(Case("causal", mask=causal(), query_offset=2), capabilities=offered)
    assert list(shifted) == ["mask"]
    both = given(Case("both", SQUARE, causal() & padding([7, 0, 4])), capabilities=offered)
    assert both["causal"] is True
    allowed = reference.allowed(padding([7, 0, 4]), SQUARE.call)
    np.testing.assert_array_equal(both["mask"], allowed)


@pytest.mark.parametrize("mask", [causal(), sliding_window(1), ~causal() | padding([7, 0, 4])])
def test_positions_without_an_offset_are_not_offered(mask):
    with pytest.raises(NotOffered, match="know no positions"):
        given(Case("no_offset", mask=mask))


def test_masks_without_positions_need_no_offset():
    pair = segments([[1, 1, 2, 2, 3]] * 3, [[3, 3, 2, 2, 2, 1, 8]] * 3)
    assert "mask" in given(Case("pair", mask=pair & padding([7, 0, 4])))


def test_dtype_that_is_not_declared_is_not_offered():
    with pytest.raises(NotOffered, match="float16"):
        given(dtype="float16")


def test_grouped_heads_are_declared():
    shape = MAIN._replace(H=4)
    with pytest.raises(NotOffered, match="share key heads"):
        given(Case("grouped", shape))
    assert given(Case("grouped", shape), capabilities={"attention", "grouped"}) == {}


def test_steps_are_what_is_offered():
    inputs = PLAIN.inputs("float32")
    plain, more = plugged(), plugged(capabilities={"attention", "weights"})
    assert set(plain.steps(*inputs)) == {"output"}
    assert set(more.steps(*inputs)) == {"output", "weights"}
    with pytest.raises(NotOffered, match="masked scores"):
        more.steps(*inputs)["masked_scores"]


WRITTEN = "^your function changed its input `{}` in place at"


@pytest.mark.parametrize("name", ["query", "mask"])
def test_array_that_is_written_to_is_told_at_once(name):
    """An answer to the next question would be about other numbers."""

    def spoil(query, key, value, mask):
        {"query": query, "mask": mask}[name][2, 1, 3] = 0
        return np.zeros((3, 2, 5, 13), np.float32)

    subject = plugged(attention=spoil)
    with pytest.raises(Differs, match=WRITTEN.format(name)):
        subject.attention(*RAGGED.inputs("float32"), **RAGGED.options("float32"))


def test_array_without_a_parameter_of_its_own_is_told_by_its_place():
    def spoil(*heads, **options):
        heads[1][0, 0, 2] = 0
        return np.zeros((3, 2, 5, 13), np.float32)

    with pytest.raises(Differs, match=r"changed its input `heads\[1\]` in place at"):
        plugged(attention=spoil).attention(*PLAIN.inputs("float32"))


def test_parameter_that_is_written_to_is_told_at_once():
    def spoil(config, parameters, query, key, value, **options):
        parameters["q_proj.weight"][3, 0] = 0
        return query, None

    subject = plugged(capabilities=MODULE, multihead=spoil)
    with pytest.raises(Differs, match=WRITTEN.format("q_proj.weight")):
        subject.multihead(
            {"embed_dim": 14, "num_heads": 2},
            {"q_proj.weight": normal(0, 14, 14)},
            normal(1, 3, 5, 14),
        )


def test_answer_may_use_its_array_again():
    output = np.zeros((3, 2, 5, 13), np.float32)

    def fill(query, key, value):
        output[:] = value.max()
        return output

    subject, (query, key, value) = plugged(attention=fill), PLAIN.inputs("float32")
    first, second = (subject.attention(query, key, scale * value) for scale in (1, 2))
    np.testing.assert_array_equal(second, 2 * first)


class Lazy:
    """An answer that warns, or asserts, when it is made an array."""

    def __init__(self, assertion: bool):
        self.assertion = assertion

    def __array__(self, dtype=None, copy=None):
        warnings.warn("my framework says hello", DeprecationWarning, stacklevel=1)
        assert not self.assertion
        return np.ones((3, 2, 5, 13), np.float32)


def test_answer_is_taken_over_under_the_same_guard():
    subject = plugged(attention=lambda *inputs: Lazy(assertion=False))
    assert subject.attention(*PLAIN.inputs("float32")).shape == (3, 2, 5, 13)
    subject = plugged(attention=lambda *inputs: Lazy(assertion=True))
    with pytest.raises(RuntimeError, match="AssertionError"):
        subject.attention(*PLAIN.inputs("float32"))


def test_answer_that_is_no_array_is_said_to_be_none():
    inputs = PLAIN.inputs("float32")
    for wrong, name in (({1.0}, "set"), (None, "NoneType"), ({"output": 1.0}, "dict")):
        with pytest.raises(Differs, match=f"an answer must be an array: got {name}"):
            plugged(attention=lambda *inputs, wrong=wrong: wrong).attention(*inputs)
    plain = plugged(capabilities={"attention", "weights"}, weights=lambda *inputs: inputs[0])
    with pytest.raises(Differs, match="must be an output and weights: got ndarray"):
        plain.steps(*inputs)
    plain = plugged(capabilities={"attention", "gradients"}, gradients=lambda *inputs: inputs)
    with pytest.raises(Differs, match="must be a dict of arrays: got tuple"):
        plain.gradients(*inputs, inputs[0])


def test_output_and_weights_may_be_a_list():
    inputs = PLAIN.inputs("float32")
    answer = [np.zeros((3, 2, 5, 13), np.float32), np.ones((3, 2, 5, 7), np.float32)]
    subject = plugged(capabilities={"attention", "weights"}, weights=lambda *inputs: answer)
    assert subject.steps(*inputs)["weights"].shape == (3, 2, 5, 7)


def test_written_array_is_no_refusal():
    def spoil(query, key, value):
        query[:] = 0
        return np.zeros((3, 2, 5, 13), np.float32)

    subject, inputs = plugged(attention=spoil), PLAIN.inputs("float32")
    with pytest.raises(Differs, match=WRITTEN.format("query")):
        refused(subject, lambda: subject.attention(*inputs), ValueError, beside=lambda: None)


class Adding:
    """A decoding that adds what it is fed; a copy of it warns, as a framework might."""

    def __init__(self, total: float = 0.0):
        self.total = total

    @property
    def lengths(self):
        return [int(self.total)]

    def feed(self, x):
        warnings.warn("my framework says hello", DeprecationWarning, stacklevel=1)
        self.total += x.sum()
        return np.full((1, 1, 1), self.total)

    def copy(self):
        return Adding(self.total)


def test_branch_of_a_decoding_is_driven_like_the_decoding():
    subject = plugged(
        capabilities=MODULE | {"cache"}, decoding=lambda config, parameters, batch, size: Adding()
    )
    config = {"embed_dim": 1, "num_heads": 1}
    decoding = subject.decoding("attention", config, {}, capacity=4, batch_size=1)
    decoding.feed(np.full((1, 1, 1), 2.0))
    branch = decoding.copy()
    assert branch.feed(np.full((1, 1, 1), 3.0)) == 5
    assert (branch.lengths, decoding.lengths) == ([5], [2])
    with pytest.raises(NotOffered, match="hidden in decoding"):
        branch.feed(np.ones((1, 1, 1)), hidden=None)
    with pytest.raises(NotOffered, match="reorder in decoding"):
        branch.reorder([0])


def test_step_that_is_declared_and_missing_is_an_error():
    made_up = {"output": 0, "weight": 0}
    subject = plugged(capabilities={"attention", "steps"}, steps=lambda *inputs: made_up)
    with pytest.raises(KeyError, match="weights"):
        subject.steps(*PLAIN.inputs("float32"))


class Turning(Recording):
    """Turns nothing, and remembers what it was told."""

    capabilities = frozenset({"rotary"})

    def rotary(self, query, key, positions, **settings):
        self.given = settings
        return [query, key]


def test_rotary_embeddings_are_told_what_is_not_the_default():
    subject, places = Plugged(Turning(), "turning"), np.array([[0, 1, 2, 3, 4]])
    heads = PLAIN.inputs("float32")[0]
    with pytest.raises(Differs, match=r"q at its places at "):
        check_turned(subject, {"class": "rotary", "base": 30.0}, places, "float32")
    assert subject.adapter.given == {"base": 30.0}
    with pytest.raises(NotOffered, match=r"^turning does not offer QKNorm$"):
        subject.processed({"class": "QKNorm"}, heads, heads, places)
    with pytest.raises(NotOffered, match=r"^turning does not offer float16$"):
        check_turned(subject, {"class": "rotary"}, places, "float16")
    with pytest.raises(NotOffered, match=r"^recording does not offer rotary embeddings"):
        check_turned(plugged(), {"class": "rotary"}, places, "float32")
    subject.adapter.rotary = lambda query, key, positions: query
    with pytest.raises(Differs, match=r"^an answer must be query and key: got ndarray$"):
        check_turned(subject, {"class": "rotary"}, places, "float32")


def test_assertion_of_an_adapter_is_no_verdict():
    def fails(*inputs):
        assert not inputs

    subject = plugged(attention=fails)
    with pytest.raises(RuntimeError, match="AssertionError"):
        subject.attention(*PLAIN.inputs("float32"))


def test_what_is_no_business_of_a_subject_is_not_there():
    assert not hasattr(plugged(), "hypothesis_internal_is_this_a_mock_check")


def test_module_is_told_what_becomes_of_empty_rows():
    assert multihead(capabilities={"empty_rows"})["config"]["empty_rows"] == "zero"


def test_wrong_output_is_found_where_nothing_but_the_output_is_offered():
    with pytest.raises(AssertionError, match="output at"):
        check_steps(plugged(), PLAIN, "float32")


HIDDEN = np.arange(7) >= np.array([7, 0, 4])[:, None]
MODULE = {"attention", "multihead"}


def multihead(config: dict | None = None, capabilities=frozenset(), **options) -> dict:
    subject = plugged(capabilities=MODULE | capabilities)
    query, key = np.ones((3, 5, 14), np.float32), np.ones((3, 7, 14), np.float32)
    config = {"embed_dim": 14, "num_heads": 2} | (config or {})
    subject.multihead(config, {}, query, key, **options)
    return subject.adapter.given


def test_module_gets_two_masks_as_one():
    triangle = ~np.tri(5, 7, 2, dtype=bool)
    mask = multihead(key_padding_mask=HIDDEN, attn_mask=triangle)["mask"]
    np.testing.assert_array_equal(
        mask, (~HIDDEN[:, None, None] & ~triangle) & np.ones(MAIN.call, bool)
    )
    assert "mask" not in multihead()


def test_module_gets_what_is_added_as_a_bias():
    added = np.random.default_rng(3).normal(size=(5, 7)).astype(np.float32)
    with pytest.raises(NotOffered):
        multihead(attn_mask=added)
    found = multihead(attn_mask=added, capabilities={"bias"})
    np.testing.assert_array_equal(found["bias"], np.broadcast_to(added, MAIN.call))


def test_module_gets_torchs_masks_where_it_says_so():
    found = multihead(
        key_padding_mask=HIDDEN, attn_mask=causal(), query_offset=2, capabilities={"attn_mask"}
    )
    np.testing.assert_array_equal(found["key_padding_mask"], HIDDEN)
    np.testing.assert_array_equal(found["attn_mask"], ~reference.allowed(causal(), MAIN.call, 2))


def test_module_is_asked_for_weights_only_if_it_has_them():
    assert multihead()["need_weights"] is False
    assert multihead(capabilities={"weights"})["need_weights"] is True


SETTINGS = [{"kdim": 3}, {"num_kv_heads": 1}, {"batch_first": False}, {"dropout": 0.5}]
SETTINGS += [{"empty_rows": "nan"}]


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_settings_of_a_module_are_declared(config):
    with pytest.raises(NotOffered):
        multihead(config)


def test_key_left_out_is_the_query_and_value_the_key():
    inputs = multihead()["inputs"]
    assert inputs[1] is inputs[2]
    assert inputs[0].shape == (3, 5, 14)


@pytest.mark.parametrize("name", ["ask", "sequence_mask", "blocked", "layer", "greedy"])
def test_what_an_adapter_cannot_have_is_not_offered(name):
    with pytest.raises(NotOffered):
        getattr(plugged(), name)


REFUSED = {
    "polarity": ({"mask_polarity": None}, "`mask_polarity` must say what True means.*got None"),
    "both_names": ({"masks": "hide"}, "but not both: got 'attend' and 'hide'"),
    "versions": ({"versions": lambda: {"mine": 1.0}}, "must be texts"),
    "capability_of_ours": ({"capabilities": {"attention", "blocked"}}, "among.*got blocked"),
    "text_for_capabilities": ({"capabilities": "attention"}, "a set of names: got 'attention'"),
    "no_method": ({"capabilities": {"attention", "gradients"}}, "got none of gradients"),
    "dtype": ({"dtypes": ("fp32",)}, "dtypes are names among.*got \\('fp32',\\)"),
    "text_for_dtypes": ({"dtypes": "float32"}, "got 'float32'"),
    "no_dtype": ({"dtypes": ()}, "got \\(\\)"),
    "other_polarity": ({"mask_polarity": "keep"}, "got 'keep'"),
    "capability": ({"capabilities": {"attention", "speed"}}, "must be among.*got speed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_adapter_that_does_not_say_what_it_is_is_refused(name):
    settings, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        plugged(**settings)


def test_adapter_is_found_by_path_and_by_entry_point(monkeypatch):
    found = subjects.find("test_adapter:Recording")
    assert found.__name__ == "Recording"
    point = SimpleNamespace(name="mine", load=lambda: Recording)
    monkeypatch.setattr(subjects, "entry_points", lambda group: [point])
    assert subjects.find("mine") is Recording
    with pytest.raises(
        ValueError, match=r"entry point of attn_rosetta\.subjects \(mine\).*: got yours"
    ):
        subjects.find("yours")
    with pytest.raises(ValueError, match="must name a class of test_adapter: got Nobody"):
        subjects.find("test_adapter:Nobody")


def test_a_backend_is_no_adapter():
    with pytest.raises(ValueError, match=r"a backend is --backend torch: got torch"):
        subjects.find("torch")


def test_text_for_devices_is_refused(monkeypatch):
    monkeypatch.setattr(subjects, "find", lambda name: SimpleNamespace(devices="cpu"))
    with pytest.raises(ValueError, match="devices must be a set of names: got 'cpu'"):
        subjects.plug("one")


def test_adapter_is_made_for_each_of_its_devices(monkeypatch):
    class Two(Recording):
        devices = ("cpu", "cuda")

        def __init__(self, device):
            super().__init__(asked=device)

    monkeypatch.setattr(subjects, "find", lambda name: Two)
    assert [(s.device, s.adapter.asked) for s in subjects.plug("two")] == [
        ("cpu",) * 2,
        ("cuda",) * 2,
    ]
    assert [s.device for s in subjects.plug("two", "gpu")] == ["cuda"]
    with pytest.raises(
        ValueError, match="--device must be one that two declares, cpu, cuda: got mps"
    ):
        subjects.plug("two", "mps")
