"""CMI and NAYER: their terms against plain formulas, and both in the loop with every objective."""

import math
import warnings

import pytest
import torch
from torch import nn

from atesc.inside.errors import ConfigError
from atesc.method.distill import distill
from atesc.method.objectives import ATEsc, CalibratedKD, DecoyEscape, PlainKD
from atesc.method.run import DistillConfig
from atesc.synthesis.cmi import CMI, CMIConfig, Contrast, contrastive_loss, reinitialise
from atesc.synthesis.dfq import DFQ, DFQConfig
from atesc.synthesis.generator import DCGANGenerator
from atesc.synthesis.inversion import Inversion, agreement
from atesc.synthesis.losses import batchnorm_loss, kl_divergence
from atesc.synthesis.nayer import NAYER, NAYERConfig, NoisyGenerator, orthogonal_embedding
from atesc.synthesis.views import random_view
from atesc.teachers.networks import SmallVGG
from atesc.teachers.observation import Passes, frozen, observe
from atesc.teachers.training import TeacherConfig, train_sl

STEPS, SYNTHETIC, ITERATIONS = 4, 24, 3


def small_generator():
    return DCGANGenerator(size=8, latent_dim=16, width=8)


def make_cmi(**changes):
    return CMI(
        small_generator(),
        CMIConfig(**{"steps": STEPS, "batch_size": SYNTHETIC, "bank": 32, **changes}),
    )


def make_nayer(**changes):
    config = NAYERConfig(**{"steps": STEPS, "batch_size": SYNTHETIC, **changes})
    return NAYER(NoisyGenerator(small_generator(), orthogonal_embedding(4, 16)), config)


BOTH = pytest.mark.parametrize("make", [make_cmi, make_nayer])


