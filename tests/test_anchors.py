"""Retrieved anchors against a float64 transcription of RETA's score, image by image; and where they come in."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import ndimage
from small import fastcondense, frozen_network
from torch.nn import functional as F

from fastcondense.data.jobs import Job
from fastcondense.log import Log
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Initial, Recover
from fastcondense.recipe.settings import Dataset, Squeeze
from fastcondense.recover.anchors import RetrievedAnchors, complexity
from fastcondense.rng import Stream
from fastcondense.run import Run
from fastcondense.teachers.teacher import Teacher

NAME = "zoo/convnet3_w32"
DIGITS = Dataset(name="digits", image_size=8, resize=8, mean=(0.3, 0.4, 0.5), std=(0.3, 0.2, 0.25))
RECOVER = Recover(
    stages=(7, 8), residual=0.5, iterations=4, anchors="retrieved", initial=Initial(kind="real", candidates=30)
)


def plain_complexity(image: np.ndarray) -> float:
    """Of one image, float64 [3, s, s]: a Gaussian cut off at 3 pixels, mirrored at the margin, and numpy's gradient."""
    total = np.zeros(image.shape[1:])
    for channel in image:
        smooth = ndimage.gaussian_filter(channel, 1.0, mode="mirror", truncate=3.0)
        down, across = np.gradient(smooth)
        total += down**2 + across**2
    return float(np.mean((total - total.mean()) ** 2))


@pytest.mark.parametrize("side", [7, 12])
def test_complexity_is_the_variance_of_the_smoothed_gradients_square(side):
    images = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(side))
    wanted = [plain_complexity(image) for image in images.double().numpy()]
    np.testing.assert_allclose(complexity(images).numpy(), wanted, rtol=2e-5)


def vector(net, image: torch.Tensor) -> np.ndarray:
    """What the last nn.Linear of a float64 network reads, of length 1."""
    caught = []
    head = [module for module in net.modules() if isinstance(module, torch.nn.Linear)][-1]
    handle = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].flatten()))
    net(image[None])
    handle.remove()
    return (caught[0] / caught[0].norm()).numpy()


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_an_anchor_is_the_image_of_the_pool_with_the_least_score(weight, tmp_path):
    recipe = Recipe(ipc=3, seed=4, dataset=DIGITS, squeeze=Squeeze(teachers=(NAME,)))
    recipe = dataclasses.replace(recipe, recover=RECOVER).check()
    run = Run(recipe, tmp_path, None, log=Log(Console(file=io.StringIO())))
    net = frozen_network(NAME, 10)
    anchors = RetrievedAnchors(run, Teacher.of(net, NAME, run.real.classes, range(10), DIGITS), weight)
    job, generator = Job(0, 1, 2, 3, 2), torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 7, 7, generator=generator)
    found = anchors(job, images, 8)

    net, split = net.double(), run.real.train
    real = run.normalize(torch.from_numpy(split.images).permute(0, 3, 1, 2)).double()
    for image, label, anchor in zip(images.double(), job.classes().tolist(), found, strict=True):
        members = np.flatnonzero(split.labels == label)
        pool = members[Stream(4, "recover/anchors").permutation(len(members), label)[:30]]
        seen = vector(net, F.interpolate(image[None], (8, 8), mode="bilinear")[0])
        scores = [
            (1 - weight) * float(((seen - vector(net, real[k])) ** 2).sum())
            + weight * plain_complexity(real[k].numpy())
            for k in pool
        ]
        assert torch.equal(anchor, real[pool[int(np.argmin(scores))]].float())
    alone = Job(0, 1, 1, 3, 2)
    assert torch.equal(anchors(alone, images[::2], 8), found[::2])  # the others of a job decide nothing
    assert len(list(tmp_path.glob("anchors-*/class-*.safetensors"))) == 10


def test_anchors_are_in_the_images_and_need_stages(tmp_path, capsys):
    flags = ["--recipe", "reta/digits-ipc1", "--recover.initial.candidates", "20", "--squeeze.gate-images", "0"]
    assert fastcondense("recover", tmp_path, *flags, "--recover.stages", "7") == 1
    assert "recover.anchors retrieved needs recover.objective statistics" in capsys.readouterr().err
