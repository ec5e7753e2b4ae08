"""transformers' models on attn_torch: eager in float64 judges, eager in float32 gives the budget.

`interop_transformers.py` holds what takes longer: every cache, long inputs, 16 bits, compilers.
"""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hf_models import (
    DECODERS,
    ENCODERS,
    LENGTHS,
    SOURCES,
    answer,
    build,
    check_generation,
    eager,
    judged,
    positions,
    tokens,
)
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BloomConfig,
    BloomModel,
    MptConfig,
    MptModel,
    masking_utils,
)

from attn_torch import attention, causal
from attn_torch.interop import transformers as ours
from attn_torch.interop.carried import CarriedMask
from conformance.oracle.tolerance import compare

T = max(LENGTHS)
DOCUMENTS = (6, 4, 3)


@pytest.fixture(autouse=True)
def registered():
    """Register, and leave transformers as it was."""
    kinds = (AttentionInterface, AttentionMaskInterface)
    before = [dict(kind._global_mapping) for kind in kinds]
    ours.register()
    with torch.no_grad():
        yield
    for kind, mapping in zip(kinds, before, strict=True):
        kind._global_mapping.clear()
        kind._global_mapping.update(mapping)


@pytest.fixture
def masks(monkeypatch):
    """Return the masks that layers are called with, in words."""
    seen = []

    def noted(*inputs, mask, **options):
        seen.append(repr(mask))
        return attention(*inputs, mask=mask, **options)

    monkeypatch.setattr(ours, "attention", noted)
    return seen


def alone(model, name, ids, real):
    """Return the answers to each sample without its padding, in one row."""
    samples = [row[shown][None] for row, shown in zip(ids, real, strict=True)]
    return torch.cat([answer(model, input_ids=sample)[0] for sample in samples])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", DECODERS + ENCODERS)
def test_padded_batch_gives_what_each_sample_gives_alone(name, side):
    model, (ids, real) = build(name), tokens(side=side)
    exact, naive = judged(model, lambda model: alone(model, name, ids, real))
    model.set_attn_implementation("attn_rosetta")
    places = positions(name, real)
    got = answer(model, input_ids=ids, attention_mask=real.long(), **places)[real]
    compare(got.numpy(), exact, naive, f"{name}, padded on the {side}")
    everything = torch.ones_like(real).long()
    wrong = answer(model, input_ids=ids, attention_mask=everything, **places)[real]
    if side == "left" or name in ("bert", "modernbert"):  # else it is in the future
        assert np.abs(wrong.numpy() - exact).max() > 1, "the padding makes no difference here"


@pytest.mark.parametrize("name", SOURCES)
def test_source_and_target_are_padded(name):
    model, (source, real), (target, shown) = build(name), tokens(), tokens((6, 6, 3))
    given = {"input_ids": source, "attention_mask": real.long(), "decoder_input_ids": target}
    given["decoder_attention_mask"] = shown.long()
    exact, naive = judged(model, lambda model: answer(model, **given)[shown])
    model.set_attn_implementation("attn_rosetta")
    compare(answer(model, **given)[shown].numpy(), exact, naive, name)


@pytest.mark.parametrize("name", ["vit", "whisper"])
def test_encoder_needs_no_mask(name):
    model, generator = build(name), torch.Generator().manual_seed(5)
    given = {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    if name == "whisper":
        sound = torch.randn(2, 8, 40, generator=generator)
        given = {"input_features": sound, "decoder_input_ids": tokens((6, 6))[0]}

    def call(model):
        return answer(model, **{n: x.to(model.dtype) if x.is_floating_point() else x
                                for n, x in given.items()})  # fmt: skip

    exact, naive = judged(model, call)
    model.set_attn_implementation("attn_rosetta")
    compare(call(model).numpy(), exact, naive, name)


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "gpt_oss"])
def test_packed_documents_are_as_each_alone(name):
    """Not gpt-oss: it hands no positions to its masks, so whoever attends sees all documents."""
    model, (ids, _) = build(name), tokens((T,))
    given = {"position_ids": torch.cat([torch.arange(n) for n in DOCUMENTS])[None]}
    exact, naive = judged(
        model, lambda m: torch.cat([answer(m, input_ids=x) for x in ids.split(DOCUMENTS, 1)], 1)
    )
    model.set_attn_implementation("attn_rosetta")
    got = answer(model, input_ids=ids, use_cache=False, **given)
    compare(got.numpy(), exact, naive, name)


