"""What takes longer than test_transformers.py: every cache, long inputs, 16 bits, compilers.

`nox -s interop` runs it, and so does pytest where it is named.
"""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from hf_models import (
    DECODERS,
    HEADS,
    MODELS,
    SOURCES,
    answer,
    build,
    check_generation,
    judged,
    positions,
    tokens,
)
from test_transformers import masks, registered  # noqa: F401 (fixtures)

from attn_torch.interop import transformers as ours
from conformance.oracle.tolerance import compare

LONG = (400, 250, 3)
INDEXER = {"index_topk": 4, "index_n_heads": 2, "index_head_dim": 16}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", DECODERS + SOURCES)
def test_generation_finds_eagers_tokens_past_a_full_window(name, cache):
    check_generation(name, cache_implementation=cache, max_new_tokens=24)


@pytest.mark.parametrize("name", [*DECODERS, "t5"])
def test_beams_find_eagers_tokens(name):
    check_generation(name, num_beams=3)


@pytest.mark.parametrize("name", DECODERS)
def test_generation_without_a_cache_finds_eagers_tokens(name):
    check_generation(name, use_cache=False)


@pytest.mark.parametrize("name", DECODERS)
def test_prompt_goes_in_by_chunks(name):
    check_generation(name, prefill_chunk_size=5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_several_tokens_are_checked_at_once(name):
    """One pass of several tokens checks what was guessed from the prompt."""
    ids = tokens((9,))[0].repeat(1, 2)
    check_generation(name, {"input_ids": ids}, prompt_lookup_num_tokens=3)


def test_speech_is_written_down():
    sound = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(5))
    check_generation("whisper", {"input_features": sound})


@pytest.mark.parametrize("name", [*DECODERS, "bert", "modernbert"])
def test_long_padded_batch_gives_what_each_sample_gives_alone(name):
    """So long that blocks are walked; ModernBERT's positions would count padding on the left."""
    model, (ids, real) = build(name), tokens(LONG, "right" if name == "modernbert" else "left")

    def alone(model):
        samples = [row[shown][None] for row, shown in zip(ids, real, strict=True)]
        return torch.cat([answer(model, input_ids=sample)[0] for sample in samples])

    exact, naive = judged(model, alone)
    model.set_attn_implementation("attn_rosetta")
    given = {"attention_mask": real.long()} | positions(name, real)
    compare(answer(model, input_ids=ids, **given)[real].numpy(), exact, naive, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bert", "t5"])
def test_16_bits_round_as_little_as_eager(name, dtype):
    model, (ids, real) = build(name).to(dtype), tokens(side="right" if name == "t5" else "left")
    given = {"input_ids": ids, "attention_mask": real.long()}
    given |= {"decoder_input_ids": ids} if name == "t5" else positions(name, real)

    def call(model):
        return answer(model, **given)[real].float()

    exact, naive = judged(model, call, dtype)
    model.set_attn_implementation("attn_rosetta")
    compare(call(model).numpy(), exact, naive, f"{name} in {dtype}")


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
def test_autocast_rounds_as_little_as_eager(name):
    model, (ids, real) = build(name), tokens(side="left")
    given = {"input_ids": ids, "attention_mask": real.long()} | positions(name, real)

    def call(model):
        on = model.dtype is torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            return answer(model, **given)[real].float()

    exact, naive = judged(model, call)
    model.set_attn_implementation("attn_rosetta")
    compare(call(model).numpy(), exact, naive, name)


def whole(model):
    return torch.compile(model, backend="eager", fullgraph=True)


def by_layers(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


def exported(model, **given):
    return torch.export.export(model, (), given).module()


@pytest.mark.parametrize("way", [whole, by_layers, exported])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_compiled_model_is_the_model(name, way):
    torch.compiler.reset()
    model, (ids, real) = build(name), tokens(side="left")
    given = {"input_ids": ids, "attention_mask": real.long(), "use_cache": False}
    exact, naive = judged(model, lambda model: answer(model, **given)[real])
    model.set_attn_implementation("attn_rosetta")
    compiled = way(model, **given) if way is exported else way(model)
    compare(answer(compiled, **given)[real].numpy(), exact, naive, name)
    torch.compiler.reset()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_give_the_same_gradients(reentrant):
    """Up to rounding: a reentrant layer runs without gradients first, which is another path."""
    ids, real = tokens(side="left")
    found = []
    for checkpointed in (False, True):
        model = build("mistral").train()
        model.set_attn_implementation("attn_rosetta")
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        with torch.enable_grad():
            answer(model, input_ids=ids, attention_mask=real.long())[real].sum().backward()
        found.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5 * float(found[0].abs().max()))


def test_indexer_chooses_keys(monkeypatch):
    indexed = "DeepseekV32ForCausalLM", "DeepseekV32Config", MODELS["deepseek_v3"][2] | INDEXER
    monkeypatch.setitem(MODELS, "deepseek_v32", indexed)
    model, (ids, real) = build("deepseek_v32"), tokens(side="left")
    call = partial(answer, input_ids=ids, attention_mask=real.long())
    exact, naive = judged(model, lambda model: call(model)[real])
    model.set_attn_implementation("attn_rosetta")
    compare(call(model)[real].numpy(), exact, naive, "DeepSeek-V3.2")
    monkeypatch.setattr(ours, "chosen", lambda indices, keys: ours.padding([keys] * len(indices)))
    assert abs(call(model)[real].numpy() - exact).max() > 1, "every key is chosen here"


def test_prefix_of_an_image_is_seen_by_all(masks):  # noqa: F811
    text = HEADS | {"hidden_size": 32, "num_key_value_heads": 1, "num_attention_heads": 2}
    image = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma"} | text,
        vision_config={"model_type": "siglip_vision_model"} | image,
        image_token_index=98, projection_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.PaliGemmaForConditionalGeneration(config).eval()
    ids = tokens((11, 11))[0].clamp(max=97)
    ids[:, :4] = 98
    suffix = (torch.arange(11) >= 7).expand(2, -1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    given["token_type_ids"] = suffix.long()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))

    def call(model):
        return answer(model, pixel_values=pixels.to(model.dtype), **given)

    exact, naive = judged(model, call)
    model.set_attn_implementation("attn_rosetta")
    compare(call(model).numpy(), exact, naive, "PaliGemma")
    ids_of = "query_ids=int64 (2, 11), key_ids=int64 (2, 11)"
    assert f"((causal() | segments({ids_of})) & padding(hidden=bool (2, 11)))" in masks


