"""Mistakes in decoding with a cache: what is stored, where it stands, and who may see it."""

import numpy as np

from ..cases.decoding import STREAMS, B, S
from ..mask_spec import allow, predicate
from ..oracle import reference
from .mutant import breaks

# By which name a model that decodes takes the mask of its own tokens
MASKS = {
    "attention": "attn_mask",
    "encoder_layer": "src_mask",
    "decoder_layer": "tgt_mask",
    "encoder": "mask",
    "decoder": "tgt_mask",
    "transformer": "tgt_mask",
}


class Spoiled:
    """A decoding that is right but for what its class says otherwise, and so are its branches."""

    def __init__(self, own, kind: str, config: dict, capacity: int):
        self.own, self.kind, self.config, self.capacity = own, kind, config, capacity

    def __getattr__(self, name):
        return getattr(self.own, name)

    def again(self, own):
        return type(self)(own, self.kind, self.config, self.capacity)

    def copy(self):
        return self.again(self.own.copy())

    def earlier(self):
        return self.again(self.own.earlier())

    def reorder(self, index):
        return self.again(self.own.reorder(index))

    def truncate(self, lengths):
        return self.again(self.own.truncate(lengths))

    def poison(self, number):
        return self.again(self.own.poison(number))


def spoils(name: str, *clauses: str):
    """Make a class the mistake of a mutant with this name."""

    def register(cls):
        def mistake(right, kind, config, parameters, *, capacity, **given):
            own = right(kind, config, parameters, capacity=capacity, **given)
            return cls(own, kind, config, capacity)

        mistake.__name__, mistake.__doc__ = name, cls.__doc__
        breaks("decoding", *clauses)(mistake)
        return cls

    return register


class Masked(Spoiled):
    """Its own tokens are masked otherwise, where no mask is given."""

    def sees(self, batch, head, query, key):
        raise NotImplementedError

    def feed(self, x, **options):
        name = MASKS.get(self.kind)
        if name and options.get(name) is None:
            options[name] = predicate(self.sees)
        return self.own.feed(x, **options)


@spoils("token_misses_itself", "CACHE-1", "CACHE-2", "CACHE-3")
class TokenMissesItself(Masked):
    """Positions are off by one: a new token sees those before it, and not itself."""

    def sees(self, batch, head, query, key):
        return (key < query) | (query + key == 0)


@spoils("chunk_sees_ahead", "CACHE-2", "CACHE-3", "CACHE-7")
class ChunkSeesAhead(Masked):
    """Positions are off by one: inside a chunk a token sees the one after it."""

    def sees(self, batch, head, query, key):
        return key <= query + 1


@spoils("positions_start_anew", "CACHE-7")
class PositionsStartAnew(Spoiled):
    """Each feed's positions start at 0 for the mask over the memory."""

    def feed(self, x, memory_mask=None, **options):
        if memory_mask is not None:
            sizes = (len(x), self.config["nhead"], x.shape[1], S)
            options["memory_mask"] = allow(reference.allowed(memory_mask, sizes, 0))
        return self.own.feed(x, **options)


@spoils("stale_slots_seen", "CACHE-5")
class StaleSlotsSeen(Spoiled):
    """What stands in a slot that is not written is multiplied by 0 and added: NaN gets through."""

    number = np.float32(0)

    def poison(self, number):
        other = self.again(self.own.poison(number))
        other.number = np.float32(number)
        return other

    @np.errstate(invalid="ignore")  # 0 * inf is the point
    def feed(self, x, **options):
        output = self.own.feed(x, **options)
        return output + output.dtype.type(0 * self.number)


def is_full(error: ValueError) -> bool:
    return str(error).startswith("capacity")


@spoils("overflow_clamps", "CACHE-4")
class OverflowClamps(Spoiled):
    """Beyond the capacity the last slots are written again, and the context is silently wrong."""

    def feed(self, x, **options):
        try:
            return self.own.feed(x, **options)
        except ValueError as error:
            if not is_full(error) or x.shape[1] > self.capacity:
                raise
        kept = np.minimum(self.own.lengths, self.capacity - x.shape[1])
        self.own = self.own.truncate(kept)
        return self.own.feed(x, **options)


@spoils("overflow_half_written", "CACHE-4")
class OverflowHalfWritten(Spoiled):
    """What does not fit is refused when a part of it has been written."""

    def feed(self, x, **options):
        try:
            return self.own.feed(x, **options)
        except ValueError as error:
            if is_full(error):
                self.own.feed(x[:, :1])
            raise


@spoils("hidden_tokens_stored", "CACHE-3")
class HiddenTokensStored(Spoiled):
    """`hidden` is ignored: padding is stored, counted and allowed."""

    def feed(self, x, hidden=None, **options):
        return self.own.feed(x, **options)


