"""Herding and medoids against loops over single images in float64, as initial images and as a baseline."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from small import fastcondense, image_folder
from torch import nn

from fastcondense.data.jobs import Job
from fastcondense.files import read_json
from fastcondense.log import Log
from fastcondense.networks import zoo
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Initial, Recover
from fastcondense.recipe.settings import Dataset, Squeeze
from fastcondense.recover import initial
from fastcondense.recover.representatives import Rule, representative_images, representatives
from fastcondense.recover.selection import herding, inner_products, medoids
from fastcondense.rng import Stream
from fastcondense.run import Run
from fastcondense.teachers.teacher import Teacher
from fastcondense.tensor_files import read_tensors

DIGITS = Dataset(name="digits", image_size=8, resize=8, mean=(0.3, 0.4, 0.5), std=(0.3, 0.2, 0.25))
FILES = dataclasses.replace(DIGITS, name="folder", image_size=27, resize=31)  # odd sizes, cut and resized
TEACHER = "zoo/convnet3_w32"


def plain_herding(vectors: np.ndarray, count: int) -> list[int]:
    """The next is that with which the mean is nearest to the mean of all: distances by subtraction, one at a time."""
    vectors, picked = vectors.astype(np.float64), []
    mean = vectors.mean(0)
    for _ in range(count):
        left = [k for k in range(len(vectors)) if k not in picked]
        gaps = [np.linalg.norm(mean - vectors[[*picked, k]].mean(0)) for k in left]
        picked.append(left[int(np.argmin(gaps))])
    return picked


def plain_medoids(vectors: np.ndarray, count: int) -> list[int]:
    """The next is that with which the distance to the nearest picked one, on average over all, is least."""
    vectors, picked = vectors.astype(np.float64), []
    for _ in range(count):
        left = [k for k in range(len(vectors)) if k not in picked]
        spreads = [np.mean([min(np.linalg.norm(x - vectors[p]) for p in [*picked, k]) for x in vectors]) for k in left]
        picked.append(left[int(np.argmin(spreads))])
    return picked


PLAIN = {"herding": plain_herding, "medoid": plain_medoids}


def make_run(out: Path, dataset: Dataset = DIGITS, data: Path | None = None, ipc: int = 4, **settings) -> Run:
    recipe = Recipe(ipc=ipc, seed=4, dataset=dataset, squeeze=Squeeze(teachers=(TEACHER,)))
    recipe = dataclasses.replace(recipe, recover=Recover(initial=Initial(**settings))).check()
    return Run(recipe, out, data, log=Log(Console(file=io.StringIO())))


def make_teacher(run: Run) -> tuple[nn.Module, Teacher]:
    torch.manual_seed(0)
    classes = run.real.classes
    net = zoo.build(TEACHER, len(classes)).eval().requires_grad_(False)
    return net, Teacher.of(net, TEACHER, classes, range(len(classes)), run.recipe.dataset)


def features(net: nn.Module, images: torch.Tensor) -> np.ndarray:
    """What the network's last nn.Linear reads, caught by a hook."""
    caught = []
    head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    handle = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    net(images)
    handle.remove()
    return caught[0].flatten(1).numpy()


@pytest.mark.parametrize("shape", [(7, 5), (23, 1), (13, 4099)])  # more columns than are widened at once
@pytest.mark.parametrize("choose", [herding, medoids])
def test_choices_are_those_of_a_loop(choose, shape):
    vectors = np.random.default_rng(shape[0]).normal(3, 2, shape)
    expected = (plain_herding if choose is herding else plain_medoids)(vectors, shape[0])
    products = inner_products(torch.from_numpy(vectors))
    assert choose(products, shape[0]).tolist() == expected
    assert choose(products, 3).tolist() == expected[:3]  # a beginning is a choice of its own


@pytest.mark.parametrize("choose", [herding, medoids])
def test_ties_go_to_the_first(choose):
    pixels = torch.tensor([[250, 3, 9], [0, 255, 7], [250, 3, 9], [0, 255, 7], [100, 100, 8]], dtype=torch.uint8)
    order = choose(inner_products(pixels), 5).tolist()
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert order.index(0) < order.index(2) and order.index(1) < order.index(3)


