"""Total variation and mean Euclidean norm of a batch of images, differentiable: one read forward, one pass backward."""

from __future__ import annotations

import torch
from torch import Tensor


def image_prior(images: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation of the batch and mean over the batch of the images' Euclidean norms: two scalars.

    Total variation is the sum of four Frobenius norms, each over the whole batch: of the differences between
    neighbours to the right, below, and along the two diagonals. images: [N, C, H, W], contiguous or channels_last,
    floating. Sums, and the scalars, are float32 (float64 for float64 images). Where a norm is 0, so is its gradient.
    Raises ValueError for another memory layout or an empty batch.
    """
    if images.dim() != 4 or not images.numel():
        raise ValueError(f"image_prior needs some images of shape [N, C, H, W], got {tuple(images.shape)}")
    if not (images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError(f"image_prior needs contiguous or channels_last images, got strides {images.stride()}")
    if images.is_cuda and images.dtype != torch.float64:
        from .image_prior_triton import ImagePrior

        return ImagePrior.apply(images)
    if images.device.type == "cpu" and images.dtype == torch.float32:
        from . import image_prior_numba

        return image_prior_numba.ImagePrior.apply(images)
    return image_prior_reference(images if images.dtype == torch.float64 else images.float())


def image_prior_reference(images: Tensor) -> tuple[Tensor, Tensor]:
    """The same by autograd from its definition: any layout, in the images' dtype."""
    differences = (
        images[:, :, :, :-1] - images[:, :, :, 1:],
        images[:, :, :-1, :] - images[:, :, 1:, :],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
    )
    norms = [torch.linalg.vector_norm(difference) for difference in differences]
    return torch.stack(norms).sum(), torch.linalg.vector_norm(images.flatten(1), dim=1).mean()
