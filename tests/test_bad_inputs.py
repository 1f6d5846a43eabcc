"""Mistakes that users make: each ends in the package's own error, one line, argument named."""

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from atesc.app.command import main as command
from atesc.app.explore import Explorer, Question, explore
from atesc.app.run import experiments, parse_value, run_experiment
from atesc.app.run_all import plan_all, run_all
from atesc.data import tasks
from atesc.data.domains import Domain, ImageSet, load_domain
from atesc.data.tasks import Task, check_task, load_task
from atesc.inside import checks, errors, runtime, tensors
from atesc.inside.checks import configure
from atesc.inside.errors import AtescError
from atesc.inside.records import append_records, load_records, record_key
from atesc.method.decoys import DecoyConfig
from atesc.method.distill import DistillConfig
from atesc.method.objectives import ATEsc, CalibratedKD, DecoyEscape, PlainKD
from atesc.method.rivals import (
    CalibratedSplitter,
    ConfidenceSplitter,
    EntropySplitter,
    FeatureSplitter,
    GradientSplitter,
    RandomSplitter,
)
from atesc.method.splitter import PGDSplitter, RadiusSplitter, radius
from atesc.method.traps import LineUpConfig
from atesc.study.criteria import auroc, measure_scores, scores_after
from atesc.study.domain_eval import (
    DomainEvaluator,
    domain_task,
    evenly,
    features_of,
    frechet_distance,
)
from atesc.study.metrics import accuracy, evaluator, gap_closed, mislead, predict
from atesc.study.plots import (
    caption,
    plot_bars,
    plot_curves,
    plot_dots,
    plot_images,
    plot_scatter,
    save_figure,
)
from atesc.study.presets import (
    Preset,
    distill_config,
    generator_for,
    load_preset,
    objective_for,
    settings_of,
    synthesizer_for,
)
from atesc.study.privacy import (
    RealImages,
    attack_report,
    chance_std,
    halves,
    lira,
    nearest_members,
    part_of,
    roc,
    scaled_confidence,
)
from atesc.study.query import groups, mean_std, paired, query, select
from atesc.synthesis.batch import Pool
from atesc.synthesis.cmi import CMI, CMIConfig
from atesc.synthesis.dfq import DFQ, DFQConfig
from atesc.synthesis.generator import BigGANGenerator, DCGANGenerator, synthesise
from atesc.synthesis.nayer import NAYER, NAYERConfig, NoisyGenerator
from atesc.teachers.networks import SmallVGG, build_network
from atesc.teachers.training import TeacherConfig

NAN, INF = math.nan, math.inf
IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)
NET = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))  # of the debug tasks' images
SET = ImageSet(IMAGES, LABELS)
DOMAIN = Domain("four", SET, SET, tuple("abcd"))
TASK = Task("four->four", "close-set", DOMAIN, DOMAIN, 8)
DEBUG = load_preset("debug")
RECORD = {
    "experiment": "e",
    "task": "a->b",
    "teacher": "sl",
    "baseline": "dfq",
    "method": "plain",
    "seed": 0,
    "config": {},
    "kind": "close-set",
}


def broken(value):
    "The network with one weight that is not a number."
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    net[1].weight.data[0, 0] = value
    return net


class Pair(nn.Module):
    "Returns logits and features, as many networks do."

    def forward(self, images):
        return NET(images), images


def with_pixel(value):
    images = IMAGES.clone()
    images[0, 0, 0, 0] = value
    return images


