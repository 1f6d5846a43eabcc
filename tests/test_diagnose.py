"""What a run says of itself: failures provoked at debug size, healthy runs silent."""

import json
import re
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from atesc.inside.records import load_records
from atesc.method.distill import distill
from atesc.method.objectives import CalibratedKD, DecoyEscape, PlainKD
from atesc.method.run import DistillConfig
from atesc.method.splitter import PGDSplitter
from atesc.method.watch import DistillWarning, Watch, vital_signs
from atesc.study.grid import plan_grid, run_grid
from atesc.synthesis.batch import Batch
from atesc.synthesis.dfq import DFQ
from atesc.teachers.networks import SmallVGG


class Draws(nn.Module):
    "A generator without training: it draws from given images, and changes their contrast."

    def __init__(self, images):
        super().__init__()
        self.images, self.gain = images, nn.Parameter(torch.ones(()))

    def latent(self, n):
        return torch.rand(n, len(self.images))

    def forward(self, z):
        order = z.mean(0).argsort()  # none twice, if there are enough
        return (self.gain * self.images[order[torch.arange(len(z)) % len(order)]]).clamp(0, 1)


class Stubborn(PlainKD):
    "Forgetting that leaves nothing: away from the teacher on every image."

    weight = 50.0

    def loss(self, student, batch):
        said = student(batch.images).log_softmax(1).gather(1, batch.logits.argmax(1)[:, None])
        return super().loss(student, batch) + self.weight * said.clamp(min=-5).mean()


