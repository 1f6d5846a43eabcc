"""The split against two independent attack libraries, its cost in passes, what it leaves alone."""

import numpy as np
import pytest
import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from atesc.data.tasks import load_task
from atesc.inside.errors import ConfigError
from atesc.method.distill import distill
from atesc.method.objectives import PlainKD
from atesc.method.splitter import (
    GRID,
    PGDSplitter,
    RadiusSplitter,
    first_order_radius,
    margin,
    radius,
    soft_margin,
)
from atesc.synthesis.dfq import DFQ
from atesc.synthesis.generator import DCGANGenerator
from atesc.teachers.networks import SmallVGG
from atesc.teachers.observation import count_passes, frozen
from atesc.teachers.training import TeacherConfig, train_ntl


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
    split = PGDSplitter(eps=eps, steps=steps, step_size=step_size, random_start=False)(
        teacher, images
    )
    classifier = PyTorchClassifier(
        teacher, nn.CrossEntropyLoss(), (3, 16, 16), 10, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        eps=eps,
        eps_step=step_size,
        max_iter=steps,
        num_random_init=0,
        batch_size=400,
        verbose=False,
    )
    attacked = torch.from_numpy(attack.generate(images.numpy()))
    with torch.no_grad(), frozen(teacher):
        flipped = teacher(attacked).argmax(1) != teacher(images).argmax(1)
    assert 0.05 < flipped.float().mean() < 0.95, "the comparison must have both outcomes"
    # ART goes on after a flip and may come back, and never gives up.
    assert (flipped == split.fragile).float().mean() >= 0.995
    art = np.abs((attacked - images).numpy()).max()
    assert art <= eps + 1e-6


def test_score_and_shapes(digits):
    teacher, images = digits
    split = PGDSplitter(eps=4 / 255, steps=4)(teacher, images)
    assert split.fragile.shape == split.score.shape == (400,)
    assert split.fragile.dtype == torch.bool and split.score.dtype == torch.float32
    assert torch.equal(split.fragile, split.score < 0) and torch.equal(split.robust, ~split.fragile)


@pytest.fixture(scope="module")
def trapped(digits):
    """A batch of a generator that plain DFQ has trained against the NTL teacher."""
    synthesizer = DFQ(DCGANGenerator(size=16))
    distill(
        digits[0],
        SmallVGG("16 M 32 M", 10, seed=1),
        synthesizer=synthesizer,
        objective=PlainKD(),
        iterations=60,
    )
    return synthesizer.sample(400)


@pytest.mark.parametrize("eps", [4 / 255, 8 / 255])
def test_agrees_with_torchattacks_at_less_than_half_of_its_passes(digits, trapped, eps):
    """Same random start, eps, steps and step size. Passes are counted, so that no clock decides."""
    teacher, images = digits[0], trapped
    attack = torchattacks.PGD(teacher, eps=eps, alpha=eps / 4, steps=10, random_start=True)
    splitter = PGDSplitter(eps=eps, step_size=eps / 4, steps=10)
    with frozen(teacher):
        with count_passes(teacher) as reference:
            torch.manual_seed(1)
            with torch.no_grad():
                labels = teacher(images).argmax(1)
            attacked = attack(images, labels)
            with torch.no_grad():
                flipped = teacher(attacked).argmax(1) != labels
        with count_passes(teacher) as passes:
            torch.manual_seed(1)
            fragile = splitter(teacher, images).fragile
    assert 0.05 < flipped.float().mean() < 0.95
    assert (flipped == fragile).float().mean() >= 0.995
    costs = [counted.forward + counted.backward for counted in (reference, passes)]
    assert costs[0] > 2 * costs[1], costs