SETTINGS = [  # of configurations: a wrong type, out of range, or neither number nor finite
    (TeacherConfig, "epochs", [0, 2.5, True]),
    (TeacherConfig, "batch_size", [1, "64"]),
    (TeacherConfig, "lr", [0, NAN, INF]),
    (TeacherConfig, "ood_weight", [None, NAN]),
    (TeacherConfig, "mmd_weight", ["0.1", -INF]),
    (TeacherConfig, "apart_weight", [[0.1], INF]),
    (DFQConfig, "adv", [-1, "1"]),
    (DFQConfig, "bn", [-0.5, NAN]),
    (DFQConfig, "oh", [-1e-9, None]),
    (DFQConfig, "bal", [-5, INF]),
    (DFQConfig, "act", [-1e-3, True]),
    (DFQConfig, "lr", [-1e-3, INF, "1e-3"]),
    (DFQConfig, "batch_size", [1, 64.0, np.int64(64)]),
    (CMIConfig, "steps", [0, 1.5]),
    (CMIConfig, "batch_size", [1, None]),
    (CMIConfig, "lr", [-1, NAN]),
    (CMIConfig, "bn", [-1, INF]),
    (CMIConfig, "oh", [-1, "one"]),
    (CMIConfig, "adv", [-1, False]),
    (CMIConfig, "cr", [-0.1, NAN]),
    (CMIConfig, "temperature", [0, -0.1, INF]),
    (CMIConfig, "head_dim", [0, 64.5]),
    (CMIConfig, "bank", [0, "512"]),
    (CMIConfig, "pad", [-1, 0.5]),
    (CMIConfig, "scale", [0, 1.5, NAN]),
    (CMIConfig, "flip", [1, "no"]),
    (CMIConfig, "fresh", [None, 0]),
    (NAYERConfig, "steps", [-1, "10"]),
    (NAYERConfig, "batch_size", [0, 2.0]),
    (NAYERConfig, "lr", [-INF, NAN]),
    (NAYERConfig, "bn", [-1, None]),
    (NAYERConfig, "oh", [-2, INF]),
    (NAYERConfig, "adv", [-1.33, "adv"]),
    (NAYERConfig, "pad", [-4, True]),
    (NAYERConfig, "flip", [0, "yes"]),
    (LineUpConfig, "generators", [0, 2.0]),
    (LineUpConfig, "steps", [0, None]),
    (LineUpConfig, "per_class", [0, "8"]),
    (LineUpConfig, "ratio_limit", [0.5, INF]),
    (LineUpConfig, "bn_weight", [-1, NAN]),
    (LineUpConfig, "lr", [-1e-3, "fast"]),
    (LineUpConfig, "latent_dim", [0, 1.0]),
    (LineUpConfig, "width", [-32, [32]]),
    (DecoyConfig, "line_up", [None, LineUpConfig, {}]),
    (DecoyConfig, "max_trap_share", [-0.1, 1.1, NAN]),
    (DecoyConfig, "batch_size", [3, 64.0]),
    (DecoyConfig, "separation_weight", [-1, NAN]),
    (DecoyConfig, "belief_weight", [-0.1, INF]),
    (DistillConfig, "student_steps", [0, 8.0]),
    (DistillConfig, "batch_size", [1, True]),
    (DistillConfig, "lr", [-2e-3, NAN, INF]),
    (DistillConfig, "pool", [1, "2048"]),
    (DistillConfig, "shift", [-1, 1.5]),
    (DistillConfig, "autocast", [1, "bfloat16"]),
    (PlainKD, "temperature", [0, -20, NAN, INF, "20"]),
    (CalibratedKD, "temperature", [0]),
    (CalibratedKD, "splitter", ["radius", RadiusSplitter, None, DecoyConfig()]),
    (ATEsc, "splitter", ["radius", RadiusSplitter, None]),
    (ATEsc, "weight", [-0.5, NAN, INF, None]),
    (ATEsc, "form", ["unifrom", None, 3]),
    (DecoyEscape, "weight", [-0.5, NAN, INF, None]),
    (DecoyEscape, "decoy", [3, "decoy", DistillConfig(), DecoyConfig]),
    (PGDSplitter, "eps", [-0.1, 4, "4/255", NAN]),
    (PGDSplitter, "steps", [0, 3.0, True]),
    (PGDSplitter, "step_size", [-0.01, 2, "auto"]),
    (PGDSplitter, "random_start", [1, None]),
    (RadiusSplitter, "factor", [0.5, NAN, INF]),
    (RadiusSplitter, "min_images", [0, 8.0]),
    (EntropySplitter, "share", [0, 1.5, "5%"]),
    (ConfidenceSplitter, "above", [1, 0, NAN]),
    (CalibratedSplitter, "above", [1.0, None]),
    (CalibratedSplitter, "noise", [-0.1, 2]),
    (CalibratedSplitter, "memory", [0, 2048.0]),
    (FeatureSplitter, "factor", [0.9, INF]),
    (FeatureSplitter, "near", ["far", 1]),
    (FeatureSplitter, "shrinkage", [0, 2]),
    (FeatureSplitter, "memory", [0, None]),
    (FeatureSplitter, "min_images", [-1, INF]),
    (GradientSplitter, "factor", [0, NAN]),
    (GradientSplitter, "of", ["los", 3]),
    (RandomSplitter, "other", ["radius", RadiusSplitter, None]),
    (RandomSplitter, "memory", [0, 1.5]),
    (Question, "point", ["last", -1]),
    (Question, "eps", [NAN, 4, "4"]),
    (Question, "steps", [0, 2.5]),
    (Question, "factor", [0, INF]),
    (Question, "rule", ["pdg", None]),
    (Question, "student", [3, "ntl-plane"]),
    (Preset, "tasks", [(), "debug->debug_ood", ["debug->debug_ood"], ("debug->debug_odd",), (3,)]),
    (Preset, "size", [7, 10, 128, 16.0]),
    (Preset, "teacher_network", ["vgg12", "", None]),
    (Preset, "student_network", ["resnet81", 18]),
    (Preset, "teacher", [DistillConfig(), {"epochs": 3}]),
    (Preset, "generator", ["dcgna", None]),
    (Preset, "latent_dim", [0, 64.0]),
    (Preset, "generator_width", [-1]),
    (Preset, "dfq", [CMIConfig(), None]),
    (Preset, "cmi", [NAYERConfig(), CMIConfig]),
    (Preset, "nayer", [DFQConfig()]),
    (Preset, "distill", [DFQConfig(), "fast"]),
    (Preset, "round_distill", [TeacherConfig()]),
    (Preset, "temperature", [0, NAN, "20"]),
    (Preset, "round_temperature", [-1, INF]),
    (Preset, "ckd", [DecoyEscape, PlainKD()]),
    (Preset, "atesc", [CalibratedKD(), 0.5]),
    (Preset, "iterations", [0, 2.5, "400"]),
    (Preset, "rounds", [0, True]),
    (Preset, "curve_points", [0, None]),
    (Preset, "synthetic_images", [-1, 1e3]),
    (Preset, "about", [3]),
]
NEEDED = {
    Question: {"student": "ntl-plain", "point": 0},
    Preset: {"about": "", "hardware": "", "time": "", "tasks": ("debug->debug_ood",)},
}

