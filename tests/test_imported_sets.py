"""Imported condensed sets: the order of their classes, what teachers say of it, and runs that go on from them."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from memory import begin_peak, peak
from set_files import DATASET, IPC, LAYOUTS, NAMES, first, pixels, png, write_folder
from small import fastcondense, said, shards

from fastcondense.data.datasets import load
from fastcondense.data.jobs import jobs
from fastcondense.files import read_json
from fastcondense.log import Log
from fastcondense.recipe.recipe import load as load_recipe
from fastcondense.recipe.settings import Dataset
from fastcondense.sets import listing
from fastcondense.sets.condensed import read_set
from fastcondense.sets.imported import import_images, judge_order
from fastcondense.sets.published_sets import class_order, read_published
from fastcondense.tensor_files import read_tensors
from fastcondense.vision import timm

# --- names and numbers -----------------------------------------------------------------------------------------------


def test_numbers_mean_imagenet_where_there_are_a_thousand():
    wnids = timm.data.ImageNetInfo().label_names()
    classes = [wnids[k] for k in (701, 0, 217)]
    rows, said = class_order([f"{k:05d}" for k in range(1000)], classes)
    assert rows == [701, 0, 217] and said == ("997 classes of the set are not in the data set, and left out",)
    numbers = sorted(map(str, range(1000)))
    assert [numbers[row] for row in class_order(numbers, classes)[0]] == ["701", "0", "217"]
    words = timm.data.ImageNetInfo().label_descriptions()
    assert class_order(words, classes)[0] == [701, 0, 217]
    assert len(set(words)) < 1000  # two cranes
    assert class_order([word.split(",")[0].replace(" ", "_") for word in words], classes)[0] == [701, 0, 217]
    with pytest.raises(ValueError, match="has no class 'n03888257'"):
        class_order([words[1], words[0], *words[2:]], classes)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (NAMES[:11], "has no class 'yak' of the data set; it has 11"),
        ([*NAMES[:11], "yack"], "has no class 'yak' .* among them 'yack'"),
        ([f"new{k:03d}" for k in range(11)], r"has no class 11 \('yak'\)"),
        ([f"{k + 1:05d}" for k in range(12)], r"has no class 0 \('cat'\)"),
        ([str(k) for k in range(13)], "has 13 numbered classes, the data set 12"),
        ([*map(str, range(11)), "00"], "class 0 of the set is there twice"),
        ([*NAMES, "cat"], "has class 'cat' twice"),
    ],
)
def test_classes_that_do_not_line_up_are_named(names, words):
    with pytest.raises(ValueError, match=words):
        class_order(names, NAMES)


NUMBERS = tuple(sorted(map(str, range(12))))  # "0", "1", "10", "11", "2", ...: place 2 is class "10"


@pytest.mark.parametrize("layout", ["sre2l", "rded", "plain numbers"])
def test_folders_of_numbers_are_names_where_they_are_and_else_places(tmp_path, layout):
    """A folder "3" is the class "3"; new003 and 00003 are what a network's output 3 was."""
    images = pixels()
    write_folder(tmp_path / "set", images, *LAYOUTS[layout])
    published = read_published(tmp_path / "set", NUMBERS, IPC, DATASET)
    order = [int(name) for name in NUMBERS] if layout == "plain numbers" else list(range(12))
    assert torch.equal(published.condensed.images, first(images[order]))
    how = "names of its classes" if layout == "plain numbers" else "places in the order of its classes"
    assert published.said[0] == f"the data set's classes are numbers, and those of the set are taken as {how}"


def test_files_that_state_a_place_decide_what_a_number_is(tmp_path):
    """Our export of classes "0" ... "11" without its classes.json: folder "10" holds class00002_id00000.png."""
    images = pixels()
    names = (lambda k: NUMBERS[k], lambda k, i: f"class{k:05d}_id{i:05d}.png")
    write_folder(tmp_path / "names", images, *names)
    write_folder(tmp_path / "places", images, str, names[1])  # folder "10" holds class00010_id00000.png
    for folder in ("names", "places"):
        assert torch.equal(read_published(tmp_path / folder, NUMBERS, IPC, DATASET).condensed.images, first(images))
    write_folder(tmp_path / "neither", images, str, lambda k, i: f"class{(k + 1) % 12:05d}_id{i:05d}.png")
    with pytest.raises(ValueError, match="files in 0 are of another class than its folder says: they name number 1"):
        read_published(tmp_path / "neither", NUMBERS, IPC, DATASET)


