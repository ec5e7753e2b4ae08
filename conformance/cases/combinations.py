"""Options that meet by design: every pair of values, in a few rows.

A plan names the options of a call and their values, the plain one first. Its rows lie in
`rows/NAME.txt`, made by `python -m tools.combinations` and kept: a case has the same id in
every run, and whoever runs the suite does not need what makes them.
"""

from collections import Counter
from math import fsum
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent / "rows"


class Plan(NamedTuple):
    """The options and their values, and which values never meet, each with its reason."""

    options: dict[str, tuple[str, ...]]
    never: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = ()

    @property
    def plain(self) -> dict[str, str]:
        return {name: values[0] for name, values in self.options.items()}


POSITIONAL = ("causal", "window", "chunked", "prefix", "segments", "packed", "predicate",
              "and", "or", "not")  # fmt: skip
BACKWARD = ("gradients", "blocked_gradients", "steps_gradients")
DTYPES = ("float32", "float64", "float16", "bfloat16")
POLICIES = ("zero", "nan", "uniform")
PROCESSES = ("none", "rotary", "norm")
ROWS_OF_NAN = "rows of NaN are the forward's only"

ATTENTION = Plan(
    {
        "mask": ("none", "causal", "window", "chunked", "prefix", "padding", "hidden", "segments",
                 "pair", "packed", "part", "allow", "hide", "predicate", "and", "or", "not"),
        "heads": ("equal", "grouped", "one"),
        "sinks": ("none", "given", "one_less"),
        "bias": ("none", "rank2", "rank4", "heads", "samples", "hiding"),
        "scale": ("none", "zero", "large", "negative"),
        "softcap": ("none", "low", "high"),
        "empty_rows": POLICIES,
        "dtype": DTYPES,
        "offset": ("none", "zero", "number", "per_sample", "negative"),
        "sizes": ("wide", "tall", "square", "one_query", "one_key"),
        "path": ("plain", "blocked", *BACKWARD),
        "garbage": ("none", "nan", "inf"),
    },
    (
        ("a positional mask without an offset is refused where T != S",
         {"mask": POSITIONAL, "offset": ("none",),
          "sizes": ("wide", "tall", "one_query", "one_key")}),
        (ROWS_OF_NAN, {"empty_rows": ("nan",), "path": BACKWARD}),
        ("a uniform row is the mean of hidden values too",
         {"empty_rows": ("uniform",), "garbage": ("nan", "inf")}),
        ("with one key the gradients of query and key are 0, and no budget can be read off them",
         {"sizes": ("one_key",), "path": BACKWARD}),
        ("one query at the first position sees one key, as if there were no other",
         {"sizes": ("one_query",), "path": BACKWARD, "mask": POSITIONAL,
          "offset": ("zero", "negative")}),
    ),
)  # fmt: skip

MULTIHEAD = Plan(
    {
        "attn_mask": ("none", "bool2", "bool3", "bool4", "float2", "float3", "float4", "causal",
                      "allow"),
        "key_padding_mask": ("none", "bool", "mask"),
        "heads": ("equal", "grouped", "one"),
        "inputs": ("self", "key", "key_and_value", "widths"),
        "head_dim": ("embedding", "own"),
        "process_heads": PROCESSES,
        "sinks": ("no", "yes"),
        "scale": ("usual", "own"),
        "softcap": ("none", "low"),
        "bias": ("yes", "no"),
        "layout": ("batch_first", "sequence_first"),
        "weights": ("averaged", "per_head", "no"),
        "empty_rows": POLICIES,
        "dtype": DTYPES,
        "batch": ("three", "one"),
        "path": ("plain", "training", "gradients"),
    },
    (
        (ROWS_OF_NAN, {"empty_rows": ("nan",), "path": ("gradients",)}),
        ("heads go by positions of the query's own tokens",
         {"process_heads": PROCESSES[1:], "inputs": ("key", "key_and_value", "widths")}),
    ),
)  # fmt: skip

