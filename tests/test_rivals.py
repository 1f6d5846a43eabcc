"""The rival splitters against independent oracles, and inside a run."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import log_softmax
from scipy.stats import entropy
from sklearn.covariance import ShrunkCovariance

from atesc.inside.runtime import as_config
from atesc.method.distill import distill
from atesc.method.objectives import CalibratedKD
from atesc.method.rivals import (
    CalibratedSplitter,
    ConfidenceSplitter,
    EntropySplitter,
    FeatureSplitter,
    GradientSplitter,
    LearningSplitter,
    RandomSplitter,
    fit_temperature,
)
from atesc.method.run import DistillConfig
from atesc.method.splitter import PGDSplitter, RadiusSplitter
from atesc.synthesis.dfq import DFQ, DFQConfig
from atesc.synthesis.generator import DCGANGenerator
from atesc.teachers.networks import SmallVGG
from atesc.teachers.observation import frozen, observe

ALL = [
    EntropySplitter,
    ConfidenceSplitter,
    CalibratedSplitter,
    FeatureSplitter,
    GradientSplitter,
    RandomSplitter,
]
FEW = DistillConfig(student_steps=1, batch_size=8, pool=64)


def run(teacher, splitter, seed=0):
    generator = DCGANGenerator(size=8, latent_dim=16, width=8, seed=1)
    return distill(
        teacher,
        SmallVGG("8 M 8", 4, seed=1),
        synthesizer=DFQ(generator, DFQConfig(batch_size=16)),
        objective=CalibratedKD(splitter=splitter),
        iterations=4,
        seed=seed,
        config=FEW,
    )


def test_entropy_is_that_of_scipy():
    logits = 5 * torch.randn(50, 7)
    share = entropy(np.exp(log_softmax(logits.double().numpy(), 1)), axis=1) / np.log(7)
    scores = EntropySplitter().score(None, None, logits)
    assert np.allclose(np.exp(-scores.numpy()), share, rtol=1e-4)
    assert torch.equal(
        scores >= EntropySplitter(0.3).threshold(scores, None), torch.from_numpy(share <= 0.3)
    )


def test_the_temperature_is_the_root_that_scipy_finds():
    logits = 4 * torch.randn(200, 5, dtype=torch.float64)

    def excess(log_t):
        return np.exp(log_softmax(logits.numpy() / np.exp(log_t), 1)).max(1).mean() - 0.55

    assert np.log(fit_temperature(logits, 0.55).item()) == pytest.approx(
        brentq(excess, -4, 4), abs=1e-5
    )


@pytest.mark.parametrize("shrinkage", [0.1, 0.5])
def test_feature_distances_are_those_of_a_fit_by_sklearn(shrinkage, teachers):
    """Scatter within classes, shrunk, and the distance to the nearest class mean, on one batch."""
    images = teachers.task.id.train.images
    splitter = FeatureSplitter(near=False, shrinkage=shrinkage, memory=10**9, min_images=1.0)
    with frozen(teachers.sl), torch.no_grad():
        seen = observe(teachers.sl, images)
        scores = splitter.score(teachers.sl, images, seen.logits)
    x, labels = seen.features.double().numpy(), seen.logits.argmax(1).numpy()
    means = {k: x[labels == k].mean(0) for k in np.unique(labels)}
    fit = ShrunkCovariance(shrinkage=shrinkage, assume_centered=True).fit(
        x - np.stack([means[k] for k in labels])
    )
    nearest = np.min(
        [np.einsum("ij,jk,ik->i", x - m, fit.precision_, x - m) for m in means.values()], axis=0
    )
    assert len(means) > 1
    assert np.allclose(scores.exp().square().numpy(), nearest, rtol=1e-3)


def test_old_images_fade_from_the_class_means():
    splitter = FeatureSplitter(near=False, memory=10)
    one = torch.ones(100, 1).double()
    splitter.update(torch.randn(100, 2).double() + 50, one)
    splitter.update(torch.randn(100, 2).double(), one)
    distance = splitter.rate(torch.tensor([[0.0, 0.0], [50.0, 50.0]]).double(), None)
    assert distance[0] < distance[1]


def test_two_classes_have_one_order_whatever_the_temperature():
    logits = 3 * torch.randn(100, 2)
    splitter = CalibratedSplitter()
    splitter.temperature = torch.tensor(7.0)
    assert torch.equal(
        splitter.rate(logits, None).argsort(),
        ConfidenceSplitter().score(None, None, logits).argsort(),
    )


@pytest.mark.parametrize(
    "other",
    [RadiusSplitter(1.2), PGDSplitter(8 / 255, random_start=False), FeatureSplitter(1.05)],
    ids=lambda x: type(x).__name__,
)
def test_chance_takes_as_many_as_the_other_but_not_the_same(other, teachers):
    images = torch.rand(200, 3, 8, 8)
    robust = other(teachers.ntl, images).robust
    drawn = RandomSplitter(other)(teachers.ntl, images).robust
    assert drawn.sum() == robust.sum()
    assert robust.all() or not robust.any() or not torch.equal(drawn, robust)


def test_where_the_other_takes_none_chance_takes_none(teachers):
    splitter, images = RandomSplitter(RadiusSplitter(1e6)), torch.rand(50, 3, 8, 8)
    with frozen(teachers.ntl):
        scores = splitter.score(teachers.ntl, images, teachers.ntl(images))
    threshold = splitter.threshold(scores, None)
    assert threshold.isfinite() and (scores < threshold).all(), "a record takes no infinity"


@pytest.mark.parametrize("kind", ALL)
def test_a_run_depends_on_itself_alone(kind, teachers):
    """The same splitter twice: its first run is forgotten, and the second one is the same."""
    splitter, before = kind(), as_config(kind())
    first, second = (run(teachers.ntl, splitter) for _ in range(2))
    for a, b in zip(first.student.state_dict().values(), second.student.state_dict().values()):
        assert torch.equal(a, b)
    assert as_config(splitter) == before, "estimates are no settings"


@pytest.mark.parametrize("kind", [kind for kind in ALL if issubclass(kind, LearningSplitter)])
def test_splitting_images_leaves_a_run_under_way_alone(kind, teachers):
    splitter, images = kind(), torch.rand(16, 3, 8, 8)
    splitter.start()
    with frozen(teachers.ntl):
        splitter.update(*splitter.measure(teachers.ntl, images, teachers.ntl(images)))
    before = {
        name: value for name, value in vars(splitter).items() if isinstance(value, torch.Tensor)
    }
    assert before
    splitter(teachers.ntl, torch.rand(8, 3, 8, 8))
    assert all(torch.equal(value, getattr(splitter, name)) for name, value in before.items())
