"""Running code as a notebook does: what it prints, and the value of a last expression."""

import ast
import contextlib
import io
import traceback
from pathlib import Path


def execute(code: str, names: dict, file: str, line: int) -> tuple[str, str, str | None]:
    """Run code; return what it shows, as text and as HTML, and the exception's name, if any.

    `line` is the code's place in its file; at 0 it has no other, and an exception names its line.
    """
    out, html = io.StringIO(), ""
    try:
        tree = ast.increment_lineno(ast.parse(code, file), line)
        value = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(out):
            exec(compile(tree, file, "exec"), names)
            if value is not None:
                shown = eval(compile(ast.Expression(value.value), file, "eval"), names)
                if hasattr(shown, "_repr_html_"):
                    html = shown._repr_html_()
                elif shown is not None:
                    print(repr(shown))
    except Exception as error:
        name = type(error).__name__
        at = 0 if line else line_of(error, file)
        told = f"{f'line {at}: ' if at else ''}{name}: {error}".replace(file, Path(file).name)
        return f"{out.getvalue()}{told}", "", name
    return out.getvalue().rstrip(), html, None


def line_of(error: BaseException, file: str) -> int | None:
    """Return the last line of a file that an exception went through."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == file), None)
