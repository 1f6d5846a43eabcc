"""An interrupted run goes on to the same weights, bit for bit. Another run is refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atesc.inside.checkpoint import CheckpointError, CheckpointWarning, fingerprint
from atesc.inside.errors import InputError
from atesc.inside.files import StorageError
from atesc.inside.runtime import versions
from atesc.method.decoys import DecoyConfig
from atesc.method.distill import distill
from atesc.method.objectives import ATEsc, CalibratedKD, DecoyEscape, PlainKD
from atesc.method.rivals import CalibratedSplitter, FeatureSplitter, RandomSplitter
from atesc.method.run import DistillConfig
from atesc.method.splitter import PGDSplitter, RadiusSplitter, Splitter
from atesc.method.traps import LineUp, LineUpConfig
from atesc.method.watch import Watch
from atesc.synthesis.batch import Batch
from atesc.synthesis.cmi import CMI, CMIConfig
from atesc.synthesis.dfq import DFQ, DFQConfig
from atesc.synthesis.generator import BigGANGenerator, DCGANGenerator
from atesc.synthesis.nayer import NAYER, NAYERConfig, NoisyGenerator, orthogonal_embedding
from atesc.teachers.networks import SmallVGG
from atesc.teachers.training import TeacherConfig, train_ntl, train_sl

ROOT = Path(__file__).parents[1]
TRAPPED = DecoyConfig(
    LineUpConfig(steps=6, per_class=2, generators=2), batch_size=8, max_trap_share=1.0
)


def generator(kind=DCGANGenerator, **named):
    return kind(size=8, latent_dim=8, width=8, **named)


SYNTHESIZERS = {
    "dfq": lambda: DFQ(generator(), DFQConfig(batch_size=16)),
    "dfq, conditional": lambda: DFQ(
        generator(BigGANGenerator, num_classes=4), DFQConfig(batch_size=16)
    ),
    "cmi": lambda: CMI(generator(), CMIConfig(steps=3, batch_size=16, bank=24)),
    "nayer": lambda: NAYER(
        NoisyGenerator(generator(), orthogonal_embedding(4, 8)), NAYERConfig(steps=3, batch_size=16)
    ),
}
OBJECTIVES = {
    "plain": PlainKD,
    "ckd": CalibratedKD,
    "ckd, pgd": lambda: CalibratedKD(splitter=PGDSplitter(steps=2)),
    "ckd, calibrated": lambda: CalibratedKD(splitter=CalibratedSplitter(memory=40)),
    "ckd, features": lambda: CalibratedKD(splitter=FeatureSplitter()),
    "ckd, random": lambda: CalibratedKD(splitter=RandomSplitter(other=FeatureSplitter())),
    "atesc": ATEsc,
    "atesc, kl-mmd": lambda: ATEsc(splitter=RadiusSplitter(), form="kl-mmd"),
    "decoy": lambda: DecoyEscape(decoy=TRAPPED),
}


class Stop:
    """An evaluation during which Ctrl-C is pressed, at its n-th call; 0: never."""

    def __init__(self, at):
        self.calls, self.at = 0, at

    def __call__(self, student):
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(signal.SIGINT)
        return {"calls": 1, "weights": fingerprint(student.state_dict().values())}


def run(teacher, path, synthesizer="dfq", objective="plain", stop=0, **changes):
    settings = {
        "iterations": 7,
        "config": DistillConfig(student_steps=2, batch_size=16, pool=40, shift=1),
        "eval_every": 1,
        "checkpoint_every": 100,
        "seed": 3,
    }
    return distill(
        teacher,
        SmallVGG("8 M 8", 4, seed=1),
        synthesizer=SYNTHESIZERS[synthesizer](),
        objective=OBJECTIVES[objective](),
        checkpoint=path,
        **{**settings, "evaluate": Stop(stop), **changes},
    )


def outcome(result):
    return (
        result.curve,
        result.passes,
        result.warnings,
        [value.tolist() for value in result.student.state_dict().values()],
    )


@pytest.fixture
def trapped(monkeypatch):
    """Class 0 is taken for a trap."""
    monkeypatch.setattr(
        LineUp, "traps", property(lambda self: torch.tensor([True, False, False, False]))
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("synthesizer", SYNTHESIZERS)
def test_ctrl_c_and_the_same_call_again(synthesizer, objective, teachers, tmp_path, trapped):
    whole = run(teachers.ntl, None, synthesizer, objective)
    path = tmp_path / "run.checkpoint"
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4; the same call goes on"):
        run(teachers.ntl, path, synthesizer, objective, stop=4)
    assert outcome(run(teachers.ntl, path, synthesizer, objective)) == outcome(whole)
    again = run(teachers.ntl, path, synthesizer, objective, stop=1)
    assert outcome(again) == outcome(whole) and again.seconds > 0, (
        "a finished run is read, not run: nothing is evaluated"
    )
    assert not again.student.training


def test_a_watch_goes_on_watching(teachers, tmp_path):
    """Warnings from before the interruption are not repeated, and earlier bad checks count."""
    changes = {"iterations": 12, "synthesizer": "cmi", "objective": "decoy"}
    with pytest.warns(UserWarning):
        whole = run(teachers.ntl, None, **changes)
    assert whole.warnings
    for stop in (4, 8, 10):
        with pytest.warns(UserWarning):
            with pytest.raises(KeyboardInterrupt):
                run(teachers.ntl, tmp_path / f"{stop}", stop=stop, **changes)
            assert run(teachers.ntl, tmp_path / f"{stop}", **changes).warnings == whole.warnings


def test_the_cell_of_a_notebook_run_again(teachers, tmp_path):
    """With the objects of the interrupted call: student and generator are trained in part."""
    whole = run(teachers.ntl, None, objective="ckd")
    student, dfq, objective = SmallVGG("8 M 8", 4, seed=1), SYNTHESIZERS["dfq"](), CalibratedKD()

    def cell(stop):
        return distill(
            teachers.ntl,
            student,
            synthesizer=dfq,
            objective=objective,
            iterations=7,
            eval_every=1,
            seed=3,
            evaluate=Stop(stop),
            checkpoint=tmp_path / "run",
            config=DistillConfig(student_steps=2, batch_size=16, pool=40, shift=1),
        )

    for stop in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            cell(stop)
    assert outcome(cell(0)) == outcome(whole)


def test_a_second_ctrl_c_does_not_wait(teachers, tmp_path):
    class Impatient(Stop):
        def __call__(self, student):
            super().__call__(student)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the run went on")

    with pytest.raises(KeyboardInterrupt):
        run(teachers.ntl, tmp_path / "run", evaluate=Impatient(1))
    assert (
        not (tmp_path / "run").exists()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def test_an_ignored_ctrl_c_stays_ignored(teachers, tmp_path):
    """As in a background job of a shell: nothing is stopped, and no handler is installed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    result = run(teachers.ntl, tmp_path / "run", stop=2)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert outcome(result) == outcome(run(teachers.ntl, None))


