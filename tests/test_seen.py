"""Students, sets and bundles go with what is in the folder now: what was replaced there is not taken for the old."""

import shutil

import pytest
from small import fastcondense

from fastcondense.cli import main
from fastcondense.files import read_json
from fastcondense.tensor_files import read_tensors, write_tensors

FAST = "--squeeze.epochs 2 --recover.iterations 2 --squeeze.gate-images 0 --evaluate.baselines random_soft full".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in their seed, and so in their teacher, images and students."""
    folder = tmp_path_factory.mktemp("seen")
    for seed in (0, 7):
        assert fastcondense("run", folder / f"seed{seed}", *FAST, "--seed", str(seed)) == 0
    return folder / "seed0", folder / "seed7"


@pytest.fixture
def pair(runs, tmp_path):
    """Copies of both."""
    for run in runs:
        shutil.copytree(run, tmp_path / run.name)
    return tmp_path / "seed0", tmp_path / "seed7"


def scores(run):
    result = read_json(run / "result.json")
    return [of["top1_last"] for of in (result, result["baselines"]["random_soft"], result["baselines"]["full"])]


def trained(text):
    """Which arms a command has said that it makes again."""
    return [arm for arm in ("condensed", "random_soft", "full") if f"/{arm}/seed0 was made with other" in text]


def with_pixels_changed(run):
    """Its first shard, as recover might have written it: other pixels, with their digest."""
    path = run / "condensed" / "shard-00000.safetensors"
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors | {"images": 255 - tensors["images"]}, metadata)


def test_students_of_other_images_are_trained_again(pair, capsys):
    run, _ = pair
    before = scores(run)
    capsys.readouterr()
    assert main(["run", str(run), "--device", "cpu"]) == 0
    assert trained(capsys.readouterr().out) == [] and scores(run) == before
    with_pixels_changed(run)
    assert main(["relabel", str(run), "--device", "cpu"]) == 0
    assert main(["evaluate", str(run), "--device", "cpu"]) == 1
    assert "was trained with other condensed images than there are now; run train again" in capsys.readouterr().err
    assert main(["inspect", str(run), "--device", "cpu"]) == 0
    assert "Not all students are trained yet: condensed" in (run / "report.html").read_text()
    assert main(["train", str(run), "--device", "cpu"]) == 0
    assert trained(capsys.readouterr().out) == ["condensed"]
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    assert scores(run)[0] != before[0] and scores(run)[1:] == before[1:]


def weights(run):
    return read_tensors(next(run.glob("teachers/*/weights.safetensors")))[0]


def test_students_of_another_teacher_are_trained_again(runs, tmp_path, capsys):
    path, run, fresh = (tmp_path / name for name in ("given.safetensors", "run", "fresh"))
    given = [*FAST, "--squeeze.weights", str(path)]
    write_tensors(path, weights(runs[0]), {})
    assert fastcondense("run", run, *given) == 0
    write_tensors(path, weights(runs[1]), {})
    assert fastcondense("run", run, *given) == 1
    assert "was made when the file of squeeze.weights held something else" in capsys.readouterr().err
    for folder in ("condensed", "teachers"):
        shutil.rmtree(run / folder)
    capsys.readouterr()
    assert fastcondense("run", run, *given) == 0
    assert trained(capsys.readouterr().out) == ["condensed", "random_soft"]
    assert fastcondense("run", fresh, *given) == 0
    assert scores(run) == scores(fresh)


def test_images_and_students_of_another_class_order_are_not_kept(runs, tmp_path, capsys):
    """Two classes were exchanged in the names of a teacher's outputs, and no gate looked at them."""
    path, names, run, fresh = (tmp_path / name for name in ("given.safetensors", "names.txt", "run", "fresh"))
    given = [*FAST, "--squeeze.weights", str(path), "--squeeze.classes-file", str(names)]
    write_tensors(path, weights(runs[0]), {})
    names.write_text("\n".join("0 1 2 5 4 3 6 7 8 9".split()))
    assert fastcondense("run", run, *given) == 0
    names.write_text("\n".join("0 1 2 3 4 5 6 7 8 9".split()))
    shutil.rmtree(run / "teachers")
    capsys.readouterr()
    assert fastcondense("run", run, *given) == 1
    assert "teachers" in (words := capsys.readouterr().err) and len(words.splitlines()) == 1
    shutil.rmtree(run / "condensed")
    assert fastcondense("run", run, *given) == 0
    assert trained(capsys.readouterr().out) == ["condensed", "random_soft"]
    assert fastcondense("run", fresh, *given) == 0
    assert scores(run) == scores(fresh)


def test_a_shard_of_another_run_is_refused(pair, capsys):
    run, other = pair
    shutil.copy(other / "condensed" / "shard-00000.safetensors", run / "condensed")
    for command in ("relabel", "train", "inspect", "bundle", "verify"):
        assert main([command, str(run)]) == 1, command
        assert "shard-00000.safetensors is of another recipe" in capsys.readouterr().err


def test_what_was_labelled_otherwise_is_not_bundled(pair, tmp_path, capsys):
    run, other = pair
    bundle = ["bundle", str(run), "--out", str(tmp_path / "set.zip")]

    def said():
        return capsys.readouterr().err.strip()

    assert main(bundle) == 0
    for folder in (tmp_path / "none", other):
        assert main(["verify", str(tmp_path / "set.zip"), "--teachers", str(folder)]) == 1
    assert f"--teachers {other} is not read: the set holds its teachers' weights; leave it out" in said()
    (tmp_path / "set.zip").unlink()
    shutil.move(run / "teachers", tmp_path / "own")
    shutil.copytree(other / "teachers", run / "teachers")
    assert main(bundle) == 1 and "teacher zoo/convnet3_w32 has other weights than when the set was labelled" in said()
    shutil.rmtree(run / "teachers")
    shutil.move(tmp_path / "own", run / "teachers")
    with_pixels_changed(run)
    assert main(bundle) == 1 and "the images of class '0' are not those that were labelled" in said()
    assert not (tmp_path / "set.zip").exists()
