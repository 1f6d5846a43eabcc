"""The workbook as a whole: export, cleanliness, README, committed results, wheel."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import pytest
from figures import without_figure
from render_readme import render

from atesc.inside.records import load_records
from atesc.study.presets import PRESETS, STUDY
from atesc.study.query import committed, query

ROOT = Path(__file__).parents[1]
KINDS = ("close_set", "open_set", "backdoor")
SOURCES = ["nbs", "atesc", "settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the sources, so that nothing here changes the checkout."""
    folder = tmp_path_factory.mktemp("copy")
    for name in SOURCES:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "runs")
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(
            source, folder
        )
    return folder


def modules(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in (folder / "atesc").rglob("*.py")
    }


def test_the_package_is_what_the_notebooks_export(copy):
    """Modules that no notebook exports are found, too: the copy has none before the export."""
    for path in (copy / "atesc").glob("*/[!_]*.py"):
        path.unlink()
    export = [sys.executable, ROOT / "tools/export.py"]
    subprocess.run(export, cwd=copy, check=True, capture_output=True)
    before, after = modules(ROOT), modules(copy)
    drift = [n for n in sorted({*before, *after}) if before.get(n) != after.get(n)]
    assert not drift, f"run tools/export.py: {drift}"


def test_notebooks_are_clean(copy):
    subprocess.run([SCRIPTS / "nbdev_clean"], cwd=copy, check=True, capture_output=True)
    dirty = [
        p.name for p in NOTEBOOKS if p.read_bytes() != (copy / p.relative_to(ROOT)).read_bytes()
    ]
    assert not dirty, f"run nbdev_clean: {dirty}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_read_well(path):
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0].source
    assert first.startswith("# ") and "\n> " in first, "H1 and one-line subtitle"
    assert path.stat().st_size < 600_000
    assert "widgets" not in notebook.metadata, (
        "state of progress bars that are not shown: run tools/keep_outputs.py"
    )
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            assert out.output_type != "error", cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_figure_is_shown(path):
    """In the committed copy there is an image below each cell that draws one."""
    assert not without_figure(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if p.stem[0].isdigit()], ids=lambda p: p.stem
)
def test_the_head_says_how_long_it_takes(path):
    head = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells[:4])
    (seconds,) = re.findall(r"Runs in about (\d+) s on 2 cores", head)
    assert int(seconds) <= 90


@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if re.match(r"\d\d_", p.stem)], ids=lambda p: p.stem
)
def test_every_exported_cell_is_shown_at_work(path):
    code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    exported = [i for i, source in enumerate(code) if source.startswith("#| export")]
    bare = [
        code[i] for i in exported[1:] if code[i + 1].startswith("#|")
    ]  # the first one holds the imports
    assert not bare, bare


FLOORS = ("inside", "data", "teachers", "synthesis", "method", "study", "app")  # imports go left


def imports_of(path):
    """The modules of atesc that a module names in an import, as dotted names, wherever it does."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            found.add(".".join((*above, *(node.module or "").split("."))).strip("."))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("atesc.")}


def test_imports_point_one_way():
    """From the right to the left of FLOORS, and within a floor in no circle."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): imports_of(path)
        for path in (ROOT / "atesc").glob("*/*.py")
        if path.stem != "__init__"
    }
    wrong = [
        f"{name} imports {other}"
        for name, used in modules.items()
        for other in used
        if FLOORS.index(other.split(".")[1]) > FLOORS.index(name.split(".")[1])
    ]
    assert not wrong, wrong
    assert sum(map(len, modules.values())) > 100 and {
        name.split(".")[1] for name in modules
    } == set(FLOORS)
    TopologicalSorter(modules).prepare()  # raises CycleError


def test_the_readme_is_the_rendered_index():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == render(), "run `make notebooks`"


def test_the_readme_can_be_read():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150 and len(readme.split()) <= 1200
    assert len(re.findall(r"!\[", readme)) == 1 and "\n## What does not work\n" in readme


