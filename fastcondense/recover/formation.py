"""Multi-formation: a stored image shows several tiles, and each of them, enlarged, is an image (IDC)."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ..recipe.gradients import MOST_TILES, Gradients
from ..recipe.recipe import Recipe
from ..sets.condensed import CondensedSet
from ..sets.stored_images import Images
from ..views.tiles import strip_bounds


class Formation:
    """What the images of a class look like to a network, in an order whose beginnings are its subsets.

    num_images: K stored images; num_tiles: D tiles that they are seen as. levels: int64 [D], the smallest n in 1 ... K
    whose subset has the tile. A subset of n is the first n factor^2 tiles (tile-major), or all tiles of the
    first n images (canvas-major).
    """

    def __init__(self, settings: Gradients, num_images: int, size: int):
        self.settings, self.num_images, self.size = settings, num_images, size
        self.is_tile_major = settings.layout == "tile-major"
        self.parts = _parts(settings, num_images)
        origins = self._arranged([torch.arange(first, last).expand(g * g, -1) for g, first, last in self.parts])
        if self.is_tile_major:
            self.levels = (torch.arange(len(origins)) // settings.factor**2 + 1).clamp(max=num_images)
        else:
            self.levels = origins + 1

    @property
    def num_tiles(self) -> int:
        return len(self.levels)

    def __call__(self, images: Tensor) -> Tensor:
        """Stored images [K, 3, S, S], values around 0.5 -> tiles [D, 3, S, S], enlarged bilinearly; differentiable."""
        return self._arranged([self._tiles(images[first:last], g) for g, first, last in self.parts])

    def frozen_pixels(self, size: int) -> Tensor:
        """The pixels that tiles of the subset `size` show: bool [K, 1, S, S]."""
        images = torch.zeros(self.num_images, 1, self.size, self.size, requires_grad=True)
        (shown,) = torch.autograd.grad(self(images)[self.levels <= size].sum(), images)
        return shown != 0

    def mosaic(self, pictures: Tensor) -> Tensor:
        """Images [K factor^2, 3, S, S] shrunk to tiles, nearest pixels: [K, 3, S, S].

        tile-major: tile q of image j is picture q K + j; canvas-major: picture j factor^2 + q.
        """
        factor, bounds = self.settings.factor, strip_bounds(self.size, self.settings.factor).tolist()
        shape = (factor**2, -1) if self.is_tile_major else (-1, factor**2)
        tiles = pictures.unflatten(0, shape)
        tiles = tiles if self.is_tile_major else tiles.transpose(0, 1)
        made = torch.empty_like(tiles[0])
        for q in range(factor**2):
            (top, bottom), (left, right) = (bounds[k : k + 2] for k in divmod(q, factor))
            made[:, :, top:bottom, left:right] = F.interpolate(tiles[q], (bottom - top, right - left))
        return made

    def _tiles(self, images: Tensor, factor: int) -> Tensor:
        # [factor^2, k, C, S, S]
        if factor == 1:
            return images[None]
        size = self.size
        if self.is_tile_major:
            side = -(-size // factor)
            edge = factor - size % factor if size % factor else 0
            images = F.pad(images, (0, edge, 0, edge), value=0.5)
            bounds = [(k * side, (k + 1) * side) for k in range(factor)]
        else:
            starts = strip_bounds(size, factor).tolist()
            bounds = list(pairwise(starts))
        cuts = [images[:, :, top:bottom, left:right] for top, bottom in bounds for left, right in bounds]
        return torch.stack([F.interpolate(cut, (size, size), mode="bilinear") for cut in cuts])

    def _arranged(self, parts: list[Tensor]) -> Tensor:
        """Joins tiles [g^2, k, ...] of parts in the layout's order."""
        if self.is_tile_major:
            return torch.cat([part.flatten(0, 1) for part in parts])
        return torch.cat([part.transpose(0, 1).flatten(0, 1) for part in parts])


def shown(recipe: Recipe, condensed: CondensedSet) -> tuple[Images, Tensor]:
    """The images that students see views of, by class: a set's first by rank, or the tiles of its subset of that size.

    Returns uint8 [N, 3, S, S], stored ones if they are not read, and labels int64 [N].
    """
    count = recipe.shown_ipc
    if recipe.recover.objective == "gradients":
        return shown_tiles(recipe.recover.gradients, condensed.images, count)
    return condensed.first(count).unread()


def num_shown(recipe: Recipe, num_classes: int) -> int:
    """How many images `shown` gives."""
    count = recipe.shown_ipc
    if recipe.recover.objective == "gradients":
        levels = _as_shown(recipe.recover.gradients, recipe.ipc, recipe.dataset.image_size).levels
        count = int((levels <= count).sum())
    return num_classes * count


def has_scattered_subsets(recipe: Recipe) -> bool:
    """Whether a smaller set is tiles of many images of a larger one, and not its first images."""
    gradients = recipe.recover.gradients
    return recipe.recover.objective == "gradients" and gradients.factor > 1 and gradients.layout == "tile-major"


def _as_shown(settings: Gradients, num_images: int, size: int) -> Formation:
    """The formation that students see, whose tiles are all of one kind."""
    if settings.formation == "bound":
        settings = dataclasses.replace(settings, formation="single")
    return Formation(settings, num_images, size)


def shown_tiles(settings: Gradients, images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The tiles of the subset of `count` of a set uint8 [classes, K, 3, S, S], rounded, by class, and their labels."""
    formation = _as_shown(settings, images.shape[1], images.shape[-1])
    is_shown = formation.levels <= count
    tiles = [255 * formation(of_class.float() / 255)[is_shown] for of_class in images]
    labels = torch.arange(len(images)).repeat_interleave(int(is_shown.sum()))
    return torch.cat(tiles).round().to(torch.uint8), labels


def _parts(settings: Gradients, num_images: int) -> list[tuple[int, int, int]]:
    """Tiles a side, first image and end, of each group of images that are cut alike."""
    factor = settings.factor
    if settings.formation == "single":
        return [(factor, 0, num_images)]
    parts, first, room = list[tuple[int, int, int]](), 0, MOST_TILES - num_images
    for g in range(factor, 0, -1):
        left = num_images - first
        count = left if g == 1 else min(room // g**2, left)
        if count:
            parts.append((g, first, first + count))
        first += count
        tiles = sum(side**2 * (end - begin) for side, begin, end in parts)
        room = MOST_TILES - tiles - (num_images - first)
    return parts
