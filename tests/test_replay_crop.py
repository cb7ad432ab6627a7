"""replay_crop against crop of gathered images in float64, against torchvision, and what it refuses."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from kernel_checks import ROUNDED, poisoned, relative_rms
from torch import Tensor

from fastcondense.kernels.replay_crop import replay_crop
from fastcondense.kernels.replay_crop.definition import replay_crop_reference
from fastcondense.recipe.shared import Views
from fastcondense.rng import Stream
from fastcondense.views.windows import windows
from fastcondense.vision import torchvision  # noqa: F401  (makes the next import work beside a CPU torch)

resized_crop = importlib.import_module("torchvision.transforms.v2.functional").resized_crop

BOXES = [(0, 4, 1, 3), (2, 2, 0, 5), (1, 5, 0, 99), (0, 99, 0, 99), (3, 2, 4, 1), (0, 1, 4, 5)]  # some empty, one whole
SHAPES = {"same": (9, 9, 9), "smaller": (17, 11, 5), "larger": (6, 5, 13), "point": (1, 1, 5), "one": (5, 7, 1)}


def problem(
    mix: str, shape: tuple[int, int, int], count: int = 6, channels: int = 3, views: Views | None = None
) -> dict[str, Any]:
    """Arguments of replay_crop: source images of `shape`[:2], views of `shape`[2]; mix: none, box or share."""
    height, width, size = shape
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (11, channels, height, width), generator=generator, dtype=torch.uint8)
    ids, partners = (torch.randint(0, 11, (count,), generator=generator) for _ in range(2))
    table = torch.from_numpy(windows(Stream(0, "test"), views or Views(roll=(-3, 4)), np.arange(11), 0, height, width))
    arguments: dict[str, Any] = {
        "images": images,
        "ids": ids,
        "windows": table[ids],
        "size": size,
        "gain": torch.linspace(0.01, 0.03, channels),
        "offset": torch.linspace(-1, 2, channels),
    }
    if mix != "none":
        arguments |= {"partners": partners, "partner_windows": table[partners]}
    if mix == "box":
        boxes = torch.tensor(BOXES, dtype=torch.int32).clamp(0, size)
        arguments["boxes"] = boxes[torch.arange(count) % len(BOXES)]
    if mix == "share":
        arguments["share"] = torch.linspace(0, 1, count)
    return arguments


@pytest.mark.parametrize("mix", ["none", "box", "share"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_crop_of_gathered_images(shape: str, mix: str) -> None:
    arguments = problem(mix, SHAPES[shape])
    with poisoned():
        got = replay_crop(**arguments)
    assert relative_rms(got, replay_crop_reference(**arguments)) <= 1e-6
    assert got.is_contiguous(memory_format=torch.channels_last) and got.dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_channels(channels: int) -> None:
    arguments = problem("box", SHAPES["smaller"], channels=channels)
    assert relative_rms(replay_crop(**arguments), replay_crop_reference(**arguments)) <= 1e-6


@pytest.mark.parametrize("mix", ["none", "box", "share"])
def test_a_window_over_the_edge_sees_zeros(mix: str) -> None:
    arguments = problem(mix, (9, 9, 9), count=23, views=Views(padding=4, roll=(0, 2)))
    assert relative_rms(replay_crop(**arguments), replay_crop_reference(**arguments)) <= 1e-6
    arguments["windows"] = torch.tensor([(-9, 9, 9, 9, 0, 0, 0)] * 23, dtype=torch.int32)  # nothing is seen
    assert relative_rms(replay_crop(**arguments), replay_crop_reference(**arguments)) <= 1e-6


@pytest.mark.parametrize("shape", [(32, 32, 32), (33, 20, 32), (64, 50, 9), (7, 13, 14)], ids=str)
def test_equals_torchvision(shape: tuple[int, int, int]) -> None:
    arguments = problem("none", shape)
    size = arguments["size"]
    for name, value in (("gain", 1 / 255), ("offset", 0.0)):
        arguments[name] = torch.full((3,), value)
    expected = []
    for image, row in zip(arguments["images"][arguments["ids"]], arguments["windows"].tolist(), strict=True):
        top, left, height, width, flip, roll_y, roll_x = row
        view = resized_crop(image.float() / 255, top, left, height, width, [size, size], antialias=True)
        expected.append(torch.roll(view.flip(-1) if flip else view, (roll_y, roll_x), (1, 2)))
    torch.testing.assert_close(replay_crop(**arguments), torch.stack(expected), rtol=0, atol=2e-5)


def test_whole_images_are_copied_exactly() -> None:
    arguments = problem("box", (9, 9, 9))
    for name in ("windows", "partner_windows"):
        arguments[name] = torch.tensor([(0, 0, 9, 9, 0, 0, 0)] * 6, dtype=torch.int32)
    pixels = arguments["images"].float() * arguments["gain"][:, None, None] + arguments["offset"][:, None, None]
    own, others = pixels[arguments["ids"]], pixels[arguments["partners"]]
    got = replay_crop(**arguments)
    torch.testing.assert_close(got[3], others[3], rtol=0, atol=1e-6)
    torch.testing.assert_close(got[1], own[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mix", ["none", "box", "share"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_rounded_result(dtype: torch.dtype, mix: str) -> None:
    arguments = problem(mix, SHAPES["same"])
    got = replay_crop(**arguments, dtype=dtype)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, replay_crop(**arguments).to(dtype))
    assert relative_rms(got, replay_crop_reference(**arguments)) <= ROUNDED[dtype]


def test_threads_move_no_bit() -> None:
    arguments = problem("box", (20, 24, 16), count=37)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(replay_crop(**arguments))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*runs)


def test_int64_tables_and_an_empty_batch() -> None:
    arguments = problem("box", SHAPES["same"])
    wanted = replay_crop(**arguments)
    tables: dict[str, Tensor] = {name: arguments[name].long() for name in ("windows", "partner_windows", "boxes")}
    assert torch.equal(replay_crop(**arguments | tables), wanted)
    assert replay_crop(**problem("box", SHAPES["same"], count=0)).shape == (0, 3, 9, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(11, 3, 9, 9)}, "uint8"),
        ({"images": torch.zeros(11, 9, 9, 3, dtype=torch.uint8).permute(0, 3, 1, 2)}, "contiguous"),
        ({"ids": torch.full((6,), 11)}, "ids of 11 images"),
        ({"partners": torch.full((6,), -1)}, "ids of 11 images"),
        ({"partners": None}, "partners"),
        ({"share": torch.ones(6)}, "either boxes or share"),
        ({"boxes": None}, "partners"),
        ({"windows": torch.zeros(6, 6, dtype=torch.int32)}, "windows of shape"),
        ({"boxes": torch.zeros(1, 4, dtype=torch.int32)}, "boxes of shape"),
        ({"gain": torch.ones(1)}, "gain of shape"),
        ({"windows": torch.tensor([(-1, 0, 6, 6, 0, 0, 0)] * 6, dtype=torch.int32)}, "inside the image"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay_crop(**problem("box", SHAPES["same"]) | change)
