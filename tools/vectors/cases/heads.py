"""The chapter on heads: rotary embeddings, QK-norm, a width of their own and sinks of a module."""

import numpy as np

from conformance.mask_spec import causal
from conformance.vectors.vector import Part, Vector

from .make import SQUARE_CALL, close, exact, exempt, grid, normal, zero
from .multihead import inputs

TURNED = {"B": 3, "H": 2, "H_kv": 1, "T": 5, "D": 8}
PLACES = np.array([[0, 1, 2, 3, 4], [7, 5, 19, 6, 1], [3, 3, 0, 13, 9]])
ALWAYS = ("turned_back", "not_turned", "one_samples_positions", "pairs_of_the_other_kind")


def turn(name: str, shows: str, *distractors: str, **settings) -> Vector:
    given = {"query": normal(81, 3, 2, 5, 8), "key": normal(82, 3, 1, 5, 8), "positions": PLACES}
    return Vector(
        id=f"MHA-10.{name}", shows=shows, call="rotary", sizes=TURNED, inputs=given,
        settings=settings, expect=close("turned_query", "turned_key"),
        distractors=(*ALWAYS, *distractors),
    )  # fmt: skip


ROTARY = [
    turn("halves", "a feature of the first half is turned with the one D / 2 behind it",
         base=10000.0),
    turn("interleaved", "a feature is turned with its neighbour", base=30.0, interleaved=True),
    turn("partial", "the first features alone are turned, by frequencies of their own number",
         "frequencies_of_the_whole_head", "all_features_turned", base=30.0, dim=6),
    turn("partial_interleaved", "the first pairs alone are turned",
         "frequencies_of_the_whole_head", "all_features_turned", base=30.0, dim=4,
         interleaved=True),
    turn("scaled", "positions are divided by the scale", "positions_unscaled",
         "positions_multiplied", base=30.0, scale=2.5),
    turn("frequencies", "frequencies that are given are those of the first pairs",
         "usual_frequencies", frequencies=[0.875, 0.3125, -0.203125]),
]  # fmt: skip

SIZES = {"B": 3, "H": 4, "H_kv": 2, "T": 5, "S": 7, "D": 6, "E": 10}
SQUARE = SIZES | {"S": 5}
PADDED = np.arange(7) >= np.array([7, 0, 4])[:, None]  # (B, S)
EMPTIED = np.arange(3) == 1


def parameters(seed: int, *, qkv_bias: bool, norms: bool = False, sinks: bool = False) -> dict:
    """Return matrices (out, in) of heads that share keys, and what else a module has."""
    q, kv, E = SIZES["H"] * SIZES["D"], SIZES["H_kv"] * SIZES["D"], SIZES["E"]
    shapes = {"q_proj": (q, E), "k_proj": (kv, E), "v_proj": (kv, E), "out_proj": (E, q)}
    found = {}
    for i, (name, (out, into)) in enumerate(shapes.items()):
        drawn = normal(100 * seed + 10 * i, out, into) / np.sqrt(into)
        found[f"{name}.weight"] = np.vectorize(grid)(drawn)
        if qkv_bias or name == "out_proj":
            found[f"{name}.bias"] = normal(100 * seed + 10 * i + 1, out)
    for i, role in enumerate("qk" if norms else ""):
        found[f"process_heads.{role}_norm.weight"] = normal(100 * seed + 50 + i, SIZES["D"])
    return found | ({"sinks": normal(100 * seed + 60, SIZES["H"])} if sinks else {})


def attend(id: str, shows: str, *parts: Part, seed: int, sizes=SIZES, **fields) -> Vector:
    own, drawn = fields.pop("settings", {}), inputs(sizes, seed)
    if "process_heads" in own:  # self-attention
        drawn |= dict.fromkeys(("key", "value"), drawn["query"])
    norms = own.get("process_heads", {}).get("class") == "QKNorm"
    weights = parameters(
        seed, qkv_bias=own.get("qkv_bias", True), norms=norms, sinks=own.get("sinks", False)
    )
    settings = {"embed_dim": sizes["E"], "num_heads": sizes["H"], "num_kv_heads": sizes["H_kv"]}
    settings |= {"head_dim": sizes["D"], "bias": True, "batch_first": True} | own
    return Vector(
        id=id, shows=shows, call="multihead", sizes=sizes, settings=settings, parameters=weights,
        inputs=drawn | fields.pop("masks", {}), expect=parts or close("output", "weights"),
        **fields,
    )  # fmt: skip


HEADS = [
    attend("MHA-9.head_dim", "heads have a width of their own, by which scores are scaled, and "
           "projections may lack the bias that the last map has", seed=41,
           settings={"qkv_bias": False}, masks={"key_padding_mask": PADDED},
           distractors=("scaled_by_the_embedding",)),
    attend("MHA-9.settings", "a module has a scale, a softcap and sinks, beside which a fully "
           "masked row gives the last map's bias", exact("output", EMPTIED),
           zero("weights", EMPTIED), *close("output", "weights", region=~EMPTIED), seed=41,
           settings={"scale": -0.75, "softcap": 1.5, "sinks": True},
           masks={"key_padding_mask": PADDED}, empty_rows="uniform",
           distractors=("sinks_left_out", "softcap_forgotten")),
]  # fmt: skip
NORM = {"class": "QKNorm", "head_dim": 6, "eps": 0.125}
TURN = {"class": "rotary", "base": 30.0, "interleaved": True}
ON_THE_SQUARE = {"sizes": SQUARE, "mask": causal(), "exempt": exempt(SQUARE_CALL, "distinct_sizes")}
CHANGED = [
    attend("MHA-10.rotary", "heads are turned by where their tokens stand before they attend",
           seed=41, settings={"process_heads": TURN | {"dim": 4}}, **ON_THE_SQUARE,
           distractors=("heads_as_they_are", "pairs_of_the_other_kind")),
    attend("MHA-10.norm", "queries and keys are divided by their root mean square, and have "
           "weights each", seed=41, settings={"process_heads": NORM}, **ON_THE_SQUARE,
           distractors=("heads_as_they_are", "norm_without_weights")),
    attend("MHA-10.norm_then_rotary", "heads are normed first and turned then", seed=41,
           settings={"process_heads": NORM | {"then": TURN}}, **ON_THE_SQUARE,
           distractors=("rotary_forgotten", "norms_exchanged", "pairs_of_the_other_kind")),
]  # fmt: skip

CASES = [*ROTARY, *HEADS, *CHANGED]
