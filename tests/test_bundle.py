"""Bundles: what goes in comes out, a stranger's machine agrees or says why not, and nothing in one is trusted."""

import hashlib
import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from image_files import png_file
from PIL import Image
from small import fastcondense
from torchvision.datasets import ImageFolder

from fastcondense.cli import main
from fastcondense.files import read_json
from fastcondense.sets import bundle, sealed_zip
from fastcondense.sets.bundle import read_bundle, read_run
from fastcondense.tensor_files import read_tensors, write_tensors


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run and its bundle."""
    out = tmp_path_factory.mktemp("bundles") / "digits"
    assert fastcondense("run", out) == 0
    assert main(["bundle", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def file(run):
    return run.with_suffix(".zip")


def said(capsys):
    captured = capsys.readouterr()
    return captured.out + captured.err


def rewritten(file, path, change):
    """A copy of a bundle whose members went through `change`, a function of a dict of names and bytes."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with sealed_zip.writing(path) as archive:
        for name, data in members.items():
            archive.put(name, data)
    return path


def manifest_is(change):
    """A change of members by one of the manifest's tree."""

    def changed(members):
        tree = json.loads(members["manifest.json"])
        change(tree)
        members["manifest.json"] = json.dumps(tree).encode()

    return changed


def seal(path):
    """Writes the digest that the file must end with."""
    content = path.read_bytes()[:-64]
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


def test_contents_come_back_bit_for_bit_and_bytes_are_reproducible(run, file, tmp_path, capsys):
    there, back = read_run(run), read_bundle(file)
    assert (
        torch.equal(there.condensed.images, back.condensed.images) and there.condensed.classes == back.condensed.classes
    )
    assert there.recipe == back.recipe
    (name,) = there.weights
    assert all(torch.equal(there.weights[name][0][key], value) for key, value in back.weights[name][0].items())
    assert main(["bundle", str(run), "--out", str(tmp_path / "again.zip")]) == 0
    text = said(capsys)
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()
    assert "labels 0 B" in text and "replay specification has" in text
    assert len(json.dumps(there.manifest["replay"])) < 4096
    assert main(["bundle", str(run), "--out", str(tmp_path / "light.zip"), "--teachers", "reference"]) == 0
    assert (tmp_path / "light.zip").stat().st_size < file.stat().st_size - 80_000


