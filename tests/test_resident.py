"""Images on the host: batches get the rows they show, and views have the same bits as from images on the device."""

import numpy as np
import pytest
import torch

from fastcondense.data.real import Normalization
from fastcondense.labels import resident
from fastcondense.labels.resident import HostImages, place
from fastcondense.labels.views import ReplayedViews
from fastcondense.recipe.settings import Dataset, Labels
from fastcondense.recipe.train import Train

CPU = torch.device("cpu")
SIZE = 8
CHANGES = {
    "none": {"mix": "none"},
    "cutmix": {},
    "mixup": {"mix": "mixup", "pool": 0.5},
    "shuffle": {"tile_shuffle": 3},
    "rand": {"mix": "mixup", "tile_pick": 2, "rand_augment": (2, 9)},
    "augment": {"mix": "none", "augment": ("brightness", "contrast", "crop", "cutout"), "tile_shuffle": 2},
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def pixels(count=23):
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def views(images, device=CPU, **settings):
    normalize = Normalization.of(Dataset(name="digits", image_size=SIZE, resize=SIZE), device)
    return ReplayedViews(images, torch.arange(23, device=device) % 5, Labels(**settings), normalize, 3)


def test_rows_are_copies_of_the_images_in_their_order():
    host, needed = HostImages(pixels(), CPU), [torch.tensor([4, 0, 4]), torch.tensor([22]), torch.arange(23)]
    made = list(host.rows(needed))
    assert [len(rows) for rows in made] == [3, 1, 23]
    for rows, ids in zip(made, needed, strict=True):
        assert torch.equal(rows, pixels()[ids])
    made[2].zero_()
    assert torch.equal(host.pixels, pixels())


def same_batches(one, other, train):
    batches = list(one.epoch(1, train)), list(other.epoch(1, train))
    for mine, theirs in zip(*batches, strict=True):
        assert mine.span == theirs.span
        for name in ("images", "labels", "partners", "share"):
            assert torch.equal(getattr(mine, name).cpu(), getattr(theirs, name).cpu()), name
    return len(batches[0])


@pytest.mark.parametrize("change", CHANGES)
def test_views_of_images_on_the_host_have_the_same_bits(change):
    resting, staged = views(pixels(), **CHANGES[change]), views(HostImages(pixels(), CPU), **CHANGES[change])
    assert same_batches(resting, staged, Train(batch_size=5, epochs=4)) == (4 if "pool" in CHANGES[change] else 5)
    ids = np.array([17, 3, 9, 17])
    assert torch.equal(resting.crops(2, ids), staged.crops(2, ids))
    assert torch.equal(staged.images, pixels())  # RandAugment changes copies


@pytest.mark.parametrize(("free", "stays"), [(2 * 23 * 3 * 64, False), (2 * 23 * 3 * 64 - 2, True)])
def test_images_that_take_more_than_half_of_the_free_memory_stay_on_the_host(monkeypatch, free, stays):
    """On a GPU that is not there: images that fit are sent to it."""
    moved = []
    monkeypatch.setattr(resident, "free_bytes", lambda _: free)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    placed = place(pixels(), torch.device("cuda", 0))
    assert isinstance(placed, HostImages) == stays
    assert moved == ([] if stays else [torch.device("cuda", 0)])


def test_on_the_cpu_nothing_is_moved():
    images = pixels()
    assert place(images, CPU) is images


def test_a_part_of_an_epoch_is_made_at_a_time(monkeypatch):
    """Tables of at most CHUNK views, whatever the batches are; the bits do not depend on it."""
    from fastcondense.labels import views as module

    whole, sizes, table = views(pixels()), [], ReplayedViews.table
    wanted = torch.cat([batch.images for batch in whole.epoch(0, Train(batch_size=4))])

    def measured(self, spans):
        sizes.append(sum(map(len, spans)))
        return table(self, spans)

    monkeypatch.setattr(ReplayedViews, "table", measured)
    monkeypatch.setattr(module, "CHUNK", 9)
    made = torch.cat([batch.images for batch in whole.epoch(0, Train(batch_size=4))])
    assert torch.equal(made, wanted) and sizes == [8, 8, 7]


@needs_gpu
@pytest.mark.parametrize("change", CHANGES)
def test_views_on_a_gpu_have_the_same_bits_wherever_the_images_are(change):
    gpu = torch.device("cuda", 0)
    resting = views(pixels().to(gpu), gpu, **CHANGES[change])
    staged = views(HostImages(pixels(), gpu), gpu, **CHANGES[change])
    assert same_batches(resting, staged, Train(batch_size=5, epochs=4)) >= 4


@needs_gpu
def test_a_large_set_stays_on_the_host_of_a_full_gpu():
    gpu = torch.device("cuda", 0)
    count = int(0.6 * resident.free_bytes(gpu)) // (3 * SIZE * SIZE)
    assert isinstance(
        place(torch.empty(1, 3, SIZE, SIZE, dtype=torch.uint8).expand(count, -1, -1, -1), gpu), HostImages
    )
    assert not isinstance(place(pixels(), gpu), HostImages)
