"""DALI on the CPU against Pillow: same order and cuts, odd files left to Pillow, broken ones named or skipped."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="DALI is not installed: pip install nvidia-dali-cuda130")

from photographs import SIZES, broken_files, odd_files, write_jpegs

from fastcondense.loaders import dali
from fastcondense.loaders.dali import DALILoader
from fastcondense.loaders.folder import FolderLoader, ImageFile
from fastcondense.loaders.source import Centered, Faults, Windowed
from fastcondense.recipe.shared import Views
from fastcondense.rng import Stream
from fastcondense.views.windows import windows

CPU = torch.device("cpu")


def views_of(epoch, **settings):
    views = Views(**settings)
    return lambda ids, heights, widths: windows(Stream(5, "test"), views, ids, epoch, heights, widths)


def both(files, ids, cut, workers=2):
    """The batches of DALI and of Pillow."""
    found = list(DALILoader(files, workers, CPU).batches(ids, cut, Faults()))
    wanted = list(FolderLoader(files, 0).batches(ids, cut, Faults()))
    assert [batch.tolist() for _, batch in found] == [batch.tolist() for _, batch in wanted]
    return found, wanted


def check_close(found, wanted, mean=0.5, largest=64):
    for (pixels, _), (others, _) in zip(found, wanted, strict=True):
        assert pixels.dtype == torch.uint8 and pixels.shape == others.shape
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        distance = (pixels.float() - others.float()).abs()
        assert distance.mean((1, 2, 3)).max() <= mean and distance.max() <= largest


@pytest.mark.parametrize("settings", [{}, {"roll": (-3, 9)}, {"crop_scale": (1.0, 1.0), "flip": 1.0}])
def test_views_are_those_of_pillow(tmp_path, settings):
    files = write_jpegs(tmp_path, 11)
    ids = np.split(np.array([3, 9, 0, 10, 7, 1, 5, 2, 8, 4, 6]), [4, 8])
    check_close(*both(files, ids, Windowed(56, views_of(2, **settings))))


@pytest.mark.parametrize(("resize", "size"), [(64, 56), (63, 56), (56, 56), (48, 56)])
def test_squares_are_those_of_pillow(tmp_path, resize, size):
    check_close(*both(write_jpegs(tmp_path, 9), [np.arange(5), np.arange(5, 9)], Centered(size, resize)))


def test_one_loader_over_epochs_and_kinds_of_cuts(tmp_path):
    loader = DALILoader(write_jpegs(tmp_path, 9), 2, CPU)
    ids = np.array_split(np.arange(9), 4)
    for epoch in (0, 1, 1):
        for cut in (Windowed(32, views_of(epoch)), Centered(32, 40)):
            batches = list(loader.batches(ids, cut, Faults()))
            assert [batch.tolist() for _, batch in batches] == [batch.tolist() for batch in ids]
            if isinstance(cut, Windowed):
                views = torch.cat([pixels for pixels, _ in batches])
                if epoch == 0:
                    first = views
        assert torch.equal(views, first) == (epoch == 0)
    assert len(loader._idle) == 2
    assert not list(loader.batches([], Centered(32, 40), Faults()))


def test_batches_belong_to_the_caller(tmp_path):
    loader = DALILoader(write_jpegs(tmp_path, 8), 2, CPU)
    kept = [
        (pixels, pixels.clone()) for pixels, _ in loader.batches(np.split(np.arange(8), 8), Centered(24, 32), Faults())
    ]
    for _ in range(3):
        list(loader.batches(np.split(np.arange(8), 8), Centered(24, 32), Faults()))
    assert all(torch.equal(pixels, copy) for pixels, copy in kept)


def test_workers_and_batch_sizes_do_not_move_a_bit(tmp_path):
    files, cut = write_jpegs(tmp_path, 8), Windowed(40, views_of(0))
    found = [
        torch.cat([pixels for pixels, _ in DALILoader(files, workers, CPU).batches(ids, cut, Faults())])
        for workers, ids in ((0, [np.arange(8)]), (1, np.split(np.arange(8), 4)), (3, np.split(np.arange(8), [5])))
    ]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_an_epoch_that_is_left_early_and_two_at_once(tmp_path):
    loader, ids = DALILoader(write_jpegs(tmp_path, 8), 2, CPU), np.split(np.arange(8), 8)
    left = loader.batches(ids, Centered(24, 32), Faults())
    next(left)
    outer = loader.batches(ids, Centered(24, 32), Faults())
    for k, (_, batch) in enumerate(outer):
        assert batch.tolist() == [k]
        inner = loader.batches(ids, Centered(24, 32), Faults())
        assert next(inner)[1].tolist() == [0]


# --- odd and broken files --------------------------------------------------------------------------------------------


def test_odd_files_are_read_as_pillow_reads_them(tmp_path):
    files = write_jpegs(tmp_path, 3)
    for name, content in odd_files().items():
        files.append(tmp_path / f"{name}.JPEG")
        files[-1].write_bytes(content)
    for cut in (Centered(48, 56), Windowed(48, views_of(1))):
        check_close(*both(files, np.split(np.arange(len(files)), [2, 7]), cut))
        check_close(*both(files, [np.arange(4, 5), np.arange(6, 10), np.arange(3, 4)], cut))


def test_nothing_but_odd_files(tmp_path):
    files = [tmp_path / f"{k}.JPEG" for k in range(5)]
    for file in files:
        file.write_bytes(odd_files()["png"])
    found, wanted = both(files, np.split(np.arange(5), [2, 4]), Centered(24, 32))
    assert all(torch.equal(pixels, others) for (pixels, _), (others, _) in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", ["png", "cmyk", "rgb", "trailing"])
def test_what_is_left_to_pillow(tmp_path, kind):
    (tmp_path / "x.JPEG").write_bytes(odd_files()[kind])
    window = np.array([0, 0, 10, 10, 0, 0, 0])
    assert not dali.is_for_dali(ImageFile.read(tmp_path / "x.JPEG"), Windowed(8, views_of(0)), window)


@pytest.mark.parametrize("kind", broken_files())
def test_a_broken_file_is_named_or_skipped(tmp_path, kind):
    files = write_jpegs(tmp_path, 6)
    files[3].write_bytes(broken_files()[kind])
    loader, ids = DALILoader(files, 2, CPU), np.split(np.arange(6), 3)
    for _ in range(2):
        batches = loader.batches(ids, Centered(24, 32), Faults())
        assert next(batches)[1].tolist() == [0, 1]
        with pytest.raises(ValueError, match=f"{files[3]} (is not an image|cannot be read)"):
            next(batches)
        faults = Faults("skip")
        found = list(loader.batches(ids, Centered(24, 32), faults))
        assert [batch.tolist() for _, batch in found] == [[0, 1], [2], [4, 5]]
        assert list(faults.skipped) == [3] and str(files[3]) in faults.skipped[3]


@pytest.mark.filterwarnings("ignore:DALI gave up")
def test_a_file_that_breaks_the_pipeline_costs_no_other(tmp_path, monkeypatch):
    files = write_jpegs(tmp_path, 12)
    files[5].write_bytes(broken_files()["truncated"])
    monkeypatch.setattr(dali, "is_for_dali", lambda *_: True)  # so that DALI meets it
    ids, cut, faults = np.split(np.arange(12), 6), Centered(24, 32), Faults("skip")
    found = list(DALILoader(files, 2, CPU).batches(ids, cut, faults))
    wanted = list(FolderLoader(files, 0).batches(ids, cut, Faults("skip")))
    assert [batch.tolist() for _, batch in found] == [batch.tolist() for _, batch in wanted]
    assert list(faults.skipped) == [5]
    check_close(found, wanted)


@pytest.mark.parametrize("window", [(0, 0, 999, 10), (-1, 0, 24, 24), (0, 140, 24, 24), (0, 0, 0, 5)])
def test_windows_over_the_edge_are_never_dalis(tmp_path, window):
    file = ImageFile.read(write_jpegs(tmp_path, 1)[0])
    assert SIZES[0] == file.header.size
    assert not dali.is_for_dali(file, Windowed(24, views_of(0)), np.array([*window, 0, 0, 0]))


def test_padded_views_are_those_of_pillow(tmp_path):
    files, ids = write_jpegs(tmp_path, 8), [np.array([2])]
    found, wanted = both(files, ids, Windowed(128, views_of(0, padding=4)))
    assert torch.equal(found[0][0], wanted[0][0])


def test_an_error_of_the_windows_is_the_callers(tmp_path):
    def windows_of(*_):
        raise RuntimeError("mine")

    loader = DALILoader(write_jpegs(tmp_path, 4), 2, CPU)
    with pytest.raises(RuntimeError, match="mine"):
        list(loader.batches([np.arange(4)], Windowed(24, windows_of), Faults()))


def test_the_process_ends_while_an_epoch_is_under_way(tmp_path):
    files = write_jpegs(tmp_path, 8)
    program = textwrap.dedent(f"""
        from pathlib import Path
        import numpy as np, torch
        from fastcondense.loaders.dali import DALILoader
        from fastcondense.loaders.source import Centered, Faults
        loader = DALILoader([Path(p) for p in {[str(file) for file in files]}], 2, torch.device("cpu"))
        batches = loader.batches(np.split(np.arange(8), 8), Centered(24, 32), Faults())
        print(next(batches)[1].tolist())
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "[0]\n", done.stderr
