"""Wrong layers, caches and weights for `test_checkers.py`: mistakes, and the case that refuses each.

A mistake is a function that is given the right method, and then the call; a row is a clause, a
mistake, a test of the suite and the rest of the case's id.
"""

import numpy as np

from conformance import reference, reference_layers
from conformance.naive_layers import Naive
from conformance.specs import Spec, allow, predicate
from conformance.streams import SOURCE_HIDDEN, STREAMS

# Mistakes in layers: (right method, kind, config, parameters, inputs, **options)


def norm_on_the_other_side(right, kind, config, *call, **options):
    return right(kind, config | {"norm_first": not config.get("norm_first")}, *call, **options)


def epsilon_forgotten(right, kind, config, *call, **options):
    return right(kind, config | {"layer_norm_eps": 1e-5}, *call, **options)


def last_norm_forgotten(right, kind, config, parameters, inputs, **options):
    own = {name: x for name, x in parameters.items() if not name.startswith("norm.")}
    return right(kind, config | {"norm": False}, own, inputs, **options)


def naively(ops, kind, config, parameters, inputs) -> dict:
    """Run an encoder layer without masks by other formulas."""
    batch, length, _ = inputs["src"].shape
    seen = np.ones((batch, config["nhead"], length, length), bool)
    return reference_layers.run(kind, parameters, config, inputs, {"src": {"seen": seen}}, ops)


class WithoutResidual(Naive):
    def attend(self, p, heads, query, key, **masks):
        steps = super().attend(p, heads, query, key, **masks)
        return steps | {"output": steps["output"] - query}


class ByTanh(Naive):
    def activate(self, x, name):
        bent = np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3))
        return x * (1 + bent) / 2


def residual_missing(right, *call, **options):
    return naively(WithoutResidual(), *call)


def gelu_by_tanh(right, *call, **options):
    return naively(ByTanh(), *call)


def memory_padding_shown(right, *call, memory_key_padding_mask=None, **options):
    return right(*call, **options)


def source_padding_for_the_memory_too(right, *call, src_key_padding_mask=None, **options):
    masks = {"src_key_padding_mask": src_key_padding_mask}
    masks["memory_key_padding_mask"] = src_key_padding_mask
    return right(*call, **masks, **options)


def memory_positions_aligned_right(right, kind, *call, memory_mask=None, **options):
    if isinstance(memory_mask, Spec):
        memory_mask = allow(reference.allowed(memory_mask, (3, 2, 5, 7), 7 - 5))
    return right(kind, *call, memory_mask=memory_mask, **options)


def nan_where_nothing_is_seen(right, kind, config, *call, **options):
    """As torch's path of evaluation has it."""
    return right(kind, config | {"empty_rows": "nan"}, *call, **options)


def padding_leaks(right, *call, **options):
    found = right(*call, **options)
    with np.errstate(invalid="ignore"):  # 0 * inf is the point
        leak = np.float32(0) * sum(x.sum() for x in call[3].values())
        return found | {"output": found["output"] + leak}


def weights_of_the_first_layer(right, *call, **options):
    found = right(*call, **options)
    return {name: found.get(_first_layer(name), x) for name, x in found.items()}


def _first_layer(name: str) -> str:
    parts = name.split(".")
    return ".".join("0" if part.isdigit() else part for part in parts)


def weights_averaged(right, *call, **options):
    found = right(*call, **options)
    return {name: x if name == "output" else x.mean(1) for name, x in found.items()}


def weights_take_another_path(right, *call, need_weights=False, **options):
    found = right(*call, need_weights=need_weights, **options)
    return found | {"output": found["output"] * np.float32(1.0001 if need_weights else 1)}


def training_takes_another_path(right, *call, training=False, **options):
    found = right(*call, training=training, **options)
    return found | {"output": found["output"] * np.float32(1.000001 if training else 1)}


def always_in_training(right, *call, training=False, seed=None, **options):
    return right(*call, training=True, seed=seed or 7, **options)


