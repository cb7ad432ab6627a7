"""Exports are read back by the real libraries: torchvision, datasets, safetensors; and by ourselves."""

import json
import resource
import shutil
import sys
import tomllib

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import DatasetCard
from safetensors.torch import load_file
from small import image_folder, said, shards

from fastcondense.cli import main
from fastcondense.exchange.export import folder_names
from fastcondense.files import read_json
from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset
from fastcondense.sets.condensed import CondensedSet
from fastcondense.sets.parquet_sets import write_rows
from fastcondense.sets.published_sets import read_published
from fastcondense.tensor_files import read_tensors
from fastcondense.vision import torchvision

IPC = 2
FLAGS = (
    "--recipe sre2l/digits-ipc2 --dataset.name folder --dataset.image-size 13 --dataset.resize 13 --squeeze.epochs 1 "
    "--squeeze.teachers zoo/convnet2 --squeeze.gate-images 0 --recover.iterations 3 --train.epochs 1 --train.seeds 2 "
    "--train.student zoo/convnet1 --evaluate.baselines random_soft --device cpu"
).split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on an image folder of three classes."""
    root = tmp_path_factory.mktemp("export")
    data = image_folder(root / "data")
    assert main(["run", *FLAGS, "--data", str(data), "--out", str(root / "run")]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def images(run) -> np.ndarray:
    """What its shards hold: uint8 [classes, ipc, S, S, 3]."""
    made = np.zeros((3, IPC, 13, 13, 3), dtype=np.uint8)
    for path in (run / "condensed").glob("shard-*"):
        shard, _ = read_tensors(path)
        made[shard["classes"], shard["slots"]] = shard["images"].permute(0, 2, 3, 1).numpy()
    return made


@pytest.fixture(scope="module")
def normalised(run, images) -> np.ndarray:
    """float64 [classes * ipc, 3, S, S]: (x / 255 - mean) / std of the recipe."""
    dataset = tomllib.loads((run / "recipe.toml").read_text())["dataset"]
    x = (images.reshape(-1, 13, 13, 3) / 255 - np.array(dataset["mean"])) / np.array(dataset["std"])
    return x.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("more", [[], ["--numbers"], ["--ipc", "1"]])
def test_image_folder_of_torchvision_sees_the_same_pixels_and_classes(run, images, tmp_path, more):
    assert main(["export", str(run), "--out", str(tmp_path / "x"), *more]) == 0
    read = torchvision.datasets.ImageFolder(tmp_path / "x")
    names = ["00000", "00001", "00002"] if more == ["--numbers"] else ["class0", "class1", "class2"]
    ipc = 1 if "--ipc" in more else IPC
    assert read.classes == names and read.targets == [k for k in range(3) for _ in range(ipc)]
    assert np.array_equal([np.asarray(image) for image, _ in read], images[:, :ipc].reshape(-1, 13, 13, 3))
    assert list(read_json(tmp_path / "x" / "classes.json").values()) == ["class0", "class1", "class2"]
    assert not list(tmp_path.glob(".*"))


def test_folders_are_numbered_where_sorted_names_are_not_in_class_order():
    assert folder_names(("ant", "bee"), False) == ["ant", "bee"]
    assert folder_names(("bee", "ant"), False) == folder_names(("ant/x", "bee"), False) == ["00000", "00001"]
    assert folder_names(("ant", "classes.json"), False) == ["00000", "00001"]
    assert folder_names(tuple("0 1 10 2".split()), False) == ["0", "1", "10", "2"]
    assert folder_names(tuple("0 1 2 10".split()), False)[-1] == "00003"


def test_no_folder_has_a_name_that_readers_leave_out():
    assert folder_names(("__MACOSX", "b"), False) == ["00000", "00001"]


def test_jpeg_is_what_pillow_makes_of_it(run, images, tmp_path):
    assert main(["export", str(run), "--out", str(tmp_path / "x"), "--jpeg", "95"]) == 0
    read = torchvision.datasets.ImageFolder(tmp_path / "x")
    assert read.imgs[0][0].endswith(".jpg")
    difference = np.abs(np.stack([np.asarray(image) for image, _ in read]).astype(int) - images.reshape(-1, 13, 13, 3))
    assert 0 < difference.mean() < 12


@pytest.mark.parametrize("form", ["folder", "parquet", "tensors"])
def test_what_was_exported_is_imported_bit_for_bit(run, tmp_path, form):
    assert main(["export", str(run), "--format", form, "--out", str(tmp_path / "x")]) == 0
    command = ["squeeze", *FLAGS, "--data", str(run.parent / "data"), "--out", str(tmp_path / "r")]
    shutil.copytree(run / "teachers", tmp_path / "r" / "teachers")
    assert main([*command, "--images", str(tmp_path / "x")]) == 0
    imported, made = (shards(folder) for folder in (tmp_path / "r", run))
    assert imported.keys() == made.keys()
    assert all(made[name].startswith(imported[name]) for name in made)  # losses come last, and imports have none


def test_load_dataset_sees_the_same_pixels_and_classes(run, images, tmp_path):
    out = tmp_path / "x"
    assert main(["export", str(run), "--format", "parquet", "--out", str(out)]) == 0
    files = {"train": str(out / "data" / "train-*.parquet")}
    for read in (
        datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "a")),
        datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "b")),
    ):
        assert isinstance(read.features["image"], datasets.Image)
        assert read.features["label"].names == ["class0", "class1", "class2"]
        assert read["label"] == [0, 0, 1, 1, 2, 2]
        assert np.array_equal([np.asarray(image) for image in read["image"]], images.reshape(-1, 13, 13, 3))


def test_shards_and_row_groups_keep_the_order(tmp_path):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 50, 3, 4, 4), dtype=np.uint8))
    names = tuple("e d c b a".split())
    paths = write_rows(CondensedSet(pixels, names), tmp_path, 0, shard_bytes=120 * 48)
    assert [path.name for path in paths] == [f"train-0000{k}-of-00003.parquet" for k in range(3)]
    read = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert read["label"] == [k for k in range(5) for _ in range(50)] and read.features["label"].names == list(names)
    made = np.stack([np.asarray(image) for image in read["image"]])
    assert np.array_equal(made, pixels.flatten(0, 1).permute(0, 2, 3, 1).numpy())
    published = read_published(tmp_path, names[::-1], 50, Dataset(image_size=4))
    assert torch.equal(published.condensed.images, pixels.flip(0))


def test_the_card_says_what_the_set_is_and_scores(run, tmp_path):
    out = tmp_path / "x"
    assert main(["export", str(run), "--format", "parquet", "--out", str(out)]) == 0
    card, result = DatasetCard.load(out / "README.md"), read_json(run / "result.json")
    assert {"dataset-distillation", "dataset-compression", "ipc-2", "sre2l"} <= set(card.data.tags)
    assert card.data.size_categories == ["n<1K"]
    for scores in (result, result["baselines"]["random_soft"]):
        cells = [f"{scores[key]['mean']:.1f} ± {scores[key]['std']:.1f}" for key in ("top1_last", "top1_best")]
        assert " | ".join(cells) in card.text
    assert result["recipe_sha256"] in card.text and "lossless PNG" in card.text
    recipe = tomllib.loads(card.text.split("```toml")[1].split("```")[0])
    assert recipe["dataset"]["image_size"] == 13 and str(run.parent) not in card.text
    assert f"Images: {sum(path.stat().st_size for path in out.glob('data/*')) / 1000:.1f} kB" in card.text
    assert main(["export", str(run), "--format", "parquet", "--out", str(tmp_path / "y"), "--ipc", "1"]) == 0
    assert "Not evaluated" in (tmp_path / "y" / "README.md").read_text()  # the scores are of other images


def test_tensors_are_normalised_pixels(run, normalised, tmp_path):
    out = tmp_path / "x"
    assert main(["export", str(run), "--format", "tensors", "--out", str(out)]) == 0
    pickled, safe = torch.load(out / "condensed.pt", weights_only=True), load_file(out / "condensed.safetensors")
    for read in (pickled, safe):
        assert read["images"].dtype == torch.float32
        assert np.abs(read["images"].numpy() - normalised).max() < 1e-6
        assert read["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert pickled["classes"] == ["class0", "class1", "class2"]


def test_ddranking_gets_class_major_tensors_and_the_teachers_logits(run, normalised, tmp_path):
    out = tmp_path / "x"
    assert main(["export", str(run), "--format", "ddranking", "--out", str(out)]) == 0
    made, soft, labels = (
        torch.load(out / f"{name}.pt", weights_only=True) for name in ("images", "soft_labels", "labels")
    )
    x = torch.from_numpy(normalised.astype(np.float32))
    assert made.is_contiguous() and torch.allclose(made, x, atol=1e-6)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and labels.dtype == torch.int64
    net = zoo.build("zoo/convnet2", 3).eval()
    net.load_state_dict(read_tensors(next(run.glob("teachers/*/weights.safetensors")))[0])
    with torch.no_grad():
        wanted = net(x)
    assert soft.shape == (6, 3) and torch.allclose(soft, wanted, rtol=1e-4, atol=1e-4)
    about = json.loads((out / "ddranking.json").read_text())
    assert about["classes"] == ["class0", "class1", "class2"] and about["ipc"] == 2 and about["soft_labels"] == "logits"


def test_an_export_of_imported_images_names_their_origin(run, tmp_path):
    assert main(["export", str(run), "--out", str(tmp_path / "published")]) == 0
    command = ["squeeze", *FLAGS, "--data", str(run.parent / "data"), "--out", str(tmp_path / "r")]
    shutil.copytree(run / "teachers", tmp_path / "r" / "teachers")
    assert main([*command, "--images", str(tmp_path / "published")]) == 0
    assert main(["export", str(tmp_path / "r"), "--format", "parquet", "--out", str(tmp_path / "x")]) == 0
    text = (tmp_path / "x" / "README.md").read_text()
    assert "imported from `published` (folders named in classes.json, PNG; sha256" in text
    assert str(tmp_path) not in text and "- sre2l" not in text and "Not evaluated" in text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--ipc", "3"], "the set has 2 images of each class, 3 are wanted"),
        (["--jpeg", "101"], "--jpeg needs a quality from 1 to 100"),
        (["--ipc", "-1"], "--ipc needs a number of images a class, or 0 for all, got -1"),
        (
            ["--format", "tensors", "--jpeg", "90"],
            "--jpeg is of --format folder and parquet, not tensors; leave it out",
        ),
        (["--format", "parquet", "--numbers"], "--numbers is of --format folder, not parquet"),
        (
            ["--format", "fkd", "--ipc", "1"],
            "--ipc is of --format folder and parquet and tensors and ddranking, not fkd",
        ),
        (["--out", "full"], "full is not empty"),
        (["--out", "nowhere", "--format", "ddranking", "--data", "absent"], "there is no folder absent"),
    ],
)
def test_wrong_words_are_one_line_and_leave_nothing(run, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert main(["export", str(run), "--out", "x", *more]) == 1
    assert words in said(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["full"] and (tmp_path / "full" / "mine.txt").is_file()


@pytest.mark.parametrize(
    ("command", "size"),
    [
        ("export --format folder", 300),
        ("export --format parquet", 300),
        ("export --format tensors", 9000),
        ("export --format ddranking", 300),
        ("export --format ddranking", 9000),
        ("bundle", 9000),
    ],
)
def test_a_file_that_cannot_be_written_whole_is_named(run, tmp_path, capsys, command, size):
    """The system ends every file at so many bytes, as a full disk would; what was begun is removed."""
    verb, *more = command.split()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        assert main([verb, str(run), *more, "--out", str(tmp_path / "x.zip")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said(capsys).endswith(f"{tmp_path / 'x.zip'}: File too large")
    assert not list(tmp_path.iterdir())


def test_unfinished_runs_are_named(run, tmp_path, capsys):
    assert main(["export", "--out", "x"]) == 1
    assert "export needs the folder of a run and --out DIR" in said(capsys)
    assert main(["export", str(tmp_path), "--out", "x"]) == 1
    assert "is not the folder of a run" in said(capsys)
    half = shutil.copytree(run, tmp_path / "half")
    next(half.glob("teachers/*/weights.safetensors")).unlink()
    assert main(["export", str(half), "--format", "ddranking", "--out", str(tmp_path / "x")]) == 1
    assert "teacher zoo/convnet2 of" in said(capsys) and not (tmp_path / "x").exists()
    next((half / "condensed").glob("shard-*")).unlink()
    assert main(["export", str(half), "--out", str(tmp_path / "x")]) == 1
    assert "is not finished" in said(capsys)
    shutil.rmtree(half / "condensed")
    assert main(["export", str(half), "--out", str(tmp_path / "x")]) == 1
    assert "has no condensed images; run recover first" in said(capsys)


def test_without_datasets_it_is_said_what_to_install(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main(["export", str(run), "--format", "parquet", "--out", str(tmp_path / "x")]) == 1
    assert "parquet files need datasets: pip install 'fastcondense[hf]'" in said(capsys)
    assert not list(tmp_path.iterdir())
