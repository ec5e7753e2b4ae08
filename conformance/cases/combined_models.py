"""Calls of multi-head attention and of layers made of a row of `combinations.py`."""

from dataclasses import dataclass

import numpy as np

from ..mask_spec import allow, causal, padding, sliding_window
from ..oracle import expected, reference
from ..oracle.tolerance import Differs, check_dtype, compare
from ..oracle.tolerance import dtype as numpy_dtype
from ..subjects.protocol import Subject, require
from .arrays import coins, normal
from .combined import HEADS
from .models import ATTENTIONS, B, H, ModelCase, S, T
from .multihead import MultiHeadCase

OWN_SCALE = 1.7
Form = tuple[object, np.ndarray, np.ndarray | None]  # the argument, what is allowed, what is added


def form_of(kind: str, sizes: tuple[int, int, int, int], seed: int, dtype_name: str) -> Form:
    """Return an attention mask in one of its forms, over (B, H, T, S)."""
    batch, heads, rows, columns = sizes
    shapes = {
        "bool2": (rows, columns), "bool3": (batch * heads, rows, columns),
        "bool4": (batch, 1, rows, columns), "float2": (rows, columns),
        "float3": (batch * heads, rows, columns), "float4": (1, heads, rows, columns),
    }  # fmt: skip
    every = np.ones(sizes, bool)
    if kind == "none":
        return None, every, None
    if kind == "mask":
        return sliding_window(2, 1), reference.allowed(sliding_window(2, 1), sizes, 0), None
    if kind == "allow":
        cells = coins(seed, *sizes, true=0.6)
        return allow(cells), cells, None
    hidden = coins(seed, *shapes[kind], true=0.3)
    spread = hidden.reshape(sizes) if kind[-1] == "3" else hidden
    if kind.startswith("bool"):
        return hidden, ~spread & every, None
    own = "float32" if kind == "float2" else dtype_name
    added = np.where(hidden, -np.inf, normal(seed + 1, *shapes[kind])).astype(numpy_dtype(own))
    bias = added.reshape(sizes) if kind == "float3" else added
    return added, every, np.broadcast_to(bias, sizes)


def keys_of(kind: str, lengths: np.ndarray, keys: int) -> Form:
    """Return a key padding mask in one of its forms, by lengths."""
    hidden = np.arange(keys) >= lengths[:, None]
    if kind == "none":
        return None, np.ones((len(lengths), 1, 1, keys), bool), None
    return hidden if kind == "bool" else padding(lengths), ~hidden[:, None, None], None


def given(**options) -> dict:
    """Return the options that are not left out."""
    return {name: value for name, value in options.items() if value is not None}


