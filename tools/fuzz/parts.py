"""Calls whose keys are split: each piece is attended to alone, under a part of the call's mask."""

import numpy as np

from conformance.oracle import expected

from .calls import RandomCall

FINISH = ("empty_rows", "sinks")


class Split:
    """A subject whose calls are merged of the pieces of a random call."""

    def __init__(self, subject, call: RandomCall):
        self.subject, self.call, self.split = subject, call, call.split or []
        self.finish = {n: x for n, x in call.options.items() if n in FINISH}

    def attention(self, query, key, value, **options) -> np.ndarray:
        return self.subject.merged(query, self.pieces(key, value), **self.finish)["output"]

    def gradients(self, query, key, value, grad, **options) -> dict:
        grads, pieces = {"output": grad}, self.pieces(key, value)
        found = self.subject.merged_gradients(query, pieces, grads, **self.finish)
        order = np.argsort(np.concatenate(self.split))
        for name in found.keys() & {"key", "value", "bias"}:
            parts, axis = found[name], -1 if name == "bias" else 2
            if name == "bias" and self.call.options["bias"].shape[-1] == 1:
                found[name] = np.sum([np.float64(x) for x in parts], axis=0).astype(parts[0].dtype)
            else:
                found[name] = np.take(np.concatenate(parts, axis), order, axis)
        return found

    def pieces(self, key, value) -> list[dict]:
        """Return what attention to each piece of the keys takes."""
        call, found = self.call, []
        for columns in self.split:
            piece = {"key": key[:, :, columns], "value": value[:, :, columns]}
            piece |= {n: x for n, x in call.options.items() if n in ("scale", "softcap")}
            if call.spec is not None:
                piece["mask"] = call.spec.part(np.arange(call.shape.T), columns, call.offset)
            if "bias" in call.options:
                bias = call.options["bias"]
                piece["bias"] = bias if bias.shape[-1] == 1 else bias[..., columns]
            found.append(piece)
        return found


def more_of(name: str, inputs: dict) -> float:
    """Return by what else a merged gradient may miss; nothing for an output."""
    if name in ("output", "sinks"):
        return 0.0
    options = {n: x for n, x in inputs.items() if n not in ("query", "key", "value", "grad")}
    call = (inputs[n] for n in ("query", "key", "value", "grad"))
    return expected.cancelled(*call, **options)[name]