def test_more_classes_than_the_data_set_has_are_left_out(tmp_path):
    images = pixels()
    write_folder(tmp_path / "set", images, *LAYOUTS["names"])
    published = read_published(tmp_path / "set", NAMES[4:6], IPC, DATASET)
    assert torch.equal(published.condensed.images, first(images[4:6]))
    assert "10 classes of the set are not in the data set, and left out" in published.said


# --- in a run --------------------------------------------------------------------------------------------------------


def digits(count=10, order=range(10)) -> np.ndarray:
    """Real digits, `count` a class, uint8 [10, count, 8, 8, 3]; class k holds those of order[k]."""
    split = load(Dataset(name="digits", image_size=8, resize=8), None).train
    return np.stack([split.images[split.labels == k][:count] for k in order])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("published"), digits(), *LAYOUTS["sre2l"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, published):
    """A run of all stages on imported images."""
    out = tmp_path_factory.mktemp("run") / "digits"
    assert run("run", out, "--images", str(published)) == 0
    return out


def run(command, out, *more) -> int:
    return fastcondense(command, out, "--train.seeds", "1", "--evaluate.baselines", "random_soft", *more)


def fresh(out, finished):
    """A new run that has the finished one's teachers."""
    shutil.copytree(finished / "teachers", out / "teachers")
    return out


def events(out) -> str:
    return (out / "log.jsonl").read_text()


def test_a_run_on_imported_images_goes_all_the_way_and_names_them(finished, published, capsys):
    wanted = first(digits(2))
    for path in (finished / "condensed").glob("shard-*"):
        shard, _ = read_tensors(path)
        assert torch.equal(shard["images"], wanted[shard["classes"], shard["slots"]])
    origin = read_json(finished / "condensed" / "manifest.json")["origin"]
    assert origin["path"] == str(published) and origin["layout"] == "numbered folders (new000), PNG"
    assert len(origin["sha256"]) == 64 and min(origin["top1"].values()) > 50
    assert "20 images are imported from" in events(finished) and "imported images right" in events(finished)
    result = read_json(finished / "result.json")
    assert result["origin"] == {key: origin[key] for key in ("path", "layout", "sha256")}
    assert result["seconds"]["recover"] == 0
    assert run("evaluate", finished) == 0
    out = capsys.readouterr().out
    assert "imported, soft labels" in out and f"images: imported from {published}" in " ".join(out.split())


def test_an_import_again_changes_nothing_and_other_images_are_refused(finished, published, tmp_path, capsys):
    before, manifest = shards(finished), (finished / "condensed" / "manifest.json").read_bytes()
    assert run("recover", finished, "--images", str(published)) == 0
    assert "they were here already" in capsys.readouterr().out
    assert shards(finished) == before and (finished / "condensed" / "manifest.json").read_bytes() == manifest
    images = digits()
    images[7, 1, 0, 0] += 1
    other = write_folder(tmp_path / "other", images, *LAYOUTS["sre2l"])
    assert run("recover", finished, "--images", str(other)) == 1
    assert "holds other images (shard-00003.safetensors) than" in said(capsys)
    assert run("recover", finished, "--recover.batch-size", "10") == 1
    assert "recover.batch_size was 5, now 10" in said(capsys)
    assert shards(finished) == before


def test_a_larger_set_goes_on_from_the_images_that_are_there(finished, published, tmp_path, capsys):
    out = fresh(tmp_path / "r", finished)
    assert run("squeeze", out, "--images", str(published), "--ipc", "1") == 0
    first = shards(out)
    capsys.readouterr()
    assert run("recover", out) == 1
    assert f"its images are imported: add --images {published}" in said(capsys)
    assert run("recover", out, "--images", str(published)) == 0
    assert first.items() <= shards(out).items() and shards(out) == shards(finished)


def test_students_of_other_images_are_others(finished, tmp_path):
    """After an exchange of the images the students on them are trained anew, those on real images are kept."""
    out = shutil.copytree(finished, tmp_path / "r")
    shutil.rmtree(out / "condensed")
    other = write_folder(tmp_path / "other", digits()[:, ::-1], *LAYOUTS["sre2l"])
    assert run("train", out, "--images", str(other)) == 0
    assert len(list(out.glob("students/*/condensed/seed*"))) == 2 and len(list(out.glob("students/*/random_*"))) == 1


def test_recovered_images_are_not_mixed_with_imported_ones(finished, published, tmp_path, capsys):
    out = fresh(tmp_path / "r", finished)
    assert run("recover", out, "--ipc", "1") == 0
    before = shards(out)
    assert run("recover", out, "--images", str(published)) == 1
    assert "holds images that were recovered" in said(capsys) and shards(out) == before


