"""Python in the page: what is loaded when, what a reader sees, and that the suite says it too."""

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from conformance.reports.report import read
from conformance.reports.verdict import violations

SITE = Path(__file__).parents[1]
BUILT = SITE / "_build" / "html"
ADAPTERS = SITE / "python" / "adapters"
LIMIT = 10_000_000  # bytes on the wire until Python is ready
WIDTH = 76  # of a verdict
SLOW = 120_000  # ms: Python starts in seconds, but a busy machine may need more

needs_python = pytest.mark.skipif(
    not (BUILT / "python").exists(), reason="Python is not in this build: it says why"
)


class Panel:
    """One panel of a page, as a reader uses it."""

    def __init__(self, tab, place):
        self.tab, self.place = tab, place
        self.state, self.shown = (place.locator(f"[data-part={n}]") for n in ("state", "shown"))

    def write(self, code: str) -> None:
        self.place.locator("textarea").fill(code)

    def code(self) -> str:
        return self.place.locator("textarea").input_value()

    def run(self) -> str:
        """Press Run; return what is shown when it is done."""
        self.place.locator("[data-part=go]").click()
        self.wait("Done")
        return self.shown.inner_text()

    def wait(self, text: str) -> None:
        self.place.locator(f"[data-part=state]:has-text('{text}')").wait_for(timeout=SLOW)


def panels(tab, ask: str) -> list[Panel]:
    return [Panel(tab, place) for place in tab.locator(f'.python-panel[data-ask="{ask}"]').all()]


@pytest.fixture
def asked(tab):
    """The files that a page asks for."""
    urls = []
    tab.context.on("request", lambda request: urls.append(request.url))
    return urls


def python_files(urls) -> list[Path]:
    """Return the files of Python among the addresses, without the small script of the panels."""
    found = [url.partition("/python/")[2].partition("?")[0] for url in urls if "/python/" in url]
    return [BUILT / "python" / name for name in dict.fromkeys(found)]


@needs_python
def test_a_reader_runs_the_page(tab, asked):
    tab.goto("/try-it.html")
    tab.wait_for_load_state("networkidle")
    assert {path.name for path in python_files(asked)} == {"panel.mjs", "python.mjs"}
    shown = [panel.shown.inner_text() for panel in panels(tab, "run")]
    assert len(shown) > 3
    assert [panel.run() for panel in panels(tab, "run")] == shown, "as when the page was built"
    wire = sum(len(gzip.compress(path.read_bytes())) for path in python_files(asked))
    raw = sum(path.stat().st_size for path in python_files(asked))
    seconds = tab.evaluate("document.documentElement.dataset.seconds")
    print(f"click to ready {seconds} s; {wire:,} bytes gzipped, {raw:,} raw")
    assert 3_000_000 < wire < LIMIT
    panel = panels(tab, "run")[0]
    panel.write("mask.explain(batch=0, head=0, query=0, key=1)")
    panel.place.locator("textarea").press("Control+Enter")
    panel.wait("Done")
    assert "hidden by causal()" in panel.shown.inner_text()


@needs_python
def test_without_scripts_a_page_says_so(site, browser):
    context = browser.new_context(base_url=site, java_script_enabled=False)
    tab = context.new_page()
    for page in ("try-it", "find-the-bug", "check-your-own"):
        tab.goto(f"/{page}.html")
        (note,) = tab.locator("noscript:has(p)").all()
        assert note.inner_text().startswith("Running needs JavaScript"), page
        assert not tab.locator("[data-part=go]").first.is_visible(), page
    context.close()


@needs_python
def test_code_that_does_not_end_is_stopped(tab):
    tab.goto("/try-it.html")
    panel = panels(tab, "run")[0]
    panel.write("while True: pass")
    panel.place.locator("[data-part=go]").click()
    panel.wait("runs")
    assert tab.evaluate("1 + 1") == 2, "the page answers while Python is busy"
    panel.place.locator("[data-part=stop]").click()
    panel.wait("Stopped; no result.")
    assert panel.shown.inner_text() == "", "what stands there is not of this code"
    panel.write("print('again')")
    assert panel.run() == "again"


