"""Image folders: what is a class, a split, an image; what is left out and said; pixels of every depth."""

import numpy as np
import pytest
from image_files import png_file
from PIL import Image
from small import image_folder

from fastcondense.data.datasets import load
from fastcondense.loaders.class_folders import find_splits, index_classes
from fastcondense.loaders.complete import check_files, fault
from fastcondense.loaders.folder import decode
from fastcondense.recipe.settings import Dataset


def image(path, level=9, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), level, np.uint8)).save(path)


def classes(root, *names, count=3):
    for name in names:
        for k in range(count):
            image(root / name / f"{k}.png")
    return root


# --- what is left out ------------------------------------------------------------------------------------------------


def test_hidden_and_system_folders_are_no_classes_and_no_images(tmp_path):
    classes(tmp_path, "a", "b", ".ipynb_checkpoints", "__MACOSX", "@eaDir")
    image(tmp_path / "a" / ".ipynb_checkpoints" / "0-checkpoint.png")
    (tmp_path / "b" / "._0.png").write_bytes(b"\0\5\26\7")
    (tmp_path / "b" / "Thumbs.db").touch()
    found = index_classes(tmp_path)
    assert found.classes == ("a", "b") and found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.said == (f"left out in {tmp_path}: 6 folders or files that are hidden or an operating system's",)


def test_links_to_nothing_and_to_folders_around_are_not_classes(tmp_path):
    image_folder(tmp_path, classes=2, train=3, test=1)
    train = tmp_path / "train"
    (train / "class0" / "up").symlink_to("..")
    (train / "class0" / "top").symlink_to("/")
    found = index_classes(train)
    assert np.bincount(found.labels).tolist() == [3, 3]
    (said,) = found.said
    assert "2 links" in said and str(train / "class0" / "up") in said and "to a folder around it" in said
    for target, words in (("nowhere", "is a link to what is not there"), ("..", "is a link to a folder around it")):
        (train / "class2").symlink_to(target)
        with pytest.raises(ValueError, match=f"class2 {words}"):
            index_classes(train)
        (train / "class2").unlink()


def test_linked_folders_are_read_and_links_around_are_not(tmp_path):
    classes(tmp_path / "data", "a", "b")
    image(tmp_path / "more" / "x.png")
    image(tmp_path / "c" / "x.png")
    (tmp_path / "data" / "a" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data" / "a")
    (tmp_path / "more" / "back").symlink_to(tmp_path / "data" / "a")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "c")
    found = index_classes(tmp_path / "data")
    assert found.classes == ("a", "b", "c")
    names = [path.relative_to(tmp_path / "data").as_posix() for path in found.files]
    assert names[:4] == ["a/0.png", "a/1.png", "a/2.png", "a/more/x.png"] and names[-1] == "c/x.png"
    assert len(set(names)) == len(names) and any("to a folder around it" in text for text in found.said)


@pytest.mark.parametrize(("link", "target"), [("c", "b"), ("c", "b/in"), ("a/b", "../b"), ("a/in/c", "../../b/in")])
def test_no_image_is_of_two_classes_by_a_link(tmp_path, link, target):
    """A link to another class's folder, or into it, from the place of a class or from a folder of one."""
    classes(tmp_path, "a", "b")
    image(tmp_path / "a" / "in" / "x.png")
    image(tmp_path / "b" / "in" / "x.png")
    assert index_classes(tmp_path).labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    (tmp_path / link).symlink_to(target)
    with pytest.raises(ValueError, match=f"{link} is a link to class folder {tmp_path / 'b'}: its images would"):
        index_classes(tmp_path)


