"""Grids of students: what is run, what is kept, and every paper task from files to records."""

import json
from dataclasses import replace

import pytest
import torch
from stand_ins import write_folders, write_stand_in

from atesc.data.tasks import TASKS, load_task
from atesc.inside.errors import ConfigError
from atesc.inside.records import load_records
from atesc.method.decoys import DecoyConfig
from atesc.method.distill import DistillConfig
from atesc.method.objectives import ATEsc, DecoyEscape
from atesc.method.splitter import PGDSplitter
from atesc.method.traps import LineUpConfig
from atesc.study.grid import Teachers, plan_grid, run_grid
from atesc.study.presets import BASELINES, PRESETS, load_preset, synthesizer_for
from atesc.synthesis.cmi import CMIConfig
from atesc.synthesis.dfq import DFQ, DFQConfig
from atesc.synthesis.nayer import NAYERConfig
from atesc.teachers.training import TeacherConfig

FEW = DistillConfig(student_steps=1, batch_size=4, pool=16)
TINY = dict(
    teacher=TeacherConfig(epochs=1, batch_size=8),
    generator_width=4,
    dfq=DFQConfig(batch_size=4),
    iterations=1,
    rounds=1,
    distill=FEW,
    round_distill=replace(FEW, shift=1),
    synthetic_images=8,
    cmi=CMIConfig(steps=1, batch_size=4, bank=8),
    nayer=NAYERConfig(steps=1, batch_size=4),
    decoy=DecoyEscape(decoy=DecoyConfig(LineUpConfig(steps=1, per_class=2, width=4), batch_size=4)),
)


def stand_ins(task, root):
    """The files of both domains of a task, a few images each."""
    root.mkdir()
    for domain in task.split("+")[0].split("->"):
        if domain == "mnist_m":
            write_folders(root / "mnist_m", "0123456789")
        else:
            write_stand_in(domain, root)


@pytest.mark.parametrize("task", PRESETS["paper"].tasks)
def test_a_paper_task_from_its_files_to_its_records(task, tmp_path, any_checksum, monkeypatch):
    """Small networks at the paper's 64 pixels; only download and real files are missing."""
    stand_ins(task, tmp_path / "data")
    monkeypatch.setenv("ATESC_DATA", str(tmp_path / "data"))
    settings = load_preset("paper", teacher_network="8 M 8 M 8", student_network="8 M 8", **TINY)
    records = run_grid("paper", settings, plan_grid([task], [0], ["dfq"]), tmp_path)
    assert [(r["teacher"], r["method"]) for r in records] == [
        ("sl", "plain"),
        ("ntl", "plain"),
        ("ntl", "ckd"),
        ("ntl", "atesc"),
        ("ntl", "decoy"),
    ]
    measure = {"close-set": "mislead", "open-set": "olacc", "backdoor": "asr"}[TASKS[task]]
    for record in records:
        assert (
            record["kind"] == TASKS[task]
            and 0 <= record[measure] <= 100
            and 0 <= record["teacher_iacc"] <= 100
        )
        assert record["config"]["size"] == 64


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("vgg13", "vgg11"), ("resnet34", "resnet18")])
def test_full_networks_with_every_baseline(pair, tmp_path, any_checksum, monkeypatch):
    stand_ins("cifar10+sig", tmp_path / "data")
    monkeypatch.setenv("ATESC_DATA", str(tmp_path / "data"))
    networks = {"teacher_network": pair[0], "student_network": pair[1]}
    quick = ATEsc(splitter=PGDSplitter(steps=1))
    settings = load_preset("paper", size=32, atesc=quick, **networks, **TINY)
    records = run_grid(
        "paper", settings, plan_grid(["cifar10+sig"], [0], BASELINES, ["ntl-atesc"]), tmp_path
    )
    assert [r["baseline"] for r in records] == list(BASELINES)
    assert all(
        (r["config"]["teacher_network"], r["config"]["student_network"]) == pair for r in records
    )


def test_the_presets_name_every_task_of_the_study():
    named = {task for name, preset in PRESETS.items() if name != "debug" for task in preset.tasks}
    assert named == {task for task in TASKS if not task.startswith("debug")}
    assert {TASKS[task] for task in PRESETS["debug"].tasks} == set(TASKS.values())