@needs_python
def test_every_exercise_is_caught_by_its_clause(tab):
    tab.goto("/find-the-bug.html")
    found = panels(tab, "exercise")
    assert len(found) >= 20
    found[0].place.locator("[data-part=go]").click()
    found[0].wait("Choose a clause first")
    for number, panel in enumerate(found, 1):
        answer = tab.locator("details.answer").nth(number - 1)
        (clause,) = re.match(r"\s*(\S+) \(MUST\)", answer.locator("pre").text_content()).groups()
        name = panel.place.get_attribute("data-name")
        code = panel.place.locator(".highlight").first.inner_text()
        assert name.replace("-", "_") not in code, f"exercise {number} does not show its name"
        sentence = answer.locator("p").text_content()
        assert sentence not in code
        for choice in panel.place.locator("input").all():
            choice.check()
            said = panel.run()
            right = choice.get_attribute("value") == clause
            start = f"Right: {clause} breaks." if right else "No vector of "
            assert "ModuleNotFoundError" not in said, f"exercise {number}: {said}"
            assert said.startswith(start), f"exercise {number}: {said}"
            if not right:
                break
        panel.place.locator(f'input[value="{clause}"]').check()
        said = panel.run()
        assert said.startswith(f"Right: {clause} breaks. {sentence}\n"), (
            f"exercise {number}: {said}"
        )
        assert f"{clause} (MUST)" in said, f"exercise {number} is shown in the suite's words"


@needs_python
def test_every_adapter_can_be_mended(tab):
    tab.goto("/find-the-bug.html")
    found = panels(tab, "judge")
    repairs = tab.locator("details.repair pre").all_text_contents()
    assert len(found) == len(repairs) == 6
    for number, (panel, repair) in enumerate(zip(found, repairs, strict=True), 1):
        code = (ADAPTERS / f"mend-{number}.py").read_text("utf-8").rstrip()
        assert panel.code() == code
        assert "does not conform:" in panel.run(), number
        panel.write(repair)
        assert panel.run().startswith("Conforms"), number
        panel.place.locator("[data-part=back]").click()
        assert panel.code() == code


@needs_python
def test_a_panel_runs_those_above_it_first(tab):
    tab.goto("/try-it.html")
    first, *_, last = panels(tab, "run")
    first.write("mask = None\n1 / 0")
    assert last.run().startswith("line 3: TypeError: ")
    assert first.shown.inner_text() == "line 2: ZeroDivisionError: division by zero"


@needs_python
def test_the_page_says_what_the_suite_says(tab, tmp_path):
    tab.goto("/check-your-own.html")
    (panel,) = panels(tab, "judge")
    codes = [path.read_text("utf-8") for path in sorted(ADAPTERS.glob("*.py"))]
    assert len(codes) == 7
    for code in [panel.code(), *codes]:
        panel.write(code)
        panel.run()
        (said,) = panel.shown.locator("> p.verdict strong").all_text_contents()
        shown = panel.shown.locator("> pre").all_text_contents()
        failures = panel.shown.locator("details pre").all_text_contents()
        printed = suite(code, tmp_path)
        counts = re.fullmatch(r".* offers \((\d+ clauses); (\d+) are .*", said)
        if counts:
            said = "conforms: {}, {} clauses not offered".format(*counts.groups())
        assert printed.rstrip().endswith("\n" + said)
        lines = violations(read(tmp_path / ".conformance" / "report.jsonl"), WIDTH)
        assert "".join(shown) == "\n".join(line.text for line in lines)
        for link in panel.shown.locator("a").all():
            check_link(link.get_attribute("href"))
        for failure in failures:
            if "(SHOULD)" in failure:  # the suite does not print these
                continue
            for line in failure.splitlines():  # the worst number may be another by rounding
                assert re.split(r" at \(|, got", line)[0] in printed, line


def check_link(href: str) -> None:
    """Check that a link of a page at the top leads to what is there."""
    file, _, anchor = href.partition("#")
    assert f'id="{anchor}"' in (BUILT / file).read_text("utf-8"), href


def suite(code: str, folder: Path) -> str:
    """Run the frozen vectors by the suite's own command; return what it prints."""
    (folder / "adapter.py").write_text(code, "utf-8")
    command = [sys.executable, "-m", "conformance", "run", "--subject", "adapter:Subject"]
    path = os.pathsep.join([str(SITE.parent), str(folder)])
    env = os.environ | {"PYTHONPATH": path, "COLUMNS": "76", "NO_COLOR": "1"}
    only = ["-k", "frozen_vector", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *only], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    return done.stdout


