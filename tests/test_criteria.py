"""AUROC against its definition, and choices that are made on the development task alone."""

import pytest
import torch

from atesc.inside.runtime import as_config
from atesc.method.rivals import FeatureSplitter, RandomSplitter
from atesc.method.splitter import PGDSplitter, RadiusSplitter
from atesc.study.criteria import (
    CRITERIA,
    auroc,
    best_settings,
    candidates,
    measure_scores,
    scores_after,
    scoring,
    splitter_of,
)
from atesc.study.query import GAP, query

EVERY = [splitter for some in candidates() for splitter in some]


def student(splitter, iacc, mislead=50.0, seed=0, method="ckd"):
    objective = {"splitter": as_config(splitter)} if splitter else {}
    return {
        "task": "debug->debug_ood",
        "kind": "close-set",
        "teacher": "ntl",
        "method": method,
        "seed": seed,
        "iacc": iacc,
        "mislead": mislead,
        "seconds": 1.0,
        "config": {"objective": objective},
        "curve": [{"fragile_share": 1.0}],
        "scores": [],
    }


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    scores, ood = torch.randint(0, 6, (40,)).float(), torch.rand(40) < 0.4
    scores[0] = float("inf")
    above = (scores[ood][:, None] > scores[~ood]).double() + 0.5 * (
        scores[ood][:, None] == scores[~ood]
    ).double()
    assert auroc(scores, ood) == pytest.approx(above.mean().item())
    assert auroc(-scores, ood) == pytest.approx(1 - auroc(scores, ood))


@pytest.mark.parametrize("splitter", EVERY, ids=lambda x: type(x).__name__)
def test_every_candidate_scores_both_teachers(splitter, teachers):
    images, seen = torch.rand(20, 3, 8, 8), torch.rand(40, 3, 8, 8)
    for teacher in (teachers.sl, teachers.ntl):
        scores = scores_after(splitter, teacher, images, seen)
        assert scores.shape == (20,) and not scores.isnan().any() and not scores.requires_grad


def test_scores_of_real_images_do_not_teach_the_splitter(teachers):
    """The same image has the same score, whichever images it is scored with."""
    images, seen = torch.rand(30, 3, 8, 8), torch.rand(64, 3, 8, 8)
    alone = scores_after(FeatureSplitter(), teachers.ntl, images[:10], seen)
    assert torch.allclose(
        scores_after(FeatureSplitter(), teachers.ntl, images, seen)[:10], alone, atol=1e-5
    )


def test_scores_that_differ_in_the_threshold_are_measured_once(teachers):
    synthetic, ood = torch.rand(32, 3, 8, 8), torch.arange(32) % 2 == 0
    measured = measure_scores(EVERY, teachers.ntl, teachers.task, synthetic, ood, most=20)
    assert len(measured) == len({scoring(as_config(splitter)) for splitter in EVERY}) < len(EVERY)
    assert all(0 <= score[group] <= 1 for score in measured for group in ("real", "synthetic"))
    signs = {score["scoring"]: score for score in measured if "FeatureSplitter" in score["scoring"]}
    near, far = (signs[scoring(as_config(FeatureSplitter(near=near)))] for near in (True, False))
    assert near["real"] == pytest.approx(1 - far["real"])


def test_a_setting_is_chosen_by_its_mean_over_seeds():
    tried = [student(splitter, 50.0) for splitter in EVERY if not isinstance(splitter, PGDSplitter)]
    for eps, iaccs in ((2, (90.0, 60.0)), (4, (80.0, 80.0)), (8, (99.0, 20.0))):
        tried += [
            student(PGDSplitter(eps / 255), iacc, seed=seed) for seed, iacc in enumerate(iaccs)
        ]
    chosen = best_settings(tried)
    assert chosen[1] == PGDSplitter(4 / 255)
    assert chosen[0] == candidates()[0][0], "of equals the first"
    low = [
        student(PGDSplitter(2 / 255), 60.0, mislead=0.0),
        *(r for r in tried if splitter_of(r)["type"] != "PGDSplitter"),
    ]
    low += [student(PGDSplitter(eps / 255), 99.0, mislead=100.0) for eps in (4, 8)]
    assert best_settings(low)[1] == PGDSplitter(2 / 255), "IAcc is not all"


def test_a_table_with_gaps():
    records = [
        student(RadiusSplitter(2.0), 80.0),
        student(RandomSplitter(RadiusSplitter(2.0)), 90.0),
        student(None, 70.0, method="plain"),
    ]
    rows = {"criterion": lambda record: (splitter_of(record) or {"type": "none"})["type"]}
    shown = query(records, rows, levels={"criterion": ["none", *CRITERIA]})
    assert list(shown.index) == ["none", *CRITERIA]
    assert shown.loc["RandomSplitter", "IAcc %"] == "90.0"
    assert shown.loc["PGDSplitter"].tolist() == [GAP, GAP, GAP] and shown.loc["none", "n"] == 1
