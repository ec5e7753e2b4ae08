"""attn_torch under test, on any device that torch reports."""

import os
from contextlib import contextmanager
from functools import partial
from shutil import which

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

import attn_torch

from .native_torch import TorchArrays
from .protocol import TILE, NotOffered
from .rosetta import Rosetta, projected_by
from .torch_transforms import TorchTransforms


def devices() -> list[str]:
    found = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    return ["cpu", *(name for name, there in found.items() if there)]


class Adapter(TorchArrays, TorchTransforms, Rosetta):
    """Matrix products run in full float32: TF32 is off."""

    name = "torch"
    packages = ("torch",)
    capabilities = Rosetta.capabilities | {
        "gradients", "compiled", "any_shape", "transforms", "second", "autocast"
    }  # fmt: skip
    small = (
        {"blocked": {"ROWS": 2, "COLUMNS": 3, "THREADS": 3, "THREAD_CELLS": 1},
         "everyday": {"CALL": 1, "ROW": 1, "DENSE": 0},
         "plan": {"CPU_SCORES": 8, "SCORES": 8}, "fused": {"STEP_NUMBERS": 1}},
        {"blocked": {"ROWS": 3, "COLUMNS": 2, "THREADS": 1},
         "everyday": {"CALL": 1, "ROW": 1},
         "plan": {"CPU_SCORES": 60, "SCORES": 60}, "fused": {"STEP_NUMBERS": 4 * 7 * 7}},
        {"blocked": {"ROWS": 1, "COLUMNS": 4, "THREADS": 8, "THREAD_CELLS": 1},
         "everyday": {"CALL": 40, "ROW": 2, "DENSE_HEAD": 34},
         "plan": {"CPU_SCORES": 16, "SCORES": 16}, "fused": {"STEP_NUMBERS": 3 * 7 * 7}},
    )  # fmt: skip

    def __init__(self, device: str = "cpu"):
        super().__init__(attn_torch, device)
        torch.backends.cuda.matmul.allow_tf32 = False
        if device == "mps":
            self.dtypes = tuple(name for name in self.dtypes if name != "float64")

    def versions(self):
        return {"torch": torch.__version__}

    @contextmanager
    def small_blocks(self, setting):
        """Three threads are used, on one core too."""
        before = torch.get_num_threads()
        with super().small_blocks(setting):
            torch.set_num_threads(3)
            try:
                yield
            finally:
                torch.set_num_threads(before)

    def array(self, array):
        """Keep a broadcast array broadcast."""
        array = np.asarray(array)
        axes = zip(array.strides, array.shape, strict=True)
        repeated = [not step and size > 1 for step, size in axes]
        base = array[tuple(slice(0, 1) if r else slice(None) for r in repeated)]
        return super().array(base).expand(array.shape)

    def random(self, seed):
        return {"generator": torch.Generator(self.device).manual_seed(seed)}

    def new(self, name, *args, seed=None, dtype=np.float32, **settings):
        if seed is not None:
            torch.manual_seed(seed)
        dtype = self.array(np.zeros(0, dtype)).dtype
        return getattr(attn_torch, name)(*args, **settings, device=self.device, dtype=dtype)

    def put(self, model, parameters):
        model.load_state_dict({name: self.array(x) for name, x in parameters.items()})

    def take(self, model):
        return {name: self.numpy(parameter) for name, parameter in model.named_parameters()}

    def load(self, path, dtype="float32"):
        with torch.device(self.device):
            return super().load(path, dtype)

    def count(self, projection, sent):
        projection.register_forward_pre_hook(lambda _, x: sent.append(x[0][..., 0].numel()))

    def path(self, through, tile=TILE):
        if through == "compiled":
            return self._compile(attn_torch.attention)
        if through == "remat":
            return partial(checkpoint, attn_torch.attention, use_reentrant=False)
        return super().path(through, tile)

    def compiled(self, query, key, value, *, through="attention", **options):
        arrays = [self.array(x) for x in (query, key, value)]
        own = attn_torch.attention_steps if through == "steps" else attn_torch.attention
        found = self._compile(own)(*arrays, **self.options(options))
        named = found._asdict() if through == "steps" else {"output": found}
        return {name: self.numpy(array) for name, array in named.items()}

    def _compile(self, function, **options):
        """Compile afresh: after a few shapes of one function torch would go on uncompiled."""
        self.need_compiler()
        torch.compiler.reset()
        return torch.compile(function, **options)

    def need_compiler(self):
        _need_compiler(self.device)

    def gradients(self, query, key, value, grad, *, through="attention", **options):
        inputs = {"query": query, "key": key, "value": value}
        leaves = {name: self.array(x).clone().requires_grad_() for name, x in inputs.items()}
        options = self.options(options)
        for name in ("bias", "sinks"):
            if options.get(name) is not None:
                leaves[name] = options[name] = options[name].clone().requires_grad_()
        output = self.path(through)(*list(leaves.values())[:3], **options)
        output.backward(self.array(grad))
        return {name: self.numpy(leaf.grad) for name, leaf in leaves.items()}

    def finished_compiled(self, *given):
        return self._compile(self.finished, fullgraph=True)(*given)

    def merged_gradients(self, query, pieces, grads, **options):
        query, pieces = self.array(query).clone().requires_grad_(), self.crossed(pieces)
        leaves: dict = {"query": [query]}
        for name in ("key", "value", "bias"):
            leaves[name] = [
                piece[name].clone().requires_grad_() for piece in pieces if name in piece
            ]
            for piece, leaf in zip(pieces, leaves[name], strict=False):
                piece[name] = leaf
        options = self.options(options)
        if "sinks" in options:
            options["sinks"] = options["sinks"].clone().requires_grad_()
            leaves["sinks"] = [options["sinks"]]
        part, output = self.finished(query, pieces, options)
        arrays = [{"output": output, "lse": part.lse}[name] for name in grads]
        torch.autograd.backward(arrays, [self.array(grad) for grad in grads.values()])
        found: dict = {}
        for name, parts in leaves.items():
            slopes = [torch.zeros_like(x) if x.grad is None else x.grad for x in parts]
            found |= {name: [self.numpy(slope) for slope in slopes]} if parts else {}
        alone = {name: found[name][0] for name in ("query", "sinks") if name in found}
        return found | alone

    def module_with(self, config, parameters, training=False, seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        dtype = self.array(parameters["q_proj.weight"]).dtype if parameters else None
        config = self.settings(
            config, parameters["q_proj.weight"].dtype if parameters else "float32"
        )
        attn = attn_torch.MultiHeadAttention(**config, device=self.device, dtype=dtype)
        if parameters:
            attn.load_state_dict({name: self.array(x) for name, x in parameters.items()})
        return attn.train(training)

    def parameters(self, config):
        named = self.module_with(config, {}).named_parameters()
        return {name: self.numpy(parameter) for name, parameter in named}

    def multihead_gradients(
        self, config, parameters, query, key, value, grad, *, training=False, seed=None,
        projected=False, **options,
    ):  # fmt: skip
        attn = self.module_with(config, parameters, training, seed)
        inputs = {"query": query, "key": key, "value": value}
        inputs = {name: self.array(x) for name, x in inputs.items() if x is not None}
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        given = projected_by(attn, *leaves.values()) if projected else leaves.values()
        attn(*given, **self.options(options))[0].backward(self.array(grad))
        leaves |= dict(attn.named_parameters())
        return {name: self.numpy(leaf.grad) for name, leaf in leaves.items()}

    def layer_gradients(
        self, kind, config, parameters, inputs, grad, *, training=False, seed=None, **options
    ):
        model = self.model(kind, config, parameters, training, seed)
        arrays = {name: self.array(x) for name, x in inputs.items()}
        leaves = {n: x.clone().requires_grad_() for n, x in arrays.items() if x.is_floating_point()}
        output = model(*(arrays | leaves).values(), **self.options(options))
        output.backward(self.array(grad))
        leaves |= dict(model.named_parameters())
        return {name: self.numpy(leaf.grad) for name, leaf in leaves.items()}


def _need_compiler(device: str) -> None:
    """Raise `NotOffered` where torch finds no compiler of C, without which it compiles nothing."""
    rule = f"torch compiles for {device} with a C compiler, and none is on the PATH"
    if device in ("cuda", "xpu") and not (os.environ.get("CC") or which("gcc") or which("clang")):
        raise NotOffered(rule)  # triton compiles what launches its kernels
    if device != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes seconds to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise NotOffered(f"torch compiles for cpu with a C++ compiler: got {error}") from error
