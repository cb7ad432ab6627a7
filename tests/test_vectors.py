"""Vectors of the numba loops, and that the loops give the same bits compiled or loaded, for whichever processor."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numba
import pytest
import torch

from fastcondense.kernels.common.threads import array
from fastcondense.kernels.common.vectors import LANES, fused, keep, load, splat, sum_lanes

CODE = """
import hashlib, sys, torch
from fastcondense.kernels.crop import crop
from fastcondense.kernels.feature_maps import feature_maps
from fastcondense.kernels.frozen_batch_norm import frozen_batch_norm
from fastcondense.kernels.frozen_batch_norm_pool import frozen_batch_norm_pool
from fastcondense.kernels.pixel_adam import pixel_adam
from fastcondense.kernels.replay_crop import replay_crop
from fastcondense.kernels.soft_label import soft_label_loss

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
random = lambda *shape: torch.randn(shape, generator=generator)
maps = lambda *shape: random(*shape).contiguous(memory_format=torch.channels_last).requires_grad_()

def say(name, inputs, outputs):
    outputs = [output for output in outputs if output is not None]
    gradients = torch.autograd.grad(outputs, inputs, [random(*output.shape) for output in outputs]) if inputs else ()
    for output in (*outputs, *gradients):
        print(name, hashlib.sha256(output.detach().contiguous().numpy().tobytes()).hexdigest())

windows = torch.tensor([(2, 3, 25, 31, 1, 2, 5), (4, 0, 9, 36, 0, 0, -3), (0, 0, 33, 37, 1, 0, 0)], dtype=torch.int32)
gain, offset = random(3), random(3)
for size in (17, 50):
    images = random(3, 3, 33, 37).requires_grad_()
    say("crop", [images], [crop(images, windows, size, gain=gain, offset=offset)])
stored, ids = torch.randint(256, (4, 3, 33, 37), dtype=torch.uint8, generator=generator), torch.tensor([2, 0, 3])
mixed = {"partners": ids.flip(0), "partner_windows": windows.flip(0), "share": torch.tensor([0.3, 0.8, 0.5])}
say("replay_crop", [], [replay_crop(stored, ids, windows, 24, gain=gain, offset=offset, **mixed)])
for channels in (3, 45):
    x, center = maps(2, channels, 9, 13), random(channels)
    flags = {"has_neighbours": channels > 3, "has_channels": True}
    say("feature_maps", [x], feature_maps(x, center, map_center=center[0], **flags))
for activation in ("relu", "silu"):
    x, residual, scale, shift = maps(5, 19, 7, 6), maps(5, 19, 7, 6), random(19), random(19)
    output_center = None if activation == "relu" else shift
    kinds = {"residual": residual, "activation": activation, "output_center": output_center}
    say("frozen_batch_norm", [x, residual], frozen_batch_norm(x, scale, shift, scale, **kinds))
x = maps(2, 19, 12, 9)
say("frozen_batch_norm_pool", [x], frozen_batch_norm_pool(x, scale, shift, scale)[:3])
moving, low = [random(2, 3, 5, 7).abs() for _ in range(4)], torch.zeros(3)
rate, step = torch.tensor(0.1), torch.tensor(3.0)
pixel_adam(*moving, rate, step, betas=(0.5, 0.9), low=low, high=low + 1)
say("pixel_adam", [], moving)
teachers, labels, share = random(2, 6, 103), torch.arange(6), torch.full((6,), 0.7)
for kind in ("kl", "mse_ce"):
    logits = random(6, 103).requires_grad_()
    loss = soft_label_loss(logits, teachers, labels, labels.flip(0), share, kind=kind, temperature=3.0, ce_weight=0.1)
    say("soft_label", [logits], [loss])
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other vectors are those of x86-64")
def test_same_bits_for_other_vectors_and_when_loaded(tmp_path):
    narrow = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_CPU_NAME": "nehalem"}  # no AVX, no fused multiply-add
    said = [
        subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=os.environ | given,
            cwd=Path(__file__).parents[1],
        ).stdout.splitlines()
        for given in ({}, narrow, narrow)
    ]  # fmt: skip
    assert len(said[0]) == 39
    assert said[1] == said[0]
    assert said[2] == said[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors(dtype):
    @numba.njit
    def run(x, y):
        total = splat(x_0) - load(x, 1) * load(x, 2)
        keep(y, 1, fused(load(x, 3), load(x, 0), total))
        return sum_lanes(total)

    x_0 = torch.tensor(3.0).numpy()[()]
    x = torch.randn(LANES + 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.zeros(LANES + 2)
    total = run(array(x), y.numpy())
    wide = x.double()
    right = 3 - wide[1 : LANES + 1] * wide[2 : LANES + 2]
    assert y[0] == y[-1] == 0
    assert torch.allclose(y[1:-1].double(), right + wide[3 : LANES + 3] * wide[:LANES], rtol=0, atol=1e-6)
    assert abs(total - float(right.sum())) < 1e-5


def test_fused_is_rounded_once():
    @numba.njit
    def run(x, y, z):
        return fused(x, y, z)

    one = torch.ones(()).numpy()[()]
    above, below = one + one / 2**13, one - one / 2**13
    assert float(run(above, below, -one)) == -(2.0**-26)  # two roundings make 0 of it