def test_endings_that_pillow_reads_are_images_and_others_are_counted(tmp_path):
    written = {".jfif": "JPEG", ".jpe": "JPEG", ".pgm": "PPM", ".avif": "AVIF", ".JPG": "JPEG", ".jp2": "JPEG2000"}
    for ending, kind in written.items():
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 16), 90, np.uint8)).save(tmp_path / "a" / f"x{ending}", format=kind)
    for name in ("a/notes.txt", "a/more.txt", "a/0001", "a/x.psd", "loose.png"):
        (tmp_path / name).touch()
    found = index_classes(tmp_path)
    assert sorted(path.suffix for path in found.files) == sorted(written)
    assert all(abs(int(np.asarray(decode(path)).mean()) - 90) <= 2 for path in found.files)
    loose, others = found.said
    assert "1 image (loose.png) in no class folder" in loose
    assert "4 files that are not read (2 .txt, 1 " in others and "without an ending" in others and ".psd" in others
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "scan.dcm").touch()
    with pytest.raises(ValueError, match=r"folder .*b holds no image, but 1 files of other kinds \(.*b/scan\.dcm\)"):
        index_classes(tmp_path)


# --- splits ----------------------------------------------------------------------------------------------------------


def test_splits_of_the_usual_names_are_found_and_what_is_not_read_is_said(tmp_path):
    for part in ("train", "test", "validation", "extra"):
        classes(tmp_path / part, "a", "b")
    splits = find_splits(tmp_path)
    assert (splits.train, splits.test) == (tmp_path / "train", tmp_path / "test")
    assert splits.said == (f"{tmp_path / 'test'} is the test split; not read: extra/, validation/",)
    assert load(Dataset(), tmp_path).said == splits.said


@pytest.mark.parametrize("parts", [("training", "testing"), ("train", "valid"), ("training", "dev"), ("train", "eval")])
def test_splits_of_other_usual_names_are_found(tmp_path, parts):
    for k, part in enumerate(parts):
        classes(tmp_path / part, "a", "b", count=3 + k)
    real = load(Dataset(), tmp_path)
    assert (real.classes, len(real.train), len(real.test), real.said) == (("a", "b"), 6, 8, ())


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("Training", "Testing"), r"holds Testing/, Training/, which look like splits, not classes"),
        (("Train", "Val"), r"holds Train/, Val/, which look like splits"),
        (("train", "training", "val"), r"holds train/, val/, training/: which are its splits"),
        (
            ("train", "Test"),
            "needs both train/ or training/ and one of val/, .* eval/, or neither; it has Test/, train/",
        ),
        (("seg_train", "seg_test", "seg_pred"), r"holds seg_pred/, seg_test/, seg_train/, which look like splits"),
        (("TRAIN", "VALID"), "look like splits"),
        (("train", "extra"), "or neither; it has extra/, train/"),
        (("train", "Train", "val"), "which are its splits"),
        (("inner/train", "inner/val"), "holds one folder alone, inner/, and that holds train/, val/: is the data set"),
        (("inner",), "holds one folder alone, inner/, and that holds a/, b/"),
        (("train/inner", "val/inner"), "train holds one folder alone, inner/"),
        (("first", "second"), "hold no image but the same folders each"),
    ],
)
def test_what_is_neither_splits_nor_classes_is_refused_with_what_was_found(tmp_path, parts, words):
    for part in parts:
        classes(tmp_path / part, "a", "b")
    with pytest.raises(ValueError, match=words):
        load(Dataset(), tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("bullet_train", "car", "test_tube"),  # images in them
        ("a/images", "b/images"),  # as Tiny ImageNet's
        ("a/x", "a/y", "b/x", "b/z"),  # as videos
        ("only",),
    ],
)
def test_classes_are_not_doubted(tmp_path, names):
    classes(tmp_path, *names)
    assert find_splits(tmp_path) is None
    assert load(Dataset(), tmp_path).classes == tuple(sorted({name.split("/")[0] for name in names}))


def test_a_class_may_be_called_train(tmp_path):
    for part in ("train", "val"):
        classes(tmp_path / part, "plane", "train")
    assert load(Dataset(), tmp_path).classes == ("plane", "train")


