"""`phrase`: one thing said in NumPy, PyTorch and JAX, executed in all three and compared.

    ```{phrase} Keep some cells, replace the others
    allowed = np.tri(3, dtype=bool)

    np.where(allowed, 0.0, -np.inf)  # masks.py
    torch.where(allowed, 0.0, -torch.inf)  # masks.py
    xp.where(allowed, 0.0, -jnp.inf)  # masks.py
    ```

The first paragraph is NumPy; each framework gets its values in arrays of its own. Then a line a
framework: an expression, or an assignment whose target is the value. A file behind a line says
where it is cut from, and the build fails if it is not there. The build fails, too, if a line fails
or if the three values differ; `:shape:` compares shapes alone, for random numbers. A line that is
only a comment says that a framework has nothing of the kind.
"""

import ast
from pathlib import Path
from typing import ClassVar

import numpy as np
from docutils import nodes
from docutils.parsers.rst import directives
from side_by_side import BACKENDS
from sphinx.util.docutils import SphinxDirective


class Phrase(SphinxDirective):
    """A table: a framework a row, then what all of them give."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar = {"shape": directives.flag}

    def run(self):
        given, lines = "\n".join(self.content).split("\n\n")
        rows, values = [], {}
        for backend, line in zip(BACKENDS, lines.splitlines(), strict=True):
            code, _, file = line.rpartition("  # ") if line.endswith(".py") else (line, "", "")
            place = self.find(backend, file, code) if file else ""
            if not code.startswith("#"):
                values[backend] = value(code, given, backend)
            rows.append(row(BACKENDS[backend], code_block(code), place))
        self.compare(values)
        rows.insert(0, row("Given", code_block(given), ""))
        rows.append(row("Gives", code_block(self.shown(values)), ""))
        return [self.table(rows)]

    def find(self, backend: str, file: str, code: str) -> str:
        path = Path(self.env.app.confdir).parent / f"attn_{backend}" / file
        self.env.note_dependency(str(path))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if code in line:
                return f"{file}, {number}"
        raise self.error(f"phrase: a line is in the file that it names: got {code!r} for {path}")

    def compare(self, values: dict) -> None:
        first, *others = values.values()
        for other in others:
            same = np.shape(first) == np.shape(other)
            if same and "shape" not in self.options:
                same = np.allclose(first, other, 1e-6, 1e-6, equal_nan=True)
            if not same:
                raise self.error(f"phrase: three frameworks give the same: got {values}")

    def shown(self, values: dict) -> str:
        first = next(iter(values.values()))
        if "shape" in self.options:
            text = f"shape {np.shape(first)}"
        else:
            text = np.array2string(first, separator=", ", precision=4).replace("\n", "")
        dtypes = [found.dtype.name for found in values.values()]
        return f"{text}  # {dtypes[0] if len(set(dtypes)) == 1 else ', '.join(dtypes)}"

    def table(self, rows: list) -> nodes.table:
        title = self.arguments[0]
        group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (1, 7, 2)), cols=3)
        group += nodes.tbody("", *rows)
        table = nodes.table("", nodes.title(title, title), group, classes=["phrase"])
        self.add_name(table)
        table["ids"].append(nodes.make_id(title))
        return table


def value(code: str, given: str, backend: str) -> np.ndarray:
    """Execute a framework's line with what is given; return its value in NumPy."""
    import jax.numpy as jnp
    import torch

    names = {"np": np}
    exec("import jax, torch\nfrom jax import lax\nimport jax.numpy as jnp\nxp = jnp", names)
    exec("from flax import nnx\nfrom types import SimpleNamespace\nimport attn_numpy, attn_torch, attn_jax", names)
    taken = set(names)
    exec(given, names)
    array = {"numpy": np.array, "torch": torch.tensor, "jax": jnp.asarray}[backend]
    for name in set(names) - taken:
        if isinstance(names[name], np.ndarray):
            names[name] = array(names[name])
    (statement,) = ast.parse(code).body
    if isinstance(statement, ast.Assign):
        exec(code, names)
        (target,) = statement.targets
        code = ast.unparse(target.value if isinstance(target, ast.Subscript) else target)
    found = eval(code, names)
    return found.numpy(force=True) if isinstance(found, torch.Tensor) else np.asarray(found)


def row(name: str, body: nodes.Node, place: str) -> nodes.row:
    head = nodes.entry("", nodes.paragraph("", name), stub=True)
    return nodes.row("", head, nodes.entry("", body), nodes.entry("", nodes.paragraph("", place)))


def code_block(code: str) -> nodes.literal_block:
    return nodes.literal_block(code, code, language="python")


def setup(app):
    app.add_directive("phrase", Phrase)
    return {"parallel_read_safe": True}
