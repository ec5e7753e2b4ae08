"""A mask is no array: who makes one of it is told what to write, and the rest of it still works."""

import copy
import pickle
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

LIBRARIES = ["attn_numpy", "attn_torch", "attn_jax"]
RULE = r"^a mask is not an array, write mask\.allowed\(T, S\): got"


@pytest.fixture(params=LIBRARIES)
def lib(request) -> Any:
    return import_module(request.param)


def mask_of(lib: Any, name: str) -> Any:
    masks = {
        "causal": lib.causal,
        "padding": lambda: lib.padding([3, 2]),
        "both": lambda: lib.causal() & ~lib.padding([3, 2]),
    }
    return masks[name]()


names = pytest.mark.parametrize("name", ["causal", "padding", "both"])


@names
@pytest.mark.parametrize("make", [np.asarray, np.array, jnp.asarray, jnp.array])
def test_array_of_a_mask_is_refused(lib, name, make):
    with pytest.raises(TypeError, match=RULE):
        make(mask_of(lib, name))


@names
def test_array_of_masks_or_of_a_dtype_is_refused(lib, name):
    mask = mask_of(lib, name)
    for call in (lambda: np.asarray([mask, mask]), lambda: np.asarray(mask, bool), lambda: mask[0]):
        with pytest.raises(TypeError):
            call()


@names
def test_tensor_of_a_mask_is_refused(lib, name):
    with pytest.raises((TypeError, RuntimeError)):
        torch.as_tensor(mask_of(lib, name))


@names
@pytest.mark.parametrize("ones", [np.ones, torch.ones, jnp.ones], ids=LIBRARIES)
def test_array_and_mask_are_not_combined(lib, name, ones):
    mask, array = mask_of(lib, name), ones((3, 3)) > 0
    for call in (lambda: array & mask, lambda: mask & array, lambda: array | mask):
        with pytest.raises(TypeError):
            call()


def pickled(mask: Any) -> Any:
    return pickle.loads(pickle.dumps(mask))


@names
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_of_a_mask_is_a_mask(lib, name, copied):
    mask = mask_of(lib, name)
    again = copied(mask)
    assert isinstance(again, lib.Mask)
    assert (again.allowed(3, 3) == mask.allowed(3, 3)).all()


@names
def test_a_mask_of_jax_is_a_tree(name):
    lib = import_module("attn_jax")
    mask = mask_of(lib, name)
    again = jax.tree.map(lambda leaf: leaf, mask)
    assert isinstance(again, lib.Mask)
    assert (again.allowed(3, 3) == mask.allowed(3, 3)).all()
    assert (jax.jit(lambda mask: mask.allowed(3, 3))(mask) == mask.allowed(3, 3)).all()
