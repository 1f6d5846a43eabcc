"""Decoys: the line-up against a loop over classes, what they leave alone, and when they join."""

import pytest
import torch
from test_baselines import Pooled

from atesc.inside.errors import ConfigError
from atesc.method.decoys import DecoyConfig, Decoys, separation, side_of_border, trap_belief
from atesc.method.objectives import DecoyEscape
from atesc.method.splitter import RadiusSplitter
from atesc.method.traps import LineUp, LineUpConfig, find_traps
from atesc.synthesis.batch import Batch
from atesc.teachers.mmd import mmd
from atesc.teachers.networks import SmallVGG
from atesc.teachers.observation import frozen, observe

IMAGES = torch.rand(2, 3, 8, 8)


def decoys_of(traps, **config):
    line_up = LineUp(4, IMAGES)
    line_up.ratio = torch.tensor([9.0 if k in traps else 1.0 for k in range(4)])
    return Decoys(line_up, DecoyConfig(batch_size=10, **config))


def test_the_ratio_is_the_largest_of_class_medians(teachers, monkeypatch):
    seen = []

    def scored(self, teacher, images, logits):
        seen.append(torch.rand(len(images)))
        return seen[-1]

    monkeypatch.setattr(RadiusSplitter, "score", scored)
    line_up, largest = (
        LineUp(4, IMAGES, LineUpConfig(generators=3, steps=9, per_class=3)),
        [0.0] * 4,
    )
    with frozen(teachers.ntl) as teacher:
        line_up.run(teacher)
    assert len(seen) == 3 * LineUp.LAST
    for mine in (seen[i : i + LineUp.LAST] for i in range(0, len(seen), LineUp.LAST)):
        medians = [
            sorted(x for scores in mine for i, x in enumerate(scores.tolist()) if i % 4 == k)[
                (3 * LineUp.LAST - 1) // 2
            ]
            for k in range(4)
        ]
        typical = sorted(medians)[1]  # torch's median is the lower one
        largest = [max(old, m / typical) for old, m in zip(largest, medians)]
    assert line_up.ratio.tolist() == pytest.approx(largest)


def test_a_trap_that_one_generator_shows_counts_and_gives_the_means(teachers, monkeypatch):
    calls = []

    def scored(self, teacher, images, logits):
        calls.append(torch.ones(len(images)))
        if len(calls) > LineUp.LAST:
            calls[-1][2::4] = 9
        return calls[-1]

    monkeypatch.setattr(RadiusSplitter, "score", scored)
    line_up = LineUp(4, IMAGES, LineUpConfig(steps=60))
    with frozen(teachers.sl) as teacher:
        assert line_up.run(teacher).tolist() == [False, False, True, False]
        for generator in line_up.parts:
            where = [
                side_of_border(
                    observe(teacher, line_up.make(generator, torch.full((32,), k))).features,
                    line_up.means,
                ).mean()
                for k in range(4)
            ]
            assert where[2] < 0 < min(where[k] for k in (0, 1, 3))
    assert Decoys(LineUp(4, IMAGES)).depth(observe(teacher, IMAGES)).tolist() == [0, 0], (
        "no trap, no sides"
    )


def test_the_line_up_learns_the_classes(teachers):
    torch.manual_seed(0)
    line_up, labels = LineUp(4, IMAGES, LineUpConfig(steps=150)), torch.arange(4).repeat(16)
    with frozen(teachers.sl) as teacher:
        line_up.run(teacher)
        hits = [
            (teacher(line_up.make(generator, labels)).argmax(1) == labels).float().mean()
            for generator in line_up.parts
        ]
    assert len(hits) == 2 and min(hits) > 0.8, hits  # chance is 0.25


@pytest.mark.parametrize(
    "ratio, traps",
    [
        ([1, 2.5, 1, 1], []),
        ([1, 2.6, 1, 1], [1]),
        ([1, 2.6, 9, 1], [2]),
        ([5, 2.6, 9, 4.4], [0, 2]),
        ([2.6, 5.2, 1, 1], [0, 1]),
    ],
)
def test_traps_are_robust_by_themselves_and_beside_the_most_robust(ratio, traps):
    line_up = LineUp(4, IMAGES)
    line_up.ratio = torch.tensor(ratio)
    assert line_up.traps.nonzero()[:, 0].tolist() == traps


