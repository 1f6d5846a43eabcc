"""The ladder of objectives: ATEsc against a loop over images, and calibrated KD at weight 0."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div

from atesc.inside.errors import ConfigError
from atesc.method.distill import distill
from atesc.method.objectives import FORMS, ATEsc, CalibratedKD, Objective
from atesc.method.rivals import EntropySplitter
from atesc.method.run import DistillConfig
from atesc.method.splitter import PGDSplitter, RadiusSplitter
from atesc.synthesis.batch import Batch
from atesc.synthesis.dfq import DFQ
from atesc.synthesis.generator import DCGANGenerator
from atesc.teachers.networks import SmallVGG


def student_of(teacher, objective):
    dfq = DFQ(DCGANGenerator(size=8, latent_dim=8, width=8))
    config = DistillConfig(student_steps=2, batch_size=16)
    student = SmallVGG("8 M 8", 4, seed=1)
    return distill(
        teacher, student, synthesizer=dfq, objective=objective, iterations=6, config=config
    )


@pytest.mark.parametrize("splitter", [PGDSplitter(eps=8 / 255, steps=10), RadiusSplitter()])
@pytest.mark.parametrize("form", FORMS)
def test_at_weight_0_it_is_calibrated_kd(form, splitter, teachers):
    """Student, curve and teacher passes, bit for bit."""
    ours = student_of(teachers.ntl, ATEsc(splitter=splitter, weight=0.0, form=form))
    ckd = student_of(teachers.ntl, CalibratedKD(splitter=splitter))
    assert ours.passes == ckd.passes
    for name, value in ckd.student.state_dict().items():
        assert torch.equal(value, ours.student.state_dict()[name]), name


def of_one_image(form, teacher, student):
    """The forms of forgetting, one image at a time, in plain Python."""
    p, q = (torch.tensor(x, dtype=torch.float64).softmax(0) for x in (teacher, student))
    trap, k = int(p.argmax()), len(p)
    kl = sum(float(a * (a / b).log()) for a, b in zip(p, q))
    if form == "uniform":
        return sum(math.log(1 / k / float(b)) / k for b in q)
    if form in ("bounded-kl", "kl-mmd"):
        return -min(math.log(k), kl)
    if form == "complementary":
        return -math.log(1 - float(q[trap]))
    lowest = min(x for i, x in enumerate(teacher) if i != trap)
    clean = torch.tensor([lowest if i == trap else x for i, x in enumerate(teacher)]).double()
    return float(kl_div(q.log(), clean.softmax(0), reduction="sum"))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_against_a_loop(form):
    torch.manual_seed(0)
    teacher, student = 3 * torch.randn(40, 5), 3 * torch.randn(40, 5)
    values = FORMS[form](teacher, student)
    for value, t, s in zip(values, teacher.tolist(), student.tolist()):
        assert value.item() == pytest.approx(of_one_image(form, t, s), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_forgetting_concerns_the_robust_group_and_kd_the_fragile_one(form):
    """Another answer of the teacher to a robust image does not change KD, and the reverse."""
    torch.manual_seed(0)
    images, logits, student = torch.rand(8, 3, 8, 8), torch.randn(8, 4), SmallVGG("8 M 8", 4).eval()
    robust = torch.arange(8) % 2 == 1
    atesc, ckd = ATEsc(weight=0.7, form=form), CalibratedKD(splitter=PGDSplitter())
    batch = Batch(images, logits, torch.where(robust, 1.0, -1.0))
    for objective in (atesc, ckd):
        objective.start(student, images, 4)
        objective.update(batch, batch)
    said = student(images)
    forgetting = FORMS[form](logits, said)[robust].mean()
    if form == "kl-mmd":
        features = student.features(images).flatten(1) if hasattr(student, "features") else None
        forgetting = (atesc.loss(student, batch) - ckd.loss(student, batch)) / 0.7
        bound = FORMS[form](logits, said)[robust].mean()
        assert bound <= forgetting <= 0 and features is not None
    assert torch.allclose(
        atesc.loss(student, batch), ckd.loss(student, batch) + 0.7 * forgetting, atol=1e-6
    )


def test_a_robust_group_that_is_empty_or_alone():
    images, logits, student = torch.rand(4, 3, 8, 8), torch.randn(4, 4), SmallVGG("8 M 8", 4)
    for form in FORMS:
        for score in (-1.0, 1.0):
            atesc = ATEsc(form=form)
            batch = Batch(images, logits, torch.full((4,), score))
            atesc.start(student, images, 4)
            atesc.update(batch, batch)
            loss = atesc.loss(student, batch)
            assert loss.isfinite() and loss.requires_grad


def test_any_splitter_and_the_default_is_pgd(teachers):
    assert ATEsc().splitter == PGDSplitter(eps=8 / 255, steps=10) and ATEsc().weight > 0
    result = student_of(teachers.ntl, ATEsc(splitter=EntropySplitter()))
    assert 0 <= result.report["fragile_share"] <= 1


@pytest.mark.parametrize(
    "change, text",
    [
        ({"form": "unifrom"}, "Did you mean 'uniform'?"),
        ({"weight": -1.0}, "ATEsc.weight must be at least 0"),
        ({"splitter": PGDSplitter}, "takes Splitter, got the class PGDSplitter"),
    ],
)
def test_wrong_settings(change, text):
    with pytest.raises(ConfigError, match=text.replace("?", r"\?")):
        ATEsc(**change)


def test_an_objective_of_ones_own_needs_a_loss_alone(teachers):
    class Match(Objective):
        def loss(self, student, batch):
            return nn.functional.mse_loss(student(batch.images), batch.logits)

    assert student_of(teachers.sl, Match()).iterations == 6
