"""What the package needs, and under which licences; the core works without the extra."""

import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
from licences import FREE, LIMITED, ROOT, closure, licence, required
from packaging.requirements import Requirement

ALLOWED = {"torch", "torchvision", "safetensors", "scikit-learn", "matplotlib", "tqdm"}
WITH_TABLES = ("criteria", "domain_eval", "explore", "query", "plots")  # want the extra


def test_the_package_needs_six_others():
    assert {Requirement(text).name for text in required()} == ALLOWED


@pytest.mark.parametrize("name, package", closure([*required(), *required("notebooks")]).items())
def test_licences_are_permissive_or_named(name, package):
    assert licence(package) in FREE | set(LIMITED), f"{name}: {licence(package)}"
    if licence(package) in LIMITED:
        assert name in {"tqdm", "certifi", "cuda-toolkit"} or name.startswith("nvidia-")


def test_the_document_names_every_direct_dependency():
    text = (ROOT / "DEPENDENCIES.md").read_text()
    for name in (Requirement(text).name for text in [*required(), *required("notebooks")]):
        assert f"**{name}**" in text


def test_the_core_works_without_the_extra(tmp_path):
    """Modules without tables are imported, and a student distilled, by the requirements alone."""
    core = set(closure(required()))
    foreign = sorted(
        name
        for name, owners in packages_distributions().items()
        if not {owner.lower().replace("_", "-") for owner in owners} & (core | {"atesc"})
        and name != "sphinx"  # of the extra docs; scipy takes any entry of that name for Sphinx
    )
    assert {"pandas", "papermill", "ipywidgets", "nbformat", "IPython"} <= set(foreign)
    modules = sorted(
        ".".join(path.relative_to(ROOT / "atesc").with_suffix("").parts)
        for path in (ROOT / "atesc").rglob("[!_]*.py")
        if path.stem not in WITH_TABLES
    )
    (tmp_path / "alone.py").write_text(f"""
import sys

for name in {foreign!r}:
    sys.modules[name] = None  # `import name` raises ModuleNotFoundError
import importlib
from pathlib import Path

for name in {modules!r}:
    importlib.import_module("atesc." + name)

from atesc.study.grid import plan_grid, run_grid
from atesc.study.presets import load_preset

preset = load_preset("debug", iterations=2)
cells = plan_grid([preset.task], [0], ["dfq"], ["ntl-atesc"])
(record,) = run_grid("alone", preset, cells, Path({str(tmp_path)!r}))
print(record["iterations"])
""")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", tmp_path / "alone.py"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "2", done.stderr
