"""The chapter on how calls are written: parameters, their order and kinds, and what is left out."""

import numpy as np
import pytest

from .cases import multihead
from .cases.arrays import normal
from .cases.attention import LENGTHS, SQUARE, Case
from .cases.models import ModelCase
from .cases.signatures import SIGNATURES, signature, unlisted
from .contract import clause
from .mask_spec import causal, padding, sliding_window
from .oracle.tolerance import Differs, allowance, close, same
from .subjects.protocol import require

pytestmark = pytest.mark.untyped


@clause("ERR-1")
@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_the_tables(subject, name):
    require(subject, "errors")
    got = signature(subject.module, name)
    if got != SIGNATURES[name]:
        raise Differs(f"expected {SIGNATURES[name]}, got {got or 'nothing of this name'}")


@clause("ERR-1")
def test_public_names_are_the_tables(subject):
    require(subject, "errors")
    more = unlisted(subject.module)
    assert not more, f"ERR-1: these stand in no row of cases/signatures.py: {', '.join(more)}"


# What is left out is the default, and no other value


def need_calls(subject, *capabilities: str) -> None:
    """Ask for what is needed; where the table above said it, calls that compile are left out."""
    require(subject, *capabilities)
    if "errors" in subject.capabilities:
        require(subject, "any_shape")


def check_default(left_out, default, other, exact, naive, what: str) -> None:
    """Check that a call with the default is the call without it, and that another differs."""
    close(left_out, default, exact, naive, f"{what} left out, and given as its default")
    far = np.abs(np.asarray(other, float) - left_out).max() if other.shape == left_out.shape else 1
    assert far > 10 * allowance(exact, naive, left_out.dtype), f"{what} changes nothing"


CALL = Case("defaults", SQUARE, sliding_window(3, 1) & padding(LENGTHS), scale=None)
DECLARED = {"bias", "scale", "softcap", "sinks", "empty_rows", "dropout"}
DEFAULTS = {  # of attention: the default, and another value
    "mask": (None, causal()),
    "bias": (None, normal(5, 7, 7, dtype_name="float32")),
    "scale": (11**-0.5, 0.7),
    "softcap": (None, 0.7),
    "sinks": (None, normal(5, SQUARE.H, dtype_name="float32")),
    "empty_rows": ("zero", "uniform"),
    "query_offset": (0, 1),
    "dropout": (0.0, 0.5),
}


@clause("ATT-1")
@pytest.mark.parametrize("option", DEFAULTS)
def test_option_left_out_is_its_default(subject, option):
    need_calls(subject, "attention", *DECLARED & {option})
    case = Case("plain", SQUARE) if option == "mask" else CALL
    inputs, options = case.inputs("float32"), {"mask": case.mask, "seed": 3}
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    given = [{}, *({option: value} for value in DEFAULTS[option])]
    outputs = [subject.attention(*inputs, **options | more) for more in given]
    check_default(*outputs, exact, naive, option)


SETTINGS = {  # of multi-head attention
    "num_kv_heads": (2, None),
    "kdim": (14, None),
    "vdim": (14, None),
    "dropout": (0.0, 0.5),
    "batch_first": (True, False),
    "empty_rows": ("zero", "uniform"),
}


@clause("MHA-6")
@pytest.mark.parametrize("setting", SETTINGS)
def test_setting_left_out_is_its_default(subject, setting):
    need_calls(subject, "multihead")
    case, (default, other) = multihead.SELF, SETTINGS[setting]
    parameters, x = case.parameters("float32"), case.inputs()[0][:, :3]  # three of three
    options = {"training": True, "seed": 3, "need_weights": False}
    options["key_padding_mask"] = np.arange(3) >= np.array([3, 0, 2])[:, None]
    settings = [{}, {setting: default}, *([] if other is None else [{setting: other}])]
    outputs = [
        subject.multihead(case.config | more, parameters, x, **options)[0] for more in settings
    ]
    same(outputs[1], outputs[0], f"output with the default of {setting}, and without it")
    if other is not None:
        check_default(*outputs, outputs[0], outputs[0], setting)


@clause("MHA-6")
def test_projections_have_biases_unless_told_otherwise(subject):
    require(subject, "parameters")
    config = multihead.SELF.config
    left_out, default, without = (
        set(subject.parameters(config | more)) for more in ({}, {"bias": True}, {"bias": False})
    )
    assert left_out == default, f"MHA-6: bias left out gives {sorted(left_out)}"
    assert without < default, f"MHA-6: bias=False leaves {sorted(without)}"


@clause("MHA-5")
def test_weights_are_asked_for_and_averaged_unless_told_otherwise(subject):
    require(subject, "multihead", "weights")
    case = multihead.SELF
    call = (case.config, case.parameters("float32"), case.inputs()[0])
    left_out = subject.multihead(*call)[1]
    if left_out is None:
        raise Differs("weights left out of the call: expected weights, got None")
    same(left_out, subject.multihead(*call, need_weights=True)[1], "need_weights left out")
    same(left_out, subject.multihead(*call, average_weights=True)[1], "average_weights left out")
    by_head = subject.multihead(*call, average_weights=False)[1]
    assert by_head.shape != left_out.shape, "MHA-5: average_weights changes nothing"


LAYER_SETTINGS = {
    "dropout": (0.1, 0.0),
    "activation": ("relu", "gelu"),
    "layer_norm_eps": (1e-5, 1e-2),
    "batch_first": (True, False),
    "norm_first": (False, True),
    "bias": (True, False),
    "empty_rows": ("zero", "uniform"),
}
SHALLOW = {"num_encoder_layers": 1, "num_decoder_layers": 1}
OF_STACKS = {"norm": (False, True)}
KINDS = {
    **{(kind, name): pair for kind in ("encoder_layer", "decoder_layer", "encoder", "decoder")
       for name, pair in LAYER_SETTINGS.items()},
    **{("transformer", name): LAYER_SETTINGS[name] for name in LAYER_SETTINGS},
    **{(kind, "norm"): OF_STACKS["norm"] for kind in ("encoder", "decoder")},
}  # fmt: skip


@clause("LAYER-1")
@pytest.mark.parametrize(("kind", "setting"), KINDS, ids=["-".join(key) for key in KINDS])
def test_setting_of_a_layer_left_out_is_its_default(subject, kind, setting):
    need_calls(subject, "layers")
    default, other = KINDS[kind, setting]
    case = ModelCase(kind, {} if kind != "transformer" else SHALLOW)
    config = {name: value for name, value in case.config.items() if name != setting}
    inputs = {name: 0.05 * x[:, :3] for name, x in case.inputs().items()}  # an eps is seen
    hidden = np.arange(3) >= np.array([3, 0, 2])[:, None]
    side = "memory" if "memory" in inputs else "src"
    options = {f"{side}_key_padding_mask": hidden, "training": True, "seed": 3}
    outputs = []
    for more in ({}, {setting: default}, {setting: other}):
        parameters = ModelCase(kind, {**case.changes, **more}).parameters()
        call = (kind, config | more, parameters, inputs)
        outputs.append(subject.layer(*call, **options)["output"])
    same(outputs[1], outputs[0], f"output with the default of {setting}, and without it")
    check_default(*outputs, outputs[0], outputs[0], setting)
