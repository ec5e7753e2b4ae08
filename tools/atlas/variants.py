"""Each library against itself: the questions on which its variants disagree."""

from .markdown import anchor, evenly, table
from .question import Question
from .questions import QUESTIONS
from .section import answer_of

COLUMNS = 8
LIBRARIES = {
    "torch": "PyTorch",
    "jax": "JAX",
    "flax": "Flax",
    "keras": "Keras",
    "equinox": "Equinox",
    "onnx": "ONNX",
    "onnxruntime": "ONNX Runtime",
}

FAMILIES = {
    "torch-sdpa": "torch.nn.functional.scaled_dot_product_attention",
    "torch-mha": "torch.nn.MultiheadAttention",
    "nnx": "flax.nnx",
    "keras-ops": "keras.ops.dot_product_attention",
    "keras-mha": "keras.layers.MultiHeadAttention",
    "onnx": "ONNX's operator Attention",
    "transformers": "transformers' attention functions",
    "hf": "an implementation registered in transformers, with its mask function",
    "x-transformers": "x-transformers' Attend",
}


def family(name: str) -> str:
    """Return what a peer is a variant of.

    >>> family("keras-mha-torch-scores")
    'keras.layers.MultiHeadAttention'
    """
    return next((kin for prefix, kin in FAMILIES.items() if name.startswith(prefix)), name)


def families(names: list[str]) -> dict[str, list[str]]:
    """Return the variants of what has more than one."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(family(name), []).append(name)
    return {kin: own for kin, own in found.items() if len(own) > 1}


def against_themselves(peers: dict[str, dict]) -> list[str]:
    """Return a table for each object whose variants disagree, and a line for those that agree."""
    parts = ["The same object, called another way: only the questions on which it disagrees."]
    agreeing = []
    for kin, names in families([n for n, peer in peers.items() if not peer["missing"]]).items():
        asked = [q for q in QUESTIONS.values() if disagree(peers, names, q)]
        if not asked:
            agreeing.append(f"`{kin}` ({len(names)} variants)")
            continue
        parts.append(f"### {kin}")
        for own in evenly(names, COLUMNS):
            rows = [
                [f"[{q.title}](#{anchor(q.title)})", *(_cell(peers[name], q) for name in own)]
                for q in asked
            ]
            parts.append(table(["", *(f"`{name}`" for name in own)], rows))
    if agreeing:
        parts.append(f"No disagreement: {', '.join(agreeing)}.")
    return parts


def disagree(peers: dict[str, dict], names: list[str], question: Question) -> bool:
    """Whether two variants that were asked a question answer it differently."""
    cells = {_cell(peers[name], question) for name in names}
    return len(cells - {"–"}) > 1


def _cell(peer: dict, question: Question) -> str:
    answer = answer_of(peer, question.name)
    if answer["kind"] == "not offered":
        return "–"
    return answer.get("took") or answer["kind"]
