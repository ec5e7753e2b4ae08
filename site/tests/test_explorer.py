"""The explorer says what the package says, by every way to use it, and stays small."""

import contextlib
import gzip
import io
import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

BUDGET = 60_000  # bytes over the wire, gzipped, for the page and all that it loads
SETTINGS = 40
ATLAS = Path(__file__).parents[2] / "docs" / "atlas.json"
SEED = int(os.environ.get("EXPLORER_SEED", random.randrange(10**6)))
NAMES = ["causal", "window", "chunks", "prefix", "segments", "packed", "padding"]
LETTERS = dict(zip(NAMES, "CWKFSDP", strict=True))
TERM = re.compile(r"(?:^|\.(and|or)\.)(~?)([a-z]+)")
READ = """() => {
  const text = (id) => document.getElementById(id).textContent;
  const rows = (id) => [...document.querySelectorAll(`#${id} tbody tr`)].map((tr) =>
    [...tr.querySelectorAll("td")].map((td) => td.textContent));
  const by = [...document.querySelectorAll("#ex-grid tbody tr")].map((tr) =>
    [...tr.querySelectorAll("td")].map((td) => td.dataset.by ?? ""));
  const full = [...document.querySelectorAll("#ex-grid tbody tr")].map((tr) =>
    tr.classList.contains("full"));
  return {grid: rows("ex-grid"), by, full, why: text("ex-why"), python: text("ex-python"),
    note: document.getElementById("ex-full").hidden ? "" : text("ex-full"),
    legend: [...document.querySelectorAll("#ex-legend span")].map((span) => span.textContent),
    array: text("ex-array"), scores: rows("ex-scores"), weights: rows("ex-weights"),
    expression: text("ex-expression"), link: location.hash};
}"""


def setting(choose: random.Random, backend: str) -> dict:
    """Draw a state: sizes, parts and how they are joined, their numbers, and a cell."""
    queries, keys = choose.randint(1, 12), choose.randint(1, 12)
    mask = ""
    for name in choose.sample(NAMES, choose.randint(1, 4)):
        join = choose.choice([".and.", ".and.", ".or."]) if mask else ""
        mask += join + choose.choice(["", "", "~"]) + name
    numbers = {name: choose.randint(0, 4) for name in ("before", "after")}
    for name in ("lengths0", "lengths1", "prefix0", "prefix1"):
        numbers[name] = choose.randint(0, keys)
    for name in ("ids0", "ids1"):
        numbers[name] = "".join(sorted(choose.choices("0123", k=keys)))
    for name in ("docs0", "docs1"):
        numbers[name] = "".join(choose.choices("01234", k=choose.randint(1, 4)))
    sizes = {"rows": queries, "columns": keys}
    for name, size in sizes.items():
        numbers[name] = ",".join(map(str, choose.choices(range(size), k=choose.randint(1, 9))))
    return {
        **{"part": choose.choice(["off", "off", "on"])},
        **{"T": queries, "S": keys, "offset": choose.randint(-4, 8), "mask": mask},
        **{"sample": choose.randint(0, 1), "chunk": choose.randint(1, 5)},
        **{"t": choose.randrange(queries), "s": choose.randrange(keys)},
        **{"convention": choose.choice(["attend", "hide", "add"]), "backend": backend},
        **{"empty": choose.choice(["zero", "nan", "uniform"])},
        **numbers,
    }


def visit(tab, state: dict) -> dict:
    """Show a state by its link, and read the page."""
    link = "&".join(f"{name}={value}" for name, value in state.items())
    tab.evaluate(
        """(link) => new Promise((done) => {
             addEventListener("hashchange", done, {once: true}); location.hash = link; })""",
        link,
    )
    return tab.evaluate(READ)


def execute(code: str) -> tuple[str, dict]:
    """Run Python; what it prints, and its names."""
    names, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, names)
    return out.getvalue(), names


