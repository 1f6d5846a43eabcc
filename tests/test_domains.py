"""Domains: fixed splits without overlap, files found where they should be, helpful errors."""

import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import write_folders, write_idx, write_stand_in

from atesc.app.command import main
from atesc.data.domains import (
    CROP,
    DOMAINS,
    ImageSet,
    _photo_crops,
    font_files,
    load_domain,
    photo_columns,
)
from atesc.data.sources import CIFAR_CLASSES, SOURCES, data_root, download_command
from atesc.data.tasks import load_task
from atesc.inside.errors import ConfigError


def test_no_digit_is_in_both_parts():
    task = load_task("digits->digits_photo", size=16)
    train = {image.numpy().tobytes() for image in task.id.train.images}
    assert len(task.id.train) + len(task.id.test) == 1797
    assert not any(image.numpy().tobytes() in train for image in task.id.test.images)
    assert torch.equal(task.id.train.labels, task.ood.train.labels)
    assert torch.equal(task.id.test.labels, task.ood.test.labels)


def test_no_photo_pixel_is_in_both_parts(monkeypatch):
    """Colour the photographs by column and read the columns back from the blended images."""
    import atesc.data.domains as domains

    width = 640
    ramp = np.broadcast_to(
        np.where(np.arange(width) < width * 0.7, 0, 255).astype(np.uint8)[None, :, None],
        (427, width, 3),
    )
    fake = type("Bunch", (), {"images": [ramp, ramp]})
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: fake)
    assert domains._photo_crops(200, 16, "train").max() == 0
    assert domains._photo_crops(200, 16, "test").min() == 1
    photos = domains.photos(16)
    assert photos.train.images.max() == 0 and photos.test.images.min() == 1
    for part in (photos.train, photos.test):
        assert part.labels.bincount().tolist() == [len(part) // 2] * 2


def test_photos_are_labelled_by_photograph(monkeypatch):
    import atesc.data.domains as domains

    black, white = (np.full((427, 640, 3), level, dtype=np.uint8) for level in (0, 255))
    fake = type("Bunch", (), {"images": [black, white]})
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: fake)
    for part in (domains.photos(8).train, domains.photos(8).test):
        assert torch.equal(part.images.amax((1, 2, 3)), part.labels.float())


@pytest.mark.parametrize("size", [8, 16, 32])
def test_no_printed_digit_is_in_both_parts(size):
    assert not set(font_files("train")) & set(font_files("test"))
    domain, plain = load_domain("digits_font", size), load_domain("digits", size)
    train = {image.numpy().tobytes() for image in domain.train.images}
    assert not any(image.numpy().tobytes() in train for image in domain.test.images)
    assert torch.equal(domain.train.labels, plain.train.labels) and torch.equal(
        domain.test.labels, plain.test.labels
    )
    assert torch.equal(
        domain.train.images[:, 0], domain.train.images[:, 2]
    )  # white on black, no colour
    border = torch.cat(
        [domain.train.images[..., 0].flatten(1), domain.train.images[..., -1].flatten(1)], 1
    )
    assert border.mean() < 0.02 < domain.train.images.amax((1, 2, 3)).min()


def test_printed_digits_can_be_told_apart():
    """The nearest of the ten mean train images names most test digits, in spite of other fonts."""
    domain = load_domain("digits_font", 16)
    means = torch.stack(
        [domain.train.images[domain.train.labels == k].mean(0) for k in range(10)]
    ).flatten(1)
    nearest = torch.cdist(domain.test.images.flatten(1), means).argmin(1)
    assert (nearest == domain.test.labels).float().mean() > 0.6


def test_the_split_is_fixed():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = load_task("digits->digits_photo")
        torch.manual_seed(2)
        two = load_task("digits->digits_photo")
    assert torch.equal(one.ood.train.images, two.ood.train.images)
    assert torch.equal(one.id.test.images, two.id.test.images)
    low, high = photo_columns(640, "test")
    assert high - low >= CROP


