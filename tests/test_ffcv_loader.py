"""The ffcv loader beside the folder loader's cuts and FFCV's own loader: pixels, order, faults, memory.

FFCV compiles for seconds once a loader, so the tests share one loader a .beton file.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("ffcv", reason="the extra ffcv is not installed: bash scripts/setup.sh dev ffcv")

from image_files import FROM_PILLOW_13, cut_window, good_files, jpeg, scene, write_folder
from memory import growth_over_20_epochs

from fastcondense.loaders.beton import Sidecar, read_beton
from fastcondense.loaders.class_folders import index_folder
from fastcondense.loaders.ffcv import AHEAD, FFCVLoader
from fastcondense.loaders.folder import cut_center, decode
from fastcondense.loaders.pack import Packing, pack
from fastcondense.loaders.packed import PackedLoader
from fastcondense.loaders.resize import NUM_COLUMNS
from fastcondense.loaders.source import Centered, Faults, Windowed
from fastcondense.recipe.shared import Views
from fastcondense.rng import Stream
from fastcondense.views.windows import windows

S = 32
RAISE = Faults()


def windowed(epoch=0, size=S, **views):
    """The windows of an epoch, as training draws them."""
    return Windowed(size, lambda ids, h, w: windows(Stream(3, "test"), Views(**views), ids, epoch, h, w))


def packed(folder, out, **settings):
    files, labels, classes = index_folder(folder)
    pack(files, labels, classes, out, Packing(**settings), source=folder)
    return files, out


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), good_files())


@pytest.fixture(scope="module")
def raw(images, tmp_path_factory):
    """Files, and a loader of their pixels."""
    files, out = packed(images, tmp_path_factory.mktemp("raw") / "x.beton", encoding="raw")
    return files, FFCVLoader(out, workers=2)


@pytest.fixture(scope="module")
def compressed(images, tmp_path_factory):
    """Files, and a loader of them as JPEG."""
    files, out = packed(images, tmp_path_factory.mktemp("jpeg") / "x.beton", quality=95)
    return files, FFCVLoader(out, workers=2)


def collected(loader, batches, cut, faults=RAISE):
    """Squares [n, S, S, 3] and ids of all batches."""
    made = list(loader.batches(batches, cut, faults))
    for pixels, ids in made:
        assert pixels.dtype == torch.uint8 and pixels.shape[1:] == (3, cut.size, cut.size)
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        assert ids.dtype == torch.int64 and len(ids) == len(pixels)
    squares = torch.cat([pixels for pixels, _ in made]).permute(0, 2, 3, 1).numpy()
    return squares, np.concatenate([ids.numpy() for _, ids in made])


def by_pillow(path, cut, sample):
    """What the folder loader cuts."""
    image = decode(path)
    if isinstance(cut, Centered):
        return np.asarray(cut_center(image, cut.resize, cut.size))
    table = cut.windows_of(np.array([sample]), np.array([image.height]), np.array([image.width]))
    return np.asarray(cut_window(image, table[0], cut.size))


CUTS = {
    "crops": windowed(2),
    "rolled": windowed(1, roll=(-9, 70)),
    "padded": windowed(0, padding=6),
    "large": windowed(3, size=120),
    "center": Centered(S, 40),
    "black edges": Centered(40, S),
    "as it is": Centered(S, S),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_squares_are_pillows(raw, compressed, cut):
    """And those of the loader that needs no FFCV, to the bit."""
    for files, loader in (raw, compressed):
        squares, ids = collected(loader, np.split(np.arange(25), [10, 20]), cut)
        assert ids.tolist() == list(range(25))
        without, _ = collected(PackedLoader(loader.beton.path, workers=2), [ids], cut)
        np.testing.assert_array_equal(squares, without)
        for path, square, sample in zip(files, squares, ids, strict=True):
            if loader is compressed[1] and path.name in ("cmyk.JPEG", "png.JPEG"):
                continue  # encoded anew
            error = np.abs(square.astype(int) - by_pillow(path, cut, sample))
            assert error.max() <= (0 if FROM_PILLOW_13 else 1), path


def test_the_decoder_gets_the_numpy_windows_of_every_sample(raw):
    _, loader = raw
    order = Stream(3, "order").permutation(25, 4)
    cut = windowed(4, roll=(0, 5))
    collected(loader, np.split(order, [7]), cut)
    image = loader.beton.samples["image"]
    wanted = windows(Stream(3, "test"), Views(roll=(0, 5)), np.arange(25), 4, image["height"], image["width"])
    np.testing.assert_array_equal(loader._decoder.table[:, :7], wanted)
    assert loader._decoder.table.shape[1] == NUM_COLUMNS


@pytest.mark.parametrize("at", [[25], [1, 2, 4, 24], [3, 3, 20], list(range(1, 25))])
def test_any_batches_come_as_given(raw, at):
    _, loader = raw
    order = Stream(3, "order").permutation(25, 0)
    wanted, _ = collected(loader, [order], windowed(5))
    batches = np.split(order, at)
    made = list(loader.batches(batches, windowed(5), RAISE))
    assert [ids.tolist() for _, ids in made] == [batch.tolist() for batch in batches if len(batch)]
    np.testing.assert_array_equal(torch.cat([x for x, _ in made]).permute(0, 2, 3, 1).numpy(), wanted)


def test_ranks_and_resumption_see_the_same_squares(raw):
    _, loader = raw
    order = Stream(3, "order").permutation(25, 1)
    whole, ids = collected(loader, np.split(order, range(4, 25, 4)), windowed(1))
    of_sample = dict(zip(ids.tolist(), whole, strict=True))
    for world in (1, 2, 8):
        seen = []
        for rank in range(world):
            mine = order[rank::world]
            squares, ids = collected(loader, np.split(mine, range(2, len(mine), 2))[1:], windowed(1))  # from batch 1 on
            seen += ids.tolist()
            assert all((of_sample[sample] == square).all() for sample, square in zip(ids, squares, strict=True))
        assert sorted(seen) == sorted(order[2 * world :])


@pytest.mark.parametrize("workers", [0, 1, 7])
def test_the_number_of_workers_moves_nothing(compressed, workers):
    _, loader = compressed
    wanted, _ = collected(loader, [np.arange(25)], windowed(6, roll=(0, 9)))
    loader._engine.num_workers, before = max(1, min(workers, 2)), loader._engine.num_workers
    try:
        made, _ = collected(loader, np.split(np.arange(25), [11]), windowed(6, roll=(0, 9)))
    finally:
        loader._engine.num_workers = before
    np.testing.assert_array_equal(made, wanted)


def test_epochs_differ_and_repeat(raw):
    _, loader = raw
    squares = [collected(loader, [np.arange(25)], windowed(epoch))[0] for epoch in (0, 1, 0)]
    assert (squares[0] == squares[2]).all() and (squares[0] != squares[1]).any(axis=(1, 2, 3)).mean() > 0.9


def test_rows_choose_samples_and_windows_go_by_the_samples_own_numbers(raw):
    """And building and running a loader keep torch's threads."""
    files, loader = raw
    rows, threads = np.array([20, 3, 11]), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        part = FFCVLoader(loader.beton.path, rows, workers=1)
        squares, ids = collected(part, [np.array([2, 0])], windowed(1))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert len(part) == 3 and ids.tolist() == [2, 0]
    for square, sample in zip(squares, ids, strict=True):
        wanted = by_pillow(files[rows[sample]], windowed(1), sample)
        assert np.abs(square.astype(int) - wanted).max() <= 1
    with pytest.raises(ValueError, match="samples 0 to 3 are asked for, but there are 3"):
        next(part.batches([np.array([0, 3])], windowed(), RAISE))
    with pytest.raises(ValueError, match="named twice"):
        FFCVLoader(loader.beton.path, np.array([1, 1]))