def compare(seen: dict, state: dict) -> None:
    """Fail unless everything that the page shows is what the page's own Python gives."""
    told, names = execute(seen["python"])
    sample, mask, steps = state["sample"], names["mask"], names["steps"]
    drawn = "\n".join(" ".join("·" if by else "■" for by in row) for row in seen["by"])
    said = f"{drawn}\n{seen['why']}\n"
    assert told[: len(said)] == said

    call, settings = sizes_of(state), {"batch": 2} | moved(state)
    arrays = {"attend": mask.allowed, "hide": mask.hidden, "add": mask.additive}
    whole = np.asarray(arrays[state["convention"]](*call, **settings))
    _, copied = execute(seen["array"])
    wanted = np.broadcast_to(whole, (2, 1, *call))[sample, 0]
    assert copied["array"].dtype.kind == wanted.dtype.kind
    assert (copied["array"] == wanted).all()

    allowed = np.broadcast_to(np.asarray(mask.allowed(*call, **settings)), (2, 1, *call))[sample, 0]
    assert seen["full"] == (~allowed).all(-1).tolist()
    assert_note(seen["note"], allowed)
    assert_legend(seen["legend"], state)
    assert_numbers(seen["scores"], steps.masked_scores[sample, 0])
    weights, output = (np.asarray(x[sample, 0]) for x in (steps.weights, steps.output))
    assert_numbers(seen["weights"], np.concatenate([weights, output], -1))
    shown = np.array(seen["weights"])[:, : call[1]]
    assert ((shown == "0") == (weights == 0)).all()
    assert_letters(seen["by"], state, mask)


def sizes_of(state: dict) -> tuple[int, int]:
    """T and S of what is shown: those of the part, where a part is."""
    if state["part"] == "off":
        return state["T"], state["S"]
    return len(state["rows"].split(",")), len(state["columns"].split(","))


def moved(state: dict) -> dict:
    """The offset of what is shown; a part is not moved again."""
    return {"query_offset": state["offset"] if state["part"] == "off" else 0}


def assert_numbers(shown: list[list[str]], wanted) -> None:
    """Two digits after the point are shown."""
    shown = np.array(shown, float)
    np.testing.assert_allclose(shown, np.asarray(wanted, float), rtol=0, atol=0.00501)


def assert_note(note: str, allowed) -> None:
    """The note names the fully masked rows, and the number of keys; without such a row is none."""
    named = re.search(r"query ([\d, ]+)\. .* each of the (\d+) keys 1/(\d+)", note)
    full = np.flatnonzero(~allowed.any(-1))
    assert bool(note) == bool(full.size)
    if note:
        rows, *keys = named.groups()
        assert rows == ", ".join(map(str, full))
        assert keys == [str(allowed.shape[1])] * 2


def assert_legend(legend: list[str], state: dict) -> None:
    """Each part of the mask stands in the legend by its letter, and nothing else does."""
    terms = TERM.findall(state["mask"])
    parts = [
        f"{LETTERS[part]} hidden by {'not ' if tilde else ''}{part}" for _, tilde, part in terms
    ]
    assert legend == ["■ allowed", *parts, *(["+ and by others"] if len(parts) > 3 else [])]


def assert_letters(by: list[list[str]], state: dict, mask) -> None:
    """A cell's letters are those of the parts that hide it, as `explain` tells what each says."""
    terms = TERM.findall(state["mask"])
    for t, row in enumerate(by):
        for s, letters in enumerate(row):
            cell = {"batch": state["sample"], "head": 0, "query": t, "key": s}
            lines = mask.explain(**cell, **moved(state)).splitlines()[1:]
            wanted = ""  # of what stands before a part: empty where that allows the cell
            for (join, _, part), line in zip(terms, lines, strict=True):
                own = LETTERS[part] if line.startswith("  hidden") else ""
                both = wanted and own
                wanted = wanted + own if both or join != "or" else ""
            assert letters == wanted


def test_random_settings_are_as_in_the_package(tab):
    print(f"EXPLORER_SEED={SEED}")
    choose = random.Random(SEED)
    tab.goto("/explorer.html")
    for _ in range(SETTINGS):
        state = setting(choose, "numpy")
        compare(visit(tab, state), state)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_other_backends_run_what_the_page_says(tab, backend):
    print(f"EXPLORER_SEED={SEED}")
    choose = random.Random(SEED)
    tab.goto("/explorer.html")
    for _ in range(2):
        state = setting(choose, backend)
        compare(visit(tab, state), state)


def test_the_first_picture_needs_no_script(site, browser, tab):
    tab.goto("/explorer.html")
    told = tab.evaluate(READ)
    context = browser.new_context(java_script_enabled=False)
    bare = context.new_page()
    bare.goto(f"{site}/explorer.html")
    rows = bare.locator("#ex-grid tbody tr").all()
    assert [row.locator("td").all_text_contents() for row in rows] == told["grid"]
    assert bare.locator("#ex-why").text_content() == told["why"]
    assert bare.locator("#ex-expression").text_content() == told["expression"]
    assert bare.locator("#ex-legend span").all_text_contents() == told["legend"]
    assert rows[3].locator("td").nth(6).get_attribute("title") == told["why"]
    shown = bare.locator(".needs-script").all()
    assert shown and not any(part.is_visible() for part in shown)
    context.close()


