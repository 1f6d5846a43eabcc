"""The face of the package: fifteen names, imported when used, explained by help()."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import atesc

INIT = Path(atesc.__file__)


def python(code, cwd):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)


def test_import_is_lazy(tmp_path):
    """Nothing heavy is imported, not even for the error class; names come when they are used."""
    heavy = ("torch", "numpy", "pandas", "matplotlib", "papermill", "tqdm", "sklearn")
    code = f"import sys, atesc; atesc.AtescError; print([x for x in {heavy} if x in sys.modules])"
    assert python(code, tmp_path).stdout.strip() == "[]"
    wrong = python("import atesc; atesc.distil", tmp_path)
    assert (
        "has no attribute 'distil'" in wrong.stderr and "Did you mean: 'distill'?" in wrong.stderr
    )


def test_what_an_editor_sees_is_what_is_imported():
    """The imports for type checkers and the table for the interpreter name the same things."""
    (block,) = [node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"atesc.{module}" for name, module in atesc._MODULE_OF.items()}
    assert len(seen) == 15 and set(atesc.__all__) == set(seen) <= set(dir(atesc))


@pytest.mark.parametrize("name", atesc.__all__)
def test_help_says_what_arguments_mean(name):
    """Every argument of a function, and every field of an objective or splitter, by its name."""
    thing = getattr(atesc, name)
    assert callable(thing), "a function or a class, no module"
    if name == "AtescError":
        return
    text = inspect.getdoc(thing)
    arguments = [p for p in inspect.signature(thing).parameters if p != "self"]
    missing = [argument for argument in arguments if f"    {argument}: " not in text]
    assert not missing, f"help(atesc.{name}) does not explain {missing}"
    assert (INIT.parent / "py.typed").exists()


TEN_LINES = """
import torch, atesc
from torch import nn

torch.manual_seed(0)
teacher = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
)
student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
print(atesc.find_traps(teacher, size=8))
print(atesc.distill(teacher, student, size=8, iterations=3))
"""


def test_a_network_of_ones_own_in_ten_lines(tmp_path):
    done = python(TEN_LINES, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("trap", "none", "unknown")) and "3 iterations in" in done.stdout
