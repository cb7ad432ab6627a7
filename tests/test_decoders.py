"""Decoders and resizing without libraries that read whole data sets: Pillow's pixels to the bit, and packed files."""

import io

import numpy as np
import pytest
from image_files import FROM_PILLOW_13, bad_files, cut_window, good_files, jpeg, scene, write_folder
from photographs import broken_files, odd_files, picture

from fastcondense.loaders import turbo
from fastcondense.loaders.beton import SAMPLE, Sidecar, read_beton
from fastcondense.loaders.class_folders import index_folder
from fastcondense.loaders.folder import FolderLoader, ImageFile
from fastcondense.loaders.pack import Packing, pack
from fastcondense.loaders.packed import PackedLoader
from fastcondense.loaders.resize import cut_square, table_of_cuts
from fastcondense.loaders.source import Centered, Faults, Windowed
from fastcondense.recipe.shared import Views
from fastcondense.rng import Stream
from fastcondense.views.windows import windows

S = 32


# --- resizing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_cut_square_is_pillows_crop_and_resize(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(x) for x in rng.integers(1, 90, 2))
    image = scene(width, height, seed)
    h, w = (int(rng.integers(1, side + 1)) for side in (height, width))
    top, left = int(rng.integers(-5, height - h + 6)), int(rng.integers(-5, width - w + 6))
    window = (top, left, h, w, seed % 2, int(rng.integers(-50, 50)), int(rng.integers(-50, 50)))
    square = np.full((S, S, 3), 99, np.uint8)
    cut_square(np.asarray(image), np.array([*window, S, S, 0, 0], np.int32), square)
    error = np.abs(square.astype(int) - np.asarray(cut_window(image, window, S)))
    assert error.max() <= (0 if FROM_PILLOW_13 else 1)


def test_centered_tables_are_those_of_cut_center():
    table = table_of_cuts(Centered(28, 32), np.arange(2), np.array([37, 53]), np.array([53, 37]))
    assert table.tolist() == [[0, 0, 37, 53, 0, 0, 0, 32, 45, 2, 8], [0, 0, 53, 37, 0, 0, 0, 45, 32, 8, 2]]


# --- JPEG ------------------------------------------------------------------------------------------------------------

needs_simplejpeg = pytest.mark.skipif(turbo.simplejpeg is None, reason="simplejpeg is not installed")


def outcome(data, path):
    """The pixels of a file of these bytes, or the line that refuses it."""
    try:
        return ImageFile.of(path, data).pixels()
    except ValueError as error:
        return str(error)


def both(data, path, monkeypatch):
    """The outcome as it is here, and that of Pillow alone."""
    here = outcome(data, path)
    with monkeypatch.context() as patch:
        patch.setattr(turbo, "simplejpeg", None)
        return here, outcome(data, path)


@needs_simplejpeg
def test_every_kind_of_file_has_pillows_pixels_or_its_refusal(tmp_path, monkeypatch):
    files = good_files() | bad_files() | odd_files() | broken_files()
    for quality, subsampling, progressive in ((30, 0, False), (95, 1, True), (75, 2, False), (100, 2, True)):
        for width, height in ((1, 1), (17, 16), (64, 3), (301, 200)):
            options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
            file = io.BytesIO()
            picture(width, height).save(file, "JPEG", **options)
            files[f"{width}x{height} {options}"] = file.getvalue()
    kinds = set()
    for name, data in files.items():
        here, wanted = both(data, tmp_path / "x.jpg", monkeypatch)
        kinds.add(type(here))
        assert type(here) is type(wanted) and np.array_equal(here, wanted), name
    assert kinds == {str, np.ndarray}


@needs_simplejpeg
def test_damage_has_the_same_end_as_by_pillow(tmp_path, monkeypatch):
    whole, rng, ends = jpeg(scene(70, 50, 1), quality=60), np.random.default_rng(0), set()
    for number in range(300):
        data = bytearray(whole[: rng.integers(1, len(whole))] if number % 3 == 0 else whole)
        for place in rng.integers(0, len(data), 1 + number % 4):
            data[place] = rng.integers(256)
        here, wanted = both(bytes(data), tmp_path / "x.jpg", monkeypatch)
        ends.add(type(wanted))
        assert type(here) is type(wanted) and np.array_equal(here, wanted), number
    assert ends == {str, np.ndarray}