def test_a_link_shows_the_same_state_again(tab):
    tab.goto("/explorer.html#T=5&S=7&mask=prefix.or.~window&sample=0&t=4&s=1&empty=nan&backend=jax")
    seen = tab.evaluate(READ)
    assert seen["expression"] == "prefix([3, 2]) | ~sliding_window(before=2)"
    assert seen["why"].startswith("allowed: sample 0, head 0, query 4, key 1\n")
    tab.locator("[data-part=segments] [data-does=on]").check()
    tab.locator("[name=ids0]").fill("0101")
    tab.locator("h1").click()
    seen = tab.evaluate(READ)
    assert "segments([[0, 1, 0, 1, 1, 1, 1], [" in seen["expression"]
    tab.goto("about:blank")
    tab.goto(f"/explorer.html{seen['link']}")
    assert tab.evaluate(READ) == seen


def test_a_part_is_that_of_the_whole_call_in_any_order(tab):
    tab.goto("/explorer.html#mask=causal.and.packed&T=8&offset=0&sample=0&t=0&s=0")
    whole = tab.evaluate(READ)["grid"]
    tab.locator("[name=part]").check()
    tab.locator("[name=rows]").fill("7, 2,7")
    tab.locator("[name=columns]").fill("6,1,0,6")
    seen = tab.evaluate(READ)
    assert seen["grid"] == [[whole[t][s] for s in (6, 1, 0, 6)] for t in (7, 2, 7)]
    whole = "(causal() & packed([[3, 3, 2], [5, 3, 0]])).part([7, 2, 7], [6, 1, 0, 6])"
    assert seen["expression"] == whole
    assert "by causal().part(rows=[[7, 2, 7]], columns=[[6, 1, 0, 6]]): " in seen["why"]
    heads = tab.locator("#ex-grid thead th").all_text_contents()
    assert heads == ["0 at 6", "1 at 1", "2 at 0", "3 at 6"]
    tab.locator("[name=rows]").fill("7,x")  # not understood: the last that was stays
    assert tab.evaluate(READ)["expression"] == whole
    tab.locator("[name=S]").press("Home")  # one key: the columns that are left fit it
    assert "[0])" in tab.evaluate(READ)["expression"]
    tab.locator("[name=part]").uncheck()
    assert ".part" not in tab.evaluate(READ)["expression"]


@pytest.mark.parametrize(
    ("name", "typed", "told"),
    [
        ("docs0", "24", "packed([[2, 4], [5, 3]])"),
        ("docs1", "1", "packed([[3, 3, 2], [1, 0, 0]])"),
        ("docs0", "99", "packed([[8, 0], [5, 3]])"),  # no more tokens than keys
        ("docs0", "x", "packed([[3, 3, 2], [5, 3, 0]])"),
    ],
)
def test_documents_are_typed_a_digit_each(tab, name, typed, told):
    tab.goto("/explorer.html#mask=packed")
    tab.locator(f"[name={name}]").fill(typed)
    assert tab.evaluate(READ)["expression"] == told


def test_every_start_shows_another_mask(tab):
    tab.goto("/explorer.html")
    shown = {}
    for start in tab.locator(".ex-starts a").all():
        start.evaluate(
            """(link) => new Promise((done) => {
                 addEventListener("hashchange", done, {once: true}); link.click(); })"""
        )
        shown[start.text_content()] = tab.evaluate(READ)
    assert len({(str(seen["grid"]), seen["expression"]) for seen in shown.values()}) == len(shown)
    assert [name for name, seen in shown.items() if any(seen["full"])] == ["fully masked rows"]


def test_a_link_that_makes_no_sense_shows_something(tab):
    tab.goto(
        "/explorer.html#T=99&S=x&t=-5&mask=rm.and.<b>.and.constructor&ids0=a&empty=1&sample=7&__proto__=1"
    )
    seen = tab.evaluate(READ)
    assert (len(seen["grid"]), len(seen["grid"][0])) == (12, 8)
    assert seen["expression"] == "None"
    assert seen["why"] == "allowed: sample 1, head 0, query 0, key 6"
    execute(seen["python"])


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("mask=prefix.or.~window&T=5&ids0=01", ""),
        ("mask=none", "No mask: every key is allowed."),
        ("T=99", "Part of this link was not understood."),
        ("mask=causa", "Part of this link was not understood."),
        ("X=1", "Part of this link was not understood."),
    ],
)
def test_the_page_says_what_it_does_not_show(tab, link, told):
    tab.goto(f"/explorer.html#{link}")
    note = tab.locator("#ex-note").text_content()
    assert note.startswith(told) and bool(note) == bool(told)
    tab.locator("[name=T]").press("ArrowLeft")  # a state that the reader made, not the link's
    assert "link" not in tab.locator("#ex-note").text_content()