@pytest.fixture
def data_folder(tmp_path):
    """MNIST and MNIST-M in their on-disk formats, a few images each."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("t10k", 10)):
        write_idx(
            raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        )
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8))
    write_folders(tmp_path / "mnist_m", "0123456789")
    return tmp_path


def test_mnist_tasks_from_files(data_folder, monkeypatch):
    task = load_task("mnist->mnist_m", size=16, root=data_folder)
    assert task.id.train.images.shape == (20, 3, 16, 16) and task.ood.test.images.shape == (
        10,
        3,
        16,
        16,
    )
    assert task.ood.train.labels.tolist() == list(range(10))
    monkeypatch.setenv("ATESC_DATA", str(data_folder))
    assert data_root() == data_folder
    assert torch.equal(load_task("mnist->mnist_m", size=16).id.test.images, task.id.test.images)


@pytest.mark.parametrize("name", SOURCES)
def test_torchvision_files_are_read_as_they_are(name, tmp_path, any_checksum):
    made = write_stand_in(name, tmp_path)
    side = made[0][0].shape[-1]
    size = side if side <= 64 and side % 4 == 0 else 16
    domain = load_domain(name, size, tmp_path)
    assert domain.name == name and domain.classes == SOURCES[name].classes
    for part, (pixels, labels) in zip((domain.train, domain.test), made):
        assert part.labels.tolist() == labels.tolist()
        assert part.images.shape == (len(labels), 3, size, size)
        if len(pixels[0]) == 1:
            assert part.images.stride(1) == 0  # a view: three channels at the memory of one
        if size == side:
            slack = 1.01 / 255 if name == "usps" else 1e-6  # torchvision rounds USPS down to 8 bits
            assert (part.images - torch.tensor(pixels) / 255).abs().max() <= slack
        else:  # STL-10, 96 to 16
            coarse = torch.tensor(pixels[..., ::6, ::6]) / 255
            assert (
                torch.corrcoef(torch.stack([coarse.flatten(), part.images.flatten()]))[0, 1] > 0.9
            )


def test_a_damaged_file_is_reported(tmp_path):
    """With the published checksums in force a stand-in is not CIFAR-10."""
    write_stand_in("cifar10", tmp_path)
    with pytest.raises(FileNotFoundError, match="or is damaged there"):
        load_domain("cifar10", 16, tmp_path)


@pytest.mark.parametrize("name", SOURCES)
def test_missing_data_says_where_and_how(name, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as found:
        load_domain(name, 16, tmp_path)
    text, source = str(found.value), SOURCES[name]
    for piece in (
        str(tmp_path / source.files),
        f"{tmp_path / name}/{{train,test}}",
        f"({source.megabytes} MB)",
    ):
        assert piece in text
    command, call = text.split("`atesc ")[1].split("`, or in Python atesc.data.sources.")
    asked = []
    monkeypatch.setattr("atesc.data.sources.download", lambda *given: asked.append(given))
    assert main(shlex.split(command)) == 0  # what the message says to type
    eval(call, {"download": lambda *given: asked.append(given)})
    assert asked == [(name, str(tmp_path))] * 2


def test_the_usual_root_is_not_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ATESC_DATA", str(tmp_path / "my data"))
    assert "`atesc download mnist`" in download_command("mnist", data_root())
    monkeypatch.delenv("ATESC_DATA")
    assert f"`atesc download mnist --root '{tmp_path}/my data'`" in download_command(
        "mnist", tmp_path / "my data"
    )


def test_missing_tasks_say_where_and_how(tmp_path):
    with pytest.raises(FileNotFoundError, match="MNIST is not in .*`atesc download mnist --root"):
        load_task("mnist->mnist_m", root=tmp_path)
    with pytest.raises(
        FileNotFoundError, match="one folder a digit, and cannot be built, since MNIST is not in"
    ):
        load_domain("mnist_m", root=tmp_path)


def test_class_folders_stand_in_for_torchvision_files(tmp_path):
    write_folders(tmp_path / "cifar10", CIFAR_CLASSES, kind="jpg")
    write_folders(tmp_path / "fashion_mnist", "0123456789")
    domain = load_domain("cifar10", 16, tmp_path)
    assert domain.classes == CIFAR_CLASSES and domain.test.labels.tolist() == list(range(10))
    assert load_domain("fashion_mnist", 16, tmp_path).classes == SOURCES["fashion_mnist"].classes
    write_folders(tmp_path / "svhn", ["one", "two"])
    with pytest.raises(
        ValueError, match="must have the class folders 0, 1, 2, .* or their numbers, got one, two"
    ):
        load_domain("svhn", 16, tmp_path)


@pytest.mark.parametrize("background", ["photos", "cifar10"])
def test_mnist_m_is_built_without_its_folders(background, tmp_path, any_checksum):
    """Every image is |c - d| of its digit and a background of its own part, not of the other."""
    write_stand_in("mnist", tmp_path)
    if background == "cifar10":
        write_stand_in("cifar10", tmp_path)
        cifar = load_domain("cifar10", 28, tmp_path)
        behind = [cifar.train.images, cifar.test.images]
    else:
        behind = [_photo_crops(n, 28, part) for n, part in ((20, "train"), (10, "test"))]
    plain, built = load_domain("mnist", 28, tmp_path), load_domain("mnist_m", 28, tmp_path)
    assert built.name == f"mnist_m_{background}"  # the records say which it is
    for part, digits, own, other in (
        (built.train, plain.train, *behind),
        (built.test, plain.test, *behind[::-1]),
    ):
        assert torch.equal(part.labels, digits.labels)
        for image, digit in zip(part.images, digits.images):
            near, far = (
                ((c - digit).abs() - image).abs().amax((1, 2, 3)).min() for c in (own, other)
            )
            assert near < 1e-6 and far > 0.1
    assert torch.equal(built.train.images, load_domain("mnist_m", 28, tmp_path).train.images)


def test_grey_images_are_checked_without_a_copy():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append((str(function), [a.numel() for a in args if isinstance(a, torch.Tensor)]))
            return function(*args, **(kwargs or {}))

    grey = torch.rand(10, 1, 8, 8)
    with Watch():
        ImageSet(grey.expand(-1, 3, -1, -1), torch.zeros(10, dtype=torch.int64))
    assert [n for name, n in seen if "aminmax" in name] == [[640]]
    with pytest.raises(ValueError, match=r"must lie in \[0,1\]"):
        ImageSet((grey + 1).expand(-1, 3, -1, -1), torch.zeros(10, dtype=torch.int64))


def test_own_folders_with_a_split(tmp_path):
    write_folders(tmp_path, ["cat", "dog"], n=2)
    domain = load_domain(f"folder:{tmp_path}", 16)
    assert (domain.name, domain.classes, len(domain.train), len(domain.test)) == (
        f"folder:{tmp_path}",
        ("cat", "dog"),
        4,
        4,
    )
    first = Image.open(tmp_path / "train/cat/0.png").resize((16, 16))
    assert torch.equal(domain.train.images[0], torch.tensor(np.array(first)).permute(2, 0, 1) / 255)


def test_own_folders_are_split_once_and_for_all(tmp_path):
    write_folders(tmp_path, ["cat", "dog"], parts=("",), n=8)
    one, two = load_domain(f"folder:{tmp_path}", 16), load_domain(f"folder:{tmp_path}", 16)
    assert one.train.labels.bincount().tolist() == [
        6,
        6,
    ] and one.test.labels.bincount().tolist() == [2, 2]
    assert torch.equal(one.train.images, two.train.images) and torch.equal(
        one.test.images, two.test.images
    )
    train = {image.numpy().tobytes() for image in one.train.images}
    assert len(train) == 12 and not any(
        image.numpy().tobytes() in train for image in one.test.images
    )


def test_own_folders_with_mistakes_in_them(tmp_path):
    def load(name):
        return load_domain(f"folder:{tmp_path / name}", 16)

    write_folders(tmp_path / "half", ["cat", "dog"], parts=("train",))
    with pytest.raises(FileNotFoundError, match="must hold train/<class>"):
        load("half")
    write_folders(tmp_path / "unlike/train", ["cat", "dog"], parts=("",))
    write_folders(tmp_path / "unlike/test", ["cat", "fox"], parts=("",))
    with pytest.raises(ValueError, match="must have the same class folders, got .*dog.* and .*fox"):
        load("unlike")
    write_folders(tmp_path / "few", ["cat", "dog"], parts=("",), n=3)
    with pytest.raises(ValueError, match="at least 4 images a class .* got 3"):
        load("few")
    write_folders(tmp_path / "one", ["cat"], parts=("",), n=8)
    with pytest.raises(ValueError, match="at least two class folders, got .'cat'"):
        load("one")
    write_folders(tmp_path / "bad", ["cat", "dog"], parts=("",), n=8)
    (tmp_path / "bad/cat/3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cat/3.png cannot be read as an image"):
        load("bad")
    with pytest.raises(FileNotFoundError, match="nowhere must hold"):
        load("nowhere")


def test_domains_that_need_no_files_are_fixed():
    for name in (
        "digits",
        "digits_photo",
        "digits_font",
        "photos",
        "debug",
        "debug_ood",
        "debug_open",
    ):
        one = load_domain(name, 8)
        torch.manual_seed(7)
        two = load_domain(name, 8)
        assert torch.equal(one.train.images, two.train.images) and torch.equal(
            one.test.images, two.test.images
        )
        assert one.name == name in DOMAINS and len(one.test) > 0


def test_wrong_names_and_sets():
    with pytest.raises(ConfigError, match="Did you mean 'digits->digits_photo'"):
        load_task("digits->digit_photo")
    with pytest.raises(ConfigError, match="size must be at least|size must be 8 to 64"):
        load_task("digits->digits_photo", size=4)
    with pytest.raises(ValueError, match="labels must be int64"):
        ImageSet(torch.rand(2, 3, 8, 8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must lie in \[0,1\]"):
        ImageSet(torch.rand(2, 3, 8, 8) * 255, torch.zeros(2, dtype=torch.int64))
