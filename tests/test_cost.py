"""What the method costs, counted and not timed: images through the networks, and gradients back."""

import pytest
import torch

from atesc.method.decoys import DecoyConfig
from atesc.method.distill import distill
from atesc.method.objectives import CalibratedKD, DecoyEscape, PlainKD
from atesc.method.run import DistillConfig
from atesc.method.splitter import PGDSplitter
from atesc.method.traps import LineUp, LineUpConfig
from atesc.synthesis.dfq import DFQ, DFQConfig
from atesc.synthesis.generator import DCGANGenerator
from atesc.teachers.examine import NOISE
from atesc.teachers.networks import SmallVGG
from atesc.teachers.observation import Passes, count_passes

ITERATIONS, STEPS, BATCH, SYNTHETIC = 6, 3, 32, 16  # student steps, student batch, generator batch
SNAPSHOTS = sum(
    SYNTHETIC * iteration for iteration in range(2, ITERATIONS + 1)
)  # in so short a run the watch looks at the whole pool, after a quarter of it each time

TWO = 2  # synthetic images that teacher and student are tried on before training
EXAMINED = 2 * (TWO + NOISE + 2)  # these, noise, black and white, twice


@pytest.mark.parametrize(
    "objective, gradients",
    [
        (PlainKD(), 1),
        (CalibratedKD(), 2),
    ],  # back through the teacher, for each image of the generator's batch
    ids=lambda x: getattr(x, "name", None),
)
def test_passes_of_an_iteration(objective, gradients, teachers):
    student, generator = SmallVGG("8 M 8", 4), DCGANGenerator(size=8, latent_dim=16, width=8)
    config = DistillConfig(student_steps=STEPS, batch_size=BATCH)
    with count_passes(student) as learned, count_passes(generator) as made:
        result = distill(
            teachers.ntl,
            student,
            synthesizer=DFQ(generator, DFQConfig(batch_size=SYNTHETIC)),
            objective=objective,
            iterations=ITERATIONS,
            config=config,
        )
    assert result.passes == Passes(
        forward=ITERATIONS * SYNTHETIC, backward=ITERATIONS * gradients * SYNTHETIC
    )
    assert made.forward == ITERATIONS * SYNTHETIC + TWO
    adversarial = ITERATIONS * SYNTHETIC
    assert learned == Passes(
        forward=ITERATIONS * STEPS * BATCH + adversarial + EXAMINED + SNAPSHOTS,
        backward=ITERATIONS * STEPS * BATCH + adversarial,
    )


def test_pgd_attacks_an_image_once_in_its_life(teachers):
    """Student steps do not attack: their number does not matter."""

    def passes(steps):
        result = distill(
            teachers.ntl,
            SmallVGG("8 M 8", 4),
            synthesizer=DFQ(
                DCGANGenerator(size=8, latent_dim=16, width=8), DFQConfig(batch_size=SYNTHETIC)
            ),
            objective=CalibratedKD(splitter=PGDSplitter(steps=3, random_start=False)),
            iterations=1,
            config=DistillConfig(student_steps=steps, batch_size=BATCH),
        )
        return result.passes

    assert passes(1) == passes(7)
    assert passes(1).backward <= SYNTHETIC * (1 + 3)


@pytest.mark.parametrize("trapped", [True, False])
def test_passes_of_atesc(trapped, teachers, monkeypatch):
    """The line-up, once; and decoys in every iteration after the first, if a class was found."""
    config = DecoyConfig(
        LineUpConfig(generators=3, steps=7, per_class=3), batch_size=8, max_trap_share=1.0
    )
    objective = DecoyEscape(decoy=config)
    monkeypatch.setattr(
        LineUp, "traps", property(lambda self: torch.tensor([trapped, False, False, False]))
    )
    student, generator = SmallVGG("8 M 8", 4), DCGANGenerator(size=8, latent_dim=16, width=8)
    synthesizer = DFQ(generator, DFQConfig(batch_size=SYNTHETIC))
    with count_passes(student) as mine:
        result = distill(
            teachers.ntl,
            student,
            synthesizer=synthesizer,
            objective=objective,
            iterations=ITERATIONS,
            config=DistillConfig(student_steps=STEPS, batch_size=BATCH),
        )
    decoys = (ITERATIONS - 1) * 8 if trapped else 0
    own, line_up, scored = ITERATIONS * SYNTHETIC, 3 * 7 * 3 * 4, 3 * 5 * 3 * 4
    assert result.passes == Passes(
        forward=line_up + own + decoys, backward=line_up + scored + own + decoys
    )
    trained = STEPS * BATCH * (2 * ITERATIONS - 1 if trapped else ITERATIONS)
    assert mine == Passes(
        forward=trained + own + decoys + EXAMINED + SNAPSHOTS, backward=trained + own + decoys
    )
