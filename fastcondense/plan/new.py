"""`fastcondense new`: looks at an image folder and writes a recipe that fits it and this machine."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.survey import Decoded, Survey, decoded, survey
from ..devices import choose_device
from ..files import write_atomic
from ..log import Log
from ..recipe.recipe import Recipe, from_toml
from ..recipe.settings import Dataset
from ..words import bytes_in_words, one_line, seconds_in_words
from .advice import advice
from .extent import Extent
from .plan import Plan

_SHOWN = 10
"""Classes and files that are named."""
_IPC, _GATE = 10, 10
_VIEWS = 20_000
"""Views on which a laptop's teacher is trained, about; it is trained for 20 to 100 epochs."""


@dataclass(frozen=True, kw_only=True)
class NewOptions:
    """Options of `fastcondense new`: which folder, and where the recipe goes."""

    data: Path | None = None
    """Folder of class folders, with train/ and val/ or without."""
    out: Path | None = None
    """The recipe's file; default <folder's name>.toml here. One that is there is kept."""
    ipc: int = 0
    """Images a class; 0: 10, or half of the smallest class."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N: what the recipe is for."""
    seconds: float = 20.0
    """Seconds in which `plan` measures, about; 0: no plan."""


def new(options: NewOptions, log: Log) -> None:
    """Says what the folder holds, writes the recipe, and says what it will take and which command comes next.

    Raises ValueError for a folder that holds no classes, for classes that are too small, and if the file is there.
    """
    if options.data is None:
        raise ValueError("new needs --data DIR, a folder of class folders with images")
    device = choose_device(options.device)
    out = options.out or Path(re.sub(r"[^\w-]", "-", options.data.resolve().name) + ".toml")
    if out.suffix != ".toml" or out.exists():
        raise ValueError(f"new writes a recipe, a new file that ends with .toml; choose another --out than {out}")
    found = survey(options.data)
    seen = decoded(found.real, seen_as(found, device))
    text = recipe_text(found, seen, options.data, device, options.ipc)
    recipe = from_toml(text, str(out))
    _describe(found, seen, recipe, log)
    write_atomic(out, text.encode())
    log.say(f"{out}: a recipe for {'a GPU' if device.type == 'cuda' else 'a CPU'}; change it at will")
    if options.seconds > 0:
        size = Extent(len(found.real.classes), len(found.real.train), len(found.real.test), "the data")
        made = Plan(recipe, size, 1, device, options.seconds)
        times = ", ".join(f"{stage.name} {seconds_in_words(stage.wall)}" for stage in made.times)
        wall, memory = sum(stage.wall for stage in made.times), max(size for size, _ in made.memory.values())
        log.say(
            f"plan: {seconds_in_words(wall)} on one worker ({times}), {bytes_in_words(memory)} of memory and "
            f"{bytes_in_words(sum(made.disk.values()))} of disk"
        )
        for text in advice(made):
            log.say(text)
    log.say(f"next: fastcondense run --recipe {shlex.quote(str(out))} --data {shlex.quote(str(options.data))}")


