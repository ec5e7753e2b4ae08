"""Calls of multi-head attention: configuration, parameters and inputs, and their expectation."""

from dataclasses import dataclass, field

import numpy as np

from ..oracle import expected
from ..oracle.tolerance import Differs, check_dtype, compare, dtype
from ..subjects.protocol import Subject, require
from .arrays import normal


@dataclass(frozen=True, eq=False)
class MultiHeadCase:
    """One multi-head attention: B=3 samples, T=5 queries, S keys, E=14 features, 2 heads of 7."""

    config: dict = field(default_factory=lambda: {"embed_dim": 14, "num_heads": 2})
    S: int | None = None  # None is self-attention
    kdim: int = 14
    vdim: int = 14
    seed: int = 0
    T: int = 5

    @property
    def heads(self) -> tuple[int, int]:
        heads = self.config["num_heads"]
        return heads, self.config.get("num_kv_heads", heads)

    def parameters(self, dtype_name: str) -> dict[str, np.ndarray]:
        """Return random parameters, biases too: (out, in) matrices."""
        E, (heads, kv_heads) = self.config["embed_dim"], self.heads
        D = self.config.get("head_dim") or E // heads
        q, kv = D * heads, D * kv_heads
        shapes = {"q_proj": (q, E), "k_proj": (kv, self.kdim), "v_proj": (kv, self.vdim)}
        rng, found = np.random.default_rng(self.seed + 7), {}
        biases = dict.fromkeys(shapes, self.config.get("qkv_bias"))
        for name, (out, into) in (shapes | {"out_proj": (E, q)}).items():
            found[f"{name}.weight"] = rng.normal(size=(out, into)) / np.sqrt(into)
            own = biases.get(name)
            if self.config.get("bias", True) if own is None else own:
                found[f"{name}.bias"] = rng.normal(size=out)
        if (self.config.get("process_heads") or {}).get("class") == "QKNorm":
            for name in ("q_norm", "k_norm"):
                found[f"process_heads.{name}.weight"] = rng.normal(size=D)
        if self.config.get("sinks"):
            found["sinks"] = 1.5 * rng.normal(size=heads)
        return {name: array.astype(dtype(dtype_name)) for name, array in found.items()}

    def inputs(self, dtype_name: str = "float32") -> list[np.ndarray]:
        """Return query, key, value, each (B, length, features)."""
        query = normal(self.seed, 3, self.T, self.config["embed_dim"], dtype_name=dtype_name)
        if self.S is None:
            return [query, query, query]
        key = normal(self.seed + 1, 3, self.S, self.kdim, dtype_name=dtype_name)
        return [query, key, normal(self.seed + 2, 3, self.S, self.vdim, dtype_name=dtype_name)]

    def grad(self, dtype_name: str = "float32") -> np.ndarray:
        return normal(self.seed + 3, 3, self.T, self.config["embed_dim"], dtype_name=dtype_name)

    def expected(self, allowed, *, empty_rows="zero", dtype_name="float32", bias=None):
        """Return output and weights, exact and naive; `allowed` is bool (B, H, T, S)."""
        options = {"allowed": allowed, "empty_rows": empty_rows} | self.told()
        options |= self._bias(bias)
        arguments = (self.parameters(dtype_name), *self.heads, *self.inputs(dtype_name))
        return expected.multihead(*arguments, **options)

    def check(
        self, subject: Subject, options: dict, allowed, *, empty_rows="zero", bias=None,
        dtype_name="float32", **call,
    ) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
        """Run the call and check output and averaged weights against the oracle; return both."""
        require(subject, "multihead")
        config = self.config | {"empty_rows": empty_rows}
        inputs = self.inputs(dtype_name)[: 1 if self.S is None else 3]
        got, weights = subject.multihead(
            config, self.parameters(dtype_name), *inputs, **options, **call
        )
        exact, naive = self.expected(
            allowed, empty_rows=empty_rows, dtype_name=dtype_name, bias=bias
        )
        check_dtype(got, naive["output"].dtype, "output")
        compare(got, exact["output"], naive["output"], "output")
        if not call.get("need_weights", True):
            if weights is not None:
                raise Differs(f"weights were not asked for: got {weights.shape}")
        elif weights is None and "weights" not in subject.capabilities:
            pass
        elif call.get("average_weights", True):
            compare(weights, exact["weights"].mean(1), naive["weights"].mean(1), "weights")
        else:
            compare(weights, exact["weights"], naive["weights"], "weights")
        return got, weights

    def told(self) -> dict:
        """Return what the oracle is told of the configuration, beside its sizes."""
        told = {n: self.config[n] for n in ("scale", "softcap") if self.config.get(n) is not None}
        if self.config.get("process_heads"):
            places = np.arange(self.T)[None]
            told |= {"process": self.config["process_heads"]}
            told |= {"query_places": places, "key_places": places}
        return told

    def _bias(self, bias) -> dict[str, np.ndarray]:
        if bias is None:
            return {}
        sizes = (3, self.heads[0], self.T, self.S or self.T)
        return {"bias": np.broadcast_to(np.asarray(bias, np.float32), sizes)}

    def expected_gradients(self, allowed, keep=slice(None), bias=None) -> tuple[dict, dict]:
        """Return the gradients of sum(grad * output), exact and naive, over some samples."""
        inputs: list = [x[keep] for x in (*self.inputs(), self.grad())]
        if self.config.get("process_heads"):
            inputs[1:3] = None, None
        arguments = (self.parameters("float32"), *self.heads, *inputs)
        masks = {"allowed": allowed} | self._bias(bias)
        told: dict = {name: np.asarray(array)[keep] for name, array in masks.items()}
        return expected.multihead_gradients(*arguments, **told | self.told())

    def check_gradients(
        self, subject: Subject, options: dict, allowed, bias=None
    ) -> dict[str, np.ndarray]:
        """Run the call backwards and check every gradient against the oracle; return them."""
        require(subject, "gradients")
        parameters, query = self.parameters("float32"), self.inputs()[0]
        key, value = (None, None) if self.config.get("process_heads") else self.inputs()[1:]
        got = subject.multihead_gradients(
            self.config, parameters, query, key, value, self.grad(), **options
        )
        exact, naive = self.expected_gradients(allowed, bias=bias)
        if set(got) != set(exact):
            raise Differs(f"gradients: expected {sorted(exact)}, got {sorted(got)}")
        for name in exact:
            check_dtype(got[name], naive[name].dtype, f"gradient of {name}")
            compare(got[name], exact[name], naive[name], f"gradient of {name}")
        return got


SELF = MultiHeadCase()
CROSS = MultiHeadCase(S=7)
GROUPED = MultiHeadCase({"embed_dim": 12, "num_heads": 4, "num_kv_heads": 2}, S=7, kdim=12, vdim=12)
WIDTHS = MultiHeadCase({"embed_dim": 14, "num_heads": 2, "kdim": 5, "vdim": 3}, S=7, kdim=5, vdim=3)
NO_BIAS = MultiHeadCase({"embed_dim": 14, "num_heads": 2, "bias": False}, S=7)
