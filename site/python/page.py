"""What a page asks of Python: code goes in, HTML comes out."""

from html import escape

from execute import execute

import attn_numpy  # noqa: F401, Python counts as ready when it is imported

NAMES: dict = {"__name__": "page"}  # of all the code that one page runs


def run(code: str) -> str:
    """Run code, and show what it prints and the value of its last expression."""
    text, html, _ = execute(code, NAMES, "page", 0)
    return (f"<pre>{escape(text)}</pre>" if text else "") + html


def judge(code: str) -> str:
    """Judge an adapter by the frozen vectors; what its own code raises is shown."""
    from judge import judge  # here: only who is judged downloads it

    try:
        return judge(code)
    except (Exception, SystemExit) as error:
        plain = str(error).startswith("--subject")
        text = str(error) if plain else f"{type(error).__name__}: {error}"
        return f'<p class="verdict"><strong>{escape(text)}</strong></p>'


def exercise(name: str, predicted: str) -> str:
    """Run the vectors on a wrong implementation; say whether the predicted clause breaks."""
    from exercise import play

    return play(name, predicted)