CALLS = {  # mistake: (what the message must say, how it is made)
    # images
    "images: uint8": ("images", lambda: tensors.check_images((IMAGES * 255).byte())),
    "images: 0 to 255": ("images", lambda: tensors.check_images(IMAGES * 255)),
    "images: -1 to 1": ("images", lambda: tensors.check_images(2 * IMAGES - 1)),
    "images: one NaN": ("images", lambda: tensors.check_images(with_pixel(NAN))),
    "images: one infinity": ("images", lambda: tensors.check_images(with_pixel(INF))),
    "images: a single one": ("images", lambda: tensors.check_images(IMAGES[0])),
    "images: a video": ("images", lambda: tensors.check_images(IMAGES[None])),
    "images: NumPy": ("images", lambda: tensors.check_images(IMAGES.numpy())),
    "images: PIL": ("images", lambda: tensors.check_images(Image.new("RGB", (8, 8)))),
    "images: a list of tensors": ("images", lambda: tensors.check_images(list(IMAGES))),
    "images: None": ("images", lambda: tensors.check_images(None)),
    "images: a path": ("images", lambda: tensors.check_images("cat.png")),
    "images: complex": ("images", lambda: tensors.check_images(IMAGES.to(torch.complex64))),
    "images: bool": ("images", lambda: tensors.check_images(IMAGES > 0.5)),
    "images: sparse": ("images", lambda: tensors.check_images(IMAGES.to_sparse())),
    "images: on no device": ("images", lambda: tensors.check_images(IMAGES.to("meta"))),
    "ImageSet: images and labels swapped": ("ImageSet.images", lambda: ImageSet(LABELS, IMAGES)),
    "trigger: NumPy": ("images", lambda: tasks.sig(IMAGES.numpy())),
    "trigger: a single image": ("images", lambda: tasks.blended(IMAGES[0])),
    "trigger: 8-bit": ("images", lambda: tasks.badnets_grid((255 * IMAGES).byte())),
    "trigger: None": ("images", lambda: tasks.badnets_square(None)),
    # labels
    "labels: float": ("ImageSet.labels", lambda: ImageSet(IMAGES, LABELS.float())),
    "labels: int32": ("ImageSet.labels", lambda: ImageSet(IMAGES, LABELS.int())),
    "labels: one-hot": (
        "ImageSet.labels",
        lambda: ImageSet(IMAGES, torch.eye(4, dtype=torch.int64)),
    ),
    "labels: one too few": ("ImageSet.labels", lambda: ImageSet(IMAGES, LABELS[:3])),
    "labels: -1": (
        "labels of four",
        lambda: Domain("four", ImageSet(IMAGES, LABELS - 1), SET, tuple("abcd")),
    ),
    "labels: from 1 on": (
        "labels of four",
        lambda: Domain("four", SET, ImageSet(IMAGES, LABELS + 1), tuple("abcd")),
    ),
    # seeds
    "seed: negative": ("seed", lambda: DCGANGenerator(seed=-1)),
    "seed: float": ("seed", lambda: DCGANGenerator(seed=0.5)),
    "seed: text": ("seed", lambda: DCGANGenerator(seed="0")),
    "seed: None": ("seed", lambda: DCGANGenerator(seed=None)),
    "seed: too large": ("seed", lambda: DCGANGenerator(seed=10**30)),
    "seed: a bool": ("seed", lambda: BigGANGenerator(seed=True)),
    "seed: NaN": ("seed", lambda: halves(10, 2, NAN)),
    "seed: a tensor": ("seed", lambda: SmallVGG("8", seed=torch.tensor(0))),
    # devices
    "device: gpu": ("device", lambda: runtime.pick_device("gpu")),
    "device: upper case": ("Did you mean 'cpu'?", lambda: runtime.pick_device("CPU")),
    "device: None": ("device", lambda: runtime.pick_device(None)),
    "device: a number": ("device", lambda: runtime.pick_device(0)),
    "device: empty": ("device", lambda: runtime.pick_device("")),
    "device: the 99th": ("device", lambda: runtime.pick_device("cuda:99")),
    "device: cuda:x": ("device", lambda: runtime.pick_device("cuda:x")),
    "device: cpu:x": ("device", lambda: runtime.pick_device("cpu:x")),
    "device: cpu:": ("device", lambda: runtime.pick_device("cpu:")),
    # names
    "choose: a list": ("preset", lambda: errors.choose("preset", ["debug"], ["debug"])),
    "choose: a very long name": ("preset", lambda: errors.choose("preset", "x" * 10**5, ["debug"])),
    "choose: an array": (
        "preset",
        lambda: errors.choose("preset", np.zeros(3), ["debug", "digits"]),
    ),
    "choose_all: a list": ("preset", lambda: errors.choose_all("preset", ["debug"], ["debug"])),
    "choose_all: commas": (
        "preset",
        lambda: errors.choose_all("preset", "debug,digits", ["debug", "digits"]),
    ),
    "preset: a slip": ("Did you mean 'debug'?", lambda: load_preset("debgu")),
    "preset: upper case": ("Did you mean 'debug'?", lambda: load_preset("DEBUG")),
    "preset: None": ("preset", lambda: load_preset(None)),
    "preset: two lines": ("preset", lambda: load_preset("debug\ndigits")),
    "setting: a slip": ("Did you mean 'iterations'?", lambda: load_preset("debug", iteration=3)),
    "setting: of another stage": ("setting of DFQConfig", lambda: configure(DFQConfig(), rounds=3)),
    "configure: not a configuration": ("config", lambda: configure({"lr": 1}, lr=2)),
    "configure: a class": ("config", lambda: configure(DFQConfig, lr=2)),
    "check_range: text": ("lr", lambda: checks.check_range("lr", "0.1", 0)),
    "check_range: None": ("lr", lambda: checks.check_range("lr", None, 0)),
    "check_range: a tensor": ("lr", lambda: checks.check_range("lr", torch.rand(3), 0)),
    "check_range: complex": ("lr", lambda: checks.check_range("lr", 1j, 0)),
    "check_range: infinity": ("lr", lambda: checks.check_range("lr", INF, 0)),
    # tasks and domains
    "task: a slip": (
        "Did you mean 'digits->digits_photo'?",
        lambda: check_task("digits->digits_phot"),
    ),
    "task: None": ("task", lambda: check_task(None)),
    "task: a domain": ("task", lambda: check_task("digits")),
    "task: empty": ("task", lambda: check_task("")),
    "task: three folders": ("folder:", lambda: check_task("folder:a->folder:b->folder:c")),
    "task: unknown trigger": ("Did you mean 'blended'?", lambda: check_task("folder:a+blend")),
    "task: unknown domain beside a folder": (
        "Did you mean 'mnist'?",
        lambda: check_task("folder:a->mnits"),
    ),
    "task: of another kind": ("digits+sig", lambda: check_task("digits+sig", "open-set")),
    "task: unknown kind": ("kind", lambda: check_task("digits+sig", "openset")),
    "task: a folder without a path": ("folder:", lambda: check_task("folder:->digits")),
    "load_task: size 10": ("size", lambda: load_task("debug->debug_ood", 10)),
    "load_task: size 1000": ("size", lambda: load_task("debug->debug_ood", 1000)),
    "load_domain: a slip": ("Did you mean 'digits'?", lambda: load_domain("digit", 8)),
    "Task: unknown kind": ("kind of task", lambda: Task("t", "closed-set", DOMAIN, DOMAIN, 8)),
    "Task: no target": ("Task.target", lambda: Task("t", "open-set", DOMAIN, DOMAIN, 8)),
    "Task: target in a close-set task": (
        "Task.target",
        lambda: Task("t", "close-set", DOMAIN, DOMAIN, 8, target=0),
    ),
    "Task: target too large": (
        "Task.target",
        lambda: Task("t", "backdoor", DOMAIN, DOMAIN, 8, target=4),
    ),
    "Task: target a name": (
        "Task.target",
        lambda: Task("t", "backdoor", DOMAIN, DOMAIN, 8, target="cat"),
    ),
    "Task: target a float": (
        "Task.target",
        lambda: Task("t", "backdoor", DOMAIN, DOMAIN, 8, target=1.0),
    ),
    "Task: a name for a domain": (
        "Task.id",
        lambda: Task("t", "open-set", "digits", DOMAIN, 8, target=0),
    ),
    "Task: an image set for a domain": (
        "Task.ood",
        lambda: Task("t", "open-set", DOMAIN, SET, 8, target=0),
    ),
    # generators
    "generator: size 10": ("size", lambda: DCGANGenerator(size=10)),
    "generator: size a float": ("size", lambda: DCGANGenerator(size=16.0)),
    "generator: size a pair": ("size", lambda: DCGANGenerator(size=(16, 16))),
    "generator: size 0": ("size", lambda: BigGANGenerator(size=0)),
    "generator: no channels": ("channels", lambda: DCGANGenerator(channels=0)),
    "generator: no noise": ("latent_dim", lambda: DCGANGenerator(latent_dim=0)),
    "generator: noise a float": ("latent_dim", lambda: BigGANGenerator(latent_dim=64.0)),
    "generator: no width": ("width", lambda: BigGANGenerator(width=0)),
    "generator: one class": ("num_classes", lambda: BigGANGenerator(num_classes=1)),
    "generator: classes a list": (
        "num_classes",
        lambda: BigGANGenerator(num_classes=["cat", "dog"]),
    ),
    "synthesise: no images": ("n ", lambda: synthesise(DCGANGenerator(8, width=4), 0)),
    "synthesise: half an image": ("n ", lambda: synthesise(DCGANGenerator(8, width=4), 2.5)),
    "synthesise: a class for a generator": ("generator", lambda: synthesise(DCGANGenerator, 4)),
    "synthesise: a classifier for a generator": ("generator", lambda: synthesise(NET, 4)),
    "synthesise: a list of labels": (
        "labels",
        lambda: synthesise(BigGANGenerator(8, width=4), 2, [0, 1]),
    ),
    "synthesise: float labels": (
        "labels",
        lambda: synthesise(BigGANGenerator(8, width=4), 2, torch.zeros(2)),
    ),
    "synthesise: too few labels": (
        "labels",
        lambda: synthesise(BigGANGenerator(8, width=4), 3, torch.zeros(2, dtype=torch.int64)),
    ),
    "synthesise: a label too large": (
        "labels",
        lambda: synthesise(BigGANGenerator(8, width=4), 2, torch.tensor([0, 10])),
    ),
    "synthesise: labels for an unconditional one": (
        "labels",
        lambda: synthesise(DCGANGenerator(8, width=4), 4, LABELS),
    ),
    "DFQ: a class for a generator": ("generator", lambda: DFQ(DCGANGenerator)),
    "DFQ: a classifier for a generator": ("generator", lambda: DFQ(NET)),
    "DFQ: NAYER's generator": (
        "NoisyGenerator",
        lambda: DFQ(NoisyGenerator(DCGANGenerator(8, width=4), torch.eye(4))),
    ),
    "DFQ: CMI's configuration": ("config", lambda: DFQ(DCGANGenerator(8, width=4), CMIConfig())),
    "CMI: DFQ's configuration": ("config", lambda: CMI(DCGANGenerator(8, width=4), DFQConfig())),
    "NAYER: a plain generator": ("NoisyGenerator", lambda: NAYER(DCGANGenerator(8, width=4))),
    "NoisyGenerator: NaN in the embedding": (
        "embedding",
        lambda: NoisyGenerator(DCGANGenerator(8, width=4), torch.full((4, 8), NAN)),
    ),
    "NoisyGenerator: a vector for an embedding": (
        "embedding",
        lambda: NoisyGenerator(DCGANGenerator(8, width=4), torch.rand(4)),
    ),
    "NoisyGenerator: a list for an embedding": (
        "embedding",
        lambda: NoisyGenerator(DCGANGenerator(8, width=4), [[1.0, 0.0], [0.0, 1.0]]),
    ),
    "Pool: no room": ("Pool.capacity", lambda: Pool(0)),
    "Pool: half an image": ("Pool.capacity", lambda: Pool(2.5)),
    # networks
    "network: a slip": ("Did you mean 'vgg11'?", lambda: build_network("vgg-11", 10)),
    "network: one class": ("num_classes", lambda: build_network("8 M", 1)),
    "network: only pools": ("plan", lambda: SmallVGG("M M")),
    "weights: NaN": ("teacher", lambda: tensors.check_weights(broken(NAN), "teacher")),
    "weights: infinity": ("teacher", lambda: tensors.check_weights(broken(-INF), "teacher")),
    "weights: a state_dict": (
        "teacher",
        lambda: tensors.check_weights(NET.state_dict(), "teacher"),
    ),
    # splitters, and what they are given
    "teacher: a class": ("teacher", lambda: RadiusSplitter()(SmallVGG, IMAGES)),
    "teacher: a function": (
        "teacher",
        lambda: RadiusSplitter()(lambda images: images.mean((2, 3)), IMAGES),
    ),
    "teacher: a path": ("teacher", lambda: PGDSplitter()("teacher.pt", IMAGES)),
    "teacher: a state_dict": ("teacher", lambda: PGDSplitter()(NET.state_dict(), IMAGES)),
    "teacher: None": ("teacher", lambda: PGDSplitter()(None, IMAGES)),
    "teacher and images swapped": ("images", lambda: RadiusSplitter()(IMAGES, NET)),
    "teacher: returns a pair": ("teacher", lambda: RadiusSplitter()(Pair(), IMAGES)),
    "teacher: for larger images": (
        "teacher",
        lambda: RadiusSplitter()(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), IMAGES),
    ),
    "teacher: for grey images": (
        "teacher",
        lambda: RadiusSplitter()(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()), IMAGES),
    ),
    "teacher: returns maps": ("teacher", lambda: RadiusSplitter()(nn.Conv2d(3, 4, 3), IMAGES)),
    "teacher: one output": (
        "teacher",
        lambda: RadiusSplitter()(nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), IMAGES),
    ),
    "teacher: takes two arguments": (
        "teacher",
        lambda: RadiusSplitter()(nn.Bilinear(192, 192, 4), IMAGES),
    ),
    "split: no images": ("images", lambda: RadiusSplitter()(NET, IMAGES[:0])),
    "split: images of 0 to 255": ("images", lambda: PGDSplitter()(NET, 255 * IMAGES)),
    "radius: no grid": ("grid", lambda: radius(NET, IMAGES, grid=())),
    "radius: a falling grid": ("grid", lambda: radius(NET, IMAGES, grid=(0.2, 0.1))),
    "radius: a grid of 0 to 255": ("grid", lambda: radius(NET, IMAGES, grid=(1, 2, 4))),
    "radius: a number for a grid": ("grid", lambda: radius(NET, IMAGES, grid=0.1)),
    "radius: NaN in the grid": ("grid", lambda: radius(NET, IMAGES, grid=(0.1, NAN))),
    "radius: no steps": ("steps", lambda: radius(NET, IMAGES, steps=0)),
    "radius: half a step": ("steps", lambda: radius(NET, IMAGES, steps=1.5)),
    "FeatureSplitter: no linear layer": (
        "FeatureSplitter",
        lambda: FeatureSplitter()(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), IMAGES),
    ),
    # metrics
    "predict: a class": ("model", lambda: predict(SmallVGG, IMAGES)),
    "predict: NumPy": ("images", lambda: predict(NET, IMAGES.numpy())),
    "predict: no batch": ("batch_size", lambda: predict(NET, IMAGES, 0)),
    "predict: other images": ("model", lambda: predict(NET, torch.rand(4, 3, 16, 16))),
    "accuracy: a tensor for a set": ("data", lambda: accuracy(NET, IMAGES)),
    "accuracy: a domain for a set": ("data", lambda: accuracy(NET, DOMAIN)),
    "accuracy: no images": ("data", lambda: accuracy(NET, ImageSet(IMAGES[:0], LABELS[:0]))),
    "mislead: a name for a teacher": ("teacher", lambda: mislead(NET, "ntl", SET)),
    "evaluator: a name for a task": ("task", lambda: evaluator("digits->digits_photo", NET)),
    "evaluator: arguments swapped": ("ntl_teacher", lambda: evaluator(NET, TASK)),
    "gap_closed: NaN": ("method_ntl", lambda: gap_closed(NAN, 1.0, 2.0)),
    "gap_closed: text": ("baseline_ntl", lambda: gap_closed(1.0, "1", 2.0)),
    "gap_closed: above 100": ("baseline_sl", lambda: gap_closed(1.0, 1.0, 990.0)),
    # presets
    "objective_for: a name for a preset": ("preset", lambda: objective_for("debug", "plain")),
    "objective_for: a slip": ("Did you mean 'atesc'?", lambda: objective_for(DEBUG, "atsc")),
    "objective_for: unknown baseline": (
        "Did you mean 'nayer'?",
        lambda: objective_for(DEBUG, "plain", "nayr"),
    ),
    "synthesizer_for: a slip": ("Did you mean 'cmi'?", lambda: synthesizer_for(DEBUG, "cim", 4, 0)),
    "synthesizer_for: one class": ("num_classes", lambda: synthesizer_for(DEBUG, "nayer", 1, 0)),
    "generator_for: a name for a preset": ("preset", lambda: generator_for("debug", 4, 0)),
    "settings_of: a slip": ("baseline", lambda: settings_of(DEBUG, "dqf", "plain")),
    "distill_config: unknown baseline": ("baseline", lambda: distill_config(DEBUG, "DFQ")),
    "tasks_of: a slip": ("Did you mean 'close-set'?", lambda: DEBUG.tasks_of("closeset")),
    # records
    "append_records: NaN": ("records", lambda: append_records("r.jsonl", [{"iacc": NAN}])),
    "append_records: an array": (
        "records",
        lambda: append_records("r.jsonl", [{"iacc": np.zeros(3)}]),
    ),
    "append_records: one record, not a list": (
        "records",
        lambda: append_records("r.jsonl", {"iacc": 1.0}),
    ),
    "append_records: text": ("records", lambda: append_records("r.jsonl", "iacc")),
    "append_records: a list of lists": ("records", lambda: append_records("r.jsonl", [[1, 2]])),
    "append_records: None": ("records", lambda: append_records("r.jsonl", None)),
    "append_records: a table": (
        "records",
        lambda: append_records("r.jsonl", pd.DataFrame({"iacc": [1.0]})),
    ),
    "append_records: a circle": ("records", lambda: append_records("r.jsonl", [circle()])),
    "append_records: no path": ("path", lambda: append_records(None, [{}])),
    "append_records: an empty path": ("path", lambda: append_records("", [{}])),
    "append_records: a folder": ("path", lambda: append_records(".", [{}])),
    "load_records: no path": ("path", lambda: load_records(None)),
    "load_records: a zero byte": ("path", lambda: load_records("a\0b")),
    "load_records: a file that is none": ("line 1", lambda: load_records(__file__)),
    "record_key: a list": ("record", lambda: record_key([1])),
    "as_config: an object": ("'a'", lambda: runtime.as_config({"a": object()})),
    # tables and figures
    "query: a path": ("records", lambda: query("results")),
    "query: a data frame": ("records", lambda: query(pd.DataFrame([RECORD]))),
    "select: one record, not a list": ("records", lambda: select(RECORD, seed=0)),
    "groups: paths": ("records", lambda: groups(["a.jsonl", "b.jsonl"], "student")),
    "paired: a path": (
        "records",
        lambda: paired("results", "iacc", {"method": "ckd"}, {"method": "plain"}),
    ),
    "mean_std: text": ("values", lambda: mean_std(["97.3"])),
    "mean_std: digits": ("digits", lambda: mean_std([97.3], -1)),
    "caption: no records": ("records", lambda: caption([])),
    "plot_curves: no records": ("records", lambda: plot_curves([])),
    "plot_dots: no records": ("records", lambda: plot_dots([])),
    "plot_bars: a path": ("records", lambda: plot_bars("results")),
    "plot_scatter: no records": ("records", lambda: plot_scatter([])),
    "plot_images: no groups": ("groups", lambda: plot_images({})),
    "plot_images: a tensor": ("groups", lambda: plot_images(IMAGES)),
    "plot_images: a single image": ("cats", lambda: plot_images({"cats": IMAGES[0]})),
    "plot_images: an empty row": ("per_row", lambda: plot_images({"cats": IMAGES}, per_row=0)),
    "save_figure: a path": ("name", lambda: save_figure(Figure(), ".", "../curves")),
    "save_figure: no name": ("name", lambda: save_figure(Figure(), ".", "")),
    "save_figure: text": ("figure", lambda: save_figure("curves", ".", "curves")),
    # analyses
    "evenly: none": ("most", lambda: evenly(IMAGES, 0)),
    "domain_task: a name": ("task", lambda: domain_task("digits->digits_photo")),
    "frechet_distance: one image": (
        "first",
        lambda: frechet_distance(torch.rand(1, 4), torch.rand(3, 4)),
    ),
    "frechet_distance: NumPy": (
        "second",
        lambda: frechet_distance(torch.rand(3, 4), np.zeros((3, 4))),
    ),
    "frechet_distance: NaN": (
        "first",
        lambda: frechet_distance(torch.full((3, 4), NAN), torch.rand(3, 4)),
    ),
    "frechet_distance: unlike": (
        "second",
        lambda: frechet_distance(torch.rand(3, 4), torch.rand(3, 5)),
    ),
    "features_of: a class": ("model", lambda: features_of(SmallVGG, IMAGES)),
    "features_of: no linear layer": (
        "linear layer",
        lambda: features_of(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), IMAGES),
    ),
    "DomainEvaluator: one image": ("n ", lambda: DomainEvaluator(TASK, NET, n=1)),
    "DomainEvaluator: a name for a task": (
        "task",
        lambda: DomainEvaluator("digits->digits_photo", NET),
    ),
    "DomainEvaluator: a class for a teacher": (
        "sl_teacher",
        lambda: DomainEvaluator(TASK, SmallVGG),
    ),
    "scores_after: a name for a splitter": (
        "splitter",
        lambda: scores_after("radius", NET, IMAGES, IMAGES),
    ),
    "scores_after: a class for a splitter": (
        "splitter",
        lambda: scores_after(RadiusSplitter, NET, IMAGES, IMAGES),
    ),
    "measure_scores: one splitter, not a list": (
        "splitters",
        lambda: measure_scores(RadiusSplitter(), NET, TASK, IMAGES, LABELS > 1),
    ),
    "auroc: lists": ("scores", lambda: auroc([0.1, 0.2], [True, False])),
    "auroc: unlike": ("ood", lambda: auroc(torch.rand(4), torch.tensor([True, False]))),
    "halves: one image": ("halves: n", lambda: halves(1, 2, 0)),
    "halves: an odd number": ("count", lambda: halves(10, 3, 0)),
    "halves: half a half": ("count", lambda: halves(10, 2.5, 0)),
    "part_of: numbers": ("inside", lambda: part_of(TASK, torch.tensor([0, 1, 1, 0]))),
    "part_of: a list": ("inside", lambda: part_of(TASK, [True, False, True, False])),
    "scaled_confidence: a tensor": ("data", lambda: scaled_confidence(NET, IMAGES)),
    "scaled_confidence: too few classes": (
        "model",
        lambda: scaled_confidence(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), SET),
    ),
    "roc: NaN": ("scores", lambda: roc(torch.full((4,), NAN), LABELS > 1)),
    "roc: only members": ("non-members", lambda: roc(torch.rand(4), LABELS >= 0)),
    "roc: numbers for members": ("inside", lambda: roc(torch.rand(4), torch.tensor([0, 1, 1, 0]))),
    "attack_report: FPR of 200 %": (
        "fprs",
        lambda: attack_report(torch.rand(4), LABELS > 1, fprs=[200]),
    ),
    "chance_std: no members": ("members", lambda: chance_std(0, 10)),
    "chance_std: negative": ("others", lambda: chance_std(10, -10)),
    "lira: one shadow": ("shadows", lambda: lira(torch.rand(4), torch.rand(4), LABELS > 1)),
    "nearest_members: fewer others": (
        "members",
        lambda: nearest_members(IMAGES, IMAGES, IMAGES[:2]),
    ),
    "nearest_members: a list": ("images", lambda: nearest_members([1, 2], IMAGES, IMAGES)),
    "nearest_members: no images": ("images", lambda: nearest_members(IMAGES[:0], IMAGES, IMAGES)),
    "RealImages: no batch": ("RealImages.batch_size", lambda: RealImages(IMAGES, 0)),
    "RealImages: no images": ("images", lambda: RealImages(IMAGES[:0])),
    "Explorer: no such file": ("keep_stages", lambda: Explorer("none.pt")),
    "Explorer: a folder": ("keep_stages", lambda: Explorer(".")),
    "explore: a number": ("folder", lambda: explore(3)),
    # the command's functions
    "parse_value: a word": ("seed", lambda: parse_value("seed", "one", "int")),
    "parse_value: infinity": ("lr", lambda: parse_value("lr", "1e999", "float")),
    "parse_value: NaN": ("lr", lambda: parse_value("lr", "nan", "float")),
    "parse_value: 5,000 digits": ("seed", lambda: parse_value("seed", "9" * 5000, "int")),
    "run_experiment: a slip": ("Did you mean 'ood_trap'?", lambda: run_experiment("ood_trp")),
    "run_experiment: None": ("experiment", lambda: run_experiment(None)),
    "run_experiment: a negative seed": ("seed", lambda: run_experiment("ood_trap", "debug", -1)),
    "run_experiment: a huge seed": ("seed", lambda: run_experiment("ood_trap", "debug", 2**32)),
    "run_experiment: an empty folder's name": (
        "out",
        lambda: run_experiment("ood_trap", "debug", out=""),
    ),
    "run_experiment: a file for a folder": (
        "out",
        lambda: run_experiment("ood_trap", "debug", out=__file__),
    ),
    "run_experiment: a zero byte": ("out", lambda: run_experiment("ood_trap", "debug", out="a\0b")),
    "run_experiment: kernel-only parameter": (
        "Did you mean",
        lambda: run_experiment("ood_trap", "debug", parameters=[("tsak", "x")]),
    ),
    "run_experiment: a parameter without a value": (
        "parameters",
        lambda: run_experiment("ood_trap", "debug", parameters=["seed"]),
    ),
    "run_all: a slip": ("Did you mean 'debug'?", lambda: run_all("debg")),
    "plan_all: an unknown parameter": (
        "Did you mean 'seeds'?",
        lambda: plan_all("debug", Path("x"), [("sedes", "3")]),
    ),
    "plan_all: no seeds": ("seeds", lambda: plan_all("debug", Path("x"), [("seeds", "0")])),
    "plan_all: seeds in words": ("seeds", lambda: plan_all("debug", Path("x"), [("seeds", "two")])),
}


