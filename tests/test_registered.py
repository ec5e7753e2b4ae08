"""`--subject hf:NAME`: what is registered in transformers, as a subject of the suite."""

import numpy as np
import pytest
from test_transformers import registered  # noqa: F401 (a fixture)
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from attn_torch.interop import transformers as ours
from attn_torch.interop.carried import CarriedMask
from conformance import subjects
from conformance.cases.attention import SQUARE, Case
from conformance.mask_spec import allow, causal, padding
from conformance.oracle.tolerance import compare
from conformance.subjects.protocol import NotOffered

COMMON = {"attention", "scale", "grouped", "causal", "gradients"}
OFFERED = {
    "eager": {"weights", "dropout"},
    "sdpa": {"bias", "dropout"},
    "flex_attention": {"bias", "softcap", "sinks"},
    "attn_rosetta": {"bias", "softcap", "sinks", "dropout", "weights"},
}


def plugged(name):
    (subject,) = subjects.plug(f"hf:{name}")
    return subject


@pytest.mark.parametrize("name", OFFERED)
def test_what_is_offered_is_what_the_function_has_arguments_for(name):
    subject = plugged(name)
    assert subject.capabilities == COMMON | OFFERED[name]
    assert (subject.name, subject.asked_as) == (f"hf:{name}", f"--subject hf:{name}")
    assert subject.versions().keys() == {"transformers", "torch"}


MASKS = {
    "padding": (padding([7, 3, 4]), "padding(hidden=bool (3, 7))"),
    "causal": (causal(), "causal()"),
    "causal, padding": (causal() & padding([7, 3, 4]), "(causal() & padding(hidden=bool (3, 7)))"),
    "none": (None, "None"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_go_by_the_mask_function(name, monkeypatch):
    spec, expected = MASKS[name]
    case, seen, attend = Case("masked", SQUARE, spec), [], ours.attend

    def noted(module, query, key, value, attention_mask, **options):
        assert isinstance(attention_mask, CarriedMask)
        seen.append(repr(attention_mask.mask))
        return attend(module, query, key, value, attention_mask, **options)

    monkeypatch.setattr(ours, "attend", noted)
    exact, naive = case.expected("float32")
    got = plugged("attn_rosetta").attention(*case.inputs("float32"), **case.options("float32"))
    compare(got, exact["output"], naive["output"], "output")
    assert seen == [expected]


def test_function_of_another_module_is_imported(monkeypatch, tmp_path):
    source = """
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


def attend(module, query, key, value, mask, softcap=None, **options):
    output, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
    return output + 1, None


AttentionInterface.register("off_by_one", attend)
AttentionMaskInterface.register("off_by_one", sdpa_mask)
"""
    (tmp_path / "kernels_of_ones_own.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    case = Case("plain", SQUARE)
    (subject,) = subjects.plug("hf:kernels_of_ones_own:off_by_one")
    assert subject.capabilities == COMMON | {"softcap"}
    got = subject.attention(*case.inputs("float32"))
    exact, naive = case.expected("float32")
    compare(got, exact["output"] + 1, naive["output"] + 1, "output")


def test_what_is_not_registered_is_refused():
    known = r"must be registered .*\(eager, attn_rosetta, .*sdpa.*: got nothing_like_it"
    with pytest.raises(ValueError, match=known):
        subjects.plug("hf:nothing_like_it")
    AttentionInterface.register("maskless", ours.attend)
    with pytest.raises(ValueError, match=r"needs its mask function.*: got none for maskless"):
        subjects.plug("hf:maskless")
    AttentionMaskInterface.register("maskless", sdpa_mask)
    assert plugged("maskless").name == "hf:maskless"


def test_what_a_mask_function_cannot_say_is_not_offered():
    subject, shape = plugged("sdpa"), (2, 4, 3, 8)
    query, key = np.ones(shape, np.float32), np.ones((2, 4, 5, 8), np.float32)
    with pytest.raises(NotOffered, match="told where the queries start"):
        subject.attention(query, key, key, mask=causal())
    of_each_head = np.ones((2, 4, 3, 3), bool)
    of_each_head[:, 1, :, 0] = False
    with pytest.raises(NotOffered, match="one for all heads"):
        subject.attention(query, query, query, mask=allow(of_each_head))
