"""Teachers: frozen, fused networks that return logits and BatchNorm moments."""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from .. import vision
from ..data.real import Normalization
from ..files import tree_sha256
from ..networks.precision import cast
from ..networks.zoo import black, channels_last, tried
from ..recipe.settings import Dataset, PixelStatistics
from ..tensor_files import state_sha256
from .fuse import fuse
from .moments import BatchNormKeeper, Keeper, Layer, Moments, idle, take_patch_moments


@dataclass
class Teacher:
    """A frozen network. ``fused(x)`` gives logits of all outputs, and its layers then hold their moments."""

    name: str
    sha256: str
    fused: nn.Module
    layers: list[Layer]
    targets: dict[str, tuple[Tensor, ...]]
    """What the moments of each layer should be, by the layer's name: so far, BatchNorms' running statistics."""
    outputs: Tensor
    """int64 [classes]: the network's output of each class of the data set."""
    num_outputs: int
    note: str | None
    """Why the network could not be traced, if so."""
    dtype: torch.dtype | None = None
    """Type of its weights and feature maps, where that is not the images' own."""
    unfused: nn.Module | None = None
    """The network itself, frozen and in evaluation mode, if it was asked for: labels in training mode need it."""
    class_name: str = ""
    """The Python class of the network, after which published files of statistics are named."""
    class_targets: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """The targets for the images of each class: float32 [classes, length] each, on the host."""
    group_targets: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """The targets for the images of each group of difficulty: float32 [groups, length] each, on the host."""
    class_variance: Literal["within-image", "full"] = "within-image"
    """Which variances class_targets hold."""
    swapped_patches: bool = False
    """Whether category targets take patch means for variances and the reverse (EDC's published code)."""
    normalization: Normalization | None = None
    """Normalisation that its network wants, where that is not the data set's."""
    adaptation: tuple[Tensor, Tensor] | None = None
    """Factor and summand, [3, 1, 1], that make that normalisation of the data set's."""

    @staticmethod
    def of(
        net: nn.Module,
        name: str,
        class_names: Sequence[str],
        outputs: Sequence[int],
        dataset: Dataset,
        statistics: Collection[str] = ("bn",),
        patch_size: int = 16,
        has_unfused: bool = False,
        statistics_of_pixels: PixelStatistics | None = None,
    ) -> Teacher:
        """Freezes and fuses `net`, and tries it on a black image. Raises ValueError if its output does not fit.

        statistics_of_pixels: mean and deviation that the network's inputs are normalised by, if not the data set's.
        """
        net = net.float()
        sha256 = state_sha256(net.state_dict())
        fused, layers, note = fuse(net, statistics, patch_size)
        num_outputs = count_outputs(fused, dataset.image_size, name)
        if num_outputs <= max(outputs):
            raise ValueError(f"teacher {name} has {num_outputs} outputs, but {len(class_names)} classes are needed")
        take_patch_moments(module for module in fused.modules() if isinstance(module, Keeper))
        layers = [layer for layer in layers if layer.moments is not None]  # those that the forward really uses
        targets: dict[str, tuple[Tensor, ...]] = {
            layer.name: (keeper.running_mean, keeper.running_var)
            for layer in layers
            for keeper, what in layer.parts
            if isinstance(keeper, BatchNormKeeper) and what == "input"
        }
        unfused = channels_last(copy.deepcopy(net).eval().requires_grad_(False)) if has_unfused else None
        output_of_class = torch.tensor(outputs)
        networks = fused, layers, targets, output_of_class, num_outputs, note
        made = Teacher(name, sha256, *networks, unfused=unfused, class_name=type(net).__name__)
        if statistics_of_pixels not in (None, (dataset.mean, dataset.std)):
            mean, std = statistics_of_pixels
            own = Normalization.of(replace(dataset, mean=mean, std=std), torch.device("cpu"))
            given = Normalization.of(dataset, torch.device("cpu"))
            factor = own.gain / given.gain
            made.normalization = own
            made.adaptation = factor[:, None, None], (own.offset - given.offset * factor)[:, None, None]
        return made

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of all that its answers depend on: weights, the output of each class, how inputs are normalised."""
        own = self.normalization
        inputs = None if own is None else [own.gain.tolist(), own.offset.tolist()]
        return tree_sha256({"weights": self.sha256, "outputs": self.outputs.tolist(), "inputs": inputs})

    @functools.cached_property
    def keepers(self) -> list[Keeper]:
        """All modules that keep moments, also those whose moments are not matched."""
        return [module for module in self.fused.modules() if isinstance(module, Keeper)]

    def to(self, device: torch.device) -> Teacher:
        """Moves it, in place."""
        self.fused.to(device)
        if self.unfused is not None:
            self.unfused.to(device)
        self.outputs = self.outputs.to(device)
        if self.normalization is not None and self.adaptation is not None:
            self.normalization = Normalization(self.normalization.gain.to(device), self.normalization.offset.to(device))
            self.adaptation = self.adaptation[0].to(device), self.adaptation[1].to(device)
        self.targets = {name: tuple(vector.to(device) for vector in kept) for name, kept in self.targets.items()}
        return self

    def cast(self, dtype: torch.dtype) -> Teacher:
        """Itself, or a copy whose weights and feature maps are of another type, without the unfused network.

        Moments stay float32.
        """
        if dtype == torch.float32:
            return self
        # class targets are large, and never changed
        copied = copy.deepcopy(replace(self, unfused=None), {id(self.class_targets): self.class_targets})
        copied.dtype = dtype
        cast(copied.fused, dtype, kept=(Keeper,))
        return copied

    def __call__(self, x: Tensor) -> tuple[Tensor, Moments]:
        """x: normalised [N, 3, H, W] channels_last -> float32 logits [N, num_outputs], the moments of its layers."""
        return self._forward(self.adapted(x))

    def _forward(self, x: Tensor) -> tuple[Tensor, Moments]:
        logits = self.fused(x)
        take_patch_moments(self.keepers)
        moments = [layer.moments or () for layer in self.layers]
        for keeper in self.keepers:
            keeper.forget()
        return logits.float() if self.dtype is not None else logits, moments

    def adapted(self, x: Tensor) -> Tensor:
        """Images in the data set's normalisation as the network wants them."""
        if self.adaptation is None:
            return x
        factor, summand = self.adaptation
        return (x.float() * factor + summand).to(x.dtype)

    def see(self, x: Tensor) -> Tensor:
        """Logits [N, num_outputs] of images that are normalised as the network wants them; no gradients."""
        with torch.no_grad(), idle(self.keepers, x.device):
            return self._forward(x)[0]

    def logits(self, x: Tensor) -> Tensor:
        """Logits of the data set's classes alone, in its order: [N, classes]; no gradients."""
        return self.see(self.adapted(x))[:, self.outputs]

    def matched_targets(self) -> Moments:
        """What its layers' moments should be. Raises ValueError if a target is missing."""
        for layer in self.layers:
            if layer.name not in self.targets:
                raise ValueError(f"teacher {self.name} has no target for the statistics of its layer {layer.name}")
        return [self.targets[layer.name] for layer in self.layers]

    def category_targets(self, classes: Tensor) -> Moments:
        """What its layers' moments should be for a batch of these classes, int64 [images]: the mean over its images of
        their classes' vectors (EDC), on its device.

        Variances that are "full" are pooled: mean_k(v_k + (m_k - m)^2). Raises ValueError if a layer has no class
        targets.
        """
        rows, pooled = classes.cpu(), []
        for layer in self.layers:
            if layer.name not in self.class_targets:
                raise ValueError(f"teacher {self.name} has no class targets for its layer {layer.name}")
            vectors = [table[rows].double() for table in self.class_targets[layer.name]]
            moments: list[Tensor] = []
            for (_, what), means, variances in zip(layer.parts, vectors[::2], vectors[1::2], strict=True):
                mean, var = means.mean(0), variances.mean(0)
                if self.class_variance == "full":
                    var += means.var(0, correction=0)
                moments += (var, mean) if self.swapped_patches and what == "patches" else (mean, var)
            pooled.append(tuple(moment.float().to(self.outputs.device) for moment in moments))
        return pooled

    def batch_targets(self, images: Tensor) -> Moments:
        """The moments of its layers for real images, pooled over all of them; no gradients.

        images: normalised [N, 3, S, S] on its device.
        """
        with torch.no_grad():
            return self(images if self.dtype is None else images.to(self.dtype))[1]

    def lengths(self, image_size: int) -> dict[str, list[int]]:
        """Lengths of the vectors of each of its layers, by the layer's name, for images of that size."""
        named = zip(self.layers, self.batch_targets(black(image_size, self.outputs.device)), strict=True)
        return {layer.name: [len(vector) for vector in vectors] for layer, vectors in named}

    def image_moments(self, images: Tensor) -> Moments:
        """The moments of its layers for each image, [N, length]; no gradients. images as in `batch_targets`."""
        for keeper in self.keepers:
            keeper.is_per_image = True
        try:
            return self.batch_targets(images)
        finally:
            for keeper in self.keepers:
                keeper.is_per_image = False


