"""The command line and papermill, as a user meets them."""

import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from filelock import FileLock

from atesc.app.command import main
from atesc.app.run import catalogue, experiments
from atesc.app.run_all import run_all
from atesc.data.sources import SOURCES
from atesc.data.tasks import TASKS
from atesc.inside.records import append_records, load_records
from atesc.study.criteria import CRITERIA
from atesc.study.presets import PRESETS

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "import sys; from atesc.app.command import main; sys.exit(main())"]
FIELDS = set(
    "experiment task kind id_domain ood_domain teacher baseline method seed iterations iacc oacc "
    "olacc asr mislead teacher_iacc teacher_oacc teacher_olacc teacher_asr seconds teacher_passes "
    "curve warnings synthetic radius config versions device commit".split()
)
DEBUG = "--preset debug --out"


def words(*parts):
    """Arguments of the command: texts as a shell splits them, paths as they are."""
    return [w for part in parts for w in (shlex.split(part) if isinstance(part, str) else [part])]


@pytest.fixture
def atesc(capsys):
    """Runs the command in this process; returns exit code, stdout, stderr."""

    def run(*parts):
        try:
            code = main(list(map(str, words(*parts))))
        except SystemExit as stopped:  # from argparse
            code = stopped.code
        return code, *capsys.readouterr()

    return run


