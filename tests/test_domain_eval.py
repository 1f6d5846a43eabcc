"""Distances against scipy, and the classifier of domains: what it may see, and whether it sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import eigvals

from atesc.data.domains import ImageSet
from atesc.data.tasks import load_task
from atesc.inside.errors import ConfigError
from atesc.study.domain_eval import (
    DomainEvaluator,
    domain_classifier,
    domain_task,
    evenly,
    frechet_distance,
)
from atesc.study.metrics import accuracy
from atesc.teachers.training import TeacherConfig


@pytest.mark.parametrize(
    "n, m, features", [(60, 40, 5), (12, 30, 20)], ids=["more images", "more features"]
)
def test_the_distance_is_the_textbook_formula(n, m, features):
    rng = np.random.default_rng(0)
    a, b = (
        rng.normal(size=(n, features)),
        rng.normal(size=(m, features)) @ rng.normal(size=(features, features)) + 1,
    )
    c, d = np.cov(a.T), np.cov(b.T)
    overlap = np.sqrt(
        eigvals(c @ d).real.clip(min=0)
    ).sum()  # the trace of a root of C D, which has the eigenvalues of the symmetric product
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c + d) - 2 * overlap
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(
        expected, rel=1e-5
    )


def test_evenly_spaced_images():
    assert evenly(torch.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert evenly(torch.arange(3), 4).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="most must be at least 1"):
        evenly(torch.arange(3), 0)


@pytest.mark.parametrize("name", ["debug->debug_ood", "debug->debug_open", "debug+badnets_square"])
def test_the_classifier_is_trained_on_train_images_only(name):
    task = load_task(name, 8)
    spoilt = [
        replace(d, test=ImageSet(torch.rand_like(d.test.images), d.test.labels))
        for d in (task.id, task.ood)
    ]
    config = TeacherConfig(epochs=1)
    one, two = (
        domain_classifier(t, config=config).state_dict()
        for t in (task, replace(task, id=spoilt[0], ood=spoilt[1]))
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    sides = domain_task(task)
    assert sides.id.train.labels.float().mean() == 0.5, "as many of one domain as of the other"


def test_what_is_measured_adds_up(teachers):
    evaluator = DomainEvaluator(teachers.task, teachers.sl, n=32, config=TeacherConfig(epochs=4))
    images = torch.cat([teachers.task.id.test.images[:20], teachers.task.ood.test.images[:30]])
    point, looks_ood = evaluator.measure(teachers.ntl, images), evaluator.is_ood(images)
    assert sum(point["classes"]) == 50 and sum(point["ood_classes"]) == looks_ood.sum()
    assert all(ood <= whole for ood, whole in zip(point["ood_classes"], point["classes"]))
    assert point["ood"] == pytest.approx(2 * looks_ood.sum().item())
    assert 0 <= point["ood"] <= 100 and min(point["to_id"], point["to_ood"]) >= 0
    real, sides = evaluator.real_images(), domain_task(teachers.task).id.test
    assert (100 - real["id"]["ood"] + real["ood"]["ood"]) / 2 == pytest.approx(
        accuracy(evaluator.classifier, sides), abs=1e-3
    )


def test_images_of_a_domain_are_near_it(teachers):
    evaluator = DomainEvaluator(teachers.task, teachers.sl, n=32, config=TeacherConfig(epochs=1))
    same = evaluator.distances(teachers.task.ood.train.images)
    assert same["to_ood"] == pytest.approx(0, abs=1e-6) and same["to_id"] > 0
