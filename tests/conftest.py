"""Shared fixtures: the debug task and teachers trained on it, in seconds."""

import pytest
import torch

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