def never_in_training(right, *call, training=False, **options):
    return right(*call, **options)


def padded_outputs_zeroed(right, *call, **options):
    found = right(*call, **options)
    padded = options["tgt_key_padding_mask"].T[..., None]
    return found | {"output": np.where(padded, 0, found["output"])}


def float_masks_hide_where_they_are_not_zero(right, *call, src_mask=None, **options):
    src_mask = None if src_mask is None else src_mask != 0
    return right(*call, src_mask=src_mask, **options)


# Mistakes in decoding: (right method, *call, **given) -> a decoding of which a part is wrong


class Spoiled:
    """A decoding that is right but for what its class says otherwise."""

    def __init__(self, own):
        self.own, self.number = own, np.float32(0)

    def __getattr__(self, name):
        return getattr(self.own, name)

    def again(self, own):
        return type(self)(own)


def spoiled(cls):
    """Return the mistake of decoding by such a class."""

    def mistake(right, *call, **given):
        return cls(right(*call, **given))

    mistake.__name__ = cls.__name__
    return mistake


@spoiled
class StaleSlotsShow(Spoiled):
    def poison(self, number):
        other = self.again(self.own.poison(number))
        other.number = np.float32(number)
        return other

    def feed(self, x, **options):
        return self.own.feed(x, **options) + 0 * self.number


@spoiled
class ATokenMissesItself(Spoiled):
    def feed(self, x, **options):
        mask = predicate(lambda b, h, query, key: (key < query) | (query + key == 0))
        return self.own.feed(x, attn_mask=mask, **options)


@spoiled
class ATokenSeesTheNext(Spoiled):
    def feed(self, x, **options):
        mask = predicate(lambda b, h, query, key: key <= query + 1)
        return self.own.feed(x, attn_mask=mask, **options)


@spoiled
class PositionsStartAnew(Spoiled):
    def feed(self, x, memory_mask=None, **options):
        sizes = (3, 2, x.shape[1], 5)
        seen = allow(reference.allowed(memory_mask, sizes, 0))
        return self.own.feed(x, memory_mask=seen, **options)


@spoiled
class OverflowIsClamped(Spoiled):
    def feed(self, x, **options):
        try:
            return self.own.feed(x, **options)
        except ValueError:
            return np.zeros_like(x)


@spoiled
class OverflowIsHalfWritten(Spoiled):
    def feed(self, x, **options):
        try:
            return self.own.feed(x, **options)
        except ValueError:
            self.own.feed(x[:, :1], **options)
            raise


@spoiled
class HiddenTokensAreStored(Spoiled):
    def feed(self, x, hidden=None, **options):
        return self.own.feed(x, **options)


@spoiled
class AnOldCacheGoesAnywhere(Spoiled):
    def earlier(self):
        return self.again(self.own)


@spoiled
class CopiesAreOne(Spoiled):
    def copy(self):
        return self


@spoiled
class ReorderIsIgnored(Spoiled):
    def reorder(self, index):
        return self.again(self.own.copy())


@spoiled
class TruncateIsIgnored(Spoiled):
    def truncate(self, lengths):
        return self.again(self.own.copy())


@spoiled
class TheMemoryIsProjectedEachTime(Spoiled):
    def feed(self, x, **options):
        for name, sent in self.own.sent.items():
            sent.extend([SOURCE_HIDDEN.size] * ("multihead" in name))
        return self.own.feed(x, **options)


@spoiled
class StepsSeeEverything(Spoiled):
    def feed(self, x, **options):
        first = int(self.own.lengths[0])
        self.own.feed(x, **options)
        stream = STREAMS["attention"]
        whole, _ = stream.one_pass(stream.tokens(), unmasked=True)
        return whole[:, first : first + x.shape[1]].astype(x.dtype)


@spoiled
class StepsAreOffByAThousandth(Spoiled):
    def feed(self, x, **options):
        return self.own.feed(x, **options) * np.float32(1.001)


