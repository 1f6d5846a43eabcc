"""Leakage: every figure against an oracle; attacks find the members of a memorising network."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors
from torch import nn

from atesc.data.domains import ImageSet
from atesc.data.tasks import load_task
from atesc.inside.errors import ConfigError
from atesc.inside.runtime import seeded
from atesc.study.domain_eval import features_of
from atesc.study.presets import PRESETS
from atesc.study.privacy import (
    FPRS,
    RealImages,
    attack_report,
    chance_std,
    halves,
    lira,
    nearest_members,
    part_of,
    roc,
    scaled_confidence,
    standardised,
)
from atesc.teachers.networks import SmallVGG
from atesc.teachers.training import TeacherConfig, train_sl


def scores_and_members(n=400, levels=None):
    """Scores of members that are higher on average; with levels, many are equal."""
    inside = torch.rand(n) < 0.4
    scores = torch.randn(n) + 0.8 * inside
    return (scores if levels is None else (scores * levels).round() / levels), inside


@pytest.mark.parametrize("levels", [None, 2])
def test_the_area_and_the_curve_are_those_of_scikit_learn(levels):
    scores, inside = scores_and_members(levels=levels)
    assert attack_report(scores, inside)["auroc"] == pytest.approx(
        100 * roc_auc_score(inside, scores)
    )
    false, true, _ = roc_curve(inside, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc(scores, inside), (false, true))


@pytest.mark.parametrize("levels", [None, 2])
def test_the_tpr_at_an_fpr_is_the_best_of_all_thresholds(levels):
    scores, inside = scores_and_members(levels=levels)

    def best(fpr):
        cuts = [scores >= cut for cut in [*scores.tolist(), float("inf")]]
        return max(
            100 * c[inside].float().mean().item()
            for c in cuts
            if 100 * c[~inside].float().mean().item() <= fpr + 1e-4
        )

    report = attack_report(scores, inside)
    assert report["tpr"] == pytest.approx(best(1), abs=1e-3)
    np.testing.assert_allclose(report["curve"], [best(fpr) for fpr in FPRS], atol=1e-3)
    assert report["curve"][-1] == 100 and 1.0 in FPRS


def test_scores_that_know_nothing_spread_as_they_should():
    inside = torch.arange(90) < 30
    areas = [attack_report(torch.randn(90), inside)["auroc"] for _ in range(400)]
    assert np.mean(areas) == pytest.approx(50, abs=3 * chance_std(30, 60) / 20)
    assert np.std(areas) == pytest.approx(chance_std(30, 60), rel=0.12)


def test_the_likelihood_ratio_is_that_of_the_fitted_gaussians():
    inside = halves(50, 8, seed=0)
    shadows, target = (
        torch.randn(8, 50, dtype=torch.float64) + 2 * inside,
        torch.randn(50, dtype=torch.float64),
    )
    expected = 0
    for side, sign in ((inside, 1), (~inside, -1)):
        own = [shadows[side[:, i], i].numpy() for i in range(50)]
        variance = sum(((x - x.mean()) ** 2).sum() for x in own) / sum(len(x) - 1 for x in own)
        expected = expected + sign * norm.logpdf(target, [x.mean() for x in own], variance**0.5)
    np.testing.assert_allclose(lira(target, shadows, inside), expected)


def test_with_many_shadows_the_ratio_is_the_one_in_closed_form():
    """In ~ N(a_i + 2, 1), out ~ N(a_i, 1): the ratio is 2 (phi - a_i) - 2, and its AUROC is the
    normal distribution function at the square root of 2."""
    n = 2000
    inside, easy = halves(n, 402, seed=0), 3 * torch.randn(n, dtype=torch.float64)
    confidence = easy + 2 * inside + torch.randn(402, n, dtype=torch.float64)
    ratio = lira(confidence[0], confidence[2:], inside[2:])
    exact = 2 * (confidence[0] - easy) - 2
    assert (ratio - exact).abs().mean() < 0.25 and np.corrcoef(ratio, exact)[0, 1] > 0.99
    assert attack_report(ratio, inside[0])["auroc"] == pytest.approx(
        100 * norm.cdf(2**0.5), abs=4 * chance_std(n // 2, n // 2)
    )


def test_variances_of_members_and_others_are_kept_apart():
    """With equal means only the spread differs: what is far from the mean is of the wider one."""
    inside = halves(200, 40, seed=0)
    shadows = torch.randn(40, 200) * torch.where(inside, 3.0, 0.5)
    far, near = (lira(torch.full((200,), value), shadows, inside) for value in (4.0, 0.0))
    assert (far > 0).all() and (near < 0).float().mean() > 0.9


@pytest.mark.parametrize("change", [lambda x: x, lambda x: (10 * x).round() / 10])
def test_nearest_is_what_scikit_learn_finds(change):
    images, members, others = (change(torch.rand(n, 3, 4, 4)) for n in (300, 40, 40))
    nearest = nearest_members(images, members, others)
    both = torch.cat([members, others]).flatten(1)
    distances, places = NearestNeighbors(n_neighbors=1).fit(both).kneighbors(images.flatten(1))
    # an image with two nearest ones may be counted otherwise
    assert nearest.share == pytest.approx(100 * (places < 40).mean(), abs=0.5)
    assert nearest.distinct == pytest.approx(len(np.unique(places)), abs=1)
    for part, median in ((members, nearest.to_members), (others, nearest.to_others)):
        own, _ = NearestNeighbors(n_neighbors=1).fit(part.flatten(1)).kneighbors(images.flatten(1))
        assert median == pytest.approx(np.median(own), rel=1e-5)


def test_chance_is_the_spread_over_all_splits():
    """Brute force: every way to call 4 of 8 images members. Most synthetic images crowd around one
    of them, so a binomial interval would be too narrow."""
    real = torch.randn(8, 5)
    images = torch.cat([real[0] + 0.1 * torch.randn(20, 5), torch.randn(20, 5)])
    splits = [
        torch.isin(torch.arange(8), torch.tensor(chosen))
        for chosen in itertools.combinations(range(8), 4)
    ]
    results = [nearest_members(images, real[inside], real[~inside]) for inside in splits]
    shares, chance = np.array([each.share for each in results]), results[0].chance
    assert shares.mean() == pytest.approx(50)
    assert shares.std() == pytest.approx(chance) and chance > 2 * 100 * (0.25 / 40) ** 0.5


def test_ties_are_shared_and_the_order_of_groups_does_not_matter():
    images, real = torch.rand(20, 6), torch.rand(5, 6)
    assert nearest_members(images, real, real).share == pytest.approx(50)
    members, others = torch.rand(2, 30, 6)
    one, two = nearest_members(images, members, others), nearest_members(images, others, members)
    assert one.share == pytest.approx(100 - two.share) and one.chance == pytest.approx(two.chance)
    assert (one.to_members, one.to_others) == (two.to_others, two.to_members)


def test_scores_do_not_depend_on_the_order_of_images(task):
    model, data = SmallVGG("8 M 16", 4), task.id.train
    inside, order = halves(len(data), 6, seed=0), torch.randperm(len(data))
    shadows = torch.stack(
        [scaled_confidence(SmallVGG("8 M 16", 4, seed=k), data) for k in range(6)]
    )
    again = scaled_confidence(model, data[order], batch_size=50)
    confidence = scaled_confidence(model, data)
    torch.testing.assert_close(again, confidence[order], atol=1e-5, rtol=1e-5)
    ratio = lira(standardised(confidence), standardised(shadows), inside)
    shuffled = lira(
        standardised(confidence[order]), standardised(shadows[:, order]), inside[:, order]
    )
    torch.testing.assert_close(shuffled, ratio[order])
    one, two = attack_report(shuffled, inside[0][order]), attack_report(ratio, inside[0])
    assert [one["auroc"], *one["curve"]] == pytest.approx([two["auroc"], *two["curve"]])


def test_confidence_does_not_saturate():
    class Sure(nn.Module):
        def forward(self, images):
            first = torch.tensor([1.0, 0, 0])
            return (200 + images.mean((1, 2, 3)))[:, None] * first

    images = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 8, 8)
    confidence = scaled_confidence(Sure(), ImageSet(images, torch.zeros(5, dtype=torch.int64)))
    assert (confidence.diff() > 0.2).all(), "the loss of all of them is 0 in 32 bits"


def noise(n, classes=4):
    """Random images with random labels: there is nothing to learn but the images themselves."""
    return ImageSet(torch.rand(n, 3, 8, 8), torch.randint(classes, (n,)))


def dense(seed):
    """A network that can learn noise by heart."""
    with seeded(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 4))


def test_a_memorising_network_is_found_out_and_a_random_one_is_not(task):
    data, inside = noise(120), halves(120, 10, seed=0)
    whole = replace(task, id=replace(task.id, train=data))
    config = TeacherConfig(epochs=40, batch_size=20, lr=1e-2)
    models = [
        train_sl(part_of(whole, half), dense(k), config, seed=k) for k, half in enumerate(inside)
    ]
    confidence = torch.stack([scaled_confidence(model, data) for model in models])
    assert (confidence[0] > 0)[inside[0]].float().mean() > 0.9, "the noise is learnt by heart"
    shadows = standardised(confidence[2:])
    by_loss = attack_report(confidence[0], inside[0])
    by_ratio = attack_report(lira(standardised(confidence[0]), shadows, inside[2:]), inside[0])
    assert by_loss["auroc"] > 80 and by_ratio["auroc"] > 90 and by_ratio["tpr"] > 10
    fresh = scaled_confidence(dense(100), data)
    for scores in (fresh, lira(standardised(fresh), shadows, inside[2:])):
        assert abs(attack_report(scores, inside[0])["auroc"] - 50) < 3 * chance_std(60, 60)


def test_a_generator_that_copies_is_found_out_and_noise_is_not(task):
    data = task.id.train
    inside = halves(len(data), 2, seed=0)[0]
    members, others = data.images[inside], data.images[~inside]
    copies = members[torch.randint(len(members), (200,))] + 0.02 * torch.randn(200, 3, 8, 8)
    copies = copies.clamp(0, 1)
    teacher = SmallVGG("8 M 16", 4)
    for space in (lambda x: x, lambda x: features_of(teacher, x)):
        leak, none = (
            nearest_members(space(images), space(members), space(others))
            for images in (copies, torch.rand(200, 3, 8, 8))
        )
        assert leak.share - 50 > 5 * leak.chance and leak.to_members < leak.to_others
        assert abs(none.share - 50) < 3 * none.chance


@pytest.mark.parametrize("name", PRESETS["debug"].tasks)
def test_no_half_sees_an_image_of_the_other(name):
    task = load_task(name, 8)
    one, two = (part_of(task, inside) for inside in halves(len(task.id.train), 2, seed=3))
    for domain in ("id", "ood"):
        first, second = (getattr(part, domain).train.images.flatten(1) for part in (one, two))
        assert torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").min() > 0
        assert len(first) + len(second) == 128
    assert torch.equal(one.id.test.images, task.id.test.images)


def test_ood_images_of_another_data_set_stay(task):
    few = replace(task.ood, train=ImageSet(task.ood.train.images[:50], task.ood.train.labels[:50]))
    half = part_of(replace(task, ood=few), halves(128, 2, seed=0)[0])
    assert (len(half.id.train), len(half.ood.train)) == (64, 50)


def test_halves_are_balanced_and_do_not_depend_on_how_many_are_asked_for():
    few, many = halves(101, 4, seed=5), halves(101, 16, seed=5)
    assert (
        torch.equal(many[:4], few)
        and (many.sum(0) == 8).all()
        and not torch.equal(few, halves(101, 4, seed=6))
    )
    assert sorted(few.sum(1).unique().tolist()) == [50, 51]


@pytest.mark.parametrize(
    "wrong, error, text",
    [
        (lambda: halves(1, 2, 0), ConfigError, "halves: n must be at least 2, got 1"),
        (lambda: halves(9, 5, 0), ValueError, "count must be at least 2, a multiple of 2, got 5"),
        (
            lambda: roc(torch.tensor([1.0, float("nan")]), torch.tensor([True, False])),
            ValueError,
            "scores must be finite",
        ),
        (lambda: roc(torch.rand(3), torch.zeros(3, dtype=torch.bool)), ValueError, "got 0 and 3"),
        (
            lambda: features_of(nn.Flatten(), torch.rand(2, 3, 8, 8)),
            ValueError,
            "ends in a linear layer",
        ),
        (
            lambda: nearest_members(torch.rand(3, 4), torch.rand(3, 5), torch.rand(3, 5)),
            ValueError,
            r"\[3, 4\], \[3, 5\]",
        ),
        (lambda: RealImages(torch.rand(2, 3, 8, 8) + 1), ValueError, r"must lie in \[0,1\]"),
    ],
)
def test_wrong_use_is_named(wrong, error, text):
    with pytest.raises(error, match=text):
        wrong()


def test_real_images_come_with_the_teachers_answers():
    images, teacher = torch.rand(10, 3, 8, 8), SmallVGG("8", 4).eval()
    batch = RealImages(images, 6).update(teacher, None)
    assert len(batch) == 6 and all(
        (images == image).flatten(1).all(1).any() for image in batch.images
    )
    torch.testing.assert_close(batch.logits, teacher(batch.images).detach())
    assert not (batch.decoy.any() or batch.score.any() or batch.logits.requires_grad)
    assert F.mse_loss(RealImages(images).sample(500).mean(0), images.mean(0)) < 1e-3
