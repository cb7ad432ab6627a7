"""The public functions take the Triton path for a GPU's tensors, and the closed form otherwise."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from kernel_checks import DEVICE, relative_rms
from torch import Tensor

from fastcondense.kernels import (
    crop_triton,
    feature_maps_triton,
    frozen_batch_norm_pool_triton,
    frozen_batch_norm_triton,
    pixel_adam_triton,
)
from fastcondense.kernels.crop import crop
from fastcondense.kernels.feature_maps import feature_maps
from fastcondense.kernels.frozen_batch_norm import frozen_batch_norm
from fastcondense.kernels.frozen_batch_norm_pool import frozen_batch_norm_pool
from fastcondense.kernels.pixel_adam import pixel_adam


def normalized(x: Tensor) -> list[Tensor]:
    channels = x.shape[1]
    scale, shift, center = (torch.full((channels,), value, device=x.device) for value in (0.5, 0.25, 1.0))
    x = x.contiguous(memory_format=torch.channels_last)
    return list(frozen_batch_norm(x, scale, shift, center, residual=x.flip(0), relu=True))


def pooled(x: Tensor) -> list[Tensor]:
    scale, shift, center = (torch.full((x.shape[1],), value, device=x.device) for value in (0.5, 0.25, 1.0))
    x = x.contiguous(memory_format=torch.channels_last)
    return list(frozen_batch_norm_pool(x, scale, shift, center, output_center=center))


def cropped(x: Tensor) -> list[Tensor]:
    windows = torch.tensor([(1, 0, 4, 5, 1, 2, 3)])  # int64 on the host: both are converted
    gain = torch.full((x.shape[1],), 2.0, device=x.device)
    return [crop(x, windows, 6, gain=gain), crop(x, windows, 6, offset=gain, dtype=torch.float32)]


def stepped(x: Tensor) -> list[Tensor]:
    images, first, second = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
    low, high = torch.full((x.shape[1],), -1.0, device=x.device), torch.full((x.shape[1],), 1.5, device=x.device)
    rate, step = torch.tensor(0.1, device=x.device), torch.tensor(1.0, device=x.device)
    gradient = x.sin().contiguous(memory_format=torch.channels_last)
    pixel_adam(images, gradient, first, second, rate, step, betas=(0.5, 0.9), low=low, high=high)
    return [images, first, second]


def mapped(x: Tensor) -> list[Tensor]:
    center = torch.full((x.shape[1],), 0.5, device=x.device)
    x = x.contiguous(memory_format=torch.channels_last)
    return [t for t in feature_maps(x, center, has_neighbours=True) if t is not None]


CASES = {
    "frozen_batch_norm": (normalized, frozen_batch_norm_triton.FrozenBatchNorm, "apply"),
    "frozen_batch_norm_pool": (pooled, frozen_batch_norm_pool_triton.FrozenBatchNormPool, "apply"),
    "crop": (cropped, crop_triton.Crop, "apply"),
    "feature_maps": (mapped, feature_maps_triton.FeatureMaps, "apply"),
    "pixel_adam": (stepped, pixel_adam_triton, "pixel_adam_triton"),
}


@pytest.mark.parametrize("name", CASES)
def test_device_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, owner, attribute = CASES[name]
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    with mock.patch.object(owner, attribute, wraps=getattr(owner, attribute)) as kernel:
        closed = function(x)
        assert not kernel.called
        if DEVICE.type == "cpu":
            monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
        ours = function(x.to(DEVICE))
        assert kernel.called
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(ours, closed, strict=True))
