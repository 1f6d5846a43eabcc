"""VGG and ResNet for small images: depths, widths, shapes, hooks, names, files."""

import json
import re

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet34, vgg11_bn, vgg13_bn
from torchvision.models.resnet import BasicBlock

from atesc.inside.archive import WeightsError
from atesc.inside.errors import ConfigError
from atesc.teachers.networks import NETWORKS, PAIRS, DeepVGG, SmallResNet, SmallVGG, build_network
from atesc.teachers.observation import count_passes, frozen, observe
from atesc.teachers.saved import load_model, save_model

NAMES = ["vgg11", "vgg13", "resnet18", "resnet34"]
ORIGINALS = {"vgg11": vgg11_bn, "vgg13": vgg13_bn, "resnet18": resnet18, "resnet34": resnet34}
PLANS = ["8 M 16", "16"]


def kernels(network, size):
    """Shapes of the convolutions with larger kernels than `size`, in order."""
    return [
        tuple(m.weight.shape)
        for m in network.modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size[0] > size
    ]


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_the_table_is_whole():
    assert list(NETWORKS) == NAMES
    assert PAIRS == {"vgg13": "vgg11", "resnet34": "resnet18"}


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("name", [*NAMES, *PLANS])
def test_shapes_features_and_statistics(name, size):
    network = build_network(name, 7, width=1 / 8)
    images = torch.rand(3, 3, size, size)
    with frozen(network), torch.no_grad():
        seen = observe(network, images)
        assert seen.logits.shape == (3, 7)
        assert torch.equal(seen.logits, network(images))
        assert torch.allclose(network.classifier(seen.features), seen.logits, atol=1e-5)
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [layer for *_, layer in seen.statistics] == layers  # each once, in the order of the pass
    assert all(
        mean.shape == var.shape == layer.running_mean.shape for mean, var, layer in seen.statistics
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_published_network_at_width_one(name):
    """Convolutions and BatchNorm layers are those of torchvision, up to the stem of ResNet."""
    network, original = build_network(name, 10), ORIGINALS[name](num_classes=10)
    published = kernels(original, 0)
    if name.startswith("resnet"):
        assert published[0] == (64, 3, 7, 7)
        published[0] = (64, 3, 3, 3)
    assert kernels(network, 0) == published
    norms = [
        sum(isinstance(m, nn.BatchNorm2d) for m in either.modules())
        for either in (network, original)
    ]
    assert norms[0] == norms[1]
    assert network.classifier.in_features == (512 if name.startswith("resnet") else 4 * 512)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_the_blocks_are_those_of_torchvision(name):
    narrow, original = build_network(name, 4, width=1 / 8), ORIGINALS[name]()
    blocks = [
        [m for m in network.modules() if isinstance(m, BasicBlock)]
        for network in (narrow, original)
    ]
    assert all(type(m) is BasicBlock for m in blocks[0])
    strides = [[(m.stride, m.downsample is None) for m in some] for some in blocks]
    assert strides[0] == strides[1]


@pytest.mark.parametrize("name", ["vgg11", "vgg13"])
def test_the_stages_are_those_of_torchvision(name):
    layers, published = build_network(name, 4, width=1 / 8).features, ORIGINALS[name]().features
    assert [type(m) for m in layers] == [type(m) for m in published]


@pytest.mark.parametrize(
    "name, size, pools",
    [("vgg11", 8, 2), ("vgg11", 16, 3), ("vgg13", 32, 4), ("vgg13", 64, 5), ("vgg11", 24, 3)],
)
def test_vgg_stops_pooling_at_two_by_two(name, size, pools):
    network, ran, last = build_network(name, 4, width=1 / 8), [], []
    for layer in network.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda m, given, out: ran.append(out.shape[-1]))
    network.pool.register_forward_pre_hook(lambda m, given: last.append(given[0].shape[-1]))
    network(torch.rand(2, 3, size, size))
    assert len(ran) == pools and min(ran) == last[0] >= 2