def seen_as(found: Survey, device: torch.device) -> Dataset:
    """How the recipe's networks see the images: in which size."""
    side = found.short_sides[1]
    size = 224 if _is_large(found, device) else 64 if side >= 64 else max(8, side // 8 * 8)
    return Dataset(loader="folder", image_size=size, resize=round(size * 8 / 7) if size >= 64 else size)


def _is_large(found: Survey, device: torch.device) -> bool:
    """Whether a pretrained network of ImageNet's size is worth it."""
    return device.type == "cuda" and found.short_sides[1] >= 112


def recipe_text(found: Survey, seen: Decoded, data: Path, device: torch.device, ipc: int = 0) -> str:
    """The recipe as TOML with comments. Raises ValueError if a class has too few images for it that can be read."""
    real, counts = found.real, seen.train_counts
    poorest = min(range(len(counts)), key=counts.__getitem__)
    wanted = ipc or min(_IPC, max(1, counts[poorest] // 2))
    if len(counts) < 2 or not 0 < wanted <= counts[poorest]:
        raise ValueError(
            f"new needs two classes or more, with --ipc training images each; {data} has {len(counts)}, the smallest "
            f"is {real.classes[poorest]!r} with {counts[poorest]} training images, and --ipc is {wanted}"
        )
    is_large, dataset = _is_large(found, device), seen_as(found, device)
    has_bad = bool(seen.unread or found.unread)
    colors = seen.mean, [max(deviation, 1e-3) for deviation in seen.deviation]
    numbers = [", ".join(f"{value:.3f}" for value in values) for values in colors]
    epochs = min(100, max(20, round(_VIEWS / len(real.train))))
    least, _, most = found.short_sides
    teacher = (
        [
            ('teachers = ["torchvision/resnet18"]', "pretrained on ImageNet, which is downloaded"),
            ('weights = ["default"]', ""),
            ('probe_weights = ["train"]', "a new last layer for these classes, fitted on them"),
        ]
        if is_large
        else [
            ('teachers = ["zoo/convnet3_w64"]', "small, and trained here"),
            (f"epochs = {epochs}", ""),
            ("batch_size = 64", ""),
            ("lr = 3e-3", ""),
            ("crop_scale = [0.4, 1.0]", ""),
        ]
    )
    lines = [
        ('method = "rded"', "no optimisation: real crops that the teacher knows best"),
        (f"ipc = {wanted}", "images of each class that are left"),
        ("[dataset]", ""),
        ('name = "folder"', ""),
        (f"image_size = {dataset.image_size}", f"pixels; the short sides of these images are {least} to {most}"),
        (f"resize = {dataset.resize}", ""),
        (f"mean = [{numbers[0]}]", ""),
        (f"std = [{numbers[1]}]", ""),
        *([('on_error = "skip"', "files that cannot be read are left out")] if has_bad else []),
        ("[squeeze]", "the teacher"),
        *teacher,
        *([(f"gate_images = {min(counts)}", "")] if min(counts) < _GATE else []),
        ("[recover]", ""),
        ("iterations = 0", ""),
        (f'initial = {{ kind = "mosaic", factor = {2 if is_large else 1}, crop_scale = [0.3, 1.0] }}', ""),
        ("[labels]", "what students see of an image"),
        ("crop_scale = [0.5, 1.0]", ""),
        ("[train]", "the student, on these images and on as many random ones"),
        (f'student = "{"torchvision/resnet18" if is_large else "zoo/convnet3_w64"}"', ""),
        (f"epochs = {300 if is_large else 100}", ""),
        ("batch_size = 50", ""),
        *([] if is_large else [("lr = 3e-3", ""), ("temperature = 4.0", "")]),
    ]
    head = (
        f"# {len(real.train)} training and {len(real.test)} test images in {len(counts)} classes; for a "
        f"{'GPU' if device.type == 'cuda' else 'CPU'}. Made by `fastcondense new`.\n"
    )
    return head + "".join(f"{setting:<36} # {why}\n" if why else f"{setting}\n" for setting, why in lines)


def _describe(found: Survey, seen: Decoded, recipe: Recipe, log: Log) -> None:
    """What the folder holds, in a few lines."""
    real = found.real
    counted = list(zip(real.classes, found.train_counts, found.test_counts, strict=True))
    named = ", ".join(f"{one_line(name)} {train} + {test}" for name, train, test in counted[:_SHOWN])
    more = f", and {len(counted) - _SHOWN} more" * (len(counted) > _SHOWN)
    log.say(f"{len(counted)} classes, training + test images: {named}{more}")
    least, middle, most = found.short_sides
    log.say(f"short sides of {found.num_opened - len(found.unread)} images: {least} to {most} pixels, median {middle}")
    for text in real.said:
        log.say(text)
    unread = tuple(dict.fromkeys((*found.unread, *seen.unread)))
    for text in unread[:_SHOWN]:
        log.say(f"odd: {text}")
    if len(unread) > _SHOWN:
        log.say(f"odd: {len(unread) - _SHOWN} more that cannot be read")
    if least < recipe.dataset.image_size:
        log.say(f"odd: images smaller than {recipe.dataset.image_size} pixels, which are enlarged")