def floats(dtype):
    """Return a mask of one's own that is added: causal, and without every third key."""
    cells = torch.full((1, 1, T, T), torch.finfo(dtype).min, dtype=dtype).triu(1)
    cells[..., 1::3] = -torch.inf
    return cells


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "t5"])
def test_float_mask_of_ones_own_is_added(name):
    """To a position bias too."""
    model, (ids, _) = build(name), tokens((T,))

    def call(model):
        run = model.encoder if name == "t5" else model
        return answer(run, input_ids=ids, attention_mask=floats(model.dtype))

    exact, naive = judged(model, call)
    model.set_attn_implementation("attn_rosetta")
    compare(call(model).numpy(), exact, naive, name)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_bool_mask_of_ones_own_allows_where_true(name):
    model, (ids, _) = build(name), tokens((T,))
    exact, naive = judged(model, lambda m: answer(m, input_ids=ids, attention_mask=floats(m.dtype)))
    model.set_attn_implementation("attn_rosetta")
    got = answer(model, input_ids=ids, attention_mask=floats(torch.float32) == 0)
    compare(got.numpy(), exact, naive, name)


FULL, NEAR = "causal()", "(sliding_window(before=4, after=2147483647) & causal())"
PADDED = "padding(hidden=bool (3, 13))"
SHIFTED = "segments(query_ids=int64 (3, 13), key_ids=int64 (3, 13))"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {f"({FULL} & {PADDED})"}),
        ("mistral", {f"({NEAR} & {PADDED})"}),
        ("gemma3", {f"({NEAR} & {PADDED})", f"({FULL} & {PADDED})"}),
        ("llama4", {f"(({SHIFTED} & {FULL}) & {PADDED})", f"({FULL} & {PADDED})"}),
        ("modernbert", {f"(sliding_window(before=3, after=3) & {PADDED})", PADDED}),
        ("t5", {PADDED}),
    ],
)
def test_masks_arrive_by_name(name, expected, masks):
    model, (ids, real) = build(name), tokens(side="left")
    model.set_attn_implementation("attn_rosetta")
    run = model.encoder if name == "t5" else model
    run(input_ids=ids, attention_mask=real.long())
    assert set(masks) == expected


def test_packed_documents_arrive_as_segments(masks):
    model, (ids, _) = build("mistral"), tokens((T,))
    model.set_attn_implementation("attn_rosetta")
    places = torch.cat([torch.arange(n) for n in DOCUMENTS])[None]
    model(input_ids=ids, position_ids=places, use_cache=False)
    documents = "segments(query_ids=int64 (1, 13), key_ids=int64 (1, 13))"
    assert set(masks) == {f"({NEAR} & {documents})"}


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bert", "t5"])
def test_weights_are_eagers(name):
    model, (ids, real) = build(name), tokens(side="left")
    given = {"input_ids": ids, "attention_mask": real.long(), "output_attentions": True}
    run = model.encoder if name == "t5" else model

    def weights(_):
        return torch.stack(run(**given).attentions, 1).transpose(1, 3)[real]

    exact, naive = judged(model, weights)
    model.set_attn_implementation("attn_rosetta")
    compare(weights(model).numpy(), exact, naive, f"weights of {name}")


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "bert", "t5"])
def test_gradients_are_eagers(name):
    model, (ids, real) = build(name), tokens(side="right" if name == "t5" else "left")
    given = {"input_ids": ids, "attention_mask": real.long()} | positions(name, real)
    if name == "t5":
        given["decoder_input_ids"] = given.pop("position_ids")

    def gradients(model):
        model.zero_grad()
        with torch.enable_grad():
            answer(model, **given)[real].square().mean().backward()
        named = [x for x in model.named_parameters() if x[1].grad is not None]
        return {name: x.grad.clone() for name, x in named}

    exact, naive = {}, {}
    for found, dtype in ((exact, torch.float64), (naive, torch.float32)):
        with eager(model, dtype):
            found |= gradients(model)
    model.set_attn_implementation("attn_rosetta")
    got = gradients(model)
    assert got.keys() == exact.keys()
    for parameter in exact:
        arrays = (x[parameter].numpy() for x in (got, exact, naive))
        compare(*arrays, f"gradient of {parameter}")


