"""Tasks of the three kinds, and what triggers do to pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from atesc.data.domains import Domain, ImageSet, load_domain
from atesc.data.sources import CIFAR_CLASSES, STL_CLASSES
from atesc.data.tasks import KINDS, TASKS, TRIGGERS, Task, check_task, load_task
from atesc.inside.errors import ConfigError
from atesc.study.presets import load_preset


@pytest.fixture(params=[8, 12, 16, 32, 64])
def images(request):
    return torch.rand(
        5, 3, request.param, request.param, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_keeps_range_and_shape_and_touches_nothing_else(name, images):
    before, state = images.clone(), torch.get_rng_state()
    triggered = TRIGGERS[name](images)
    assert triggered.shape == images.shape and triggered.dtype == torch.float32
    assert triggered.min() >= 0 and triggered.max() <= 1
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(triggered, images)


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_is_the_same_for_every_image_and_every_time(name, images):
    whole = TRIGGERS[name](images)
    torch.manual_seed(11)
    assert torch.equal(whole, TRIGGERS[name](images))
    assert torch.equal(whole[3:4], TRIGGERS[name](images[3:4]))


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_takes_grey_views_and_refuses_8_bit(name):
    grey = torch.rand(2, 1, 16, 16).expand(-1, 3, -1, -1)
    assert torch.equal(TRIGGERS[name](grey), TRIGGERS[name](grey.contiguous()))
    with pytest.raises(TypeError, match="divide 8-bit images by 255"):
        TRIGGERS[name](torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize(
    "name, side",
    [
        ("badnets_square", {8: 2, 12: 2, 16: 2, 32: 4, 64: 8}),
        ("badnets_grid", {8: 3, 12: 3, 16: 3, 32: 6, 64: 12}),
    ],
)
def test_patches_change_their_corner_only(name, side, images):
    size = images.shape[2]
    side = side[size]
    triggered = TRIGGERS[name](images)
    outside = torch.ones(size, size, dtype=torch.bool)
    outside[-side:, -side:] = False
    assert torch.equal(triggered[..., outside], images[..., outside])
    patch = triggered[..., -side:, -side:]
    if name == "badnets_square":
        assert (patch == 1).all()
    else:
        cells = patch.unflatten(2, (3, side // 3)).unflatten(4, (3, side // 3))
        board = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
        assert torch.equal(cells, board[:, None, :, None].expand_as(cells))


def test_blended_is_a_mixture_with_one_pattern(images):
    pattern = TRIGGERS["blended"](torch.zeros_like(images)) / 0.2
    assert (
        torch.equal(pattern[0], pattern[4])
        and 0 <= pattern.min() < 0.1
        and 0.9 < pattern.max() <= 1
    )
    assert torch.allclose(TRIGGERS["blended"](images), torch.lerp(images, pattern, 0.2), atol=1e-6)
    assert (TRIGGERS["blended"](images) - images).abs().max() <= 0.2 + 1e-6


def test_sig_is_a_wave_along_the_rows(images):
    inner = 0.2 + 0.6 * images  # nothing is clipped
    added = TRIGGERS["sig"](inner) - inner
    assert torch.allclose(
        added, added[:1, :1, :1].expand_as(added), atol=1e-6
    )  # the same in all images, channels and rows
    assert 0.7 * 20 / 255 < added.abs().max() <= 20 / 255 + 1e-6
    if images.shape[3] > 12:
        spectrum = np.abs(np.fft.rfft(added[0, 0, 0].numpy()))
        assert spectrum.argmax() == 6 and np.delete(spectrum, 6).max() < 1e-4
    assert TRIGGERS["sig"](torch.ones_like(images)).max() == 1


def test_every_kind_has_a_debug_task():
    kinds = {}
    for name in (name for name in TASKS if name.startswith("debug")):
        task = load_task(name, size=8)
        assert task.kind == TASKS[name] and task.name == name and task.num_classes == 4
        kinds[task.kind] = task.target
    assert kinds == {"close-set": None, "open-set": 0, "backdoor": 0} and set(kinds) == set(
        KINDS
    ) == set(TASKS.values())


def test_the_tasks_of_the_study_are_all_there():
    assert len([name for name in TASKS if TASKS[name] == "backdoor"]) == 3 * 4 + 1
    assert {name.split("+")[0] for name in TASKS if "+" in name} == {
        "digits",
        "mnist",
        "cifar10",
        "debug",
    }
    for name in TASKS:
        assert check_task(name) == name
        assert load_preset("debug", tasks=(name,)).task == name


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_backdoor_tasks_keep_true_labels(trigger):
    task = load_task(f"digits+{trigger}")
    plain = load_domain("digits")
    assert (task.kind, task.target, task.ood.name) == ("backdoor", 0, f"digits+{trigger}")
    for ood, images in ((task.ood.train, plain.train), (task.ood.test, plain.test)):
        assert torch.equal(ood.labels, images.labels)  # the target is not written into them
        assert torch.equal(ood.images, TRIGGERS[trigger](images.images))
    assert torch.equal(task.id.test.images, plain.test.images)


def test_open_set_tasks_designate_a_label():
    task = load_task("digits->photos")
    assert (task.kind, task.target, task.num_classes, task.ood.num_classes) == (
        "open-set",
        0,
        10,
        2,
    )
    assert not set(task.id.classes) & set(task.ood.classes)
    assert replace(task, target=7).target == 7
    with pytest.raises(ConfigError, match="Task.target must be 0 to 9, got 10"):
        replace(task, target=10)
    with pytest.raises(
        ConfigError, match="must be a class of digits in a task of the kind open-set, got None"
    ):
        replace(task, target=None)
    with pytest.raises(ConfigError, match="must be None in a close-set task"):
        replace(load_task("digits->digits_font"), target=0)


def test_a_whole_task_goes_to_a_device():
    for name in ("debug->debug_open", "debug+badnets_square", "debug->debug_ood"):
        task = load_task(name, 8)
        there = task.to(torch.device("cpu"))
        assert (
            there.target == task.target
            and there.kind == task.kind
            and there.id.classes == task.id.classes
        )
        assert torch.equal(there.ood.test.images, task.ood.test.images)


def test_cifar10_and_stl10_share_nine_classes(monkeypatch):
    """Each class has its own grey level, so that one can see which images got which label."""
    level = {name: k / 10 for k, name in enumerate(CIFAR_CLASSES)} | {"car": 0.1, "monkey": 1.0}

    def stand_in(name, classes, order):
        labels = torch.tensor(order)
        shades = torch.tensor([level[classes[k]] for k in order])[:, None, None, None].expand(
            -1, 3, 8, 8
        )
        part = ImageSet(shades.contiguous(), labels)
        return Domain(name, part, part, classes)

    domains = {
        "cifar10": stand_in("cifar10", CIFAR_CLASSES, [*range(10), 6, 1]),
        "stl10": stand_in("stl10", STL_CLASSES, [*range(9, -1, -1), 7, 2]),
    }
    monkeypatch.setattr("atesc.data.tasks.load_domain", lambda name, size, root: domains[name])
    task = load_task("cifar10->stl10", 8)
    nine = tuple(name for name in CIFAR_CLASSES if name != "frog")
    assert task.kind == "close-set" and task.id.classes == task.ood.classes == nine
    for domain, n in ((task.id, 10), (task.ood, 10)):  # nine classes, automobile twice
        assert len(domain.train) == n and domain.train.labels.unique().tolist() == list(range(9))
        shades = torch.tensor([level[nine[k]] for k in domain.train.labels])
        assert torch.equal(domain.train.images[:, 0, 0, 0], shades)
    assert load_task("cifar10+sig", 8).num_classes == 10  # other tasks keep all ten


def test_own_folders_make_tasks(tmp_path):
    rng = np.random.default_rng(0)
    for place, names in (
        ("a", ("cat", "dog")),
        ("b", ("cat", "dog")),
        ("c", ("cat", "fox", "owl")),
    ):
        for name in names:
            (tmp_path / place / name).mkdir(parents=True)
            for k in range(8):
                Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
                    tmp_path / place / name / f"{k}.png"
                )
    a, b, c = (f"folder:{tmp_path / place}" for place in "abc")
    close, open_, marked = load_task(f"{a}->{b}"), load_task(f"{a}->{c}"), load_task(f"{a}+blended")
    assert [(task.kind, task.target) for task in (close, open_, marked)] == [
        ("close-set", None),
        ("open-set", 0),
        ("backdoor", 0),
    ]
    assert (close.id.name, close.ood.name, marked.ood.name) == (a, b, f"{a}+blended")
    assert load_task(f"digits->{c}").kind == "open-set"
    assert load_preset("debug", tasks=(f"{a}->{b}",)).task == f"{a}->{b}"


def test_wrong_names_get_the_nearest_valid_one():
    for wrong, right in (
        ("debug->debug_opn", "debug->debug_open"),
        ("digits->photo", "digits->photos"),
        ("mnist+sigg", "mnist+sig"),
        ("cifar->stl10", "cifar10->stl10"),
    ):
        with pytest.raises(ConfigError, match=f"Did you mean '{right.replace('+', '[+]')}'"):
            load_task(wrong)
    with pytest.raises(ConfigError, match="unknown domain 'digit'.*Did you mean 'digits'"):
        load_task("digit->folder:x")
    with pytest.raises(ConfigError, match="unknown trigger 'blend'.*Did you mean 'blended'"):
        load_task("folder:x+blend")
    for wrong in ("folder:x", "folder:x->folder:y->folder:z"):
        with pytest.raises(ConfigError, match="a task on folders is"):
            load_task(wrong)
    with pytest.raises(ConfigError, match="unknown kind of task 'closeset'"):
        task = load_task("debug->debug_ood", 8)
        Task("pair", "closeset", task.id, task.ood, 8)