def the_end_is_not_seen(right, *call, eos_idx, **options):
    return right(*call, eos_idx=10**6, **options)


# Mistakes in weights: (right method, kind, config, parameters, ...)


def keys_and_values_swapped(right, *call):
    error, after = right(*call)
    names = {name: name.replace("k_proj", "v_proj") for name in after if "k_proj" in name}
    return error, after | {a: after[b] for a, b in names.items()}


def packed_in_another_order(right, kind, config, parameters, layout):
    found = right(kind, config, parameters, layout)
    return {n: np.roll(x, 14, 0) if "in_proj" in n else x for n, x in found.items()}


def kernels_not_transposed(right, kind, config, parameters, layout):
    found = right(kind, config, parameters, layout)
    kernel = found["query.kernel"]
    return found | {"query.kernel": kernel.reshape(14, 14).T.reshape(kernel.shape)}


def rounded_on_the_way(right, *call):
    parameters, run = right(*call)
    return {n: x.astype(np.float16).astype(x.dtype) for n, x in parameters.items()}, run


def first_mistake_alone(right, *call):
    error, after = right(*call)
    return ValueError(str(error).split(";")[0]), after


def half_loaded(right, kind, config, parameters, weights, *call):
    error, after = right(kind, config, parameters, weights, *call)
    fits = {n: x for n, x in weights.items() if n in after and x.shape == after[n].shape}
    return error, after | fits


def anything_is_a_model(right, *call):
    try:
        return right(*call)
    except ValueError:
        return {}, None


def built_in_other_words(right, *call, **settings):
    try:
        return right(*call, **settings)
    except ValueError as error:
        raise ValueError(f"invalid argument: {error}") from error


