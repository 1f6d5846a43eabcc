"""The command line and papermill, as a user meets them."""

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from atesc.app.cli import experiments, list_all, main, run_all
from atesc.data.tasks import TASKS
from atesc.inside.records import append_records, load_records
from atesc.study.criteria import CRITERIA
from atesc.study.presets import PRESETS

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "import sys; from atesc.app.cli import main; sys.exit(main())"]
FIELDS = set(
    "experiment task kind id_domain ood_domain teacher baseline method seed iterations iacc oacc olacc asr mislead teacher_iacc "
    "teacher_oacc teacher_olacc teacher_asr seconds teacher_passes curve warnings synthetic radius config versions device commit".split()
)


def atesc(*args, cwd=None):
    """Run the command as a process; returns exit code, stdout, stderr."""
    command = [*COMMAND, *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout, done.stderr


def records(folder):
    return [json.loads(line) for line in (Path(folder) / "records.jsonl").read_text().splitlines()]


def test_list_names_everything():
    text = list_all()
    assert all(name in text for name in [*experiments(), *PRESETS])


FIGURES = {
    "ood_trap": ["images", "classes", "radius", "curves"],
    "bench": ["scaling", "profile"],
    "recipe": ["line_up", "trade_off"],
    "failures": ["curves"],
    "privacy": ["leakage"],
    "synthetic_shift": ["shift-dfq", "classes-dfq"],
    "split_content": ["groups", "auroc"],
    "split_criteria": ["criteria"],
    **dict.fromkeys(("close_set", "open_set", "backdoor"), ["students", "curves-1"]),
    "ckd_only": ["trade_off", "curves"],
    "forgetting": ["trade_off"],
    "generators": ["radius", "students"],
    "overhead": ["cost"],
    "report": [],
}
QUICK = {
    "bench": ["-p", "rounds", 1],
    "failures": ["-p", "seeds", 1, "-p", "iterations", 6],
    "privacy": ["-p", "seeds", 1, "-p", "shadows", 4],
    "recipe": [
        "-p",
        "seeds",
        1,
        "-p",
        "task",
        "debug->debug_ood",
        "-p",
        "iterations",
        3,
        "-p",
        "rounds",
        2,
    ],
    **dict.fromkeys(("ckd_only", "forgetting", "generators", "overhead"), ["-p", "seeds", 1]),
    "synthetic_shift": ["-p", "seeds", 1],
    **dict.fromkeys(("split_content", "split_criteria"), ["-p", "seeds", 1, "-p", "iterations", 2]),
    **dict.fromkeys(
        ("close_set", "open_set", "backdoor"),
        ["-p", "seeds", 1, "-p", "baselines", "dfq nayer", "-p", "students", "ntl-plain ntl-atesc"],
    ),
}
KINDS = {
    "open_set": ["open-set"],
    "backdoor": ["backdoor"],
    "split_criteria": ["close-set", "open-set"],
}


def without_clock(record):
    return {name: value for name, value in record.items() if name not in ("seconds", "finished")}


@pytest.mark.parametrize("experiment", experiments())
def test_every_experiment_runs_with_the_debug_preset(experiment, tmp_path):
    code, out, err = atesc(
        "run",
        experiment,
        "--preset",
        "debug",
        "--seed",
        3,
        "--out",
        tmp_path,
        *QUICK.get(experiment, []),
    )
    assert code == 0, err
    assert (tmp_path / f"{experiment}.ipynb").exists()
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == set(FIGURES[experiment])
    for record in records(tmp_path) if experiment != "report" else []:  # which makes none
        assert {
            "experiment",
            "task",
            "teacher",
            "baseline",
            "method",
            "seed",
            "config",
            "versions",
            "device",
            "commit",
        } <= set(record)
        assert record["experiment"] == experiment and record["seed"] == 3
        assert TASKS[record["task"]] in KINDS.get(experiment, ["close-set"]) and record[
            "task"
        ].startswith("debug")


def test_run_all_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """The notebooks are stood in for; each leaves a record, and the third fails at first."""
    ran, broken = [], True

    def stand_in(experiment, preset, seed, out, parameters):
        if experiment == "open_set" and broken:
            raise KeyboardInterrupt
        ran.append((experiment, seed))
        (out / "teachers" / f"{experiment}.pt").write_text("a teacher")
        append_records(
            out / "records.jsonl",
            [
                {
                    "experiment": experiment,
                    "task": "x",
                    "teacher": "sl",
                    "baseline": "dfq",
                    "method": "plain",
                    "seed": seed,
                    "config": {},
                }
            ],
        )
        return out / f"{experiment}.ipynb"

    monkeypatch.setattr("atesc.app.cli.run_experiment", stand_in)
    with pytest.raises(KeyboardInterrupt):
        run_all("debug", tmp_path, [("seeds", "2")])
    first, broken = ran.copy(), False
    assert first == [("ood_trap", 0), ("ood_trap", 1), ("close_set", 0)]
    run_all("debug", tmp_path, [("seeds", "2")])
    assert ran[3:7] == [*first, ("open_set", 0)], "each looks by itself at what is on record"
    assert {name for name, _ in ran} == set(experiments())
    assert len(list((tmp_path / "teachers").iterdir())) == len(experiments()), (
        "all notebooks share a folder of teachers"
    )
    assert "not timed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["-p", "sedes", 2], "Did you mean 'seeds'?"),
        (["--seed", 3], "-p seeds 3"),
        (["--preset", "debg"], "Did you mean 'debug'?"),
    ],
)
def test_run_all_is_strict(wrong, said, tmp_path):
    code, out, err = atesc("run", "all", "--preset", "debug", "--out", tmp_path, *wrong)
    assert (
        code == 2
        and said in err
        and len(err.splitlines()) == 1
        and not list(tmp_path.rglob("*.ipynb"))
    )