def test_nothing_is_left_by_a_set_that_is_refused(tmp_path, capsys):
    write_folder(tmp_path / "set", pixels(classes=10), *LAYOUTS["sre2l"])
    assert run("recover", tmp_path / "r", "--images", str(tmp_path / "set")) == 1
    assert "9 x 9 pixels, but dataset.image_size is 8" in said(capsys) and not (tmp_path / "r").exists()


def test_a_set_that_does_not_fit_on_the_disk_is_refused_first(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20 * 3 * 8 * 8 - 1))
    assert run("recover", tmp_path / "r", "--images", str(published)) == 1
    assert f"3,840 bytes do not fit in {tmp_path}, where 3,839 are free" in said(capsys)
    assert not (tmp_path / "r").exists()


def test_memory_does_not_hold_the_images_of_an_import(tmp_path, monkeypatch):
    """Of 72 MB of pixels those that are decoded together, and a job's, and not all of them, twice."""
    monkeypatch.setattr(listing, "_DECODED_TOGETHER", 16)
    names, pictures = [str(k) for k in range(60)], [png(np.full((200, 200, 3), k, np.uint8)) for k in range(5)]
    for name in names:
        (tmp_path / "set" / name).mkdir(parents=True)
        for slot in range(10):
            (tmp_path / "set" / name / f"{slot:03d}.png").write_bytes(pictures[slot % 5])
    dataset = Dataset(image_size=200, resize=200, workers=1)
    recipe = replace(load_recipe("sre2l/digits-ipc10"), dataset=dataset)
    for ipc in (1, 10):  # modules are loaded by the first
        held, sized = begin_peak(), replace(recipe, ipc=ipc)
        found = read_published(tmp_path / "set", names, ipc, dataset)
        import_images(found, tmp_path / f"ipc{ipc}", sized, Log(is_silent=True))
    assert peak() - held < 40e6
    made = read_set(tmp_path / "ipc10", jobs(sized, 60), 10, tuple(names))
    assert made.sha256 == found.sha256 and (made.corner(60, 5)[:, :, 0, 0, 0] == torch.arange(5)).all()


def test_another_class_order_is_found_by_the_teachers(finished, tmp_path, capsys):
    out = fresh(tmp_path / "r", finished)
    order = [*range(1, 10), 0]
    write_folder(tmp_path / "set", digits(order=order), *LAYOUTS["sre2l"])
    assert run("recover", out, "--ipc", "10", "--images", str(tmp_path / "set")) == 1
    line = said(capsys)
    assert "in another class order than the data set" in line and "10 classes renamed ('0' shows '1'," in line
    assert run("train", out, "--ipc", "10") == 1  # nor by the next stage
    assert "another class order" in said(capsys)


def predictions(rights, order, count, classes=20, seed=0):
    """Labels, and predictions of a teacher that names a share of the images right, if class k holds order[k]."""
    generator = np.random.default_rng(seed)
    labels = np.arange(classes).repeat(count)
    true = np.asarray(order)[labels]
    predicted = np.where(generator.random(len(true)) < rights, true, generator.integers(0, classes, len(true)))
    return torch.from_numpy(labels), torch.from_numpy(predicted), [str(k) for k in range(classes)]


@pytest.mark.parametrize(("rights", "count"), [(0.9, 2), (0.8, 5), (0.6, 10)])
def test_renamed_classes_are_told_from_chance(rights, count):
    order = np.roll(np.arange(20), 1)
    with pytest.raises(ValueError, match=r"with (19|20) classes renamed"):
        judge_order(*predictions(rights, order, count))
    top1, text = judge_order(*predictions(rights, np.arange(20), count))
    assert top1 == pytest.approx(rights, abs=0.15) and "chance" not in text


@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_teacher_at_chance_proves_nothing(count):
    for seed in range(10):
        top1, text = judge_order(*predictions(0.0, np.arange(20), count, seed=seed))
        assert top1 < 0.25 and "as chance would" in text
    assert ("no class order mends it" in text) == (count > 1)


def test_one_image_a_class_tells_of_an_order_where_all_fit():
    """Twenty images that are named after twenty different classes: at random with probability 20! / 20^20 = 2e-8."""
    labels, _, classes = predictions(1.0, np.arange(20), 1)
    with pytest.raises(ValueError, match="names 0 % of them right, and 100 % with 20 classes renamed"):
        judge_order(labels, (labels + 1) % 20, classes)
    two = torch.arange(2)
    assert judge_order(two, 1 - two, ["a", "b"])[0] == 0


def test_two_exchanged_classes_are_refused():
    order = np.arange(20)
    order[[3, 7]] = 7, 3
    with pytest.raises(ValueError, match=r"2 classes renamed \('3' shows '7', '7' shows '3'\)"):
        judge_order(*predictions(0.95, order, 10))
