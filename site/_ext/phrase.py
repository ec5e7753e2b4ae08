"""`phrase`: one thing said in NumPy, PyTorch and JAX, executed in all three and compared.

    ```{phrase} Keep some cells, replace the others
    allowed = np.tri(3, dtype=bool)

    np.where(allowed, 0.0, -np.inf)  # masks.py
    torch.where(allowed, 0.0, -torch.inf)  # masks.py
    jnp.where(allowed, 0.0, -jnp.inf)
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

ROOT = Path(__file__).parents[2]
IMPORTS = """
import jax, torch, attn_numpy, attn_torch, attn_jax
import jax.numpy as jnp, numpy as np
from flax import nnx
from jax import lax
from types import SimpleNamespace
"""


class Phrase(SphinxDirective):
    """A table: a framework a row, then what all of them give."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar = {"shape": directives.flag}

    def run(self):
        given, _, rest = "\n".join(self.content).partition("\n\n")
        lines = rest.splitlines()
        if len(lines) != len(BACKENDS):
            raise self.error(f"phrase: {given!r} has three lines, or a comment: got {len(lines)}")
        rows, values = [row("Given", given)], {}
        for backend, line in zip(BACKENDS, lines, strict=True):
            code, _, file = line.rpartition("  # ") if line.endswith(".py") else (line, "", "")
            rows.append(row(BACKENDS[backend], code, self.find(backend, file, code)))
            if not code.startswith("#"):
                try:
                    values[backend] = value(code, given, backend)
                except Exception as error:
                    raise self.error(f"phrase: a line runs: got {error!r} in {code}") from error
        self.compare(values)
        rows.append(row("Gives", self.shown(values)))
        return [self.table(rows)]

    def find(self, backend: str, file: str, code: str) -> str:
        """Return where a line is cut from, or nothing where no file is named."""
        if not file:
            return ""
        path = ROOT / f"attn_{backend}" / file
        self.env.note_dependency(str(path))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if code in line:
                return f"{file}, {number}"
        raise self.error(f"phrase: a line is in attn_{backend}/{file}: got {code!r}")

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
        text = " ".join(np.array2string(first, separator=", ", precision=4).split())
        if "shape" in self.options:
            text = f"shape {np.shape(first)}"
        dtypes = [found.dtype.name for found in values.values()]
        return f"{text}  # {dtypes[0] if len(set(dtypes)) == 1 else ', '.join(dtypes)}"

    def table(self, rows: list) -> nodes.table:
        title = self.arguments[0]
        group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (1, 7, 2)), cols=3)
        group += nodes.tbody("", *rows)
        ids, classes = [nodes.make_id(title)], ["phrase"]
        return nodes.table("", nodes.title(title, title), group, ids=ids, classes=classes)


def value(code: str, given: str, backend: str) -> np.ndarray:
    """Execute a framework's line with what is given; return its value in NumPy."""
    names = {}
    exec(IMPORTS, names)
    torch, jnp = names["torch"], names["jnp"]
    array = {"numpy": np.array, "torch": torch.tensor, "jax": jnp.asarray}[backend]
    exec(given, names)
    for name, given_value in names.items():
        if isinstance(given_value, np.ndarray):
            names[name] = array(given_value)
    (statement,) = ast.parse(code).body
    if isinstance(statement, ast.Assign):
        exec(code, names)
        (target,) = statement.targets
        code = ast.unparse(target.value if isinstance(target, ast.Subscript) else target)
    found = eval(code, names)
    return found.numpy(force=True) if isinstance(found, torch.Tensor) else np.asarray(found)


def row(name: str, code: str, place: str = "") -> nodes.row:
    block = nodes.literal_block(code, code, language="python")
    return nodes.row(
        "",
        nodes.entry("", nodes.paragraph("", name)),
        nodes.entry("", block),
        nodes.entry("", nodes.paragraph("", place)),
    )


def setup(app):
    app.add_directive("phrase", Phrase)
    return {"parallel_read_safe": True}