def test_a_bundle_is_called_as_its_run_and_replaces_bundles_alone(run, tmp_path, capsys):
    for name in ("lr0.5", "lr0.25"):
        shutil.copytree(run, tmp_path / name)
        assert main(["bundle", str(tmp_path / name), "--teachers", "reference"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.zip")) == ["lr0.25.zip", "lr0.5.zip"]
    (tmp_path / "mine.txt").write_text("mine")
    capsys.readouterr()
    assert main(["bundle", str(run), "--out", str(tmp_path / "mine.txt")]) == 1
    assert "mine.txt is there and is no bundle; choose another --out" in said(capsys)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("a", "mine")
    before = (tmp_path / "mine.zip").read_bytes()
    assert main(["bundle", str(run), "--out", str(tmp_path / "mine.zip")]) == 1
    assert "mine.zip is there and is no bundle; choose another --out" in said(capsys)
    assert (tmp_path / "mine.zip").read_bytes() == before
    others = rewritten(
        tmp_path / "lr0.5.zip", tmp_path / "others.zip", manifest_is(lambda tree: tree["digests"].reverse())
    )
    assert main(["bundle", str(run), "--out", str(others)]) == 1
    assert "others.zip is a bundle of other images; choose another --out" in said(capsys)


def test_images_of_a_bundle_are_decoded_when_they_are_asked_for(file, monkeypatch):
    whole, decoded, decode = read_bundle(file).condensed.images, [], bundle._Pictures._decode
    monkeypatch.setattr(bundle._Pictures, "_decode", lambda *of: decoded.append(of[1]) or decode(*of))
    condensed = read_bundle(file).condensed
    assert not decoded and condensed.shape == whole.shape
    assert torch.equal(condensed.of_class(3), whole[3]) and len(decoded) == condensed.ipc
    assert torch.equal(condensed.some(torch.tensor([9, 0]), torch.tensor([0, 0])), whole[[9, 0], [0, 0]])


def test_unzipped_it_is_an_image_folder_in_class_order(run, file, tmp_path):
    zipfile.ZipFile(file).extractall(tmp_path)
    folder = ImageFolder(str(tmp_path / "images"))
    pixels, labels = read_run(run).condensed.flat()
    assert [label for _, label in folder.samples] == labels.tolist()
    assert all(np.array_equal(np.asarray(image), pixels[k].permute(1, 2, 0)) for k, (image, _) in enumerate(folder))


def test_students_from_an_unpacked_bundle_are_the_same(run, file, tmp_path, capsys):
    out = tmp_path / "unpacked"
    for command in ("recover", "train"):
        assert main([command, str(file), "--out", str(out), "--device", "cpu"]) == 0
    assert "4 of 4 jobs are finished already" in said(capsys)
    for path in run.glob("students/*/condensed/seed*/weights.safetensors"):
        mine, other = read_tensors(path)[0], read_tensors(out / path.relative_to(run))[0]
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    assert main(["verify", str(out)]) == 0
    assert fastcondense("recover", tmp_path / "other", "--squeeze.epochs", "3") == 0
    assert main(["train", str(file), "--out", str(tmp_path / "other")]) == 1
    assert "holds another condensed set" in said(capsys)


def test_a_bundle_is_unpacked_for_data_of_its_classes_alone(file, tmp_path):
    classes = read_bundle(file).condensed.classes
    for wrong, words in (
        (("0", "2", "1", *classes[3:]), r"differ in class 1: the first has '1' there, the second has '2' there"),
        (classes[:7], r"differ in class 7: the first has '7' there, the second ends before"),
        ((*classes, "ten"), r"differ in class 10: the first ends before, the second has 'ten' there"),
    ):
        with pytest.raises(ValueError, match=f"digits.zip and photos {words}; choose another --out, or give the data"):
            bundle.unpack(file, tmp_path / "x", wrong, "photos")
    assert not (tmp_path / "x").exists()


def test_images_are_not_taken_for_those_of_other_classes(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "r")
    manifest = tmp_path / "r" / "condensed" / "manifest.json"
    tree = read_json(manifest)
    manifest.write_text(json.dumps(tree | {"classes": [tree["classes"][1], tree["classes"][0], *tree["classes"][2:]]}))
    for command in ("train", "evaluate", "inspect"):
        assert main([command, str(tmp_path / "r")]) == 1
        assert "condensed and digits differ in class 0: the first has '1' there, the second has '0'" in said(capsys)


def test_a_bundle_with_other_teachers_is_not_taken_for_the_one_that_is_there(file, tmp_path):
    """As of two runs of one recipe on two machines, whose images are the same real ones."""

    relabelled = manifest_is(
        lambda tree: tree["replay"].update(teachers=dict.fromkeys(tree["replay"]["teachers"], "0" * 64))
    )
    classes, out = read_bundle(file).condensed.classes, tmp_path / "out"
    bundle.unpack(file, out, classes, "digits")
    bundle.unpack(file, out, classes, "digits")
    other = rewritten(file, tmp_path / "other.zip", relabelled)
    with pytest.raises(
        ValueError, match=r"out has the images of .*other\.zip, but other teachers; choose another --out"
    ):
        bundle.unpack(other, out, classes, "digits")


def test_verify_matches_here(run, file, tmp_path, capsys):
    for path in (file, run):
        assert main(["verify", str(path), "--device", "cpu"]) == 0
        assert ": match: logits differ" in said(capsys)
    light = tmp_path / "light.zip"
    assert main(["bundle", str(run), "--out", str(light), "--teachers", "reference"]) == 0
    assert main(["verify", str(light)]) == 1
    assert "--teachers" in said(capsys)
    assert main(["verify", str(light), "--teachers", str(run)]) == 0
    assert main(["verify", str(light), "--teachers", str(run / "teachers")]) == 0
    assert main(["train", str(light), "--out", str(tmp_path / "r"), "--squeeze.epochs", "1"]) == 1
    assert "was labelled with" in said(capsys)


def test_verify_says_why_not(file, tmp_path, capsys):
    def why(change):
        assert main(["verify", str(rewritten(file, tmp_path / "changed.zip", change))]) == 1
        return said(capsys)

    def flip_an_image(members):
        name = "images/00003-3/00001.png"
        flipped = io.BytesIO()
        Image.open(io.BytesIO(members[name])).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(flipped, "PNG")
        members[name] = flipped.getvalue()

    def manifest(**changes):
        return manifest_is(lambda tree: tree.update({k: v(tree[k]) for k, v in changes.items()}))

    def other_weights(members):
        (name,) = (name for name in members if name.startswith("teachers/"))
        (tmp_path / "w").write_bytes(members[name])
        state, metadata = read_tensors(tmp_path / "w")
        state = {key: value.flip(0) if value.dim() else value for key, value in state.items()}
        write_tensors(tmp_path / "w", state, metadata)
        members[name] = (tmp_path / "w").read_bytes()

    def recipe(old, new):
        def change(members):
            assert old in members["recipe.toml"]
            members["recipe.toml"] = members["recipe.toml"].replace(old, new, 1)

        return change

    assert "class '3' are not those that were labelled" in why(flip_an_image)
    for command in (["export", "--out", str(tmp_path / "out")], ["compare", str(file)]):
        assert main([command[0], str(tmp_path / "changed.zip"), *command[1:]]) == 1
        assert "changed.zip: the images of class '3' are not those that its manifest names" in said(capsys)
    assert not (tmp_path / "out").exists()
    assert "is not the one that it was bundled with" in why(recipe(b'= "zoo/convnet1"', b'= "zoo/convnet3"'))
    assert "is not the one that it was bundled with" in why(recipe(b"ce_weight = 0.1", b"ce_weight = 0.2"))
    assert "sealed by sha256" in why(flip_an_image)
    assert "has other weights" in why(other_weights)
    assert "seeds" in why(manifest(replay=lambda replay: replay | {"seeds": [7, 8]}))
    assert "views are made as 'nearest'" in why(manifest(replay=lambda replay: replay | {"transform": "nearest"}))
    slower = manifest(recipe=lambda made_by: made_by | {"recover": made_by["recover"] | {"lr": 7.0}})
    assert "images were made by another recipe than its own: recover.lr was 7.0, now" in why(slower)
    assert "classes are in another order" in why(manifest(replay=lambda replay: replay | {"classes": "0" * 64}))
    assert "windows, partners or boxes" in why(manifest(fingerprint=lambda kept: kept | {"tables": "0" * 64}))


def test_any_changed_byte_is_a_mismatch(file, tmp_path, capsys):
    """Of every member, of the list of members, and of the digest itself."""
    good, path = file.read_bytes(), tmp_path / "changed.zip"
    with zipfile.ZipFile(file) as archive:
        starts = [entry.header_offset for entry in archive.infolist()]
        places = [len(good) - 1, len(good) - 80, archive.start_dir + 5, *starts, *(start + 60 for start in starts)]
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert not sealed_zip.is_sealed(path)
    assert main(["verify", str(path)]) == 1
    assert ": mismatch: it was changed or damaged" in said(capsys)
    assert main(["train", str(path), "--out", str(tmp_path / "r")]) == 1
    assert "its bytes have another sha256 than the one that it ends with" in said(capsys)


def test_recover_makes_a_damaged_job_again(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "r")
    path = tmp_path / "r" / "condensed" / "shard-00002.safetensors"
    good = path.read_bytes()
    images = read_tensors(path)[0]["images"].clone()  # safetensors maps the file
    begin = good.index(images.numpy().tobytes())
    path.write_bytes(good[: begin + 7] + bytes([good[begin + 7] ^ 16]) + good[begin + 8 :])
    shutil.rmtree(tmp_path / "r" / "students")
    assert main(["train", str(tmp_path / "r"), "--device", "cpu"]) == 1
    assert "shard-00002.safetensors is damaged: its 'images' are not those that were written" in said(capsys)
    assert main(["recover", str(tmp_path / "r"), "--device", "cpu"]) == 0
    assert "the job is done again" in said(capsys)
    assert torch.equal(read_tensors(path)[0]["images"], images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda members: members.update({"../evil.txt": b"x"}), "unexpected '../evil.txt'"),
        (lambda members: members.pop("images/00000-0/00000.png"), "lacks 'images/00000-0/00000.png'"),
        (lambda members: members.update({"images/00000-0/00000.png": b""}), "00000.png is damaged: it is not an image"),
        (
            lambda members: members.update({"images/00000-0/00000.png": png_file(12000, 12000)}),
            "00000.png is a PNG of 12000 x 12000 RGB, not a PNG of 8 x 8 RGB",
        ),
        (manifest_is(lambda tree: tree.update(ipc=10**9)), "field ipc: 1000000000, but its recipe has"),
        (
            manifest_is(lambda tree: tree["bundle"]["results"][0]["top1_last"].update(mean=99.9)),
            "field top1_last: mean and std are not those of its seeds",
        ),
        (
            manifest_is(
                lambda tree: tree["bundle"]["results"][0]["baselines"]["random_soft"]["top1_best"].update(std=7)
            ),
            "field baselines.random_soft.top1_best: mean and std are not those of its seeds",
        ),
        (lambda members: members.update({"manifest.json": b"{}"}), "missing required field `classes`"),
        (lambda members: members.pop("recipe.toml"), "it has no recipe.toml"),
    ],
)
def test_damaged_and_malicious_files_are_one_line(file, tmp_path, capsys, change, words):
    path = rewritten(file, tmp_path / "bad.zip", change)
    assert main(["verify", str(path)]) == 1
    errors = capsys.readouterr().err.strip().split("\n")
    assert len(errors) == 1 and words in errors[0]
    assert main(["train", str(path), "--out", str(tmp_path / "r")]) == 1
    assert not (tmp_path / "r" / "condensed").exists() and not (tmp_path / "evil.txt").exists()


