"""attn_numpy under test. Its inputs are read-only, so that a write to one is an error."""

from contextlib import contextmanager, nullcontext

import numpy as np

import attn_numpy
from attn_numpy import threads
from attn_numpy.layers import Module

from .rosetta import Rosetta


def devices() -> list[str]:
    return ["cpu"]


class Adapter(Rosetta):
    """The forward only: NumPy has no gradients and nothing to compile."""

    name = "numpy"
    packages = ("numpy",)
    capabilities = Rosetta.capabilities | {"any_shape"}
    small = (
        {"blocked": {"LONE_CELLS": 0, "FEW_KEYS": 0, "ROWS": 2, "COLUMNS": 3, "CELLS": 12,
                     "TURNED": 3, "THREAD_CELLS": 1}},
        {"blocked": {"LONE_CELLS": 0, "FEW_ROWS": 2, "CELLS": 60, "TURNED": 1000,
                     "THREAD_CELLS": 30}},
        {"blocked": {"LONE_CELLS": 0, "FEW_KEYS": 0, "ROWS": 3, "COLUMNS": 2, "CELLS": 45}},
    )  # fmt: skip

    def __init__(self, device: str = "cpu"):
        super().__init__(attn_numpy, device)

    @contextmanager
    def small_blocks(self, setting):
        """More threads than BLAS has been given are used, too, where threadpoolctl is there."""
        blas = threads._blas()
        more = nullcontext() if blas is None else blas.limit(limits=3)
        with super().small_blocks(setting), more:
            yield

    def array(self, array):
        view = np.asarray(array).view()
        view.flags.writeable = False
        return view

    def numpy(self, array):
        return np.asarray(array)

    def random(self, seed):
        return {"rng": np.random.default_rng(seed)}

    def cache_array(self, array):
        return np.array(array)

    def wrap(self, projection, weight=None):
        return AroundNumpy(projection, weight)

    def alter_mixed(self, model):
        norm = model.layers[0].norm1
        norm.weight = norm.weight.astype(np.float16)
        return model

    def new(self, name, *args, seed=None, **settings):
        return getattr(attn_numpy, name)(*args, **settings, **self.random(seed or 0))

    def norm(self, **settings):
        return self.module.QKNorm(**settings)

    def put(self, model, parameters):
        places = model.parameters()
        for name, array in parameters.items():
            module, attribute = places[name]
            setattr(module, attribute, self.array(array))

    def take(self, model):
        return {name: getattr(*place) for name, place in model.parameters().items()}

    def count(self, projection, sent):
        own = type(projection)

        def call(self, x):
            sent.append(x.shape[0] * x.shape[1])
            return own.__call__(self, x)

        projection.__class__ = type("Counting", (own,), {"__call__": call})

    def module_with(self, config, parameters, training=False, seed=None):
        dtype = parameters["q_proj.weight"].dtype if parameters else np.float32
        config = self.settings(config, dtype)
        attn = attn_numpy.MultiHeadAttention(**config, dtype=dtype, **self.random(seed or 0))
        self.put(attn, parameters)
        return attn.train(training)

    def parameters(self, config):
        return self.take(self.module_with(config, {}))


class AroundNumpy(Module):
    """A module that calls another, as an adapter of low rank does."""

    def __init__(self, inner, weight):
        self.inner = inner
        if weight is not None:
            self.weight = weight

    def __call__(self, x):
        return self.inner(x)
