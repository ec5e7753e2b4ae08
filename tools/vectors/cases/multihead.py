"""The chapter on multi-head attention, its parameters given as tensors."""

import numpy as np

from conformance.mask_spec import causal, padding, sliding_window
from conformance.vectors.vector import Part, Vector

from .make import ONE_HEAD, SQUARE_CALL, close, coins, exact, exempt, grid, normal, zero

SIZES = {"B": 3, "H": 2, "T": 5, "S": 11, "D": 7, "E": 14}
EIGHT = {"B": 2, "H": 8, "T": 7, "S": 5, "D": 3, "E": 24}
NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")
HIDDEN = np.arange(11) >= np.array([11, 0, 4])[:, None]  # (B, S)
PADDED = np.arange(11) >= np.array([11, 2, 4])[:, None]


def parameters(width: int, seed: int, bias: bool = True) -> dict[str, np.ndarray]:
    """Return random (out, in) matrices, and biases."""
    found = {}
    for i, name in enumerate(NAMES):
        drawn = normal(100 * seed + 10 * i, width, width) / np.sqrt(width)
        found[f"{name}.weight"] = np.vectorize(grid)(drawn)
        if bias:
            found[f"{name}.bias"] = normal(100 * seed + 10 * i + 1, width)
    return found


def inputs(sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    B, T, S, E = (sizes[name] for name in "BTSE")
    query, key, value = normal(100 * seed + 2, B, T, E), normal(100 * seed + 3, B, S, E), None
    value = normal(100 * seed + 4, B, S, E)
    return {"query": query, "key": key, "value": value}


def attend(id: str, shows: str, *expect: Part, sizes=SIZES, seed=1, **fields) -> Vector:
    """Return a vector of multi-head attention; `masks` are its mask arguments."""
    given = fields.pop("given", None) or inputs(sizes, seed)
    weights = fields.pop("parameters", None) or parameters(sizes["E"], seed)
    settings = {
        "embed_dim": sizes["E"],
        "num_heads": sizes["H"],
        "bias": "q_proj.bias" in weights,
        "batch_first": fields.pop("batch_first", True),
    }
    return Vector(
        id=id, shows=shows, call="multihead", sizes=sizes, settings=settings, parameters=weights,
        inputs=given | fields.pop("masks", {}), expect=expect or close("output", "weights"),
        **fields,
    )  # fmt: skip


SPLIT = [
    attend("MHA-1.eight_heads", "a head is a run of neighbouring features", sizes=EIGHT, seed=2,
           masks={"attn_mask": coins(61, 2, 8, 7, 5, true=0.3)},
           distractors=("heads_interleaved",)),
]  # fmt: skip

IDENTITY = {f"{name}.weight": np.eye(14) for name in NAMES}
ONE = SIZES | {"H": 1, "D": 14}
MAPPED = IDENTITY | {"out_proj.weight": parameters(14, 3)["out_proj.weight"]}
ALONE = {"sizes": ONE, "seed": 3, "exempt": exempt(ONE_HEAD, "distinct_sizes")}
LAST_MAP = [
    attend("MHA-3.identity", "one head whose maps are identities is plain attention",
           masks={"key_padding_mask": PADDED}, parameters=IDENTITY, **ALONE),
    attend("MHA-3.last_map", "one head differs from plain attention by the last map",
           masks={"key_padding_mask": PADDED}, parameters=MAPPED, **ALONE,
           distractors=("last_map_forgotten",)),
]  # fmt: skip

CELLS = coins(62, 3, 2, 5, 11, true=0.3)
ADDED = normal(63, 3, 2, 5, 11)
LOOK_AHEAD = np.where(np.tri(5, 11, dtype=bool), 0.0, -np.inf)
MASKS = [
    attend("MHA-4.key_padding", "True in key_padding_mask hides a key",
           masks={"key_padding_mask": HIDDEN}),
    attend("MHA-4.bool_rank_2", "True in an attn_mask (T, S) hides",
           masks={"attn_mask": coins(64, 5, 11, true=0.3)}),
    attend("MHA-4.bool_rank_3", "an attn_mask (B*H, T, S) has the heads of a sample together",
           masks={"attn_mask": CELLS.reshape(6, 5, 11)}),
    attend("MHA-4.bool_rank_4", "an attn_mask (B, H, T, S) has a mask for every head",
           masks={"attn_mask": CELLS}),
    attend("MHA-4.float_rank_2", "a float attn_mask is added", seed=4,
           masks={"attn_mask": normal(65, 5, 11), "key_padding_mask": PADDED},
           distractors=("bias_forgotten",)),
    attend("MHA-4.float_rank_3", "a float attn_mask (B*H, T, S) too has a sample's heads together",
           seed=4, masks={"attn_mask": ADDED.reshape(6, 5, 11), "key_padding_mask": PADDED},
           distractors=("bias_forgotten",)),
    attend("MHA-4.look_ahead", "the document's look-ahead mask is a float attn_mask", seed=4,
           masks={"attn_mask": LOOK_AHEAD}),
    attend("MHA-4.structure", "an attn_mask may be a structure, and goes by the query offset",
           mask=sliding_window(2, 1), query_offset=6, distractors=("offset_of_zero",)),
    attend("MHA-4.together", "a structure and key_padding_mask hide what either hides",
           mask=causal() & padding([11, 2, 7]), query_offset=6,
           masks={"key_padding_mask": HIDDEN}),
]  # fmt: skip

TURNED = {name: x.swapaxes(0, 1) for name, x in inputs(SIZES, 5).items()}
WEIGHTS = [
    attend("MHA-5.per_head", "weights come per head", *close("weights"), seed=5,
           masks={"key_padding_mask": PADDED}),
    attend("MHA-5.averaged", "weights come as their mean over the heads too",
           *close("output", "mean_weights"), seed=5, masks={"key_padding_mask": PADDED}),
    attend("MHA-5.sequence_first", "inputs may be (T, B, E): the weights are the same", seed=5,
           given=TURNED, batch_first=False, masks={"key_padding_mask": PADDED}),
]  # fmt: skip

X = inputs(SIZES | {"T": 11}, 6)["query"]
EMPTIED = np.arange(3) == 1
BIAS = parameters(14, 1)["out_proj.bias"]
QUERIES = [
    attend("MHA-7.padded_query", "padding hides keys and not queries: a padded position's output "
           "is not 0", sizes=SIZES | {"T": 11}, seed=6, given={"query": X, "key": X, "value": X},
           masks={"key_padding_mask": PADDED}, distractors=("padded_queries_zeroed",),
           exempt=exempt(SQUARE_CALL, "distinct_sizes")),
    attend("MHA-7.empty_row", "an empty row gives exactly the last map's bias",
           exact("output", EMPTIED), *close("output", region=~EMPTIED),
           masks={"key_padding_mask": HIDDEN}, distractors=("uniform_rows",)),
    attend("EMPTY-4.key_padding_mask", "a row emptied by key_padding_mask is an empty row like any",
           zero("weights", EMPTIED), *close("weights", region=~EMPTIED), seed=6,
           masks={"key_padding_mask": HIDDEN}),
]  # fmt: skip

CASES = [*SPLIT, *LAST_MAP, *MASKS, *WEIGHTS, *QUERIES]
