"""Tokens that come one after the other: a model that decodes them, and what it should give."""

from dataclasses import dataclass, field, replace

import numpy as np

from ..mask_spec import Spec, causal
from ..oracle import expected, reference
from ..oracle.expected_layers import layers
from ..oracle.tolerance import Differs, check_shape, compare, same
from ..subjects.protocol import Decoding, NotOffered, Subject, require
from . import models, multihead
from .arrays import normal
from .models import ModelCase

B, N, S = 3, 7, 5  # samples, tokens, sources
SOURCE_LENGTHS = [5, 2, 3]
SOURCE_HIDDEN = np.arange(S) >= np.array(SOURCE_LENGTHS)[:, None]
ATTENTIONS = {"attention": multihead.SELF, "grouped": multihead.GROUPED}


@dataclass(frozen=True, eq=False)
class Stream:
    """A model of a kind that decodes; "grouped" is an attention with shared key heads."""

    name: str
    changes: dict = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "attention" if self.name in ATTENTIONS else self.name

    @property
    def config(self) -> dict:
        if self.kind == "attention":
            return ATTENTIONS[self.name].config | self.changes
        return models.CONFIGS[self.kind] | self.changes

    @property
    def heads(self) -> int:
        return self.config["num_heads" if self.kind == "attention" else "nhead"]

    @property
    def width(self) -> int:
        return self.config["embed_dim" if self.kind == "attention" else "d_model"]

    @property
    def side(self) -> str:
        """Return the name of what is decoded."""
        return "src" if self.kind.startswith("encoder") else "tgt"

    def parameters(self, dtype_name: str = "float32") -> dict[str, np.ndarray]:
        if self.kind == "attention":
            return self._attention().parameters(dtype_name)
        return ModelCase(self.kind, self.changes).parameters(dtype_name)

    def tokens(self, dtype_name: str = "float32", length: int = N) -> np.ndarray:
        """Return what is decoded: (B, N, E), or tokens (B, N) for a model of tokens."""
        if self.kind == "seq2seq":
            return np.random.default_rng(71).integers(1, self.config["tgt_vocab"], (B, length))
        return normal(72, B, length, self.width, dtype_name=dtype_name)

    def given(self, dtype_name: str = "float32") -> dict:
        """Return what decoding starts from, beside the parameters."""
        if self.kind == "seq2seq":
            rng = np.random.default_rng(73)
            src = rng.integers(1, self.config["src_vocab"], (B, S))
            return {"src": np.where(SOURCE_HIDDEN, 0, src)}
        source = normal(74, B, S, self.width, dtype_name=dtype_name)
        hidden = {"memory_key_padding_mask": SOURCE_HIDDEN}
        if self.kind == "transformer":
            return {"src": source, "src_key_padding_mask": SOURCE_HIDDEN} | hidden
        if self.kind == "decoder":
            return {"memory": source} | hidden
        return {"memory": source} if self.kind == "decoder_layer" else {"batch_size": B}

    @property
    def every_feed(self) -> dict:
        """Return the options that every feed needs: a layer has no cache to keep its masks in."""
        lonely = self.kind == "decoder_layer"
        return {"memory_key_padding_mask": SOURCE_HIDDEN} if lonely else {}

    def start(self, subject: Subject, capacity: int = N, dtype_name="float32", **options):
        """Start decoding, of N tokens if not told otherwise."""
        require(subject, "cache")
        options = self.given(dtype_name) | options
        parameters = self.parameters(dtype_name)
        return subject.decoding(self.kind, self.config, parameters, capacity=capacity, **options)

    def feed(self, decoding: Decoding, x: np.ndarray, **options) -> np.ndarray:
        return decoding.feed(x, **self.every_feed | options)

    def one_pass(
        self, x: np.ndarray, *, mask: Spec | None = None, memory_mask: Spec | None = None,
        rows=slice(None), unmasked: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Return the outputs of one pass, exact and naive, of samples `rows` of the sources."""
        T, dtype_name = x.shape[1], "float32" if x.dtype.kind in "iu" else x.dtype.name
        look_ahead = None if unmasked else mask or causal()
        sizes = (len(x), self.heads, T, T)
        allowed = reference.allowed(look_ahead, sizes)
        parameters = self.parameters(dtype_name)
        if self.kind == "attention":
            own = {"allowed": allowed, "empty_rows": self.config.get("empty_rows", "zero")}
            own |= replace(self._attention(), T=T).told()
            steps = expected.multihead(parameters, *self._head_counts(), x, x, x, **own)
        else:
            steps = self._layers(parameters, x, allowed, memory_mask, rows, dtype_name)
        return steps[0]["output"], steps[1]["output"]

    def _attention(self) -> multihead.MultiHeadCase:
        return replace(ATTENTIONS[self.name], config=self.config)

    def _head_counts(self) -> tuple[int, int]:
        return self.heads, self.config.get("num_kv_heads", self.heads)

    def _layers(self, parameters, x, allowed, memory_mask, rows, dtype_name):
        given = self.given(dtype_name)
        inputs = {name: given[name][rows] for name in ("src", "memory") if name in given}
        if self.side == "src":
            inputs = {"src": x}
        elif "src" in inputs:
            inputs = {"src": inputs["src"], "tgt": x}
        else:
            inputs = {"tgt": x, "memory": inputs["memory"]}
        source = ~SOURCE_HIDDEN[rows][:, None, None]
        masks = {}
        if self.kind != "seq2seq":
            both = reference.allowed(memory_mask, (len(x), self.heads, x.shape[1], S)) & source
            names = {"src": (source if self.side == "tgt" else allowed, None)}
            names |= {"tgt": (allowed, None), "memory": (both, None)}
            masks = ModelCase(self.kind, self.changes).masks(inputs, **names)
        return layers(self.kind, parameters, self.config, inputs, masks)

    def whole(self, dtype_name: str = "float32") -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs of all the tokens in one causal pass."""
        return self.one_pass(self.tokens(dtype_name))

    def check_feeds(self, decoding: Decoding, x, cuts, exact, naive, **options) -> None:
        """Feed x in pieces that end at the cuts, and hold each piece's output."""
        first = 0
        for last in cuts:
            got = self.feed(decoding, x[:, first:last], **options)
            part(got, exact, naive, first, f"outputs of tokens {first}..{last - 1}")
            first = last


def part(got: np.ndarray, exact: np.ndarray, naive: np.ndarray, first: int, what: str) -> None:
    """Hold the outputs of tokens from `first` on, within the budget of the whole pass.

    A budget made of one token's few numbers would be luck.
    """
    check_shape(got, (len(exact), *got.shape[1:2], *exact.shape[2:]), what)
    whole = exact.astype(got.dtype)
    whole[:, first : first + got.shape[1]] = got
    compare(whole, exact, naive, what)


def check_lengths(decoding: Decoding, wanted, what: str) -> None:
    """Check how many tokens of each sample are stored, where a decoding says it."""
    try:
        got = decoding.lengths
    except NotOffered:
        return
    same(got, wanted, f"lengths {what}")


def unless_handed_on(call):
    """Return the call's output, or None where it is refused because the cache was handed on."""
    try:
        return call()
    except ValueError as error:
        if not str(error).startswith("a cache is used once"):
            raise Differs(f"expected 'a cache is used once ...', got {error}") from error
    return None


CHANGES: dict[str, dict] = {
    "attention": {},
    "grouped": {},
    "encoder_layer": {"norm_first": True},
    "decoder_layer": {},
    "encoder": {"norm": True},
    "decoder": {"norm_first": True, "activation": "gelu"},
    "transformer": {},
    "seq2seq": {},
}
STREAMS = {name: Stream(name, changes) for name, changes in CHANGES.items()}
STEPS = tuple(range(1, N + 1))