def test_dropout_drops_by_torchs_seed():
    query, key, value = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(2))
    layer, mask = SimpleNamespace(is_causal=True), ours.make_mask(1, 5, 5)
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(ours.attend(layer, query, key, value, mask, dropout=0.5)[0])
    torch.manual_seed(3)
    dropped = attention(query, key, value, mask=causal(), dropout=0.5).transpose(1, 2)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], dropped)
    assert not torch.equal(dropped, ours.attend(layer, query, key, value, mask)[0])


@pytest.mark.parametrize("name", ["llama", "bert", "mistral"])
def test_nan_in_padding_reaches_no_token(name):
    model, (ids, real) = build(name), tokens(side="left")
    given = {"attention_mask": real.long()} | positions(name, real)
    embedded = model.get_input_embeddings()(ids)
    dirty = torch.where(real[..., None], embedded, torch.nan)
    model.set_attn_implementation("attn_rosetta")
    clean, got = (answer(model, inputs_embeds=x, **given)[real] for x in (embedded, dirty))
    assert got.isfinite().all()
    torch.testing.assert_close(got, clean, rtol=1e-5, atol=1e-4)  # other rows: other roundings
    model.set_attn_implementation("eager")
    assert answer(model, inputs_embeds=dirty, **given)[real].isnan().any(), "nothing was dirty"


@pytest.mark.parametrize("name", SOURCES)
def test_source_of_padding_alone_gives_nothing(name, masks):
    """As sdpa in BART; in T5 sdpa gives the mean of all values, as eager does in both."""
    model, (ids, real) = build(name), tokens()
    real[2] = False
    given = {"attention_mask": real.long(), "decoder_input_ids": ids[:, :5]}
    model.set_attn_implementation("attn_rosetta")
    memory = model.get_encoder()(input_ids=ids, attention_mask=real.long())
    first = answer(model, encoder_outputs=memory, **given)
    memory.last_hidden_state = memory.last_hidden_state.index_fill(0, torch.tensor(2), 3.0)
    assert torch.equal(first, answer(model, encoder_outputs=memory, **given))


@pytest.mark.parametrize("how", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 5}])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt_oss", "llama4"])
def test_generation_finds_eagers_tokens(name, how):
    """Of a static cache there is more than is used; a second chunk of a prompt starts behind."""
    check_generation(name, **how)


def test_keys_that_an_indexer_chooses_are_the_only_ones():
    query, key, value = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(2))
    indices = torch.tensor([[[0, 0], [0, 1], [1, 2], [0, 3], [2, 4]]])
    allowed = torch.zeros(1, 1, 5, 5, dtype=torch.bool).scatter_(-1, indices[:, None], True)
    layer, mask = SimpleNamespace(is_causal=True), ours.make_mask(1, 5, 5)
    got = ours.attend(layer, query, key, value, mask, indices=indices)[0]
    assert torch.equal(got, ours.attend(layer, query, key, value, allowed)[0])
    assert not torch.equal(got, ours.attend(layer, query, key, value, mask)[0])


