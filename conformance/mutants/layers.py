"""Mistakes in layers, stacks and whole models."""

import numpy as np

from ..mask_spec import Spec, allow, causal
from ..oracle import reference, reference_layers
from ..oracle.naive_layers import Naive
from .mutant import breaks

# Norms, residuals, activations


@breaks("layer", "LAYER-1", "DOC-A8", "DOC-A10", "DOC-B10")
def norm_on_the_other_side(right, kind, config, *call, **options):
    """The norm comes before the sublayer where it should come after it, and the other way round."""
    return right(kind, config | {"norm_first": not config.get("norm_first")}, *call, **options)


@breaks("layer", "LAYER-1")
def epsilon_forgotten(right, kind, config, *call, **options):
    """A norm's epsilon is 1e-5 whatever was asked for."""
    return right(kind, config | {"layer_norm_eps": 1e-5}, *call, **options)


@breaks("layer", "LAYER-1")
def last_norm_forgotten(right, kind, config, parameters, inputs, **options):
    """A stack ends without its last norm."""
    if config.get("norm"):
        parameters = {n: x for n, x in parameters.items() if not n.startswith("norm.")}
        config = config | {"norm": False}
    return right(kind, config, parameters, inputs, **options)


class WithoutResidual(Naive):
    """An attention is not added to what it was given."""

    def attend(self, p, heads, query, key, **masks):
        steps = super().attend(p, heads, query, key, **masks)
        return steps | {"output": steps["output"] - query}


class ByTanh(Naive):
    """Gelu is approximated."""

    def activate(self, x, name):
        if name != "gelu":
            return super().activate(x, name)
        bent = np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3))
        return x * (1 + bent) / 2


def naively(ops, right, kind, config, parameters, inputs, **options) -> dict:
    """Run an encoder layer without masks by other formulas; anything else as it is."""
    if kind != "encoder_layer" or options.keys() - {"need_weights"} or config.get("dropout"):
        return right(kind, config, parameters, inputs, **options)
    if not config.get("batch_first", True):
        return right(kind, config, parameters, inputs, **options)
    batch, length, _ = inputs["src"].shape
    masks = {"src": {"allowed": np.ones((batch, config["nhead"], length, length), bool)}}
    found = reference_layers.run(kind, parameters, config, inputs, masks, ops)
    return found if options.get("need_weights") else {"output": found["output"]}


@breaks("layer", "LAYER-1")
def residual_missing(right, *call, **options):
    """An encoder layer without masks does not add its input to what its attention gives."""
    return naively(WithoutResidual(), right, *call, **options)


@breaks("layer", "LAYER-1")
def gelu_by_tanh(right, *call, **options):
    """An encoder layer without masks has the approximate gelu where the exact one is asked for."""
    return naively(ByTanh(), right, *call, **options)


# Masks that go to the wrong attention, or to none


@breaks("layer", "LAYER-2", "LAYER-3", "DOC-A10", "DOC-A11")
def memory_padding_shown(right, *call, memory_key_padding_mask=None, **options):
    """`memory_key_padding_mask` is taken and not used."""
    return right(*call, **options)


@breaks("layer", "LAYER-2")
def source_padding_for_the_memory(right, *call, src_key_padding_mask=None, **options):
    """The source's padding mask hides the memory too, whatever was said of the memory."""
    if src_key_padding_mask is None:
        return right(*call, **options)
    masks = {"src_key_padding_mask": src_key_padding_mask}
    if call[0] == "transformer":
        masks["memory_key_padding_mask"] = src_key_padding_mask
    return right(*call, **options | masks)


@breaks("layer", "LAYER-2", "DOC-A10", "DOC-A11")
def target_mask_forgotten(right, *call, tgt_mask=None, **options):
    """`tgt_mask` is taken and not used: targets see what follows them."""
    return right(*call, **options)


@breaks("layer", "LAYER-2")
def memory_aligned_right(right, kind, config, parameters, inputs, *, memory_mask=None, **options):
    """A positional memory mask is aligned at the last target, as if its queries came last."""
    if memory_mask is None:
        return right(kind, config, parameters, inputs, **options)
    if isinstance(memory_mask, Spec):
        first = config.get("batch_first", True)
        sides = [x.shape[:2] if first else x.shape[1::-1] for x in inputs.values()]
        memory, target = sorted(zip(inputs, sides, strict=True))  # "memory" or "src", then "tgt"
        sizes = (*target[1][:1], config["nhead"], target[1][1], memory[1][1])
        memory_mask = allow(reference.allowed(memory_mask, sizes, sizes[3] - sizes[2]))
    return right(kind, config, parameters, inputs, memory_mask=memory_mask, **options)


