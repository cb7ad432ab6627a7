"""A job shared by all workers: each has some of its images, and statistics are those of all of them.

Means and variances are sufficient: a worker's are merged with the others' about the common mean (Chan, Golub and
LeVeque, 1979), so that the matching loss and its gradient are those of one device to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.jobs import Job
from ..teachers.moments import Moments
from ..workers.distributed import all_sum, rank, world_size


@dataclass(frozen=True)
class Part:
    """A worker's images of a job: the rows [begin, end) of all `total`."""

    begin: int
    end: int
    total: int

    @staticmethod
    def of(job: Job, is_split: bool) -> Part:
        """That of this worker; the whole job if it is not split. Raises ValueError if there are too few images."""
        if not is_split or world_size() == 1:
            return Part(0, job.num_images, job.num_images)
        if job.num_images < world_size():
            raise ValueError(f"a job of {job.num_images} images cannot be split among {world_size()} workers")
        bounds = [job.num_images * number // world_size() for number in (rank(), rank() + 1)]
        return Part(bounds[0], bounds[1], job.num_images)

    @property
    def rows(self) -> slice:
        return slice(self.begin, self.end)

    @property
    def share(self) -> float:
        """Of the job's images: the weight of a mean over this part in the mean over all."""
        return (self.end - self.begin) / self.total

    @property
    def is_whole(self) -> bool:
        return self.end - self.begin == self.total

    def pooled(self, moments: Moments) -> Moments:
        """Means and variances of all parts together, from those of this one."""
        if self.is_whole or not moments:
            return moments
        vectors = [vector for layer in moments for vector in layer]
        lengths = [len(vector) for vector in vectors]
        means, variances = _Pooled.apply(torch.cat(vectors[::2]), torch.cat(vectors[1::2]), self.share)
        pairs = zip(means.split(lengths[::2]), variances.split(lengths[1::2]), strict=True)
        together = iter([vector for pair in pairs for vector in pair])
        return [tuple(next(together) for _ in layer) for layer in moments]

    def gathered(self, images: Tensor) -> Tensor:
        """The images of all parts, in order."""
        if self.is_whole:
            return images
        whole = images.new_zeros(self.total, *images.shape[1:])
        whole[self.rows] = images
        return all_sum(whole)

    def summed(self, losses: Tensor) -> Tensor:
        """Losses of the parts, each weighted by its share already, added up."""
        return losses if self.is_whole else all_sum(losses)


class _Pooled(torch.autograd.Function):
    """M = sum_r s_r m_r and V = sum_r s_r (v_r + (m_r - M)^2) over the workers r, of shares s_r.

    Every worker goes on with the same M and V, so the gradients in these are the same on all of them: dv_r = s_r dV and
    dm_r = s_r (dM + 2 (m_r - M) dV) need nothing of the others.
    """

    @staticmethod
    def forward(ctx, means, variances, share):
        common = share * means
        all_sum(common)
        apart = means - common
        together = share * (variances + apart.square())
        all_sum(together)
        ctx.save_for_backward(apart)
        ctx.share = share
        return common, together

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_means, of_variances):
        (apart,) = ctx.saved_tensors
        return ctx.share * (of_means + 2 * apart * of_variances), ctx.share * of_variances, None
