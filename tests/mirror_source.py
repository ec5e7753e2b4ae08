"""Reads one backend's source for `mirror.py`: what it defines, and that as text.

In a text the frameworks' names are set aside: `torch.float32` and `np.float32` are `float32`.
"""

import ast
import copy
import re
from collections.abc import Iterator

MISSING = "missing"
FRAMEWORKS = ("np", "numpy", "torch", "jnp", "jax", "nn", "nnx")
SAME = {"ndarray": "Array", "Tensor": "Array", "keepdim": "keepdims"}
PLACES = ("device", "xp")  # where an array is made, in torch and in JAX; .to(x.device) goes too
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
Documented = FUNCTION | ast.ClassDef | ast.Module


class _Names(ast.NodeTransformer):
    """Sets the frameworks' names aside: their modules, their places, and `words`."""

    def __init__(self, words: dict[str, str]):
        self.words = words

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        name = self.words.get(node.attr, node.attr)
        if isinstance(node.value, ast.Name) and node.value.id in FRAMEWORKS:
            return ast.Name(name)
        return ast.Attribute(node.value, name)

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.words.get(node.id, node.id))

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Call(ast.Attribute(array, "to"), [ast.Attribute(_, "device")], []):
                return array
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        self.generic_visit(node)
        return ast.arg(self.words.get(str(node.arg), node.arg), node.annotation)

    def visit_keyword(self, node: ast.keyword) -> ast.keyword | None:
        self.generic_visit(node)
        if node.arg in PLACES:
            return None
        return ast.keyword(node.arg and self.words.get(node.arg, node.arg), node.value)


def source(node: ast.AST | None, words: dict[str, str] | None = None) -> str:
    """Return a node as text, in names that are the same everywhere."""
    if node is None:
        return "none"
    return ast.unparse(_Names(SAME | (words or {})).visit(copy.deepcopy(node)))


def definitions(node: ast.AST) -> dict[str, ast.stmt]:
    """Return what a module or class defines by name; overloads are name@overload1, 2, ..."""
    found: dict[str, ast.stmt] = {}
    for name, inner in _definitions(node):
        if isinstance(inner, FUNCTION) and "overload" in decorators(inner):
            count = sum(key.startswith(f"{name}@") for key in found)
            name = f"{name}@overload{count + 1}"
        found[name] = inner
    return found


def _definitions(node: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Yield what a module or class defines, inside `if`, `try` and `with` too."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, FUNCTION | ast.ClassDef):
            yield inner.name, inner
        elif isinstance(inner, ast.Assign | ast.AnnAssign):
            targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
            names = (n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
            yield from ((name.id, inner) for name in names)
        elif isinstance(inner, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _definitions(inner)


def kind(node: ast.stmt) -> str:
    """Return what a definition is: a class, a value, or which kind of function."""
    if not isinstance(node, FUNCTION):
        return "class" if isinstance(node, ast.ClassDef) else "value"
    marks = {"property", "cached_property", "classmethod", "staticmethod"}
    return " ".join([*sorted(marks & set(decorators(node))), "function"])


def decorators(node: ast.stmt) -> list[str]:
    """Return the decorators of a function or class, the outermost first."""
    return [source(decorator) for decorator in getattr(node, "decorator_list", [])]


def bases(node: ast.stmt) -> str:
    """Return what a class is made from; for anything else and for no base at all "none"."""
    inherited = [*getattr(node, "bases", []), *getattr(node, "keywords", [])]
    return ", ".join(map(source, inherited)) or "none"


def annotation(node: ast.AST | None) -> str:
    """Return the annotation of a field, a parameter or what a function returns."""
    return source(getattr(node, "annotation", None) or getattr(node, "returns", None))


def first_line(node: Documented) -> str:
    """Return the first line of a docstring."""
    text = ast.get_docstring(node)
    return repr(text.splitlines()[0]) if text else MISSING


def raises(node: Documented) -> str:
    """Return what a docstring says is raised: from its word "Raises" to the paragraph's end."""
    text = re.search(r"\bRaises\b.*?(?=\n\s*\n|\Z)", ast.get_docstring(node) or "", re.DOTALL)
    return repr(" ".join(text[0].split())) if text else MISSING


def parameters(args: ast.arguments) -> Iterator[tuple[str, ast.arg, str]]:
    """Yield each parameter's name, itself, and its default with how it is given."""
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    for i, (arg, default) in enumerate(zip(positional, defaults, strict=True)):
        how = "positional only" if i < len(args.posonlyargs) else "positional"
        yield arg.arg, arg, f"{source(default)} ({how})"
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield arg.arg, arg, f"{source(default)} (keyword only)"
    for stars, rest in (("*", args.vararg), ("**", args.kwarg)):
        if rest:
            yield stars + rest.arg, rest, "none (the rest)"
