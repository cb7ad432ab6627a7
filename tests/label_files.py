"""FKD files of every layout in small, the set that they are of, and a run that reads them."""

import io
from types import SimpleNamespace

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import BatchSampler, RandomSampler

from fastcondense.data.real import Normalization
from fastcondense.labels.views import ReplayedViews
from fastcondense.log import Log
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.settings import Dataset, Labels
from fastcondense.recipe.train import Train

COUNT, SIZE, CLASSES, BATCH, EPOCHS = 21, 20, 7, 8, 3
DATASET = Dataset(name="digits", image_size=SIZE, resize=SIZE)
NORMALIZE = Normalization.of(DATASET, torch.device("cpu"))


def image_set(**settings):
    """A set of three images a class, in class order, and its views."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, SIZE, SIZE), dtype=torch.uint8)
    return ReplayedViews(images, torch.arange(COUNT) // 3, Labels(**settings), NORMALIZE, 0)


def orders(num_permutations=2):
    """Batches of ids in every epoch: by torch's own sampler, or by the one permutation that old torch drew."""
    generator = torch.Generator().manual_seed(42)
    if num_permutations == 2:
        sampler = BatchSampler(RandomSampler(range(COUNT), generator=generator), BATCH, drop_last=False)
        return [[torch.tensor(batch) for batch in sampler] for _ in range(EPOCHS)]
    return [list(torch.randperm(COUNT, generator=generator).split(BATCH)) for _ in range(EPOCHS)]


def write(folder, layout="sre2l", mix="cutmix", num_permutations=2, classes=None):
    """Files as the published code writes them, and what it drew: {(epoch, batch): (ids, fields)}.

    layout: sre2l (six fields), gvbsm (and the index) or edc (and patches). The logits of a view are largest at the
    class of its image.
    """
    draw, written = np.random.default_rng(1), {}
    labels = torch.arange(COUNT) // 3 if classes is None else classes
    for epoch, batches in enumerate(orders(num_permutations)):
        for number, ids in enumerate(batches):
            count = len(ids)
            height, width = (draw.integers(3, SIZE + 1, count) for _ in range(2))
            top, left = draw.integers(0, SIZE - height + 1), draw.integers(0, SIZE - width + 1)
            coords = torch.from_numpy(np.stack((top, left, height, width), 1) / SIZE).float()
            flip, partner = torch.from_numpy(draw.random(count) < 0.5), torch.from_numpy(draw.permutation(count))
            first, last = draw.integers(0, 9, 2), draw.integers(9, SIZE + 1, 2)
            logits = torch.from_numpy(draw.normal(size=(count, CLASSES))).half()
            logits[torch.arange(count), labels[ids]] += 9
            box = [first[0], first[1], last[0], last[1]]
            assert type(box[0]) is np.int64
            mixing = {
                "cutmix": [partner, float(draw.random()), box],
                "mixup": [partner, float(draw.random()), None],
                "none": [None, None, None],
            }[mix]
            fields = [coords, flip, *mixing, logits]
            fields += [] if layout == "sre2l" else [ids]
            fields += [torch.zeros(count, 2, 2, dtype=torch.int32)] if layout == "edc" else []
            path = folder / f"epoch_{epoch}" / f"batch_{number}.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(fields, path)
            written[epoch, number] = ids, fields
    return written


def run_of(train=None, classes=CLASSES, **labels):
    recipe = Recipe(labels=Labels(**labels), train=Train(**{"batch_size": BATCH, "epochs": EPOCHS, **(train or {})}))
    said = io.StringIO()
    names = tuple(str(k) for k in range(classes))
    return SimpleNamespace(recipe=recipe, real=SimpleNamespace(classes=names), log=Log(Console(file=said, width=999)))