def test_tensors_belong_to_the_caller(raw):
    _, loader = raw
    kept = [(x, x.clone()) for x, _ in loader.batches(np.split(np.arange(25), 25), windowed(), RAISE)]
    assert len(kept) > 2 * AHEAD
    collected(loader, np.split(np.arange(25), 25), windowed(1))
    assert all(torch.equal(x, copy) for x, copy in kept)
    assert len({x.data_ptr() for x, _ in kept}) == len(kept)


def test_an_epoch_that_is_left_does_not_disturb_the_next(raw):
    _, loader = raw
    wanted, _ = collected(loader, [np.arange(25)], windowed(1))
    left = loader.batches(np.split(np.arange(25), 25), windowed(0), RAISE)
    next(left)
    squares, _ = collected(loader, [np.arange(25)], windowed(1))
    np.testing.assert_array_equal(squares, wanted)
    with pytest.raises(RuntimeError, match="another call of batches"):
        next(left)
    dropped = loader.batches(np.split(np.arange(25), 25), windowed(0), RAISE)
    next(dropped)
    dropped.close()
    assert not loader._epoch.is_alive()


def test_an_error_in_ffcvs_thread_is_raised_not_waited_for(raw, monkeypatch):
    _, loader = raw

    def fail(*_):
        raise MemoryError("no memory")

    monkeypatch.setattr("fastcondense.loaders.ffcv._Epoch.run_pipeline", fail)
    with pytest.raises(MemoryError, match="no memory"):
        collected(loader, [np.arange(25)], windowed())


