"""Somebody else's teacher: never changed, checked before use, of any architecture."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, squeezenet1_1

from atesc.inside.archive import WeightsError
from atesc.method.distill import distill
from atesc.method.objectives import ATEsc, CalibratedKD, DecoyEscape, PlainKD
from atesc.method.splitter import PGDSplitter, radius
from atesc.study.metrics import predict
from atesc.synthesis.dfq import DFQ
from atesc.synthesis.generator import DCGANGenerator
from atesc.synthesis.losses import kl_divergence
from atesc.teachers.networks import SmallVGG
from atesc.teachers.observation import frozen, observe
from atesc.teachers.saved import load_model, save_model


def dfq(size=8):
    return DFQ(DCGANGenerator(size=size, latent_dim=16, width=8))


def run(teacher, student, objective=None, size=8, iterations=2):
    objective = PlainKD() if objective is None else objective
    return distill(
        teacher, student, synthesizer=dfq(size), objective=objective, iterations=iterations
    )


class Failing(nn.Module):
    """A student that fails at its n-th call."""

    def __init__(self, calls):
        super().__init__()
        self.net, self.calls = SmallVGG("8 M 8", 4), calls

    def forward(self, images):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.net(images)


def snapshot(model):
    return (
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    )


def assert_same(model, before):
    after = snapshot(model)
    assert all(torch.equal(after[0][key], value) for key, value in before[0].items())
    assert after[1:4] == before[1:4]
    assert all(a is None if b is None else torch.equal(a, b) for a, b in zip(after[4], before[4]))


USES = {
    "split": lambda t, x: PGDSplitter()(t, x),
    "radius": lambda t, x: radius(t, x),
    "predict": lambda t, x: predict(t, x),
    "plain": lambda t, x: run(t, SmallVGG("8 M 8", 4)),
    "ckd": lambda t, x: run(t, SmallVGG("8 M 8", 4), CalibratedKD()),
    "atesc": lambda t, x: run(t, SmallVGG("8 M 8", 4), ATEsc()),
    "decoy": lambda t, x: run(t, SmallVGG("8 M 8", 4), DecoyEscape()),
    "exception": lambda t, x: run(t, Failing(5), DecoyEscape()),
    "exception in the split": lambda t, x: PGDSplitter()(t, x * 2),
}


@pytest.mark.parametrize("use", USES)
def test_the_teacher_comes_back_bit_identical(use, teachers, task):
    teacher = copy.deepcopy(teachers.ntl).train()
    teacher.features[1].eval()  # a mixed state must survive too
    teacher.classifier.bias.requires_grad_(False)
    before = snapshot(teacher)
    if use.startswith("exception"):
        with pytest.raises((KeyboardInterrupt, ValueError)):
            USES[use](teacher, task.id.test.images)
    else:
        USES[use](teacher, task.id.test.images)
    assert_same(teacher, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: resnet18(num_classes=4),
        lambda: SmallVGG("8 M 8", 4, batch_norm=False),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)),
        lambda: squeezenet1_1(num_classes=4),
    ],
    ids=["resnet18", "no BatchNorm", "linear", "squeezenet"],
)
def test_any_module_is_a_teacher_and_a_student(make):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run(
            make(), make(), CalibratedKD(splitter=PGDSplitter(steps=2)), size=32, iterations=1
        )
    assert not result.student.training
    assert all(torch.isfinite(p).all() for p in result.student.parameters())


def test_distillation_teaches(teachers):
    """On fresh synthetic images the student comes much closer to its teacher than it was."""
    teacher, student, synthesizer = teachers.sl, SmallVGG("8 M 8", 4, seed=5), dfq()

    def distance(images):
        with torch.no_grad(), frozen(student), frozen(teacher):
            return kl_divergence(teacher(images), student(images)).mean().item()

    before = distance(synthesizer.sample(256))
    distill(teacher, student, synthesizer=synthesizer, objective=PlainKD(), iterations=40)
    assert distance(synthesizer.sample(256)) < 0.5 * before


def test_errors_before_training(teachers):
    teacher = teachers.ntl
    with pytest.raises(ValueError, match="student has 7 classes, expected 4"):
        run(teacher, SmallVGG("8 M 8", 7))
    with pytest.raises(ValueError, match=r"teacher does not take images of shape \[N, 3, 8, 8\]"):
        run(nn.Sequential(nn.Flatten(), nn.Linear(5, 4)), SmallVGG("8 M 8", 4))
    with pytest.raises(ValueError, match="must return logits of shape"):
        run(nn.Conv2d(3, 4, 3), SmallVGG("8 M 8", 4))
    broken = copy.deepcopy(teacher)
    broken.classifier.bias.data[0] = float("inf")
    with pytest.raises(
        ValueError, match="teacher has NaN or infinite weights in 'classifier.bias'"
    ):
        run(broken, SmallVGG("8 M 8", 4))


@pytest.mark.parametrize(
    "images, error, text",
    [
        (torch.rand(3, 8, 8), ValueError, "shape"),
        (torch.rand(2, 3, 8, 8) * 255, ValueError, "must lie in"),
        (torch.full((2, 3, 8, 8), float("nan")), ValueError, "without NaN"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError, "divide 8-bit images by 255"),
        ([[0.0]], TypeError, "must be a torch.Tensor"),
    ],
)
@pytest.mark.parametrize("use", [PGDSplitter(), radius], ids=["split", "radius"])
def test_wrong_images(use, images, error, text, teachers):
    with pytest.raises(error, match=text):
        use(teachers.sl, images)


def test_save_and_load(tmp_path, teachers, task):
    path = save_model(teachers.ntl, tmp_path / "deep" / "ntl.safetensors")
    assert torch.equal(load_model(path)(task.id.test.images), teachers.ntl(task.id.test.images))
    assert sorted(p.name for p in path.parent.iterdir()) == ["ntl.json", "ntl.safetensors"]
    other = resnet18(num_classes=4)
    loaded = load_model(save_model(other, tmp_path / "resnet.safetensors"), resnet18(num_classes=4))
    assert all(
        torch.equal(value, loaded.state_dict()[name]) for name, value in other.state_dict().items()
    )
    with pytest.raises(WeightsError, match="holds a ResNet, which atesc cannot build"):
        load_model(path.parents[1] / "resnet.safetensors")


def test_nan_weights_in_a_file(tmp_path, teachers):
    broken = copy.deepcopy(teachers.sl)
    broken.classifier.weight.data[0, 0] = float("nan")
    with pytest.raises(WeightsError, match="NaN or infinite weights in 'classifier.weight'"):
        load_model(save_model(broken, tmp_path / "nan.safetensors"))


def test_observation_of_a_foreign_network():
    net = resnet18(num_classes=4).eval()
    with torch.no_grad():
        seen = observe(net, torch.rand(2, 3, 32, 32))
        assert torch.allclose(net.fc(seen.features), seen.logits, atol=1e-5)
    assert len(seen.statistics) == 20
