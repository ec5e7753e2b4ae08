"""Small models of transformers, random, with weights so large that attention is sharp.

Exact is eager in float64. Its softmax is in float32 whatever the model's dtype, so here it is told
to keep float64; else the smallest float64, by which eager hides, would be -inf and then NaN.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor

from conformance.oracle.tolerance import compare

WORDS = 99
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 96, "max_position_embeddings": 512, "vocab_size": WORDS,
         "pad_token_id": 0}  # fmt: skip
ENDLESS = SIZES | {"bos_token_id": 1, "eos_token_id": None}
GROUPED = ENDLESS | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 16}
NEAR = {"sliding_window": 5}
LAYERS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
BOTH = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "d_model": 64,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
        "vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
EXPERTS = {"experts_implementation": "eager", "num_experts_per_tok": 1}
# The class, the class of its configuration, and what that is told.
MODELS: dict[str, tuple[str, str, dict]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config",
             {"vocab_size": WORDS, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512,
              "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", HEADS | {"head_dim": 24}),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED | NEAR),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config",
               HEADS | NEAR | {"attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig",
               HEADS | NEAR | LAYERS | {"query_pre_attn_scalar": 24}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig",
                HEADS | NEAR | LAYERS | EXPERTS
                | {"num_local_experts": 2, "rope_parameters": {"rope_type": "default",
                                                               "rope_theta": 1e4}}),
    "llama4": ("Llama4ForCausalLM", "Llama4TextConfig",
               HEADS | {"attention_chunk_size": 4, "num_local_experts": 2,
                        "intermediate_size_mlp": 96, "no_rope_layers": [1, 0, 1],
                        "layer_types": ["chunked_attention", "full_attention",
                                        "chunked_attention"]}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config",
                    ENDLESS | {"num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16,
                               "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
                               "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
                               "first_k_dense_replace": 1, "moe_intermediate_size": 32,
                               "n_shared_experts": 1} | EXPERTS | {"num_experts_per_tok": 2}),
    "bert": ("BertForMaskedLM", "BertConfig", SIZES),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig",
                   SIZES | {"local_attention": 6, "global_attn_every_n_layers": 2,
                            "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1,
                            "eos_token_id": 2}),
    "clip_text": ("CLIPTextModel", "CLIPTextConfig",
                  SIZES | {"eos_token_id": 2, "bos_token_id": 1}),
    "t5": ("T5ForConditionalGeneration", "T5Config",
           {"vocab_size": WORDS, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2,
            "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": None,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}),
    "bart": ("BartForConditionalGeneration", "BartConfig",
             BOTH | {"decoder_start_token_id": 2, "forced_eos_token_id": None,
                     "max_position_embeddings": 128}),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig",
                BOTH | {"num_mel_bins": 8, "max_source_positions": 20, "suppress_tokens": None,
                        "max_target_positions": 64, "decoder_start_token_id": 3,
                        "begin_suppress_tokens": None}),
    "vit": ("ViTForImageClassification", "ViTConfig",
            {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
             "intermediate_size": 96, "image_size": 16, "patch_size": 4, "num_labels": 10}),
}  # fmt: skip
DECODERS = list(MODELS)[:9]
ENCODERS = ["bert", "modernbert", "clip_text"]
SOURCES = ["t5", "bart"]
LENGTHS = (13, 7, 1)


def build(name: str, **changes: Any) -> Any:
    """Return a model with random weights, in evaluation."""
    model, config, settings = MODELS[name]
    made = getattr(transformers, model)(getattr(transformers, config)(**settings | changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if (std := spread(name, parameter)) is not None:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return made.eval()


def spread(name: str, parameter: Tensor) -> float | None:
    """Return the standard deviation of a parameter's numbers, None for those of norms."""
    if parameter.ndim < 2:
        plain = "norm" not in name.lower() and "ln" not in name
        return 2.0 if "sinks" in name else 0.1 if plain else None
    if any(word in name for word in ("embed", "wte", "wpe", "shared", "relative_attention_bias")):
        return 1.0
    fan = parameter.shape[-1] if parameter.ndim == 2 else parameter[0].numel() ** 0.5
    return 1.6 * fan**-0.5


def tokens(lengths: tuple[int, ...] = LENGTHS, side: str = "right") -> tuple[Tensor, Tensor]:
    """Return samples padded on a side, 0 where padding is, and True where it is not."""
    T = max(lengths)
    ids = torch.randint(3, WORDS, (len(lengths), T), generator=torch.Generator().manual_seed(1))
    real = torch.arange(T) < torch.tensor(lengths)[:, None]
    ids = ids * real
    if side == "right":
        return ids, real
    rolled = [row.roll(T - n) for row, n in zip(ids, lengths, strict=True)]
    return torch.stack(rolled), real.flip(1)


def positions(name: str, real: Tensor) -> dict[str, Tensor]:
    """Return position_ids as a model takes them: padding does not count."""
    return {} if name == "modernbert" else {"position_ids": (real.cumsum(1) - 1).clamp(min=0)}


def answer(model: Any, **inputs: Any) -> Tensor:
    """Return logits, or what a model without a head has."""
    output = model(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state


@contextmanager
def eager(model: Any, dtype: torch.dtype) -> Iterator[Any]:
    """Turn a model into eager's in a dtype, and back into what it was."""
    before, softmax = (model.config._attn_implementation, model.dtype), torch.nn.functional.softmax

    def kept(scores: Tensor, dim: int | None = None, dtype: Any = None, **options: Any) -> Tensor:
        dtype = None if scores.dtype is torch.float64 else dtype
        return softmax(scores, dim=dim, dtype=dtype, **options)

    model.set_attn_implementation("eager")
    with mock.patch("torch.nn.functional.softmax", kept):
        yield model.to(dtype)
    model.set_attn_implementation(before[0])
    model.to(before[1])


def judged(
    model: Any, call: Callable[[Any], Tensor], dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """Return eager's answer in float64, and in the dtype of the budget, as NumPy arrays."""
    with eager(model, torch.float64):
        exact = call(model).detach().numpy()
    with eager(model, dtype):
        naive = call(model).detach().numpy()
    return exact, naive


def check_generation(name: str, inputs: dict | None = None, **options: Any) -> None:
    """Check that our logits of every step of `generate` are eager's, and so its tokens."""
    model, (ids, real) = build(name), tokens(side="right" if name in SOURCES else "left")
    given = {"input_ids": ids, "attention_mask": real.long()} if inputs is None else inputs
    options = {"do_sample": False, "max_new_tokens": 7} | options
    options |= {"return_dict_in_generate": True, "output_logits": True}
    sequences = []

    def logits(model: Any) -> Tensor:
        cast = {n: x.to(model.dtype) if x.is_floating_point() else x for n, x in given.items()}
        found = model.generate(**cast, **options)
        sequences.append(found.sequences)
        return torch.stack(found.logits)

    exact, naive = judged(model, logits)
    model.set_attn_implementation("attn_rosetta")
    compare(logits(model).numpy(), exact, naive, f"logits of {name}, {options}")
    assert torch.equal(sequences[0], sequences[2]), "the tokens are others"