def circle():
    record = {}
    record["record"] = record
    return record


def build(kind, field, value):
    return kind(**{**NEEDED.get(kind, {}), field: value})


CASES = {
    f"{kind.__name__}.{field}={value!r:.40}": (field, lambda a=(kind, field, value): build(*a))
    for kind, field, values in SETTINGS
    for value in values
} | CALLS


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mistake", CASES)
def test_a_mistake_is_refused_in_one_line_that_names_the_argument(mistake, here):
    said, make = CASES[mistake]
    with pytest.raises(AtescError) as caught:
        make()
    text = str(caught.value)
    assert said in text, text
    assert len(text.splitlines()) == 1 and text.isprintable() and len(text) < 400, text
    assert os.listdir(here) == [], "nothing is written"


def test_the_table_is_as_long_as_it_says():
    assert len(CALLS) >= 170 and len(CASES) >= 350
    assert len({kind for kind, *_ in SETTINGS}) == 21


RUN = ["run", "ood_trap", "--preset", "debug"]
REFUSED = {  # what is typed -> a part of the message
    "no command": ([], "required: list|run"),
    "an unknown command": (["rnu"], "'rnu'"),
    "an empty command": ([""], "''"),
    "a command of 100,000 letters": (["x" * 10**5], "invalid choice"),
    "no experiment": (["run"], "experiment"),
    "two experiments": (["run", "ood_trap", "close_set"], "close_set"),
    "an unknown experiment": (
        ["run", "ood-trap"],
        f"known: {', '.join(experiments())}. Did you mean 'ood_trap'?",
    ),
    "an experiment's path": (["run", "nbs/experiments/ood_trap.ipynb"], "unknown experiment"),
    "an empty experiment": (["run", ""], "unknown experiment ''"),
    "an experiment with a new line": (["run", "ood_trap\nclose_set"], r"'ood_trap\nclose_set'"),
    "an experiment in colour": (["run", "\x1b[31mood_trap"], r"\x1b[31mood_trap"),
    "an experiment not in UTF-8": (["run", os.fsdecode(b"ood\xff")], r"ood\udcff"),
    "an experiment in Greek": (["run", "Παγίδα"], "unknown experiment 'Παγίδα'"),
    "an unknown preset": (
        ["run", "ood_trap", "--preset", "digts"],
        "known: debug, digits, mnist, mnist_m, cifar10, paper. Did you mean 'digits'?",
    ),
    "an empty preset": (["run", "ood_trap", "--preset", ""], "unknown preset ''"),
    "no preset": (["run", "ood_trap", "--preset"], "--preset"),
    "an unknown option": ([*RUN, "--sed", "1"], "Did you mean '--seed'?"),
    "an unknown option with =": ([*RUN, "--oot=x"], "Did you mean '--out'?"),
    "an option that list has not": (["list", "--colour"], "--colour"),
    "an option with a new line": ([*RUN, "--a\nb"], r"--a\nb"),
    "an unknown parameter": ([*RUN, "-p", "iteration", "3"], "Did you mean 'iterations'?"),
    "a parameter without a name": ([*RUN, "-p", "", "3"], "unknown parameter ''"),
    "a parameter without a value": ([*RUN, "-p", "iterations"], "-p"),
    "a parameter as NAME=VALUE": ([*RUN, "-p", "iterations=3"], "-p"),
    "half an iteration": (
        [*RUN, "-p", "iterations", "2.5"],
        "parameter iterations takes int, got '2.5'",
    ),
    "no iterations": ([*RUN, "-p", "iterations", "0"], "iterations must be at least 1, got 0"),
    "iterations in words": (
        [*RUN, "-p", "iterations", "many"],
        "parameter iterations takes int, got 'many'",
    ),
    "iterations in hexadecimal": (
        [*RUN, "-p", "iterations", "0x10"],
        "parameter iterations takes int",
    ),
    "iterations without a number": (
        [*RUN, "-p", "iterations", ""],
        "parameter iterations takes int, got ''",
    ),
    "negative iterations": (
        [*RUN, "-p", "iterations", "-3"],
        "iterations must be at least 1, got -3",
    ),
    "iterations of 5,000 digits": (
        [*RUN, "-p", "iterations", "9" * 5000],
        "parameter iterations takes int",
    ),
    "an unknown task": (
        [*RUN, "-p", "task", "debug->debug_odd"],
        "Did you mean 'debug->debug_ood'?",
    ),
    "a task with a zero byte": ([*RUN, "-p", "task", "folder:a\0->digits"], "parameter task"),
    "a task with a new line": ([*RUN, "-p", "task", "debug->\ndebug_ood"], "parameter task"),
    "a task not in UTF-8": (
        [*RUN, "-p", "task", os.fsdecode(b"folder:\xff->digits")],
        "parameter task",
    ),
    "a device that is none": ([*RUN, "-p", "device", "gpu"], "unknown device 'gpu'"),
    "the 99th device": ([*RUN, "-p", "device", "cuda:99"], "device 'cuda:99'"),
    "a negative seed": ([*RUN, "--seed", "-1"], "parameter seed must be"),
    "a huge seed": ([*RUN, "--seed", "4294967296"], "parameter seed must be"),
    "a seed of infinity": ([*RUN, "--seed", "1e9999"], "parameter seed takes int, got '1e9999'"),
    "an empty seed": ([*RUN, "--seed", ""], "parameter seed takes int, got ''"),
    "a seed that is a bool": ([*RUN, "--seed", "True"], "parameter seed takes int"),
    "two seeds": ([*RUN, "--seed", "0 1"], "parameter seed takes int, got '0 1'"),
    "an empty out": ([*RUN, "--out", ""], "out must be the name of a file or a folder, got ''"),
    "out with a zero byte": ([*RUN, "--out", "a\0b"], "parameter out"),
    "out with a new line": ([*RUN, "--out", "a\nb"], "parameter out"),
    "out not in UTF-8": ([*RUN, "--out", os.fsdecode(b"\xff")], "parameter out"),
    "out is a file": ([*RUN, "--out", __file__], "out "),
    "out is inside a file": ([*RUN, "--out", f"{__file__}/o"], "a part of the path is a file"),
    "out is of the kernel's": (
        [*RUN, "--out", "/proc/atesc"],
        "out '/proc/atesc' cannot be written to",
    ),
    "out is too long": ([*RUN, "--out", "x" * 300], "out "),
    "out twice": ([*RUN, "--out", "a", "-p", "out", "b"], "out is given twice"),
    "out as an empty parameter": ([*RUN, "-p", "out", ""], "out must be the name"),
    "all with a seed": (["run", "all", "--preset", "debug", "--seed", "3"], "-p seeds 3"),
    "all with a seed as a parameter": (
        ["run", "all", "--preset", "debug", "-p", "seed", "3"],
        "-p seeds 3",
    ),
    "all with no seeds": (
        ["run", "all", "--preset", "debug", "-p", "seeds", "0"],
        "seeds must be at least 1",
    ),
    "all with an unknown parameter": (
        ["run", "all", "--preset", "debug", "-p", "sedes", "2"],
        "Did you mean 'seeds'?",
    ),
    "all with half an iteration": (
        ["run", "all", "--preset", "debug", "-p", "iterations", "2.5"],
        "parameter iterations takes int",
    ),
    "all with an unknown preset": (["run", "all", "--preset", "debgu"], "Did you mean 'debug'?"),
    "all into a file": (
        ["run", "all", "--preset", "debug", "--out", __file__],
        "cannot be written to",
    ),
}