def test_encoder_that_does_not_say_that_it_is_one():
    """CLAP's layers have no `is_causal`: what they need is said by the mask that they get."""
    settings = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ClapTextModel(transformers.ClapTextConfig(**settings)).eval()
    ids, _ = tokens((7, 7))
    exact, naive = judged(model, partial(answer, input_ids=ids))
    model.set_attn_implementation("attn_rosetta")
    compare(answer(model, input_ids=ids).numpy(), exact, naive, "CLAP")


SMALL = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 4, "attention_window": 4, "alibi": True}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("BloomForCausalLM", {"n_layer": 1, "n_head": 4}),
        ("MptForCausalLM", {"d_model": 32, "n_layers": 1, "n_heads": 4}),
        ("FalconForCausalLM", {}),
        ("DebertaV2Model", {}),
        ("XLNetModel", {"d_model": 32, "n_layer": 1, "n_head": 4}),
        ("LongformerModel", {}),
    ],
)
def test_closed_architecture_keeps_its_own(model, config):
    model = getattr(transformers, model)
    closed = model(model.config_class(**config or SMALL))
    closed.set_attn_implementation("attn_rosetta")
    assert closed.config._attn_implementation in ("eager", "sdpa")


@pytest.mark.parametrize(("name", "like_ours"), [("bart", True), ("t5", False)])
def test_sdpa_disagrees_with_itself_where_a_source_is_all_padding(name, like_ours):
    """With a position bias it hides by the smallest float, which leaves the mean; without by -inf.

    EMPTY-4 has 0 for both, as ours.
    """
    model, (ids, real) = build(name), tokens()
    real[2] = False
    found = {}
    for way in ("eager", "sdpa", "attn_rosetta"):
        model.set_attn_implementation(way)
        given = {"attention_mask": real.long(), "decoder_input_ids": ids[:, :5]}
        found[way] = answer(model, input_ids=ids, **given)[2]
    same, other = ("attn_rosetta", "eager") if like_ours else ("eager", "attn_rosetta")
    assert (found["sdpa"] - found[same]).abs().max() < 1e-3
    assert (found["sdpa"] - found[other]).abs().max() > 1


def test_attn_rosetta_keeps_the_contract_inside_of_transformers(tmp_path):
    words = ["run", "--subject", "hf:attn_rosetta", "--report", str(tmp_path / "report.jsonl")]
    done = subprocess.run(
        [sys.executable, "-m", "conformance", *words],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    (counts,) = re.findall(r"^conforms: (\d+) clauses, ", done.stdout, re.MULTILINE)
    assert int(counts) > 30
