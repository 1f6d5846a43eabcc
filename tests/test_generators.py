"""Generators of both kinds, alone and trained by DFQ."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atesc.inside.errors import ConfigError
from atesc.method.distill import distill
from atesc.method.objectives import ATEsc, DecoyEscape, PlainKD
from atesc.method.watch import DistillWarning
from atesc.synthesis.dfq import DFQ, DFQConfig
from atesc.synthesis.generator import BigGANGenerator, DCGANGenerator, synthesise
from atesc.synthesis.losses import balance, batchnorm_loss, kl_divergence
from atesc.teachers.networks import SmallVGG
from atesc.teachers.observation import frozen, observe

GENERATORS = {
    "dcgan": lambda size=8, seed=0: DCGANGenerator(size, latent_dim=16, width=8, seed=seed),
    "biggan": lambda size=8, seed=0: BigGANGenerator(
        size, latent_dim=16, width=8, num_classes=4, seed=seed
    ),
}
every_generator = pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)


class Foreign(nn.Module):
    """Somebody else's generator, which has never heard of `conditional`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3 * 8 * 8)

    def latent(self, n):
        return torch.randn(n, 5)

    def forward(self, z):
        return self.layer(z).sigmoid().unflatten(1, (3, 8, 8))


@every_generator
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [4, 8, 12, 16, 32, 64])
def test_shape_and_range(make, size, training):
    generator = make(size).train(training)
    with torch.no_grad():
        images, labels = synthesise(generator, 6)
    assert images.shape == (6, 3, size, size) and images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert (labels is not None) == generator.conditional


@pytest.mark.parametrize(
    "size, start, blocks",
    [(8, 2, 2), (12, 3, 2), (16, 4, 2), (28, 7, 2), (32, 4, 3), (48, 12, 2), (64, 4, 4)],
)
def test_blocks_by_size(size, start, blocks):
    generator = BigGANGenerator(size, channels=1, latent_dim=4, width=2, num_classes=3)
    assert generator.start[1:] == (start, start) and len(generator.blocks) == blocks
    assert synthesise(generator, 2)[0].shape == (2, 1, size, size)


@every_generator
@pytest.mark.parametrize("size", [0, 2, 30])
def test_wrong_sizes(make, size):
    with pytest.raises(ConfigError, match="size must be"):
        make(size)


def test_one_class_is_not_enough():
    with pytest.raises(ConfigError, match="num_classes must be at least 2, got 1"):
        BigGANGenerator(num_classes=1)


@every_generator
def test_same_seed_same_images(make):
    def draw(seed):
        torch.manual_seed(7)
        with torch.no_grad():
            return synthesise(make(seed=seed), 5)

    (images, labels), (again, same), (other, _) = draw(0), draw(0), draw(1)
    assert torch.equal(images, again) and not torch.equal(images, other)
    assert labels is None if same is None else torch.equal(labels, same)


@every_generator
def test_gradients_reach_every_parameter(make):
    generator = make()
    synthesise(generator, 64)[0].square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_the_class_changes_its_own_image_only():
    generator = GENERATORS["biggan"](16).eval()
    z, labels = generator.latent(4), torch.tensor([0, 1, 2, 3])
    changed = torch.tensor([3, 1, 2, 3])
    with torch.no_grad():
        a, b = generator(z, labels), generator(z, changed)
    assert torch.allclose(a[1:], b[1:], atol=1e-6)
    assert (a[0] - b[0]).abs().mean() > 0.01


def test_every_block_is_given_the_class():
    """With the input layer blind to the class, the blocks alone still make different images."""
    generator = GENERATORS["biggan"]().eval()
    with torch.no_grad():
        generator.spread.weight[:, generator.latent_dim :] = 0
        z = generator.latent(3)
        a, b = (generator(z, torch.full((3,), k)) for k in (0, 1))
        assert (a - b).abs().mean() > 1e-3
        for block in generator.blocks:
            for norm in (block.norm1, block.norm2):
                norm.affine.weight[:, generator.latent_dim :] = 0
        assert torch.equal(
            generator(z, torch.zeros(3, dtype=torch.long)),
            generator(z, torch.ones(3, dtype=torch.long)),
        )


def test_labels_are_uniform_or_as_asked_for():
    generator = GENERATORS["biggan"]()
    with torch.no_grad():
        counts = synthesise(generator, 2000)[1].bincount(minlength=4)
        assert len(counts) == 4 and 400 < counts.min() and counts.max() < 600
        wanted = torch.tensor([2, 2, 0])
        assert torch.equal(synthesise(generator, 3, wanted)[1], wanted)


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 1]),
        torch.tensor([0, 1, 4]),
        torch.tensor([0, -1, 2]),
        torch.rand(3),
        torch.tensor([True] * 3),
        torch.zeros(3, 1).long(),
    ],
    ids=["too few", "too large", "negative", "float", "bool", "column"],
)
def test_wrong_labels(labels):
    with pytest.raises(ValueError, match="labels must be 3 of dtype int64, from 0 to 3; got"):
        synthesise(GENERATORS["biggan"](), 3, labels)


