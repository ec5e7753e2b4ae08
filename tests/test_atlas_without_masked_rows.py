"""A peer without fully masked rows passes where these alone are to blame, and nowhere else."""

import atlas_peers
import numpy as np
import pytest

from conformance.cases import multihead
from conformance.cases.attention import BY_NAME, LENGTHS, MAIN, Case
from conformance.cases.compare import check_gradients, check_output, check_steps
from conformance.mask_spec import causal, padding
from conformance.oracle import reference
from conformance.oracle.tolerance import Differs
from conformance.subjects.adapter import Plugged
from tools.atlas import without_masked_rows
from tools.atlas.without_masked_rows import WithoutMaskedRows, hidden_by

EMPTIED = ["padding", "causal_and_padding", "allow"]
HIDDEN = np.arange(7) >= np.array(LENGTHS)[:, None]
SEEN = np.broadcast_to(~HIDDEN[:, None, None], (3, 2, 5, 7))


def both(own) -> tuple[Plugged, Plugged]:
    return Plugged(own, "own"), Plugged(WithoutMaskedRows(own), "without_masked_rows")


def toy(empty: str, masks: str = "attend"):
    class Own(atlas_peers.Toy):
        capabilities = atlas_peers.Toy.capabilities - {"causal"}

    Own.empty, Own.mask_polarity = empty, masks
    return Own()


@pytest.mark.parametrize("masks", ["attend", "hide", "add"])
@pytest.mark.parametrize("empty", ["mean", "nan", "unmasked-row"])
@pytest.mark.parametrize("name", EMPTIED)
def test_what_is_made_of_empty_rows_is_no_matter(name, empty, masks):
    case = BY_NAME[name]
    assert not case.allowed().any(-1).all(), "the case has no fully masked row"
    own, fair = both(toy(empty, masks))
    with pytest.raises(Differs):
        check_steps(own, case, "float32")
    check_steps(fair, case, "float32")


def test_a_row_that_a_bias_empties_is_unmasked_too():
    own, fair = both(toy("nan"))
    inputs = Case("plain").inputs("float32")
    bias = np.where(SEEN, 0, -np.inf).astype(np.float32)
    with pytest.raises(Differs):
        check_output(own.attention(*inputs, bias=bias), *inputs, "output", allowed=SEEN)
    check_output(fair.attention(*inputs, bias=bias), *inputs, "output", allowed=SEEN)


def test_a_causal_flag_and_padding_on_the_left():
    own = toy("mean")
    own.capabilities = atlas_peers.Toy.capabilities
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(1, 2, 3, 5)).astype(np.float32) for _ in range(3)]
    hidden = np.array([[True, False, False]])
    allowed = np.tri(3, dtype=bool) & ~hidden[:, None, None]
    options = {"mask": causal() & padding(hidden=hidden)}
    allowed = np.broadcast_to(allowed, (1, 2, 3, 3))
    with pytest.raises(Differs):
        check_output(both(own)[0].attention(*inputs, **options), *inputs, "output", allowed=allowed)
    check_output(both(own)[1].attention(*inputs, **options), *inputs, "output", allowed=allowed)


@pytest.mark.parametrize("policy", ["uniform", "nan"])
@pytest.mark.parametrize("bias", [None, "rank2", "rank4"])
def test_gradients_without_the_empty_rows_are_the_oracles(bias, policy, monkeypatch):
    """What a loss does not read may still spoil a gradient: 0 times NaN is NaN."""
    monkeypatch.setattr(atlas_peers.Layer, "policy", policy)
    own, fair = both(atlas_peers.Layer())
    case = Case("padding", mask=padding(LENGTHS), bias=bias)
    with pytest.raises(Differs):
        check_gradients(own, case)
    check_gradients(fair, case)


@pytest.mark.parametrize("policy", ["uniform", "nan"])
@pytest.mark.parametrize("cls", [atlas_peers.Layer, atlas_peers.TwoMasks])
def test_an_empty_row_of_a_module_is_the_last_maps_bias(cls, policy, monkeypatch):
    monkeypatch.setattr(atlas_peers.Layer, "policy", policy)
    own, fair = both(cls())
    options = {"key_padding_mask": HIDDEN}
    with pytest.raises(Differs):
        multihead.CROSS.check(own, options, SEEN)
    multihead.CROSS.check(fair, options, SEEN)
    with pytest.raises(Differs):
        multihead.CROSS.check_gradients(own, options, SEEN)
    multihead.CROSS.check_gradients(fair, options, SEEN)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_torchs_two_masks_become_one(rank):
    own, fair = both(atlas_peers.TwoMasks())
    rng = np.random.default_rng(1)
    mask = rng.random((3, 2, 5, 7)[-rank:] if rank != 3 else (6, 5, 7)) < 0.3
    mask[..., -1] = True
    allowed = SEEN & ~(mask.reshape(3, 2, 5, 7) if rank == 3 else mask)
    rows = allowed.any(-1)
    assert (rows.any(1) == rows.all(1)).all(), "a row that is empty in some heads stays as it is"
    options = {"key_padding_mask": HIDDEN, "attn_mask": mask}
    with pytest.raises(Differs):
        multihead.CROSS.check(own, options, allowed)
    multihead.CROSS.check(fair, options, allowed)


def test_an_additive_mask_of_torchs_stays_additive():
    fair = both(atlas_peers.TwoMasks())[1]
    bias = np.random.default_rng(2).normal(size=(5, 7)).astype(np.float32)
    options = {"key_padding_mask": HIDDEN, "attn_mask": bias}
    multihead.CROSS.check(fair, options, SEEN, bias=bias)


def test_what_differs_elsewhere_still_differs():
    class Leaks(atlas_peers.Toy):
        capabilities = frozenset({"attention"})

        def attention(self, *inputs, mask=None):
            return super().attention(*inputs, mask=mask if mask is None else ~mask)

    with pytest.raises(Differs):
        check_steps(Plugged(WithoutMaskedRows(Leaks()), "leaks"), BY_NAME["padding"], "float32")


def test_a_mask_hides_by_its_own_sense():
    allowed = reference.allowed(padding(LENGTHS), MAIN.call)
    assert (hidden_by(allowed, "attend") == ~allowed).all()
    assert (hidden_by(~allowed, "hide") == ~allowed).all()
    assert (hidden_by(np.where(allowed, 0, -np.inf), "add") == ~allowed).all()
    assert not hidden_by(np.full((2, 2), -1e9), "add").any()


def test_a_peer_is_found_by_its_name_and_nothing_else_is():
    assert (
        without_masked_rows.__getattr__("atlas_peers:Mean")().attention.__func__
        is WithoutMaskedRows.attention
    )
    assert not hasattr(without_masked_rows, "pytest_plugins")
    with pytest.raises(ValueError, match="it must name a class of atlas_peers: got Nobody"):
        without_masked_rows.__getattr__("atlas_peers:Nobody")
