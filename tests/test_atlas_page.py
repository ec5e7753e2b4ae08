"""The committed page: peers, questions and threads are on it, and its snippets print as it says.

The numbers on it were measured in an environment that has all the peers; here are few of them.
"""

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

from conformance.subjects.peers import PEERS
from tools.atlas.__main__ import main
from tools.atlas.markdown import anchor
from tools.atlas.page import page
from tools.atlas.publish import published
from tools.atlas.questions import QUESTIONS
from tools.atlas.snippets import LINES, Snippet, snippets
from tools.atlas.sources import threads

PAGE = (Path(__file__).parents[1] / "docs" / "atlas.md").read_text("utf-8")
HERE = [snippet for snippet in snippets() if not snippet.missing]
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?")
RUN = """
import contextlib, io, json, sys
found = {}
for question, code in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {"__name__": "__main__"})
    found[question] = printed.getvalue()
print(json.dumps(found))
"""


def named(items, key) -> dict:
    return {"argnames": "item", "argvalues": items, "ids": [key(item) for item in items]}


@pytest.mark.parametrize("name", PEERS)
def test_the_page_mentions_every_peer(name):
    glance = PAGE.split("## At a glance")[1].split("## The questions")[0]
    assert f"| `{name}` | " in glance, "the page is older than the registry: run nox -s atlas"


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_page_asks_every_question(name):
    question = QUESTIONS[name]
    assert f"\n### {question.title}\n" in PAGE, "the page is older than the questions"
    assert f"](#{anchor(question.title)}) |" in PAGE
    assert question.sentence in PAGE


def test_headings_are_not_said_twice():
    """Two of one name would share an anchor."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL), re.M)
    assert len(set(map(anchor, headings))) == len(headings)
    links = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert links <= set(map(anchor, headings)), links - set(map(anchor, headings))


@pytest.mark.parametrize(**named(threads(), lambda thread: thread.label))
def test_a_thread_is_of_a_question_and_of_peers_that_are_there(item):
    assert set(item.questions) <= set(QUESTIONS), item.questions
    for pattern in item.peers:
        assert any(fnmatchcase(name, pattern) for name in PEERS), pattern
    assert f"]({item.url}) ({item.state}): {item.title}\n" in PAGE
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+", item.url)


def test_no_thread_stands_twice():
    urls = [thread.url for thread in threads()]
    assert len(set(urls)) == len(urls)


def printed_on_the_page(snippet: Snippet) -> str:
    """Return what the page says that a snippet prints."""
    before, found, after = PAGE.partition(f"```python\n{snippet.code}\n```\n\n```text\n")
    assert found, "the page does not show the snippet: run nox -s atlas"
    assert before.rstrip().endswith(snippet.says)
    return after.partition("\n```\n")[0]


@pytest.mark.parametrize(**named(snippets(), lambda snippet: snippet.question))
def test_a_snippet_is_short_and_on_the_page(item):
    lines = item.code.splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= 100
    assert item.question in QUESTIONS
    said = printed_on_the_page(item)
    assert said and "Traceback" not in said and "the process ended" not in said


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """Run the snippets whose packages are here: Keras's in a process each, the rest in one."""
    alone = [[s] for s in HERE if "keras" in s.packages]
    together = [s for s in HERE if "keras" not in s.packages]
    found = {}
    for group in [*alone, together]:
        given = json.dumps({snippet.question: snippet.code for snippet in group})
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUN],
            env=os.environ | {"XLA_FLAGS": ""},  # rounded as readers see it
            input=given, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found |= json.loads(done.stdout)
    return found


@pytest.mark.parametrize(**named(HERE, lambda snippet: snippet.question))
def test_a_snippet_prints_what_the_page_says(item, printed):
    got, said = printed[item.question].rstrip(), printed_on_the_page(item)
    assert NUMBER.sub("#", got) == NUMBER.sub("#", said), f"it prints {got}"
    numbers = [np.array([float(x) for x in NUMBER.findall(text)]) for text in (got, said)]
    np.testing.assert_allclose(*numbers, rtol=1e-3, err_msg=f"it prints {got}")


def test_the_command_knows_its_peers(capsys):
    with pytest.raises(SystemExit):
        main(["--peer", "nobody"])
    assert "--peer must be one of torch-sdpa, " in capsys.readouterr().err


def test_the_page_can_be_written_again_from_what_was_kept(tmp_path):
    peer = {
        "about": "nothing",
        "library": "such",
        "missing": ["such"],
        "versions": {},
        "answers": {},
        "failed": "",
    }
    peer |= {"contract": {"results": [], "failed": ""}}
    data = {"measured": "today", "python": "3", "peers": {"none": peer}, "snippets": {}}
    data |= {"again": {}, "conversions": {}}
    (tmp_path / "kept.json").write_text(json.dumps(data), "utf-8")
    asked = ["--data", str(tmp_path / "kept.json"), "--page", str(tmp_path / "new" / "page.md")]
    assert main(asked) == 1, "nobody answered, which is no success"
    assert (tmp_path / "new" / "page.md").read_text("utf-8") == page(data)
    assert json.loads((tmp_path / "new" / "page.json").read_text("utf-8")) == published(data)
