"""What is seen of an image, and with whom it is mixed, is the same in every set that it is in."""

import numpy as np
import pytest
import torch

from fastcondense.data.real import Normalization
from fastcondense.labels.views import ReplayedViews
from fastcondense.recipe.settings import Dataset, Labels, Train

CLASSES, LARGEST = 3, 7
NORMALIZE = Normalization.of(Dataset(name="digits", image_size=9, resize=9), torch.device("cpu"))
IMAGES = torch.randint(
    0, 256, (CLASSES, LARGEST, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
TRAIN = Train(epochs=4, batch_size=5)


def seen(ipc, **settings):
    """By epoch, class and slot: the view, and the class and slot of its partner."""
    labels = torch.arange(CLASSES).repeat_interleave(ipc)
    views = ReplayedViews(IMAGES[:, :ipc].flatten(0, 1), labels, Labels(**settings), NORMALIZE, 11)
    found = {}
    for epoch in range(3):
        for span, batch in zip(views.spans(epoch, TRAIN), views.epoch(epoch, TRAIN), strict=True):
            table = views.table([span])
            for row, (own, partner) in enumerate(zip(table.ids.tolist(), table.partners.tolist(), strict=True)):
                found[epoch, *divmod(own, ipc)] = batch.images[row], divmod(partner, ipc)
    return found


@pytest.mark.parametrize("settings", [{"mix": "cutmix"}, {"mix": "mixup", "tile_shuffle": 3}, {"rand_augment": (1, 9)}])
def test_a_prefix_has_the_labels_of_the_whole(settings):
    tiers = (1, 2, 4)
    whole = seen(LARGEST, tiers=tiers, **settings)
    assert len(whole) == 3 * CLASSES * LARGEST
    for ipc in (1, 2, 4):
        part = seen(ipc, tiers=tiers, **settings)
        assert len(part) == 3 * CLASSES * ipc
        for key, (view, partner) in part.items():
            assert partner == whole[key][1] and torch.equal(view, whole[key][0])
    assert any(not torch.equal(seen(2, **settings)[key][0], whole[key][0]) for key in seen(2, **settings))


def test_partners_are_drawn_evenly_from_the_same_or_a_smaller_tier():
    whole = seen(LARGEST, tiers=(2, 4))
    bound = {slot: 2 if slot < 2 else 4 if slot < 4 else 7 for slot in range(LARGEST)}
    assert all(partner[1] < bound[slot] for (_, _, slot), (_, partner) in whole.items())
    large = ReplayedViews(
        IMAGES.flatten(0, 1), torch.arange(3).repeat_interleave(7), Labels(tiers=(2, 4)), NORMALIZE, 0
    )
    tables = [large.table(large.spans(epoch, TRAIN)) for epoch in range(400)]
    ids, partners = (torch.cat([getattr(t, name) for t in tables]).numpy() for name in ("ids", "partners"))
    slots, counts = ids % 7, np.bincount(partners[ids % 7 >= 4], minlength=21)
    assert counts.min() > 0.75 * counts.mean() and counts.max() < 1.25 * counts.mean()
    assert set(np.unique(partners[slots < 2] % 7)) == {0, 1}


def test_tiers_have_to_grow():
    for tiers in ((2, 1), (0, 3), (3, 3)):
        with pytest.raises(ValueError, match=r"labels\.tiers"):
            Labels(tiers=tiers).check()
