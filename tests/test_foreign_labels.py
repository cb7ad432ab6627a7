"""FKD files that are not the run's: classes in another order, files replaced; and what stored labels cannot give."""

import hashlib
import shutil

import pytest
import torch
from small import fastcondense

import fastcondense as fc
from fastcondense.cli import main
from fastcondense.labels.fkd_files import ABOUT, read_about
from fastcondense.tensor_files import write_checkpoint

FLAGS = (
    "--squeeze.teachers zoo/convnet1 --squeeze.epochs 12 --squeeze.gate-images 0 --recover.iterations 0 "
    "--train.epochs 2 --train.seeds 1 --train.batch-size 10 --labels.tile-shuffle 1 --evaluate.baselines"
).split()
RUN = ["--recipe", "subset-random/digits", "--ipc", "4", *FLAGS]
SWAPPED = "1 0 2 3 4 5 6 7 8 9".split()


def made(out, *flags):
    assert fastcondense("recover", out, *RUN, *flags) == 0
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A run whose teacher knows its digits, and its FKD files."""
    folder = tmp_path_factory.mktemp("fkd")
    out = made(folder / "own")
    assert main(["export", str(out), "--format", "fkd", "--out", str(folder / "files")]) == 0
    return folder


def stored(folder, files, capfd):
    """Trains on the files: the exit status and the last line on stderr."""
    status = main(["train", str(folder), "--labels.source", "stored", "--labels.stored", str(files)])
    return status, capfd.readouterr()


def test_classes_in_another_order_are_refused(files, tmp_path, capfd):
    """Each image's class is named as often as in the run's own order: only what the files say of their set tells."""
    assert stored(files / "own", files / "files", capfd)[0] == 0
    status, said = stored(made(tmp_path / "swapped", "--dataset.classes", *SWAPPED), files / "files", capfd)
    assert status == 1 and "class 0 is '0' there, and '1' here" in said.err


def test_labels_of_other_images_are_refused(files, tmp_path, capfd):
    status, said = stored(made(tmp_path / "other", "--seed", "1"), files / "files", capfd)
    assert status == 1 and "are labels of other images than the run's" in said.err


def test_torch_reads_what_published_code_reads(files):
    fields = torch.load(files / "files" / "epoch_0" / "batch_0.tar", weights_only=True)
    assert len(fields) == 6 and read_about(files / "files")["classes"] == list("0123456789")


def test_files_that_say_nonsense_of_their_set_are_refused(files, tmp_path, capfd):
    shutil.copytree(files / "files", tmp_path / "files")
    path = tmp_path / "files" / "epoch_0" / "batch_0.tar"
    write_checkpoint(path, torch.load(path, weights_only=True), {ABOUT: b'{"classes": 3}'})
    status, said = stored(files / "own", tmp_path / "files", capfd)
    assert status == 1 and f"{ABOUT} in {path} is damaged" in said.err


def digest(folder):
    (path,) = folder.glob("students/*/condensed/seed0/weights.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_students_of_replaced_files_are_trained_again(tmp_path, capfd):
    out = made(tmp_path / "run")
    assert main(["export", str(out), "--format", "fkd", "--out", str(tmp_path / "files")]) == 0
    assert stored(out, tmp_path / "files", capfd)[0] == 0
    before = digest(out)
    assert stored(out, tmp_path / "files", capfd)[0] == 0 and digest(out) == before
    for path in (tmp_path / "files").glob("epoch_*/batch_*.tar"):
        fields = torch.load(path, weights_only=True)
        torch.save([*fields[:5], (0.05 * fields[5]).half()], path)
    status, said = stored(out, tmp_path / "files", capfd)
    assert status == 0 and "was made with other stored labels than there are now" in said.out.replace("\n", "")
    assert digest(out) != before


def test_views_of_stored_labels_are_those_that_were_stored(files):
    settings = {"labels.source": "stored", "labels.stored": str(files / "files")}
    run = fc.run(fc.recipe(files / "own" / "recipe.toml", **settings), out=files / "own", device="cpu", is_silent=True)
    assert len(list(fc.views(run, epochs=1, batch_size=10)[0])) == 4
    with pytest.raises(ValueError, match=r"epochs is 9, and labels are stored for train\.epochs 2"):
        fc.views(run, epochs=9)
    with pytest.raises(ValueError, match=r"batch_size is 7, and labels are stored for train\.batch_size 10"):
        fc.views(run, batch_size=7)


@pytest.mark.parametrize(
    "flags", [["--train.label-classes", "10"], ["--labels.source", "stored", "--labels.top-k", "11"]]
)
def test_as_many_label_classes_as_classes_are_refused_before_anything_is_made(tmp_path, capfd, flags):
    assert fastcondense("recover", tmp_path / "run", *RUN, *flags) == 1
    assert "must be less than the 10 classes" in capfd.readouterr().err and not (tmp_path / "run" / "teachers").exists()


def test_relabel_before_recover_says_what_is_missing(tmp_path, capfd):
    assert fastcondense("relabel", tmp_path / "run", *RUN, "--squeeze.epochs", "1") == 1
    assert f"{tmp_path / 'run'} has no condensed images; run recover first" in capfd.readouterr().err


@pytest.mark.parametrize("part", ["dataset", "train", "ranking"])
@pytest.mark.parametrize("command", [["run"], ["bundle"], ["export", "--format", "folder", "--out", "x"]])
def test_a_recipe_that_was_cut_is_no_recipe_of_defaults(files, capfd, part, command):
    path = files / "own" / "recipe.toml"
    text = path.read_text()
    path.write_text(text[: text.index(f"[{part}]")])
    assert main([command[0], str(files / "own"), *command[1:]]) == 1
    assert f"{path} is damaged: it lacks [{part}]" in capfd.readouterr().err
    path.write_text(text)
