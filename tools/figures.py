"""Which cells of a notebook must show a figure, and which of them do."""

import ast
import re

DRAWS = re.compile(r"save_figure|plot_\w+|\.show")
IMAGES = ("image/png", "image/svg+xml", "image/jpeg")
APART = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.Assert)


def calls(tree: ast.AST) -> list[str]:
    """Names of the functions that a cell calls itself, not in a definition or an assertion."""
    names = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, APART):
            continue
        name = ""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            name = f".{name}" if name == "show" else name  # of pyplot
        if not name.startswith("test_"):  # what an assertion of fastcore is given is not shown
            names += [name, *calls(node)]
    return names


def draws(source: str) -> bool:
    """Does this code draw a figure for the reader? Exported cells define, they do not draw."""
    if re.match(r"#\|\s*(export|hide)", source):
        return False
    plain = re.sub(r"(?m)^\s*[%!].*$", "", source)  # magics are not Python
    return any(DRAWS.fullmatch(name) for name in calls(ast.parse(plain)))


def has_image(outputs: list[dict]) -> bool:
    """Is there an image among the outputs of a cell?"""
    return any(kind in out.get("data", {}) for out in outputs for kind in IMAGES)


def without_figure(notebook: dict) -> list[str]:
    """The sources of the cells of a notebook that draw a figure and show none."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    return [s for s, cell in zip(sources, cells) if draws(s) and not has_image(cell["outputs"])]