def test_the_products_of_pixels_are_exact():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 9001), dtype=np.uint8))
    exact = pixels.numpy().astype(object) @ pixels.numpy().astype(object).T
    assert (inner_products(pixels) == exact.astype(np.float64)).all()


@pytest.mark.parametrize("kind", ["herding", "medoid"])
@pytest.mark.parametrize("space", ["features", "pixels"])
def test_digits_are_chosen_as_by_a_loop(tmp_path, kind, space):
    run = make_run(tmp_path, kind=kind, space=space)
    net, teacher = make_teacher(run)
    made = initial.make(run, [teacher])
    for label in (0, 3):
        ids = np.flatnonzero(run.real.train.labels == label)
        pixels = torch.from_numpy(run.real.train.images[ids]).permute(0, 3, 1, 2)
        vectors = pixels.flatten(1).numpy() if space == "pixels" else features(net, run.normalize(pixels))
        expected = ids[PLAIN[kind](vectors, 3 if kind == "medoid" else 4)]
        job = Job(0, 0, len(expected), label, 1)
        wanted = run.normalize(torch.from_numpy(run.real.train.images[expected]).permute(0, 3, 1, 2))
        assert torch.equal(made(job), wanted)


def test_image_files_of_odd_size_are_chosen_as_the_evaluation_sees_them(tmp_path):
    data = image_folder(tmp_path / "data")
    run = make_run(tmp_path / "run", FILES, data, kind="herding", space="pixels")
    unread, labels = representative_images(run, Rule("herding", None), 12)
    pixels = unread.read()
    assert pixels.shape == (36, 3, 27, 27) and labels.tolist() == [k for k in range(3) for _ in range(12)]
    for label in range(3):
        mine = pixels[labels == label].flatten(1).numpy()
        order = representatives(run, Rule("herding", None), label, 12)
        by_id = mine[np.argsort(order)]  # all twelve were chosen
        assert np.sort(order)[plain_herding(by_id, 12)].tolist() == order.tolist()
    with pytest.raises(ValueError, match="'class0' has 12 training images that can be read, but 13"):
        representatives(run, Rule("herding", None), 0, 13)


def test_a_kept_choice_is_read_and_goes_on(tmp_path):
    run = make_run(tmp_path, kind="medoid", space="pixels")
    rule = Rule("medoid", None)
    first = representatives(run, rule, 5, 2)
    (path,) = tmp_path.glob("initial-*/class-00005.safetensors")
    written = path.stat().st_mtime_ns
    assert (representatives(run, rule, 5, 1) == first[:1]).all() and path.stat().st_mtime_ns == written
    more = representatives(run, rule, 5, 6)
    assert (more[:2] == first).all() and len(read_tensors(path)[0]["ids"]) == 6
    other = representatives(run, Rule("herding", None), 5, 2)  # another rule has its own file
    assert len(list(tmp_path.glob("initial-*"))) == 2 and not np.array_equal(other, first)


def test_chosen_images_are_mirrored_as_random_ones_are(tmp_path):
    plain = initial.make(make_run(tmp_path, kind="herding", space="pixels"), [])
    mirrored = initial.make(make_run(tmp_path, kind="herding", space="pixels", flip=0.5), [])
    job = Job(0, 1, 2, 0, 10)
    draws = Stream(4, "initial/real/flip").uniform(job.classes().numpy(), job.slots().numpy())[0] < 0.5
    assert 0 < draws.sum() < 20
    expected = plain(job)
    expected[draws] = expected[draws].flip(3)
    assert torch.equal(mirrored(job), expected)


def test_herding_is_a_baseline_at_every_size(tmp_path):
    out = tmp_path / "digits"
    more = (
        "--recover.initial.kind herding --recover.iterations 0 --evaluate.baselines herding_soft herding_hard "
        "--ipc 1,2 --train.seeds 1"
    ).split()
    sizes = ["--ipc", "2"]
    assert fastcondense("recover", out, *more[: more.index("--ipc")], *sizes) == 0
    assert fastcondense("evaluate", out, *more) == 0
    curves = read_json(out / "curve.json")["top1_last"]
    assert set(curves) == {"nested", "herding_soft", "herding_hard"}
    assert curves["herding_soft"] == curves["nested"]  # the set is herding's choice itself, with the same labels
    assert curves["herding_soft"] != curves["herding_hard"]
