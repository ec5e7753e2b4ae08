"""The JavaScript port answers the frozen vectors, and they notice when it is broken."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "conformance" / "vectors"
COUNT = re.compile(r"^# (pass|fail|skipped) (\d+)$", re.MULTILINE)
SKIPPED = re.compile(r"^ok \d+ - ([\w.-]+): .* # SKIP not offered: (.*)$", re.MULTILINE)


def node(folder: Path) -> tuple[dict[str, int], str]:
    """Run the port's tests; how many passed, failed and were skipped, and all that was said."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("the port needs Node: got no `node` on the path")
    words = [found, "--test", "--test-reporter=tap", "port.test.mjs"]
    said = subprocess.run(words, cwd=folder, capture_output=True, encoding="utf-8").stdout
    return {name: int(count) for name, count in COUNT.findall(said)}, said


def test_the_port_answers_every_vector_that_it_offers():
    counts, said = node(ROOT / "site" / "explorer")
    print(counts, *SKIPPED.findall(said), sep="\n")
    assert counts["fail"] == 0, "\n".join(re.findall(r"^not ok .*|^  error: .*", said, re.M))
    reasons = [reason for _, reason in SKIPPED.findall(said)]
    assert counts["skipped"] == len(reasons)
    usual = ("gradients", "a second dtype", "numbers", "sinks", "parts", "rotary", "heads")
    assert all(reason.startswith(usual) for reason in reasons)
    assert counts["pass"] > 100


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("masks.mjs", "causal: ({ s, p }) => s <= p", "causal: ({ s, p }) => s < p"),
        ("masks.mjs", "b, s }, { lengths, hidden }", "b: s, s: b }, { lengths, hidden }"),
        ("attention.mjs", "if (row_weights[s] === 0) continue;", ""),
        ("attention.mjs", "uniform: 1 / S", "uniform: 0"),
        ("attention.mjs", "if (!S && empty_rows", "if (false && empty_rows"),
        ("attention.mjs", "(h * H_kv) / H", "h % H_kv"),
        ("multihead.mjs", "(b * M + m) * N + n", "(b * N + n) * M + m"),
    ],
)
def test_the_vectors_notice_a_broken_port(tmp_path, file, right, wrong):
    folder = tmp_path / "site" / "explorer"
    shutil.copytree(ROOT / "site" / "explorer", folder)
    shutil.copytree(VECTORS, tmp_path / "conformance" / "vectors")
    text = (folder / file).read_text("utf-8")
    assert text.count(right) == 1, f"{file} has the line to break: got no {right}"
    (folder / file).write_text(text.replace(right, wrong), "utf-8")
    counts, _ = node(folder)
    assert counts["fail"] > 0