@needs_simplejpeg
def test_plain_files_are_not_left_to_pillow(monkeypatch):
    """Else the decoder that is named is not the one that decodes."""
    asked = []
    monkeypatch.setattr(ImageFile, "decode", lambda file: asked.append(file.path))
    for kind in ("progressive", "grey", "turned"):
        assert outcome(odd_files()[kind], kind).shape == (60, 90, 3)
    assert not asked and turbo.decoder.__wrapped__().startswith("simplejpeg 1.")


def test_without_simplejpeg_pillow_is_named(monkeypatch):
    monkeypatch.setattr(turbo, "simplejpeg", None)
    assert turbo.decoder.__wrapped__().startswith("Pillow 1")
    assert turbo.decoded(jpeg(scene(9, 9, 0)), ImageFile.of("x", jpeg(scene(9, 9, 0))).header) is None


# --- packed files ----------------------------------------------------------------------------------------------------


def windowed(epoch):
    return Windowed(S, lambda ids, h, w: windows(Stream(3, "test"), Views(roll=(-4, 9)), ids, epoch, h, w))


def squares(loader, batches, cut, faults=None):
    """Pixels by sample id."""
    made = loader.batches(batches, cut, faults or Faults())
    return {int(k): image.numpy() for pixels, ids in made for k, image in zip(ids, pixels, strict=True)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    files = {name: data for name, data in good_files().items() if name not in ("cmyk.JPEG", "png.JPEG")}  # kept as is
    return index_folder(write_folder(tmp_path_factory.mktemp("images"), files))


@pytest.fixture(scope="module", params=["jpeg", "raw"])
def beton(folder, tmp_path_factory, request):
    out = tmp_path_factory.mktemp("packed") / "x.beton"
    files, labels, classes = folder
    pack(files, labels, classes, out, Packing(encoding=request.param), source=files[0].parents[1])
    return out


@pytest.mark.parametrize("cut", [windowed(1), Centered(S, 40), Centered(40, S)], ids=["crops", "center", "black edges"])
def test_a_packed_file_has_the_squares_of_its_files(folder, beton, cut):
    order = Stream(0, "order").permutation(len(folder[0]), 0)
    wanted = squares(FolderLoader(folder[0], 0), [order], cut)
    made = squares(PackedLoader(beton, workers=2), np.split(order, [7, 11]), cut)
    assert list(made) == order.tolist()
    assert all(np.array_equal(made[k], wanted[k]) for k in wanted)


def test_rows_choose_samples_and_windows_go_by_the_samples_own_numbers(folder, beton):
    rows = np.array([20, 3, 11])
    part = PackedLoader(beton, rows)
    wanted = squares(FolderLoader([folder[0][row] for row in rows], 0), [np.arange(3)], windowed(2))
    made = squares(part, [np.array([2, 0, 1])], windowed(2))
    assert len(part) == 3 and all(np.array_equal(made[k], wanted[k]) for k in range(3))


def test_damaged_images_are_named_or_left_out(beton, tmp_path):
    found, data = read_beton(beton), bytearray(beton.read_bytes())
    data[int(found.samples["image"]["data_ptr"][4]) + 30] ^= 1
    path = tmp_path / "x.beton"
    path.write_bytes(data)
    Sidecar.path(path).write_bytes(Sidecar.path(beton).read_bytes())
    with pytest.raises(ValueError, match=r"x\.beton: image 4, of class class0: its bytes are not those"):
        squares(PackedLoader(path), [np.arange(6)], Centered(S, S))
    faults = Faults("skip")
    assert list(squares(PackedLoader(path, workers=2), [np.arange(6)], Centered(S, S), faults)) == [0, 1, 2, 3, 5]
    assert list(faults.skipped) == [4]


def test_an_image_of_another_size_than_the_file_says_is_refused(beton, tmp_path):
    """By somebody who sealed it so: windows are drawn from the size that is said."""
    found, data = read_beton(beton), bytearray(beton.read_bytes())
    begin = data.index(found.samples.tobytes())
    samples = found.samples.copy()
    samples["image"]["width"][4] += 1
    data[begin : begin + len(samples) * SAMPLE.itemsize] = samples.tobytes()
    rows, end = samples.tobytes(), len(data) - len(samples) * 28
    path = tmp_path / "x.beton"
    path.write_bytes(data)
    Sidecar.path(path).write_bytes(found.sidecar.sealed(bytes(data[:begin]), rows, bytes(data[end:])).json())
    with pytest.raises(ValueError, match=r"x\.beton( is not a|: image 4, of class class0: it has \d+ x).*") as refused:
        squares(PackedLoader(path), [np.arange(6)], Centered(S, S))
    assert "image 4" in str(refused.value)
