"""What a page asks of Python: code goes in, HTML comes out."""

from html import escape

from execute import execute, line_of

import attn_numpy  # noqa: F401, Python counts as ready when it is imported

ONLY_NUMPY = (
    "<p>Only NumPy runs in this page. Write the formula in NumPy, or run the suite on your "
    'machine: <a href="check-your-own.html#how-do-i-go-on">How do I go on?</a></p>'
)
NAMES: dict = {"__name__": "page"}  # of all the code that one page runs


def run(code: str) -> str:
    """Run code, and show what it prints and the value of its last expression."""
    text, html, _ = execute(code, NAMES, "page", 0)
    return (f"<pre>{escape(text)}</pre>" if text else "") + html


def judge(code: str) -> str:
    """Judge an adapter by the frozen vectors; what its own code raises is shown."""
    import judge  # here: only who is judged downloads it

    try:
        html = judge.judge(code)
    except judge.NoAdapter as error:
        html = judge.strong(str(error))
    except (Exception, SystemExit) as error:
        line = line_of(error, judge.FILE)
        html = judge.strong(f"{f'line {line}: ' if line else ''}{type(error).__name__}: {error}")
    return html + ONLY_NUMPY if "ModuleNotFoundError" in html else html


def exercise(name: str, predicted: str) -> str:
    """Run the vectors on a wrong implementation; say whether the predicted clause breaks."""
    from exercise import play

    return play(name, predicted)