def count_outputs(net: nn.Module, size: int, name: str) -> int:
    """Outputs of `net`, tried on a black image. Raises ValueError if it cannot take one or gives no logits."""
    logits = tried(net, size, f"teacher {name}")
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"teacher {name} gives {shape} for one image; logits [1, classes] are needed")
    return logits.shape[1]


def match_classes(num_outputs: int, output_names: Sequence[str] | None, classes: Sequence[str], name: str) -> list[int]:
    """The network's output of each class. By the outputs' names if they are known, by ImageNet's wnids for 1000 outputs
    and a data set whose classes are wnids, and one to one if the numbers agree.

    Raises ValueError if the classes do not line up.
    """
    if output_names is None and num_outputs == 1000:
        wnids = vision.timm.data.ImageNetInfo().label_names()
        if set(classes) <= set(wnids):
            output_names = wnids
    if output_names is not None:
        if len(output_names) != num_outputs:
            raise ValueError(f"{len(output_names)} class names were given for the {num_outputs} outputs of {name}")
        index = {output_name: k for k, output_name in enumerate(output_names)}
        if twice := [c for c in classes if output_names.count(c) > 1]:
            raise ValueError(f"class {twice[0]!r} is the name of several outputs of {name}; which one is it?")
        missing = [c for c in classes if c not in index]
        if missing:
            raise ValueError(f"class {missing[0]!r} of the data set is not among the outputs of teacher {name}")
        return [index[c] for c in classes]
    if num_outputs != len(classes):
        raise ValueError(
            f"teacher {name} has {num_outputs} outputs and the data set {len(classes)} classes; "
            "name the outputs, one a line, in squeeze.classes_file"
        )
    return list(range(num_outputs))
