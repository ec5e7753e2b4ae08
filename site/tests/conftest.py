"""The built site behind a local server, Chromium to read it with, and pages built alone."""

import io
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SITE = Path(__file__).parents[1]
BUILT = SITE / "_build" / "html"
TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm"}


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES

    def log_message(self, *words):
        pass


@pytest.fixture(scope="session")
def site():
    """Serve the built site; its address."""
    if not (BUILT / "index.html").exists():
        pytest.fail("the site must be built first: run `nox -s site`")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=BUILT))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    """Chromium, the one of the system."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("these tests need Chromium: got no `chromium` on the path")
    with sync_playwright() as play:
        options = ["--no-sandbox", "--disable-gpu"]
        found = play.chromium.launch(executable_path=chromium, args=options)
        yield found
        found.close()


@pytest.fixture
def tab(site, browser):
    """A page that fails the test if it asks another host, asks in vain, or tells an error."""
    context = browser.new_context(base_url=site)
    asked, lost, errors = [], [], []
    context.on("request", lambda request: asked.append(request.url))
    context.on("response", lambda reply: lost.append(reply.url) if reply.status >= 400 else None)
    context.on("weberror", lambda told: errors.append(str(told.error)))
    context.on("console", lambda told: errors.append(told.text) if told.type == "error" else None)
    opened = context.new_page()
    yield opened
    context.close()
    outside = [url for url in asked if not url.startswith((site, "data:", "blob:"))]
    assert not outside, f"a page asks nobody but its own host: got {outside}"
    assert not lost, f"what a page asks for is there: got {lost}"
    assert not errors, f"no script of a page fails: got {errors}"


@pytest.fixture
def build(tmp_path):
    """Build a page with the site's own extensions; what Sphinx complains of, and the page."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    source, before = tmp_path / "site", list(sys.path)
    source.mkdir()
    shutil.copytree(SITE.parent / "docs", tmp_path / "docs")

    def built(text: str, **settings):
        (source / "index.md").write_text(text, "utf-8")
        heard, folders = io.StringIO(), (source, SITE, tmp_path / "out", tmp_path / "trees")
        with docutils_namespace():  # or an earlier build's directives are complained of
            app = Sphinx(*folders, "dummy", settings, status=None, warning=heard)
            app.build()
            return heard.getvalue(), app.env.get_doctree("index")

    yield built
    sys.path[:] = before
