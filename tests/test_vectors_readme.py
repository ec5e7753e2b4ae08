"""The README of the vectors, word for word: its reader runs, its vector by hand is the stored one.

The reader runs where neither NumPy nor this project can be imported.
"""

import ast
import json
import math
import re
import subprocess
import sys

import numpy as np
from test_vectors_judged import JUDGED, RIGHT

from conformance.vectors import HERE, load
from conformance.vectors.vector import Part

README = (HERE / "README.md").read_text("utf-8")
(READER,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
NO_NUMPY = "import sys\nsys.modules['numpy'] = sys.modules['conformance'] = None\n"


def test_reader_is_short_and_needs_the_standard_library_alone():
    lines = [line for line in READER.splitlines() if line.strip()]
    assert len(lines) <= 40
    imported = {
        alias.name for n in ast.walk(ast.parse(READER)) if isinstance(n, ast.Import)
        for alias in n.names
    }  # fmt: skip
    assert imported == {"json", "math", "struct"}


def read_alone(code: str) -> str:
    """Run the README's reader and more code where NumPy and this project cannot be imported."""
    script = f"{NO_NUMPY}{READER}\nvectors, tensors = read({str(HERE)!r})\n{code}"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


ATTEND = """
def attend(vector, names):
    B, H, H_kv, T, S, D, D_v = vector["sizes"].values()
    query, key, value = (tensors[vector["inputs"][n]] for n in ("query", "key", "value"))
    seen, answer = tensors[vector["mask"]["seen"]], []
    scale = D ** -0.5 if vector["scale"] is None else vector["scale"]
    for row in range(B * H * T):
        b, h = row // (H * T), row // T % H
        start = (b * H_kv + h * H_kv // H) * S
        keys = [s for s in range(S) if seen[row * S + s]]
        logits = [scale * sum(query[row * D + d] * key[(start + s) * D + d] for d in range(D))
                  for s in keys]
        sink = tensors[vector["inputs"]["sinks"]][h] if "sinks" in vector["inputs"] else -math.inf
        top = max(sink, *logits) if len(logits) else 0.0
        exps = [math.exp(x - top) for x in logits]
        for d in range(D_v):
            terms = (e * value[(start + s) * D_v + d] for e, s in zip(exps, keys))
            answer.append(sum(terms) / (sum(exps) + math.exp(sink - top)) if keys else 0.0)
    return answer

for vector in vectors:
    plain = vector["mask"] if vector["call"] == "attention" else None
    if plain is None or vector["softcap"] or vector["empty_rows"] != "zero" \\
            or "bias" in vector["inputs"] or not plain["seen"] or "float64" not in vector["dtypes"]:
        continue
    answer = attend(vector, tensors)
    for i, part in enumerate(vector["expect"]):
        if part["tensor"] == "output":
            print(vector["id"], i, misfit(part, answer, tensors, "float64"))
            if part["kind"] == "close" and "region" not in part and answer:
                wrong = [x + 1e-12 * (i == 17) for i, x in enumerate(answer)]
                print("wrong", vector["id"], misfit(part, wrong, tensors, "float64"))
"""


def test_reader_judges_attention_written_without_numpy():
    lines = read_alone(ATTEND).splitlines()
    judged = [line.split() for line in lines if not line.startswith("wrong")]
    assert len(judged) > 50
    assert [line for line in judged if line[2] != "None"] == []
    spoilt = [line.split() for line in lines if line.startswith("wrong")]
    assert len(spoilt) > 30
    assert {line[2] for line in spoilt if line[1] != "ATT-1.by_hand"} == {"17"}


def test_reader_judges_every_kind_as_the_suite_does():
    cases, wanted = [], []
    for part, right, wrong, _ in JUDGED.values():
        if right.shape == wrong.shape:
            for got in (right, wrong):
                cases.append((as_json(part), [repr(float(x)) for x in got.ravel()]))
            wanted += [True, False]
    code = f"""
tensors |= {{"right": {list(RIGHT.ravel())}, "row": [False, True], "nan": [math.nan] * 4}}
for part, got in json.loads({json.dumps(json.dumps(cases))}):
    print(misfit(part, [float(x) for x in got], tensors, "float32") is None)
"""
    code = code.replace("np.float64", "float")
    assert read_alone(code).split() == [str(fits) for fits in wanted]


def as_json(part: Part) -> dict:
    """Write a part of this file as the manifest has it."""
    found: dict = {"kind": part.kind, "tensor": "output", "allowed": part.allowed}
    if part.expected is not None:
        found["expected"] = "nan" if np.isnan(part.expected).any() else "right"
    if part.region is not None:
        found["region"] = "row"
    others = {name: {"kind": other.kind} for name, other in part.alternatives.items()}
    return found | {"alternatives": others, "contract": part.contract}


def test_vector_by_hand_is_printed_as_it_is_stored():
    text = README[README.index("## One vector by hand") : README.index("## A reader")]
    inputs, scores, output = (block for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL))
    vector = load()["ATT-1.by_hand"]
    arrays = [*(vector.inputs[n][0, 0] for n in ("query", "key", "value")), vector.seen[0, 0]]
    shown = [[float(x) for x in re.findall(r"-?\d+", line)] for line in inputs.splitlines()]
    for row, numbers in enumerate(shown):
        expected = [x for array in arrays if row < len(array) for x in array[row].astype(float)]
        assert numbers == expected, f"line {row}"
    query, key, _, seen = arrays
    logits = np.where(seen, query @ key.T / 2, math.nan)
    weights, result = (next(p.expected[0, 0] for p in vector.expect if p.tensor == name)
                       for name in ("weights", "output"))  # fmt: skip
    for row, line in enumerate(scores.splitlines()):
        numbers = [float(x.replace("-", "nan")) for x in re.findall(r"-(?!\d)|-?[\d.]+", line)]
        expected = [*logits[row], *np.exp(logits[row]), *weights[row]]
        np.testing.assert_allclose(numbers, expected, atol=5.01e-5, rtol=0)
    numbers = [[float(x) for x in re.findall(r"-?[\d.]+", line)] for line in output.splitlines()]
    np.testing.assert_allclose(numbers, result, atol=5.01e-5, rtol=0)
    assert f"{vector.expect[0].allowed['float32']:.2e}" in text
    assert f"{vector.telling['unmasked'] / 1e6:g} million" in text
    assert f"{vector.telling['unscaled'] / 1e3:g} thousand" in text


def test_readme_names_every_field_kind_call_and_structure():
    schema = json.loads((HERE / "schema.json").read_text("utf-8"))["$defs"]
    names = {*schema["vector"]["properties"], *schema["part"]["properties"]["kind"]["enum"]}
    names |= {*schema["vector"]["properties"]["call"]["enum"], *schema["answer"]["enum"]}
    names |= {*schema["structure"]["properties"]["kind"]["enum"]}
    names |= {*schema["vector"]["properties"]["inputs"]["propertyNames"]["enum"]}
    names |= {*schema["vector"]["properties"]["settings"]["properties"]}
    names |= {*schema["process"]["properties"]}
    missing = sorted(name for name in names if f"`{name}`" not in README)
    assert not missing, f"the README does not explain {missing}"
