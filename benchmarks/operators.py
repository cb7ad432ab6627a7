"""Our operators and what PyTorch offers instead, at the shapes of ResNet-18 and ImageNet that decide a step.

To add an operator, write a function that makes a `Case` and list it in `OPERATORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from measure import DEVICE
from peers import PATCH, moments, patch_moments
from torch import Tensor
from torch.nn import functional as F

from fastcondense.devices import fastest_arithmetic
from fastcondense.kernels.crop import crop
from fastcondense.kernels.feature_maps import feature_maps
from fastcondense.kernels.frozen_batch_norm import frozen_batch_norm
from fastcondense.kernels.frozen_batch_norm_pool import frozen_batch_norm_pool
from fastcondense.kernels.patch_moments import needs_neighbours
from fastcondense.kernels.patch_moments import patch_moments as our_patch_moments
from fastcondense.kernels.pixel_adam import pixel_adam
from fastcondense.kernels.replay_crop import replay_crop
from fastcondense.kernels.soft_label import Kind, soft_label_loss
from fastcondense.vision import torchvision

Variant = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """An operator on some inputs: variants (ours first) take the inputs and return what is differentiated.

    Bytes are those that the operation must move, however it is written: every input read and every output written once.
    """

    name: str
    dtype: torch.dtype
    inputs: list[Tensor]
    variants: dict[str, Variant]
    forward_bytes: int
    backward_bytes: int = 0
    """0: there is no backward pass, or the operator has none."""


IMAGES = 100 if DEVICE.type == "cuda" else 8
DTYPES = (torch.float32, torch.bfloat16) if fastest_arithmetic(DEVICE)[0] == "bf16" else (torch.float32,)


def compiled(function: Variant) -> Variant:
    """The same under torch.compile; the first call compiles."""
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def feature(channels: int, side: int, dtype: torch.dtype) -> Tensor:
    """A random feature map in channels_last that requires gradients."""
    x = torch.randn(IMAGES, channels, side, side, device=DEVICE)
    return x.to(dtype, memory_format=torch.channels_last).requires_grad_()


def batch_norm_case(channels: int, side: int, has_residual: bool, has_output: bool, dtype: torch.dtype) -> Case:
    """BatchNorm (+ residual) + ReLU with the moments of its input (and output), beside PyTorch's, as published."""
    inputs = [feature(channels, side, dtype) for _ in range(1 + has_residual)]
    scale, shift, center = (torch.rand(channels, device=DEVICE) for _ in range(3))
    var, bias = torch.ones(channels, device=DEVICE), shift + center * scale

    def ours(x: Tensor, residual: Tensor | None = None) -> Sequence[Tensor]:
        output_center = shift if has_output else None
        return frozen_batch_norm(
            x, scale, shift, center, residual=residual, activation="relu", output_center=output_center
        )

    def normalized(x: Tensor, residual: Tensor | None) -> Tensor:
        y = F.batch_norm(x, center, var, scale, bias, eps=0.0)
        return F.relu(y if residual is None else y + residual)

    def peer(is_compiled: bool) -> Variant:
        def run(x: Tensor, residual: Tensor | None = None) -> Sequence[Tensor]:
            y = normalized(x, residual)
            return y, *(moment for z in ((x, y) if has_output else (x,)) for moment in moments(z, is_compiled))

        return run

    size, signs = inputs[0].numel() * dtype.itemsize, inputs[0].numel() // 8 if has_residual else 0
    forward, backward = 2 * size, 3 * size
    if has_residual:  # with y's moments backward reads y itself, without them the signs that forward wrote
        forward, backward = 3 * size + (0 if has_output else signs), 4 * size + (size if has_output else signs)
    return Case(
        f"{channels} x {side} x {side}{', residual' * has_residual}{', output' * has_output}",
        dtype,
        inputs,
        {"ours": ours, "eager": peer(False), "compiled": compiled(peer(True))},
        forward,
        backward,
    )


