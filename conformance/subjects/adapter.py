"""A subject made of an adapter, the small class that calls your own implementation.

    class Subject:
        mask_polarity = "attend"  # what True says: "attend" or "hide"; "add" is 0 and -inf
        capabilities = {"attention", "bias"}

        def attention(self, query, key, value, *, mask=None, bias=None): ...

NumPy arrays go in and come out, or those that `arrays` names, shaped as the contract has them, a
mask always (B, H, T, S). An option reaches an adapter only if it is declared and a test uses it;
`docs/plug-in.md` has the rest.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from inspect import signature
from shlex import quote
from typing import Any

import numpy as np

from ..mask_spec import Spec, conjuncts, positional
from ..oracle import reference
from . import autograd
from .boundary import PluggedDecoding, ask, by_name, one, pair, two
from .native import native
from .protocol import CAPABILITIES, STEPS, NotOffered, Subject, check_capabilities, require

POLARITIES = ("attend", "hide", "add")
OPTIONS = ("bias", "scale", "softcap", "sinks", "dropout")
DTYPES = ("float64", "float32", "float16", "bfloat16")
# What an adapter cannot offer: the suite calls the project's own backends for it by name.
OURS = {"masks", "layers", "checkpoints", "errors", "blocked", "parts", "compiled", "traced",
        "counting", "transforms", "second", "autocast", "altered", "process_heads"}  # fmt: skip
METHODS = {name: name for name in ("attention", "weights", "steps", "gradients", "multihead")}
METHODS |= {"parameters": "parameters", "cache": "decoding", "small_blocks": "small_blocks"}
METHODS |= {"rotary": "rotary"}
SETTINGS = {"kdim": "widths", "vdim": "widths", "num_kv_heads": "grouped", "scale": "scale",
            "softcap": "softcap", "sinks": "sinks", "head_dim": "head_dim",
            "qkv_bias": "head_dim", "process_heads": "process_heads"}  # fmt: skip


def mask_polarity(adapter: Any) -> str:
    """Return what True says in an adapter's masks; its old name, `masks`, is read too.

    Raises ValueError where neither says it, or both do.
    """
    given = {name: getattr(adapter, name, None) for name in ("mask_polarity", "masks")}
    polarity, old = given.values()
    if polarity is not None and old is not None:
        rule = "an adapter has `mask_polarity`, or `masks` as its old name, but not both"
        raise ValueError(f"{rule}: got {polarity!r} and {old!r}")
    polarity = old if polarity is None else polarity
    if polarity not in POLARITIES:
        rule = "`mask_polarity` must say what True means: 'attend', 'hide', or 'add' for 0 and -inf"
        raise ValueError(f"{rule}: got {polarity!r}")
    if old is not None:
        words = f"`masks` is now called `mask_polarity`: write mask_polarity = {old!r} in"
        warnings.warn(f"{words} {type(adapter).__name__}", DeprecationWarning, stacklevel=3)
    return polarity


def pointed(allowed: np.ndarray, polarity: str, dtype) -> np.ndarray:
    """Return what may be seen as a mask that points the way it is asked for.

    >>> pointed(np.array([True, False]), "add", np.float32)
    array([  0., -inf], dtype=float32)
    """
    if polarity == "add":
        return np.where(allowed, 0.0, -np.inf).astype(dtype)
    return np.array(allowed if polarity == "attend" else ~allowed)


def allowed_by(spec: Spec, sizes: tuple, offset) -> np.ndarray:
    """Return where a mask allows, (B, H, T, S); an array is its own answer, without a loop."""
    if spec.kind not in ("allow", "hide"):
        return reference.allowed(spec, sizes, offset)
    array = np.broadcast_to(spec.arguments["array"], sizes)
    return array if spec.kind == "allow" else ~array


class Steps(dict):
    """The steps that a subject returns; looking for another finds that it is not offered."""

    def __missing__(self, name: str):
        raise NotOffered(f"the subject does not offer {name.replace('_', ' ')}")


class Plugged:
    """Drives an adapter; what it does not declare is not offered."""

    def __init__(self, adapter: Any, name: str, device: str = "cpu", path: str = ""):
        self.adapter, self.device = adapter, device
        self.native = native(getattr(adapter, "arrays", "numpy"), device)
        self._ask = partial(ask, self.native)
        self.asked_as = f"--subject {quote(path or name)}"
        self.name = getattr(adapter, "name", name)
        allowed = CAPABILITIES.keys() - OURS
        self.capabilities = check_capabilities(
            getattr(adapter, "capabilities", ["attention"]), allowed
        )
        not_needed = set() if "attention" in self.capabilities else {"weights", "gradients"}
        not_needed |= {"gradients"} if self.native.has_autograd else set()
        declared = [name for name in METHODS if name in self.capabilities - not_needed]
        lacking = [METHODS[name] for name in declared]
        lacking = [method for method in lacking if not callable(getattr(adapter, method, None))]
        if lacking:
            raise ValueError(f"what is declared is a method: got none of {', '.join(lacking)}")
        self.dtypes = tuple(getattr(adapter, "dtypes", ["float32"]))
        if not self.dtypes or not set(self.dtypes) <= set(DTYPES):
            raise ValueError(f"dtypes are names among {', '.join(DTYPES)}: got {adapter.dtypes!r}")
        self.mask_polarity = mask_polarity(adapter)
        words = [self.name, *self.versions(), *self.versions().values()]
        if not all(isinstance(word, str) for word in words):
            raise ValueError(f"name and versions must be texts: got {words}")

    def __getattr__(self, name: str):
        if name not in vars(Subject):  # whatever else looks at an object finds nothing, as usual
            raise AttributeError(name)
        raise NotOffered(f"{self.name} does not offer {CAPABILITIES.get(name, name)}")

    def versions(self) -> dict[str, str]:
        return dict(self.adapter.versions()) if hasattr(self.adapter, "versions") else {}

    def attention(self, query, key, value, **options) -> np.ndarray:
        require(self, "attention")
        options = self._options(query, key, options)
        return self._ask(one, self.adapter.attention, query, key, value, **options)

    def steps(self, query, key, value, **options) -> Steps:
        if not self.capabilities & {"weights", "steps"}:
            return Steps(output=self.attention(query, key, value, **options))
        require(self, "attention")
        options = self._options(query, key, options)
        if "steps" in self.capabilities:
            found = self._ask(by_name, self.adapter.steps, query, key, value, **options)
            if missing := [name for name in STEPS if name not in found]:
                raise KeyError(f"`steps` returns {', '.join(STEPS)}: got none of {missing}")
        else:
            output, weights = self._ask(pair, self.adapter.weights, query, key, value, **options)
            found = {"output": output, "weights": weights}
        return Steps(found)

    def small_blocks(self, setting: int) -> AbstractContextManager:
        require(self, "small_blocks")
        return self.adapter.small_blocks(setting)

    def gradients(self, query, key, value, grad, *, through="attention", **options):
        require(self, "gradients", *([through] if through != "attention" else []))
        options = self._options(query, key, options)
        call = getattr(self.adapter, "gradients", None)
        call = call or partial(autograd.gradients, self.native, self.adapter.attention)
        return self._ask(by_name, call, query, key, value, grad, **options)

    def processed(self, spec: dict, query, key, positions) -> list[np.ndarray]:
        require(self, "rotary")
        settings = {name: value for name, value in spec.items() if name != "class"}
        if spec["class"] != "rotary":
            raise NotOffered(f"{self.name} does not offer {spec['class']}")
        self._refuse_dtypes(query, key)
        return self._ask(two, self.adapter.rotary, query, key, positions, **settings)

    def parameters(self, config: dict) -> dict[str, np.ndarray]:
        require(self, "parameters")
        return self._ask(by_name, self.adapter.parameters, self._config(config))

    def multihead(self, config, parameters, *inputs, training=False, seed=None, **options):
        self._refuse_projected(options)
        options = self._module_options(config, inputs, options)
        options |= {"training": training} | ({} if seed is None else {"seed": seed})
        inputs, parameters = self._all_inputs(inputs), dict(parameters)
        call = self.adapter.multihead
        return self._ask(pair, call, self._config(config), parameters, *inputs, **options)

    def multihead_gradients(
        self, config, parameters, query, key, value, grad, *, training=False, seed=None, **options
    ):
        call = self._multihead_gradients(training)
        self._refuse_projected(options)
        options = self._module_options(config, (query, key, value), options)
        for name in ("need_weights", "average_weights"):
            options.pop(name)
        options |= {"training": True, "seed": seed} if training else {}
        inputs = (query, key, value, grad)
        return self._ask(by_name, call, self._config(config), dict(parameters), *inputs, **options)

    def _multihead_gradients(self, training: bool) -> Callable:
        own, declared = getattr(self.adapter, "multihead_gradients", None), self.capabilities
        if own is None and {"multihead", "gradients"} <= declared and self.native.has_autograd:
            return partial(autograd.multihead_gradients, self.native, self.adapter.multihead)
        if own is None:
            raise NotOffered(f"{self.name} does not offer gradients of multi-head attention")
        if training and "training" not in signature(own).parameters:
            raise NotOffered(f"{self.name} does not offer gradients in training")
        return own

    def _refuse_projected(self, options: dict) -> None:
        if options.get("projected"):
            raise NotOffered(f"{self.name} does not offer keys that are projected before")

    def decoding(self, kind, config, parameters, *, capacity, **given):
        """Return the adapter's own decoding: it has `feed`, and what else it declares."""
        require(self, "cache")
        if kind != "attention" or set(given) != {"batch_size"}:
            raise NotOffered(f"{self.name} does not offer decoding with {kind} like this")
        inputs = self._config(config), dict(parameters), given["batch_size"], capacity
        take = partial(PluggedDecoding, self.name)
        return self._ask(take, self.adapter.decoding, *inputs)

    def _refuse_dtypes(self, *arrays: np.ndarray) -> None:
        for array in arrays:
            if array.dtype.name not in self.dtypes:
                raise NotOffered(f"{self.name} does not offer {array.dtype.name}")

    def _options(self, query, key, options: dict) -> dict:
        self._refuse_dtypes(query, key)
        if query.shape[1] != key.shape[1]:
            require(self, "grouped")
        given = {name: value for name, value in options.items() if value is not None}
        found = {name: given[name] for name in OPTIONS if name in given}
        require(self, *found)
        if given.get("empty_rows", "zero") != "zero":
            require(self, "empty_rows")
            found["empty_rows"] = given["empty_rows"]
        if "seed" in given and "dropout" in found:
            found["seed"] = given["seed"]
        sizes = (*query.shape[:3], key.shape[2])
        offset = given.get("query_offset")
        return found | self._mask(given.get("mask"), offset, sizes, query.dtype)

    def _mask(self, spec: Spec | None, offset, sizes, dtype) -> dict:
        """Return the mask as an array; a causal part as a flag, where the adapter has one."""
        if spec is None:
            return {}
        parts, found = conjuncts(spec), {}  # type: list[Spec], dict[str, Any]
        if offset is None and "causal" in self.capabilities:
            if any(part.kind == "causal" for part in parts):
                found["causal"] = True
            parts = [part for part in parts if part.kind != "causal"]
        if offset is None and sizes[2] != sizes[3] and any(map(positional, parts)):
            raise NotOffered(f"{self.name} takes masks as arrays, which know no positions")
        if parts:
            allowed = np.all([allowed_by(part, sizes, offset) for part in parts], axis=0)
            found["mask"] = pointed(allowed, self.mask_polarity, dtype)
        return found

    def _config(self, config: dict) -> dict:
        """Return the settings of a module, all of them declared."""
        for name, capability in SETTINGS.items():
            if name in config:
                require(self, capability)
        if not config.get("batch_first", True):
            require(self, "sequence_first")
        for name, usual in (("dropout", 0.0), ("empty_rows", "zero")):
            if config.get(name, usual) != usual:
                require(self, name)
        found = {name: value for name, value in config.items() if name != "empty_rows"}
        if "empty_rows" in self.capabilities:
            found["empty_rows"] = config.get("empty_rows", "zero")
        return found

    def _all_inputs(self, inputs: tuple) -> tuple:
        """Fill in what is left out, as the contract has it: key is the query, value the key."""
        query, key, value = (*inputs, None, None)[:3]
        key = query if key is None else key
        return query, key, key if value is None else value

    def _module_options(self, config: dict, inputs: tuple, options: dict) -> dict:
        require(self, "multihead")
        query, key, _ = self._all_inputs(inputs)
        axes = (0, 1) if config.get("batch_first", True) else (1, 0)
        (B, T), S = (query.shape[axis] for axis in axes), key.shape[axes[1]]
        sizes = (B, config["num_heads"], T, S)
        wanted = "weights" in self.capabilities and options.get("need_weights", True)
        found = {"need_weights": wanted, "average_weights": options.get("average_weights", True)}
        padding, mask = options.get("key_padding_mask"), options.get("attn_mask")
        offset = options.get("query_offset")
        if isinstance(padding, Spec):  # it goes by keys alone
            padding = ~self._allowed(padding, offset, sizes)[:, 0, 0]
        if "attn_mask" in self.capabilities:
            return found | self._as_torch(padding, mask, offset, sizes)
        return found | self._merged(padding, mask, offset, sizes, query.dtype)

    def _as_torch(self, padding, attn_mask, offset, sizes: tuple) -> dict:
        """Return the two masks as they are; a Mask as (B, H, T, S), True where hidden."""
        if isinstance(attn_mask, Spec):
            attn_mask = ~self._allowed(attn_mask, offset, sizes)
        found = {"key_padding_mask": padding, "attn_mask": attn_mask}
        return {name: mask for name, mask in found.items() if mask is not None}

    def _merged(self, padding, attn_mask, offset, sizes: tuple, dtype) -> dict:
        """Return the two masks as one, and what is added to the scores as a bias."""
        allowed, found = np.ones(sizes, bool), {}  # type: np.ndarray, dict[str, Any]
        if padding is not None:
            allowed = allowed & ~padding[:, None, None]
        if isinstance(attn_mask, Spec):
            allowed = allowed & self._allowed(attn_mask, offset, sizes)
        elif attn_mask is not None:
            if attn_mask.ndim == 3:
                require(self, "attn_mask")
            if attn_mask.dtype == bool:
                allowed = allowed & ~attn_mask
            else:
                require(self, "bias")
                found["bias"] = np.array(np.broadcast_to(attn_mask, sizes))
        return (
            found
            if allowed.all()
            else found | {"mask": pointed(allowed, self.mask_polarity, dtype)}
        )

    def _allowed(self, spec: Spec, offset, sizes) -> np.ndarray:
        if offset is None and sizes[2] != sizes[3] and positional(spec):
            raise NotOffered(f"{self.name} takes masks as arrays, which know no positions")
        return reference.allowed(spec, sizes, offset)