def test_without_a_checkpoint_ctrl_c_stops_at_once(teachers):
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(teachers.ntl, None, stop=1)
    assert "goes on" not in str(stopped.value)


CHANGES = {
    "iterations": ({"iterations": 9}, "iterations is 7 there, 9 here"),
    "seed": ({"seed": 4}, "seed is 3 there, 4 here"),
    "eval_every": ({"eval_every": 2}, "eval_every is 1 there, 2 here"),
    "learning rate": (
        {"config": DistillConfig(student_steps=2, batch_size=16, pool=40, shift=1, lr=1e-3)},
        "config.lr is 0.002 there, 0.001 here",
    ),
    "objective": ({"objective": "ckd"}, "objective.type is PlainKD there, CalibratedKD here"),
    "synthesizer": ({"synthesizer": "cmi"}, "synthesizer.type is DFQ there, CMI here"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_another_run_is_refused(change, teachers, tmp_path):
    changes, message = CHANGES[change]
    with pytest.raises(KeyboardInterrupt):
        run(teachers.ntl, tmp_path / "run", stop=2)
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(CheckpointError, match="is of another run") as refused:
        run(teachers.ntl, tmp_path / "run", **changes)
    assert message in str(refused.value) and (tmp_path / "run").read_bytes() == before


def test_other_networks_are_another_run(teachers, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(teachers.ntl, tmp_path / "run", stop=2)
    with pytest.raises(CheckpointError, match=r"teacher\.weights is \w{12} there, \w{12} here"):
        run(teachers.sl, tmp_path / "run")
    for student, message in (
        (SmallVGG("8 M 4", 4, seed=1), "student.name is 8 M 8 there, 8 M 4 here"),
        (
            nn.Sequential(SmallVGG("8 M 8", 4, seed=1)),
            "student.type is SmallVGG there, Sequential here",
        ),
        (SmallVGG("8 M 8", 4, batch_norm=False), "student.tensors is 16 there, 6 here"),
    ):
        with pytest.raises(CheckpointError) as refused:
            distill(
                teachers.ntl,
                student,
                synthesizer=SYNTHESIZERS["dfq"](),
                objective=PlainKD(),
                iterations=7,
                seed=3,
                eval_every=1,
                checkpoint=tmp_path / "run",
            )
        assert message in str(refused.value)


def test_a_student_built_without_a_seed_is_only_a_warning(teachers, tmp_path):
    """Its first weights differ from those of the interrupted call, and no longer matter."""
    whole = run(teachers.ntl, None)
    with pytest.raises(KeyboardInterrupt):
        run(teachers.ntl, tmp_path / "run", stop=2)
    with pytest.warns(
        CheckpointWarning,
        match=r"student\.first weights is \w{12} there, \w{12} here; the run goes on with the "
        "weights in the checkpoint",
    ):
        again = distill(
            teachers.ntl,
            SmallVGG("8 M 8", 4, seed=9),
            synthesizer=SYNTHESIZERS["dfq"](),
            objective=PlainKD(),
            iterations=7,
            eval_every=1,
            seed=3,
            evaluate=Stop(0),
            checkpoint=tmp_path / "run",
            config=DistillConfig(student_steps=2, batch_size=16, pool=40, shift=1),
        )
    assert outcome(again) == outcome(whole)


def test_another_version_of_torch_is_another_run(teachers, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(teachers.ntl, tmp_path / "run", stop=2)
    installed = {**versions(), "torch": "9.9"}
    monkeypatch.setattr("atesc.inside.checkpoint.versions", lambda: installed)
    with pytest.raises(CheckpointError, match="versions.torch is .* there, 9.9 here"):
        run(teachers.ntl, tmp_path / "run")


def test_damaged_checkpoints_are_refused_and_not_changed(teachers, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(teachers.ntl, path, stop=2)
    whole = path.read_bytes()
    saved = torch.load(path, weights_only=True)
    for name in ("run", "step", "state", "random"):
        torch.save({k: v for k, v in saved.items() if k != name}, path)
        with pytest.raises(CheckpointError, match=f"damaged .KeyError: '{name}'"):
            run(teachers.ntl, path)
    torch.save({**saved, "state": {**saved["state"], "pools": None}}, path)
    with pytest.raises(CheckpointError, match="damaged"):
        run(teachers.ntl, path)
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=str(path)):
            run(teachers.ntl, path)
        assert path.read_bytes() == content


def test_two_runs_cannot_use_one_checkpoint(teachers, tmp_path):
    def second(student):
        with pytest.raises(StorageError, match="another run uses this checkpoint"):
            run(teachers.ntl, tmp_path / "run")
        return {}

    run(teachers.ntl, tmp_path / "run", evaluate=second)


@dataclass
class Bare(PlainKD):
    """A user's objective, which counts images and reports their number."""

    STATE = ("seen",)

    def update(self, new, pool):
        self.seen = getattr(self, "seen", 0) + len(new)

    def report(self):
        return {"seen": self.seen}


def test_the_state_of_an_objective_is_saved(teachers, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "bare", Bare)
    with pytest.raises(KeyboardInterrupt):
        run(teachers.ntl, tmp_path / "run", objective="bare", stop=3)
    result = run(teachers.ntl, tmp_path / "run", objective="bare")
    assert [point["seen"] for point in result.curve] == [16 * (n + 1) for n in range(7)]


def test_a_synthesizer_without_a_state_is_refused(teachers, tmp_path, monkeypatch):
    class Fixed:
        generator = torch.nn.Identity()

        def sample(self, n):
            return torch.rand(n, 3, 8, 8)

        def update(self, teacher, student, judge=None):
            raise AssertionError("not reached")

    monkeypatch.setitem(SYNTHESIZERS, "fixed", Fixed)
    with pytest.raises(
        InputError,
        match=r"synthesizer \(for a checkpoint; without, pass checkpoint=None\) must be an "
        "instance with the method state_dict, got",
    ):
        run(teachers.ntl, tmp_path / "run", synthesizer="fixed")


class AtStep(SmallVGG):
    """A network during whose n-th batch Ctrl-C is pressed."""

    at = 0

    def forward(self, images):
        if self.training and self.at:
            self.at -= 1
            if not self.at:
                signal.raise_signal(signal.SIGINT)
        return super().forward(images)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("train", [train_sl, train_ntl])
def test_training_of_a_teacher_goes_on(train, batch, task, tmp_path):
    """In the middle of an epoch and at its end; an epoch has two batches."""
    config, path = TeacherConfig(epochs=4), tmp_path / "teacher"
    whole = train(task, SmallVGG("8 M 8", 4), config)
    model = AtStep("8 M 8", 4)
    model.at = batch
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {batch}; "):
        train(task, model, config, checkpoint=path)
    again = train(task, AtStep("8 M 8", 4), config, checkpoint=path)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values())
    )
    with pytest.raises(CheckpointError, match="config.epochs is 4 there, 5 here"):
        train(task, AtStep("8 M 8", 4), TeacherConfig(epochs=5), checkpoint=path)
    brighter = replace(
        task, id=replace(task.id, train=replace(task.id.train, images=task.id.train.images.sqrt()))
    )
    with pytest.raises(CheckpointError, match="data is"):
        train(brighter, AtStep("8 M 8", 4), config, checkpoint=path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sigkill_at_random_moments():
    """In separate processes. `tools/kills.py` prints what each one went on from."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools/kills.py", "20"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    print(done.stdout)
    assert (
        counts["killed"] == counts["went on"] == counts["same"] == 20
        and counts["records lost or doubled"] == 0
    )
    assert counts["from a checkpoint"] >= 2, "about half of them, at random"


def test_a_splitter_without_estimates_has_no_state():
    assert Splitter().state_dict() == {}


@dataclass
class NotTrained(PlainKD):
    """Learns nothing, quickly."""

    def loss(self, student, batch):
        return 0 * student(batch.images[:2]).sum()


def test_a_long_curve_with_values_of_every_kind_is_saved(teachers, tmp_path, monkeypatch):
    """Points with a tensor, and a hundred thousand numbers, are read as they were saved."""
    monkeypatch.setitem(OBJECTIVES, "still", NotTrained)

    def numbers(student):
        return {
            "iacc": 99.5,
            "nothing": None,
            "of numpy": np.float32(0.5),
            "list": [1, 2.5],
            "tensor": torch.arange(3),
            "name": "über",
        }

    changes = {"objective": "still", "evaluate": numbers}
    whole = run(teachers.ntl, tmp_path / "run", **changes)
    again = run(teachers.ntl, tmp_path / "run", **changes)
    assert [list(point) for point in again.curve] and len(again.curve) == 7
    for a, b in zip(whole.curve, again.curve):
        assert (
            a.keys() == b.keys()
            and torch.equal(a["tensor"], b["tensor"])
            and all(a[name] == b[name] for name in a if name != "tensor")
        )
    monkeypatch.setattr(
        DFQ,
        "update",
        lambda self, teacher, student, judge: Batch(
            torch.zeros(2, 3, 8, 8), torch.zeros(2, 4), torch.zeros(2)
        ),
    )
    monkeypatch.setattr(Watch, "after", lambda *args: None)
    many = {f"measure {k}": k / 100 for k in range(100)}
    changes |= {
        "evaluate": lambda student: many,
        "iterations": 1_000,
        "checkpoint_every": 1_000,
        "config": DistillConfig(student_steps=1, batch_size=2, pool=2),
    }
    run(teachers.ntl, tmp_path / "long", **changes)
    assert run(teachers.ntl, tmp_path / "long", **changes).curve[-1] == {"iteration": 1_000, **many}
