"""Domains: fixed splits without overlap, files found where they should be, helpful errors."""
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from atesc.core import ConfigError
from atesc.domains import CROP, ImageSet, data_root, load_task, photo_columns


def test_no_digit_is_in_both_parts():
    task = load_task("digits->digits_photo", size=16)
    train = {image.numpy().tobytes() for image in task.id.train.images}
    assert len(task.id.train) + len(task.id.test) == 1797
    assert not any(image.numpy().tobytes() in train for image in task.id.test.images)
    assert torch.equal(task.id.train.labels, task.ood.train.labels)
    assert torch.equal(task.id.test.labels, task.ood.test.labels)


def test_no_photo_pixel_is_in_both_parts(monkeypatch):
    """Colour the photographs by column and read the columns back from the blended images."""
    import atesc.domains as domains

    width = 640
    ramp = np.broadcast_to(np.where(np.arange(width) < width * 0.7, 0, 255).astype(np.uint8)[None, :, None], (427, width, 3))
    fake = type("Bunch", (), {"images": [ramp, ramp]})
    monkeypatch.setattr(domains, "load_sample_images", lambda: fake)
    assert domains._photo_crops(200, 16, "train").max() == 0
    assert domains._photo_crops(200, 16, "test").min() == 1


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


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def data_folder(tmp_path):
    """MNIST and MNIST-M in their on-disk formats, a few images each."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("t10k", 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8))
    for part in ("train", "test"):
        for digit in range(10):
            folder = tmp_path / "mnist_m" / part / str(digit)
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(folder / "a.png")
    return tmp_path


def test_mnist_tasks_from_files(data_folder, monkeypatch):
    task = load_task("mnist->mnist_m", size=16, root=data_folder)
    assert task.id.train.images.shape == (20, 3, 16, 16) and task.ood.test.images.shape == (10, 3, 16, 16)
    assert task.ood.train.labels.tolist() == list(range(10))
    monkeypatch.setenv("ATESC_DATA", str(data_folder))
    assert data_root() == data_folder
    assert torch.equal(load_task("mnist->mnist_m", size=16).id.test.images, task.id.test.images)


def test_missing_data_says_where_and_how(tmp_path):
    with pytest.raises(FileNotFoundError, match="MNIST is not in .*download=True"):
        load_task("mnist->mnist_m", root=tmp_path)


def test_wrong_names_and_sets():
    with pytest.raises(ConfigError, match="Did you mean 'digits->digits_photo'"):
        load_task("digits->digit_photo")
    with pytest.raises(ConfigError, match="size must be at least|size must be 8 to 64"):
        load_task("digits->digits_photo", size=4)
    with pytest.raises(ValueError, match="labels must be int64"):
        ImageSet(torch.rand(2, 3, 8, 8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must lie in \[0,1\]"):
        ImageSet(torch.rand(2, 3, 8, 8) * 255, torch.zeros(2, dtype=torch.int64))