def test_the_main_job_leaves_the_same_records_twice(tmp_path):
    for run in "ab":
        code, out, err = atesc(
            "run", "ood_trap", "--preset", "debug", "--seed", 3, "--out", tmp_path / run
        )
        assert code == 0, err
    found = records(tmp_path / "a")
    assert [(r["teacher"], r["method"]) for r in found] == [
        ("sl", "plain"),
        ("ntl", "plain"),
        ("ntl", "ckd"),
        ("ntl", "atesc"),
    ]
    for record in found:
        assert FIELDS <= set(record)
        assert record["olacc"] is None and record["asr"] is None and 0 <= record["iacc"] <= 100
    assert [without_clock(r) for r in found] == [without_clock(r) for r in records(tmp_path / "b")]


@pytest.mark.parametrize("task", PRESETS["debug"].tasks[1:])
def test_the_main_job_takes_tasks_of_other_kinds(task, tmp_path):
    code, out, err = atesc(
        "run", "ood_trap", "--preset", "debug", "--out", tmp_path, "-p", "task", task
    )
    assert code == 0, err
    measure = {"open-set": "olacc", "backdoor": "asr"}[TASKS[task]]
    assert [r["task"] for r in records(tmp_path)] == [task] * 4
    assert all(r[measure] is not None and r["oacc"] is None for r in records(tmp_path))


def test_the_bench_measures_everything_it_shows(tmp_path):
    code, out, err = atesc(
        "run", "bench", "--preset", "debug", "--out", tmp_path, "-p", "rounds", 2
    )
    assert code == 0, err
    found = records(tmp_path)
    assert {r["measure"] for r in found} == {
        "split",
        "step",
        "passes",
        "scaling",
        "profile",
        "options",
        "memory",
    }
    assert {r["config"]["against"] for r in found if r["measure"] == "split"} == {
        "torchattacks",
        "art",
    }
    assert all(r["low"] <= r["median"] <= r["high"] for r in found)
    base = [
        r
        for r in found
        if r["measure"] == "step" and r["method"] == "DFQ" and r["unit"] == "times DFQ's"
    ]
    assert [r["median"] for r in base] == [1.0, 1.0]
    parts = [r for r in found if r["measure"] == "profile"]
    assert all(r["low"] >= 0 for r in parts), "no part takes more than the whole"
    assert len(load_records(tmp_path)) == len(found), "no two records have the same key"


def test_the_privacy_analysis_goes_on_where_it_stopped(tmp_path):
    """A second run adds what is missing, here a seed; shadows, students among them, are kept."""
    args = [
        "run",
        "privacy",
        "--preset",
        "debug",
        "--out",
        tmp_path,
        "-p",
        "shadows",
        4,
        "-p",
        "student_shadows",
        4,
        "-p",
        "students",
        "ntl-atesc",
    ]
    for seeds, told in ((1, "5 of 5 targets"), (2, "5 of 10 targets")):
        code, out, err = atesc(*args, "-p", "iterations", 2, "-p", "seeds", seeds)
        assert code == 0, err
        assert told in out
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
        assert len(attacks) == (0 if record["method"] == "test images" else 2) and all(
            0 <= a["auroc"] <= 100 and a["curve"][-1] == 100 for a in attacks
        )
        assert ("pixels" in record and "features" in record) == (
            record["method"] in ("atesc", "test images")
        )
    assert len(list((tmp_path / "shadows").iterdir())) == 4


