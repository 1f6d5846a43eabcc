"""Small files in the formats of the published data sets."""

import bz2
import pickle
import struct

import numpy as np
from PIL import Image
from scipy.io import savemat

from atesc.data.sources import CIFAR_CLASSES, SOURCES, STL_CLASSES


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def write_folders(folder, classes, parts=("train", "test"), n=1, kind="png", side=28):
    rng = np.random.default_rng(1)
    for part in parts:
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for k in range(n):
                image = Image.fromarray(rng.integers(0, 256, (side, side + 4, 3), dtype=np.uint8))
                image.save(folder / part / name / f"{k}.{kind}")


def write_stand_in(name, root):
    """Write 20 train and 10 test images in the data set's own format.

    Returns their pixels [N, C, H, W] and their labels.
    """
    rng = np.random.default_rng(0)
    shape = {
        "usps": (1, 16, 16),
        "svhn": (3, 32, 32),
        "cifar10": (3, 32, 32),
        "stl10": (3, 96, 96),
    }.get(name, (1, 28, 28))
    made = [
        (rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 10) for n in (20, 10)
    ]
    if name == "stl10":  # blocks of one colour, so that something is left at a sixth of the size
        made = [
            (pixels[..., ::6, ::6].repeat(6, 2).repeat(6, 3), labels) for pixels, labels in made
        ]
    for part, (pixels, labels) in zip(("train", "test"), made):
        if name in ("mnist", "fashion_mnist"):
            raw = root / SOURCES[name].files
            raw.mkdir(parents=True, exist_ok=True)
            prefix = raw / {"train": "train", "test": "t10k"}[part]
            write_idx(prefix.with_name(f"{prefix.name}-images-idx3-ubyte"), pixels[:, 0])
            write_idx(prefix.with_name(f"{prefix.name}-labels-idx1-ubyte"), labels.astype(np.uint8))
        elif name == "usps":  # libsvm: labels 1 to 10, pixels -1 to 1
            rows = zip(labels + 1, (pixels / 127.5 - 1).reshape(len(pixels), -1))
            text = "".join(
                f"{k} " + " ".join(f"{i + 1}:{v:.5f}" for i, v in enumerate(row)) + "\n"
                for k, row in rows
            )
            (root / {"train": "usps.bz2", "test": "usps.t.bz2"}[part]).write_bytes(
                bz2.compress(text.encode())
            )
        elif name == "svhn":  # HWCN, digit 0 has the label 10
            savemat(
                root / f"{part}_32x32.mat",
                {
                    "X": pixels.transpose(2, 3, 1, 0),
                    "y": np.where(labels == 0, 10, labels)[:, None],
                },
            )
        elif name == "cifar10":
            folder = root / "cifar-10-batches-py"
            folder.mkdir(exist_ok=True)
            names = [f"data_batch_{k}" for k in range(1, 6)] if part == "train" else ["test_batch"]
            for file, rows in zip(names, np.array_split(np.arange(len(pixels)), len(names))):
                batch = {
                    "data": pixels[rows].reshape(len(rows), -1),
                    "labels": labels[rows].tolist(),
                }
                (folder / file).write_bytes(pickle.dumps(batch))
            (folder / "batches.meta").write_bytes(
                pickle.dumps({"label_names": list(CIFAR_CLASSES)})
            )
        elif name == "stl10":  # column-major images, labels 1 to 10
            folder = root / "stl10_binary"
            folder.mkdir(exist_ok=True)
            (folder / f"{part}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())
            (folder / f"{part}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
            (folder / "unlabeled_X.bin").write_bytes(b"")
            (folder / "class_names.txt").write_text("\n".join(STL_CLASSES))
    return made