TEXTS = [*NOTEBOOKS, *ROOT.glob("*.md"), ROOT / "data/README.md"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
def test_links_lead_somewhere(path):
    """Relative ones, in the prose of notebooks and pages."""
    texts = [path.read_text(encoding="utf-8")]
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\((?!\w+:|#)([^)\s]+)\)", text)]
    broken = [link for link in links if not (path.parent / link.partition("#")[0]).exists()]
    assert not broken, broken


def test_the_readme_quotes_the_records():
    records = committed("ood_trap")
    assert sorted({r["seed"] for r in records if r["method"] == "decoy"}) == [0, 1, 2, 3, 4]
    readme, students = (ROOT / "README.md").read_text(), {"student": STUDY.split()}
    table = query(records, values=("iacc", "oacc", "mislead", "seconds"), levels=students)
    for row in table.reset_index().itertuples(index=False):
        line = f"| {' | '.join(map(str, row))} |"
        assert line in readme, f"{line}: run `make notebooks`"


@pytest.mark.parametrize(
    "file",
    sorted((ROOT / "results").rglob("records.jsonl")),
    ids=lambda p: p.parent.relative_to(ROOT / "results").as_posix(),
)
def test_committed_records_are_of_one_configuration(file):
    """A student is on record once: no older run of other settings is mixed in."""
    records = load_records(file)
    apart = ("task", "teacher", "baseline", "method", "seed", "measure", "unit", "variant", "case")
    splits = [
        json.dumps(r["config"]["objective"]) if r["experiment"].startswith("split_") else None
        for r in records
    ]  # many students of one method
    what = [(*map(r.get, apart), split) for r, split in zip(records, splits)]
    assert records and (file.parent.name == "bench" or len(set(what)) == len(what))
    assert all(r["commit"] and not r["commit"].endswith("+") for r in records), (
        "made from committed code"
    )


@pytest.mark.parametrize(
    "record",
    [
        r
        for kind in KINDS
        for p in PRESETS
        for r in committed(kind, p)
        if r["teacher"] == "ntl" and r["method"] == "plain" and r["baseline"] == "dfq"
    ],
    ids=lambda r: f"{r['task']}, seed {r['seed']}",
)
def test_ntl_teachers_on_record_serve_id_and_fail_ood(record):
    (control,) = [
        r
        for kind in KINDS
        for p in PRESETS
        for r in committed(kind, p)
        if (r["task"], r["seed"], r["baseline"], r["teacher"])
        == (record["task"], record["seed"], "dfq", "sl")
    ]
    assert record["teacher_iacc"] >= control["teacher_iacc"] - 2
    if record["kind"] == "close-set":
        assert record["teacher_oacc"] <= 20
    else:
        assert record["teacher_olacc" if record["kind"] == "open-set" else "teacher_asr"] >= 95


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(copy, tmp_path):
    """Built and installed without the checkout: alone, then with borrowed dependencies."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, copy]
    subprocess.run(build, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("atesc-*.whl")
    files = zipfile.ZipFile(wheel)
    assert "atesc/py.typed" in files.namelist()
    (metadata,) = (name for name in files.namelist() if name.endswith("METADATA"))
    links = re.findall(r"\]\(([^)]+)\)", files.read(metadata).decode())
    assert len(links) > 8 and all(link.startswith("https://") for link in links)
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False)
    install = [*pip, "--python", clean / "bin/python", "install", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True)

    def run(*command):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [clean / "bin" / command[0], *command[1:]]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=environment
        )

    assert run("atesc", "--version").stdout.startswith("atesc ")
    assert "list|run|download" in run("atesc", "--help").stdout
    refused = run("atesc", "run", "ood_trap")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "is not installed; this needs: pip install 'atesc[notebooks]'" in refused.stderr

    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run("python", "-c", ask).stdout.strip())
    here = sysconfig.get_path("purelib")
    (site / "borrowed.pth").write_text(here)  # its own .pth files are not read: no editable install
    where = run("python", "-c", "import atesc.app.run; print(atesc.app.run.__file__)")
    assert where.returncode == 0, where.stderr
    assert Path(where.stdout.strip()).is_relative_to(clean)
    assert "ood_trap" in run("atesc", "list").stdout
    refused = run("atesc", "run", "report")
    assert refused.returncode == 2 and "give their folder, -p results DIR" in refused.stderr
    (tmp_path / "empty").mkdir()
    report = ["report", "--out", tmp_path / "r", "-p", "results", tmp_path / "empty"]
    assert run("atesc", "run", *report).returncode == 0 and (tmp_path / "r/report.html").exists()
    debug = ["--preset", "debug", "--out", tmp_path / "o", "-p", "iterations", "1"]
    done = run("atesc", "run", "ood_trap", *debug)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "o/records.jsonl").read_text().splitlines()) == 5