def test_members_that_are_packed_otherwise_or_broken_are_named(file, tmp_path, capsys):
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for packed in (zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "packed.zip", "w", packed) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
            archive.comment = 64 * b"0"
        seal(tmp_path / "packed.zip")
        assert main(["verify", str(tmp_path / "packed.zip")]) == 1
        assert "packed in a way that bundles are not" in said(capsys)


def test_a_pickle_in_place_of_weights_runs_nothing(file, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save(Evil(), tmp_path / "evil.pt")

    def change(members):
        (name,) = (name for name in members if name.startswith("teachers/"))
        members[name] = (tmp_path / "evil.pt").read_bytes()

    assert main(["verify", str(rewritten(file, tmp_path / "bad.zip", change))]) == 1
    assert "cannot be read as weights" in said(capsys) and not (tmp_path / "ran").exists()


def test_a_truncated_bundle_and_a_run_without_labels(run, file, tmp_path, capsys):
    (tmp_path / "half.zip").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert main(["verify", str(tmp_path / "half.zip")]) == 1
    assert "is not the folder of a run" in said(capsys)
    shutil.copytree(run, tmp_path / "r", ignore=shutil.ignore_patterns("students"))
    tree = read_json(tmp_path / "r" / "condensed" / "manifest.json")
    del tree["replay"]
    (tmp_path / "r" / "condensed" / "manifest.json").write_text(json.dumps(tree))
    assert main(["bundle", str(tmp_path / "r")]) == 1
    assert "run relabel first" in said(capsys)