def typed(args, capsys):
    """The command in this process: exit code, and the lines on stderr."""
    try:
        code = command(args)
    except SystemExit as stopped:  # how argparse ends
        code = stopped.code
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_command_line_that_is_refused_is_one_line_and_writes_nothing(mistake, here, capsys):
    args, text = REFUSED[mistake]
    code, lines = typed(args, capsys)
    assert code == 2 and len(lines) == 1, lines
    assert (
        lines[0].startswith("atesc: ")
        and text in lines[0]
        and lines[0].isprintable()
        and len(lines[0]) < 420
    ), lines
    assert os.listdir(here) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "source, code, message",
    [
        (
            "from atesc.inside.records import RecordError\n"
            "raise RecordError('x.jsonl, line 3: torn')",
            2,
            "atesc: x.jsonl, line 3: torn",
        ),
        (
            "from atesc.inside.errors import Diverged\nraise Diverged('the loss is\\nnan')",
            2,
            "atesc: the loss is nan",
        ),
        (
            "raise RuntimeError('first\\nsecond')",
            1,
            "atesc: the notebook failed: RuntimeError: first",
        ),
        ("raise ValueError", 1, "atesc: the notebook failed: ValueError"),
        ("{}['seconds']", 1, "atesc: the notebook failed: KeyError: 'seconds'"),
        ("import os\nos.kill(os.getpid(), 9)", 1, "atesc: the notebook failed: its process died"),
    ],
)
def test_a_notebook_that_fails_is_one_line(source, code, message, here, capsys, monkeypatch):
    cells = [
        nbformat.v4.new_code_cell(
            'preset: str = "debug"\nseed: int = 0\nout: str = ""', metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell(source),
    ]
    notebook = nbformat.v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}
        },
    )
    (here / "nbs").mkdir()
    nbformat.write(notebook, here / "nbs/failing.ipynb")
    monkeypatch.setattr(
        "atesc.app.run.experiments", lambda: {"failing": here / "nbs/failing.ipynb"}
    )
    got, lines = typed(["run", "failing", "--out", "o"], capsys)
    assert got == code and len(lines) == 1 and lines[0].startswith(message), lines
    assert sorted(os.listdir(here)) == ["nbs", "o"] and sorted(os.listdir(here / "o")) == [
        ".failing.ipynb.lock",
        "failing.ipynb",
    ]