def run(teachers, which, objective, given=lambda labels: labels >= 0, iterations=40):
    """A student from real images of `given` labels: its result, and what its user saw."""
    data = teachers.task.id.train
    generator = Draws(data.images[given(data.labels)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = distill(
            teachers[which],
            SmallVGG("8 M 8", 4, seed=1),
            synthesizer=DFQ(generator),
            objective=objective,
            iterations=iterations,
            config=DistillConfig(student_steps=4),
        )
    return result, [warning for warning in caught if issubclass(warning.category, DistillWarning)]


PROVOKED = {
    "alike": lambda: dict(objective=PlainKD(), given=lambda labels: torch.arange(len(labels)) < 16),
    "crowded": lambda: dict(
        objective=PlainKD(),
        given=lambda labels: (labels == 2) | (torch.arange(len(labels)) // 4 % 4 == 0),
    ),
    "missing": lambda: dict(objective=PlainKD(), given=lambda labels: labels != 2),
    "split": lambda: dict(objective=CalibratedKD(splitter=PGDSplitter(eps=1e-5))),
    "forgetting": lambda: dict(objective=Stubborn()),
}
REMEDY = {
    "alike": "latent_dim",
    "crowded": "use DecoyEscape",
    "missing": "class balance",
    "split": "larger eps",
    "forgetting": "lower its weight",
}


@pytest.mark.parametrize("name", PROVOKED)
def test_a_provoked_failure_is_named_once_with_numbers_and_a_remedy(name, teachers):
    result, caught = run(teachers, "sl", **PROVOKED[name]())
    mine = [warning for warning in result.warnings if warning["name"] == name]
    assert len(mine) == 1 and len({warning["name"] for warning in result.warnings}) == len(
        result.warnings
    ), result.warnings
    assert re.search(r"\d%", mine[0]["text"]) and REMEDY[name] in mine[0]["text"]
    assert mine[0]["iteration"] > 10, "not in the first quarter"
    seen = [str(warning.message) for warning in caught]
    assert seen == [
        f"iteration {warning['iteration']}: {warning['text']}" for warning in result.warnings
    ]
    assert caught[0].filename == __file__, "the warning points at who called distill"


def test_an_attack_that_flips_everything(teachers):
    result, _ = run(teachers, "sl", CalibratedKD(splitter=PGDSplitter(eps=1.0)))
    (text,) = [warning["text"] for warning in result.warnings if warning["name"] == "split"]
    assert "100.0% of the pool are fragile" in text and "plain KD" in text and "smaller eps" in text


@pytest.mark.parametrize("objective", [PlainKD, CalibratedKD, DecoyEscape])
def test_a_healthy_run_is_silent(objective, teachers):
    result, caught = run(teachers, "sl", objective())
    assert result.warnings == [] and caught == []


@pytest.mark.parametrize(
    "ratio, said", [(1.0, None), (2.3, "not called a trap"), (2.9, "is called a trap"), (9.0, None)]
)
def test_a_line_up_close_to_the_limit_is_uncertain(ratio, said, teachers, monkeypatch):
    def line_up(self, teacher):
        self.ratio = torch.tensor([1.0, ratio, 1.0, 0.9])
        return self.traps

    monkeypatch.setattr("atesc.method.traps.LineUp.run", line_up)
    result, _ = run(teachers, "sl", DecoyEscape(), iterations=8)
    texts = [warning["text"] for warning in result.warnings if warning["name"] == "line-up"]
    assert len(texts) == (said is not None)
    assert (
        not texts
        or said in texts[0]
        and f"{ratio:.2f}" in texts[0]
        and "2.5" in texts[0]
        and "class 1" in texts[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("objective", [PlainKD, CalibratedKD, DecoyEscape])
def test_looking_changes_nothing(objective, teachers, monkeypatch):
    """The same student, bit for bit, and the same teacher passes with 20 checks and with none."""
    looked, _ = run(teachers, "ntl", objective())
    state = torch.get_rng_state()
    looks = []
    monkeypatch.setattr(Watch, "after", lambda *args: looks.append(args))
    blind, _ = run(teachers, "ntl", objective())
    assert len(looks) == 40 and torch.equal(state, torch.get_rng_state())
    assert looked.passes == blind.passes
    for (name, one), two in zip(
        looked.student.state_dict().items(), blind.student.state_dict().values()
    ):
        assert torch.equal(one, two), name


def test_a_look_draws_no_random_number_and_leaves_the_student_as_it_was():
    student, batch = (
        SmallVGG("8 M 8", 4).train(),
        Batch(torch.rand(16, 3, 8, 8), torch.randn(16, 4), torch.zeros(16)),
    )
    before, state = (
        {name: value.clone() for name, value in student.state_dict().items()},
        torch.get_rng_state(),
    )
    vital_signs(student, PlainKD(), batch, batch)
    assert (
        torch.equal(state, torch.get_rng_state())
        and student.training
        and all(p.requires_grad for p in student.parameters())
    )
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_signs_against_a_loop():
    """Shares, nearest distance and agreement, image by image; decoys are not new images."""
    torch.manual_seed(1)
    decoy = torch.tensor([False] * 9 + [True] * 3)
    new = Batch(torch.rand(12, 3, 4, 4), torch.randn(12, 4), torch.zeros(12), decoy)
    pool = Batch(torch.rand(700, 3, 4, 4), torch.randn(700, 4), torch.rand(700))
    ckd, student = CalibratedKD(), SmallVGG("8 8", 4)
    ckd.threshold = torch.tensor(0.5)
    signs = vital_signs(student, ckd, new, pool)
    answers = pool.logits.argmax(1).tolist()
    assert signs["largest"] == pytest.approx(max(answers.count(k) for k in range(4)) / 700)
    assert signs["excess"] == pytest.approx((4 * signs["largest"] - 1) / 3)
    assert signs["smallest"] == pytest.approx(4 * min(answers.count(k) for k in range(4)) / 700)
    nearest = [
        min((new.images[i] - new.images[j]).norm().item() for j in range(9) if j != i)
        for i in range(9)
    ]
    contrast = [(new.images[i] - new.images[i].mean()).norm().item() for i in range(9)]
    assert signs["unlike"] == pytest.approx(sorted(nearest)[4] / sorted(contrast)[4], rel=1e-4)
    student.eval()
    with torch.no_grad():
        hits = [
            student(pool.images[i : i + 1]).argmax().item() == answers[i]
            for i in range(0, 700, 2)
            if pool.score[i] < 0.5
        ]
    assert signs["agreement"] == pytest.approx(sum(hits) / len(hits))


def test_what_is_wrong_now_and_then_is_no_reason_to_warn(monkeypatch):
    """Three looks in a row, none in the first quarter, and one warning however long it lasts."""
    low = set()
    monkeypatch.setattr(
        "atesc.method.watch.vital_signs",
        lambda *args: {
            "largest": 0.3,
            "excess": 0.2,
            "class": 0,
            "smallest": 1.0,
            "rarest": 1,
            "unlike": 1.0,
            "agreement": 0.1 if now in low else 0.9,
        },
    )
    for low, expected in (
        ({5, 10, 15, 25, 30, 40, 45}, []),
        ({30, 35, 40, 45, 60, 65, 70}, [40]),
        (set(range(0, 101)), [40]),
    ):
        watch, pools = Watch(), SimpleNamespace(own=SimpleNamespace(contents=lambda: None))
        run = SimpleNamespace(iterations=100, student=None, new=None, pools=pools)
        run.objective = PlainKD()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for now in range(1, 101):
                run.iteration = now
                watch.after(run)
        assert [warning["iteration"] for warning in watch.issued] == expected


def test_records_hold_the_warnings(preset, tmp_path):
    noisy = replace(preset, ckd=CalibratedKD(splitter=PGDSplitter(eps=1e-5)))
    with pytest.warns(DistillWarning, match="cannot tell fragile from robust"):
        (record,) = run_grid(
            "demo", noisy, plan_grid([preset.task], [0], ["dfq"], ["ntl-ckd"]), tmp_path
        )
    assert "split" in {warning["name"] for warning in record["warnings"]}
    assert load_records(tmp_path)[0]["warnings"] == json.loads(json.dumps(record["warnings"]))
