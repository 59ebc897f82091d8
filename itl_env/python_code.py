"""What Python code is, without running it: whether two texts are the same code, or compute nothing.

Nothing here raises on what a model wrote.
"""

import ast
import builtins
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_QUIET = threading.Lock()  # what is shown of warnings is set for all threads

# Nodes that compute, whatever they hold.
_COMPUTING = (
    ast.BinOp, ast.Compare, ast.Subscript, ast.AugAssign,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip
# Names that show what is given, in another form at most, or hold or end code; and those of these
# that compute if there is a second argument, such as a base.
_SHOWING = frozenset((
    "print", "str", "int", "float", "repr", "ascii", "format", "bool", "list", "tuple", "dict",
    "object", "exit", "quit", "stdout", "stderr", "write", "writelines", "flush", "append",
    "__name__", "__doc__", "__file__", "__init__",
))  # fmt: skip
_CONVERTING = frozenset(("int", "str", "format"))
# Text whose places are only filled, as by `str.format` and by `%`.
_BARE_FIELDS = re.compile(r"(?:[^{}]|\{\{|\}\}|\{\w*\})*+", re.ASCII)
_BARE_PLACES = re.compile(r"(?:[^%]|%[%sdir])*+")


def syntax_tree(code: str) -> ast.Module | None:
    """The syntax tree of code; None if it has none, or one that is nested too deeply."""
    try:
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of escapes that mean nothing
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def same_code(code: str, other: str) -> bool:
    """Whether two texts are the same code, however it is laid out: equal syntax trees."""
    key = code_key(code)
    return key is not None and key == code_key(other)


def code_key(code: str) -> str | None:
    """What two texts of the same code have in common; None if there is no syntax tree."""
    tree = syntax_tree(code)
    try:
        return None if tree is None else ast.dump(tree)
    except RecursionError:
        return None


def is_constant_code(code: str) -> bool:
    """Whether code computes nothing, but prints what it spells: `print(6)`, `x = "a"; print(x)`.

    Code computes if it has a binary operator, a comparison, a comprehension or a subscript, or
    refers to a function or a module's constant beyond those that only show what they are given.
    Its own functions compute if something in them does. So "print(6 * 1)" computes, as the
    expression does for a calculator. False for code that has no syntax tree.
    """
    tree = syntax_tree(code)
    if tree is None:
        return False
    nodes = []
    for node in _executed(tree):
        if isinstance(node, _COMPUTING) and not _fills(node):
            return False
        nodes.append(node)
    own = _Own(*(_SHOWING.union(*map(of, nodes)) for of in (_names, _functions, _attributes)))
    return not any(_reaches(node, own) for node in nodes)


class _Own(NamedTuple):
    """Names in code that compute nothing themselves, with those that show."""

    names: frozenset[str]
    functions: frozenset[str]
    attributes: frozenset[str]


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree but for annotations and contexts."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        for name in node._fields:
            value = getattr(node, name)
            if isinstance(value, list):
                left += [each for each in value if isinstance(each, ast.AST)]
            elif isinstance(value, ast.AST) and name not in ("annotation", "returns", "ctx"):
                left.append(value)


def _fills(node: ast.AST) -> bool:
    """Whether an operator only fills a text's places, or asks how the code was started."""
    match node:
        case ast.Compare(left=ast.Name(id="__name__")):
            return True
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod()):
            return _BARE_PLACES.fullmatch(text) is not None
    return False


def _names(node: ast.AST) -> Iterable[str]:
    """The names that a node gives to what is in the code, or to a whole module."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.ExceptHandler(name=str(name)):
            return (name,)
        case ast.Import(names=modules):
            return [(each.asname or each.name).partition(".")[0] for each in modules]
    return _functions(node)


def _functions(node: ast.AST) -> Iterable[str]:
    """The names of functions and classes that a node defines, or may stand for ones."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return (name,)
        case ast.arg(arg=name):
            return (name,)
    return ()


def _attributes(node: ast.AST) -> Iterable[str]:
    """The attributes that a node defines: methods of a class, or what is assigned to."""
    match node:
        case ast.ClassDef(body=body):
            fields = [target for each in body for target in getattr(each, "targets", ())]
            return [name for each in (*body, *fields) for name in _names(each)]
        case ast.Attribute(attr=name, ctx=ast.Store()):
            return (name,)
    return ()


def _reaches(node: ast.AST, own: _Own) -> bool:
    """Whether a node refers to what computes, and is in nobody's code here."""
    match node:
        case ast.Name(id=name, ctx=ast.Load()):
            return name not in own.names and not _is_exception(name)
        case ast.Attribute(value=ast.Constant(value=str(text)), attr="format"):
            return not _BARE_FIELDS.fullmatch(text)
        case ast.Attribute(attr=name, ctx=ast.Load()):
            return name not in own.attributes or name == "format"
        case ast.Call(func=ast.Name(id=name), args=[_, _, *_]) if name in _CONVERTING:
            return True
        case ast.Call(func=ast.Name(id=name)):  # such as in `sum = sum(numbers)`
            return hasattr(builtins, name) and name not in own.functions and not _is_exception(name)
    return False


def _is_exception(name: str) -> bool:
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, BaseException)
