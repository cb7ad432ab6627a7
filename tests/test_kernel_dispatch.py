"""The public functions take the Triton path for a GPU's tensors; numba or the closed form otherwise."""

from __future__ import annotations

import importlib
from unittest import mock

import pytest
import torch
from kernel_checks import DEVICE, relative_rms
from torch import Tensor

from fastcondense.kernels.crop import crop
from fastcondense.kernels.feature_maps import feature_maps
from fastcondense.kernels.frozen_batch_norm import cpu, frozen_batch_norm
from fastcondense.kernels.frozen_batch_norm_pool import frozen_batch_norm_pool
from fastcondense.kernels.pixel_adam import pixel_adam
from fastcondense.kernels.replay_crop import replay_crop
from fastcondense.kernels.soft_label import soft_label_loss


def normalized(x: Tensor) -> list[Tensor]:
    channels = x.shape[1]
    scale, shift, center = (torch.full((channels,), value, device=x.device) for value in (0.5, 0.25, 1.0))
    x = x.contiguous(memory_format=torch.channels_last)
    return [
        *frozen_batch_norm(x, scale, shift, center, residual=x.flip(0), activation="relu"),
        *frozen_batch_norm(x, scale, shift, center, activation="silu", output_center=shift),
    ]


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


def replayed(x: Tensor) -> list[Tensor]:
    images = (x.abs() * 100).byte()
    ids, table = torch.tensor([1, 0]), torch.tensor([(1, 0, 4, 5, 1, 2, 3)] * 2)  # on the host: they are moved
    gain = torch.full((x.shape[1],), 2.0, device=x.device)
    mix = {"partners": ids.flip(0), "partner_windows": table, "boxes": torch.tensor([(0, 2, 1, 3)] * 2)}
    return [replay_crop(images, ids, table, 6, gain=gain, offset=gain, **mix)]


def compared(x: Tensor) -> list[Tensor]:
    teachers = x.flatten(2)
    labels = torch.arange(3, device=x.device)
    share = torch.full((3,), 0.25, device=x.device)
    student = teachers[0].cos().requires_grad_()
    losses = [
        soft_label_loss(student, teachers, labels, labels.flip(0), share, kind="kl_t2", temperature=2.0),
        soft_label_loss(student, None, labels, labels.flip(0), share, kind="ce"),
    ]
    return [*losses, *torch.autograd.grad(sum(losses), student)]


CASES = {
    "frozen_batch_norm": (normalized, "FrozenBatchNorm"),
    "frozen_batch_norm_pool": (pooled, "FrozenBatchNormPool"),
    "crop": (cropped, "Crop"),
    "feature_maps": (mapped, "FeatureMaps"),
    "replay_crop": (replayed, "replay_crop"),
    "soft_label": (compared, "SoftLabelLoss"),
    "pixel_adam": (stepped, "pixel_adam"),
}


@pytest.mark.parametrize("name", CASES)
def test_device_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, attribute = CASES[name]
    owner: object = importlib.import_module(f"fastcondense.kernels.{name}.gpu")
    if attribute[0].isupper():
        owner, attribute = getattr(owner, attribute), "apply"
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    with mock.patch.object(owner, attribute, wraps=getattr(owner, attribute)) as kernel:
        closed = function(x)
        assert not kernel.called
        if DEVICE.type == "cpu":
            monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
        ours = function(x.to(DEVICE))
        assert kernel.called
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(ours, closed, strict=True))


@pytest.mark.parametrize(
    ("dtype", "is_numba"),
    [(torch.float32, True), (torch.bfloat16, True), (torch.float16, False), (torch.float64, False)],
)
def test_numba_takes_the_cpus_float32_and_bfloat16(dtype: torch.dtype, is_numba: bool) -> None:
    x = torch.ones(2, 3, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    vector = torch.ones(3, dtype=torch.promote_types(dtype, torch.float32))
    kernel = cpu.FrozenBatchNorm
    with mock.patch.object(kernel, "apply", wraps=kernel.apply) as apply:
        frozen_batch_norm(x, vector, vector, vector)
    assert apply.called == is_numba