def both_ways(batch, head, query, key):
    return (query - key).abs() % 3 == 0


IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 2, 2, 2, 3]])
PLACES = torch.tensor([[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 1, 2, 3, 0]])
m = masking_utils
MASKS = {
    "causal": m.causal_mask_function,
    "everything": m.bidirectional_mask_function,
    "window": m.sliding_window_causal_mask_function(3),
    "window that looks ahead": m.sliding_window_overlay(3),
    "window both ways": m.sliding_window_bidirectional_mask_function(2),
    "chunks": m.chunked_causal_mask_function(3, torch.tensor([0, 2])),
    "blocks": m.or_masks(m.causal_mask_function, m.blockwise_overlay(IDS - 1)),
    "everything or causal": m.or_masks(m.bidirectional_mask_function, m.causal_mask_function),
    "documents": m.and_masks(
        m.remap_positions_for_packed_sequence(m.sliding_window_causal_mask_function(2), PLACES),
        m.packed_sequence_mask_function(IDS),
    ),
    "other documents": m.and_masks(
        m.remap_positions_for_packed_sequence(m.causal_mask_function, PLACES.flip(0)),
        m.packed_sequence_mask_function(IDS),
    ),
    "a function of ones own": both_ways,
}
UNKNOWN = {"other documents", "a function of ones own"}


@pytest.mark.parametrize("name", MASKS)
def test_mask_is_the_array_of_transformers(name):
    """Prompt, chunk, one token, a cache that has dropped keys, a cache with room, padding."""
    square = "documents" in name
    padding = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]).bool()
    for q_length, kv_length, q_offset, kv_offset in (
        (7, 7, 0, 0), (3, 7, 4, 0), (1, 7, 6, 0), (2, 4, 5, 3), (1, 3, 6, 4), (4, 7, 0, 0),
    ):  # fmt: skip
        if square and q_length != 7:
            continue
        for attention_mask in (None, padding, padding[:, : q_offset + q_length]):
            sizes = {"batch_size": 2, "q_length": q_length, "kv_length": kv_length}
            sizes |= {"q_offset": q_offset, "kv_offset": kv_offset}
            sizes |= {"mask_function": MASKS[name], "attention_mask": attention_mask}
            got = ours.make_mask(**sizes, allow_is_bidirectional_skip=True, dtype=torch.float32)
            expected = m.sdpa_mask(**sizes, allow_is_causal_skip=False)
            assert isinstance(got, CarriedMask) == (q_length > 1 and name not in UNKNOWN)
            assert torch.equal(got, expected), f"{name}: {sizes}"


def test_function_of_single_cells_gives_an_array():
    def scalar(batch, head, query, key):
        assert query.ndim == key.ndim == 0, "it is asked of one cell at a time, by vmap"
        return (query - key) % 3 == 0

    function = m.and_masks(m.causal_mask_function, scalar)
    got = ours.make_mask(2, 5, 5, mask_function=function, use_vmap=True)
    cells = torch.arange(5)
    expected = ((cells[:, None] - cells) % 3 == 0).tril()
    assert torch.equal(got, expected.expand(2, 1, 5, 5))


def test_carried_mask_is_the_array_once_it_is_used():
    carried = ours.make_mask(2, 3, 5, q_offset=2)
    assert carried.contiguous() is carried
    assert carried.to("cpu") is carried
    assert carried.array is None
    carried[0, 0, :, 1] = False
    query, key = torch.ones(2, 4, 3, 8), torch.ones(2, 2, 5, 8)
    mask, offset, bias = ours.read(carried, query, key)
    assert (mask.name, offset, bias) == ("allow", None, None)
    assert mask.allowed(3, 5)[:, 0].sum((1, 2)).tolist() == [9, 12]


LAYER, ENCODER, UNSAID = (
    SimpleNamespace(is_causal=True), SimpleNamespace(is_causal=False), SimpleNamespace(),
)  # fmt: skip


