"""The built site behind a local server, and Debian's Chromium to read it with."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

BUILT = Path(__file__).parents[1] / "_build" / "html"
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
    """A page of the browser that fails the test if the site asks another host for anything."""
    context = browser.new_context(base_url=site)
    asked, errors = [], []
    context.on("request", lambda request: asked.append(request.url))
    opened = context.new_page()
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    outside = [url for url in asked if not url.startswith((site, "data:", "blob:"))]
    assert not outside, f"a page asks nobody but its own host: got {outside}"
    assert not errors, f"no script of a page fails: got {errors}"
