"""Decoys: the line-up against a loop over classes, what they leave alone, and when they join."""

import pytest
import torch
from torch import nn

from atesc.core import ConfigError
from atesc.decoy import DecoyConfig, Decoys, belief, separation
from atesc.escape import ATEsc
from atesc.networks import SmallVGG, frozen, observe
from atesc.splitter import RadiusSplitter
from atesc.synthesis import Batch
from atesc.teacher import mmd

IMAGES = torch.rand(2, 3, 8, 8)


def decoys_of(traps, **config):
    decoys = Decoys(4, IMAGES, DecoyConfig(batch_size=10, **config))
    decoys.ratio = torch.tensor([9.0 if k in traps else 1.0 for k in range(4)])
    return decoys


def test_the_ratio_is_that_of_class_medians(teachers, monkeypatch):
    seen = []

    def scored(self, teacher, images, logits):
        seen.append(torch.rand(len(images)))
        return seen[-1]

    monkeypatch.setattr(RadiusSplitter, "score", scored)
    decoys = Decoys(4, IMAGES, DecoyConfig(probe=9, per_class=3))
    with frozen(teachers.ntl) as teacher:
        decoys.line_up(teacher)
    assert len(seen) == Decoys.LAST
    medians = [sorted(x for scores in seen for i, x in enumerate(scores.tolist()) if i % 4 == k)[(3 * Decoys.LAST - 1) // 2] for k in range(4)]
    typical = sorted(medians)[1]  # torch's median is the lower one
    assert decoys.ratio.tolist() == pytest.approx([m / typical for m in medians])


def test_the_line_up_learns_the_classes(teachers):
    torch.manual_seed(0)
    decoys, labels = Decoys(4, IMAGES, DecoyConfig(probe=150)), torch.arange(4).repeat(16)
    with frozen(teachers.sl) as teacher:
        decoys.line_up(teacher)
        hits = (teacher(decoys.make(labels)).argmax(1) == labels).float().mean()
    assert hits > 0.8, hits  # chance is 0.25


def test_decoys_are_of_trap_classes_only():
    decoys = decoys_of({1, 3})
    counts = torch.zeros(4)
    for _ in range(40):
        images = decoys.draw()
        counts += decoys.asked.bincount(minlength=4)
    assert images.shape == (10, 3, 8, 8) and 0 <= images.min() and images.max() <= 1 and images.requires_grad
    assert counts[0] == counts[2] == 0 and counts[1] == pytest.approx(200, abs=50)


def test_the_loss_leaves_the_student_alone(teachers):
    decoys, student = decoys_of({2}), SmallVGG("8 M 8", 4)
    student.train()
    own = torch.rand(6, 3, 8, 8, requires_grad=True)
    with frozen(teachers.sl) as teacher:
        images = torch.cat([own, decoys.draw()])
        decoys.loss(student, images, observe(teacher, images)).backward()
    assert student.training and all(p.grad is None and p.requires_grad for p in student.parameters())
    assert own.grad.abs().sum() > 0, "the distance moves the synthesizer's own images, too"
    assert all(p.grad is not None for p in decoys.generator.parameters())


def test_a_teacher_without_features_or_statistics_is_served():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return self.conv(images).mean((2, 3))

    decoys, student = decoys_of({0}), SmallVGG("8 M 8", 4)
    with frozen(Pooled()) as teacher:
        images = torch.cat([IMAGES, decoys.draw()])
        assert decoys.loss(student, images, observe(teacher, images)).isfinite()
        with pytest.warns(UserWarning, match="no BatchNorm layer"):
            assert not Decoys(4, IMAGES).line_up(teacher).any()


def test_distance_and_belief_are_bounded():
    a = torch.randn(20, 6)
    assert separation(a, a.clone()).item() == pytest.approx(0, abs=1e-6)
    assert separation(a, torch.randn(30, 6) + 2).item() == pytest.approx(0.1 * mmd(a, torch.randn(30, 6) + 2).item(), rel=0.2)
    assert separation(a, a + 1e6) <= 1
    sure = torch.tensor([[1e4, 0.0, 0.0]])
    assert belief(sure, torch.tensor([0])).item() == 0 and belief(sure, torch.tensor([1, 2])).item() == -5


@pytest.mark.parametrize("share, joins", [(1.0, False), (0.75, False), (0.5, True), (0.0, True)])
def test_decoys_join_when_the_generator_is_out_of_the_trap(share, joins, teachers):
    objective = ATEsc(decoy=DecoyConfig(probe=1))
    with frozen(teachers.sl) as teacher:
        objective.start(teacher, IMAGES, 4)
    objective.traps = torch.tensor([False, True, False, False])
    logits = torch.zeros(8, 4)
    logits[torch.arange(8), [1] * int(8 * share) + [2] * (8 - int(8 * share))] = 5.0
    new = Batch(torch.rand(8, 3, 8, 8), logits, torch.zeros(8))
    objective.update(new, new)
    assert (objective.decoys is not None) == joins
    objective.start(teachers.sl, IMAGES, 4)
    assert objective.decoys is None, "a new run starts without"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"factor": 0.9}, "DecoyConfig.factor must be at least 1"),
        ({"join": 1.5}, "DecoyConfig.join must be"),
        ({"probe": 0}, "DecoyConfig.probe must be at least 1"),
        ({"hunt": -0.1}, "DecoyConfig.hunt must be at least 0"),
        ({"batch_size": 1}, "DecoyConfig.batch_size must be at least 2"),
        ({"per_class": 2.5}, "DecoyConfig.per_class takes int"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        DecoyConfig(**change)


def test_images_that_no_generator_makes():
    with pytest.raises(ConfigError, match="decoys are square"):
        Decoys(4, torch.rand(1, 3, 8, 12))
    with pytest.raises(ConfigError, match="multiple of 4"):
        Decoys(4, torch.rand(1, 3, 10, 10))
