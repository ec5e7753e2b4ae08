"""`side-by-side`: one definition of the three backends, taken by name from their files.

    ```{side-by-side} masks.py _causal
    ```

    ```{side-by-side} attention.py attention_steps
    :jax: _steps
    ```

Three tabs, which a reader can turn into three columns. A line that another backend does not have
is marked; spelling alone (`np.` and `torch.`, `axis=` and `dim=`) does not count. `:jax:`,
`:torch:` and `:numpy:` name a backend's definition where it has another name (`_one+_other` is two,
one below the other), `:doc:` keeps the docstring. A name that is missing fails the build, and a
change to a file builds its pages anew.
"""

import ast
import re
from pathlib import Path
from typing import ClassVar

from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

BACKENDS = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX"}
SPELLING = [
    (r"\b(np\.ndarray|torch\.Tensor|jax\.Array|Tensor|Array)\b", "Array"),
    (r"\b(np|jnp|torch|jax|lax)\.", "xp."),
    (r"\b(axis|dim)=", "axis="),
]


class SideBySide(SphinxDirective):
    """A definition in three tabs."""

    required_arguments = 2  # file and dotted name
    option_spec: ClassVar = {"doc": directives.flag} | dict.fromkeys(
        BACKENDS, directives.unchanged_required
    )

    def run(self):
        file, name = self.arguments
        root, codes = Path(__file__).parents[2], {}
        for backend in BACKENDS:
            path = root / f"attn_{backend}" / file
            own_name = self.options.get(backend, name)
            self.env.note_dependency(str(path))
            try:
                parts = [definition(path, n, "doc" in self.options) for n in own_name.split("+")]
            except (KeyError, OSError) as error:
                missing = f"attn_{backend}/{file} has a definition of that name: got {own_name}"
                raise self.error(f"side-by-side: {missing}") from error
            codes[backend] = "\n\n\n".join(code for code, _ in parts), parts[0][1]
        lines = [{spelled(line) for line in code.splitlines()} for code, _ in codes.values()]
        common = set.intersection(*lines)
        text = ["::::{tab-set}", ":sync-group: backend", ":class: side-by-side", ""]
        for backend, (code, first) in codes.items():
            text += [f":::{{tab-item}} {BACKENDS[backend]}", f":sync: {backend}", ""]
            text += ["`````{code-block} python", f":caption: attn_{backend}/{file}, line {first}"]
            text += [*marks(code, common), "", code, "`````", ":::", ""]
        return self.parse_text_to_nodes("\n".join([*text, "::::"]))


def definition(path: Path, name: str, with_doc: bool) -> tuple[str, int]:
    """Return a definition's source, dedented, and its first line's number."""
    text = path.read_text("utf-8")
    node = find(ast.parse(text), name.split("."))
    first = min(part.lineno for part in (node, *node.decorator_list))
    lines = text.splitlines()[first - 1 : node.end_lineno]
    if not with_doc and ast.get_docstring(node) is not None:
        doc = node.body[0]
        del lines[doc.lineno - first : doc.end_lineno - first + 1]
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] for line in lines).strip("\n"), first


def find(tree: ast.AST, path: list[str]):
    """Return the definition to which a dotted name leads: the last, where one is overloaded."""
    for node in reversed(list(ast.iter_child_nodes(tree))):
        if getattr(node, "name", None) == path[0]:
            return node if len(path) == 1 else find(node, path[1:])
    raise KeyError(path[0])


def spelled(line: str) -> str:
    """Return a line without what the frameworks only spell differently."""
    for pattern, word in SPELLING:
        line = re.sub(pattern, word, line)
    return line.strip()


def marks(code: str, common: set[str]) -> list[str]:
    """Return the option that marks the lines which are not common, unless that is all of them."""
    lines = [spelled(line) for line in code.splitlines()]
    own = [str(i) for i, line in enumerate(lines, 1) if line and line not in common]
    return [f":emphasize-lines: {','.join(own)}"] if 0 < len(own) < len(lines) else []


def setup(app):
    app.add_directive("side-by-side", SideBySide)
    return {"parallel_read_safe": True}