@pytest.mark.parametrize("make", [GENERATORS["dcgan"], Foreign])
def test_an_unconditional_generator_refuses_labels(make):
    generator = make()
    with pytest.raises(
        ValueError,
        match=f"{type(generator).__name__} is unconditional and cannot make images of given labels",
    ):
        synthesise(generator, 3, torch.zeros(3, dtype=torch.long))


def test_a_foreign_generator_is_unconditional(teachers):
    synthesizer = DFQ(Foreign())
    with frozen(teachers.sl):
        batch = synthesizer.update(teachers.sl, SmallVGG("8 M 8", 4))
    assert batch.images.shape == (64, 3, 8, 8) and synthesizer.sample(3).shape == (3, 3, 8, 8)


def by_hand(generator, teacher, student, steps, config):
    """The images of each step of DFQ as one plain loop, which the records were made with."""
    optimizer = torch.optim.Adam(
        generator.parameters(), lr=config.lr, betas=(0.5, 0.999), fused=True
    )
    shown = []
    for _ in range(steps):
        z = torch.randn(config.batch_size, generator.latent_dim)
        if isinstance(generator, BigGANGenerator):
            target = torch.randint(4, (config.batch_size,))
            images = generator(z, target)
            seen = observe(teacher, images)
        else:
            images = generator(z)
            seen = observe(teacher, images)
            target = seen.logits.argmax(1)
        loss = config.oh * F.cross_entropy(seen.logits, target) - config.bal * balance(seen.logits)
        loss = loss + config.bn * batchnorm_loss(seen.statistics)
        loss = loss - config.act * seen.features.abs().mean()
        with frozen(student):
            loss = loss - config.adv * kl_divergence(seen.logits, student(images)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown.append(images.detach())
    return shown


@every_generator
def test_dfq_is_the_plain_loop_bit_for_bit(make, teachers):
    """The same images, the same generator, and as many random numbers used."""
    config, student = DFQConfig(batch_size=16), SmallVGG("8 M 8", 4, seed=1)
    trained, reference = make(), make()
    with frozen(teachers.ntl):
        torch.manual_seed(11)
        expected = by_hand(reference, teachers.ntl, student, 6, config)
        next_expected = torch.rand(4)
        torch.manual_seed(11)
        synthesizer = DFQ(trained, config)
        images = [synthesizer.update(teachers.ntl, student).images for _ in range(6)]
        next_number = torch.rand(4)
    assert all(torch.equal(a, b) for a, b in zip(images, expected, strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(trained.state_dict().values(), reference.state_dict().values(), strict=True)
    )
    assert torch.equal(next_number, next_expected)


@every_generator
def test_sample_is_one_draw(make):
    generator = make()
    twin = copy.deepcopy(generator)
    torch.manual_seed(3)
    images = DFQ(generator).sample(9)
    torch.manual_seed(3)
    with torch.no_grad():
        expected = (
            twin(twin.latent(9), torch.randint(4, (9,)))
            if twin.conditional
            else twin(twin.latent(9))
        )
    assert torch.equal(images, expected) and not images.requires_grad


@every_generator
@pytest.mark.parametrize("objective", [PlainKD, ATEsc, DecoyEscape])
def test_dfq_distils_on_the_debug_task(make, objective, teachers):
    def mismatch():
        with torch.no_grad(), frozen(teachers.ntl):
            return float(batchnorm_loss(observe(teachers.ntl, synthesizer.sample(128)).statistics))

    synthesizer, student = DFQ(make()), SmallVGG("8 M 8", 4, seed=1)
    before = mismatch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no term of the loss is dropped
        warnings.simplefilter("ignore", DistillWarning)  # the warning about a trap is right
        result = distill(
            teachers.ntl, student, synthesizer=synthesizer, objective=objective(), iterations=30
        )
    assert mismatch() < before
    assert all(
        torch.isfinite(p).all()
        for p in [*result.student.parameters(), *synthesizer.generator.parameters()]
    )


def test_the_generator_learns_the_classes_asked_for(teachers):
    generator, student = GENERATORS["biggan"](), SmallVGG("8 M 8", 4, seed=1)
    synthesizer, labels = DFQ(generator), torch.arange(128) % 4

    def hit_rate():
        with torch.no_grad():
            answers = teachers.sl(synthesise(generator, 128, labels)[0]).argmax(1)
        return (answers == labels).float().mean().item()

    with frozen(teachers.sl):
        before = hit_rate()
        for _ in range(60):
            synthesizer.update(teachers.sl, student)
        assert before < 0.6 and hit_rate() > 0.8


def test_classes_of_generator_and_teacher_must_agree():
    generator, teacher = GENERATORS["biggan"](), SmallVGG("8 M 8", 7)
    with (
        frozen(teacher),
        pytest.raises(
            ValueError, match="the generator makes images of 4 classes, the teacher has 7"
        ),
    ):
        DFQ(generator).update(teacher, SmallVGG("8 M 8", 7))
