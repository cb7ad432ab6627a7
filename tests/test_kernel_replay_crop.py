"""replay_crop's Triton kernel against crop of gathered images in float64, and against the CPU's kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import DEVICE, TOLERANCE, poisoned, relative_rms
from test_replay_crop import SHAPES, problem
from torch import Tensor

from fastcondense.kernels.replay_crop import gpu, replay_crop
from fastcondense.kernels.replay_crop.definition import replay_crop_reference
from fastcondense.recipe.shared import Views


def replayed(arguments: dict[str, Any], dtype: torch.dtype = torch.float32) -> Tensor:
    names = ("partners", "partner_windows", "boxes", "share")
    moved = dict.fromkeys(names) | {
        name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in arguments.items()
    }
    with poisoned():
        return gpu.replay_crop(**moved, dtype=dtype)


@pytest.mark.parametrize("mix", ["none", "box", "share"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_crop_of_gathered_images(shape: str, mix: str) -> None:
    arguments = problem(mix, SHAPES[shape])
    got = replayed(arguments)
    assert relative_rms(got, replay_crop_reference(**arguments)) <= 1e-6
    assert relative_rms(got, replay_crop(**arguments)) <= 1e-6
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_channels(channels: int) -> None:
    arguments = problem("box", SHAPES["one"], channels=channels)
    assert relative_rms(replayed(arguments), replay_crop_reference(**arguments)) <= 1e-6


@pytest.mark.parametrize("mix", ["box", "share"])
def test_a_window_over_the_edge_sees_zeros(mix: str) -> None:
    arguments = problem(mix, (9, 9, 9), views=Views(padding=4, roll=(0, 2)))
    assert relative_rms(replayed(arguments), replay_crop_reference(**arguments)) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_out(dtype: torch.dtype) -> None:
    arguments = problem("share", SHAPES["point"])
    got = replayed(arguments, dtype)
    assert got.dtype == dtype and relative_rms(got, replay_crop_reference(**arguments)) <= TOLERANCE[dtype]


def test_two_runs_agree_bit_for_bit() -> None:
    arguments = problem("box", SHAPES["same"])
    assert torch.equal(replayed(arguments), replayed(arguments))
