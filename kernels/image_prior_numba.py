"""image_prior on the CPU: sums of squares row by row in one read, then the stencil of the differences in one pass."""

import numba
import numpy as np
import torch

from .threads import NUM_CHUNKS, inline, kernel, launch, planes

RIGHT, BELOW, FALLING, RISING, SELF = range(5)  # the four differences, and the image itself


@inline
def add_squares(sums, a, b):
    """sums += (a - b)^2."""
    for i in range(a.size):
        difference = a[i] - b[i]
        sums[i] += difference * difference


@inline
def add_differences(out, a, b, share):
    """out += (a - b) * share."""
    for i in range(a.size):
        out[i] += (a[i] - b[i]) * share


@kernel
def forward_kernel(x, shift, length, num_images, partial, sums):
    # x: float32 [planes, H, L], neighbours `shift` apart; partial: float64 [planes, bands of `length` rows, 5]
    # sums: float64 [4 + num_images], of the squared differences of the batch, and of each image
    planes, height, width = x.shape
    bands = partial.shape[1]
    reach = max(width - shift, 0)
    for task in numba.prange(planes * bands):
        p, band = task // bands, task % bands
        lanes = np.zeros((5, width), np.float32)
        zeros = np.zeros(width, np.float32)
        for h in range(band * length, min(band * length + length, height)):
            row = x[p, h]
            add_squares(lanes[SELF], row, zeros)
            add_squares(lanes[RIGHT], row[:reach], row[shift:])
            if h + 1 < height:
                below = x[p, h + 1]
                add_squares(lanes[BELOW], row, below)
                add_squares(lanes[FALLING], row[:reach], below[shift:])
                add_squares(lanes[RISING], below[:reach], row[shift:])
        for k in range(5):
            total = 0.0
            for i in range(width):
                total += lanes[k, i]
            partial[p, band, k] = total
    sums[:] = 0.0
    for p in range(planes):
        for band in range(bands):
            for k in range(4):
                sums[k] += partial[p, band, k]
            sums[4 + p * num_images // planes] += partial[p, band, SELF]


@kernel
def backward_kernel(x, shift, length, num_images, shares, has_differences, dx):
    # x, dx: float32 [planes, H, L]; shares: float32 [4 + num_images], upstream gradient / norm
    planes, height, width = x.shape
    bands = -(-height // length)
    reach = max(width - shift, 0)
    for task in numba.prange(planes * bands):
        p, band = task // bands, task % bands
        for h in range(band * length, min(band * length + length, height)):
            row, out = x[p, h], dx[p, h]
            share = shares[4 + p * num_images // planes]
            for i in range(width):
                out[i] = row[i] * share
            if has_differences:
                add_differences(out[:reach], row[:reach], row[shift:], shares[RIGHT])
                add_differences(out[shift:], row[shift:], row[:reach], shares[RIGHT])
                if h + 1 < height:
                    below = x[p, h + 1]
                    add_differences(out, row, below, shares[BELOW])
                    add_differences(out[:reach], row[:reach], below[shift:], shares[FALLING])
                    add_differences(out[shift:], row[shift:], below[:reach], shares[RISING])
                if h > 0:
                    above = x[p, h - 1]
                    add_differences(out, row, above, shares[BELOW])
                    add_differences(out[shift:], row[shift:], above[:reach], shares[FALLING])
                    add_differences(out[:reach], row[:reach], above[shift:], shares[RISING])


def band_length(num_planes: int, height: int) -> int:
    """Rows a band, so that planes times bands are about NUM_CHUNKS, or as many as there are planes."""
    return -(-height // max(1, NUM_CHUNKS // num_planes))


class ImagePrior(torch.autograd.Function):
    """`image_prior` of float32 images, contiguous or channels_last."""

    @staticmethod
    def forward(ctx, images):
        x, shift = planes(images)
        length = band_length(*x.shape[:2])
        partial = torch.empty(x.shape[0], -(-x.shape[1] // length), 5, dtype=torch.float64)
        sums = torch.empty(4 + len(images), dtype=torch.float64)
        launch(forward_kernel, x, shift, length, len(images), partial, sums)
        norms = sums.sqrt_()
        ctx.save_for_backward(images, norms)
        ctx.set_materialize_grads(False)
        return norms[:4].sum().float(), norms[4:].mean().float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dvariation, dnorm):
        images, norms = ctx.saved_tensors
        shares = torch.where(norms == 0, 0, 1 / norms)
        shares[:4] *= 0 if dvariation is None else dvariation
        shares[4:] *= 0 if dnorm is None else dnorm / len(images)
        dx = torch.empty_like(images)
        x, shift = planes(images)
        length = band_length(*x.shape[:2])
        out, _ = planes(dx)
        launch(backward_kernel, x, shift, length, len(images), shares.float(), dvariation is not None, out)
        return dx