def records(folder):
    return [json.loads(line) for line in (Path(folder) / "records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("option", ["--version", "--help", "run --help", "download --help"])
def test_help_needs_neither_torch_nor_the_extra(option):
    """Half a second; twice that is allowed for a machine at work, the best of three counts."""
    program = f"""
import sys
for name in ("torch", "numpy", "pandas", "papermill", "nbformat", "ipykernel", "ipywidgets"):
    sys.modules[name] = None
from atesc.app.command import main
main({shlex.split(option)})
"""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        seconds.append(time.perf_counter() - began)
        assert (done.returncode, done.stderr) == (0, "") and "atesc" in done.stdout
    assert min(seconds) < 1


def test_the_list_names_everything():
    assert all(name in catalogue() for name in [*experiments(), *PRESETS, *SOURCES])


def test_the_table_of_presets_is_printed(atesc):
    code, out, err = atesc("list --presets")
    assert code == 0 and all(name in out for name in PRESETS)


FIGURES = {
    "ood_trap": ["images", "classes", "radius", "curves"],
    "bench": ["scaling", "profile"],
    "recipe": ["line_up", "trade_off"],
    "failures": ["curves"],
    "privacy": ["leakage", "nearest"],
    "synthetic_shift": ["shift-dfq", "classes-dfq"],
    "split_content": ["groups", "auroc"],
    "split_criteria": ["criteria"],
    "study": ["close-set", "open-set", "backdoor", "curves-1", "curves-2", "curves-3"],
    "ckd_only": ["students", "curves"],
    "forgetting": ["trade_off", "weight"],
    "generators": ["radius", "students"],
    "overhead": ["cost"],
    "report": [],
}
STUDY = "-p seeds 1 -p baselines 'dfq nayer' -p students 'ntl-plain ntl-atesc'"
QUICK = {
    "bench": "-p rounds 1",
    "failures": "-p seeds 1 -p iterations 6",
    "privacy": "-p seeds 1 -p shadows 4",
    "report": "-p results {empty}",
    "recipe": "-p seeds 1 -p task 'debug->debug_ood' -p iterations 3 -p rounds 2",
    "synthetic_shift": "-p seeds 1",
    **dict.fromkeys(("ckd_only", "forgetting", "generators", "overhead"), "-p seeds 1"),
    **dict.fromkeys(("split_content", "split_criteria"), "-p seeds 1 -p iterations 2"),
    "study": STUDY,
}
KINDS = {
    "study": ["close-set", "open-set", "backdoor"],
    "split_criteria": ["close-set", "open-set"],
}


@pytest.fixture
def executed(atesc, tmp_path_factory):
    """Runs an experiment with preset debug and seed 3, once for all tests; returns its folder."""

    def run(experiment):
        shared = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:  # one folder for all workers
            shared = shared.parent
        folder = shared / "executed" / experiment
        empty = folder.with_name("no results")
        with FileLock(f"{shared}/{experiment}.lock"):
            if not (folder / f"{experiment}.ipynb").exists():
                empty.mkdir(parents=True, exist_ok=True)
                settings = QUICK.get(experiment, "").format(empty=shlex.quote(str(empty)))
                code, out, err = atesc(f"run {experiment} --seed 3 {settings} {DEBUG}", folder)
                assert (code, err) == (0, ""), "nothing is written to stderr without a terminal"
        return folder

    return run


@pytest.mark.slow
@pytest.mark.parametrize("experiment", experiments())
def test_every_experiment_runs_with_the_debug_preset(experiment, executed):
    folder = executed(experiment)
    assert {p.stem for p in (folder / "figures").glob("*")} == set(FIGURES[experiment])
    for record in records(folder) if experiment != "report" else []:  # which makes none
        assert set(
            "experiment task teacher baseline method seed config versions device commit".split()
        ) <= set(record)
        part = TASKS[record["task"]].replace("-", "_") if experiment == "study" else experiment
        assert record["experiment"] == part and record["seed"] == 3
        assert TASKS[record["task"]] in KINDS.get(experiment, ["close-set"])
        assert record["task"].startswith("debug")


def test_run_all_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """The notebooks are stood in for; each leaves a record, and the third fails at first."""
    ran, broken = [], True

    def stand_in(experiment, preset, seed, out, parameters):
        if experiment == "recipe" and broken:
            raise KeyboardInterrupt
        ran.append((experiment, seed))
        (out / "teachers" / f"{experiment}.pt").write_text("a teacher")
        record = {
            "experiment": experiment,
            "task": "x",
            "teacher": "sl",
            "baseline": "dfq",
            "method": "plain",
            "seed": seed,
            "config": {},
        }
        append_records(out / "records.jsonl", [record])
        return out / f"{experiment}.ipynb"

    monkeypatch.setattr("atesc.app.run.run_experiment", stand_in)
    with pytest.raises(KeyboardInterrupt):
        run_all("debug", tmp_path, [("seeds", "2")])
    first, broken = ran.copy(), False
    assert first == [("ood_trap", 0), ("ood_trap", 1), ("study", 0)]
    run_all("debug", tmp_path, [("seeds", "2")])
    assert ran[3:7] == [*first, ("recipe", 0)], "each looks by itself at what is on record"
    assert {name for name, _ in ran} == set(experiments())
    assert len(list((tmp_path / "teachers").iterdir())) == len(experiments()), (
        "all notebooks share a folder of teachers"
    )
    assert "not timed" in capsys.readouterr().out


def without_clock(record):
    return {name: value for name, value in record.items() if name not in ("seconds", "finished")}


@pytest.mark.slow
def test_the_main_job_leaves_the_same_records_twice(executed, tmp_path):
    """The second time as a process of its own."""
    command = [*COMMAND, *words(f"run ood_trap --seed 3 {DEBUG}", tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "ood_trap.ipynb")
    found = records(executed("ood_trap"))
    assert [(r["teacher"], r["method"]) for r in found] == [
        ("sl", "plain"),
        ("ntl", "plain"),
        ("ntl", "ckd"),
        ("ntl", "atesc"),
        ("ntl", "decoy"),
    ]
    for record in found:
        assert FIELDS <= set(record)
        assert record["olacc"] is None and record["asr"] is None and 0 <= record["iacc"] <= 100
    assert [without_clock(r) for r in found] == [without_clock(r) for r in records(tmp_path)]


@pytest.mark.slow
@pytest.mark.parametrize("task", PRESETS["debug"].tasks[1:])
def test_the_main_job_takes_tasks_of_other_kinds(task, atesc, tmp_path):
    code, out, err = atesc(f"run ood_trap -p task {shlex.quote(task)} {DEBUG}", tmp_path)
    assert code == 0, err
    measure = {"open-set": "olacc", "backdoor": "asr"}[TASKS[task]]
    assert [r["task"] for r in records(tmp_path)] == [task] * 5
    assert all(r[measure] is not None and r["oacc"] is None for r in records(tmp_path))


@pytest.mark.slow
def test_the_bench_measures_everything_it_shows(executed):
    found = records(executed("bench"))
    measures = "split step passes scaling profile options memory".split()
    assert {r["measure"] for r in found} == set(measures)
    against = {r["config"]["against"] for r in found if r["measure"] == "split"}
    assert against == {"torchattacks", "art"}
    assert all(r["low"] <= r["median"] <= r["high"] for r in found)
    steps = [r for r in found if r["measure"] == "step" and r["unit"] == "times DFQ's"]
    assert [r["median"] for r in steps if r["method"] == "DFQ"] == [1.0, 1.0]
    parts = [r for r in found if r["measure"] == "profile"]
    assert all(r["low"] >= 0 for r in parts), "no part takes more than the whole"
    assert len(load_records(executed("bench"))) == len(found), "no two records have the same key"


@pytest.mark.slow
def test_the_privacy_analysis_goes_on_where_it_stopped(atesc, tmp_path):
    """A second run adds what is missing, here a seed; shadows, students among them, are kept."""
    settings = "-p shadows 4 -p student_shadows 4 -p students ntl-atesc -p iterations 2"
    for seeds, text in ((1, "5 of 5 targets"), (2, "5 of 10 targets")):
        code, out, err = atesc(f"run privacy {settings} -p seeds {seeds} {DEBUG}", tmp_path)
        assert code == 0, err
        assert text in out
    found = records(tmp_path)
    assert [(r["teacher"], r["baseline"], r["method"]) for r in found[:5]] == [
        ("sl", "none", "teacher"),
        ("ntl", "none", "teacher"),
        ("sl", "real", "plain"),
        ("ntl", "dfq", "atesc"),
        ("sl", "none", "test images"),
    ]
    assert [r.get("shadow_kind") for r in found[:5]] == ["sl", "ntl", "sl-plain", "ntl-plain", None]
    for record in found:
        assert record["members"] == record["others"] == 64
        attacks = [record[name] for name in ("loss", "lira") if name in record]
        assert len(attacks) == (0 if record["method"] == "test images" else 2)
        assert all(0 <= a["auroc"] <= 100 and a["curve"][-1] == 100 for a in attacks)
        copies = record["method"] in ("atesc", "test images")
        assert ("pixels" in record and "features" in record) == copies
    assert len(list((tmp_path / "shadows").iterdir())) == 4


REPORTED = {  # experiment -> figures of the report
    "ood_trap": ["main_curves", "main_classes", "main_radius"],
    "study": ["close-set", "open-set", "backdoor"],
    "bench": [],
    **{
        name: [name]
        for name in (
            "synthetic_shift split_content split_criteria ckd_only forgetting generators recipe"
            " failures privacy overhead"
        ).split()
    },
}


GAP = "<code>atesc run {} --preset {}</code> makes them."


@pytest.mark.slow
def test_the_report_shows_everything_on_record_and_names_the_gaps(atesc, tmp_path):
    assert set(REPORTED) == set(experiments()) - {"report"}
    code, out, err = atesc("run report --preset digits --out", tmp_path)
    assert code == 0, err
    page = (tmp_path / "report.html").read_text()
    folders = {"study": "close_set"}
    known = {n for n in REPORTED if load_records(ROOT / "results" / folders.get(n, n))}
    assert {"ood_trap", "privacy", "failures", "recipe"} <= known
    gaps = {name for name in REPORTED if GAP.format(name, "digits") in page}
    assert gaps == set(REPORTED) - known
    for kind in ("png", "pdf"):
        assert {p.stem for p in (tmp_path / "figures").glob(f"*.{kind}")} == {
            figure for name in known for figure in REPORTED[name]
        }
    assert page.count("<img alt=") == sum(len(REPORTED[name]) for name in known)
    readme = (ROOT / "README.md").read_text()
    quoted = re.findall(r"\d+\.\d", page[page.index("Answer.") : page.index("Contents</h2>")])
    assert len(quoted) > 30 and not [number for number in quoted if number not in readme]
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r' id="([^"]+)"', page))
    assert "://" not in page, "one file, and nothing from elsewhere"
    assert (tmp_path / "report.ipynb").stat().st_size < 600_000


@pytest.mark.slow
def test_the_report_of_no_records_is_all_gaps(executed):
    page = (executed("report") / "report.html").read_text()
    assert "<img" not in page
    assert all(GAP.format(name, "debug") in page for name in REPORTED)


def test_the_report_shows_no_records_of_another_preset(atesc, tmp_path):
    """`paper` and `cifar10` share tasks."""
    results = tmp_path / "results/backdoor/paper"
    results.mkdir(parents=True)
    shutil.copy(ROOT / "results/backdoor/cifar10/records.jsonl", results)
    settings = f"-p results {tmp_path / 'results'}"
    code, out, err = atesc(f"run report --preset paper {settings} --out", tmp_path / "out")
    assert code == 0, err
    page = (tmp_path / "out/report.html").read_text()
    assert "<img" not in page and GAP.format("study", "paper") in page


@pytest.mark.slow
def test_settings_are_chosen_on_another_task_than_the_one_that_counts(executed):
    tried, counted = (
        [r for r in records(executed("split_criteria")) if r["task"] == task]
        for task in ("debug->debug_open", "debug->debug_ood")
    )
    splitters = [
        [r["config"]["objective"]["splitter"] for r in some if r["method"] == "ckd"]
        for some in (tried, counted)
    ]
    assert len(splitters[0]) == 21 and {s["type"] for s in splitters[1]} == set(CRITERIA)
    assert all(s in splitters[0] or s["other"] in splitters[0] for s in splitters[1])
    assert [r["teacher"] for r in counted if "scores" in r] == ["sl", "ntl"]


@pytest.mark.slow
def test_progress_on_a_terminal(tmp_path):
    terminal, stderr = pty.openpty()
    few = "-p kind close-set -p baselines dfq -p students 'sl-plain ntl-atesc' -p seeds 1"
    command = [*COMMAND, *words(f"run study -p iterations 2 {few} {DEBUG}", tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=stderr, stdin=subprocess.DEVNULL
    ) as process:
        seen = b""
        while process.poll() is None or select.select([terminal], [], [], 0)[0]:
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536)
    assert process.returncode == 0
    for bar in ("SL teacher, epochs: 100%", "NTL teacher, epochs: 100%", "NTL teacher, dfq atesc"):
        assert bar.encode() in seen, seen[-2000:]


@pytest.mark.slow
def test_papermill_runs_it_and_a_second_run_keeps_the_records(tmp_path):
    notebook = ROOT / "nbs/experiments/ood_trap.ipynb"
    for seed in (0, 1):
        papermill.execute_notebook(
            notebook,
            tmp_path / "out.ipynb",
            {"preset": "debug", "seed": seed, "out": str(tmp_path / "o"), "iterations": 2},
            progress_bar=False,
        )
    assert [r["seed"] for r in records(tmp_path / "o")] == [0] * 5 + [1] * 5
    assert all(r["iterations"] == 2 for r in records(tmp_path / "o"))


@pytest.mark.parametrize(
    "typed, text",
    [
        (
            "run study -p kind open-set -p task digits+sig",
            "digits+sig is a task of the kind backdoor; open-set was asked for",
        ),
        (
            "run study -p baselines 'dfq cim'",
            "unknown baseline 'cim'; known: dfq, cmi, nayer. Did you mean 'cmi'?",
        ),
        ("run study -p students sl_plain", "Did you mean 'sl-plain'?"),
        ("run study -p student_network vgg12", "Did you mean 'vgg13'?"),
        (
            "run split_criteria --preset debug -p task 'debug->debug_open'",
            "development must be another task than the one that counts",
        ),
    ],
)
def test_what_a_notebook_refuses_is_one_line_and_exit_code_2(typed, text, atesc, tmp_path):
    """What is refused before a kernel starts is in test_bad_inputs.py."""
    code, out, err = atesc(typed, "--out", tmp_path)
    assert code == 2, (out, err)
    assert text in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.rglob("records.jsonl"))


@pytest.mark.slow
def test_a_failing_notebook_is_left_up_to_the_failing_cell(atesc, tmp_path, monkeypatch):
    """A cell in the middle raises: exit code 1, the executed notebook stays, no record."""
    notebook = nbformat.read(ROOT / "nbs/experiments/ood_trap.ipynb", as_version=4)
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    notebook.cells.insert(code[3], nbformat.v4.new_code_cell("raise RuntimeError('on purpose')"))
    broken = tmp_path / "nbs/broken.ipynb"
    broken.parent.mkdir()
    nbformat.write(notebook, broken)
    monkeypatch.setattr("atesc.app.run.experiments", lambda: {"broken": broken})
    code, out, err = atesc(f"run broken {DEBUG}", tmp_path / "o")
    assert code == 1 and "RuntimeError: on purpose" in err
    cells = nbformat.read(tmp_path / "o/broken.ipynb", as_version=4).cells
    assert any(out.output_type == "error" for cell in cells for out in cell.get("outputs", []))
    assert any("on cpu" in str(cell.get("outputs", "")) for cell in cells), (
        "cells before it have their output"
    )
    assert not list((tmp_path / "o").rglob("records.jsonl"))