def test_decoys_are_of_trap_classes_only():
    decoys = decoys_of({1, 3})
    counts = torch.zeros(4)
    for _ in range(40):
        images = decoys.draw()
        counts += decoys.labels.bincount(minlength=4)
    assert (
        images.shape == (10, 3, 8, 8)
        and 0 <= images.min()
        and images.max() <= 1
        and images.requires_grad
    )
    assert counts[0] == counts[2] == 0 and counts[1] == pytest.approx(200, abs=50)


def test_the_loss_leaves_the_student_alone(teachers):
    decoys, student = decoys_of({2}), SmallVGG("8 M 8", 4)
    student.train()
    own = torch.rand(6, 3, 8, 8, requires_grad=True)
    with frozen(teachers.sl) as teacher:
        images = torch.cat([own, decoys.draw()])
        seen = observe(teacher, images)
        decoys.means = torch.stack([seen.features[:6].mean(0), seen.features[6:].mean(0)]).detach()
        decoys.loss(student, images, seen).backward()
    assert student.training and all(
        p.grad is None and p.requires_grad for p in student.parameters()
    )
    assert own.grad.abs().sum() > 0, "the distance moves the synthesizer's own images, too"
    assert all(p.grad is not None for p in decoys.line_up.parts.parameters())


def test_each_is_pushed_to_its_side_and_means_follow(teachers, monkeypatch):
    monkeypatch.setattr("atesc.method.decoys.separation", lambda images, decoys: 0.0)
    decoys, student = decoys_of({2}, belief_weight=0.0), SmallVGG("8 M 8", 4)
    with frozen(teachers.sl) as teacher:
        own = torch.rand(64, 3, 8, 8, requires_grad=True)
        images = torch.cat([own, decoys.draw()])
        seen = observe(teacher, images)
        free = seen.logits[:64].argmax(1) != 2
        assert free.any()
        before = decoys.means = torch.stack(
            [seen.features[:64][free].mean(0) + 5, seen.features[64:].mean(0)]
        ).detach()
        decoys.loss(student, images, seen).backward()
        step = 1e-2 / own.grad.flatten(1).norm(dim=1).max()
        with torch.no_grad():
            after = observe(teacher, own - step * own.grad)
        moved = side_of_border(after.features, decoys.means) - side_of_border(
            seen.features[:64], decoys.means
        )
    assert moved.mean() > 0
    now = torch.stack([seen.features[:64][free].mean(0), seen.features[64:].mean(0)])
    assert torch.allclose(decoys.means, 0.95 * before + 0.05 * now, atol=1e-4)


def test_sixteen_bit_features_leave_the_means_as_they_are(teachers):
    decoys, student = decoys_of({2}), SmallVGG("8 M 8", 4)
    with frozen(teachers.sl) as teacher, torch.autocast("cpu", torch.bfloat16):
        images = torch.cat([torch.rand(16, 3, 8, 8), decoys.draw()])
        seen = observe(teacher, images)
        decoys.means = (
            torch.stack([seen.features[:16].mean(0), seen.features[16:].mean(0)]).detach().float()
        )
        assert (
            seen.features.dtype == torch.bfloat16 and decoys.loss(student, images, seen).isfinite()
        )
        assert decoys.means.dtype == torch.float32 and decoys.depth(seen).isfinite().all()


