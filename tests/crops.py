"""Runs whose images begin as crops, photographs for them, their teachers, and a crop as the specification says it."""

import dataclasses
import importlib
import io

import numpy as np
import torch
from image_files import scene
from PIL import Image
from rich.console import Console

from fastcondense.loaders.folder import cut_center
from fastcondense.log import Log
from fastcondense.networks import zoo
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Initial, Recover
from fastcondense.recipe.settings import Dataset, Squeeze
from fastcondense.rng import Stream
from fastcondense.run import Run
from fastcondense.teachers.teacher import Teacher
from fastcondense.views.windows import windows

transforms = importlib.import_module("torchvision.transforms.v2.functional")

DIGITS = Dataset(name="digits", image_size=8, resize=8, mean=(0.3, 0.4, 0.5), std=(0.3, 0.2, 0.25))
SIZE = 27  # odd, and no multiple of 2: tiles of 14 and 13 pixels
FILES = dataclasses.replace(DIGITS, name="folder", image_size=SIZE, resize=32)
TEACHERS = ("zoo/convnet1", "zoo/convnet3_w32")


def make_run(out, dataset=DIGITS, data=None, ipc=2, batch_size=100, **settings):
    made = Initial(**{"kind": "mosaic", "candidates": 20, "crops": 3} | settings)
    recipe = Recipe(ipc=ipc, seed=4, dataset=dataset, squeeze=Squeeze(teachers=TEACHERS))
    recipe = dataclasses.replace(recipe, recover=Recover(initial=made, batch_size=batch_size)).check()
    return Run(recipe, out, data, log=Log(Console(file=io.StringIO())))


def make_teachers(run):
    torch.manual_seed(0)
    classes = run.real.classes
    nets = [zoo.build(name, len(classes)).eval().requires_grad_(False) for name in TEACHERS]
    named = zip(nets, TEACHERS, strict=True)
    return nets, [Teacher.of(net, name, classes, range(len(classes)), run.recipe.dataset) for net, name in named]


def write_photographs(root):
    """root/train/<class>/<image> of three classes and many sizes; val/ is there because a data set needs it."""
    for split, count in (("train", 11), ("val", 1)):
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for k in range(count):
                scene(30 + 17 * k % 71, 25 + 23 * k % 67, 100 * label + k).save(folder / f"{k:02d}.JPEG", quality=90)
    return root


def published_crop(run, files, sample, number):
    """One crop as the specification says, normalised: [3, side, side]."""
    dataset, views, split = run.recipe.dataset, run.recipe.recover.initial, run.real.train
    size = dataset.image_size
    side = size // views.factor if views.crop_size == "tile" and number >= 0 else size
    image = Image.open(files[sample]).convert("RGB") if files else Image.fromarray(split.images[sample])
    if number < 0:
        pixels = torch.from_numpy(np.array(cut_center(image, dataset.resize, size))).permute(2, 0, 1).float()
    else:
        table = windows(Stream(4, "initial/windows"), views, np.array([sample]), number, image.height, image.width)
        top, left, height, width, flip, _, _ = table[0].tolist()
        if files:  # image files are cut by Pillow, to whole levels
            cut = image.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1).float()
        else:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
            pixels = transforms.resized_crop(pixels, top, left, height, width, [side, side], antialias=True)
        pixels = pixels.flip(2) if flip else pixels
    mean, std = (torch.tensor(values)[:, None, None] for values in (dataset.mean, dataset.std))
    return (pixels / 255 - mean) / std