def stem_case(dtype: torch.dtype) -> Case:
    """BatchNorm, ReLU and max-pool with the moments of the input, beside PyTorch's with the published moments."""
    channels, side = 64, 112
    x = feature(channels, side, dtype)
    scale, shift, center = (torch.rand(channels, device=DEVICE) for _ in range(3))
    var, bias = torch.ones(channels, device=DEVICE), shift + center * scale

    def ours(x: Tensor) -> Sequence[Tensor]:
        return frozen_batch_norm_pool(x, scale, shift, center)

    def pooled(x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(F.batch_norm(x, center, var, scale, bias, eps=0.0)), 3, 2, 1)

    def eager(x: Tensor) -> Sequence[Tensor]:
        return pooled(x), *moments(x, is_compiled=False)

    def fusible(x: Tensor) -> Sequence[Tensor]:
        return pooled(x), *moments(x, is_compiled=True)

    size, places = x.numel() * dtype.itemsize, x.numel() // 4  # y is a quarter of x, a byte says where it is from
    variants = {"ours": ours, "eager": eager, "compiled": compiled(fusible)}
    return Case(f"{channels} x {side} x {side}", dtype, [x], variants, size * 5 // 4 + places, size * 9 // 4 + places)


def statistics_case(channels: int, side: int, dtype: torch.dtype) -> Case:
    """Channel and patch moments of a convolution's input, beside the published resize, patches and moments."""
    x = feature(channels, side, dtype)
    center, has_neighbours = torch.zeros(channels, device=DEVICE), needs_neighbours(side, side, PATCH)

    def ours(x: Tensor) -> Sequence[Tensor]:
        _, maps, mean, var = feature_maps(x, center, has_neighbours=has_neighbours)
        return mean, var, *our_patch_moments(maps, x.shape[0], channels, PATCH)

    def eager(x: Tensor) -> Sequence[Tensor]:
        return *moments(x, is_compiled=False), *patch_moments(x)

    def fusible(x: Tensor) -> Sequence[Tensor]:
        return *moments(x, is_compiled=True), *patch_moments(x)

    size = x.numel() * dtype.itemsize
    variants = {"ours": ours, "eager": eager, "compiled": compiled(fusible)}
    return Case(f"{channels} x {side} x {side}", dtype, [x], variants, size, 2 * size)


def crop_case(dtype: torch.dtype) -> Case:
    """One window of the whole batch: resized, mirrored and rolled, beside PyTorch's operators one after another."""
    size, (top, left, height, width) = 224, (20, 30, 150, 160)
    windows = torch.tensor([(top, left, height, width, 1, 3, 5)], dtype=torch.int32, device=DEVICE)
    images = torch.randn(IMAGES, 3, size, size, device=DEVICE).requires_grad_()

    def ours(images: Tensor) -> Sequence[Tensor]:
        return [crop(images, windows, size, dtype=dtype)]

    def eager(images: Tensor) -> Sequence[Tensor]:
        view = images[:, :, top : top + height, left : left + width]
        view = F.interpolate(view, (size, size), mode="bilinear", antialias=True)
        return [torch.roll(view.flip(3), (3, 5), (2, 3)).to(dtype, memory_format=torch.channels_last)]

    full, window = images.numel(), images.numel() * height * width // size**2
    return Case(
        f"3 x {size} x {size}",
        dtype,
        [images],
        {"ours": ours, "eager": eager, "compiled": compiled(eager)},
        4 * window + dtype.itemsize * full,
        dtype.itemsize * full + 4 * full,
    )


def replay_case(mix: str, dtype: torch.dtype) -> Case:
    """Normalised views of a resident set, CutMix or not, beside a gather and torchvision's crop of every image."""
    size, height, width = 224, 150, 160
    images = torch.randint(256, (4 * IMAGES, 3, size, size), dtype=torch.uint8, device=DEVICE)
    ids, partners = (torch.randint(len(images), (IMAGES,), device=DEVICE) for _ in range(2))
    gain, offset = torch.full((3,), 1 / 58, device=DEVICE), torch.full((3,), -2.0, device=DEVICE)
    mean, std = (-offset / gain / 255).tolist(), (1 / gain / 255).tolist()
    top, bottom, left, right = 50, 150, 80, 200  # of the box
    inside = torch.zeros(size, size, dtype=torch.bool, device=DEVICE)
    inside[top:bottom, left:right] = True

    def table() -> Tensor:
        corner = torch.stack([torch.randint(size - extent, (IMAGES,)) for extent in (height, width)], 1)
        rest = torch.tensor([(height, width, k % 2, 0, 0) for k in range(IMAGES)])
        return torch.cat([corner, rest], 1).int()

    tables = [table(), table()]
    windows, partner_windows = (rows.to(DEVICE) for rows in tables)
    mixed = {"partners": partners, "partner_windows": partner_windows} if mix == "cutmix" else {}
    boxes = torch.tensor([(top, bottom, left, right)], device=DEVICE).expand(IMAGES, 4) if mixed else None

    def ours(images: Tensor) -> Sequence[Tensor]:
        return [replay_crop(images, ids, windows, size, gain=gain, offset=offset, boxes=boxes, dtype=dtype, **mixed)]

    def views(images: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        transforms, gathered = torchvision.transforms.functional, images[ids].float() / 255
        seen = []
        for image, (top, left, height, width, flip, *_) in zip(gathered, rows.tolist(), strict=True):
            view = transforms.resized_crop(image, top, left, height, width, [size, size])
            seen.append(transforms.hflip(view) if flip else view)
        return transforms.normalize(torch.stack(seen), mean, std)

    def eager(images: Tensor) -> Sequence[Tensor]:
        view = views(images, ids, tables[0])
        if mix == "cutmix":
            view = torch.where(inside, views(images, partners, tables[1]), view)
        return [view.to(dtype, memory_format=torch.channels_last)]

    moved = IMAGES * 3 * (height * width + dtype.itemsize * size**2)  # every pixel of a view has one source
    name = f"{IMAGES} of {len(images)} x 3 x {size} x {size}{', CutMix' if mixed else ''}"
    return Case(name, dtype, [images], {"ours": ours, "eager": eager}, moved)


def soft_label_case(kind: Kind, num_teachers: int, dtype: torch.dtype) -> Case:
    """Loss of ImageNet's logits, beside SRe2L's KL divergence and G-VBSM's MSE with cross-entropy, as published."""
    batch, classes, temperature, ce_weight = 1024, 1000, 20.0, 0.1
    student = torch.randn(batch, classes, device=DEVICE).to(dtype).requires_grad_()
    teachers = torch.randn(num_teachers, batch, classes, device=DEVICE).to(dtype)
    labels, partners = (torch.randint(classes, (batch,), device=DEVICE) for _ in range(2))
    share = torch.rand(batch, device=DEVICE)

    def ours(student: Tensor, teachers: Tensor) -> Sequence[Tensor]:
        options = {"temperature": temperature, "ce_weight": ce_weight}
        return [soft_label_loss(student, teachers, labels, partners, share, kind=kind, **options)]

    def eager(student: Tensor, teachers: Tensor) -> Sequence[Tensor]:
        z, t = student.float(), teachers.float().mean(0)
        if kind == "kl":
            log_q, p = F.log_softmax(z / temperature, 1), F.softmax(t / temperature, 1)
            return [F.kl_div(log_q, p, reduction="batchmean")]
        own, other = (F.cross_entropy(z, index, reduction="none") for index in (labels, partners))
        return [F.mse_loss(z, t) + ce_weight * (share * own + (1 - share) * other).mean()]

    size = student.numel() * dtype.itemsize
    variants = {"ours": ours, "eager": eager, "compiled": compiled(eager)}
    name = f"{kind}, {batch} x {classes}, {num_teachers} teachers"
    # forward leaves something of the logits' size to backward
    return Case(name, dtype, [student, teachers], variants, (2 + num_teachers) * size, 2 * size)


def pixel_adam_case() -> Case:
    """Adam and the clip, beside PyTorch's Adam (foreach and fused) and a clip of each channel."""
    inputs = [torch.rand(IMAGES, 3, 224, 224, device=DEVICE) for _ in range(2)]
    inputs += [torch.zeros_like(x) for x in inputs]
    low, high = -torch.ones(3, device=DEVICE), torch.ones(3, device=DEVICE)
    rate, step = torch.tensor(0.1, device=DEVICE), torch.tensor(1.0, device=DEVICE)

    def ours(images: Tensor, gradient: Tensor, first: Tensor, second: Tensor) -> Sequence[Tensor]:
        pixel_adam(images, gradient, first, second, rate, step, betas=(0.5, 0.9), low=low, high=high)
        return [images]

    def peer(**options: bool) -> Variant:
        optimizers: dict[int, torch.optim.Adam] = {}

        def advance(images: Tensor, gradient: Tensor, *_: Tensor) -> Sequence[Tensor]:
            if id(images) not in optimizers:
                images.grad = gradient
                optimizers[id(images)] = torch.optim.Adam([images], lr=0.1, betas=(0.5, 0.9), **options)
            optimizers[id(images)].step()
            for c in range(3):
                images[:, c] = torch.clamp(images[:, c], -1.0, 1.0)
            return [images]

        return advance

    variants = {"ours": ours, "eager": peer(foreach=True), "fused Adam, clip": peer(fused=True)}
    return Case("3 x 224 x 224", torch.float32, inputs, variants, 7 * 4 * inputs[0].numel())


STATISTICS = [(64, 112), (64, 56), (256, 14), (512, 7)]
BATCH_NORMS = [
    (64, 112, False, False),
    (64, 56, True, False),
    (64, 56, False, True),
    (64, 56, True, True),
    (256, 14, False, False),
    (512, 7, True, False),
]
SOFT_LABELS: list[tuple[Kind, int]] = [("kl", 1), ("mse_ce", 4)]

OPERATORS: dict[str, list[Callable[[], Case]]] = {
    "frozen_batch_norm": [partial(batch_norm_case, *shape, dtype) for shape in BATCH_NORMS for dtype in DTYPES],
    "frozen_batch_norm_pool": [partial(stem_case, dtype) for dtype in DTYPES],
    "feature_maps": [partial(statistics_case, *shape, dtype) for shape in STATISTICS for dtype in DTYPES],
    "crop": [partial(crop_case, dtype) for dtype in DTYPES],
    "pixel_adam": [pixel_adam_case],
    "replay_crop": [partial(replay_case, mix, dtype) for mix in ("none", "cutmix") for dtype in DTYPES],
    "soft_label": [partial(soft_label_case, *loss, dtype) for loss in SOFT_LABELS for dtype in DTYPES],
}
