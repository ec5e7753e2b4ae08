"""Running code as a notebook does: what it prints, and the value of a last expression."""

import ast
import contextlib
import io
from pathlib import Path


def execute(code: str, names: dict, file: str, line: int) -> tuple[str, str, str | None]:
    """Run code; return what it shows, as text and as HTML, and the exception's name, if any."""
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
        told = str(error).replace(file, Path(file).name)
        return f"{out.getvalue()}{name}: {told}", "", name
    return out.getvalue().rstrip(), html, None