@spoils("last_norm_after_unpacking", "CACHE-11")
class LastNormAfterUnpacking(Spoiled):
    """A stack's last norm comes after the hidden tokens were put to 0: they are its bias."""

    def feed(self, x, **options):
        output, hidden = self.own.feed(x, **options), options.get("hidden")
        if hidden is None or "num_layers" not in self.config:
            return output
        hidden = hidden if self.config.get("batch_first", True) else hidden.T
        return np.where(hidden[..., None], output.dtype.type(0.5), output)


@spoils("old_cache_goes_on", "CACHE-4")
class OldCacheGoesOn(Spoiled):
    """A cache that was handed on is neither refused nor what it was: it holds what came later."""

    def earlier(self):
        return self.again(self.own)


@spoils("copies_are_one", "CACHE-4")
class CopiesAreOne(Spoiled):
    """A copy is the same cache under another name."""

    def copy(self):
        return self


@spoils("reorder_ignored", "CACHE-6")
class ReorderIgnored(Spoiled):
    """Reordering leaves every sample where it was."""

    def reorder(self, index):
        return self.again(self.own.copy())


@spoils("truncate_ignored", "CACHE-6")
class TruncateIgnored(Spoiled):
    """What is truncated is not forgotten."""

    def truncate(self, lengths):
        return self.again(self.own.copy())


@spoils("memory_projected_again", "CACHE-9")
class MemoryProjectedAgain(Spoiled):
    """The memory's keys are projected anew for every token."""

    def feed(self, x, **options):
        for name, sent in self.own.sent.items():
            sent.extend([B * S] * ("multihead" in name))
        return self.own.feed(x, **options)


@spoils("prefix_projected_again", "CACHE-9")
class PrefixProjectedAgain(Spoiled):
    """Every step projects the whole prefix again: nothing is cached but the outputs are right."""

    def feed(self, x, **options):
        before = int(self.own.lengths.sum())
        output = self.own.feed(x, **options)
        for name, sent in self.own.sent.items():
            if sent and "multihead" not in name:
                sent[-1] += before
        return output


@spoils("steps_see_everything", "CACHE-8", "CACHE-1", "CACHE-2")
class StepsSeeEverything(Spoiled):
    """The steps of an attention give what a pass without any mask gives, later tokens included."""

    def feed(self, x, **options):
        first, stream = int(self.own.lengths[0]), STREAMS["attention"]
        output = self.own.feed(x, **options)
        tokens = stream.tokens()
        if self.kind != "attention" or not np.array_equal(tokens[:, first:][:, : x.shape[1]], x):
            return output
        whole, _ = stream.one_pass(tokens, unmasked=True)
        return whole[:, first : first + x.shape[1]].astype(x.dtype)


@spoils("steps_apart", "CACHE-1", "CACHE-2", "CACHE-10", "DOC-B10")
class StepsApart(Spoiled):
    """The outputs of steps are off by a thousandth."""

    def feed(self, x, **options):
        output = self.own.feed(x, **options)
        return output * output.dtype.type(1.001)


@breaks("greedy", "CACHE-10", "DOC-B11")
def end_not_seen(right, *call, eos_idx, **options):
    """Greedy decoding does not stop at <eos>."""
    return right(*call, eos_idx=10**6, **options)


@breaks("greedy", "CACHE-10", "DOC-B11")
def end_left_out(right, *call, eos_idx, **options):
    """Greedy decoding leaves out the <eos> that it has found."""
    found = right(*call, eos_idx=eos_idx, **options)
    return np.where(found == eos_idx, 0, found)


@spoils("nan_forgotten", "CACHE-12")
class NanForgotten(Spoiled):
    """Keys and values that are not finite are skipped when tokens are decoded."""

    def feed(self, x, **options):
        return np.nan_to_num(self.own.feed(x, **options))


@breaks("decoding", "CACHE-13")
def window_keeps_all(right, *arguments, capacity, window=None, **given):
    """A cache of a window keeps every token, and every query sees them all."""
    return right(*arguments, capacity=capacity if window is None else 64, **given)


@breaks("decoding", "CACHE-13")
def window_cache_short(right, *arguments, window=None, **given):
    """A cache of a window of `before` keeps `before` tokens, the query's own among them."""
    given |= {} if window is None else {"window": max(window - 1, 0)}
    return right(*arguments, **given)


@breaks("decoding", "CACHE-13")
def window_of_decoders_left_out(right, kind, *arguments, capacity, window=None, **given):
    """A decoder and a Transformer take a window, and their targets see all before them."""
    if window is not None and kind in ("decoder", "transformer"):
        return right(kind, *arguments, capacity=64, **given)
    return right(kind, *arguments, capacity=capacity, window=window, **given)