def test_the_keyboard_is_enough(tab):
    tab.goto("/explorer.html")
    tab.locator("#ex-grid [tabindex='0']").focus()
    for key in ("ArrowUp", "ArrowLeft", "End", "ArrowRight", "PageDown", "Home", "ArrowDown"):
        tab.keyboard.press(key)
    focused = tab.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "■ query 5, key 0: allowed"
    assert tab.evaluate(READ)["why"].startswith("allowed: sample 1, head 0, query 5, key 0\n")
    tab.locator("[data-part=window] [data-does=on]").focus()
    tab.keyboard.press("Space")
    tab.keyboard.press("Tab")  # and, or
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Tab")  # not
    tab.keyboard.press("Space")
    tab.keyboard.press("Tab")  # before
    tab.keyboard.press("ArrowRight")
    expression = "causal() & padding([8, 5]) | ~sliding_window(before=3)"
    assert tab.evaluate(READ)["expression"] == expression


def test_pointing_and_touching_choose_a_cell(site, browser, tab):
    tab.goto("/explorer.html")
    tab.locator("[data-t='0'][data-s='7']").hover()
    assert "query 0, key 7\n" in tab.locator("#ex-why").text_content()
    tab.locator("h1").hover()
    assert "query 3, key 6\n" in tab.locator("#ex-why").text_content()
    context = browser.new_context(has_touch=True, viewport={"width": 400, "height": 800})
    phone = context.new_page()
    phone.goto(f"{site}/explorer.html")
    phone.locator("[data-t='1'][data-s='4']").tap()
    assert "query 1, key 4\n" in phone.locator("#ex-why").text_content()
    phone.locator("[data-part=causal] [data-does=on]").tap()
    assert phone.locator("#ex-expression").text_content() == "padding([8, 5])"
    context.close()


OWN_MASK = {"transformers-eager-own", "transformers-gpt-oss"}


def test_the_readers_of_a_convention_are_those_of_the_atlas(tab):
    peers = json.loads(ATLAS.read_text("utf-8"))["peers"]
    wanted = {"attend": ("true", "attend"), "hide": ("true", "hide"), "add": ("float-inf", "added")}
    tab.goto("/explorer.html")
    for convention, (question, word) in wanted.items():
        tab.locator(f"[name=convention][value={convention}]").check()
        told = tab.locator("#ex-libraries").text_content().partition(" Turned round")[0]
        named = {name for names in re.findall(r"\((.*?)\)", told) for name in names.split(", ")}
        assert not named & OWN_MASK  # their functions add what they are given
        assert named == {
            n
            for n, peer in peers.items()
            if peer["answers"][question]["word"] == word and n not in OWN_MASK
        }


def test_what_is_copied_is_what_is_shown(tab):
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto("/explorer.html#T=3&S=4")
    for button in tab.locator("[data-copy]").all():
        shown = button.get_attribute("data-copy")
        button.click()
        wanted = tab.url if shown == "link" else tab.locator(f"#{shown}").text_content()
        tab.locator("button", has_text="Copied").first.wait_for()
        assert tab.evaluate("navigator.clipboard.readText()") == wanted


def test_a_heading_s_anchor_is_no_state(tab):
    tab.goto("/explorer.html#T=3&S=4")
    tab.evaluate("location.hash = 'threads-that-ask-this'")
    seen = tab.evaluate(READ)
    assert (seen["link"], len(seen["grid"])) == ("#threads-that-ask-this", 3)


@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_is_as_wide_as_the_window(tab, width):
    tab.set_viewport_size({"width": width, "height": 900})
    parts = ".and.".join(NAMES)
    tab.goto(f"/explorer.html#T=12&S=12&mask={parts}")
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_the_page_is_small(tab):
    bodies = {}
    tab.on("response", lambda reply: bodies.update({reply.url: reply}))
    tab.goto("/explorer.html", wait_until="networkidle")
    sizes = {url: len(gzip.compress(reply.body())) for url, reply in bodies.items() if reply.ok}
    ready = tab.evaluate("performance.getEntriesByName('explorer-ready')[0].startTime")
    own = sum(size for url, size in sizes.items() if "explorer" in url)
    print(f"{sum(sizes.values())} bytes, {own} of them the explorer's; ready in {ready:.0f} ms")
    assert len(sizes) > 8
    assert sum(sizes.values()) < BUDGET
