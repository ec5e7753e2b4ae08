"""What a thing under test offers: the adapter protocol, NumPy arrays in and out.

An adapter declares its `capabilities`; what it does not declare is "not offered", which is neither
a pass nor a failure. Masks arrive as `Spec`s (plain data), a random source as a seed. `adapter.py`
makes a subject out of the little that an adapter of your own has to say.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from ..mask_spec import Spec

CAPABILITIES = {
    "attention": "attention",
    "weights": "attention weights beside the output",
    "steps": "scores and masked scores",
    "bias": "an additive bias beside the mask",
    "scale": "a scale of one's choice",
    "softcap": "a softcap",
    "sinks": "a sink, one more logit in the softmax of a head's rows",
    "grouped": "query heads that share key heads",
    "causal": "a causal mask of its own",
    "dropout": "dropout",
    "empty_rows": "a choice of what a row becomes that may see nothing",
    "gradients": "gradients",
    "blocked": "a path that walks the mask's tiles",
    "parts": "attention to some of the keys, and parts that merge",
    "small_blocks": "blocks so small that small calls take every path",
    "compiled": "a compiled form of attention",
    "traced": "calls whose arrays have no values yet",
    "masks": "mask builders and the questions a mask answers",
    "multihead": "multi-head attention",
    "attn_mask": "torch's two mask arguments, key_padding_mask and attn_mask, as they are",
    "parameters": "the parameters that a new module starts with",
    "widths": "keys and values of their own widths",
    "head_dim": "heads of a width of their own, and a bias of their own",
    "process_heads": "a module that changes heads before they attend",
    "rotary": "rotary embeddings, as a function of heads and positions",
    "sequence_first": "inputs with the sequence before the batch",
    "layers": "Transformer layers, stacks and models",
    "cache": "decoding with a cache",
    "counting": "a count of the tokens that a projection is sent",
    "checkpoints": "weights in and out, as files and in other libraries' layouts",
    "transforms": "compiled graphs, exported programs and mapped calls",
    "second": "derivatives of derivatives, and forward mode",
    "autocast": "automatic mixed precision",
    "altered": "models that are copied, or whose parts are replaced",
    "any_shape": "a new shape without the cost of a compilation",
    "errors": "this project's own calls and errors, by their names",
}


ROUTES = ("forward", "reverse_reverse", "forward_reverse", "reverse_forward", "backward_twice",
          "functional", "batched")  # fmt: skip
STEPS = ("scores", "masked_scores", "weights", "output")
TILE = (2, 3)  # queries by keys: small, so that small cases have many
SMALL_BLOCKS = 3  # settings of small blocks


class NotOffered(Exception):
    """The subject declares that it has no such thing."""


class Subject(Protocol):
    """One implementation on one device."""

    name: str
    device: str
    capabilities: frozenset[str]
    dtypes: tuple[str, ...]
    asked_as: str  # the options of the command line that choose it

    def versions(self) -> dict[str, str]:
        """Return the versions of what is under test, by package name."""

    def sequence_mask(self, tokens: np.ndarray, padding_idx: int) -> np.ndarray:
        """Return bool (B, S), True at padding."""

    def look_ahead_mask(self, tgt_len: int, src_len: int) -> np.ndarray:
        """Return float (T, S), 0 where seen and -inf where hidden."""

    def ask(self, question: str, spec: Spec, *args, **options):
        """Put `allowed`, `hidden`, `additive`, `tile`, `explain` or `draw` to a mask."""

    def attention(self, query, key, value, **options) -> np.ndarray:
        """Attend; options as in the contract, with `mask` a Spec and `seed` for dropout."""

    def steps(self, query, key, value, **options) -> dict[str, np.ndarray]:
        """Return the output of the same call, and what is offered of `STEPS` beside it."""

    def compiled(self, query, key, value, *, through="attention", **options) -> dict:
        """Return the output of the compiled call, or every step of it with `through="steps"`."""

    def blocked(self, query, key, value, *, tile: tuple[int, int], **options) -> np.ndarray:
        """Attend tile by tile, in tiles of so many queries by keys."""

    def merged(self, query, pieces: list[dict], **options) -> dict[str, np.ndarray]:
        """Attend to each piece of the keys, merge the parts and finish.

        A piece has key, value and what `attention_part` takes beside them, or is a list of
        pieces, to be merged first; options are `finish`'s, without a dtype. Returns sums, maximum,
        total and lse of the merged part, and its output in the dtype of the query; those of a
        compiled call with `through="compiled"`.
        """

    def merged_gradients(self, query, pieces: list[dict], grads: dict, **options) -> dict:
        """Return gradients of the merged part's sum(grad * array), by the arrays of `grads`.

        These are of "output" and "lse". Gradients are by query and sinks, and for key, value and
        bias lists of one a piece.
        """

    def small_blocks(self, setting: int) -> AbstractContextManager:
        """Return the context in which calls of a few queries and keys are cut as large ones are.

        What else depends on sizes (threads, kernels, buffers) does so at small ones, too. Settings
        count from 0 to SMALL_BLOCKS - 1, and cut at different places.
        """

    def gradients(self, query, key, value, grad, **options) -> dict[str, np.ndarray]:
        """Return the gradients of sum(grad * output) by query, key, value, bias and sinks.

        `through="steps"` takes the textbook path and "blocked" the other, in tiles of TILE;
        "compiled" takes the compiled call, "remat" the one that is recomputed on the way back.
        """

    def transformed(self, how: str, calls: list[dict], *, kind="", config=None, parameters=None):
        """Make one program of calls that differ in their arrays alone, and run it on each.

        How is "graph" (or "kernels", by the framework's own compiler), "exported" (sizes that
        differ between calls are unknown), "mapped" (arrays that differ are stacked), "parameters"
        (the inputs are trainable) or "scanned". A kind is a model's, none is attention. Returns
        each call's answer, the output or by `grad` the gradients by input, and how many programs
        were made.
        """

    def derivatives(self, route: str, call: dict, directions: dict, *, kind="", config=None):
        """Differentiate sum(grad * output), by a route, along a direction.

        Returns the derivative of each gradient by its name, and as "tangent" the output's, where
        the route gives it. With a kind, the gradients are those by the call's parameters.
        """

    def autocast(self, dtype: str) -> AbstractContextManager:
        """Return the context in which calls run under automatic mixed precision."""

    def altered(self, how: str) -> AbstractContextManager:
        """Return the context in which every model is altered after it is built."""

    def processed(self, spec: dict, query, key, positions) -> list[np.ndarray]:
        """Return query and key as a `process_heads` changes them, which is given as plain data."""

    def parameters(self, config: dict) -> dict[str, np.ndarray]:
        """Return the registered parameters of a new multi-head attention, (out, in) matrices."""

    def multihead(self, config: dict, parameters: dict, *inputs, training=False, **options):
        """Return output and weights of a multi-head attention with the given parameters.

        `projected=True` gives it keys and values that were projected before, and a list of lengths
        the first of them.
        """

    def multihead_gradients(
        self, config: dict, parameters: dict, query, key, value, grad, **options
    ) -> dict[str, np.ndarray]:
        """Return the gradients of sum(grad * output) by every parameter, query, key and value.

        `training=True` with a seed drops as `multihead` does, and `projected=True` as there.
        """

    def layer(
        self, kind: str, config: dict, parameters: dict, inputs: dict, *, training=False, **options
    ) -> dict[str, np.ndarray]:
        """Return a model's output and, with `need_weights`, each attention's, by dotted name.

        The kind is "encoder_layer", "decoder_layer", "encoder", "decoder", "transformer" or
        "seq2seq"; config and options are its settings and masks by the contract's names, and
        parameters a flat dict by dotted names, such as `layers.0.self_attn.q_proj.weight`.
        """

    def layer_gradients(
        self, kind: str, config: dict, parameters: dict, inputs: dict, grad, **options
    ) -> dict[str, np.ndarray]:
        """Return the gradients of sum(grad * output) of a model, called as `layer` is.

        They are by every parameter and by every input that is not made of tokens.
        """

    def decoding(
        self, kind: str, config: dict, parameters: dict, *, capacity: int, compiled=False, **given
    ) -> "Decoding":
        """Start decoding with a model of one of these kinds, or of "attention".

        Given is `batch_size`, or `memory` or `src` with masks, as the model's `start` takes them;
        `counted=True` fills `sent`, `compiled=True` decodes by one compiled function, and with
        `training=True` the model drops what it drops in training.
        """

    def greedy(self, config: dict, parameters: dict, src, prompt, **options) -> np.ndarray:
        """Return the tokens that greedy decoding with a "seq2seq" model finds, (B, N)."""

    def export_weights(self, kind: str, config: dict, parameters: dict, layout: str) -> dict:
        """Return the weights of a model with these parameters, in a layout."""

    def import_weights(
        self, kind: str, config: dict, parameters: dict, weights, layout: str, **options
    ):
        """Put weights of a layout into a model with these parameters.

        Returns the error, or None, and the model's parameters after it. The weights are a mapping
        of any framework's arrays, nested or not, or the path of a safetensors file. The options
        are `prefix` and `cast`.
        """

    def save(self, kind: str, config: dict, parameters: dict, path) -> None:
        """Save a model with these parameters."""

    def load(self, path, dtype="float32") -> tuple[dict, Callable]:
        """Return the parameters of a saved model, and the model as a function, as `layer` is."""

    def is_tied(self, path) -> bool:
        """Whether the first maps of a saved stack's first two layers share their weight."""

    def blank(self, *shape: int):
        """Return a float32 array that has a shape and no values."""


