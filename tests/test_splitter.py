"""The split against an independent attack library, and what it must leave alone."""
import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from atesc.core import ConfigError
from atesc.domains import load_task
from atesc.networks import SmallVGG, frozen
from atesc.splitter import GRID, PGDSplitter, radius
from atesc.teacher import TeacherConfig, train_ntl


@pytest.fixture(scope="module")
def digits():
    task = load_task("digits->digits_photo", size=16)
    teacher = train_ntl(task, SmallVGG("16 M 32 M", 10), TeacherConfig(epochs=10))
    return teacher, torch.cat([task.id.test.images[:200], task.ood.test.images[:200]])


@pytest.mark.parametrize("eps", [2 / 255, 8 / 255])
def test_agrees_with_art(digits, eps):
    """Same start (the clean image), eps, steps and step size: the same images flip."""
    teacher, images = digits
    steps, step_size = 5, eps / 2
    split = PGDSplitter(eps=eps, steps=steps, step_size=step_size, random_start=False)(teacher, images)
    classifier = PyTorchClassifier(teacher, nn.CrossEntropyLoss(), (3, 16, 16), 10, clip_values=(0, 1), device_type="cpu")
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=eps, eps_step=step_size, max_iter=steps, num_random_init=0, batch_size=400, verbose=False
    )
    attacked = torch.from_numpy(attack.generate(images.numpy()))
    with torch.no_grad(), frozen(teacher):
        flipped = teacher(attacked).argmax(1) != teacher(images).argmax(1)
    assert 0.05 < flipped.float().mean() < 0.95, "the comparison must have both outcomes"
    # ART goes on after a flip and may come back; ours stops at the first one. Nothing else may differ.
    assert not (flipped & ~split.fragile).any()
    assert (flipped == split.fragile).float().mean() >= 0.99
    art = np.abs((attacked - images).numpy()).max()
    assert art <= eps + 1e-6


def test_score_and_shapes(digits):
    teacher, images = digits
    split = PGDSplitter(eps=4 / 255, steps=4)(teacher, images)
    assert split.fragile.shape == split.score.shape == (400,)
    assert split.fragile.dtype == torch.bool and split.score.dtype == torch.float32
    assert torch.equal(split.fragile, split.score < 0) and torch.equal(split.robust, ~split.fragile)


def test_known_logits_save_a_pass_and_change_nothing(digits):
    teacher, images = digits
    splitter = PGDSplitter(random_start=False)
    with torch.no_grad(), frozen(teacher):
        logits = teacher(images)
    assert torch.equal(splitter(teacher, images).score, splitter(teacher, images, logits).score)


def test_more_eps_flips_more_and_radius_agrees(digits):
    teacher, images = digits
    shares = [PGDSplitter(eps=e / 255, random_start=False)(teacher, images).fragile for e in (0, 1, 4, 16)]
    assert not shares[0].any()
    assert all(a.sum() <= b.sum() for a, b in zip(shares, shares[1:]))
    r = radius(teacher, images)
    assert set(r.tolist()) <= {*torch.tensor(GRID).tolist(), float("inf")}
    agree = ((r <= 4 / 255 + 1e-9) == shares[2]).float().mean()
    assert agree > 0.95, agree


def test_the_same_seed_gives_the_same_split(digits):
    teacher, images = digits
    splits = []
    for _ in range(2):
        torch.manual_seed(3)
        splits.append(PGDSplitter()(teacher, images).score)
    assert torch.equal(*splits)


@pytest.mark.parametrize("setting", [{"eps": -1.0}, {"eps": 4.0}, {"steps": 0}, {"steps": 2.5}, {"step_size": -0.1}])
def test_wrong_settings(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        PGDSplitter(**setting)
