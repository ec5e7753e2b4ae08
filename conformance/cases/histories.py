"""Decodings in progress and, beside each, lists of the tokens that its samples were told.

The lists keep no cache: at the end one causal pass over each of them says what every step's outputs
should have been. A step is plain data, so that a failure can be run again by `replay`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..mask_spec import Spec, sliding_window
from ..oracle.expected import multihead
from ..oracle.tolerance import Differs, check_dtype, check_shape, compare, same
from ..subjects.protocol import Decoding, NotOffered, Subject
from .arrays import normal
from .compare import refused
from .decoding import SOURCE_HIDDEN, STREAMS, B, Stream, check_lengths, unless_handed_on

CAPACITY, BRANCHES, WORDS = 6, 3, 6  # slots of a sample, decodings at a time, tokens to choose from
LONGEST = 17  # how many tokens a sample is told where slots are written again
HIDDEN = 0  # among tokens that are fed
KINDS = STREAMS | {"sequence_first": Stream("encoder", {"norm": True, "batch_first": False})}

MASKS = {"attention": "attn_mask", "grouped": "attn_mask", "encoder_layer": "src_mask",
         "encoder": "mask", "decoder_layer": "tgt_mask", "decoder": "tgt_mask",
         "transformer": "tgt_mask"}  # fmt: skip


@dataclass
class Sample:
    """What one sample was told, and the outputs that came back, each with its step."""

    row: int  # whose memory it looks at
    told: list[int] = field(default_factory=list)
    heard: list[tuple[int, np.ndarray]] = field(default_factory=list)

    def copy(self) -> "Sample":
        return Sample(self.row, list(self.told), list(self.heard))


@dataclass
class Branch:
    """One decoding, and its samples."""

    decoding: Decoding
    samples: list[Sample]
    before: list[Sample] | None = None  # as they were before the last feed

    @property
    def lengths(self) -> list[int]:
        return [len(sample.told) for sample in self.samples]

    def copied(self) -> list[Sample]:
        return [sample.copy() for sample in self.samples]


class History:
    """A few decodings that began as one, and all that they were told."""

    def __init__(self, subject: Subject, name: str):
        self.subject, self.stream = subject, KINDS[name]
        self.first = self.stream.config.get("batch_first", True)
        given = self.stream.given()
        if "memory" in given and not self.first:
            given["memory"] = given["memory"].swapaxes(0, 1)
        self.given = given
        self.steps: list[tuple] = []
        self.past: list[Sample] = []  # what nobody goes on from, still to be checked
        self.mask: Spec | None = None
        self.slots = 0  # of a window, in which slots are written again
        self.words = normal(76, WORDS, self.stream.width, dtype_name="float32")
        self.branches = [self._started()]
        self.hides = self._takes([[HIDDEN], [1], [1]])  # whether tokens may be hidden

    def _started(self) -> Branch:
        window = {"window": self.slots - 1} if self.slots else {}
        decoding = self.stream.start(self.subject, CAPACITY, **self.given, **window)
        return Branch(decoding, [Sample(b) for b in range(B)])

    def _takes(self, ids: list[list[int]]) -> bool:
        """Whether the subject offers such a feed, tried where nothing else is stored."""
        branch = self._started()
        try:
            self._fed(branch, branch.decoding, np.array(ids))
        except NotOffered:
            return False
        return True

    def do(self, name: str, branch: int, *arguments) -> None:
        """Take a step of this name; one that the subject does not offer is none."""
        self.steps.append((name, branch, *arguments))
        try:
            getattr(self, name)(self.branches[branch % len(self.branches)], *arguments)
        except NotOffered:
            self.steps.pop()

    # The steps

    def window(self, branch: Branch, keys: int) -> None:
        """Let every feed from now on have a positional mask; only the first step may."""
        if self.stream.name in MASKS:
            self.mask = sliding_window(keys)
            self.mask = self.mask if self._takes([[1]] * B) else None

    def ring(self, branch: Branch, before: int) -> None:
        """Let the cache have a window; only the first step may."""
        if self.stream.name in MASKS:
            self.slots, self.mask = before + 1, sliding_window(before)
            self.branches = [self._started()]

    @property
    def most(self) -> int:
        """How many tokens a sample is told."""
        return LONGEST if self.slots else CAPACITY

    def feed(self, branch: Branch, ids: list[list[int]], junk: str) -> None:
        """Feed tokens by number; HIDDEN ones hold what `junk` says."""
        told = np.array(ids[: len(branch.samples)], int)
        told = told if self.hides else np.maximum(told, 1)
        if (needed := max(np.add(branch.lengths, (told != HIDDEN).sum(1)))) > self.most:
            if self.slots:
                return
            text = f"capacity must hold every token: got {needed} tokens for {CAPACITY} slots"
            self._refused(
                branch, lambda: self._fed(branch, branch.decoding, told, junk), ValueError, text
            )
            return
        before, got = branch.copied(), self._fed(branch, branch.decoding, told, junk)
        self._hear(branch.samples, told, got)
        branch.before = before
        self._see_lengths(branch)

    def feed_earlier(self, branch: Branch, ids: list[list[int]]) -> None:
        """Feed a cache that was handed on: that is refused, or the cache is what it was."""
        if branch.before is None or max(len(sample.told) for sample in branch.before) == self.most:
            return
        told = np.maximum([row[:1] for row in ids[: len(branch.samples)]], 1)
        earlier = branch.decoding.earlier()
        got = unless_handed_on(lambda: self._fed(branch, earlier, told))
        if got is not None:
            samples = [sample.copy() for sample in branch.before]
            self._hear(samples, told, got)
            self.past += samples
        self._see_lengths(branch)

    def copy(self, branch: Branch) -> None:
        self._add(Branch(branch.decoding.copy(), branch.copied()))

    def reorder(self, branch: Branch, index: list[int]) -> None:
        """Add a branch whose samples go on from samples of this one."""
        chosen = [i % len(branch.samples) for i in index]
        decoding = branch.decoding.reorder(np.array(chosen))
        self._add(Branch(decoding, [branch.samples[i].copy() for i in chosen]))

    def truncate(self, branch: Branch, shares: list[int], alike: bool) -> None:
        """Forget some of what each sample was told, or of all the same number."""
        lengths = [s % (n + 1) for s, n in zip(shares, branch.lengths, strict=False)]
        lengths = [min(lengths)] * len(lengths) if alike else lengths
        given = lengths[0] if alike else np.array(lengths)
        pairs = list(zip(lengths, branch.lengths, strict=True))
        if self.slots and any(0 < kept < told and told >= self.slots for kept, told in pairs):
            text = f"lengths must be 0, or all, once the {self.slots} slots of a window are written"
            self._refused(branch, lambda: branch.decoding.truncate(given), ValueError, text)
            return
        branch.decoding = branch.decoding.truncate(given)
        self.past += branch.copied()  # what is forgotten was right
        for sample, length in zip(branch.samples, lengths, strict=True):
            del sample.told[length:], sample.heard[length:]
        branch.before = None
        self._see_lengths(branch)

    def poison(self, branch: Branch, number: str) -> None:
        """Put a number into every slot that is not written."""
        branch.decoding, branch.before = branch.decoding.poison(float(number)), None

    def look(self, branch: Branch, ids: list[list[int]]) -> None:
        """Look at what is stored, without storing anything: output and weights of each head."""
        if self.stream.kind != "attention":
            return
        told = np.maximum([row[:1] for row in ids[: len(branch.samples)]], 1)
        if self.slots:
            text = "key must be a cache without a window, which is for decode: got one"
            self._refused(branch, lambda: branch.decoding.look(self.words[told]), ValueError, text)
            return
        output, weights = branch.decoding.look(self.words[told])
        written = np.arange(CAPACITY) < np.array(branch.lengths)[:, None]
        keys = self.words[self._padded(branch.samples)]
        allowed = np.broadcast_to(
            written[:, None, None], (len(told), self.stream.heads, 1, CAPACITY)
        )
        config, heads = self.stream.config, self.stream.heads
        counts = heads, config.get("num_kv_heads", heads)
        arguments = (self.stream.parameters(), *counts, self.words[told], keys, keys)
        exact, naive = multihead(*arguments, allowed=allowed)
        compare(output, exact["output"], naive["output"], f"a look in step {len(self.steps)}")
        compare(weights, exact["weights"], naive["weights"], f"weights in step {len(self.steps)}")
        self._see_lengths(branch)

    def refuse(self, branch: Branch, what: str) -> None:
        """Make a wrong call: it is refused, and the cache is what it was."""
        if "errors" not in self.subject.capabilities:
            return
        samples, decoding = len(branch.samples), branch.decoding
        x, tokens = self._inputs(np.ones((samples, 1), int)), self.stream.kind == "seq2seq"
        options = self._options(branch)
        calls = {
            "samples": lambda: decoding.feed(np.concatenate([x, x], 0 if self.first else 1)),
            "dtype": lambda: decoding.feed(x.astype(np.float16), **options),
            "index": lambda: decoding.reorder(np.array([0, samples])),
            "negative": lambda: decoding.truncate(-1),
            "longer": lambda: decoding.truncate(
                np.array(branch.lengths) + np.eye(samples, dtype=int)[-1]
            ),
        }
        if not tokens:
            hidden = np.zeros((samples, 2), bool)
            calls["hidden"] = lambda: decoding.feed(x, hidden=hidden, **options)
            calls["width"] = lambda: decoding.feed(np.concatenate([x, x], -1), **options)
        if self.slots:
            mask = {MASKS[self.stream.name]: self.mask}
            calls["mask"] = lambda: decoding.feed(x, **options | mask)
        if what in calls:
            self._refused(branch, calls[what], TypeError if what == "dtype" else ValueError)

    # What they are made of

    def _fed(self, branch: Branch, decoding: Decoding, told: np.ndarray, junk: str = "0"):
        """Return the outputs of tokens, batch first."""
        hidden, options = told == HIDDEN, self._options(branch)
        if hidden.any() and self.stream.kind != "seq2seq":
            options["hidden"] = hidden
        got = decoding.feed(self._inputs(told, junk), **options)
        return got if self.first else got.swapaxes(0, 1)

    def _inputs(self, told: np.ndarray, junk: str = "0") -> np.ndarray:
        if self.stream.kind == "seq2seq":
            return told
        hidden = (told == HIDDEN)[..., None]
        x = np.where(hidden, np.float32(junk), self.words[told])
        return x if self.first else x.swapaxes(0, 1)

    def _options(self, branch: Branch) -> dict[str, Any]:
        rows = [sample.row for sample in branch.samples]
        plain = self.mask is None or self.slots
        mask = {} if plain else {MASKS[self.stream.name]: self.mask}
        return mask | {n: SOURCE_HIDDEN[rows] for n in self.stream.every_feed}

    def _hear(self, samples: list[Sample], told: np.ndarray, got: np.ndarray) -> None:
        """Note what came back; what came back for hidden tokens is 0."""
        width = self.stream.config.get("tgt_vocab", self.stream.width)
        check_shape(got, (*told.shape, width), f"output of step {len(self.steps)}")
        check_dtype(got, np.float32, f"output of step {len(self.steps)}")
        hidden = told == HIDDEN
        same(got[hidden], np.zeros_like(got[hidden]), f"hidden tokens of step {len(self.steps)}")
        for b, t in zip(*np.nonzero(~hidden), strict=True):
            samples[b].told.append(int(told[b, t]))
            samples[b].heard.append((len(self.steps), got[b, t]))

    def _add(self, branch: Branch) -> None:
        """Go on with another branch, too; with more than a few, the oldest ends."""
        self.branches.append(branch)
        self._see_lengths(branch)
        if len(self.branches) > BRANCHES:
            self.past += self.branches.pop(0).samples

    def _see_lengths(self, branch: Branch) -> None:
        check_lengths(branch.decoding, branch.lengths, f"after step {len(self.steps)}")

    def _refused(self, branch: Branch, call: Callable, error=ValueError, text: str = "") -> None:
        refused(self.subject, call, error, text, beside=lambda: None)
        self._see_lengths(branch)

    def _padded(self, samples: Iterable[Sample]) -> np.ndarray:
        return np.array([s.told + [HIDDEN] * (self.most - len(s.told)) for s in samples])

    # The judgement

    def check(self) -> None:
        """Check every output that ever came back against one pass over what was told."""
        for turn in (1, 2):  # each can still go on, whatever was written for the others
            for number, branch in enumerate(self.branches):
                full = np.array(branch.lengths) == self.most
                ids = np.where(full, HIDDEN, turn + number)[:, None].tolist()
                self.do("feed", number, ids, "nan")
        told = [s for s in self.past + [s for b in self.branches for s in b.samples] if s.told]
        if not told:
            return
        padded = self._padded(told)
        x = padded if self.stream.kind == "seq2seq" else self.words[padded]
        plain = Stream(self.stream.name, self.stream.changes | {"batch_first": True})
        plain = self.stream if self.first else plain
        exact, naive = plain.one_pass(x, mask=self.mask, rows=[s.row for s in told])
        valid = (np.arange(self.most) < np.array([len(s.told) for s in told])[:, None])[..., None]
        exact, naive = (np.where(valid, whole, 0.0) for whole in (exact, naive))
        got = exact.astype(np.float32)
        for row, sample in zip(got, told, strict=True):
            row[: len(sample.heard)] = [output for _, output in sample.heard]
        try:
            compare(got, exact, naive, "outputs of (sample, token)")
        except Differs as error:
            sample, token = told[error.found["index"][0]], error.found["index"][1]
            step = sample.heard[token][0]
            error.add_note(f"sample told {sample.told}; token {token} is of step {step}")
            raise


def replay(subject: Subject, name: str, steps: list[tuple]) -> None:
    """Take steps again, and check what came back."""
    history = History(subject, name)
    for step in steps:
        history.do(*step)
    history.check()