@breaks("layer", "LAYER-2")
def layer_empty_row_nan(right, kind, config, *call, **options):
    """Rows that a layer's masks empty are NaN, as torch.nn has it."""
    return right(kind, config | {"empty_rows": "nan"}, *call, **options)


@breaks("layer", "DOC-A12", "LAYER-2")
def layer_empty_row_zero(right, kind, config, *call, **options):
    """A layer's fully masked rows attend to nothing, whatever was asked for."""
    return right(kind, config | {"empty_rows": "zero"}, *call, **options)


@breaks("layer", "LAYER-1", "LAYER-2", "DOC-B10")
def target_always_causal(right, kind, *call, **options):
    """A decoder hides what follows a target whether it is told to or not."""
    if kind in ("decoder_layer", "decoder", "transformer") and options.get("tgt_mask") is None:
        options["tgt_mask"] = causal()
    return right(kind, *call, **options)


@breaks("layer", "DOC-A9", "LAYER-2")
def layer_float_mask_hides(right, *call, **options):
    """A layer's float mask is not added: it hides where it is not 0."""
    for name, mask in options.items():
        if name.endswith("mask") and isinstance(mask, np.ndarray) and mask.dtype.kind == "f":
            options[name] = mask != 0
    return right(*call, **options)


@breaks("layer", "LAYER-3")
def padding_leaks(right, kind, config, parameters, inputs, **options):
    """What stands in padded positions is multiplied by 0 and added: NaN and inf get through."""
    found = right(kind, config, parameters, inputs, **options)
    leak = sum(0 * x.sum() for x in inputs.values())
    return found | {"output": found["output"] + found["output"].dtype.type(leak)}


@breaks("layer", "DOC-A10")
def padded_outputs_zeroed(right, kind, config, *call, tgt_key_padding_mask=None, **options):
    """The outputs of padded targets are put to 0."""
    masks = {} if tgt_key_padding_mask is None else {"tgt_key_padding_mask": tgt_key_padding_mask}
    found = right(kind, config, *call, **masks, **options)
    if not isinstance(tgt_key_padding_mask, np.ndarray):
        return found
    first = config.get("batch_first", True)
    rows = tgt_key_padding_mask if first else tgt_key_padding_mask.T
    return found | {"output": np.where(rows[..., None], 0, found["output"])}


# Weights that are handed out


@breaks("layer", "LAYER-4")
def weights_of_the_first_layer(right, *call, **options):
    """Every layer hands out the weights of the first."""
    found = right(*call, **options)
    return {name: found.get(_first_layer(name), x) for name, x in found.items()}


def _first_layer(name: str) -> str:
    return ".".join("0" if part.isdigit() else part for part in name.split("."))


@breaks("layer", "LAYER-4", "DOC-A13")
def layer_weights_averaged(right, *call, **options):
    """Layers hand out the mean over the heads, not each head's weights."""
    found = right(*call, **options)
    return {name: x if name == "output" else x.mean(1) for name, x in found.items()}


@breaks("layer", "LAYER-4")
def layer_weights_change_the_output(right, *call, need_weights=False, **options):
    """Asking for weights takes another path, whose output is off by a ten-thousandth."""
    found = right(*call, need_weights=need_weights, **options)
    factor = found["output"].dtype.type(1.0001 if need_weights else 1)
    return found | {"output": found["output"] * factor}


# Training and evaluation


@breaks("layer", "LAYER-5")
def training_takes_another_path(right, *call, training=False, **options):
    """Training without dropout is off from evaluation by a millionth."""
    found = right(*call, training=training, **options)
    factor = found["output"].dtype.type(1.000001 if training else 1)
    return found | {"output": found["output"] * factor}


@breaks("layer", "LAYER-5", "DOC-A14")
def layer_dropout_in_evaluation(right, *call, training=False, seed=None, **options):
    """A layer drops in evaluation too."""
    return right(*call, training=True, seed=seed or 7, **options)


@breaks("layer", "LAYER-5", "DOC-A14")
def layer_never_in_training(right, *call, training=False, **options):
    """A layer drops nothing in training."""
    return right(*call, **options)


@breaks("layer", "LAYER-5")
def training_in_float32(right, *call, training=False, **options):
    """In training 16-bit inputs give a float32 output."""
    found = right(*call, training=training, **options)
    if training and found["output"].dtype.itemsize == 2:
        found["output"] = found["output"].astype(np.float32)
    return found