def call(layer, mask, queries=3, **options):
    query, key = torch.ones(2, 4, queries, 8), torch.ones(2, 2, 3, 8)
    return ours.attend(layer, query, key, key, mask, **options)[0]


@pytest.mark.parametrize(
    ("error", "text", "layer", "mask", "options"),
    [
        (ValueError, "needs its mask, or it would look ahead", LAYER, None, {}),
        (ValueError, "needs its mask, or it would look ahead", UNSAID, None, {}),
        (ValueError, "needs its mask, or it would look ahead", ENCODER, None, {"is_causal": True}),
        (ValueError, r"must be \(B, H, T, S\)", LAYER, torch.ones(2, 3), {}),
        (TypeError, "must be bool, or floats to be added: got torch.int64", LAYER,
         torch.ones(2, 1, 3, 3).long(), {}),
        (ValueError, r"must fit its layer, .2, 1, 3, 3.: got .2, 1, 3, 4.", LAYER, "carried", {}),
        (ValueError, "takes no sinks", ENCODER, None, {"sinks": torch.ones(2, 4, 3, 1)}),
        (ValueError, "takes no block_indices", ENCODER, None, {"block_indices": torch.ones(1)}),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(error, text, layer, mask, options):
    mask = ours.make_mask(2, 3, 4) if mask == "carried" else mask
    with pytest.raises(error, match=text):
        call(layer, mask, **options)


def test_one_query_and_encoders_need_no_mask():
    ones = torch.ones(2, 1, 4, 8)
    assert torch.equal(call(LAYER, None, queries=1), ones)
    assert torch.equal(call(ENCODER, None), ones.expand(2, 3, 4, 8))
    assert torch.equal(call(LAYER, None, is_causal=False), ones.expand(2, 3, 4, 8))


def test_model_whose_mask_function_was_forgotten_is_refused():
    AttentionInterface.register("forgotten", ours.attend)
    model, (ids, real) = build("llama"), tokens(side="left")
    model.set_attn_implementation("forgotten")
    with pytest.raises(ValueError, match="got none for LlamaAttention"):
        model(input_ids=ids, attention_mask=real.long())


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (BloomModel, BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2)),
        (MptModel, MptConfig(vocab_size=9, d_model=8, n_layers=1, n_heads=2)),
    ],
)
def test_model_that_adds_the_mask_itself_is_refused(model, config):
    """Under this name it would add 1 to the scores of what may be seen."""
    config._attn_implementation = "attn_rosetta"
    text = f"models that ask for an attention function, use eager: got {model.__name__}"
    with pytest.raises(ValueError, match=f"^attn_rosetta is for {text}$"):
        model(config)(torch.tensor([[1, 2, 3]]))


def test_transformers_with_other_masks_is_refused(monkeypatch):
    def overlay(sliding_window):
        def inner_mask(batch, head, query, key):
            return key >= query - sliding_window

        inner_mask.__module__ = m.__name__
        inner_mask.__qualname__ = "sliding_window_overlay.<locals>.inner_mask"
        return inner_mask

    monkeypatch.setattr(m, "sliding_window_overlay", overlay)
    with pytest.raises(RuntimeError, match="must be those that are known here: got another"):
        ours.register()


def test_register_asks_for_transformers_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="install transformers"):
        ours.register()


def test_page_runs_and_shows_the_mask_that_arrives(monkeypatch):
    page = (Path(__file__).parents[1] / "docs/transformers.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)\n```", page, re.DOTALL)
    seen, names = [], {}
    attend = ours.attend

    def noted(module, query, key, value, attention_mask, **options):
        seen.append(repr(attention_mask))
        return attend(module, query, key, value, attention_mask, **options)

    monkeypatch.setattr(ours, "attend", noted)
    exec(example, names)
    assert seen[0] == shown
    assert names["logits"].shape == (2, 5, 99)
    assert names["longer"].shape == (2, 9)