REPORTED = {  # experiment -> figures of the report
    "ood_trap": ["main_curves", "main_classes", "main_radius"],
    "synthetic_shift": ["shift", "shift_classes"],
    "split_content": ["content", "auroc"],
    "split_criteria": ["criteria"],
    "close_set": ["close_set"],
    "open_set": ["open_set"],
    "backdoor": ["backdoor"],
    "ckd_only": ["ckd_only", "ckd_only_curves"],
    "forgetting": ["forgetting"],
    "generators": ["generators", "generators_radius"],
    "recipe": ["recipe"],
    "failures": ["failures"],
    "privacy": ["privacy"],
    "overhead": ["overhead"],
    "bench": ["bench_scaling", "bench_profile"],
}


def test_the_report_shows_everything_on_record_and_names_the_gaps(tmp_path):
    assert set(REPORTED) == set(experiments()) - {"report"}
    code, out, err = atesc("run", "report", "--preset", "digits", "--out", tmp_path)
    assert code == 0, err
    page = (tmp_path / "report.html").read_text()
    known = {name for name in REPORTED if load_records(ROOT / "results" / name)}
    assert {"ood_trap", "privacy", "failures", "recipe"} <= known
    gaps = {name for name in REPORTED if f"`atesc run {name} --preset digits` makes them." in page}
    assert gaps == set(REPORTED) - known
    for kind in ("png", "pdf"):
        assert {p.stem for p in (tmp_path / "figures").glob(f"*.{kind}")} == {
            figure for name in known for figure in REPORTED[name]
        }
    assert page.count("<img") == sum(len(REPORTED[name]) for name in known)
    assert (tmp_path / "report.ipynb").stat().st_size < 600_000


def test_the_report_of_no_records_is_all_gaps(tmp_path):
    (tmp_path / "results").mkdir()
    code, out, err = atesc(
        "run",
        "report",
        "--preset",
        "debug",
        "--out",
        tmp_path / "o",
        "-p",
        "results",
        tmp_path / "results",
    )
    assert code == 0, err
    page = (tmp_path / "o/report.html").read_text()
    assert (
        all(f"`atesc run {name} --preset debug` makes them." in page for name in REPORTED)
        and "<img" not in page
    )


def test_settings_are_chosen_on_another_task_than_the_one_that_counts(tmp_path):
    code, out, err = atesc(
        "run",
        "split_criteria",
        "--preset",
        "debug",
        "--out",
        tmp_path,
        "-p",
        "seeds",
        1,
        "-p",
        "iterations",
        2,
    )
    assert code == 0, err
    tried, counted = (
        [r for r in records(tmp_path) if r["task"] == task]
        for task in ("debug->debug_open", "debug->debug_ood")
    )
    splitters = [
        [r["config"]["objective"]["splitter"] for r in some if r["method"] == "ckd"]
        for some in (tried, counted)
    ]
    assert len(splitters[0]) == 21 and {
        splitter["type"]: splitter for splitter in splitters[1]
    }.keys() == set(CRITERIA)
    assert all(
        splitter in splitters[0] or splitter["other"] in splitters[0] for splitter in splitters[1]
    )
    assert [r["teacher"] for r in counted if "scores" in r] == ["sl", "ntl"]


def test_progress_on_a_terminal_and_silence_without(tmp_path):
    args = ["run", "ood_trap", "--preset", "debug", "-p", "iterations", "2", "--out"]
    assert atesc(*args, tmp_path / "quiet")[2] == "", (
        "without a terminal nothing is written to stderr"
    )
    ours, theirs = pty.openpty()
    command = [*COMMAND, *args, str(tmp_path / "terminal")]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=theirs, stdin=subprocess.DEVNULL
    ) as process:
        seen = b""
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 65536)
    assert process.returncode == 0
    for bar in (
        b"SL teacher, epochs: 100%",
        b"NTL teacher, epochs: 100%",
        b"NTL teacher, dfq atesc: 100%",
    ):
        assert bar in seen, seen[-2000:]