MASK_FORMS = ("none", "bool2", "bool3", "float2", "float4", "mask")
KEY_FORMS = ("none", "bool", "mask")
LAYERS = Plan(
    {
        "kind": ("encoder_layer", "decoder_layer", "encoder", "decoder", "transformer"),
        "mask": MASK_FORMS,
        "key_padding_mask": KEY_FORMS,
        "memory_mask": MASK_FORMS,
        "memory_key_padding_mask": KEY_FORMS,
        "norm_first": ("no", "yes"),
        "activation": ("relu", "gelu"),
        "bias": ("yes", "no"),
        "eps": ("usual", "large"),
        "layout": ("batch_first", "sequence_first"),
        "last_norm": ("no", "yes"),
        "weights": ("asked", "no"),
        "empty_rows": ("zero", "uniform"),
        "dtype": DTYPES,
        "mode": ("eval", "training"),
    },
    (
        ("an encoder has no memory",
         {"kind": ("encoder_layer", "encoder"), "memory_mask": MASK_FORMS[1:]}),
        ("an encoder has no memory",
         {"kind": ("encoder_layer", "encoder"), "memory_key_padding_mask": KEY_FORMS[1:]}),
        ("a layer has no last norm, and a Transformer has both",
         {"kind": ("encoder_layer", "decoder_layer", "transformer"), "last_norm": ("yes",)}),
    ),
)  # fmt: skip

DECODING = Plan(
    {
        "kind": ("attention", "grouped", "encoder_layer", "decoder_layer", "encoder", "decoder",
                 "transformer", "seq2seq"),
        "cache": ("slots", "window"),
        "process_heads": PROCESSES,
        "prompt": ("whole", "left", "right", "between", "one_token"),
        "then": ("go_on", "reorder", "repeat", "truncate", "truncate_each", "copy", "poison"),
        "steps": ("ones", "chunk", "hidden_chunk"),
        "mask": ("causal", "window"),
        "memory_mask": ("none", "window"),
        "norm_first": ("no", "yes"),
        "layout": ("batch_first", "sequence_first"),
        "bias": ("yes", "no"),
        "room": ("exact", "more"),
        "dtype": DTYPES,
        "scores": ("usual", "scaled", "capped", "sinks"),
    },
    (
        ("tokens are numbers of no dtype", {"kind": ("seq2seq",), "dtype": DTYPES[1:]}),
        ("layers leave scores as they are",
         {"kind": ("encoder_layer", "decoder_layer", "encoder", "decoder", "transformer",
                   "seq2seq"), "scores": ("scaled", "capped", "sinks")}),
        ("tokens are (B, T)", {"kind": ("seq2seq",), "layout": ("sequence_first",)}),
        ("a model of tokens keeps all of them", {"kind": ("seq2seq",), "cache": ("window",)}),
        ("a window is a mask, and has a number of slots",
         {"cache": ("window",), "mask": ("window",)}),
        ("a window is a mask, and has a number of slots",
         {"cache": ("window",), "room": ("more",)}),
        ("a window does not bring back what it dropped",
         {"cache": ("window",), "then": ("truncate", "truncate_each")}),
        ("layers leave heads as they are",
         {"kind": ("encoder_layer", "decoder_layer", "encoder", "decoder", "transformer",
                   "seq2seq"), "process_heads": PROCESSES[1:]}),
        ("attention has no norm",
         {"kind": ("attention", "grouped"), "norm_first": ("yes",)}),
        ("a model of tokens decodes under a causal mask",
         {"kind": ("seq2seq",), "mask": ("window",)}),
        ("these take no mask of a memory",
         {"kind": ("attention", "grouped", "encoder_layer", "encoder", "seq2seq"),
          "memory_mask": ("window",)}),
    ),
)  # fmt: skip

PLANS = {"attention": ATTENTION, "multihead": MULTIHEAD, "layers": LAYERS, "decoding": DECODING}


def rows(name: str, folder: Path = HERE) -> dict[str, dict[str, str]]:
    """Return the kept rows of a plan, by the ids of their cases."""
    lines = (folder / f"{name}.txt").read_text("utf-8").splitlines()
    options, *table = (line.split() for line in lines)
    values = [dict(zip(options, words, strict=True)) for words in table]
    return {f"{i:02}-{next(iter(row.values()))}": row for i, row in enumerate(values)}


def each_value(table: dict[str, dict[str, str]], kinds: tuple[str, ...] | None = None) -> set[str]:
    """Return the ids of a few rows, of these kinds of model, in which each of their values is."""
    rows = {id: row for id, row in table.items() if kinds is None or row["kind"] in kinds}
    counts = Counter(pair for row in rows.values() for pair in row.items())
    missing, chosen = set(counts), set[str]()
    while missing:  # what few rows have weighs more, or many of them are taken for the rest
        best = max(
            rows, key=lambda id: fsum(1 / counts[p] for p in missing & set(rows[id].items()))
        )
        chosen.add(best)
        missing -= set(rows[best].items())
    return chosen
