"""A run and its data: other data are refused by name, damaged files before training, and what is said of teachers."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from small import image_folder

from fastcondense.cli import main
from fastcondense.loaders import turbo
from fastcondense.networks import pretrained, zoo
from fastcondense.recipe.recipe import from_toml, load
from fastcondense.recipe.settings import Squeeze

FLAGS = (
    "--recipe sre2l/digits-ipc1 --dataset.name folder --squeeze.teachers zoo/convnet1 --squeeze.epochs 1 "
    "--squeeze.gate-images 4 --device cpu"
).split()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), size=8)


def squeeze(out, data, *more):
    return main(["squeeze", *FLAGS, "--data", str(data), "--out", str(out), *more])


def line(capsys):
    return capsys.readouterr().err.strip()


def weights_of(out):
    with safe_open(next(out.glob("teachers/*/weights.safetensors")), "pt") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def made(tmp_path_factory, images):
    out = tmp_path_factory.mktemp("run") / "r"
    assert squeeze(out, images) == 0
    return out


def test_other_data_in_the_same_folder_are_refused_by_name(tmp_path, images, made, capsys):
    kept = json.loads((made / "data.json").read_text())
    assert kept["path"] == str(images) and kept["images"]["train"]["images"] == 36
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file() and path.suffix == ".safetensors"}
    moved = shutil.copytree(images, tmp_path / "moved")
    assert squeeze(made, moved) == 0  # the same images elsewhere
    (moved / "train" / "class0" / "0.png").rename(moved / "train" / "class1" / "x.png")
    assert squeeze(made, moved) == 1
    assert f"{made} was made from {images}, and {moved} is other data (as many images of train, but" in line(capsys)
    (moved / "val" / "class1" / "0.png").unlink()
    (moved / "train" / "class1" / "x.png").rename(moved / "train" / "class0" / "0.png")
    assert squeeze(made, moved) == 1
    assert "(test.images was 12, now 11); choose another --out, or the first --data" in line(capsys)
    assert before and all(path.read_bytes() == data for path, data in before.items())


@pytest.mark.parametrize(
    ("data", "out"), [("flat", "flat"), ("flat", "flat/run"), (".", "runs/x"), ("split", "split/val/r")]
)
def test_a_run_among_the_class_folders_of_its_data_is_refused(tmp_path, images, monkeypatch, capsys, data, out):
    """Its folder would be a class to every later command."""
    shutil.copytree(images / "train", tmp_path if data == "." else tmp_path / "flat", dirs_exist_ok=True)
    shutil.copytree(images, tmp_path / "split") if data == "split" else None
    monkeypatch.chdir(tmp_path)
    assert squeeze(out, data) == 1
    assert f"{out} lies in " in (text := line(capsys)) and "whose folders are the classes: choose another --out" in text
    assert not list(tmp_path.rglob("recipe.toml"))
    if data == "split":
        assert squeeze("split/run", data) == 0 and squeeze("split/run", data) == 0


def test_a_run_that_goes_on_with_another_decoder_says_so(tmp_path, images, made, monkeypatch, capsys):
    out = shutil.copytree(made, tmp_path / "r")
    kept = json.loads((out / "environment.json").read_text())
    assert kept["loader"] == "folder" and kept["decoder"] == turbo.decoder()
    assert squeeze(out, images) == 0
    assert "this run used" not in capsys.readouterr().out
    monkeypatch.setattr("fastcondense.data.sources.decoder", lambda: "Pillow 99.1")
    assert squeeze(out, images) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "loader: folder (Pillow 99.1); the images are files" in said
    assert f"loader: before, this run used folder ({turbo.decoder()}); its pixels may differ by rounding" in said
    assert json.loads((out / "environment.json").read_text())["decoder"] == "Pillow 99.1"


def test_data_of_one_class_are_refused(tmp_path, capsys):
    data = image_folder(tmp_path / "images", classes=1)
    assert squeeze(tmp_path / "run", data) == 1
    assert line(capsys) == f"fastcondense: {data} has one class, 'class0': two or more are needed"


def test_digits_do_not_read_data(tmp_path, capsys):
    assert (
        main(["squeeze", "--recipe", "sre2l/digits-ipc1", "--data", str(tmp_path), "--out", str(tmp_path / "r")]) == 1
    )
    assert "'digits' ships with scikit-learn and reads no --data" in line(capsys) and not (tmp_path / "r").exists()


def test_damaged_images_end_a_squeeze_before_it_begins(tmp_path, images, capsys):
    data = shutil.copytree(images, tmp_path / "data")
    bad = data / "val" / "class2" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert squeeze(tmp_path / "r", data) == 1
    assert f"{bad} cannot be read" in line(capsys) and not list(tmp_path.glob("r/teachers/*"))
    shutil.copy(images / "val" / "class2" / "2.png", bad)
    assert squeeze(tmp_path / "r2", data) == 0
    assert json.loads((tmp_path / "r2" / "checked.json").read_text())["files"] == 48


def test_what_a_checkpoint_holds_is_said_and_a_key_chooses(tmp_path, images, capsys):
    state = {}
    for seed, key in enumerate(("model", "ema")):
        torch.manual_seed(seed)
        state[key] = zoo.build("zoo/convnet1", 3).state_dict()
    torch.save(state, tmp_path / "x.pt")
    options = ["--squeeze.gate-images", "0", "--squeeze.weights"]
    assert squeeze(tmp_path / "a", images, *options, f"{tmp_path}/x.pt") == 0
    assert "holds several weights: model is taken, not ema" in " ".join(capsys.readouterr().out.split())
    assert squeeze(tmp_path / "b", images, *options, f"{tmp_path}/x.pt:ema") == 0
    with safe_open(next(tmp_path.glob("b/teachers/*/weights.safetensors")), "pt") as file:
        assert torch.equal(file.get_tensor("head.weight"), state["ema"]["head.weight"])
    assert squeeze(tmp_path / "c", images, *options, f"{tmp_path}/x.pt:swa") == 1
    assert "holds no weights under 'swa'; it has model, ema" in line(capsys)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: there is no such file"),
        (b"caf\xe9\n", "is no UTF-8 text (byte 3)"),
        (b"\n \n", "is empty"),
    ],
)
def test_a_file_of_class_names_is_named_with_its_setting(tmp_path, images, made, capsys, content, words):
    path, teacher = tmp_path / "names.txt", next(made.glob("teachers/*/weights.safetensors"))
    if content is not None:
        path.write_bytes(content)
    options = ("--squeeze.weights", str(teacher), "--squeeze.classes-file", str(path))
    assert squeeze(tmp_path / "r", images, *options) == 1
    assert f"squeeze.classes_file: {path} {words}" in line(capsys)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, images, made):
    (tmp_path / "names.txt").write_text("class2\nclass0\nclass1\n", encoding="utf-8-sig")
    teacher = next(made.glob("teachers/*/weights.safetensors"))
    options = ("--squeeze.weights", str(teacher), "--squeeze.classes-file", str(tmp_path / "names.txt"))
    assert squeeze(tmp_path / "r", images, *options, "--squeeze.gate-images", "0") == 0
    assert json.loads(weights_of(tmp_path / "r")["outputs"]) == [1, 2, 0]


def test_a_teachers_own_preprocessing_is_kept_with_it(tmp_path, images, made, capsys):
    teacher = next(made.glob("teachers/*/weights.safetensors"))
    options = ("--squeeze.weights", str(teacher), "--squeeze.gate-images", "0")
    own = ("--squeeze.normalization", "0.1,0.2,0.3/0.5,0.25,1")
    assert squeeze(tmp_path / "r", images, *options, *own) == 0
    assert "sees pixels normalised by mean (0.1, 0.2, 0.3) and deviation (0.5, 0.25, 1.0)" in " ".join(
        capsys.readouterr().out.split()
    )
    assert json.loads(weights_of(tmp_path / "r")["pixel_statistics"]) == [[0.1, 0.2, 0.3], [0.5, 0.25, 1.0]]
    assert "pixel_statistics" not in weights_of(made)
    assert squeeze(tmp_path / "r", images, *options, *own) == 0  # it is read again
    assert squeeze(tmp_path / "s", images, *own) == 1
    assert "squeeze.normalization is of given weights, but zoo/convnet1 is trained here" in line(capsys)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("own", ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0))),
        ("dataset", None),
        ("0,0,0/1,1,1", ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        ("0,0/1,1", "needs own, dataset or"),
        ("imagenet", "needs own, dataset or"),
        ("0,0,0/1,0,1", "deviations above 0"),
    ],
)
def test_normalization_is_own_the_data_sets_or_six_numbers(text, wanted):
    settings = Squeeze(normalization=(text,))
    if isinstance(wanted, str):
        with pytest.raises(ValueError, match=wanted):
            settings.pixel_statistics(0, None)
    else:
        assert settings.pixel_statistics(0, ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0))) == wanted
    recipe = load("sre2l/digits-ipc1")
    assert from_toml(recipe.to_toml(), "x").squeeze.normalization == ("own",)


def test_timm_and_torchvision_say_what_their_weights_have_seen(monkeypatch):
    from fastcondense import vision

    net = vision.timm.create_model("mixer_s32_224", num_classes=2)
    monkeypatch.setattr(vision.timm, "create_model", lambda *_, **__: net)
    assert pretrained.pixel_statistics(zoo.build("timm/mixer_s32_224", 2)) is None
    net.pretrained_cfg = net.pretrained_cfg | {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    made = zoo.build("timm/mixer_b16_224", 2, "default")
    assert pretrained.pixel_statistics(made) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_pack_refuses_before_a_byte_is_written(tmp_path, images, capsys):
    def pack(data, *more):
        return main(["pack", "--data", str(data), "--out", str(tmp_path / "b"), "--workers", "0", *more])

    data = shutil.copytree(images, tmp_path / "data")
    (data / "val").rename(data / "test")
    shutil.rmtree(data / "test" / "class2")
    assert pack(data) == 1 and "train/ and test/ differ in their classes: 'class2'" in line(capsys)
    shutil.copytree(images / "val" / "class2", data / "test" / "class2")
    (data / "test" / "class2" / "0.png").write_bytes(b"no image")
    assert pack(data) == 1 and "0.png is not an image; mend or remove" in line(capsys)
    assert pack(data, "--quality", "0") == 1 and not (tmp_path / "b").exists()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(data / "test" / "class2" / "0.png")
    assert pack(data) == 0
    assert sorted(path.name for path in (tmp_path / "b").glob("*.beton")) == ["train.beton", "val.beton"]
