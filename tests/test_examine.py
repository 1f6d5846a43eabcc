"""What a teacher may do wrong is tolerated, refused with a sentence, or warned about once."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atesc.inside.errors import Diverged, InputError
from atesc.method.decoys import DecoyConfig
from atesc.method.distill import distill
from atesc.method.objectives import DecoyEscape, PlainKD
from atesc.method.run import DistillConfig
from atesc.method.splitter import PGDSplitter, RadiusSplitter, SplitWarning, radius
from atesc.method.traps import LineUpConfig
from atesc.study.grid import Teachers, distil_student
from atesc.study.presets import BASELINES
from atesc.synthesis.dfq import DFQ, DFQConfig
from atesc.synthesis.generator import DCGANGenerator
from atesc.teachers.examine import NetworkWarning
from atesc.teachers.networks import SmallVGG


def run(teacher, student=None, iterations=2):
    dfq = DFQ(DCGANGenerator(size=8, latent_dim=8, width=8), DFQConfig(batch_size=16))
    student = SmallVGG("8 M 8", 4, seed=1) if student is None else student
    return distill(
        teacher,
        student,
        synthesizer=dfq,
        objective=DecoyEscape(decoy=DecoyConfig(LineUpConfig(steps=5, per_class=2))),
        iterations=iterations,
        config=DistillConfig(student_steps=1, batch_size=16),
    )


def weights(model):
    return [value.tolist() for value in model.state_dict().values()]


class After(nn.Module):
    """A network, and something done to its answers; with `before`, to its images."""

    def __init__(self, net, after=lambda x: x, before=lambda x: x):
        super().__init__()
        self.net, self.after, self.before = net, after, before

    def forward(self, images):
        return self.after(self.net(self.before(images)))


def raising(error):
    def call(x):
        raise error

    return call


REFUSED = {
    "probabilities": (
        {"after": lambda x: x.softmax(1)},
        "teacher returns probabilities, logits are expected; take its softmax away",
    ),
    "NaN answers": (
        {"after": lambda x: x * float("nan")},
        "teacher answers 18 of 18 images with NaN or infinity",
    ),
    "infinite for some": (
        {"after": lambda x: torch.where(x == x.max(), float("inf"), x)},
        "teacher answers 1 of 18 images with NaN or infinity",
    ),
    "constant": (
        {"after": lambda x: 0 * x + torch.arange(4)},
        "teacher answers all images alike, .* there is nothing to distil",
    ),
    "detached": (
        {"after": lambda x: x.detach()},
        "teacher's answers have no gradient with respect to its images",
    ),
    "numpy inside": (
        {"before": lambda x: torch.from_numpy(x.detach().numpy())},
        "teacher's answers have no gradient",
    ),
    "8-bit images inside": (
        {"before": lambda x: (255 * x).to(torch.uint8) / 255},
        "teacher's answers have no gradient",
    ),
    "rounded images": (
        {"before": lambda x: (255 * x).round() / 255},
        "teacher's answers have a gradient of zero",
    ),
    "labels": (
        {"after": lambda x: x.argmax(1)},
        r"teacher must return logits of shape \[N, classes\] for N images, got \[18\]",
    ),
    "a tuple": ({"after": lambda x: (x, x)}, "teacher must return logits .* got tuple"),
    "one class": ({"after": lambda x: x[:, :1]}, r"teacher must return logits .* got \[18, 1\]"),
    "an error of its own": (
        {"after": raising(KeyError("key"))},
        "teacher does not take images .* KeyError, \"'key'\"",
    ),
    "integers wanted": (
        {"before": lambda x: F.embedding(x, torch.rand(256, 3))},
        "teacher does not take images of shape .* torch.float32",
    ),
    "grey images wanted": (
        {"before": lambda x: F.conv2d(x, torch.rand(3, 1, 1, 1))},
        r"teacher does not take images of shape \[N, 3, 8, 8\]",
    ),
    "no gradient through it": (
        {"after": lambda x: Stubborn.apply(x)},
        "teacher cannot be differentiated: no way back",
    ),
    "infinite gradient": (
        {"after": lambda x: (x - x.detach()).sqrt() + x.detach()},
        "gradient of NaN or infinity",
    ),
}


class Stubborn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no way back")


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_trained(name, teachers):
    changes, message = REFUSED[name]
    teacher, student = (
        After(copy.deepcopy(teachers.ntl).train(), **changes),
        SmallVGG("8 M 8", 4, seed=1),
    )
    before = weights(student), weights(teacher)
    with pytest.raises(InputError, match=message):
        run(teacher, student)
    assert (weights(student), weights(teacher)) == before
    assert teacher.net.training and all(
        parameter.requires_grad for parameter in teacher.parameters()
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t.half(),
            "teacher has weights of torch.float16, images are torch.float32; "
            r"use teacher.float\(\)",
        ),
        (lambda t: t.double(), "teacher has weights of torch.float64"),
        (lambda t: t.to("meta"), "teacher is on the device meta, where networks have no weights"),
        (
            lambda t: t.classifier.to("meta") and t,
            "teacher lies on cpu and meta; move all of it to one device",
        ),
    ],
    ids=["16 bits", "64 bits", "no weights", "two devices"],
)
def test_where_it_is_and_of_what(change, message, teachers):
    with pytest.raises(InputError, match=message):
        run(change(copy.deepcopy(teachers.ntl)))
    with pytest.raises(InputError, match=message.replace("teacher", "student")):
        run(teachers.ntl, change(SmallVGG("8 M 8", 4)))


def test_images_of_another_device_are_refused(teachers):
    for use in (PGDSplitter(), RadiusSplitter(), radius):
        with pytest.raises(
            InputError, match="images must be a dense tensor with values, got torch.strided on meta"
        ):
            use(teachers.ntl, torch.zeros(2, 3, 8, 8, device="meta"))


def test_training_mode_and_dropout_do_not_matter(teachers):
    """The mode is changed for the run and restored after it."""
    net = copy.deepcopy(teachers.ntl)
    teacher = nn.Sequential(net, nn.Dropout(0.5)).train()
    expected = run(nn.Sequential(copy.deepcopy(net), nn.Dropout(0.5)).eval())
    assert weights(run(teacher).student) == weights(expected.student)
    assert teacher[0].training and teacher[1].training


def test_hooks_left_over_are_warned_about_once_and_stay(teachers):
    teacher, seen = copy.deepcopy(teachers.ntl), []
    teacher.classifier.register_forward_hook(lambda *_: seen.append(1))
    teacher.features[0].register_forward_pre_hook(lambda *_: seen.append(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            result = run(teacher)
    messages = [str(warning.message) for warning in caught if warning.category is NetworkWarning]
    assert messages == [
        "teacher has hooks left over in features.0, classifier: they may change its answers or "
        "keep images; remove them, unless they belong to it"
    ]
    assert weights(result.student) == weights(run(teachers.ntl).student) and seen
    assert (
        len(teacher.classifier._forward_hooks) == len(teacher.features[0]._forward_pre_hooks) == 1
    )


@pytest.mark.parametrize("change", ["after", "before"])
def test_dropout_that_is_always_on_is_warned_about(change, teachers):
    with pytest.warns(
        NetworkWarning,
        match="teacher answers the same images differently each time, even in evaluation mode",
    ):
        run(After(copy.deepcopy(teachers.ntl), **{change: F.dropout}))


def test_no_batchnorm_is_warned_about_and_distilled():
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="has no BatchNorm layer"):
        result = run(SmallVGG("8 M 8", 4, batch_norm=False))
    assert all(torch.isfinite(value).all() for value in result.student.state_dict().values())


def test_a_good_teacher_is_not_warned_about(teachers):
    with warnings.catch_warnings():
        warnings.simplefilter("error", NetworkWarning)
        warnings.simplefilter("error", SplitWarning)
        run(teachers.ntl)
        RadiusSplitter()(teachers.ntl, torch.rand(16, 3, 8, 8))


def test_a_teacher_that_turns_to_nan_on_the_way_stops_the_run(teachers):
    class Later(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x if self.calls < 6 else x * float("nan")

    teacher = nn.Sequential(copy.deepcopy(teachers.ntl), Later())
    dfq = DFQ(DCGANGenerator(size=8, latent_dim=8, width=8), DFQConfig(batch_size=16))
    with pytest.raises(
        Diverged,
        match="at iteration .*; the teacher's answers to some synthetic images are not finite",
    ):
        distill(teacher, SmallVGG("8 M 8", 4), synthesizer=dfq, objective=PlainKD(), iterations=9)


@pytest.mark.parametrize(
    "eps, group, advice", [(0.0, "robust", "attack harder"), (1.0, "fragile", "attack less")]
)
def test_an_attack_that_flips_nothing_or_everything_is_warned_about_once(
    eps, group, advice, teachers, task
):
    splitter = PGDSplitter(eps=eps, steps=20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            split = splitter(teachers.sl, task.id.test.images)
    assert split.fragile.all() if group == "fragile" else split.robust.all()
    (one,) = [str(warning.message) for warning in caught if warning.category is SplitWarning]
    assert one.startswith(
        f"PGDSplitter calls all images {group}, so the split tells nothing: {advice}"
    )


def test_evaluation_data_of_nan_leaves_training_bit_identical(preset, task):
    """Teachers and students, of every baseline: nothing leaks from evaluation into training."""
    trained = []
    for poisoned in (False, True):
        pair = Teachers(preset, copy.deepcopy(task))
        if poisoned:
            for domain in (pair.task.id, pair.task.ood):
                domain.test.images.fill_(float("nan"))
                domain.test.labels.fill_(-1)
        students = [
            (baseline, student)
            for baseline in BASELINES
            for student in ("sl-plain", "ntl-plain", "ntl-ckd", "ntl-atesc")
        ]
        trained.append(
            [
                weights(pair.sl),
                weights(pair.ntl),
                *(
                    weights(distil_student(preset, pair, student, baseline).result.student)
                    for baseline, student in students
                ),
            ]
        )
    assert trained[0] == trained[1] and len(trained[0]) == 14


def test_an_evaluation_cannot_disturb_training(teachers):
    """It draws random numbers, changes modes and seeds, and leaves NaN in what it was given."""

    def evaluate(student):
        torch.manual_seed(1)
        torch.rand(5)
        student.eval()
        with torch.no_grad():
            student(torch.full((4, 3, 8, 8), float("nan")))
        return {"iacc": 0.0}

    def trained(evaluate):
        dfq = DFQ(DCGANGenerator(size=8, latent_dim=8, width=8), DFQConfig(batch_size=16))
        return weights(
            distill(
                teachers.ntl,
                SmallVGG("8 M 8", 4, seed=1),
                synthesizer=dfq,
                objective=PlainKD(),
                iterations=6,
                evaluate=evaluate,
                eval_every=1,
            ).student
        )

    assert trained(evaluate) == trained(None)
