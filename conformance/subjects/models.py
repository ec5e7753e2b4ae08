"""What the adapters share of models: layers and stacks, decoding with a cache, weights."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .altering import Altering
from .protocol import NotOffered

CLASSES = {
    "attention": "MultiHeadAttention",
    "encoder_layer": "TransformerEncoderLayer",
    "decoder_layer": "TransformerDecoderLayer",
    "encoder": "TransformerEncoder",
    "decoder": "TransformerDecoder",
    "transformer": "Transformer",
    "seq2seq": "Seq2SeqTransformer",
}
KINDS = {name: kind for kind, name in CLASSES.items()}


def named(kind: str, weights) -> dict[str, Any]:
    """Return each attention's weights under the attention's dotted name."""
    if kind == "encoder_layer":
        return {"self_attn": weights}
    if kind == "decoder_layer":
        return dict(zip(("self_attn", "multihead_attn"), weights, strict=True))
    if kind == "seq2seq":
        return {f"transformer.{name}": w for name, w in named("transformer", weights).items()}
    if kind == "transformer":
        parts = {"encoder": weights.encoder, "decoder": weights.decoder}
    else:
        parts = {f"layers.{i}": own for i, own in enumerate(weights)}
        kind = f"{kind}_layer"
    return {
        f"{part}.{name}": w
        for part, own in parts.items()
        for name, w in named(part if kind == "transformer" else kind, own).items()
    }


class Models(Altering):
    """Drives the models of a backend by their public names."""

    module: Any
    array: Any
    numpy: Any
    scope: Any
    options: Any

    def new(self, name: str, *args, **settings):
        """Build a model of a class, with the backend's own random source."""
        raise NotImplementedError

    def put(self, model, parameters: dict[str, np.ndarray]) -> None:
        """Put parameters into a model by their dotted names, without its own importer."""
        raise NotImplementedError

    def take(self, model) -> dict[str, np.ndarray]:
        """Return a model's parameters by their dotted names, without its own exporter."""
        raise NotImplementedError

    def cache_array(self, array: np.ndarray):
        """Return an array that a cache may write to."""
        return self.array(array)

    def count(self, projection, sent: list[int]) -> None:
        """Append to `sent` how many tokens go through a projection, call by call."""
        raise NotImplementedError

    def compiled_decode(self, model, options: dict, name: str = "decode"):
        """Return a model's method in compiled form, and what says how often it was compiled.

        `options` says which there are: their arrays are given with every call.
        """
        raise NotOffered("decoding is not compiled as a whole")

    def fresh(self, name: str, **settings):
        """Return a model that is about to be given its parameters."""
        return self.new(name, **settings)

    def settings(self, config: dict, dtype) -> dict:
        """Return a configuration with its `process_heads`, plain data, as the backend's own."""
        if not isinstance(config.get("process_heads"), dict):
            return config
        return config | {"process_heads": self.process(config["process_heads"], dtype)}

    def process(self, spec: dict, dtype):
        """Return what `rotary` or `QKNorm` makes of settings."""
        settings = {name: value for name, value in spec.items() if name != "class"}
        if spec["class"] == "rotary":
            return self.module.rotary(**settings)
        if settings.get("then") is not None:
            settings["then"] = self.process(settings["then"], dtype)
        return self.norm(dtype=dtype, **settings)

    def processed(self, spec: dict, *heads: np.ndarray) -> list[np.ndarray]:
        """Return query and key as a process changes them, at positions that are given."""
        with self.scope(heads[0].dtype.name):
            arrays = (self.array(x) for x in heads)
            return [self.numpy(x) for x in self.process(spec, heads[0].dtype)(*arrays)]

    def norm(self, **settings):
        """Return a `QKNorm`."""
        return self.new("QKNorm", **settings)

    def model(self, kind: str, config: dict, parameters: dict, training=False, seed=None):
        first = next(iter(parameters.values()), np.zeros(1, np.float32))
        config = self.settings(config, first.dtype)
        model = self.fresh(CLASSES[kind], seed=seed, dtype=first.dtype, **config)
        self.put(model, parameters)
        model.train() if training else model.eval()
        return self.alter(model)

    def layer(self, kind, config, parameters, inputs, *, training=False, seed=None, **options):
        with self.scope(_dtype(parameters)):
            model = self.model(kind, config, parameters, training, seed)
            return self._call(kind, model, inputs, options)

    def _call(self, kind: str, model, inputs: dict, options: dict) -> dict[str, np.ndarray]:
        arrays = (self.array(x) for x in inputs.values())
        given = model(*arrays, **self.options(options))
        if kind == "attention":
            named_steps = zip(("output", "weights"), given, strict=True)
            return {name: self.numpy(x) for name, x in named_steps if x is not None}
        if not options.get("need_weights"):
            return {"output": self.numpy(given)}
        output, weights = given
        found = {"output": output} | named(kind, weights)
        return {name: self.numpy(array) for name, array in found.items()}

    def decoding(
        self, kind, config, parameters, *, capacity, compiled=False, training=False, **given
    ):
        with self.scope(_dtype(parameters)):
            model = self.model(kind, config, parameters, training)
            return ModelDecoding(self, kind, model, _dtype(parameters), compiled).start(
                capacity, given
            )

    def greedy(self, config, parameters, src, prompt, **options) -> np.ndarray:
        with self.scope(_dtype(parameters)):
            model = self.model("seq2seq", config, parameters)
            arrays = (self.array(src), self.array(prompt))
            return self.numpy(self.module.greedy_decode(model, *arrays, **options))

    def export_weights(self, kind, config, parameters, layout) -> dict[str, np.ndarray]:
        with self.scope(_dtype(parameters)):
            model = self.model(kind, config, parameters)
            found = self.module.export_weights(model, layout)
            return {name: self.numpy(array) for name, array in found.items()}

    def import_weights(self, kind, config, parameters, weights, layout, **options):
        with self.scope(_dtype(parameters)):
            if isinstance(weights, str | Path):
                _need_safetensors()
            model, error = self.model(kind, config, parameters), None
            try:
                self.module.import_weights(model, weights, layout, **options)
            except (TypeError, ValueError) as refusal:
                error = refusal
            return error, {} if error and self.how == "blank" else self.take(model)

    def save(self, kind, config, parameters, path) -> None:
        _need_safetensors()
        with self.scope(_dtype(parameters)):
            self.module.save(self.model(kind, config, parameters), path)

    def load(self, path, dtype="float32"):
        _need_safetensors()
        with self.scope(dtype):
            model = self.module.load(path)
            model.eval()
            kind = KINDS[type(model).__name__]

        def run(inputs, training=False, **options):
            with self.scope(dtype):
                model.train() if training else model.eval()
                return self._call(kind, model, inputs, options)

        return self.take(model), run

    def is_tied(self, path) -> bool:
        first, second = (layer.linear1 for layer in self.module.load(path).layers[:2])
        name = "kernel" if hasattr(first, "kernel") else "weight"
        return getattr(first, name) is getattr(second, name)

    def blank(self, *shape):
        raise NotOffered("every array has values")


