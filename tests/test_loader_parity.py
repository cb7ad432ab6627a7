"""All loaders give the same samples and windows, whatever the ranks, workers and batches; pixels differ little."""

import gc

import numpy as np
import pytest
import torch
from memory import growth_over_20_epochs
from photographs import broken_files, odd_files, write_jpegs

from fastcondense.data import sources
from fastcondense.data.datasets import Split
from fastcondense.data.real import EvaluationImages, shares, split_batches, square_batches, training_batches
from fastcondense.data.sources import choose, open_source, skipped
from fastcondense.loaders.file_names import FileNames
from fastcondense.loaders.folder import FolderLoader
from fastcondense.loaders.source import Centered, Faults, Windowed
from fastcondense.recipe.settings import Dataset
from fastcondense.recipe.shared import Views
from fastcondense.rng import Stream
from fastcondense.views.windows import windows

CPU = torch.device("cpu")
COUNT = 22


def ffcv_loader(files, workers, folder):
    """The files packed as they are."""
    pytest.importorskip("ffcv", reason="FFCV is not installed")
    from fastcondense.loaders.ffcv import FFCVLoader
    from fastcondense.loaders.pack import Packing, pack

    out = folder / "x.beton"
    if not out.exists():
        labels = np.zeros(len(files), np.int64)
        pack(files, labels, ("class",), out, Packing(max_resolution=0), source=files[0].parent)
    return FFCVLoader(out, workers=workers)


def dali_loader(files, workers, _folder):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from fastcondense.loaders.dali import DALILoader

    return DALILoader(files, workers, CPU)


def folder_loader(files, workers, _folder):
    return FolderLoader(files, workers)


LOADERS = {"ffcv": ffcv_loader, "dali": dali_loader, "folder": folder_loader}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_jpegs(tmp_path_factory.mktemp("files"), COUNT)


def batches_of(order, size):
    return np.split(order, range(size, len(order), size))


def epoch_of(loader, epoch, batches, asked=None):
    """Ids and pixels of the views of an epoch; `asked` collects the windows by id."""

    def windows_of(ids, heights, widths):
        table = windows(Stream(1, "test"), Views(), ids, epoch, heights, widths)
        if asked is not None:
            asked.update({int(sample): tuple(row) for sample, row in zip(ids, table.tolist(), strict=True)})
        return table

    found = list(loader.batches(batches, Windowed(48, windows_of), Faults()))
    return torch.cat([ids for _, ids in found]), torch.cat([pixels for pixels, _ in found])


@pytest.mark.parametrize("name", ["dali", "ffcv"])
def test_windows_are_the_same_and_pixels_are_close(files, tmp_path, name):
    """Decoders and resizers round; DALI decodes a region, at whose edge it has other colours if they are subsampled."""
    loader, truth = LOADERS[name](files, 2, tmp_path), FolderLoader(files, 0)
    order = Stream(1, "test").permutation(COUNT, 3)
    for epoch in (0, 3):
        asked, wanted = {}, {}
        ids, pixels = epoch_of(loader, epoch, batches_of(order, 8), asked)
        other_ids, others = epoch_of(truth, epoch, batches_of(order, 8), wanted)
        assert torch.equal(ids, other_ids) and asked == wanted
        distance = (pixels.float() - others.float()).abs()
        assert distance.mean((1, 2, 3)).max() < 0.5 and distance.max() <= 64
    cut = Centered(48, 56)
    pixels, others = (
        torch.cat([batch for batch, _ in each.batches(batches_of(order, 8), cut, Faults())]) for each in (loader, truth)
    )
    distance = (pixels.float() - others.float()).abs()
    assert distance.mean((1, 2, 3)).max() < 0.5 and distance.max() <= 3


