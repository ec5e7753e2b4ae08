"""The solutions of "Mend this adapter": for each adapter what is wrong, and what is right."""

from pathlib import Path

ROWS = (
    "weights = weights / weights.sum(-1, keepdims=True)\n",
    "weights = weights / weights.sum(-1, keepdims=True)\n"
    "        weights = np.where(allowed.any(-1, keepdims=True), weights, 0)\n",
)
MENDED = {
    "mend-1": [('"hide"', '"attend"')],
    "mend-2": [("-1e9", "-np.inf"), ROWS],
    "mend-3": [ROWS],
    "mend-4": [
        (
            "weights @ value",
            "np.where(allowed[..., None], weights[..., None] * value[:, :, None], 0).sum(3)",
        )
    ],
    "mend-5": [("np.tile(x, (1, group, 1, 1))", "np.repeat(x, group, axis=1)")],
    "mend-6": [("np.sqrt(query.shape[3])", "np.sqrt(query.shape[3], dtype=query.dtype)")],
}


def mended(path: Path) -> str:
    """Return an adapter's code with each of its mistakes, which it has once, put right."""
    code = path.read_text("utf-8").rstrip()
    for wrong, right in MENDED[path.stem]:
        if code.count(wrong) != 1:
            raise ValueError(f"{path.name} must have its mistake once: got {wrong!r}")
        code = code.replace(wrong, right)
    return code
