"""The page of the API: every public name of the three backends, from the files themselves.

The page's own file is its beginning. A name has three tabs, or none where the three say the same:
the signature as it is written, the docstring, and for a class its fields and its public methods.
What is about several devices has no tab for NumPy.
"""

import ast
import inspect
import re
from pathlib import Path

from side_by_side import BACKENDS

PAGE = "reference/api"
PRIVATE = re.compile(r"_(?!_call__)")


def read(app, docname, source):
    if docname != PAGE:
        return
    folders = {backend: Path(app.confdir).parent / f"attn_{backend}" for backend in BACKENDS}
    public = {backend: public_names(folder) for backend, folder in folders.items()}
    for file, names in max(public.values(), key=len).items():
        there = [backend for backend in public if file in public[backend]]
        if any(public[backend][file] != names for backend in there):
            raise ValueError(f"the backends have the same public names: got {public}")
        source[0] += f"\n\n## {file}\n"
        paths = {backend: folders[backend] / file for backend in there}
        for path in paths.values():
            app.env.note_dependency(str(path))
        sources = {backend: path.read_text("utf-8") for backend, path in paths.items()}
        for name in names:
            texts = {backend: entry(text, name) for backend, text in sources.items()}
            source[0] += f"\n\n### {name}\n\n{tabs(texts)}"
    if re.search(r"^ *None$", source[0], re.MULTILINE):
        raise ValueError("no line of the API's page is only None: got one")


def public_names(folder: Path) -> dict[str, list[str]]:
    """Return what `__init__.py` imports: the names of each file."""
    imports = ast.parse((folder / "__init__.py").read_text("utf-8")).body
    return {
        f"{node.module}.py": [alias.name for alias in node.names]
        for node in imports
        if isinstance(node, ast.ImportFrom)
    }


def tabs(texts: dict[str, str]) -> str:
    """Return a tab for each backend, or the text alone where it is the same in all three."""
    if len(set(texts.values())) == 1 < len(texts):
        return next(iter(texts.values()))
    lines = ["::::::{tab-set}", ":sync-group: backend", ""]
    for backend, text in texts.items():
        lines += [f":::::{{tab-item}} {BACKENDS[backend]}", f":sync: {backend}", "", text, ":::::"]
    return "\n".join([*lines, "::::::"])


def entry(source: str, name: str) -> str:
    """Return what the page says about a function or a class."""
    tree = ast.parse(source)
    (node,) = (node for node in tree.body if getattr(node, "name", None) == name)
    if isinstance(node, ast.FunctionDef):
        return described(node, source)
    own = members(node, tree)
    fields = [
        ast.get_source_segment(source, part) for part in own if isinstance(part, ast.AnnAssign)
    ]
    methods = {part.name: part for part in own if isinstance(part, ast.FunctionDef)}
    head = [f"class {name}:", *(f"    {field}" for field in fields)]
    if start := methods.get("__init__"):
        head += [*(f"    {line}" for line in header(start, source).splitlines())]
    parts = [fenced("\n".join(head), "python"), prose(ast.get_docstring(node))]
    shown = [part for part in methods.values() if ast.get_docstring(part)]
    parts += [described(part, source) for part in shown if not PRIVATE.match(part.name)]
    return "\n\n".join(parts)


def members(node: ast.ClassDef, tree: ast.Module) -> list[ast.stmt]:
    """Return what stands in a class, and in its private bases of the same file."""
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    private = [base for base in tree.body if isinstance(base, ast.ClassDef) and base.name in bases]
    inherited = [part for base in private if base.name[0] == "_" for part in members(base, tree)]
    return [*inherited, *node.body]


def described(node: ast.FunctionDef, source: str) -> str:
    return f"{fenced(header(node, source), 'python')}\n\n{prose(ast.get_docstring(node))}"


def header(node: ast.FunctionDef, source: str) -> str:
    """Return a signature as it is written, with what decorates it."""
    first = min(part.lineno for part in (node, *node.decorator_list))
    lines = source.splitlines()[first - 1 : node.body[0].lineno - 1]
    return inspect.cleandoc("\n".join(lines)).removesuffix(":")


def prose(docstring: str) -> str:
    """Return a docstring as Markdown: its doctests are code."""
    blocks = re.split(r"\n\s*\n", docstring)
    return "\n\n".join(fenced(b, "pycon") if b[:3] == ">>>" else escaped(b) for b in blocks)


def escaped(text: str) -> str:
    """Escape what Markdown would read as HTML, but for code."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p[:1] == "`" else p.replace("<", "\\<") for p in pieces)


def fenced(code: str, language: str) -> str:
    return f"````{language}\n{code}\n````"


def setup(app):
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