@pytest.mark.parametrize("name", LOADERS)
def test_ranks_workers_and_resuming_do_not_move_a_bit(files, tmp_path, name):
    order = Stream(1, "test").permutation(COUNT, 0)
    wanted_ids, wanted = epoch_of(LOADERS[name](files, 1, tmp_path), 0, [order])
    for world, workers in ((1, 3), (2, 2), (8, 0)):
        loader = LOADERS[name](files, workers, tmp_path)
        batches = split_batches(order, 11)
        per_rank = [epoch_of(loader, 0, shares(batches, rank, world)) for rank in range(world)]
        for begin in (0, 11):  # the ranks' shares of a global batch, one after another
            sizes = [len(part) for part in np.array_split(np.arange(11), world)]
            at = [(begin // 11) * size for size in sizes]
            for k, pieces in ((0, wanted_ids), (1, wanted)):
                joined = [made[k][a : a + size] for made, a, size in zip(per_rank, at, sizes, strict=True)]
                assert torch.equal(torch.cat(joined), pieces[begin : begin + 11])
    resumed_ids, resumed = epoch_of(LOADERS[name](files, 2, tmp_path), 0, split_batches(order, 4)[2:])
    assert torch.equal(resumed_ids, wanted_ids[8:]) and torch.equal(resumed, wanted[8:])


@pytest.mark.parametrize("name", ["dali", "folder"])
def test_every_kind_of_file_is_read_or_named(tmp_path, name):
    files, kinds = [], odd_files() | broken_files()
    for kind, content in kinds.items():
        files.append(tmp_path / f"{kind}.JPEG")
        files[-1].write_bytes(content)
    faults, loader = Faults("skip"), LOADERS[name](files, 2, tmp_path)
    found = list(loader.batches(batches_of(np.arange(len(files)), 4), Centered(32, 40), faults))
    read = {list(kinds)[sample] for _, ids in found for sample in ids.tolist()}
    assert read == set(odd_files()) and {list(kinds)[sample] for sample in faults.skipped} == set(broken_files())
    for sample, reason in faults.skipped.items():
        assert str(files[sample]) in reason and "\n" not in reason


@pytest.mark.parametrize("name", LOADERS)
def test_memory_is_flat_over_20_epochs(files, tmp_path, name):
    loader = LOADERS[name](files, 2, tmp_path)

    def epoch(k):
        cut = Windowed(320, lambda *sizes: whole_or_half(k, *sizes))
        for _ in loader.batches(batches_of(np.arange(12), 6), cut, Faults()):
            pass

    # a leak of one batch an epoch would be 20 x 6 x 320 x 320 x 3 bytes = 37 MB
    assert growth_over_20_epochs(epoch) < 12e6


def whole_or_half(epoch, _ids, heights, widths):
    zero = heights * 0
    table = [zero, zero, heights // (1 + epoch % 2), widths, zero, zero, zero]
    return np.stack(table, -1).astype(np.int32)


# --- training and evaluation batches ---------------------------------------------------------------------------------

DATASET = Dataset(image_size=32, resize=40, workers=2)


def split_of(files):
    return Split(np.arange(len(files)), files=FileNames.of(files))


def train(split, dataset=DATASET, batch_size=6, **share):
    batches = training_batches(split, dataset, Views(), Stream(2, "x"), 1, batch_size, CPU, **share)
    return list(batches)


@pytest.mark.parametrize("in_memory", [False, True])
def test_training_batches_of_ranks_make_up_the_global_ones(files, in_memory):
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 40, 40, 3), dtype=np.uint8)
    split = Split(np.arange(COUNT), images) if in_memory else split_of(files)
    wanted = train(split)
    for world in (1, 2, 3):
        ranks = [train(split, rank=rank, world=world) for rank in range(world)]
        for k, (pixels, labels) in enumerate(wanted):
            assert torch.equal(torch.cat([rank[k][1] for rank in ranks]), labels)
            torch.testing.assert_close(torch.cat([rank[k][0] for rank in ranks]), pixels, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="a batch of 4 images cannot be shared by 8 ranks"):
        train(split, rank=0, world=8)


@pytest.mark.parametrize("name", ["dali", "folder"])
def test_a_bad_file_ends_training_or_is_skipped_and_listed(tmp_path, name):
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    files = write_jpegs(tmp_path, 10)
    files[4].write_bytes(b"")
    split = split_of(files)
    with pytest.raises(ValueError, match=r"004\.JPEG is not an image"):
        train(split, Dataset(image_size=32, loader=name))
    made = train(split, Dataset(image_size=32, loader=name, on_error="skip"))
    assert sorted(torch.cat([labels for _, labels in made]).tolist()) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert list(skipped(split)) == [4]


def test_evaluation_images_are_the_same_streamed_and_kept(files, monkeypatch):
    split = split_of(files)
    kept = EvaluationImages(split, DATASET, CPU)
    monkeypatch.setattr("fastcondense.data.real._KEPT_BYTES", 0)
    streamed = EvaluationImages(split, DATASET, CPU)
    assert kept.is_small and not streamed.is_small
    for _ in range(2):
        for (pixels, labels), (others, other_labels) in zip(kept.batches(5), streamed.batches(5), strict=True):
            assert torch.equal(pixels, others) and torch.equal(labels, other_labels)


def test_evaluation_without_the_files_that_cannot_be_read(tmp_path):
    files = write_jpegs(tmp_path, 6)
    files[2].write_bytes(b"")
    images = EvaluationImages(split_of(files), Dataset(image_size=32, on_error="skip"), CPU)
    assert [labels.tolist() for _, labels in images.batches(3)] == [[0, 1, 3], [4, 5]]
    with pytest.raises(ValueError, match=r"002\.JPEG"):
        list(square_batches(split_of(files), DATASET, CPU))


# --- the choice ------------------------------------------------------------------------------------------------------


def test_auto_says_what_it_took_and_why(files, monkeypatch):
    files_split, gpu = split_of(files), torch.device("cuda")
    packed = Split(np.arange(3), beton=files[0].with_name("train.beton"), rows=np.arange(3))
    for installed, wanted in ((set(), "folder"), ({"dali"}, "dali"), ({"dali", "ffcv"}, "dali")):
        monkeypatch.setattr(sources, "is_installed", lambda name, installed=installed: name in installed)
        assert choose(files_split, DATASET, gpu)[0] == wanted
        assert choose(files_split, DATASET, CPU) == ("folder", "the images are files, and the device is no GPU")
        name, reason = choose(packed, DATASET, CPU)
        assert name == ("ffcv" if "ffcv" in installed else "packed") and "train.beton is packed" in reason
    assert choose(packed, Dataset(loader="packed"), CPU)[0] == "packed"
    assert choose(Split(np.arange(3), np.zeros((3, 8, 8, 3), np.uint8)), DATASET, CPU)[0] == "memory"


def test_what_cannot_be_had_is_one_line_with_the_way_out(files, monkeypatch):
    monkeypatch.setattr(sources, "is_installed", lambda _: False)
    packed = Split(np.arange(3), beton=files[0].with_name("train.beton"), rows=np.arange(3))
    cases = (
        (split_of(files), "dali", r"pip install 'fastcondense\[dali\]'"),
        (packed, "ffcv", "apt-get install .* && pip install 'ffcv>=1.0.2'"),
        (split_of(files), "ffcv", "fastcondense pack"),
        (split_of(files), "packed", "'packed' needs train.beton"),
        (packed, "folder", "packed; set it to ffcv, packed or auto"),
    )
    for split, loader, words in cases:
        with pytest.raises(ValueError, match=words) as caught:
            choose(split, Dataset(loader=loader), CPU)
        assert "\n" not in str(caught.value)


def test_decoding_threads_are_the_cores_over_the_workers_of_the_machine(monkeypatch):
    monkeypatch.setattr(sources.os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert sources.decoding_threads(Dataset()) == 12 and sources.decoding_threads(Dataset(workers=3)) == 3
    for workers, threads in ((4, 3), (5, 2), (13, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(workers))
        assert sources.decoding_threads(Dataset()) == threads


def test_a_loader_outlives_an_epoch_but_not_its_split(files):
    split = split_of(files)
    source = open_source(split, DATASET, CPU)
    assert open_source(split, DATASET, CPU) is source
    assert open_source(split, Dataset(workers=1), CPU) is not source
    assert open_source(split_of(files), DATASET, CPU) is not source
    count = len(sources._open)
    del split
    gc.collect()
    assert len(sources._open) < count