def test_what_is_inside_is_not_distilled():
    objective = DecoyEscape()
    objective.decoys, objective.traps = "some", torch.tensor([False, True, False, False])
    student, logits = SmallVGG("8 M 8", 4).eval(), torch.randn(6, 4)
    images, inside, decoy = (
        torch.rand(6, 3, 8, 8),
        torch.tensor([0.0, -0.2, 0.1, 0.3, 0.9, 0.9]),
        torch.arange(6) > 3,
    )
    batch = Batch(images, logits, inside, decoy)
    changed = Batch(
        images,
        torch.where((torch.arange(6) == 2)[:, None], torch.randn(6, 4), logits),
        inside,
        decoy,
    )
    assert objective.loss(student, batch) == objective.loss(student, changed)
    own = batch.select(slice(0, 2))
    alone = torch.nn.functional.kl_div(
        student(own.images).log_softmax(1),
        own.logits.log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    objective.weight = 0.0
    assert objective.loss(student, batch).item() == pytest.approx(alone.item(), rel=1e-5)


def test_a_teacher_without_features_or_statistics_is_served():
    decoys, student = decoys_of({0}), SmallVGG("8 M 8", 4)
    with frozen(Pooled()) as teacher:
        images = torch.cat([IMAGES, decoys.draw()])
        assert decoys.loss(student, images, observe(teacher, images)).isfinite()
        with pytest.warns(UserWarning, match="no BatchNorm layer"):
            assert not LineUp(4, IMAGES).run(teacher).any()


def test_distance_and_belief_are_bounded():
    a = torch.randn(20, 6)
    assert separation(a, a.clone()).item() == pytest.approx(0, abs=1e-6)
    assert separation(a, torch.randn(30, 6) + 2).item() == pytest.approx(
        0.1 * mmd(a, torch.randn(30, 6) + 2).item(), rel=0.2
    )
    assert separation(a, a + 1e6) <= 1
    sure = torch.tensor([[1e4, 0.0, 0.0]])
    assert (
        trap_belief(sure, torch.tensor([0])).item() == 0
        and trap_belief(sure, torch.tensor([1, 2])).item() == -5
    )


@pytest.mark.parametrize("share, joins", [(1.0, False), (0.75, False), (0.5, True), (0.0, True)])
def test_decoys_join_when_the_generator_is_out_of_the_trap(share, joins, teachers):
    objective = DecoyEscape()
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
    "kind, change, message",
    [
        (LineUpConfig, {"ratio_limit": 0.9}, "LineUpConfig.ratio_limit must be at least 1"),
        (LineUpConfig, {"steps": 0}, "LineUpConfig.steps must be at least 1"),
        (LineUpConfig, {"generators": 0}, "LineUpConfig.generators must be at least 1"),
        (LineUpConfig, {"per_class": 2.5}, "LineUpConfig.per_class takes int"),
        (DecoyConfig, {"max_trap_share": 1.5}, "DecoyConfig.max_trap_share must be"),
        (DecoyConfig, {"belief_weight": -0.1}, "DecoyConfig.belief_weight must be at least 0"),
        (DecoyConfig, {"batch_size": 3}, "DecoyConfig.batch_size must be at least 4"),
        (
            DecoyConfig,
            {"line_up": LineUpConfig(generators=1), "batch_size": 1},
            "DecoyConfig.batch_size must be at least 2",
        ),
    ],
)
def test_wrong_settings_are_named(kind, change, message):
    with pytest.raises(ConfigError, match=message):
        kind(**change)


def test_images_that_no_generator_makes():
    with pytest.raises(ConfigError, match="the line-up needs square images, got 8 x 12"):
        LineUp(4, torch.rand(1, 3, 8, 12))
    with pytest.raises(ConfigError, match="multiple of 4"):
        LineUp(4, torch.rand(1, 3, 10, 10))


def test_a_verdict_needs_three_classes_statistics_and_a_clear_ratio(teachers):
    assert find_traps(teachers.sl, 8, config=LineUpConfig(steps=6)).verdict in ("none", "unknown")
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        found = find_traps(teachers.ntl, 8, seed=3)
        assert torch.equal(before, torch.get_rng_state()), "random states come back"
    again = find_traps(teachers.ntl, 8, seed=3)
    assert found == again and set(found.evidence["line-up"]) == set(range(4))
    assert found.verdict in str(found) and all(isinstance(k, int) for k in found.classes)
    two, bare = SmallVGG("8 M 8", 2), SmallVGG("8 M 8", 4, batch_norm=False)
    assert (find_traps(two, 8).verdict, find_traps(two, 8).classes) == ("unknown", [])
    assert "no BatchNorm" in find_traps(bare, 8).reason
    with pytest.raises(ConfigError, match="size must be"):
        find_traps(two, 10)