# --- pixels ----------------------------------------------------------------------------------------------------------

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_sixteen_bits_are_scaled(tmp_path, name):
    Image.fromarray(RAMP).save(tmp_path / name)
    wanted = np.rint(RAMP * (255 / 65535))
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / name)), np.repeat(wanted[..., None], 3, 2))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (RAMP.astype(np.int32), "its pixels are integers of 32 bits"),
        (RAMP.astype(np.float32) / 65535, "its pixels are floats"),
        (RAMP // 1040, "16 bits, but no value above 255: is it an image of 8 bits"),
        (RAMP // 16, "16 bits, but no value above 4095: is it an image of 12 bits"),
    ],
)
def test_depths_of_unknown_range_are_refused_by_name(tmp_path, pixels, words):
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=rf"x\.tif cannot be read: .*{words}"):
        decode(tmp_path / "x.tif")


def deep_png(path, values):
    """A PNG of 16 bits a channel. values: uint16 [H, W, 3]."""
    height, width, _ = values.shape
    path.write_bytes(png_file(width, height, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values), bits=16))


def test_colours_of_sixteen_bits_are_scaled_and_those_of_twelve_refused(tmp_path):
    values = np.dstack([RAMP, RAMP[::-1], RAMP // 2])
    deep_png(tmp_path / "x.png", values)
    assert np.abs(np.asarray(decode(tmp_path / "x.png")) - values / 257).max() <= 1  # Pillow truncates colours
    deep_png(tmp_path / "x.png", values >> 4)
    with pytest.raises(ValueError, match=r"x\.png cannot be read: it has 16 bits, but no value above 4095"):
        decode(tmp_path / "x.png")
    assert "no value above 4095" in fault(tmp_path / "x.png")  # before anything is made
    Image.fromarray(RAMP // 1040).save(tmp_path / "y.png")
    assert "no value above 255" in fault(tmp_path / "y.png")


def test_what_is_transparent_stands_before_white(tmp_path):
    """An ink of 40 at opacities 0, 51 (a fifth) and 255, in every way that PNG and GIF say so."""
    grey, opacity = np.full((1, 3), 40, np.uint8), np.array([[0, 51, 255]], np.uint8)
    wanted = [255, 212, 40]  # 255 - (255 - 40) * opacity
    Image.fromarray(np.dstack([grey, grey, grey, opacity])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([grey, opacity]), "LA").save(tmp_path / "la.png")
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    palette.putpalette([40] * 9)
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 51, 255]))
    for name in ("rgba", "la", "palette"):
        assert np.asarray(decode(tmp_path / f"{name}.png"))[0, :, 0].tolist() == wanted
    Image.fromarray(np.array([[7, 40]], np.uint8)).save(tmp_path / "key.png", transparency=7)
    assert np.asarray(decode(tmp_path / "key.png"))[0, :, 0].tolist() == [255, 40]


# --- whole files -----------------------------------------------------------------------------------------------------


def test_files_that_are_cut_off_are_found_without_decoding_the_others(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("x.png", "x.jpg", "x.bmp"):
        Image.fromarray(pixels).save(tmp_path / name)
    data = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "padded.jpg").write_bytes(data + bytes(100))
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:5000])
    (tmp_path / "empty.png").touch()
    decoded = []
    monkeypatch.setattr("fastcondense.loaders.complete.decode", lambda path: decoded.append(path.name) or decode(path))
    for name in ("x.png", "x.jpg", "x.bmp", "padded.jpg"):
        assert fault(tmp_path / name) == ""
    assert decoded == ["x.bmp"]
    for name in ("cut.jpg", "cut.png", "empty.png", "gone.png"):
        assert name in fault(tmp_path / name)
    files, good = [tmp_path / "x.png", tmp_path / "cut.png", tmp_path / "empty.png"], []
    with pytest.raises(ValueError, match=r"cut\.png cannot be read: .* \(and 1 more files\); mend or remove them"):
        check_files(files, 2, lambda items, _: items, good.append)
    check_files(files[:1], 2, lambda items, _: items, good.append)
    assert good == [1]
