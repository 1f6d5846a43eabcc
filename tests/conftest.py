"""Shared fixtures: the debug task and teachers trained on it, in seconds."""
import pytest
import torch

from atesc.experiment import load_preset, train_teachers
from atesc.tasks import load_task


@pytest.fixture(scope="session")
def preset():
    return load_preset("debug")


@pytest.fixture(scope="session")
def task(preset):
    return load_task(preset.task, preset.size)


@pytest.fixture(scope="session")
def teachers(preset, task):
    return train_teachers(preset, task, seed=0)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
