"""Other libraries' names and shapes for the same weights, written from what they document."""

import numpy as np

NNX = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
NAMES = {
    "equinox": {n: f"{other}_proj" for n, other in NNX.items()} | {"out_proj": "output_proj"},
    "bert": {n: f"self.{other}" for n, other in NNX.items()} | {"out_proj": "output.dense"},
    "llama": {"out_proj": "o_proj"},
}


def to_torch(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return parameters by torch.nn's names: one matrix for the three input projections.

    Where key or value have another width than the query, torch keeps three matrices and one bias.
    """
    found = {n: x for n, x in parameters.items() if not any(f"{p}_proj" in n for p in "qkv")}
    for name in parameters:
        if "q_proj." not in name:
            continue
        names = [name.replace("q_proj", f"{p}_proj") for p in "qkv"]
        parts = [parameters[n] for n in names]
        if len({part.shape for part in parts}) == 1:
            found[name.replace("q_proj.", "in_proj_")] = np.concatenate(parts)
        else:
            found |= {n.replace(".", "_"): x for n, x in zip(names, parts, strict=True)}
    return found


def to_nnx(parameters: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """Return the parameters of one attention by flax.nnx's names: kernels (in, heads, dim)."""
    found, D = {}, len(parameters["q_proj.weight"]) // heads
    for name, array in parameters.items():
        projection, kind = name.split(".")
        if projection == "out_proj":
            own = "out.bias" if kind == "bias" else "out.kernel"
            found[own] = array if kind == "bias" else array.T.reshape(heads, D, -1)
        elif kind == "bias":
            found[f"{NNX[projection]}.bias"] = array.reshape(-1, D)
        else:
            found[f"{NNX[projection]}.kernel"] = array.T.reshape(array.shape[1], -1, D)
    return found


def to_layout(layout: str, parameters: dict, heads: int) -> dict[str, np.ndarray]:
    """Return the parameters of one attention in a layout."""
    if layout in NAMES:
        parts = {name: name.partition(".")[::2] for name in parameters}
        names = {n: f"{NAMES[layout].get(part, part)}.{last}" for n, (part, last) in parts.items()}
        return {names[name]: array for name, array in parameters.items()}
    if layout in ("nnx", "linen", "keras"):
        found = to_nnx(parameters, heads)
        out = "attention_output" if layout == "keras" else "out"
        return {n.replace("out", out): array for n, array in found.items()}
    if layout == "rosetta":
        return parameters
    found, joined = to_torch(parameters), {"timm": ("qkv", "proj"), "gpt2": ("c_attn", "c_proj")}
    if layout == "torch":
        return found
    into, out = joined[layout]
    found = {
        name.replace("in_proj_", f"{into}.").replace("out_proj", out): array
        for name, array in found.items()
    }
    return {name: array.T for name, array in found.items()} if layout == "gpt2" else found


def nested(named: dict) -> dict:
    """Return a dict of dicts for dotted names.

    >>> nested({"out.bias": 1, "out.kernel": 2})
    {'out': {'bias': 1, 'kernel': 2}}
    """
    found: dict = {}
    for name, value in named.items():
        *path, last = name.split(".")
        place = found
        for step in path:
            place = place.setdefault(step, {})
        place[last] = value
    return found
