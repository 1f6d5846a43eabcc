"""Shared fixtures: the debug task and teachers trained on it, in seconds."""

import signal
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10, STL10, SVHN

from atesc.data.tasks import load_task
from atesc.study.grid import Teachers
from atesc.study.presets import load_preset


@pytest.fixture(scope="session")
def preset():
    return load_preset("debug")


@pytest.fixture(scope="session")
def task(preset):
    return load_task(preset.task, preset.size)


@pytest.fixture(scope="session")
def teachers(preset, task):
    return Teachers(preset, task)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C works, here and in processes that a test starts.

    A shell ignores SIGINT for its background jobs, and every process that these start.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def any_checksum(monkeypatch):
    """Stand-ins do not have the MD5 sums of the real files, so only their presence is checked."""
    for module in ("atesc.data.sources", *(kind.__module__ for kind in (CIFAR10, STL10, SVHN))):
        monkeypatch.setattr(
            f"{module}.check_integrity", lambda path, md5=None: Path(path).is_file()
        )