def _need_safetensors() -> None:
    """Raise `NotOffered` where what reads and writes files is not installed."""
    if not find_spec("safetensors"):
        raise NotOffered("files of weights need safetensors, which is not installed")


def _dtype(parameters: dict) -> str:
    return next(iter(parameters.values())).dtype.name


class ModelDecoding:
    """One decoding in progress: a model, its cache, and what a layer takes beside them."""

    def __init__(self, adapter: Models, kind: str, model, dtype: str, compiled: bool = False):
        self.adapter, self.kind, self.model, self.dtype = adapter, kind, model, dtype
        self.compiled = compiled
        self.cache: Any = None
        self.before: Any = None
        self.memory: tuple = ()
        self.sent: dict[str, list[int]] = {}
        self.call: Any = None  # the compiled form, made once

    def start(self, capacity: int, given: dict) -> "ModelDecoding":
        """Make the caches: of `batch_size` samples, or for a `memory` or a `src`."""
        if given.pop("counted", False):
            for name, attn in self._attentions():
                self.adapter.count(attn.k_proj, self.sent.setdefault(name, []))
        given = self.adapter.options(given)
        window = given.pop("window", None)
        room = {"capacity": capacity} if window is None else {"window": window}
        if self.kind == "attention":
            self.cache = self.model.new_cache(given["batch_size"], **room)
        elif self.kind == "encoder_layer":
            self.cache = self.model.self_attn.new_cache(given["batch_size"], **room)
        elif self.kind == "encoder":
            self.cache = self.model.start(given["batch_size"], **room)
        elif self.kind == "decoder_layer":
            self.memory = (self.model.multihead_attn.project(given["memory"]),)
            batch = self.memory[0].key.shape[0]
            self.cache = self.model.self_attn.new_cache(batch, **room)
        else:
            first = given.pop("memory" if self.kind == "decoder" else "src")
            self.cache = self.model.start(first, **room, **given)
        return self

    def _attentions(self) -> list[tuple[str, Any]]:
        """Return the attentions that decoding runs, by name."""
        if self.kind == "attention":
            return [("", self.model)]
        model, prefix = self.model, ""
        if self.kind == "seq2seq":
            model, prefix = model.transformer, "transformer."
        if self.kind in ("transformer", "seq2seq"):
            model, prefix = model.decoder, f"{prefix}decoder."
        layers = {prefix: model}
        if not self.kind.endswith("layer"):
            layers = {f"{prefix}layers.{i}.": layer for i, layer in enumerate(model.layers)}
        names = ("self_attn", "multihead_attn")
        return [
            (before + name, getattr(layer, name))
            for before, layer in layers.items()
            for name in names
            if hasattr(layer, name)
        ]

    def feed(self, x: np.ndarray, **options) -> np.ndarray:
        with self.adapter.scope(self.dtype):
            options = self.adapter.options(options)
            if self.compiled:
                self.call = self.call or self.adapter.compiled_decode(self.model, options)
            call = self.call[0] if self.compiled else self.model.decode
            output, cache = call(self.adapter.array(x), self.cache, *self.memory, **options)
            self.before, self.cache = self.cache, cache
            return self.adapter.numpy(output)

    def look(self, query: np.ndarray, **options) -> tuple[np.ndarray, np.ndarray]:
        """Attend from a query to the cache of an attention; return output and weights by head."""
        with self.adapter.scope(self.dtype):
            options = {"average_weights": False} | self.adapter.options(options)
            call = self.model
            if self.compiled:
                call = self.adapter.compiled_decode(self.model, options, "__call__")[0]
            given = call(self.adapter.array(query), self.cache, **options)
            return tuple(self.adapter.numpy(array) for array in given)

    @property
    def programs(self) -> int:
        return self.call[1]()

    @property
    def lengths(self) -> np.ndarray:
        return self.adapter.numpy(self.cache.lengths)

    def _with(self, cache, memory=None) -> "ModelDecoding":
        other = ModelDecoding(self.adapter, self.kind, self.model, self.dtype, self.compiled)
        other.cache, other.sent = cache, self.sent
        other.memory = self.memory if memory is None else memory
        return other

    def copy(self) -> "ModelDecoding":
        with self.adapter.scope(self.dtype):
            return self._with(self.cache.copy())

    def earlier(self) -> "ModelDecoding":
        """Return the decoding as it was before the last `feed`: a cache that was handed on."""
        return self._with(self.before)

    def reorder(self, index: np.ndarray) -> "ModelDecoding":
        with self.adapter.scope(self.dtype):
            index = self.adapter.array(index)
            memory = tuple(cache.reorder(index) for cache in self.memory)
            return self._with(self.cache.reorder(index), memory)

    def truncate(self, lengths) -> "ModelDecoding":
        with self.adapter.scope(self.dtype):
            if isinstance(lengths, np.ndarray):
                lengths = self.adapter.array(lengths)
            return self._with(self.cache.truncate(lengths))

    def poison(self, number: float) -> "ModelDecoding":
        """Return the decoding with a number in every slot that is not written."""
        with self.adapter.scope(self.dtype):
            if hasattr(self.cache, "layers"):
                layers = tuple(self._poisoned(cache, number) for cache in self.cache.layers)
                return self._with(replace(self.cache, layers=layers))
            return self._with(self._poisoned(self.cache, number))

    def _poisoned(self, cache, number: float):
        lengths = self.adapter.numpy(cache.lengths)
        unwritten = np.arange(cache.capacity) >= lengths[:, None]  # (B, C)
        arrays = []
        for array in (cache.key, cache.value):
            array = np.array(self.adapter.numpy(array))
            array[np.broadcast_to(unwritten[:, None], array.shape[:3])] = number
            arrays.append(self.adapter.cache_array(array))
        return type(cache)(*arrays, cache.lengths)