def test_a_fault_of_the_commands_own_is_one_line(here, capsys, monkeypatch):
    monkeypatch.setattr("atesc.app.run.catalogue", lambda: {}["x"])
    code, lines = typed(["list"], capsys)
    assert code == 1 and len(lines) == 1
    assert (
        lines[0].startswith("atesc: KeyError: 'x' (test_bad_inputs.py, line ")
        and "please report it" in lines[0]
    )


COMMAND = [sys.executable, "-c", "import sys; from atesc.app.command import main; sys.exit(main())"]


def process(args, shell="", **more):
    """The command as a process of its own, its arguments as bytes; `shell` follows them."""
    line = b" ".join(
        shlex.quote(os.fsdecode(arg)).encode(errors="surrogateescape") for arg in [*COMMAND, *args]
    )
    done = subprocess.run(
        ["bash", "-c", line + b" " + shell.encode()],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        **more,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ["run", "ood_trp"],
        ["run", b"\xff\n"],
        [*RUN, "--out", b"\xff"],
        [*RUN, "--seed", "-1"],
        ["--", "-p"],
    ],
)
def test_a_process_that_is_refused_says_one_line(args, here):
    code, out, lines = process(args, cwd=here)
    assert (
        (code, out, len(lines)) == (2, "", 1)
        and lines[0].startswith("atesc: ")
        and lines[0].isprintable()
    ), lines
    assert os.listdir(here) == []