def test_a_grid_goes_on_where_it_stopped(preset, tmp_path, monkeypatch):
    """Interrupted after two students: a second call runs the other two, on the same teachers."""
    from atesc.study import grid as experiment

    cells = plan_grid(["debug->debug_ood"], [0], ["dfq"])
    whole = run_grid("demo", preset, cells, tmp_path / "whole")
    measure, left = experiment.measure_student, [2]

    def stop_after_two(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(experiment, "measure_student", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_grid("demo", preset, cells, tmp_path / "parts")
    kept = load_records(tmp_path / "parts")
    assert len(kept) == 2
    monkeypatch.setattr(experiment, "measure_student", measure)

    def no_training(*args, **named):
        raise AssertionError("the teachers are on disk")

    monkeypatch.setattr(experiment, "train_sl", no_training)
    monkeypatch.setattr(experiment, "train_ntl", no_training)
    parts = run_grid("demo", preset, cells, tmp_path / "parts")
    assert parts[:2] == kept

    def timeless(records):
        return [
            {k: v for k, v in record.items() if k not in ("seconds", "finished")}
            for record in records
        ]

    assert timeless(parts) == timeless(whole)


def test_another_configuration_is_another_student(preset, tmp_path):
    cells = plan_grid(["debug->debug_ood"], [0], ["dfq"], ["ntl-plain"])
    (one,) = run_grid("demo", preset, cells, tmp_path)
    (two,) = run_grid(
        "demo", replace(preset, decoy=replace(preset.decoy, weight=0.7)), cells, tmp_path
    )
    assert one == two, "DecoyEscape's settings do not concern a plain student"
    (three,) = run_grid("demo", replace(preset, iterations=11), cells, tmp_path)
    assert three["iterations"] == 11 and len(load_records(tmp_path)) == 2


def test_a_kept_teacher_belongs_to_its_data(preset, tmp_path):
    tasks = [
        load_task(name, 8)
        for name in ("debug->debug_ood", "debug->debug_open", "debug+badnets_square")
    ]
    pairs = [Teachers(preset, task, 0, folder=tmp_path) for task in tasks]
    assert (
        len({pair.path("sl") for pair in pairs}) == 1
        and len({pair.path("ntl") for pair in pairs}) == 3
    )
    assert (
        len({Teachers(preset, tasks[0], seed, folder=tmp_path).path("sl") for seed in range(3)})
        == 3
    )
    dark = replace(
        tasks[0],
        id=replace(
            tasks[0].id, train=replace(tasks[0].id.train, images=tasks[0].id.train.images / 2)
        ),
    )
    assert Teachers(preset, dark, 0, folder=tmp_path).path("sl") != pairs[0].path("sl")
    assert torch.equal(pairs[0].sl.classifier.weight, pairs[1].sl.classifier.weight)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"} and len(
        list(tmp_path.iterdir())
    ) == 2


def test_generators_that_do_not_fit_say_so(preset):
    noisy = synthesizer_for(preset, "nayer", 4, 0).generator
    with pytest.raises(ConfigError, match="DFQ draws latent vectors, and NoisyGenerator has none"):
        DFQ(noisy)
    with pytest.raises(ConfigError, match="unknown generator 'bigan'.*Did you mean 'biggan'"):
        load_preset("debug", generator="bigan")
    big = load_preset("debug", generator="biggan")
    assert [type(synthesizer_for(big, b, 4, 0).generator).__name__ for b in BASELINES] == [
        "BigGANGenerator",
        "BigGANGenerator",
        "NoisyGenerator",
    ]


def test_records_are_plain_json(preset, tmp_path):
    run_grid(
        "demo", preset, plan_grid(["debug->debug_open"], [0], ["nayer"], ["sl-plain"]), tmp_path
    )
    (line,) = (tmp_path / "records.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (
        record["olacc"] is not None
        and record["oacc"] is None
        and record["mislead"] is None
        and record["teacher_olacc"] is not None
    )
    assert len(line) < 10_000
