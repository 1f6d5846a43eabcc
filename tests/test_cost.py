"""What the method costs, counted and not timed: images through the networks, and gradients back."""
import pytest

from atesc.distill import DistillConfig, distill
from atesc.escape import ATEsc, CalibratedKD, PlainKD
from atesc.generator import DCGANGenerator
from atesc.networks import Passes, SmallVGG, count_passes
from atesc.splitter import PGDSplitter
from atesc.synthesis import DFQ, DFQConfig

ITERATIONS, STEPS, BATCH, SYNTHETIC = 6, 3, 32, 16  # student steps, student batch, generator batch


@pytest.mark.parametrize(
    "objective, gradients",
    [(PlainKD(), 1), (CalibratedKD(), 2), (ATEsc(), 2)],  # back through the teacher, for each image of the generator's batch
    ids=lambda x: getattr(x, "name", None),
)
def test_passes_of_an_iteration(objective, gradients, teachers):
    student, generator = SmallVGG("8 M 8", 4), DCGANGenerator(size=8, latent_dim=16, width=8)
    config = DistillConfig(student_steps=STEPS, batch_size=BATCH)
    with count_passes(student) as mine, count_passes(generator) as made:
        result = distill(
            teachers.ntl, student, synthesizer=DFQ(generator, DFQConfig(batch_size=SYNTHETIC)), objective=objective,
            iterations=ITERATIONS, config=config,
        )
    assert result.passes == Passes(forward=ITERATIONS * SYNTHETIC, backward=ITERATIONS * gradients * SYNTHETIC)
    check = 2  # images that teacher and student are tried on before training
    assert made.forward == ITERATIONS * SYNTHETIC + check
    adversarial = ITERATIONS * SYNTHETIC
    assert mine == Passes(forward=ITERATIONS * STEPS * BATCH + adversarial + check, backward=ITERATIONS * STEPS * BATCH + adversarial)


def test_pgd_attacks_an_image_once_in_its_life(teachers):
    """Student steps do not attack: their number does not matter."""

    def passes(steps):
        result = distill(
            teachers.ntl, SmallVGG("8 M 8", 4), synthesizer=DFQ(DCGANGenerator(size=8, latent_dim=16, width=8), DFQConfig(batch_size=SYNTHETIC)),
            objective=ATEsc(PGDSplitter(steps=3, random_start=False)), iterations=1, config=DistillConfig(student_steps=steps, batch_size=BATCH),
        )
        return result.passes

    assert passes(1) == passes(7)
    assert passes(1).backward <= SYNTHETIC * (1 + 3)
