"""What the adapters of the three backends share, because the three have the same names."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import count
from typing import Any
from unittest import mock

import numpy as np

from ..mask_spec import Spec
from .models import Models
from .protocol import CAPABILITIES, TILE

# What NumPy has none of, or one framework alone
OF_FRAMEWORKS = {"gradients", "compiled", "traced", "any_shape", "transforms", "second", "autocast"}


class Rosetta(Models):
    """Drives a backend module by its public names; arrays cross in `array` and `numpy`."""

    name = ""
    packages: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16")
    capabilities = frozenset(CAPABILITIES) - OF_FRAMEWORKS
    # Constants that cut a call, by module: small ones, for each setting of `small_blocks`.
    small: tuple[dict[str, dict], ...] = ()

    def __init__(self, module, device: str):
        self.module, self.device = module, device
        self.asked_as = f"--backend {self.name}"

    def array(self, array: np.ndarray):
        raise NotImplementedError

    def numpy(self, array) -> np.ndarray:
        raise NotImplementedError

    def random(self, seed: int) -> dict:
        """Return the keyword by which the backend takes its random source."""
        raise NotImplementedError

    def scope(self, dtype: str):
        """Return the context in which a call with this dtype runs."""
        return nullcontext()

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in self.packages}

    def mask(self, spec: Spec | None):
        """Build the backend's mask."""
        if spec is None:
            return None
        parts = [self.mask(part) for part in spec.parts]
        match spec.kind:
            case "and":
                return parts[0] & parts[1]
            case "or":
                return parts[0] | parts[1]
            case "not":
                return ~parts[0]
        arguments = {name: self._cross(value) for name, value in spec.arguments.items()}
        if spec.kind == "part":
            return parts[0].part(**arguments)
        return getattr(self.module, spec.kind)(**arguments)

    def _cross(self, value):
        if isinstance(value, Spec):
            return self.mask(value)
        return self.array(value) if isinstance(value, np.ndarray) else value

    def builder(self, call):
        """Return how a call is made of its arrays, as a function of them.

        What is known before stays outside, so that a compiler has little to read.
        """
        return self._builder(call, count())

    def _builder(self, tree, places):
        if isinstance(tree, np.ndarray):
            place = next(places)
            return lambda arrays: arrays[place]
        if isinstance(tree, Mapping):
            named = {name: self._builder(value, places) for name, value in tree.items()}
            return lambda arrays: {name: make(arrays) for name, make in named.items()}
        if not isinstance(tree, Spec):
            return lambda arrays: tree
        if tree.kind == "not":
            own = self._builder(tree.parts[0], places)
            return lambda arrays: own(arrays).__invert__()  # torch's compiler knows no ~ of objects
        if tree.kind == "part":
            whole, own = (self._builder(x, places) for x in (tree.parts[0], tree.arguments))
            return lambda arrays: whole(arrays).part(**own(arrays))
        if tree.parts:
            first, second = (self._builder(part, places) for part in tree.parts)
            if tree.kind == "and":
                return lambda arrays: first(arrays) & second(arrays)
            return lambda arrays: first(arrays) | second(arrays)
        constructor = getattr(self.module, tree.kind)
        arguments = self._builder(tree.arguments, places)
        return lambda arrays: constructor(**arguments(arrays))

    def options(self, options: dict) -> dict:
        """Translate the options of a call: masks, arrays, and a seed for a random source."""
        options = {name: self._cross(value) for name, value in options.items()}
        seed = options.pop("seed", None)
        return options if seed is None else options | self.random(seed)

    def sequence_mask(self, tokens, padding_idx):
        with self.scope("float32"):
            return self.numpy(self.module.sequence_mask(self.array(tokens), padding_idx))

    def look_ahead_mask(self, tgt_len, src_len):
        with self.scope("float32"):
            return self.numpy(self.module.look_ahead_mask(tgt_len, src_len))

    def ask(self, question, spec, *args, **options):
        with self.scope("float32"):
            answer = getattr(self.mask(spec), question)(*args, **self.options(options))
            return answer if isinstance(answer, str) else self.numpy(answer)

    def attention(self, query, key, value, **options):
        with self.scope(query.dtype.name):
            arrays = (self.array(x) for x in (query, key, value))
            return self.numpy(self.module.attention(*arrays, **self.options(options)))

    def steps(self, query, key, value, **options):
        with self.scope(query.dtype.name):
            arrays = (self.array(x) for x in (query, key, value))
            steps = self.module.attention_steps(*arrays, **self.options(options))
            return {name: self.numpy(array) for name, array in steps._asdict().items()}

    def blocked(self, query, key, value, *, tile, **options):
        with self.scope(query.dtype.name):
            arrays = (self.array(x) for x in (query, key, value))
            call = self.path("blocked", tile)
            return self.numpy(call(*arrays, **self.options(options)))

    def merged(self, query, pieces, *, through="attention", **options):
        with self.scope(query.dtype.name):
            call = self.finished if through == "attention" else self.finished_compiled
            part, output = call(self.array(query), self.crossed(pieces), self.options(options))
            arrays = part._asdict() | {"lse": part.lse, "output": output}
            return {name: self.numpy(array) for name, array in arrays.items()}

    def finished_compiled(self, query, pieces, options):
        """Return what `finished` does, of one compiled call."""
        raise NotImplementedError

    def crossed(self, pieces: list) -> list:
        """Translate the pieces of a split call; those in a list of their own are merged first."""
        return [self.crossed(x) if isinstance(x, list) else self.options(x) for x in pieces]

    def finished(self, query, pieces, options):
        """Return the part that pieces give together, and its output."""
        part = self._merged(query, pieces)
        return part, self.module.finish(part, query.dtype, **options)

    def _merged(self, query, pieces):
        call = self.module.attention_part
        parts = [
            self._merged(query, x) if isinstance(x, list) else call(query, **x) for x in pieces
        ]
        return self.module.merge(*parts)

    def path(self, through: str, tile=TILE):
        """Return one of the ways to an output, as a function of attention's arguments."""
        if through == "blocked":
            return partial(self._attend_blocked, tile=tile)
        if through == "steps":
            return lambda *inputs, **options: self.module.attention_steps(*inputs, **options).output
        return self.module.attention

    @contextmanager
    def small_blocks(self, setting: int) -> Iterator[None]:
        with ExitStack() as stack:
            for name, constants in self.small[setting % len(self.small)].items():
                module = import_module(f"{self.module.__name__}.{name}")
                stack.enter_context(mock.patch.multiple(module, **constants))
            yield

    def _attend_blocked(self, query, key, value, tile, **options):
        blocked, calls = (import_module(f"{self.module.__name__}.{n}") for n in ("blocked", "call"))
        call = calls.check_call(query, key, value, **options)
        return blocked.attention_blocked(query, key, value, call, tile=tile)

    def module_with(self, config: dict, parameters: dict, training: bool, seed: int | None):
        """Build a multi-head attention, by its own names, and put the parameters in."""
        raise NotImplementedError

    def multihead(
        self, config, parameters, *inputs, training=False, seed=None, projected=False, **options
    ):
        with self.scope(inputs[0].dtype.name):
            attn = self.alter(self.module_with(config, parameters, training, seed))
            arrays: Any = [None if x is None else self.array(x) for x in inputs]
            arrays = projected_by(attn, *arrays) if projected else arrays
            if isinstance(projected, list):
                arrays = arrays[0], arrays[1].truncate(self.array(np.array(projected)))
            output, weights = attn(*arrays, **self.options(options))
            return self.numpy(output), None if weights is None else self.numpy(weights)


def projected_by(attn, query, *memory) -> tuple:
    """Return a query and what an attention makes of keys and values once, for many calls."""
    return query, attn.project(*memory)
