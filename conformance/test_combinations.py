"""The chapter of options that meet: every pair of values of a call's options, against the oracle.

`cases/combinations.py` names the options and what never meets. What a subject does not offer is
left at its plain value, and the rest of the row is checked. Where every new shape would cost a
compilation, a few rows are run: of attention and multi-head attention enough to have every value,
of layers those of a decoder's layer, of decoding none.
"""

import pytest

from .cases import combinations, combined, combined_decoding, combined_models
from .cases.combinations import PLANS
from .contract import clause
from .subjects.protocol import NotOffered, require

ATTENTION = combinations.rows("attention")
MULTIHEAD = combinations.rows("multihead")
BACKWARD = [name for name, row in ATTENTION.items() if row["path"] in combinations.BACKWARD]
DIRTY = [name for name, row in ATTENTION.items() if row["garbage"] != "none"]
MULTIHEAD_BACKWARD = [name for name, row in MULTIHEAD.items() if row["path"] == "gradients"]
LAYERS = combinations.rows("layers")
DECODING = combinations.rows("decoding")
SMALL: dict = {"layers": ("decoder_layer",), "decoding": ()}
FEW = {name: combinations.each_value(combinations.rows(name), SMALL.get(name)) for name in PLANS}


def run(subject, plan: str, rows: dict[str, dict[str, str]], name: str, make, check="check"):
    """Check a row; where it fails, the error says what was in it."""
    if name not in FEW[plan]:
        require(subject, "any_shape")
    row = combined.reduced(subject, plan, rows[name])
    try:
        getattr(make(row), check)(subject)
    except NotOffered:
        raise
    except Exception as error:
        plain = PLANS[plan].plain
        told = {option: value for option, value in row.items() if value != plain[option]}
        error.add_note(f"{plan} with {', '.join(f'{o}={v}' for o, v in told.items()) or 'nothing'}")
        raise


@clause("ATT-9")
@pytest.mark.parametrize("name", [n for n in ATTENTION if n not in DIRTY])
def test_options_of_attention(subject, name):
    run(subject, "attention", ATTENTION, name, combined.attention)


@clause("CLEAN-2")
@pytest.mark.parametrize("name", DIRTY)
def test_options_of_attention_beside_hidden_garbage(subject, name):
    run(subject, "attention", ATTENTION, name, combined.attention)


@clause("GRAD-1")
@pytest.mark.parametrize("name", [n for n in BACKWARD if n not in DIRTY])
def test_options_of_attentions_gradients(subject, name):
    run(subject, "attention", ATTENTION, name, combined.attention, "check_gradients")


@clause("CLEAN-3")
@pytest.mark.parametrize("name", [n for n in BACKWARD if n in DIRTY])
def test_options_of_attentions_gradients_beside_hidden_garbage(subject, name):
    run(subject, "attention", ATTENTION, name, combined.attention, "check_gradients")


@clause("MHA-4")
@pytest.mark.parametrize("name", MULTIHEAD)
def test_options_of_multihead_attention(subject, name):
    run(subject, "multihead", MULTIHEAD, name, combined_models.MultiHeadRow)


@clause("GRAD-2")
@pytest.mark.parametrize("name", MULTIHEAD_BACKWARD)
def test_options_of_multihead_attentions_gradients(subject, name):
    run(subject, "multihead", MULTIHEAD, name, combined_models.MultiHeadRow, "check_gradients")


@clause("LAYER-2")
@pytest.mark.parametrize("name", LAYERS)
def test_options_of_layers(subject, name):
    run(subject, "layers", LAYERS, name, combined_models.LayersRow)


@clause("CACHE-2")
@pytest.mark.parametrize("name", DECODING)
def test_options_of_decoding(subject, name):
    run(subject, "decoding", DECODING, name, combined_decoding.DecodingRow)