def process_of(kind: str, head_dim: int) -> dict:
    """Return what happens to heads: an even number of their features is turned, or all normed."""
    if kind == "norm":
        return {"class": "QKNorm", "head_dim": head_dim, "eps": 0.1}
    return {"class": "rotary", "base": 30.0, "dim": head_dim // 2 * 2}


@dataclass(frozen=True, eq=False)
class MultiHeadRow:
    """One multi-head attention; in a batch of one it is the last sample of three."""

    row: dict[str, str]

    @property
    def case(self) -> MultiHeadCase:
        heads, kv_heads = HEADS[self.row["heads"]]
        width = heads * (7 if heads == 2 else 3)
        config = {"embed_dim": width, "num_heads": heads, "empty_rows": self.row["empty_rows"]}
        config |= {"num_kv_heads": kv_heads} if kv_heads != heads else {}
        config |= {"bias": False} if self.row["bias"] == "no" else {}
        config |= self.settings(width // heads)
        widths = (width, width)
        if self.row["inputs"] == "widths":
            widths = (5, 3)
            config |= {"kdim": 5, "vdim": 3}
        return MultiHeadCase(config, None if self.row["inputs"] == "self" else 7, *widths)

    def settings(self, head_dim: int) -> dict:
        """Return what a row says of heads, which are so wide if it says nothing."""
        row, found = self.row, {}  # type: dict[str, str], dict
        if row["head_dim"] == "own":
            found["head_dim"] = head_dim = 5
        found |= {"sinks": True} if row["sinks"] == "yes" else {}
        found |= {"scale": OWN_SCALE} if row["scale"] == "own" else {}
        found |= {"softcap": 0.8} if row["softcap"] == "low" else {}
        if row["process_heads"] != "none":
            found["process_heads"] = process_of(row["process_heads"], head_dim)
        return found

    def call(self) -> tuple[list[np.ndarray], dict, dict]:
        """Return query, key and value, the masks as options, and what the oracle is told."""
        case, row = self.case, self.row
        keep = slice(2, 3) if row["batch"] == "one" else slice(None)
        query, key, value = (x[keep] for x in case.inputs(row["dtype"]))
        value = key if row["inputs"] in ("self", "key") else value
        sizes = (len(query), case.heads[0], query.shape[1], key.shape[1])
        lengths = np.array([sizes[3], 0, 3])[keep]
        is_causal, offset = row["attn_mask"] == "causal", None
        masks = form_of(row["attn_mask"].replace("causal", "none"), sizes, 81, row["dtype"])
        if is_causal:
            offset = np.array([2, 0, 1])[keep] if row["process_heads"] == "none" else None
            masks = (causal(), reference.allowed(causal(), sizes, offset), None)
        padded, keys, _ = keys_of(row["key_padding_mask"], lengths, sizes[3])
        options = given(attn_mask=masks[0], key_padding_mask=padded, query_offset=offset)
        told = {"allowed": masks[1] & keys, "empty_rows": row["empty_rows"]} | case.told()
        return [query, key, value], options, told | given(bias=masks[2])

    def check(self, subject: Subject) -> None:
        """Check output and weights against the oracle."""
        require(subject, "multihead")
        case, row, (inputs, options, told) = self.case, self.row, self.call()
        count = {"self": 1, "key": 2}.get(row["inputs"], 3)
        options |= {"need_weights": row["weights"] != "no"}
        options |= {"average_weights": False} if row["weights"] == "per_head" else {}
        training = {"training": True} if row["path"] == "training" else {}
        parameters = case.parameters(row["dtype"])
        turned = [self.turned(x) for x in inputs[:count]]
        got, weights = subject.multihead(self.config, parameters, *turned, **options, **training)
        exact, naive = expected.multihead(parameters, *case.heads, *inputs, **told)
        check_dtype(got, naive["output"].dtype, "output")
        compare(self.turned(got), exact["output"], naive["output"], "output")
        if "weights" in subject.capabilities or weights is not None:
            self.check_weights(weights, exact["weights"], naive["weights"])

    def check_weights(self, got, exact, naive) -> None:
        if (got is None) != (self.row["weights"] == "no"):
            raise Differs(f"weights ({self.row['weights']}): got {got if got is None else 'some'}")
        if self.row["weights"] == "averaged":
            exact, naive = exact.mean(1), naive.mean(1)
        if got is not None:
            compare(got, exact, naive, "weights")

    def check_gradients(self, subject: Subject) -> None:
        """Check every gradient against the oracle."""
        require(subject, "multihead", "gradients")
        case, (given, options, told) = self.case, self.call()
        parameters, grad = case.parameters(self.row["dtype"]), case.grad(self.row["dtype"])
        grad = grad[2:] if self.row["batch"] == "one" else grad
        inputs: list = list(given)
        if self.row["process_heads"] != "none":  # there is one gradient, by the tokens
            inputs[1:] = [None, None]
        turned = [None if x is None else self.turned(x) for x in (*inputs, grad)]
        got = subject.multihead_gradients(self.config, parameters, *turned, **options)
        call = (parameters, *case.heads, *inputs, grad)
        exact, naive = expected.multihead_gradients(*call, **told)
        if set(got) != set(exact):
            raise Differs(f"gradients: expected {sorted(exact)}, got {sorted(got)}")
        for name in exact:
            own = self.turned(got[name]) if name in ("query", "key", "value") else got[name]
            check_dtype(own, naive[name].dtype, f"gradient of {name}")
            compare(own, exact[name], naive[name], f"gradient of {name}")

    @property
    def config(self) -> dict:
        first = {"batch_first": False} if self.row["layout"] == "sequence_first" else {}
        return self.case.config | first

    def turned(self, x: np.ndarray) -> np.ndarray:
        """Return (B, T, E) as the layout has it, or back."""
        return x.swapaxes(0, 1) if self.row["layout"] == "sequence_first" else x


LENGTHS = {"src": np.array([7, 0, 4]), "tgt": np.array([3, 5, 2]), "memory": np.array([7, 0, 4])}
LENGTH = {"src": S, "tgt": T, "memory": S}


@dataclass(frozen=True, eq=False)
class LayersRow:
    """A layer, a stack or both stacks, with every mask of its kind."""

    row: dict[str, str]

    @property
    def case(self) -> ModelCase:
        row, kind = self.row, self.row["kind"]
        changes = {"norm_first": row["norm_first"] == "yes", "activation": row["activation"]}
        changes |= {"bias": row["bias"] == "yes", "empty_rows": row["empty_rows"]}
        changes |= {"layer_norm_eps": 0.3} if row["eps"] == "large" else {}
        changes |= {"norm": row["last_norm"] == "yes"} if kind in ("encoder", "decoder") else {}
        if kind == "transformer":
            changes |= {"num_encoder_layers": 1, "num_decoder_layers": 1}
        return ModelCase(kind, changes)

    def masks(self, inputs: dict) -> tuple[dict, dict]:
        """Return the options of the call, and what each attention is allowed and given."""
        row, options, told = self.row, {}, {}  # type: dict[str, str], dict, dict
        for i, (name, (first, second)) in enumerate(ATTENTIONS.items()):
            second = "src" if second not in inputs else second
            if first not in inputs or (name == "memory" and row["kind"].startswith("encoder")):
                continue
            before = "memory_" if name == "memory" else ""
            sizes = (B, H, LENGTH[first], LENGTH[second])
            own = form_of(row[f"{before}mask"], sizes, 31 + 10 * i, row["dtype"])
            padded, keys, _ = keys_of(row[f"{before}key_padding_mask"], LENGTHS[name], sizes[3])
            argument = "mask" if row["kind"] == "encoder" else f"{name}_mask"
            options |= given(**{argument: own[0], f"{name}_key_padding_mask": padded})
            told[name] = (own[1] & keys, own[2])
        return options, told

    def check(self, subject: Subject) -> None:
        """Check the output and every attention's weights against the oracle."""
        require(subject, "layers")
        case, row = self.case, self.row
        inputs = case.inputs(row["dtype"])
        options, told = self.masks(inputs)
        first = row["layout"] == "sequence_first"
        turned = {name: x.swapaxes(0, 1) if first else x for name, x in inputs.items()}
        got = subject.layer(
            row["kind"], case.config | ({"batch_first": False} if first else {}),
            case.parameters(row["dtype"]), turned, training=row["mode"] == "training",
            need_weights=row["weights"] == "asked", **options,
        )  # fmt: skip
        exact, naive = case.expected(inputs, **told)
        names = set(exact) if row["weights"] == "asked" else {"output"}
        if set(got) != names:
            raise Differs(f"weights: expected {sorted(names)}, got {sorted(got)}")
        got["output"] = got["output"].swapaxes(0, 1) if first else got["output"]
        check_dtype(got["output"], naive["output"].dtype, "output")
        for name in sorted(names):
            compare(got[name], exact[name], naive[name], name)