def test_torch_keeps_its_threads():
    code = (
        "import torch; torch.set_num_threads(3)\n"
        "from fastcondense.loaders.ffcv import FFCVLoader\n"
        "assert torch.get_num_threads() == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A loader of JPEG files of which 4 ends in zeros, 9 is nothing else, and 25 has bytes too many before its end."""
    folder, whole = tmp_path_factory.mktemp("damaged"), jpeg(scene(50, 40, 1), quality=95)
    odd = {"zz.JPEG": whole[:-2] + b"\x00\x00\x00\x00" + whole[-2:]}
    write_folder(folder / "images", good_files() | odd)
    files, out = packed(folder / "images", folder / "x.beton", quality=95)
    beton = read_beton(out)
    data = bytearray(out.read_bytes())
    for sample, begin in ((4, beton.lengths[4] // 2), (9, 0)):
        place = int(beton.samples["image"]["data_ptr"][sample])
        data[place + begin : place + beton.lengths[sample]] = bytes(beton.lengths[sample] - begin)
    out.write_bytes(data)
    return files, FFCVLoader(out, workers=2)


def test_a_damaged_image_is_named(damaged):
    _, loader = damaged
    made = loader.batches(np.split(np.arange(25), range(3, 25, 3)), windowed(), RAISE)
    assert next(made)[1].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"x\.beton: image 4, of class class0: "):
        next(made)
    assert len(collected(loader, [np.arange(4)], windowed())[1]) == 4


def test_damaged_images_are_left_out_and_listed(damaged, compressed):
    _, loader = damaged
    faults = Faults("skip")
    made = list(loader.batches([np.array([4]), *np.split(np.arange(25), [8, 10])], windowed(), faults))
    assert [len(ids) for _, ids in made] == [7, 1, 15]
    assert set(faults.skipped) == {4, 9} and "not those that were packed" in faults.skipped[9]
    squares, _ = collected(compressed[1], [np.concatenate([ids for _, ids in made])], windowed())
    np.testing.assert_array_equal(torch.cat([x for x, _ in made]).permute(0, 2, 3, 1).numpy(), squares)


def test_a_jpeg_that_only_the_strict_decoder_refuses_is_read_by_pillow(damaged, tmp_path):
    files, loader = damaged
    squares, _ = collected(loader, [np.array([25])], Centered(S, 40))
    whole = tmp_path / "whole.JPEG"
    whole.write_bytes(jpeg(scene(50, 40, 1), quality=95))
    assert files[25].read_bytes() != whole.read_bytes()
    np.testing.assert_array_equal(squares[0], by_pillow(whole, Centered(S, 40), 25))


# --- FFCV itself, and memory -----------------------------------------------------------------------------------------


def test_ffcvs_own_loader_reads_the_file(raw):
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    threads = torch.get_num_threads()
    _, loader = raw
    stock = Loader(
        str(loader.beton.path),
        batch_size=10,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [CenterCropRGBImageDecoder((S, S), 1.0)]},
    )
    squares, labels = zip(*[(x.copy(), y.clone()) for x, y in stock], strict=True)
    torch.set_num_threads(threads)
    assert torch.cat(labels).flatten().tolist() == loader.beton.labels.tolist()
    ours, _ = collected(loader, [np.arange(25)], Centered(S, S))
    error = np.abs(np.concatenate(squares).astype(int) - ours)  # a box of pixels there, a triangle here
    assert error.mean() < 6


def test_memory_is_flat_over_epochs(compressed):
    _, loader = compressed

    def epoch(k):
        for _ in loader.batches(np.split(Stream(0, "x").permutation(25, k), [9, 18]), windowed(k, size=224), RAISE):
            pass

    assert growth_over_20_epochs(epoch) < 4e6  # an epoch's squares alone are 3.8 MB


def test_a_sidecar_of_another_file_is_refused(raw, tmp_path):
    _, loader = raw
    other = tmp_path / "y.beton"
    other.write_bytes(loader.beton.path.read_bytes() + b"x")
    Sidecar.path(other).write_bytes(Sidecar.path(loader.beton.path).read_bytes())
    with pytest.raises(ValueError, match=r"y\.beton"):
        FFCVLoader(other)
