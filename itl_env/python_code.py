"""What Python code is, without running it: whether two texts are the same code, or compute nothing.

Nothing here raises on what a model wrote.
"""

import ast
import threading
import warnings

# Of code that only spells its answer; whatever computes has another node, or calls something else.
_SPELLING = (
    ast.Module, ast.Expr, ast.Assign, ast.Name, ast.Load, ast.Store, ast.Constant, ast.UnaryOp,
    ast.USub, ast.UAdd, ast.Tuple, ast.List, ast.JoinedStr, ast.FormattedValue, ast.Call,
    ast.keyword, ast.Import, ast.ImportFrom, ast.alias, ast.Pass, ast.If, ast.IfExp,
)  # fmt: skip


_QUIET = threading.Lock()  # what is shown of warnings is set for all threads
_SHOWING = ("print", "str", "int", "float", "repr")  # what is given, in another form at most


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
    trees = syntax_tree(code), syntax_tree(other)
    if trees[0] is None or trees[1] is None:
        return False
    try:
        return ast.dump(trees[0]) == ast.dump(trees[1])
    except RecursionError:
        return False


def is_constant_code(code: str) -> bool:
    """Whether code computes nothing, but prints what it spells: `print(6)`, `x = "a"; print(x)`.

    False for code that has no syntax tree.
    """
    tree = syntax_tree(code)
    if tree is None:
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _SPELLING):
            return False
        if isinstance(node, ast.Call):
            function = node.func
            if not (isinstance(function, ast.Name) and function.id in _SHOWING):
                return False
    return True
