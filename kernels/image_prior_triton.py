"""image_prior in Triton: an image is one run of memory in both layouts, and a neighbour a constant distance away in it.

Element e of an image lies in column e % L of row e / L, of L = W (contiguous) or W * C (channels_last) elements;
right is SHIFT = 1 or C elements on, below L elements on, and the last row of a plane of H rows has nothing below.
"""

import torch
import triton
import triton.language as tl

from .launch import OPTIONS, cdiv, device_of

BLOCK, WARPS = 1024, 4
COMBINE_N, COMBINE_P, COMBINE_WARPS = 16, 64, 4
PROGRAMS = 1024


@triton.jit
def _square(a, b, live):
    """(a - b)^2 where live, else 0."""
    return tl.where(live, (a - b) * (a - b), 0.0)


@triton.jit
def forward_kernel(
    x_ptr,
    partial_ptr,
    size,
    chunk,
    num_chunks,
    H: tl.constexpr,
    L: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # x: [N, size]; partial: float32 [N, num_chunks, 5], sums of squares: right, below, falling, rising, the image
    n = (tl.program_id(0) // num_chunks).to(tl.int64)
    first = tl.program_id(0) % num_chunks * chunk
    x_ptr += n * size
    right = tl.zeros((BLOCK,), tl.float32)
    below = tl.zeros((BLOCK,), tl.float32)
    falling = tl.zeros((BLOCK,), tl.float32)
    rising = tl.zeros((BLOCK,), tl.float32)
    whole = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, chunk, BLOCK):
        e = first + begin + tl.arange(0, BLOCK)
        live = e < size
        live_x = live & (e % L < L - SHIFT)
        live_y = live & (e // L % H < H - 1)
        a = tl.load(x_ptr + e, mask=live, other=0.0).to(tl.float32)
        b = tl.load(x_ptr + e + SHIFT, mask=live_x, other=0.0).to(tl.float32)
        c = tl.load(x_ptr + e + L, mask=live_y, other=0.0).to(tl.float32)
        d = tl.load(x_ptr + e + L + SHIFT, mask=live_x & live_y, other=0.0).to(tl.float32)
        right += _square(a, b, live_x)
        below += _square(a, c, live_y)
        falling += _square(a, d, live_x & live_y)
        rising += _square(c, b, live_x & live_y)
        whole += a * a
    partial_ptr += tl.program_id(0).to(tl.int64) * 5
    tl.store(partial_ptr, tl.sum(right, axis=0))
    tl.store(partial_ptr + 1, tl.sum(below, axis=0))
    tl.store(partial_ptr + 2, tl.sum(falling, axis=0))
    tl.store(partial_ptr + 3, tl.sum(rising, axis=0))
    tl.store(partial_ptr + 4, tl.sum(whole, axis=0))


@triton.jit
def _norm(total, share_ptr, live):
    """Square root of `total`; its inverse, or 0 if it is 0, goes to share_ptr."""
    norm = tl.sqrt_rn(total)
    tl.store(share_ptr, tl.where(total == 0, 0.0, tl.div_rn(1.0, tl.where(total == 0, 1.0, norm))), mask=live)
    return norm


@triton.jit
def combine_kernel(
    partial_ptr,
    share_ptr,
    variation_ptr,
    norm_ptr,
    num_images,
    num_chunks,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    # partial: float32 [num_images, num_chunks, 5]; share: float32 [4 + num_images], one over each norm
    k = tl.arange(0, 8)
    differences = tl.zeros((8,), tl.float32)
    norms = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, num_images, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        sums = tl.zeros((BLOCK_N, 8), tl.float32)
        for begin in range(0, num_chunks, BLOCK_P):
            p = begin + tl.arange(0, BLOCK_P)
            live = (n < num_images)[:, None, None] & (p < num_chunks)[None, :, None] & (k < 5)[None, None, :]
            at = (n[:, None, None] * num_chunks + p[None, :, None]) * 5 + k[None, None, :]
            sums += tl.sum(tl.load(partial_ptr + at, mask=live, other=0.0), axis=1)
        differences += tl.sum(sums, axis=0)
        squares = tl.sum(tl.where((k == 4)[None, :], sums, 0.0), axis=1)
        norms += _norm(squares, share_ptr + 4 + n, n < num_images)
    variation = _norm(differences, share_ptr + k, k < 4)
    tl.store(variation_ptr, tl.sum(tl.where(k < 4, variation, 0.0), axis=0))
    tl.store(norm_ptr, tl.sum(norms, axis=0) / num_images)


@triton.jit
def _pull(a, b_ptr, live):
    """a - b where live, else 0."""
    return tl.where(live, a - tl.load(b_ptr, mask=live, other=0.0).to(tl.float32), 0.0)


@triton.jit
def backward_kernel(
    x_ptr,
    share_ptr,
    dvariation_ptr,
    dnorm_ptr,
    dx_ptr,
    size,
    num_blocks,
    num_images,
    H: tl.constexpr,
    L: tl.constexpr,
    SHIFT: tl.constexpr,
    HAS_VARIATION: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # x, dx: [num_images, size]; share: float32 [4 + num_images]; dvariation, dnorm: float32 scalars
    n = tl.program_id(0) // num_blocks
    e = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    live = e < size
    x_ptr += n.to(tl.int64) * size + e
    dx_ptr += n.to(tl.int64) * size + e
    x = tl.load(x_ptr, mask=live, other=0.0).to(tl.float32)
    dx = tl.zeros((BLOCK,), tl.float32)
    if HAS_NORM:
        dx += x * (tl.load(dnorm_ptr).to(tl.float32) * tl.load(share_ptr + 4 + n) / num_images)
    if HAS_VARIATION:
        column = e % L
        row = e // L % H
        left = live & (column >= SHIFT)
        right = live & (column < L - SHIFT)
        above = live & (row > 0)
        below = live & (row < H - 1)
        sides = _pull(x, x_ptr - SHIFT, left) + _pull(x, x_ptr + SHIFT, right)
        stack = _pull(x, x_ptr - L, above) + _pull(x, x_ptr + L, below)
        falling = _pull(x, x_ptr - L - SHIFT, above & left) + _pull(x, x_ptr + L + SHIFT, below & right)
        rising = _pull(x, x_ptr - L + SHIFT, above & right) + _pull(x, x_ptr + L - SHIFT, below & left)
        slope = sides * tl.load(share_ptr) + stack * tl.load(share_ptr + 1)
        slope += falling * tl.load(share_ptr + 2) + rising * tl.load(share_ptr + 3)
        dx += slope * tl.load(dvariation_ptr).to(tl.float32)
    tl.store(dx_ptr, dx.to(dx_ptr.dtype.element_ty), mask=live)


class ImagePrior(torch.autograd.Function):
    """`image_prior` of float32, bfloat16 or float16 images, contiguous or channels_last."""

    @staticmethod
    def forward(ctx, images):
        num_images, channels, height, width = images.shape
        size = channels * height * width
        chunk = BLOCK * cdiv(cdiv(size, BLOCK), max(1, PROGRAMS // num_images))
        num_chunks = cdiv(size, chunk)
        length, shift = (width, 1) if images.is_contiguous() else (width * channels, channels)
        partial = torch.empty(num_images, num_chunks, 5, dtype=torch.float32, device=images.device)
        share = torch.empty(4 + num_images, dtype=torch.float32, device=images.device)
        variation, norm = (torch.empty((), dtype=torch.float32, device=images.device) for _ in range(2))
        with device_of(images):
            forward_kernel[(num_images * num_chunks,)](
                images,
                partial,
                size,
                chunk,
                num_chunks,
                H=height,
                L=length,
                SHIFT=shift,
                BLOCK=BLOCK,
                num_warps=WARPS,
                **OPTIONS,
            )
            combine_kernel[(1,)](
                partial,
                share,
                variation,
                norm,
                num_images,
                num_chunks,
                BLOCK_N=COMBINE_N,
                BLOCK_P=COMBINE_P,
                num_warps=COMBINE_WARPS,
                **OPTIONS,
            )
        ctx.save_for_backward(images, share)
        ctx.length, ctx.shift = length, shift
        ctx.set_materialize_grads(False)
        return variation, norm

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dvariation, dnorm):
        images, share = ctx.saved_tensors
        num_images, size = len(images), images[0].numel()
        dx = torch.empty_like(images)
        with device_of(images):
            backward_kernel[(num_images * cdiv(size, BLOCK),)](
                images,
                share,
                share if dvariation is None else dvariation,
                share if dnorm is None else dnorm,
                dx,
                size,
                cdiv(size, BLOCK),
                num_images,
                H=images.shape[2],
                L=ctx.length,
                SHIFT=ctx.shift,
                HAS_VARIATION=dvariation is not None,
                HAS_NORM=dnorm is not None,
                BLOCK=BLOCK,
                num_warps=WARPS,
                **OPTIONS,
            )
        return dx