def test_an_attack_gives_up_only_what_is_out_of_reach(digits, monkeypatch):
    """Without giving up, hardly any decision changes, and many more gradients are needed."""
    teacher, images = digits
    splitter = PGDSplitter(steps=10, random_start=False)
    with count_passes(teacher) as quick:
        split = splitter(teacher, images)
    monkeypatch.setattr("atesc.method.splitter.SLACK", float("inf"))
    with count_passes(teacher) as thorough:
        full = splitter(teacher, images)
    assert (split.fragile == full.fragile).float().mean() >= 0.99
    assert not (split.fragile & full.robust).any()
    assert quick.backward < 0.6 * thorough.backward


def test_the_first_gradient_shares_the_clean_forward_pass(digits):
    teacher, images = digits
    for splitter, forward in ((RadiusSplitter(), 0), (PGDSplitter(steps=1, random_start=False), 1)):
        with frozen(teacher):
            inputs = images.clone().requires_grad_()
            logits = teacher(inputs)
            with count_passes(teacher) as passes:
                alive = splitter.score(teacher, inputs, logits)
            assert passes.forward <= forward * len(images)
            assert logits.requires_grad and not alive.requires_grad
            (gradient,) = torch.autograd.grad(
                logits.sum(), inputs
            )  # the graph is still there for the caller
            assert torch.isfinite(gradient).all()
            assert torch.allclose(
                alive, splitter.score(teacher, images, logits.detach()), atol=1e-5
            )


def test_first_order_radius_by_hand(digits):
    """One image at a time, with the margin's gradient by finite differences along its sign."""
    teacher = digits[0].double()
    try:
        images = torch.rand(
            4, 3, 16, 16, dtype=torch.float64
        )  # no flat areas, where max-pooling has ties and no gradient
        with frozen(teacher):
            scores = RadiusSplitter().score(teacher, images, teacher(images))
            for image, score in zip(images, scores):
                x = image[None].requires_grad_()
                logits = teacher(x)
                label = logits.argmax(1)
                (g,) = torch.autograd.grad(soft_margin(logits, label).sum(), x)
                h = 1e-7
                slope = (
                    soft_margin(teacher(x + h * g.sign()), label)
                    - soft_margin(teacher(x - h * g.sign()), label)
                ) / (2 * h)
                assert torch.allclose(margin(logits, label) / slope, score, rtol=1e-3)
    finally:
        teacher.float()


def test_first_order_radius_of_a_constant_teacher_is_infinite():
    logits = torch.tensor([[1.0, 0.0]])
    assert first_order_radius(logits, torch.zeros(1, 3, 2, 2), torch.tensor([0])).item() == float(
        "inf"
    )


def test_the_first_order_radius_orders_like_the_sweep(digits, trapped):
    teacher = digits[0]
    first, swept = RadiusSplitter()(teacher, trapped).score, radius(teacher, trapped)
    assert (
        torch.corrcoef(
            torch.stack([first.argsort().argsort(), swept.argsort(stable=True).argsort()]).float()
        )[0, 1]
        > 0.9
    )
    for eps in (2 / 255, 4 / 255, 8 / 255):
        assert ((first < eps) == (swept <= eps + 1e-9)).float().mean() > 0.9


def test_the_sweep_skips(digits):
    teacher, images = digits
    with count_passes(teacher) as passes:
        radii = radius(teacher, images)
    reached = sum(int((radii >= eps - 1e-9).sum()) for eps in GRID)
    assert passes.backward < 0.8 * 3 * reached, (
        "three gradients at each eps up to the one that flips would be the plain sweep"
    )


def test_more_eps_flips_more_and_radius_agrees(digits):
    teacher, images = digits
    shares = [
        PGDSplitter(eps=e / 255, random_start=False)(teacher, images).fragile for e in (0, 1, 4, 16)
    ]
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


@pytest.mark.parametrize(
    "setting", [{"eps": -1.0}, {"eps": 4.0}, {"steps": 0}, {"steps": 2.5}, {"step_size": -0.1}]
)
def test_wrong_settings(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        PGDSplitter(**setting)