@pytest.mark.parametrize("name", NAMES)
def test_the_width_scales_every_layer(name):
    whole, quarter = build_network(name, 10), build_network(name, 10, width=0.25)
    for (key, a), (other, b) in zip(
        whole.named_parameters(), quarter.named_parameters(), strict=True
    ):
        assert key == other
        assert b.shape[0] == (10 if key.startswith("classifier") else a.shape[0] // 4)
    odd = build_network(name, 10, width=0.3)
    assert [shape[0] for shape in kernels(odd, 1)] == [
        round(0.3 * shape[0]) for shape in kernels(whole, 1)
    ]
    smallest = build_network(name, 10, width=1 / 64)
    assert smallest(torch.rand(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("name", [*NAMES, *PLANS])
def test_weights_come_from_the_seed_alone(name):
    first = build_network(name, 4, width=1 / 8, seed=5)
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    assert same_weights(first, build_network(name, 4, width=1 / 8, seed=5))
    assert torch.equal(torch.rand(3), expected), "the caller's random numbers are not used up"
    assert not same_weights(first, build_network(name, 4, width=1 / 8, seed=6))


def test_a_plan_is_the_same_small_vgg():
    assert same_weights(build_network("8 M 16", 4, seed=3), SmallVGG("8 M 16", 4, seed=3))
    assert build_network("32 M 64", 4, width=0.25).config == SmallVGG("8 M 16", 4).config
    plain = build_network("8 M 16", 4, batch_norm=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())


@pytest.mark.parametrize("name", NAMES)
def test_input_is_shifted_and_memory_is_channels_last(name):
    network, given = build_network(name, 4, width=1 / 8), []
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda m, inputs: given.append(inputs[0]))
    images = torch.rand(2, 3, 16, 16)
    network(images)
    assert torch.allclose(given[0], 2 * images - 1)
    assert all(
        m.weight.is_contiguous(memory_format=torch.channels_last)
        for m in network.modules()
        if isinstance(m, nn.Conv2d)
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_a_narrow_resnet_is_not_channels_last(name):
    """There oneDNN's backward pass writes outside its memory, and ends the process at times."""
    network = build_network(name, 4, width=1 / 16)
    assert all(parameter.is_contiguous() for parameter in network.parameters())
    for _ in range(10):
        network(torch.rand(64, 3, 16, 16)).square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_finite_and_reach_everything(name, training):
    network = build_network(name, 4, width=1 / 8).train(training)
    images = torch.rand(4, 3, 16, 16, requires_grad=True)
    with count_passes(network) as passes:
        torch.nn.functional.cross_entropy(network(images), torch.arange(4)).backward()
    assert (passes.forward, passes.backward) == (4, 4)
    for key, value in [("images", images), *network.named_parameters()]:
        assert torch.isfinite(value.grad).all(), key
    assert images.grad.abs().sum() > 0
    assert all(
        m.weight.grad.abs().sum() > 0
        for m in network.modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_learn(name):
    """Sixteen images in four classes of brightness, learnt by heart."""
    network, labels = build_network(name, 4, width=1 / 8), torch.arange(16) % 4
    images = (0.2 * torch.rand(16, 3, 16, 16) + 0.2 * labels[:, None, None, None]).clamp(0, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "vgg12",
            "unknown network 'vgg12'; known: vgg11, vgg13, resnet18, resnet34. Did you mean 'vgg1",
        ),
        ("resnet43", "Did you mean 'resnet34'?"),
        ("vgg-11", "Did you mean 'vgg11'?"),
        ("alexnet", "unknown network 'alexnet'"),
        ("32 N 64", "plan must be widths and M, like '32 M 64 M 128 M'; got '32 N 64'"),
    ],
)
def test_unknown_names(name, text):
    with pytest.raises(ConfigError) as error:
        build_network(name, 4)
    assert text in str(error.value)


@pytest.mark.parametrize(
    "make", [DeepVGG, SmallResNet, lambda **k: build_network("8 M 8", **{"num_classes": 4, **k})]
)
def test_wrong_settings(make):
    with pytest.raises(ConfigError, match="width must be 0.015625 to 16, got 0"):
        make(width=0)
    with pytest.raises(ConfigError, match="num_classes must be 2 to 65536, got 1"):
        make(num_classes=1)


def test_each_class_knows_its_own_names():
    with pytest.raises(ConfigError, match="unknown VGG 'resnet18'"):
        DeepVGG("resnet18")
    with pytest.raises(ConfigError, match="unknown ResNet 'vgg11'"):
        SmallResNet("vgg11")
    with pytest.raises(ConfigError, match="resnet18 always has BatchNorm"):
        build_network("resnet18", 4, batch_norm=False)


@pytest.mark.parametrize(
    "name, settings", [*((name, {}) for name in [*NAMES, *PLANS]), ("8 M 8", {"batch_norm": False})]
)
def test_saved_and_rebuilt(name, settings, tmp_path):
    network = build_network(name, 5, width=1 / 8, seed=9, **settings)
    network(torch.rand(8, 3, 16, 16))  # running statistics of its own
    loaded = load_model(save_model(network, tmp_path / "network.safetensors"))
    assert (
        type(loaded) is type(network)
        and loaded.config == network.config
        and same_weights(loaded, network)
    )
    assert not loaded.training
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(images), network.eval()(images))


def test_a_file_of_another_width_does_not_fit(tmp_path):
    path = save_model(build_network("vgg11", 5, width=1 / 8), tmp_path / "vgg.safetensors")
    text = "'features.0.weight' has shape [8, 3, 3, 3], the network's has [16, 3, 3, 3]"
    with pytest.raises(WeightsError, match=re.escape(f"vgg.safetensors does not fit: {text}")):
        load_model(path, build_network("vgg11", 5, width=1 / 4))


@pytest.mark.parametrize(
    "config",
    [
        {"name": "resnet99", "num_classes": 4},
        {"name": "8 M 8"},
        {"name": "8 M 8", "num_classes": "4"},
        {"name": 8, "num_classes": 4},
        {"name": ["vgg11"], "num_classes": 4},
        {"name": "vgg11", "num_classes": 4, "depth": 3},
        ["vgg11", 4],
    ],
)
def test_unknown_settings_in_a_file(config, tmp_path):
    torch.save({"network": "DeepVGG", "config": config, "state": {}}, tmp_path / "odd.pt")
    path = save_model(build_network("vgg11", 4, width=1 / 8), tmp_path / "odd.safetensors")
    path.with_suffix(".json").write_text(json.dumps({"network": "DeepVGG", "config": config}))
    for file in (tmp_path / "odd.pt", path):
        with pytest.raises(WeightsError, match="holds a DeepVGG of unknown settings"):
            load_model(file)


def test_a_subclass_is_not_rebuilt_as_its_parent(tmp_path):
    class Negative(SmallVGG):
        def forward(self, images):
            return -super().forward(images)

    path = save_model(Negative("8 M 8", 4), tmp_path / "negative.safetensors")
    with pytest.raises(
        ValueError, match=r"holds a Negative, which atesc cannot build: pass model=Negative\(...\)"
    ):
        load_model(path)
    assert type(load_model(path, Negative("8 M 8", 4, seed=1))) is Negative