class Decoding(Protocol):
    """A decoding in progress; each of its methods hands the cache on."""

    lengths: np.ndarray
    programs: int  # how often a compiled decoding was compiled
    sent: dict[str, list[int]]  # the tokens of each call of a key projection, by attention

    def feed(self, x: np.ndarray, **options) -> np.ndarray:
        """Decode new tokens (B, T, E), `hidden` ones left out; return their output."""

    def look(self, query: np.ndarray, **options) -> tuple[np.ndarray, np.ndarray]:
        """Attend to what an "attention" has stored, storing nothing: output, weights by head."""

    def copy(self) -> "Decoding":
        """Return a branch that goes its own way."""

    def earlier(self) -> "Decoding":
        """Return the decoding on the cache that the last `feed` was given."""

    def reorder(self, index: np.ndarray) -> "Decoding":
        """Return a decoding in which sample i goes on from sample index[i]."""

    def truncate(self, lengths) -> "Decoding":
        """Return a decoding that has forgotten what stands behind so many tokens."""

    def poison(self, number: float) -> "Decoding":
        """Return the decoding with a number in every slot that is not written."""


def require(subject: Subject, *capabilities: str) -> None:
    """Raise `NotOffered` unless the subject declares the capabilities."""
    for capability in capabilities:
        if capability not in subject.capabilities:
            raise NotOffered(f"{subject.name} does not offer {CAPABILITIES[capability]}")


def check_capabilities(capabilities: Iterable[str], allowed: Iterable[str]) -> frozenset[str]:
    """Return the capabilities, all of them allowed. Raises ValueError otherwise."""
    if isinstance(capabilities, str):
        raise ValueError(f"capabilities must be a set of names: got {capabilities!r}")
    known = [name for name in CAPABILITIES if name in set(allowed)]
    unknown = sorted(set(capabilities) - set(known))
    if unknown:
        rule = f"capabilities must be among {', '.join(known)}"
        raise ValueError(f"{rule}: got {', '.join(unknown)}")
    return frozenset(capabilities)
