"""A page that says what is not so fails the build, and says why."""

import pytest

RUN = "```{{run}}\n{}\n{}\n```".format
PYTHON = "```{{python}}\n{}\n{}\n```".format
TABS = "```{{side-by-side}} masks.py {}\n{}\n```".format
EXERCISE = "```{{exercise}} 1 transposed\n:right: {}\n:wrong: {}\n```".format
PAGES = {
    "run": (RUN("", "1 + 1"), ""),
    "run announced": (RUN(":raises: ZeroDivisionError", "1 / 0"), ""),
    "run unannounced": (RUN("", "1 / 0"), "run: expected no exception: got ZeroDivisionError"),
    "run absent": (RUN(":raises: KeyError", "1 + 1"), "run: expected KeyError: got 2"),
    "run another": (RUN(":raises: KeyError", "1 / 0"), "expected KeyError: got ZeroDivisionError"),
    "python": (PYTHON("", "1 + 1"), ""),
    "python announced": (PYTHON(":raises: ZeroDivisionError", "1 / 0"), ""),
    "python unannounced": (
        PYTHON("", "1 / 0"),
        "python: expected no exception: got line 1: ZeroDivisionError",
    ),
    "python absent": (PYTHON(":raises: KeyError", "1 + 1"), "python: expected KeyError: got 2"),
    "python another": (
        PYTHON(":raises: KeyError", "1 / 0"),
        "python: expected KeyError: got line 1: ZeroDivisionError",
    ),
    "side-by-side": (TABS("causal", ""), ""),
    "side-by-side nobody": (TABS("nobody", ""), "numpy/masks.py has a definition of that name"),
    "side-by-side jax": (TABS("causal", ":jax: nobody"), "that name: got nobody"),
    "exercise": (EXERCISE("CAUSE-1", "MASK-7"), ""),
    "exercise right holds": (EXERCISE("ATT-1", "MASK-7"), "ATT-1 alone breaks: got []"),
    "exercise right is not named": (EXERCISE("CAUSE-5", "MASK-7"), "CAUSE-5 alone breaks"),
    "exercise wrong breaks": (EXERCISE("CAUSE-1", "CAUSE-5"), "alone breaks: got ['CAUSE-"),
    "exercise wrong is named": (EXERCISE("CAUSE-1", "ATT-1"), "alone breaks: got ['CAUSE-1']"),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_is_not_so_fails_the_build(build, name):
    text, complaint = PAGES[name]
    heard, _ = build(f"# A page\n\n{text}\n")
    assert complaint in heard
    assert bool(heard) == bool(complaint), heard


@pytest.mark.parametrize("link", ["there.md", "gone.md"])
def test_a_project_page_with_a_dead_link_fails_the_build(build, tmp_path, link):
    file = tmp_path / "page.md"
    file.write_text(f"# A page\n\n[to a file]({link})\n", "utf-8")
    (tmp_path / "there.md").touch()
    if link == "there.md":
        assert build("", project_pages={"index": str(file)})[0] == ""
    else:
        with pytest.raises(Exception, match=r"page.md links to a file that exists: got .*gone.md"):
            build("", project_pages={"index": str(file)})