@pytest.mark.slow
def test_a_package_that_is_not_installed_is_one_line():
    program = (
        "import sys; sys.modules['papermill'] = None;"
        " from atesc.app.command import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "ood_trap"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "atesc: the package 'papermill' is not installed; this needs: "
        "pip install 'atesc[notebooks]'\n"
    )


@pytest.mark.slow
def test_nobody_reads_what_is_printed(here):
    assert process(["list"], "| head -0; exit ${PIPESTATUS[0]}", cwd=here) == (141, "", [])
    assert process(["list"], ">&-", cwd=here) == (0, "", [])
    code, out, lines = process(["list"], "> /dev/full", cwd=here)
    assert (code, out, len(lines)) == (1, "", 1) and "No space left on device" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, wait", [(["list"], 0.7), ([*RUN, "--out", "o", "-p", "iterations", "100000"], None)]
)
def test_ctrl_c_is_one_line(args, wait, here):
    """While torch is imported, and while the notebook runs; its kernel goes too."""
    with subprocess.Popen(
        [*COMMAND, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=here,
        stdin=subprocess.DEVNULL,
    ) as running:
        until = time.monotonic() + 60
        while time.monotonic() < until and (wait is None and not (here / "o/teachers").exists()):
            time.sleep(0.1)
        time.sleep(wait or 1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.splitlines() == ["atesc: stopped; the same command goes on where it stopped"]
    assert os.listdir(here) == ([] if wait else ["o"])