def test_papermill_runs_it_and_a_second_run_keeps_the_records(tmp_path):
    notebook = ROOT / "nbs/experiments/ood_trap.ipynb"
    for seed in (0, 1):
        papermill.execute_notebook(
            notebook,
            tmp_path / "out.ipynb",
            {"preset": "debug", "seed": seed, "out": str(tmp_path / "o"), "iterations": 2},
            progress_bar=False,
        )
    assert [r["seed"] for r in records(tmp_path / "o")] == [0] * 4 + [1] * 4
    assert all(r["iterations"] == 2 for r in records(tmp_path / "o"))


@pytest.mark.parametrize(
    "args, text",
    [
        (
            ["run", "ood_trp"],
            f"unknown experiment 'ood_trp'; known: {', '.join(experiments())}. Did you mean 'ood_trap'?",
        ),
        (
            ["run", "open_set", "-p", "task", "digits+sig"],
            "digits+sig is a task of the kind backdoor; open-set was asked for",
        ),
        (["run", "open_set", "-p", "task", "digits->photo"], "Did you mean 'digits->photos'?"),
        (
            ["run", "backdoor", "-p", "baselines", "dfq cim"],
            "unknown baseline 'cim'; known: dfq, cmi, nayer. Did you mean 'cmi'?",
        ),
        (["run", "backdoor", "-p", "students", "sl_plain"], "Did you mean 'sl-plain'?"),
        (["run", "backdoor", "-p", "student_network", "vgg12"], "Did you mean 'vgg13'?"),
        (
            ["run", "ood_trap", "--preset", "digit"],
            "unknown preset 'digit'; known: debug, digits, mnist, mnist_m, cifar10, paper. Did you mean 'digits'?",
        ),
        (["run", "ood_trap", "--seed", "one"], "parameter seed takes int, got 'one'"),
        (["run", "ood_trap", "--seed", "-1"], "parameter seed must be 0 to"),
        (["run", "ood_trap", "-p", "iteration", "3"], "Did you mean 'iterations'?"),
        (
            ["run", "ood_trap", "-p", "iterations", "3.5"],
            "parameter iterations takes int, got '3.5'",
        ),
        (["run", "ood_trap", "-p", "iterations", "0"], "iterations must be at least 1, got 0"),
        (["run", "ood_trap", "-p", "device", "gpu"], "unknown device 'gpu'"),
        (
            ["run", "split_criteria", "--preset", "debug", "-p", "task", "debug->debug_open"],
            "development must be another task than the one that counts",
        ),
        (["run", "ood_trap", "--out", "/dev/null/x"], "out '/dev/null/x' cannot be written to"),
        (["run", "ood_trap", "--sed", "1"], "unrecognized arguments: --sed 1"),
        (["run"], "the following arguments are required: experiment"),
        (["rnu"], "invalid choice: 'rnu'"),
        ([], "the following arguments are required"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(args, text, tmp_path):
    if "-p" in args and "--out" not in args:
        args = [*args, "--out", str(tmp_path)]
    code, out, err = atesc(*args, cwd=tmp_path)
    assert code == 2, (out, err)
    assert text in err and len(err.strip().splitlines()) == 1, err
    assert not list(tmp_path.rglob("records.jsonl"))


def test_a_failing_notebook_is_left_up_to_the_failing_cell(tmp_path, monkeypatch, capsys):
    """A cell in the middle raises: exit code 1, the executed notebook stays, no record."""
    notebook = nbformat.read(ROOT / "nbs/experiments/ood_trap.ipynb", as_version=4)
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    notebook.cells.insert(code[3], nbformat.v4.new_code_cell("raise RuntimeError('on purpose')"))
    (tmp_path / "nbs").mkdir()
    nbformat.write(notebook, tmp_path / "nbs/broken.ipynb")
    monkeypatch.setattr(
        "atesc.app.cli.experiments", lambda: {"broken": tmp_path / "nbs/broken.ipynb"}
    )
    assert main(["run", "broken", "--preset", "debug", "--out", str(tmp_path / "o")]) == 1
    assert "RuntimeError: on purpose" in capsys.readouterr().err
    executed = nbformat.read(tmp_path / "o/broken.ipynb", as_version=4)
    assert any(
        out.output_type == "error" for cell in executed.cells for out in cell.get("outputs", [])
    )
    assert any("on cpu" in str(cell.get("outputs", "")) for cell in executed.cells), (
        "cells before it have their output"
    )
    assert not list((tmp_path / "o").rglob("records.jsonl"))
