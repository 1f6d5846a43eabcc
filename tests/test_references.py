"""The maths against plain formulas, written as loops over single samples."""

import math

import pytest
import torch

from atesc.method.splitter import margin
from atesc.synthesis.losses import balance, batchnorm_loss, kl_divergence
from atesc.teachers.mmd import mmd
from atesc.teachers.networks import SmallVGG
from atesc.teachers.observation import observe
from atesc.teachers.training import TeacherConfig, ntl_loss


def reference_mmd(a, b):
    points = [*a, *b]
    n, m = len(points), len(a)
    d = [[sum((x - y) ** 2 for x, y in zip(u, v)) for v in points] for u in points]
    base = sum(map(sum, d)) / (n * (n - 1)) / 4  # five bandwidths, factor 2, the mean in the middle

    def k(i, j):
        return sum(math.exp(-d[i][j] / (base * 2**s)) for s in range(5))

    def mean(rows, columns):
        return sum(k(i, j) for i in rows for j in columns) / (len(rows) * len(columns))

    first, second = range(m), range(m, n)
    return mean(first, first) + mean(second, second) - 2 * mean(first, second)


@pytest.mark.parametrize("shift", [0.0, 0.5, 4.0])
def test_mmd(shift):
    a, b = torch.randn(7, 3), torch.randn(9, 3) + shift
    assert mmd(a, b).item() == pytest.approx(reference_mmd(a.tolist(), b.tolist()), abs=1e-5)


def test_ntl_loss_is_bounded_and_ignores_neither_part():
    config = TeacherConfig()
    logits = torch.zeros(4, 3)
    logits[2:, 0] = 1e4  # OOD images sent far from their labels 1 and 2
    features = torch.cat([torch.zeros(2, 5), torch.full((2, 5), 1e3)])
    loss = ntl_loss(logits, features, torch.tensor([0, 1]), torch.tensor([1, 2]), config)
    apart = min(1.0, 0.1 * reference_mmd(features[:2].tolist(), features[2:].tolist()))
    assert loss.item() == pytest.approx(math.log(3) - 1.0 * apart, abs=1e-4)


def test_batchnorm_loss():
    net = SmallVGG("4 M 6", 3).train()
    for _ in range(3):
        net(torch.rand(8, 3, 8, 8))
    net.eval()
    images = torch.rand(5, 3, 8, 8)
    expected, x = 0.0, 2 * images - 1
    with torch.no_grad():
        for layer in net.features:
            if isinstance(layer, torch.nn.BatchNorm2d):
                means, variances = [], []
                for c in range(x.shape[1]):
                    values = x[:, c].flatten().tolist()
                    mean = sum(values) / len(values)
                    means.append(mean - layer.running_mean[c].item())
                    variances.append(
                        sum((v - mean) ** 2 for v in values) / len(values)
                        - layer.running_var[c].item()
                    )
                expected += math.sqrt(sum(m * m for m in means)) + math.sqrt(
                    sum(v * v for v in variances)
                )
            x = layer(x)
        assert batchnorm_loss(observe(net, images).statistics).item() == pytest.approx(
            expected, rel=1e-4
        )


def test_kl_balance_margin():
    t, s = torch.randn(3, 4), torch.randn(3, 4)
    p, q = t.softmax(1).tolist(), s.softmax(1).tolist()
    for i, value in enumerate(kl_divergence(t, s).tolist()):
        assert value == pytest.approx(
            sum(a * math.log(a / b) for a, b in zip(p[i], q[i])), abs=1e-5
        )
    mean = [sum(row[k] for row in p) / 3 for k in range(4)]
    assert balance(t).item() == pytest.approx(-sum(m * math.log(m) for m in mean), abs=1e-5)
    assert margin(torch.tensor([[3.0, 1.0, 2.5]]), torch.tensor([0])).item() == pytest.approx(0.5)
    assert margin(torch.tensor([[3.0, 1.0, 2.5]]), torch.tensor([1])).item() == pytest.approx(-2.0)
