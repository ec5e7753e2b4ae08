"""attn_jax under test, on any platform that JAX reports; float64 calls run with x64 enabled."""

from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import attn_jax

from .jax_transforms import JaxTransforms
from .native_jax import JaxArrays
from .protocol import TILE, NotOffered
from .rosetta import Rosetta, projected_by

WEIGHTS = ("kernel", "scale", "embedding")  # what flax calls a weight, by the module


def devices() -> list[str]:
    found = ["cpu"]
    for platform in ("gpu", "tpu"):
        try:
            found += [platform] if jax.devices(platform) else []
        except RuntimeError:
            continue
    return found


@partial(jax.jit, static_argnames=("path", "static"))
def _gradients(leaves, traced, grad, path, static):
    """Differentiate in one compiled function, so that equal structures compile once."""

    def call(leaves):
        leaves = dict(leaves)
        inputs = [leaves.pop(name) for name in ("query", "key", "value")]
        options = dict(static)
        if "seed" in options:  # an nnx.Rngs must be used where it was made
            options["rngs"] = nnx.Rngs(options.pop("seed"))
        return path(*inputs, **leaves, **traced, **options)

    return jax.vjp(call, leaves)[1](grad)[0]


def _recomputed(*inputs, **options):
    """Attend by `jax.checkpoint`, to which masks and arrays are given."""
    traced = {n: options.pop(n) for n in ("mask", "query_offset", "bias", "sinks") if n in options}

    @jax.checkpoint
    def call(query, key, value, traced):
        return attn_jax.attention(query, key, value, **traced, **options)

    return call(*inputs, traced)


