"""The .beton writer: what is kept, converted or refused; killed and resumed; read back, and by FFCV's own reader."""

import ctypes.util
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import bad_files, good_files, jpeg, scene, write_folder
from PIL import Image

from fastcondense.cli import main
from fastcondense.data import datasets
from fastcondense.loaders import pack as packing_module
from fastcondense.loaders.beton import FIELD, HEADER, JPEG, RAW, SAMPLE, Sidecar, read_beton
from fastcondense.loaders.class_folders import index_folder
from fastcondense.loaders.folder import decode
from fastcondense.loaders.pack import Packing, pack
from fastcondense.recipe.settings import Dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), good_files())


def packed(folder, out, workers=0, on_error="raise", **settings):
    files, labels, classes = index_folder(folder)
    pack(files, labels, classes, out, Packing(**settings), source=folder, workers=workers, on_error=on_error)
    return files, read_beton(out)


def pixels_of(beton, sample):
    """Decoded by Pillow, RGB."""
    image = beton.samples["image"][sample]
    if image["mode"] == RAW:
        return np.frombuffer(beton.stored(sample), np.uint8).reshape(image["height"], image["width"], 3)
    beton_file = beton.path.with_name("one.jpg")
    beton_file.write_bytes(beton.stored(sample))
    return np.asarray(decode(beton_file))


def test_jpeg_files_are_kept_byte_by_byte_and_others_are_encoded(folder, tmp_path):
    files, beton = packed(folder, tmp_path / "x.beton", quality=95)
    assert len(beton) == len(files) == 25 and (beton.samples["image"]["mode"] == JPEG).all()
    for k, path in enumerate(files):
        wanted, image = np.asarray(decode(path)), beton.samples["image"][k]
        assert (image["height"], image["width"]) == wanted.shape[:2]
        is_kept = beton.stored(k) == path.read_bytes()
        assert is_kept == (path.name not in ("cmyk.JPEG", "png.JPEG"))
        assert np.abs(pixels_of(beton, k).astype(int) - wanted).mean() <= (0 if is_kept else 4)


def test_raw_pixels_are_exact_and_exif_does_not_turn_them(folder, tmp_path):
    files, beton = packed(folder, tmp_path / "x.beton", encoding="raw")
    assert (beton.samples["image"]["mode"] == RAW).all()
    for k, path in enumerate(files):
        np.testing.assert_array_equal(pixels_of(beton, k), np.asarray(decode(path)))
        if path.name == "turned.JPEG":
            assert pixels_of(beton, k).shape == (30, 60, 3)


def test_mixed_takes_pixels_where_jpeg_saves_little(folder, tmp_path):
    files, beton = packed(folder, tmp_path / "x.beton", encoding="mixed")
    modes = beton.samples["image"]["mode"]
    assert set(modes) == {JPEG, RAW}
    for k in np.flatnonzero(modes == RAW):
        assert beton.lengths[k] <= 8 * max(files[k].stat().st_size, 3000)


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_the_longer_side_is_at_most_max_resolution(folder, tmp_path, encoding):
    files, beton = packed(folder, tmp_path / "x.beton", encoding=encoding, max_resolution=48, quality=95)
    for k, path in enumerate(files):
        image, stored = decode(path), beton.samples["image"][k]
        assert max(stored["height"], stored["width"]) == min(48, max(image.size))
        if max(image.size) > 48:
            wanted = image.resize((int(stored["width"]), int(stored["height"])), Image.Resampling.LANCZOS)
            error = np.abs(pixels_of(beton, k).astype(int) - np.asarray(wanted))
            assert error.mean() <= (0 if encoding == "raw" else 5)