class Pooled(nn.Module):
    """A teacher without BatchNorm and without a linear head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.conv(images).mean((2, 3))


class Flat:
    """Decoys of one colour, whose loss is the brightness that they are shown with."""

    def __init__(self, n):
        self.n, self.colour = n, torch.full((3, 1, 1), 0.5, requires_grad=True)
        self.optimizer = torch.optim.SGD([self.colour], lr=0.1)

    def draw(self):
        return self.colour.expand(self.n, 3, 8, 8)

    def loss(self, student, images, seen):
        assert len(images) == len(seen.logits) == SYNTHETIC + self.n
        return images[SYNTHETIC:].mean()


class Counter:
    """A judge that counts how often it is asked, and may bring decoys."""

    def __init__(self, decoys=None):
        self.decoys, self.scored = decoys, 0

    def score(self, teacher, images, seen):
        assert images.requires_grad and seen.logits.requires_grad, "the graph is alive"
        self.scored += 1
        return torch.arange(len(images)).float()


@BOTH
@pytest.mark.parametrize("objective", [PlainKD, CalibratedKD, ATEsc, DecoyEscape])
def test_in_the_loop(make, objective, teachers):
    def run(seed):
        config = DistillConfig(student_steps=2, batch_size=16)
        return distill(
            teachers.ntl,
            SmallVGG("8 M 8", 4, seed=1),
            synthesizer=make(),
            objective=objective(),
            iterations=ITERATIONS,
            seed=seed,
            config=config,
        )

    def weights(result):
        return torch.cat([p.detach().flatten() for p in result.student.parameters()])

    before = {name: value.clone() for name, value in teachers.ntl.state_dict().items()}
    first = run(seed=0)
    assert torch.equal(weights(first), weights(run(seed=0)))
    assert not torch.equal(weights(first), weights(run(seed=1)))
    assert all(
        torch.equal(value, before[name]) for name, value in teachers.ntl.state_dict().items()
    )
    assert all(p.requires_grad for p in teachers.ntl.parameters())


@pytest.mark.parametrize("make, views", [(make_cmi, 2), (make_nayer, 1)])
@pytest.mark.parametrize("objective", [PlainKD, CalibratedKD])
def test_passes_through_the_teacher(make, views, objective, teachers):
    config = DistillConfig(student_steps=1, batch_size=16)
    run = distill(
        teachers.ntl,
        SmallVGG("8 M 8", 4),
        synthesizer=make(),
        objective=objective(),
        iterations=1,
        config=config,
    )
    final = 0 if objective is PlainKD else 1  # the images of the round are scored, too
    # Gradients are counted at the logits; those of CMI's second view enter at the features.
    assert run.passes == Passes(
        forward=SYNTHETIC * (views * STEPS + 1), backward=SYNTHETIC * (STEPS + final)
    )


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrastive_loss(temperature):
    anchors, keys = torch.randn(6, 3), torch.randn(6, 3)
    a, k = anchors.tolist(), keys.tolist()
    for i, value in enumerate(contrastive_loss(anchors, keys, temperature).tolist()):
        similar = [math.exp(sum(x * y for x, y in zip(a[i], k[j])) / temperature) for j in range(6)]
        assert value == pytest.approx(-math.log(similar[i] / sum(similar)), abs=1e-4)


def test_contrast_with_a_bank():
    """Current images and remembered ones, each against all; gradients go through anchors only."""
    contrast = Contrast(torch.zeros(1, 5), head_dim=3, capacity=4, temperature=0.5, lr=1e-3)
    anchors, keys, old = (
        torch.randn(3, 5, requires_grad=True),
        torch.randn(3, 5, requires_grad=True),
        torch.randn(6, 2, 5),
    )
    contrast.remember(old[:, 0], old[:, 1])

    def unit(rows):
        return [(v / v.norm()).tolist() for v in contrast.head(rows).detach()]

    a, k = unit(torch.cat([anchors, old[2:, 0]])), unit(torch.cat([keys, old[2:, 1]]))
    losses = []
    for i in range(7):
        similar = [math.exp(sum(x * y for x, y in zip(a[i], row)) / 0.5) for row in k]
        losses.append(-math.log(similar[i] / sum(similar)))
    loss = contrast.loss(anchors, keys)
    assert loss.item() == pytest.approx(sum(losses[:3]) / 3 + sum(losses[3:]) / 4, abs=1e-4)
    loss.backward()
    assert anchors.grad.abs().sum() > 0 and (keys.grad is None or not keys.grad.any())


def test_inversion_loss_by_hand(teachers):
    """Adversarial where both name the same class; decoys in the BatchNorm loss and their own."""
    images, targets = (
        torch.rand(SYNTHETIC, 3, 8, 8, requires_grad=True),
        torch.randint(4, (SYNTHETIC,)),
    )
    student, decoys = SmallVGG("8 M 8", 4, seed=1).eval(), Flat(5)
    config = CMIConfig(bn=2.0, oh=3.0, adv=0.5)
    with frozen(teachers.sl) as teacher:
        seen = observe(teacher, images)
        t, s = seen.logits.detach(), student(images).detach()
        same = [i for i in range(SYNTHETIC) if t[i].argmax() == s[i].argmax()]
        assert 0 < len(same) < SYNTHETIC
        assert agreement(t, s).nonzero()[:, 0].tolist() == same
        rest = (
            2.0 * batchnorm_loss(seen.statistics).item()
            - 3.0 * sum(t.log_softmax(1)[i, y] for i, y in enumerate(targets)).item() / SYNTHETIC
        )
        gain = sum(kl_divergence(t, s)[i] for i in same).item() / SYNTHETIC
        inversion = Inversion(small_generator(), config)
        inversion.targets = targets
        assert inversion.inversion_loss(student, images, seen, None).item() == pytest.approx(
            rest - 0.5 * gain, rel=1e-4
        )
        both = torch.cat([images, decoys.draw()])
        joint = observe(teacher, both)
        change = 2.0 * (
            batchnorm_loss(joint.statistics).item() - batchnorm_loss(seen.statistics).item()
        )
        loss = inversion.inversion_loss(student, both, joint, decoys)
        assert loss.item() == pytest.approx(rest + change - 0.5 * gain + 0.5, rel=1e-4)


def make_dfq():
    return DFQ(small_generator(), DFQConfig(batch_size=SYNTHETIC))


@pytest.mark.parametrize("make, steps", [(make_cmi, STEPS), (make_nayer, STEPS), (make_dfq, 1)])
@pytest.mark.parametrize("n", [0, 5])
def test_decoys_go_along(make, steps, n, teachers):
    """They are trained at every step, come after the images, marked, and are scored once."""
    student, judge, synthesizer = SmallVGG("8 M 8", 4), Counter(Flat(n) if n else None), make()
    with frozen(teachers.sl) as teacher:
        for _ in range(2):
            batch = synthesizer.update(teacher, student, judge)
        assert torch.allclose(batch.logits, teacher(batch.images), atol=1e-5)
    assert judge.scored == 2
    assert batch.score.tolist() == list(range(SYNTHETIC + n))
    assert batch.decoy.tolist() == [False] * SYNTHETIC + [True] * n
    assert not batch.images.requires_grad and not batch.logits.requires_grad
    if n:
        assert (
            batch.images[SYNTHETIC:].flatten(2).std(2).max()
            < 1e-6
            < batch.images[:SYNTHETIC].flatten(2).std(2).min()
        )
        assert judge.decoys.colour.max() < 0.5, "brightness was made smaller"


@pytest.mark.parametrize("fresh", [True, "always"])
def test_cmi_keeps_its_generator_beside_decoys_unless_told_otherwise(fresh, teachers):
    cmi = make_cmi(lr=0.0, fresh=fresh)
    before = cmi.generator.spread.weight.detach().clone()
    torch.manual_seed(1)  # not the seed that the first generator is made with
    with frozen(teachers.sl) as teacher:
        cmi.update(teacher, SmallVGG("8 M 8", 4), Counter(Flat(5)))
        assert torch.equal(cmi.generator.spread.weight, before) == (fresh is True)
        cmi.update(teacher, SmallVGG("8 M 8", 4), Counter())
        assert not torch.equal(cmi.generator.spread.weight, before)


@pytest.mark.parametrize("make", [make_cmi, make_nayer, make_dfq])
def test_other_statistics_in_place_of_the_teachers(make, teachers):
    """Running ones given by hand change nothing; those of white images make other images."""

    def images_of(statistics):
        synthesizer = make()
        synthesizer.target_statistics = statistics
        torch.manual_seed(3)
        with frozen(teachers.sl) as teacher:
            for _ in range(2):
                batch = synthesizer.update(teacher, SmallVGG("8 M 8", 4))
        return batch.images

    with frozen(teachers.sl) as teacher, torch.no_grad():
        seen = observe(teacher, torch.ones(4, 3, 8, 8)).statistics
    own = [(layer.running_mean.clone(), layer.running_var.clone()) for _, _, layer in seen]
    white = [(mean, variance) for mean, variance, _ in seen]
    assert torch.equal(images_of(own), images_of(None))
    assert not torch.equal(images_of(white), images_of(None))
    with pytest.raises(ValueError):
        images_of(white[:1])  # one pair a layer


@BOTH
def test_class_targets_steer_the_teacher(make, task):
    synthesizer, student = make(steps=40, pad=0), SmallVGG("8 M 8", 4)
    with frozen(train_sl(task, SmallVGG("8 M 16", 4), TeacherConfig(epochs=20))) as teacher:
        hits = [
            (synthesizer.update(teacher, student).logits.argmax(1) == synthesizer.targets)
            .float()
            .mean()
            .item()
            for _ in range(4)
        ]
    assert sum(hits) / 4 > 0.7, hits  # chance is 0.25; CMI's contrast pulls the other way
    assert set(synthesizer.targets.tolist()) == {0, 1, 2, 3}


def test_the_noisy_layer_is_new_and_the_rest_stays(teachers):
    nayer, student = make_nayer(lr=0.0), SmallVGG("8 M 8", 4)
    generator = nayer.generator
    before = {
        name: p.detach().clone()
        for name, p in generator.named_parameters()
        if name not in ("weight", "bias")
    }
    table, layers = generator.embedding.clone(), []
    with frozen(teachers.sl) as teacher:
        for _ in range(3):
            nayer.update(teacher, student)
            layers.append(generator.weight.detach().clone())
    assert not torch.equal(layers[0], layers[1]) and not torch.equal(layers[1], layers[2])
    assert layers[0].std().item() == pytest.approx(1, abs=0.1) and not generator.bias.any()
    assert torch.equal(generator.embedding, table)
    assert all(
        torch.equal(p, before[name]) for name, p in generator.named_parameters() if name in before
    )
    trained = make_nayer()
    before = trained.generator.generator.spread.weight.detach().clone()
    with frozen(teachers.sl) as teacher:
        trained.update(teacher, student)
    assert trained.generator.bias.any() and not torch.equal(
        trained.generator.generator.spread.weight, before
    )


def test_images_of_a_class_differ_within_a_batch():
    generator = NoisyGenerator(small_generator(), orthogonal_embedding(4, 16))
    generator.renew(10)
    with torch.no_grad():
        images = generator(None, torch.tensor([1, 1, 0, 1, 0, 2, 3, 2, 3, 2]))
    distances = (images[:, None] - images[None]).abs().amax((2, 3, 4)) + torch.eye(10)
    assert distances.min() > 1e-3


def test_cmi_starts_from_a_new_generator(teachers):
    torch.manual_seed(1)  # not the seed that the first generator is made with
    student = SmallVGG("8 M 8", 4)
    with frozen(teachers.sl) as teacher:
        for fresh in (True, False):
            cmi = make_cmi(lr=0.0, fresh=fresh)
            before = cmi.generator.spread.weight.detach().clone()
            cmi.update(teacher, student)
            assert torch.equal(cmi.generator.spread.weight, before) != fresh
    net = SmallVGG("8 M 8", 4)
    before = net.classifier.weight.detach().clone()
    reinitialise(net)
    assert not torch.equal(net.classifier.weight, before)
    assert net.classifier.weight.std().item() == pytest.approx(before.std().item(), rel=0.3)


def test_views_of_an_image():
    images = torch.rand(5, 3, 6, 8)
    assert torch.allclose(random_view(images), images, atol=1e-5)
    shifted = random_view(images, pad=2)
    for image, view in zip(images, shifted):
        padded = nn.functional.pad(image, (2, 2, 2, 2))
        windows = [padded[:, i : i + 6, j : j + 8] for i in range(5) for j in range(5)]
        assert min((view - window).abs().max().item() for window in windows) < 1e-5
    many = images.repeat(8, 1, 1, 1)
    flipped = random_view(many, flip=True)
    plain, mirrored = (
        (flipped - target).abs().amax((1, 2, 3)) < 1e-5 for target in (many, many.flip(3))
    )
    assert (plain ^ mirrored).all() and plain.any() and mirrored.any()


@pytest.mark.parametrize("make, terms", [(make_cmi, ["bn", "cr"]), (make_nayer, ["bn"])])
def test_a_teacher_that_lacks_something(make, terms):
    synthesizer, student = make(), SmallVGG("8 M 8", 4)
    with warnings.catch_warnings(record=True) as caught, frozen(Pooled()) as teacher:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.isfinite(synthesizer.update(teacher, student).images).all()
    assert [str(w.message).split("'")[1] for w in caught] == terms


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CMIConfig(cr=-0.1), "CMIConfig.cr must be at least 0"),
        (lambda: CMIConfig(steps=0), "CMIConfig.steps must be at least 1"),
        (lambda: CMIConfig(temperature=0.0), "CMIConfig.temperature must be at least 0.001"),
        (lambda: CMIConfig(scale=1.5), "CMIConfig.scale must be 0.01 to 1"),
        (lambda: CMIConfig(bank=64.0), "CMIConfig.bank takes int"),
        (lambda: CMIConfig(fresh="never"), "unknown CMIConfig.fresh 'never'; known: always"),
        (lambda: CMIConfig(fresh=1), "CMIConfig.fresh takes bool"),
        (lambda: NAYERConfig(adv=-1.0), "NAYERConfig.adv must be at least 0"),
        (lambda: NAYERConfig(batch_size=1), "NAYERConfig.batch_size must be at least 2"),
        (lambda: NAYERConfig(pad=0.5), "NAYERConfig.pad takes int"),
        (lambda: NAYER(DCGANGenerator(size=8)), "NAYER takes a NoisyGenerator, got DCGANGenerator"),
        (
            lambda: NoisyGenerator(DCGANGenerator(size=8), torch.zeros(1, 3)),
            "embedding must be a finite matrix",
        ),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_embeddings_of_other_classes():
    message = "the generator makes images of 4 classes, the teacher has 7"
    with pytest.raises(ConfigError, match=message):
        make_nayer().update(SmallVGG("8 M 8", 7), SmallVGG("8 M 8", 7))