class Adapter(JaxArrays, JaxTransforms, Rosetta):
    """Matrix products run at the highest precision."""

    name = "jax"
    packages = ("jax", "jaxlib", "flax")
    capabilities = Rosetta.capabilities | {
        "gradients", "compiled", "traced", "transforms", "second"
    }  # fmt: skip
    small = (
        {"blocked": {"LONE_CELLS": 0, "ROWS": TILE[0], "COLUMNS": TILE[1]}},
        {"blocked": {"LONE_CELLS": 0, "ROWS": 3, "COLUMNS": 4, "HEADS": (2, 1)}},
        {"blocked": {"LONE_CELLS": 0, "ROWS": 3, "COLUMNS": 8, "HEADS": (1, 2)}},
    )

    def __init__(self, device: str = "cpu"):
        super().__init__(attn_jax, device)
        self.setting: int | None = None  # of the small blocks in use
        jax.config.update("jax_default_matmul_precision", "highest")

    @contextmanager
    def small_blocks(self, setting):
        before, self.setting = self.setting, setting % len(self.small)
        try:
            with super().small_blocks(setting):
                yield
        finally:
            self.setting = before

    def path(self, through, tile=TILE):
        return self._path(through, tile, self.setting)

    @cache  # noqa: B019 - one object a path and setting, so that jit knows it again
    def _path(self, through, tile, setting):
        if through == "remat":
            return _recomputed
        path = super().path(through, tile)
        return path if setting is None else partial(path)  # what was traced is cut otherwise

    def random(self, seed):
        return {"rngs": nnx.Rngs(seed)}

    def compiled(self, query, key, value, *, through="attention", **options):
        with self.scope(query.dtype.name):
            arrays = [self.array(x) for x in (query, key, value)]
            options = self.options(options)
            arrays_of = ("mask", "bias", "sinks")
            traced = {name: options.pop(name) for name in arrays_of if name in options}
            own = attn_jax.attention_steps if through == "steps" else attn_jax.attention

            @jax.jit
            def call(query, key, value, traced):
                return own(query, key, value, **traced, **options)

            found = call(*arrays, traced)
            named = found._asdict() if through == "steps" else {"output": found}
            return {name: self.numpy(array) for name, array in named.items()}

    def gradients(self, query, key, value, grad, *, through="attention", **options):
        with self.scope(query.dtype.name):
            inputs = {"query": query, "key": key, "value": value}
            leaves = {name: self.array(x) for name, x in inputs.items()}
            seed = {n: options.pop(n) for n in ("seed",) if n in options}
            options = self.options(options) | seed
            for name in ("bias", "sinks"):
                if options.get(name) is not None:
                    leaves[name] = options.pop(name)
            traced = {n: options.pop(n) for n in ("mask", "query_offset") if n in options}
            static = tuple(options.items())
            found = _gradients(leaves, traced, self.array(grad), self.path(through), static)
            return {name: self.numpy(x) for name, x in found.items()}

    def finished_compiled(self, query, pieces, options):
        static = [
            {name: piece.pop(name) for name in {"scale", "softcap"} & piece.keys()}
            for piece in pieces
        ]

        @jax.jit
        def call(query, pieces):
            both = zip(pieces, static, strict=True)
            return self.finished(query, [piece | own for piece, own in both], options)

        return call(query, pieces)

    def merged_gradients(self, query, pieces, grads, **options):
        with self.scope(query.dtype.name):
            pieces = self.crossed(pieces)
            names = {"key", "value", "bias"} & pieces[0].keys()
            leaves = [{name: piece.pop(name) for name in names} for piece in pieces]

            more = self.options(options)
            alone = {"query": self.array(query)}
            alone |= {name: more.pop(name) for name in {"sinks"} & more.keys()}

            def call(alone, leaves):
                both, own = zip(pieces, leaves, strict=True), dict(alone)
                given = own.pop("query"), [piece | arrays for piece, arrays in both]
                part, output = self.finished(*given, more | own)
                return [{"output": output, "lse": part.lse}[name] for name in grads]

            pull = jax.vjp(call, alone, leaves)[1]
            d_alone, by_piece = pull([self.array(grad) for grad in grads.values()])
            found = {name: [self.numpy(own[name]) for own in by_piece] for name in names}
            return found | {name: self.numpy(array) for name, array in d_alone.items()}

    def new(self, name, *args, seed=None, **settings):
        return getattr(attn_jax, name)(*args, **settings, rngs=nnx.Rngs(seed or 0))

    @cache  # noqa: B019 - building draws all weights, which takes longer than most tests
    def built(self, name, settings):
        return self.new(name, **dict(settings))

    def fresh(self, name, **settings):
        return nnx.clone(self.built(name, tuple(sorted(settings.items()))))

    def put(self, model, parameters):
        for name, array in parameters.items():
            *path, kind = name.split(".")
            module = model
            for step in path:
                module = module[int(step)] if step.isdigit() else getattr(module, step)
            own = (
                kind
                if kind in ("bias", "sinks")
                else next(n for n in WEIGHTS if hasattr(module, n))
            )
            array = self.array(array)
            getattr(module, own)[...] = array.T if own == "kernel" else array

    def take(self, model):
        return self._by_name(nnx.state(model, nnx.Param))

    def count(self, projection, sent):
        own = type(projection)

        def call(self, x):
            sent.append(x.shape[0] * x.shape[1])
            return own.__call__(self, x)

        projection.__class__ = type("Counting", (own,), {"__call__": call})

    def compiled_decode(self, model, options, name="decode"):
        graph, state = nnx.split(model)
        traces: list[int] = []
        fixed = {n: x for n, x in options.items() if not isinstance(x, jax.Array)}

        @jax.jit
        def call(state, arrays, x, *caches):
            traces.append(1)
            return getattr(nnx.merge(graph, state), name)(x, *caches, **fixed, **arrays)

        def called(x, *caches, **now):
            if now.keys() != options.keys():
                raise NotOffered("one program takes the options that it was compiled with")
            return call(state, {n: x for n, x in now.items() if n not in fixed}, x, *caches)

        return called, lambda: len(traces)

    def module_with(self, config, parameters, training=False, seed=None):
        dtype = parameters["q_proj.weight"].dtype if parameters else np.float32
        config = self.settings(config, dtype)
        attn = attn_jax.MultiHeadAttention(**config, dtype=dtype, rngs=nnx.Rngs(seed or 0))
        self.put(attn, parameters)
        attn.train() if training else attn.eval()
        return attn

    def parameters(self, config):
        return self._by_name(nnx.state(self.module_with(config, {}), nnx.Param))

    def _by_name(self, state) -> dict[str, np.ndarray]:
        found = {}
        for path, parameter in nnx.to_flat_state(state):
            *modules, kind = map(str, path)
            array = self.numpy(parameter[...])
            name = ".".join([*modules, "weight" if kind in WEIGHTS else kind])
            found[name] = array.T if kind == "kernel" else array
        return found

    def multihead_gradients(
        self, config, parameters, query, key, value, grad, *, training=False, seed=None,
        projected=False, **options,
    ):  # fmt: skip
        with self.scope(query.dtype.name):
            attn = self.module_with(config, parameters, training, seed)
            inputs = {"query": query, "key": key, "value": value}
            inputs = {name: self.array(x) for name, x in inputs.items() if x is not None}
            options, grad = self.options(options), self.array(grad)

            @nnx.jit
            def found(attn, inputs):
                def loss(attn, inputs):
                    given: Any = [inputs.get(name) for name in ("query", "key", "value")]
                    given = projected_by(attn, *given) if projected else given
                    return (attn(*given, **options)[0] * grad).sum()

                return nnx.grad(loss, argnums=(0, 1))(attn, inputs)

            by_parameter, by_input = found(attn, inputs)
            named = {name: self.numpy(x) for name, x in by_input.items()}
            return named | self._by_name(by_parameter)

    def layer_gradients(
        self, kind, config, parameters, inputs, grad, *, training=False, seed=None, **options
    ):
        with self.scope(grad.dtype.name):
            model = self.model(kind, config, parameters, training, seed)
            arrays = {name: self.array(x) for name, x in inputs.items()}
            leaves = {n: x for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
            options, grad = self.options(options), self.array(grad)

            @nnx.jit
            def found(model, leaves):
                def loss(model, leaves):
                    given = [leaves.get(name, x) for name, x in arrays.items()]
                    return (model(*given, **options) * grad).sum()

                return nnx.grad(loss, argnums=(0, 1))(model, leaves)

            by_parameter, by_input = found(model, leaves)
            named = {name: self.numpy(x) for name, x in by_input.items()}
            return named | self._by_name(by_parameter)

    def traced(self, call):
        """Run a call under jax.jit; its arrays are made by a factory and are all traced."""

        def body(zero):
            return call(_Traced(self, zero))

        return jax.jit(body)(jnp.zeros((), jnp.int32))


class _Traced:
    """Makes arrays that depend on a traced zero, so that nobody can look at their values."""

    def __init__(self, adapter: Adapter, zero):
        self.adapter, self.zero = adapter, zero

    def __call__(self, *shape: int, dtype: str = "float32"):
        return (jnp.zeros(shape) + self.zero).astype(dtype)

    def module(self, embed_dim, num_heads, **settings):
        config = {"embed_dim": embed_dim, "num_heads": num_heads} | settings
        return self.adapter.module_with(config, {})

    def new(self, name, *args, **settings):
        return self.adapter.new(name, *args, **settings)
