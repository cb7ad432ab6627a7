"""Views of self-supervision: windows, colours and normalisation by hand; files as memory; order and batch size."""

import numpy as np
import pytest
import torch
from image_files import bad_files, jpeg, scene
from PIL import Image

from fastcondense.data.datasets import Split
from fastcondense.data.sources import skipped
from fastcondense.kernels.crop import crop
from fastcondense.loaders.file_names import FileNames
from fastcondense.recipe.settings import Dataset, SelfSupervision
from fastcondense.rng import Stream
from fastcondense.squeeze.multi_crop import TwoViews
from fastcondense.squeeze.recolor import recolor
from fastcondense.views.windows import windows

CPU = torch.device("cpu")
DATASET = Dataset(image_size=12, resize=12, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.1), loader="folder")
BLAND = {"jitter": (0.0,) * 4, "grey": 0.0, "blur": 0.0}


def split(count=11, size=16):
    images = np.stack([np.asarray(scene(size, size, k)) for k in range(count)])
    return Split(np.zeros(count, dtype=np.int64), images)


def make(source, dataset=DATASET, **settings):
    settings = SelfSupervision(**({"method": "moco", "batch_size": 4} | settings))
    return TwoViews(source, dataset, settings, 5, "test", CPU)


def by_sample(views, epoch=0):
    """Both views of an epoch by sample id, [2, 3, size, size]."""
    pairs = zip(views.batches(epoch), views.epoch(epoch), strict=True)
    return {int(sample): made[k] for batch, (made, _) in pairs for k, sample in enumerate(batch)}


def test_views_are_windows_then_colours_then_normalisation():
    source = split()
    views = make(source)
    made = by_sample(views, 3)
    assert sorted(made) == list(range(11))
    mean, std = (torch.tensor(values)[:, None, None] for values in (DATASET.mean, DATASET.std))
    ids = np.arange(11)
    pixels = torch.from_numpy(source.images).permute(0, 3, 1, 2)
    for view in range(2):
        table = windows(Stream(5, f"test/windows/{view}"), views.settings, ids, 3, 16, 16)
        x = crop(pixels.double(), torch.from_numpy(table), 12) / 255
        x = recolor(x.float(), ids, 3, view, views.settings, Stream(5, "test/colors"))
        got = torch.stack([made[sample][view] for sample in range(11)])
        torch.testing.assert_close(got, (x - mean) / std, rtol=0, atol=3e-5)


def test_both_views_of_a_sample_differ_and_so_do_epochs():
    views = make(split())
    (one, other), (later, _) = by_sample(views, 0)[2], by_sample(views, 1)[2]
    for a, b in ((one, other), (one, later)):
        assert (a - b).abs().max() > 0.1


def test_neither_batch_size_nor_an_earlier_epoch_matters():
    source = split()
    made, other = by_sample(make(source, batch_size=4), 1), by_sample(make(source, batch_size=7), 1)
    for sample in made:
        for a, b in zip(made[sample], other[sample], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    orders = [np.concatenate(make(source, batch_size=n).batches(1)) for n in (4, 7)]
    assert (orders[0] == orders[1]).all() and sorted(orders[0]) == list(range(11))


def write(folder, names):
    files = []
    for k, name in enumerate(names):
        files.append(folder / f"{k}.png")
        if name == "image":
            Image.fromarray(np.asarray(scene(16, 16, k))).save(files[-1])
        else:
            files[-1].write_bytes(bad_files()[name])
    return Split(np.zeros(len(files), dtype=np.int64), files=FileNames.of(files))


def test_files_give_the_views_of_memory_but_for_rounding(tmp_path):
    from_files, from_memory = make(write(tmp_path, ["image"] * 11), **BLAND), make(split(), **BLAND)
    made, wanted = by_sample(from_files, 2), by_sample(from_memory, 2)
    level = 1 / (255 * min(DATASET.std))
    for sample in wanted:
        for a, b in zip(made[sample], wanted[sample], strict=True):
            assert a.shape == b.shape and (a - b).abs().max() <= 1.01 * level


def test_a_file_that_cannot_be_read_is_missing_from_all_views(tmp_path):
    source = write(tmp_path, ["image"] * 5 + ["cut.JPEG"] + ["image"] * 3)
    with pytest.raises(ValueError, match=r"5\.png"):
        list(make(source, **BLAND).epoch(0))
    views = make(source, dataset=Dataset(**(vars(DATASET) | {"on_error": "skip"})), **BLAND)
    batches, made = views.batches(0), [rows for rows, _ in views.epoch(0)]
    assert [len(rows) for rows in made] == [len(batch) - (5 in batch) for batch in batches]
    whole = by_sample(make(write(tmp_path, ["image"] * 9), **BLAND), 0)
    kept = [sample for batch in batches for sample in batch if sample != 5]
    for sample, row in zip(kept, torch.cat(made), strict=True):
        torch.testing.assert_close(row, whole[int(sample)], rtol=0, atol=1e-5)
    reasons = skipped(views.repeated).values()
    assert reasons and all("5.png" in reason for reason in reasons)


def test_images_of_any_size_are_read(tmp_path):
    files = []
    for k, (width, height) in enumerate([(40, 20), (17, 60), (9, 9), (100, 80)]):
        files.append(tmp_path / f"{k}.JPEG")
        files[-1].write_bytes(jpeg(scene(width, height, k)))
    views = make(Split(np.zeros(4, dtype=np.int64), files=FileNames.of(files)))
    assert [rows.shape for rows, _ in views.epoch(0)] == [(4, 2, 3, 12, 12)]