@needs_python
def test_what_is_no_adapter_is_told(tab):
    tab.goto("/check-your-own.html")
    (panel,) = panels(tab, "judge")
    right = (ADAPTERS / "right.py").read_text("utf-8")
    reads_query = "        return query.shape[9]\n"
    inverted = 'Your code reads True the other way: set mask_polarity = "{}", or use ~mask.'
    for code, said in {
        "x = 1": "Name your class `Subject`.",
        "class Subject: pass": "what is declared is a method: got none",
        "import torch": "line 1: ModuleNotFoundError: No module named 'torch'\nOnly NumPy",
        "class": "SyntaxError:",
        "x = 0\n1 / x": "line 2: ZeroDivisionError: division by zero",
        right.replace(
            '{"attention"}', "set()"
        ): "No verdict: nothing was tested. Write `capabilities",
        right.replace('"attend"', '"hide"'): inverted.format("attend"),
        right.replace("is None else mask", "is None else ~mask"): inverted.format("hide"),
        right.replace("np.where(allowed, ", "np.where(1 > 0, "): "does not conform: ",
    }.items():
        panel.write(code)
        assert re.sub(r"\n+", "\n", panel.run()).startswith(said)
    panel.write(right.replace("        scores = query", f"{reads_query}        scores = query", 1))
    panel.run()
    assert "\nin line 10 of your code\n" in panel.shown.locator("details pre").first.text_content()


@needs_python
def test_links_of_a_verdict_lead_somewhere(tab):
    for page in ("try-it", "find-the-bug", "check-your-own"):
        tab.goto(f"/{page}.html")
        for href in tab.locator(".python-shown a").evaluate_all(
            "links => links.map((link) => link.getAttribute('href'))"
        ):
            check_link(href)


@needs_python
def test_attn_numpy_conforms_in_the_browser(tab):
    tab.goto("/try-it.html")
    code = dedent("""
        from conformance import subjects
        from conformance.subjects.protocol import NotOffered
        from conformance.vectors import load
        from conformance.vectors.check_subject import check
        import numpy as np
        subject, counts = subjects.load("numpy"), {}
        for id, vector in load().items():
            for dtype in set(vector.dtypes) - {"bfloat16"}:
                try:
                    check(subject, id, dtype)
                    counts[dtype] = counts.get(dtype, 0) + 1
                except NotOffered:
                    pass
        print(np.__version__, *(f"{dtype} {n}" for dtype, n in sorted(counts.items())))
    """)
    page = "import('/python/python.mjs').then(async (python) => {"
    page += "await python.ask('judge', 'x = 1'); return (await python.ask('run', CODE)).html; })"
    said = tab.evaluate(page.replace("CODE", repr(code)))
    found = re.fullmatch(r"<pre>2\.0\.2 float16 (\d+) float32 (\d+) float64 (\d+)</pre>", said)
    assert found, said
    print(said)
    assert min(map(int, found.groups())) > 110


def test_a_wheel_that_is_another_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SITE / "_ext")
    runtime = pytest.importorskip("runtime")
    if not runtime.PYODIDE.exists():
        pytest.skip("npm's pyodide is not here: its lock file names the SHA-256")
    shutil.copytree(SITE / "python", tmp_path / "python")
    monkeypatch.setattr(runtime, "OWN", tmp_path / "python")
    runtime.fetch()
    (wheel,) = (tmp_path / "python" / "assets").glob("*.whl")
    with wheel.open("ab") as file:
        file.write(b"!")
    with pytest.raises(ValueError, match="must have Pyodide's SHA-256: got "):
        runtime.fetch()


def test_without_python_a_page_stands(tmp_path):
    conf = f"""
        import sys
        sys.path[:0] = {[str(SITE.parent), str(SITE / "_ext")]}
        import runtime

        def fetch():
            raise FileNotFoundError("npm must be on the path: got none")

        runtime.fetch = fetch
        extensions = ["myst_parser", "panels"]
    """
    (tmp_path / "conf.py").write_text(dedent(conf), "utf-8")
    (tmp_path / "index.md").write_text("# Page\n\n```{python}\nprint(6 * 7)\n```\n", "utf-8")
    build = [sys.executable, "-m", "sphinx", "-W", "-b", "html", tmp_path, tmp_path / "html"]
    done = subprocess.run(build, capture_output=True, text=True, check=True)
    assert "Python is not in this build: npm must be on the path: got none" in done.stdout
    page = (tmp_path / "html" / "index.html").read_text("utf-8")
    assert "Python is not in this build" in page
    assert "<pre>42</pre>" in page
    assert "panel.mjs" not in page
    assert not (tmp_path / "html" / "python").exists()