PAPER, CHUNKS, STEP = "layer_is_the_papers", "chunks", "token_by_token_is_one_pass"
LISTED = "everything_wrong_is_listed_and_nothing_is_loaded"
REACHES = "padding_mask_reaches_its_own_attention"
ROWS = {
    "layer": [
        ("LAYER-1", norm_on_the_other_side, PAPER, "encoder_layer-plain"),
        ("LAYER-1", norm_on_the_other_side, PAPER, "decoder_layer-pre_norm"),
        ("LAYER-1", residual_missing, PAPER, "encoder_layer-plain"),
        ("LAYER-1", gelu_by_tanh, PAPER, "encoder_layer-gelu"),
        ("LAYER-1", epsilon_forgotten, PAPER, "encoder_layer-eps"),
        ("LAYER-1", last_norm_forgotten, "stack_is_its_layers_and_a_last_norm", "encoder-norm"),
        ("LAYER-2", memory_padding_shown, REACHES, "memory_key_padding_mask-array"),
        ("LAYER-2", source_padding_for_the_memory_too, REACHES, "src_key_padding_mask-mask"),
        ("LAYER-2", memory_positions_aligned_right, "attention_mask_reaches_its_own_attention", "memory_mask-mask"),
        ("LAYER-2", nan_where_nothing_is_seen, "left_padding_under_a_causal_mask_stays_finite", "bool"),
        ("LAYER-3", padding_leaks, "padded_sources_change_nothing_through_three_layers", "nan"),
        ("LAYER-3", padding_leaks, "padding_changes_nothing_through_a_transformer", "inf"),
        ("LAYER-4", weights_of_the_first_layer, "weights_of_two_layers_differ"),
        ("LAYER-4", weights_of_the_first_layer, "every_attentions_weights_can_be_had", "encoder"),
        ("LAYER-4", weights_averaged, "every_attentions_weights_can_be_had", "decoder_layer"),
        ("LAYER-4", weights_take_another_path, "asking_for_weights_does_not_change_the_output", "encoder"),
        ("LAYER-5", training_takes_another_path, "training_without_dropout_is_evaluation", "left_padding"),
        ("LAYER-5", always_in_training, "evaluation_drops_nothing_and_training_does"),
        ("LAYER-5", never_in_training, "evaluation_drops_nothing_and_training_does"),
        ("LAYER-5", never_in_training, "a_dropout_of_one_leaves_the_residuals_alone", "encoder_layer-post_norm"),
        ("DOC-A9", float_masks_hide_where_they_are_not_zero, "a_layers_mask_of_float_ones_is_one_of_zeros", "evaluation"),
        ("DOC-A10", padded_outputs_zeroed, "a_decoder_layer_with_four_masks"),
        ("DOC-A13", weights_averaged, "layers_hand_out_their_weights"),
    ],
    "decoding": [
        ("CACHE-1", ATokenMissesItself, STEP, "attention"),
        ("CACHE-2", ATokenSeesTheNext, CHUNKS, "attention-(3, 5, 7)"),
        ("CACHE-3", HiddenTokensAreStored, "a_ragged_prompt_then_steps", "attention-left"),
        ("CACHE-3", HiddenTokensAreStored, "a_ragged_prompt_then_steps", "encoder-middle"),
        ("CACHE-4", OverflowIsClamped, "beyond_capacity_is_refused_and_writes_nothing", "encoder"),
        ("CACHE-4", OverflowIsHalfWritten, "beyond_capacity_is_refused_and_writes_nothing", "encoder"),
        ("CACHE-4", AnOldCacheGoesAnywhere, "a_cache_handed_on_raises_or_is_what_it_was", "attention"),
        ("CACHE-4", CopiesAreOne, "copies_go_their_own_ways", "attention"),
        ("CACHE-5", StaleSlotsShow, "unwritten_slots_may_hold_anything", "attention-nan"),
        ("CACHE-6", ReorderIsIgnored, "reordered_samples_go_on_as_those_they_were", "encoder-[2, 0, 2]"),
        ("CACHE-6", TruncateIsIgnored, "what_is_truncated_is_forgotten", "encoder-2"),
        ("CACHE-7", PositionsStartAnew, "a_memory_mask_goes_by_the_targets_positions", "decoder"),
        ("CACHE-8", StepsSeeEverything, "without_the_mask_one_pass_is_another", "attention"),
        ("CACHE-9", TheMemoryIsProjectedEachTime, "nothing_is_projected_twice", "decoder"),
        ("CACHE-10", StepsAreOffByAThousandth, "step_by_step_is_one_pass_for_every_prefix", "transformer-cached"),
        ("DOC-B10", StepsAreOffByAThousandth, "the_cache_gives_the_same_rows_one_by_one"),
    ],
    "greedy": [
        ("CACHE-10", the_end_is_not_seen, "greedy_decoding_takes_the_likeliest_token_until_the_end", "right-cached"),
        ("DOC-B11", the_end_is_not_seen, "a_sentence_is_generated_until_its_end", "again"),
    ],
    "load": [
        ("WGT-1", rounded_on_the_way, "a_saved_model_comes_back_bit_for_bit", "attention-float32"),
        ("WGT-4", anything_is_a_model, "a_truncated_file_is_refused"),
        ("WGT-4", anything_is_a_model, "nothing_is_ever_unpickled"),
    ],
    "export_weights": [
        ("WGT-2", packed_in_another_order, "torchs_layout_goes_in_and_out", "attention-float32"),
        ("WGT-3", kernels_not_transposed, "flaxs_layout_goes_in_and_out", "attention-float32"),
    ],
    "import_weights": [
        ("WGT-2", keys_and_values_swapped, "torchs_layout_goes_in_and_out", "transformer-float32"),
        ("WGT-4", first_mistake_alone, LISTED, "mapping"),
        ("WGT-4", half_loaded, LISTED, "mapping"),
    ],
    "new": [
        ("ERR-1", built_in_other_words, "wrong_call_of_a_model_gets_its_own_text", "feedforward"),
    ],
}  # fmt: skip