def test_workers_move_no_byte(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(packing_module, "CHUNK", 4)
    packed(folder, tmp_path / "a.beton")
    packed(folder, tmp_path / "b.beton", workers=3)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    assert (tmp_path / "a.beton.json").read_bytes() == (tmp_path / "b.beton.json").read_bytes()


def test_no_image_crosses_a_page(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(packing_module, "PAGE", 1 << 12)
    _, beton = packed(folder, tmp_path / "x.beton", max_resolution=36, encoding="raw")
    page = int(np.fromfile(beton.path, HEADER, 1)["page_size"][0])
    begin = beton.samples["image"]["data_ptr"].astype(np.int64)
    assert page & (page - 1) == 0 and len(np.unique(begin // page)) > 5
    assert (begin // page == (begin + beton.lengths - 1) // page).all()


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_is_refused_by_name_or_left_out(tmp_path, monkeypatch, name):
    monkeypatch.setattr(packing_module, "CHUNK", 4)
    encoded = []
    folder = write_folder(tmp_path / "images", good_files() | {name: bad_files()[name]})
    with pytest.raises(ValueError, match=f"{name} (is not an image|cannot be read)") as caught:
        packed(folder, tmp_path / "x.beton")
    assert "\n" not in str(caught.value) and not (tmp_path / "x.beton").exists()
    monkeypatch.setattr(packing_module, "encode", lambda *x, real=packing_module.encode: encoded.append(x) or real(*x))
    files, beton = packed(folder, tmp_path / "x.beton", on_error="skip")
    assert len(encoded) == 26 - 4 * (files.index(Path(f"{folder}/class1/{name}")) // 4)  # it went on from there
    assert len(beton) == 25 and len(files) == 26
    (left_out,) = beton.sidecar.skipped
    assert left_out.endswith(name) and sum(beton.sidecar.counts) == 25
    kept = [k for k, path in enumerate(files) if path.name != name]
    assert beton.labels.tolist() == index_folder(folder)[1][kept].tolist()


def test_a_second_packing_does_nothing_and_other_settings_are_refused(folder, tmp_path):
    packed(folder, tmp_path / "x.beton")
    before = (tmp_path / "x.beton").stat()
    packed(folder, tmp_path / "x.beton")
    assert (tmp_path / "x.beton").stat() == before
    with pytest.raises(ValueError, match=r"x\.beton exists and holds something else"):
        packed(folder, tmp_path / "x.beton", encoding="raw")


def test_other_images_of_the_same_names_and_sizes_are_refused(tmp_path):
    images = tmp_path / "images"
    for level in (3, 200):
        for name in ("a/0.bmp", "b/1.bmp"):
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (level,) * 3).save(images / name)
        if level == 3:
            packed(images, tmp_path / "x.beton")
    with pytest.raises(ValueError, match=r"x\.beton exists and holds something else"):
        packed(images, tmp_path / "x.beton")


@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_a_packing_that_was_cut_short_goes_on_from_what_is_whole(folder, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(packing_module, "CHUNK", 2)
    packed(folder, tmp_path / "whole.beton")
    out, partial, journal = (tmp_path / f"x.beton{end}" for end in ("", ".partial", ".journal"))

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing_module._Partial, "finish", fail)
        with pytest.raises(OSError, match="No space left"):
            packed(folder, out)
    assert not out.exists()
    if damage == "torn":
        journal.write_bytes(journal.read_bytes() + b'{"end": 12')
        partial.write_bytes(partial.read_bytes() + b"half an image")
    else:
        data = bytearray(partial.read_bytes())
        data[-3000] ^= 255
        partial.write_bytes(data)
    encoded = []
    monkeypatch.setattr(packing_module, "encode", lambda *x, real=packing_module.encode: encoded.append(x) or real(*x))
    packed(folder, out)
    assert len(encoded) == 0 if damage == "torn" else 0 < len(encoded) < 25
    assert out.read_bytes() == (tmp_path / "whole.beton").read_bytes()
    assert Sidecar.path(out).read_bytes() == Sidecar.path(tmp_path / "whole.beton").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("x*")) == ["x.beton", "x.beton.json"]


def test_two_packings_at_once_are_refused(folder, tmp_path):
    (tmp_path / "x.beton.journal").touch()
    import fcntl

    with (tmp_path / "x.beton.journal").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is packing"):
            packed(folder, tmp_path / "x.beton")


# --- reading ---------------------------------------------------------------------------------------------------------


def test_what_is_no_beton_is_refused_by_name(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no file .*absent\.beton"):
        read_beton(tmp_path / "absent.beton")
    out = tmp_path / "x.beton"
    packed(folder, out)
    data, sidecar = out.read_bytes(), json.loads(Sidecar.path(out).read_text())
    for damaged in (data[:-100], data[:50], b"", data + b"x", b"\x07" + data[1:]):
        out.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.beton"):
            read_beton(out)
    out.write_bytes(data)
    Sidecar.path(out).write_text(json.dumps(sidecar | {"counts": [12, 13]}))
    with pytest.raises(ValueError, match="other labels"):
        read_beton(out)
    Sidecar.path(out).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        read_beton(out)
    Sidecar.path(out).unlink()
    with pytest.raises(ValueError, match="fastcondense pack"):
        read_beton(out)


def test_a_byte_that_is_damaged_anywhere_is_named(folder, tmp_path):
    """In an image, in what stands before and after the pages, and in the sidecar."""
    _, beton = packed(folder, tmp_path / "x.beton", encoding="mixed")
    out, whole, about = beton.path, beton.path.read_bytes(), Sidecar.path(beton.path).read_bytes()
    generator, inside = np.random.default_rng(0), 0
    begin = beton.samples["image"]["data_ptr"].astype(np.int64)
    used = np.zeros(len(whole), bool)
    for at, length in zip(begin, beton.lengths, strict=True):
        used[at : at + length] = True
    head_end = HEADER.itemsize + 2 * FIELD.itemsize + 25 * SAMPLE.itemsize
    pages_end = int((begin + beton.lengths).max())
    index = [*range(16), *generator.integers(16, head_end, 40), *generator.integers(pages_end, len(whole), 60)]
    for place in index:
        data = bytearray(whole)
        data[place] ^= 1 << generator.integers(8)
        out.write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.beton"):
            read_beton(out)
    for place in generator.choice(np.flatnonzero(used), 60):
        data = bytearray(whole)
        data[place] ^= 1 << generator.integers(8)
        out.write_bytes(data)
        hurt = np.flatnonzero((begin <= place) & (place < begin + beton.lengths)).tolist()
        for sample in (*hurt, (hurt[0] + 1) % len(beton)):
            if sample in hurt:
                with pytest.raises(ValueError, match="not those that were packed"):
                    read_beton(out).stored(sample)
                inside += 1
            else:
                assert read_beton(out).stored(sample) == beton_bytes(whole, beton, sample)
    assert inside == 60
    out.write_bytes(whole)
    for place in generator.integers(0, len(about) - 1, 60):
        Sidecar.path(out).write_bytes(about[:place] + bytes([about[place] ^ 1]) + about[place + 1 :])
        try:
            assert json.loads(Sidecar.path(out).read_bytes()) == json.loads(about)  # white space alone
        except (ValueError, AssertionError):
            with pytest.raises(ValueError, match=r"x\.beton"):
                read_beton(out)


def beton_bytes(whole, beton, sample):
    begin = int(beton.samples["image"]["data_ptr"][sample])
    return whole[begin : begin + int(beton.lengths[sample])]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1001])
def test_the_compiled_crc_is_zlibs(size):
    from fastcondense.loaders.decode_numba import crc32

    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    assert crc32(data) == zlib.crc32(data.tobytes())


def test_the_compiled_decoder_marks_damaged_images(folder, tmp_path):
    from fastcondense.loaders.decode_numba import bind, decode_batch
    from fastcondense.loaders.resize import NUM_COLUMNS

    library = ctypes.util.find_library("turbojpeg")
    if library is None:
        pytest.skip("there is no libturbojpeg here")
    bind(ctypes.CDLL(library))
    _, beton = packed(folder, tmp_path / "x.beton", encoding="mixed")
    modes, data = beton.samples["image"]["mode"], bytearray(beton.path.read_bytes())
    hurt = [int(np.flatnonzero(modes == JPEG)[0]), int(np.flatnonzero(modes == RAW)[1])]
    for sample in hurt:
        data[int(beton.samples["image"]["data_ptr"][sample]) + int(beton.lengths[sample]) // 2] ^= 1
    table = np.zeros((25, NUM_COLUMNS), np.int32)
    table[:, 2], table[:, 3] = beton.samples["image"]["height"], beton.samples["image"]["width"]
    table[:, 7:9] = 8
    squares, is_damaged = np.zeros((25, 8, 8, 3), np.uint8), np.zeros(25, bool)
    places = np.ascontiguousarray(beton.samples["image"]["data_ptr"])
    images, file = beton.samples["image"], np.frombuffer(bytes(data), np.uint8)
    images.flags.writeable = False  # as FFCV has them: one compilation for both
    lengths, crcs = beton.lengths.astype(np.uint64), np.array(beton.crcs)
    decode_batch(np.arange(25, dtype=np.uint64), squares, images, file, places, lengths, crcs, table, is_damaged)
    assert np.flatnonzero(is_damaged).tolist() == sorted(hurt)


def test_ffcvs_own_reader_agrees(folder, tmp_path):
    reader = pytest.importorskip("ffcv.reader", reason="the extra ffcv is not installed")
    _, beton = packed(folder, tmp_path / "x.beton", encoding="mixed")
    theirs = reader.Reader(str(beton.path))
    assert theirs.field_names == ["image", "label"] and theirs.num_samples == 25
    for name, column in (("f0", "image"), ("f1", "label")):
        assert theirs.metadata[name].tobytes() == beton.samples[column].tobytes()
    assert theirs.alloc_table["size"].tolist() == beton.lengths.tolist()


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_packs_both_splits_and_they_are_a_data_set(tmp_path, capsys):
    for split in ("train", "val"):
        write_folder(tmp_path / "images" / split, good_files())
    assert main(["pack", "--data", str(tmp_path / "images"), "--out", str(tmp_path / "b"), "--workers", "0"]) == 0
    assert "25 images of 2 classes" in capsys.readouterr().out
    real = datasets.load(Dataset(), tmp_path / "b")
    assert real.classes == ("class0", "class1") and len(real.train) == len(real.test) == 25
    assert real.train.beton == tmp_path / "b" / "train.beton" and not real.train.files
    part = real.train.take(np.array([3, 1]))
    assert part.rows.tolist() == [3, 1] and part.labels.tolist() == real.train.labels[[3, 1]].tolist()
    one = datasets.load(Dataset(classes=("class1",)), tmp_path / "b")
    assert set(one.train.labels) == {0} and set(real.train.labels[one.train.rows]) == {1}


def test_splits_of_other_classes_are_refused(tmp_path):
    write_folder(tmp_path / "two", good_files())
    write_folder(tmp_path / "three", good_files(), classes=3)
    for folder, split in (("two", "train"), ("three", "val")):
        out = str(tmp_path / "b" / f"{split}.beton")
        assert main(["pack", "--data", str(tmp_path / folder), "--out", out]) == 0
    with pytest.raises(ValueError, match="differ in their classes"):
        datasets.load(Dataset(), tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "pack needs --data DIR and --out"),
        (["--data", "absent", "--out", "x.beton"], "no folder absent"),
        (["--data", "images", "--out", "x.beton"], "name one by --split"),
        (["--data", "images", "--out", "x.beton", "--split", "val", "--quality", "0"], "quality must be"),
        (
            ["--data", "images", "--out", "images/val/p"],
            "images/val/p lies in images/val, whose folders are the classes",
        ),
        (["--data", "images/val", "--out", "images/val/class0/x.beton"], "lies in images/val, whose folders are the"),
        (["--dat", "images"], "nearest is '--data'"),
    ],
)
def test_wrong_words_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        write_folder(tmp_path / "images" / split, {"x.JPEG": jpeg(scene(9, 9, 0))}, classes=1)
    assert main(["pack", *arguments]) == 1
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said
    assert len(list((tmp_path / "images").rglob("*"))) == 6
