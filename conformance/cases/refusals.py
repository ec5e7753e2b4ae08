"""The table of ERR-1: wrong calls, each with the type and the text that every backend must raise.

A call is a function of a backend's module `m` and of `a`, which makes arrays by shape and dtype.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Wrong(NamedTuple):
    """One wrong call. `traced`: it is refused under compilation too, with the same text."""

    name: str
    error: type[Exception]
    text: str
    call: Callable
    traced: bool = False


def attend(m, a, q=(2, 3, 5, 8), k=(2, 3, 7, 8), v=(2, 3, 7, 4), **options):
    return m.attention(a(*q), a(*k), a(*v), **options)


def part(m, a, q=(2, 3, 5, 8), k=(2, 3, 7, 8), v=(2, 3, 7, 4), **options):
    return m.attention_part(a(*q), a(*k), a(*v), **options)


def parts(m, a, sums=(2, 3, 5, 4), maximum=(2, 3, 5), total=(2, 3, 5), dtype="float32"):
    return m.Partial(*(a(*shape, dtype=dtype) for shape in (sums, maximum, total)))


def multi(m, a, q=(2, 5, 12), *others, config=(12, 3), settings=None, **options):
    attn = a.module(*config, **settings or {})
    return attn(a(*q), *(a(*shape) for shape in others), **options)


def offsets(a, *numbers):
    return a.subject.array(np.array(numbers, np.int32))


def changed(a, **settings):
    """Return an attention whose settings were changed after it was made."""
    attn = a.module(12, 3)
    for name, value in settings.items():
        setattr(attn, name, value)
    return attn


READINGS = (
    "query_offset is needed where T != S: 0 where queries and keys start together, "
    "S - T = 2 where the queries are the last positions: got None with T = 5 and S = 7"
)
FLOATS = "must be float16, bfloat16, float32 or float64"
SHARE = "query, key and value must share"
BARE = "mask must be a Mask, write allow(array) or hide(array)"

ATTENTION = [
    Wrong("query_rank", ValueError, "query must be (B, H, T, D): got (3, 5, 8)",
          lambda m, a: attend(m, a, q=(3, 5, 8)), True),
    Wrong("key_rank", ValueError, "key must be (B, H_kv, S, D): got (2, 7, 8)",
          lambda m, a: attend(m, a, k=(2, 7, 8)), True),
    Wrong("value_rank", ValueError, "value must be (B, H_kv, S, D_v): got (7, 4)",
          lambda m, a: attend(m, a, v=(7, 4)), True),
    Wrong("one_head", ValueError, "query must be (B, H, T, D): got (2, 5, 8)",
          lambda m, a: attend(m, a, q=(2, 5, 8), k=(2, 7, 8), v=(2, 7, 4)), True),
    Wrong("steps_rank", ValueError, "query must be (B, H, T, D), (B, T, D) or (T, D): got (8,)",
          lambda m, a: m.attention_steps(a(8), a(8), a(4)), True),
    Wrong("steps_ranks_differ", ValueError, f"{SHARE} a rank: got 3, 4 and 3",
          lambda m, a: m.attention_steps(a(2, 5, 8), a(2, 1, 7, 8), a(2, 7, 4)), True),
    Wrong("steps_list", TypeError, "key must be an array: got list",
          lambda m, a: m.attention_steps(a(5, 8), [[1.0]], a(7, 4))),
    Wrong("query_list", TypeError, "query must be an array: got list",
          lambda m, a: m.attention([[1.0]], a(2, 3, 7, 8), a(2, 3, 7, 8))),
    Wrong("query_ints", TypeError, f"query {FLOATS}: got int32",
          lambda m, a: m.attention(a(2, 3, 5, 8, dtype="int32"), a(2, 3, 7, 8), a(2, 3, 7, 8)), True),
    Wrong("value_bools", TypeError, f"value {FLOATS}: got bool",
          lambda m, a: m.attention(a(2, 3, 5, 8), a(2, 3, 7, 8), a(2, 3, 7, 8, dtype="bool")), True),
    Wrong("mixed_dtypes", TypeError, f"{SHARE} a dtype: got float32, float16 and float32",
          lambda m, a: m.attention(a(2, 3, 5, 8), a(2, 3, 7, 8, dtype="float16"), a(2, 3, 7, 8)), True),
    Wrong("batch_sizes", ValueError, f"{SHARE} a batch size: got 2, 5 and 2",
          lambda m, a: attend(m, a, k=(5, 3, 7, 8)), True),
    Wrong("head_dim", ValueError, "query and key must share head_dim: got 8 and 7",
          lambda m, a: attend(m, a, k=(2, 3, 7, 7)), True),
    Wrong("head_dim_zero", ValueError, "head_dim must be at least 1: got 0",
          lambda m, a: attend(m, a, q=(2, 3, 5, 0), k=(2, 3, 7, 0)), True),
    Wrong("lengths_differ", ValueError, "key and value must share a length: got 7 and 6",
          lambda m, a: attend(m, a, v=(2, 3, 6, 4)), True),
    Wrong("kv_heads_differ", ValueError, "key and value must share their number of heads: got 3 and 1",
          lambda m, a: attend(m, a, v=(2, 1, 7, 4)), True),
    Wrong("heads_do_not_divide", ValueError, "query heads must be a multiple of key heads: got 3 and 2",
          lambda m, a: attend(m, a, k=(2, 2, 7, 8), v=(2, 2, 7, 4)), True),
    Wrong("no_kv_heads", ValueError, "query heads must be a multiple of key heads: got 3 and 0",
          lambda m, a: attend(m, a, k=(2, 0, 7, 8), v=(2, 0, 7, 4)), True),
    Wrong("scale_text", TypeError, "scale must be a number: got str",
          lambda m, a: attend(m, a, scale="half")),
    Wrong("scale_bool", TypeError, "scale must be a number: got bool",
          lambda m, a: attend(m, a, scale=True)),
    Wrong("softcap_zero", ValueError, "softcap must be above 0: got 0.0",
          lambda m, a: attend(m, a, softcap=0.0), True),
    Wrong("softcap_negative", ValueError, "softcap must be above 0: got -2",
          lambda m, a: attend(m, a, softcap=-2), True),
    Wrong("softcap_nan", ValueError, "softcap must be above 0: got nan",
          lambda m, a: attend(m, a, softcap=float("nan"))),
    Wrong("softcap_inf", ValueError, "softcap must be finite in float32, or None: got inf",
          lambda m, a: attend(m, a, softcap=float("inf")), True),
    Wrong("sinks_list", TypeError, "sinks must be an array: got list",
          lambda m, a: attend(m, a, sinks=[0.0, 0.0, 0.0])),
    Wrong("sinks_dtype", TypeError, "sinks must be float32: got float16",
          lambda m, a: attend(m, a, sinks=a(3, dtype="float16")), True),
    Wrong("sinks_int", TypeError, "sinks must be float32: got int32",
          lambda m, a: attend(m, a, sinks=a(3, dtype="int32")), True),
    Wrong("sinks_of_other_heads", ValueError, "sinks must be (H,) = (3,): got (1,)",
          lambda m, a: attend(m, a, sinks=a(1)), True),
    Wrong("sinks_rank", ValueError, "sinks must be (H,) = (3,): got (3, 1)",
          lambda m, a: attend(m, a, sinks=a(3, 1)), True),
    Wrong("sinks_steps", ValueError, "sinks must be (H,) = (1,): got (3,)",
          lambda m, a: m.attention_steps(a(5, 8), a(7, 8), a(7, 4), sinks=a(3)), True),
    Wrong("policy", ValueError, "empty_rows must be 'zero', 'nan' or 'uniform': got 'mean'",
          lambda m, a: attend(m, a, empty_rows="mean"), True),
    Wrong("policy_none", ValueError, "empty_rows must be 'zero', 'nan' or 'uniform': got None",
          lambda m, a: attend(m, a, empty_rows=None), True),
    Wrong("dropout_negative", ValueError, "dropout must lie in 0..1: got -0.1",
          lambda m, a: attend(m, a, dropout=-0.1), True),
    Wrong("dropout_above_one", ValueError, "dropout must lie in 0..1: got 1.5",
          lambda m, a: attend(m, a, dropout=1.5), True),
    Wrong("dropout_text", TypeError, "dropout must be a number: got str",
          lambda m, a: attend(m, a, dropout="0.1")),
    Wrong("bias_list", TypeError, "bias must be an array: got list",
          lambda m, a: attend(m, a, bias=[[0.0]])),
    Wrong("bias_bool", TypeError, "bias must be float32: got bool",
          lambda m, a: attend(m, a, bias=a(5, 7, dtype="bool")), True),
    Wrong("bias_dtype", TypeError, "bias must be float32: got float16",
          lambda m, a: attend(m, a, bias=a(5, 7, dtype="float16")), True),
    Wrong("bias_rank", ValueError, "bias must be (T, S) or (B, H, T, S): got (3, 5, 7)",
          lambda m, a: attend(m, a, bias=a(3, 5, 7)), True),
    Wrong("bias_transposed", ValueError, "bias must fit (T, S) = (5, 7): got (7, 5)",
          lambda m, a: attend(m, a, bias=a(7, 5)), True),
    Wrong("bias_row", ValueError, "bias must fit (T, S) = (5, 7): got (1, 7)",
          lambda m, a: attend(m, a, bias=a(1, 7)), True),
    Wrong("bias_batch", ValueError, "bias must fit (B, H, T, S) = (2, 3, 5, 7): got (4, 3, 5, 7)",
          lambda m, a: attend(m, a, bias=a(4, 3, 5, 7)), True),
    Wrong("offset_missing", ValueError, READINGS,
          lambda m, a: attend(m, a, mask=m.causal()), True),
    Wrong("offset_missing_in_a_part", ValueError, READINGS,
          lambda m, a: attend(m, a, mask=m.padding([7, 0]) & ~m.sliding_window(2)), True),
    Wrong("offset_float", TypeError, "query_offset must be an int or integers (B,): got float",
          lambda m, a: attend(m, a, mask=m.causal(), query_offset=2.0), True),
    Wrong("offset_float_array", TypeError,
          "query_offset must be an int or integers (B,): got float32 array",
          lambda m, a: attend(m, a, mask=m.causal(), query_offset=a(2)), True),
    Wrong("offset_float_without_mask", TypeError,
          "query_offset must be an int or integers (B,): got float",
          lambda m, a: attend(m, a, query_offset=1.5), True),
    Wrong("query_masked", TypeError, "query must be an array: got MaskedArray",
          lambda m, a: m.attention(np.ma.ones((2, 3, 5, 8)), a(2, 3, 7, 8), a(2, 3, 7, 8))),
    Wrong("offset_far", ValueError, "query_offset must lie in -2**30..2**30: got 1099511627776",
          lambda m, a: attend(m, a, mask=m.causal(), query_offset=2**40), True),
    Wrong("offset_far_in_one_sample", ValueError,
          "query_offset must lie in -2**30..2**30: got 1073741825",
          lambda m, a: attend(m, a, mask=m.causal(), query_offset=offsets(a, 0, 2**30 + 1))),
    Wrong("offset_bool", TypeError, "query_offset must be an int or integers (B,): got bool",
          lambda m, a: attend(m, a, mask=m.causal(), query_offset=True)),
    Wrong("offset_batch", ValueError, "query_offset must be an int or (B,) = (2,): got (3,)",
          lambda m, a: attend(m, a, mask=m.causal(), query_offset=a(3, dtype="int32")), True),
]  # fmt: skip

NO_PART = "a part must be a Partial, as attention_part gives"
FIELDS = "a part must have sums (B, H, T, D_v), maximum (B, H, T) and total (B, H, T)"
PARTS = [
    Wrong("part_head_dim", ValueError, "query and key must share head_dim: got 8 and 7",
          lambda m, a: part(m, a, k=(2, 3, 7, 7)), True),
    Wrong("part_without_offset", ValueError, READINGS,
          lambda m, a: part(m, a, mask=m.causal()), True),
    Wrong("part_bare_mask", TypeError, f"{BARE}: got bool array",
          lambda m, a: part(m, a, mask=a(2, 3, 5, 7, dtype="bool")), True),
    Wrong("merge_nothing", ValueError, "merge needs at least one part: got none",
          lambda m, a: m.merge()),
    Wrong("merge_list", TypeError, f"{NO_PART}: got list", lambda m, a: m.merge([parts(m, a)] * 2)),
    Wrong("merge_array", TypeError, f"{NO_PART}: got float32 array",
          lambda m, a: m.merge(parts(m, a), a(2, 3, 5, 4)), True),
    Wrong("merge_shapes", ValueError,
          "parts must share a shape: got (2, 3, 5, 4) and (2, 3, 6, 4)",
          lambda m, a: m.merge(parts(m, a), part(m, a, q=(2, 3, 6, 8))), True),
    Wrong("merge_dtypes", TypeError, "parts must share a dtype: got float32 and float16",
          lambda m, a: m.merge(parts(m, a), parts(m, a, dtype="float16")), True),
    Wrong("merge_fields", ValueError, f"{FIELDS}: got (2, 3, 5, 4), (2, 3, 5) and (2, 3, 5, 1)",
          lambda m, a: m.merge(parts(m, a, total=(2, 3, 5, 1))), True),
    Wrong("merge_no_arrays", TypeError, "sums must be an array: got float",
          lambda m, a: m.merge(m.Partial(1.0, 0.0, 1.0))),
    Wrong("finish_tuple", TypeError, f"{NO_PART}: got tuple",
          lambda m, a: m.finish(tuple(parts(m, a)))),
    Wrong("finish_fields", ValueError, f"{FIELDS}: got (2, 3, 4), (2, 3, 5) and (2, 3, 5)",
          lambda m, a: m.finish(parts(m, a, sums=(2, 3, 4))), True),
    Wrong("finish_uniform", ValueError,
          "empty_rows must be 'zero' or 'nan', a part does not know the mean of all values: "
          "got 'uniform'",
          lambda m, a: m.finish(parts(m, a), empty_rows="uniform"), True),
    Wrong("finish_sinks_list", TypeError, "sinks must be an array: got list",
          lambda m, a: m.finish(parts(m, a), sinks=[1.0] * 3)),
    Wrong("finish_sinks_shape", ValueError, "sinks must be (H,) = (3,): got (2,)",
          lambda m, a: m.finish(parts(m, a), sinks=a(2)), True),
    Wrong("finish_sinks_ints", TypeError, f"sinks {FLOATS}: got int32",
          lambda m, a: m.finish(parts(m, a), sinks=a(3, dtype="int32")), True),
    Wrong("finish_policy", ValueError, "empty_rows must be 'zero', 'nan' or 'uniform': got 'mean'",
          lambda m, a: m.finish(parts(m, a), empty_rows="mean"), True),
]  # fmt: skip

MASKS = [
    Wrong("mask_bool_array", TypeError, f"{BARE}: got bool array",
          lambda m, a: attend(m, a, mask=a(5, 7, dtype="bool")), True),
    Wrong("mask_bool_array_rank4", TypeError, f"{BARE}: got bool array",
          lambda m, a: attend(m, a, mask=a(2, 3, 5, 7, dtype="bool")), True),
    Wrong("mask_float_array", TypeError, f"{BARE}: got float32 array",
          lambda m, a: attend(m, a, mask=a(5, 7)), True),
    Wrong("mask_int_array", TypeError, f"{BARE}: got int32 array",
          lambda m, a: attend(m, a, mask=a(5, 7, dtype="int32")), True),
    Wrong("mask_function", TypeError, f"{BARE}: got builtin_function_or_method",
          lambda m, a: attend(m, a, mask=len)),
    Wrong("mask_bool", TypeError, f"{BARE}: got bool", lambda m, a: attend(m, a, mask=True)),
    Wrong("mask_and_array", TypeError,
          "a mask combines with masks only, write allow(array) or hide(array): got bool array",
          lambda m, a: m.causal() & a(5, 7, dtype="bool")),
    Wrong("array_or_mask", TypeError,
          "a mask combines with masks only, write allow(array) or hide(array): got bool array",
          lambda m, a: a(5, 7, dtype="bool") | m.causal()),
    Wrong("mask_and_none", TypeError,
          "a mask combines with masks only, write allow(array) or hide(array): got NoneType",
          lambda m, a: m.causal() & None),
    Wrong("truth_value", TypeError,
          "a mask has no truth value, combine masks with & | ~: got bool(mask)",
          lambda m, a: m.causal() and m.padding([1])),
    Wrong("mask_as_array", TypeError,
          "a mask is not an array, write mask.allowed(T, S): got a mask as an array",
          lambda m, a: np.asarray(m.causal())),
    Wrong("allow_rank2", ValueError,
          "allow must be (B, H, T, S), write array[None, None] for (T, S): got (5, 7)",
          lambda m, a: m.allow(a(5, 7, dtype="bool")), True),
    Wrong("hide_rank3", ValueError, "hide must be (B, H, T, S): got (2, 5, 7)",
          lambda m, a: m.hide(a(2, 5, 7, dtype="bool")), True),
    Wrong("hide_ints", TypeError, "hide must be bool, True is hidden: got int32",
          lambda m, a: m.hide(a(1, 1, 5, 7, dtype="int32")), True),
    Wrong("allow_list", TypeError, "allow must be an array: got list",
          lambda m, a: m.allow([[[[True]]]])),
    Wrong("allow_does_not_fit", ValueError,
          "allow's array must fit (B, H, T, S) = (2, 3, 5, 7): got (2, 1, 7, 5)",
          lambda m, a: attend(m, a, mask=m.allow(a(2, 1, 7, 5, dtype="bool"))), True),
    Wrong("padding_batch", ValueError, "padding's lengths must fit (B,) = (2,): got (3,)",
          lambda m, a: attend(m, a, mask=m.padding([5, 2, 1])), True),
    Wrong("padding_hidden_length", ValueError, "padding's hidden must fit (B, S) = (2, 7): got (2, 5)",
          lambda m, a: attend(m, a, mask=m.padding(hidden=a(2, 5, dtype="bool"))), True),
    Wrong("padding_hidden_one_key", ValueError, "padding's hidden must fit (B, S) = (2, 7): got (1, 1)",
          lambda m, a: attend(m, a, mask=m.padding(hidden=a(1, 1, dtype="bool")))),
    Wrong("padding_long", ValueError, "lengths must be at most S = 7: got 8",
          lambda m, a: attend(m, a, mask=m.padding([8, 1]))),
    Wrong("prefix_long", ValueError, "lengths must be at most S = 7: got 9",
          lambda m, a: attend(m, a, mask=m.prefix([2, 9]), query_offset=0)),
    Wrong("padding_negative", ValueError, "lengths must be at least 0: got -2",
          lambda m, a: m.padding([1, -2])),
    Wrong("padding_floats", TypeError, "lengths must be integers: got float64",
          lambda m, a: m.padding([1.0, 2.0])),
    Wrong("padding_rank", ValueError, "lengths must be (B,): got (1, 2)",
          lambda m, a: m.padding([[1, 2]])),
    Wrong("padding_neither", ValueError, "give either lengths or hidden: got neither",
          lambda m, a: m.padding()),
    Wrong("padding_both", ValueError, "give either lengths or hidden: got both",
          lambda m, a: m.padding([1], hidden=a(1, 3, dtype="bool"))),
    Wrong("padding_hidden_floats", TypeError, "hidden must be bool, True hides: got float32",
          lambda m, a: m.padding(hidden=a(2, 7))),
    Wrong("segments_rank", ValueError, "query_ids must be (B, S): got (3,)",
          lambda m, a: m.segments([1, 1, 2])),
    Wrong("segments_floats", TypeError, "key_ids must be integers: got float32",
          lambda m, a: m.segments([[1, 2]], a(1, 2))),
    Wrong("segments_do_not_fit", ValueError, "segments's key_ids must fit (B, S) = (2, 7): got (2, 3)",
          lambda m, a: attend(m, a, mask=m.segments([[1] * 5] * 2, [[1, 2, 3]] * 2)), True),
    Wrong("window_negative", ValueError, "before must be at least 0: got -1",
          lambda m, a: m.sliding_window(-1)),
    Wrong("window_float", TypeError, "after must be an integer: got float",
          lambda m, a: m.sliding_window(1, 0.5)),
    Wrong("predicate_value", TypeError,
          "predicate must be a function of batch, head, query, key: got int",
          lambda m, a: m.predicate(3)),
    Wrong("predicate_numbers", TypeError, "predicate must return a bool array: got int",
          lambda m, a: attend(m, a, mask=m.predicate(lambda b, h, q, k: 1), query_offset=0), True),
    Wrong("predicate_shape", ValueError,
          "predicate must return (B, H, T, S) = (2, 3, 5, 7), or 1 for a dim: got (5, 7)",
          lambda m, a: attend(m, a, query_offset=0,
                              mask=m.predicate(lambda b, h, q, k: (q == k)[0, 0])), True),
    Wrong("tokens_float", TypeError, "tokens must be integers: got float32",
          lambda m, a: m.sequence_mask(a(2, 5), 0), True),
    Wrong("tokens_rank", ValueError, "tokens must be (B, S): got (5,)",
          lambda m, a: m.sequence_mask(a(5, dtype="int32"), 0), True),
    Wrong("padding_idx_float", TypeError, "padding_idx must be an integer: got float",
          lambda m, a: m.sequence_mask(a(2, 5, dtype="int32"), 0.5), True),
    Wrong("look_ahead_negative", ValueError, "tgt_len must be at least 0: got -1",
          lambda m, a: m.look_ahead_mask(-1, 3)),
    Wrong("look_ahead_float", TypeError, "src_len must be an integer: got float",
          lambda m, a: m.look_ahead_mask(3, 3.0)),
    Wrong("allowed_without_offset", ValueError, READINGS, lambda m, a: m.causal().allowed(5, 7)),
    Wrong("allowed_negative", ValueError, "T must be at least 0: got -1",
          lambda m, a: m.causal().allowed(-1, 7)),
    Wrong("draw_negative", ValueError, "batch must be at least 0: got -1",
          lambda m, a: m.causal().draw(5, 5, batch=-1)),
    Wrong("draw_weights_rank3", ValueError,
          "weights must be (T, S) or (B, H, T, S), write weights[None] for (H, T, S) "
          "and weights[:, None] for (B, T, S): got (2, 5, 7)",
          lambda m, a: m.draw_weights(a(2, 5, 7)), True),
    Wrong("draw_weights_list", TypeError, "weights must be an array of floats: got list",
          lambda m, a: m.draw_weights([[1.0]])),
    Wrong("draw_weights_bool", TypeError, "weights must be an array of floats: got bool array",
          lambda m, a: m.draw_weights(a(5, 7, dtype="bool")), True),
    Wrong("draw_weights_label_count", TypeError, "query_labels must be a list of labels: got int",
          lambda m, a: m.draw_weights(a(5, 7), query_labels=5), True),
    Wrong("draw_weights_labels", ValueError, "key_labels must be S = 7 labels: got 5",
          lambda m, a: m.draw_weights(a(5, 7), key_labels="abcde"), True),
    Wrong("explain_offset", TypeError, "query_offset must be an int or integers (B,): got str",
          lambda m, a: m.causal().explain(0, 0, 1, 1, query_offset="two")),
    Wrong("explain_outside", ValueError,
          "a cell must lie inside padding's hidden (2, 7): got (0, 0, 1, 9)",
          lambda m, a: m.padding(hidden=a(2, 7, dtype="bool")).explain(0, 0, 1, 9)),
]  # fmt: skip

PADDING = "key_padding_mask"
MULTIHEAD = [
    Wrong("embed_dim", ValueError, "embed_dim must be a multiple of num_heads: got 12 and 5",
          lambda m, a: multi(m, a, config=(12, 5))),
    Wrong("kv_heads", ValueError, "num_heads must be a multiple of num_kv_heads: got 6 and 4",
          lambda m, a: multi(m, a, config=(12, 6), settings={"num_kv_heads": 4})),
    Wrong("no_heads", ValueError, "num_heads must be at least 1: got 0",
          lambda m, a: multi(m, a, config=(12, 0))),
    Wrong("heads_float", TypeError, "num_heads must be an integer: got float",
          lambda m, a: multi(m, a, config=(12, 3.0))),
    Wrong("module_policy", ValueError, "empty_rows must be 'zero', 'nan' or 'uniform': got 'mean'",
          lambda m, a: multi(m, a, settings={"empty_rows": "mean"})),
    Wrong("module_dropout", ValueError, "dropout must lie in 0..1: got 2",
          lambda m, a: multi(m, a, settings={"dropout": 2})),
    Wrong("policy_set_later", ValueError,
          "empty_rows must be 'zero', 'nan' or 'uniform': got 'none'",
          lambda m, a: changed(a, empty_rows="none")(a(2, 5, 12))),
    Wrong("features", ValueError, "query must have 12 features: got 11",
          lambda m, a: multi(m, a, (2, 5, 11)), True),
    Wrong("kdim", ValueError, "key must have 6 features: got 12",
          lambda m, a: multi(m, a, (2, 5, 12), (2, 7, 12), (2, 7, 12), settings={"kdim": 6}), True),
    Wrong("vdim", ValueError, "value must have 6 features: got 12",
          lambda m, a: multi(m, a, (2, 5, 12), (2, 7, 12), settings={"vdim": 6}), True),
    Wrong("input_rank", ValueError, "query must be (B, T, E): got (5, 12)",
          lambda m, a: multi(m, a, (5, 12)), True),
    Wrong("input_rank_sequence_first", ValueError, "query must be (T, B, E): got (5, 12)",
          lambda m, a: multi(m, a, (5, 12), settings={"batch_first": False}), True),
    Wrong("input_batch", ValueError, f"{SHARE} a batch size: got 2, 3 and 3",
          lambda m, a: multi(m, a, (2, 5, 12), (3, 7, 12)), True),
    Wrong("input_lengths", ValueError, "key and value must share a length: got 7 and 6",
          lambda m, a: multi(m, a, (2, 5, 12), (2, 7, 12), (2, 6, 12)), True),
    Wrong("input_dtype", TypeError, "query must have the dtype of the weights, float32: got float16",
          lambda m, a: a.module(12, 3)(a(2, 5, 12, dtype="float16")), True),
    Wrong("padding_mask_list", TypeError, f"{PADDING} must be an array: got list",
          lambda m, a: multi(m, a, key_padding_mask=[[True] * 5] * 2)),
    Wrong("padding_mask_float", TypeError, f"{PADDING} must be bool, True hides: got float32",
          lambda m, a: multi(m, a, key_padding_mask=a(2, 5)), True),
    Wrong("padding_mask_rank", ValueError, f"{PADDING} must be (B, S): got (2, 5, 5)",
          lambda m, a: multi(m, a, key_padding_mask=a(2, 5, 5, dtype="bool")), True),
    Wrong("padding_mask_transposed", ValueError, f"{PADDING} must be (B, S) = (2, 5): got (5, 2)",
          lambda m, a: multi(m, a, key_padding_mask=a(5, 2, dtype="bool")), True),
    Wrong("attn_mask_ints", TypeError, "attn_mask must be bool or float32: got int32",
          lambda m, a: multi(m, a, attn_mask=a(5, 5, dtype="int32")), True),
    Wrong("attn_mask_text", TypeError, "attn_mask must be a Mask or an array: got str",
          lambda m, a: multi(m, a, attn_mask="causal")),
    Wrong("attn_mask_rank", ValueError,
          "attn_mask must be (T, S), (B*H, T, S) or (B, H, T, S): got (5,)",
          lambda m, a: multi(m, a, attn_mask=a(5)), True),
    Wrong("attn_mask_shape", ValueError, "attn_mask must fit (T, S) = (5, 7): got (7, 5)",
          lambda m, a: multi(m, a, (2, 5, 12), (2, 7, 12), attn_mask=a(7, 5)), True),
    Wrong("attn_mask_batch_only", ValueError, "attn_mask must fit (B*H, T, S) = (6, 5, 5): got (2, 5, 5)",
          lambda m, a: multi(m, a, attn_mask=a(2, 5, 5, dtype="bool")), True),
    Wrong("attn_mask_without_offset", ValueError, READINGS,
          lambda m, a: multi(m, a, (2, 5, 12), (2, 7, 12), attn_mask=m.causal()), True),
]  # fmt: skip

WRONG = [*ATTENTION, *PARTS, *MASKS, *MULTIHEAD]
