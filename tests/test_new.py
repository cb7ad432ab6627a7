"""`fastcondense new`: what it says of a folder, and that its recipe is the folder's and runs."""

import math
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from fastcondense.cli import main
from fastcondense.data.survey import decoded, survey
from fastcondense.plan.new import recipe_text, seen_as
from fastcondense.recipe import recipe

COLORS = {"blue": (0, 0, 255), "red": (255, 0, 0), "white": (255, 255, 255)}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Ten photographs of one colour in each of three classes, of different sizes, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, color in COLORS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(10):
            Image.new("RGB", (40 + k, 24 + k), color).save(tmp_path / "photos" / name / f"{k}.png")
    return tmp_path / "photos"


def written(folder, device, ipc=0):
    """The recipe for a folder."""
    found = survey(folder)
    return recipe_text(found, decoded(found.real, seen_as(found, device)), folder, device, ipc)


def test_it_says_what_is_there_and_what_comes_next(photos, capsys):
    (photos / "red" / "notes.txt").write_text("none")
    (photos / "red" / "3.png").write_bytes(b"no image")
    assert main(["new", "--data", "photos", "--device", "cpu", "--seconds", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 classes, training + test images: blue 8 + 2, red 8 + 2, white 8 + 2" in said
    assert re.search(r"short sides of 2[34] images: 2[45] to 3[23] pixels, median 2[789]", said)
    assert "1 files that are not read (1 .txt" in said
    assert (
        len(
            re.findall(
                r"plan: .* on one worker \(squeeze .*, recover .*, train .*\), .* of memory and .* of disk", said
            )
        )
        == 1
    )
    (command,) = re.findall(r"next: (.*)", said)
    assert shlex.split(command) == ["fastcondense", "run", "--recipe", "photos.toml", "--data", "photos"]
    if "odd: " in said:
        assert recipe.load("photos.toml").dataset.on_error == "skip" and "3.png" in said
    fewer = "--squeeze.epochs 2 --train.epochs 2 --squeeze.gate-images 0 --dataset.on-error skip --device cpu"
    assert main([*shlex.split(command)[1:], *fewer.split(), "--evaluate.baselines", "random_soft"]) == 0
    assert "random real, soft labels" in capsys.readouterr().out


def test_mean_and_deviation_are_those_of_the_colours(photos):
    text = written(photos, torch.device("cpu"))
    (photos.parent / "made.toml").write_text(text)
    made = recipe.load(str(photos.parent / "made.toml"))
    # of 8 images a class each: red is on in two of three classes, green in one, blue in two
    np.testing.assert_allclose(made.dataset.mean, (2 / 3, 1 / 3, 2 / 3), atol=6e-4)
    np.testing.assert_allclose(made.dataset.std, [math.sqrt(2) / 3] * 3, atol=6e-4)
    assert made.ipc == 4, "half of the smallest class"
    assert (made.dataset.image_size, made.dataset.resize, made.squeeze.gate_images) == (24, 24, 8)
    assert made.squeeze.teachers == ("zoo/convnet3_w64",) and made.squeeze.epochs == 100
    assert len(text.splitlines()) <= 28 and text.count("#") >= 7


def test_a_gpu_and_large_photographs_get_a_pretrained_teacher(photos):
    for name in COLORS:
        for k in range(10):
            path = photos / name / f"{k}.png"
            Image.open(path).resize((300, 200 + k)).save(path)
    (photos.parent / "made.toml").write_text(written(photos, torch.device("cuda"), ipc=3))
    made = recipe.load(str(photos.parent / "made.toml"))
    assert (made.dataset.image_size, made.dataset.resize, made.ipc) == (224, 256, 3)
    assert (made.squeeze.weights, made.squeeze.probe_weights) == (("default",), ("train",))
    assert (made.squeeze.teachers, made.train.student) == (("torchvision/resnet18",), "torchvision/resnet18")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "new needs --data DIR, a folder of class folders with images"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--data", "photos", "--ipc", "9"], "the smallest is 'blue' with 8 training images, and --ipc is 9"),
        (["--data", "photos", "--out", "mine.txt"], "choose another --out than mine.txt"),
    ],
)
def test_what_it_cannot_use_is_one_line(photos, arguments, message, capsys):
    assert photos.is_dir() and main(["new", *arguments, "--seconds", "0", "--device", "cpu"]) == 1
    assert message in capsys.readouterr().err
    assert not list(photos.parent.glob("*.t*"))


def test_a_recipe_that_is_there_is_kept(photos, capsys):
    (photos.parent / "photos.toml").write_text("ipc = 1\n")
    assert main(["new", "--data", "photos", "--seconds", "0", "--device", "cpu"]) == 1
    assert "choose another --out than photos.toml" in capsys.readouterr().err
    assert (photos.parent / "photos.toml").read_text() == "ipc = 1\n"


def test_classes_that_do_not_fit_a_recipe_are_listed(photos, capsys):
    assert main(["recover", "--recipe", "rded/imagenette-ipc10", "--data", str(photos), "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "dataset.classes names 'n01440764', which folder does not have; its 3 classes are blue, red, white" in said
    assert "fastcondense new --data DIR" in said


def test_postscript_that_is_called_an_image_is_not_opened_as_one(photos):
    """Pillow starts Ghostscript for it."""
    for part in ("train", "val"):
        for name in ("blue", "red"):
            (photos / part / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (20, 20)).save(photos / part / name / f"{number}.png")
    (photos / "train" / "red" / "9.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    for name in COLORS:
        (photos / name).rename(photos.parent / name)
    (unread,) = survey(photos).unread
    assert unread == f"{photos}/train/red/9.png cannot be read: it is not an image"


def test_images_that_are_cut_are_named_and_not_counted_on(photos, capsys):
    """Their headers are whole; one of them is a test image."""
    for name in COLORS:
        for number in range(10):
            path = photos / ("val" if number > 7 else "train") / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
        (photos / name).rename(photos.parent / name)
    cut = [photos / "train" / "red" / f"{k}.png" for k in range(5)] + [photos / "val" / "blue" / "9.png"]
    for path in cut:
        path.write_bytes(path.read_bytes()[:900])
    assert main(["new", "--data", "photos", "--device", "cpu", "--seconds", "0"]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert all(f"odd: {path.relative_to(photos.parent)} cannot be read" in said for path in cut)
    made = recipe.load("photos.toml")
    assert (made.ipc, made.squeeze.gate_images, made.dataset.on_error) == (1, 3, "skip")
    fewer = "--squeeze.epochs 1 --train.epochs 1 --train.seeds 1 --device cpu --evaluate.baselines".split()
    run = ["run", "--recipe", "photos.toml", "--data", "photos", *fewer, "--squeeze.gate-images"]
    assert main([*run, "0"]) == 0
    capsys.readouterr()
    assert main([*run, "4", "--out", "other"]) == 1
    said = capsys.readouterr().err
    assert "gate (squeeze.gate_images) needs 4 training images a class; of class 'red' 3 can be read" in said


def test_a_class_whose_name_is_no_text_is_refused(photos, capsys):
    (photos / "red").rename(f"{photos}/c\udcff")
    assert main(["new", "--data", "photos", "--device", "cpu"]) == 1
    assert "is no UTF-8" in capsys.readouterr().err
