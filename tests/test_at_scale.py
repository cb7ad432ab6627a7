"""ImageNet's shape in small: a hundred classes of odd files through all stages, and claims of many workers."""

import json
import sys
from pathlib import Path

import numpy as np
import photographs
import pytest
import scale_runs
from claims import simulate
from imagenet_shaped import class_counts, main, wnid_of, write
from PIL import Image
from results import frame
from scale_table import growth, table

from fastcondense.cli import main as fastcondense
from fastcondense.data.datasets import load
from fastcondense.labels import resident
from fastcondense.loaders.folder import ImageFile, decode
from fastcondense.recipe.settings import Dataset

TRAIN, VAL, CLASSES = 1_281_167, 50_000, 1_000
FLAGS = (
    "--recipe sre2l/imagenet1k-ipc2 --dataset.image-size 16 --dataset.resize 16 --recover.iterations 2 "
    "--train.epochs 1 --squeeze.teachers zoo/convnet1 --squeeze.weights train --squeeze.epochs 1 "
    "--squeeze.gate-images 0 --device cpu --evaluate.baselines --train.student zoo/convnet1 --train.seeds 1"
).split()


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """100 classes of 6 training images in the mean, from pictures of which three name a wnid."""
    folder = tmp_path_factory.mktemp("shaped")
    names = ["n01440764_tench.JPEG", "n01443537/1.JPEG", "n01440764_2.JPEG", *(f"{k}.JPEG" for k in range(9))]
    for k, name in enumerate(names):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        photographs.picture(40, 30 + k, k).save(folder / "photos" / name)
    made = write([folder / "photos"], folder / "data", train=600, val=150, classes=100, size=24)
    assert made == (600, 150)
    return folder


def test_counts_are_imagenets():
    counts = class_counts(TRAIN, CLASSES, 0)
    assert counts.sum() == TRAIN and counts.max() <= 1.02 * 1300 and counts.min() >= 732
    assert np.mean(counts >= counts.max() - 1) >= 0.9
    assert class_counts(5, 5, 3).tolist() == [1] * 5 and class_counts(57, 7, 0).sum() == 57


def test_a_folder_of_imagenets_shape_has_its_classes_counts_and_odd_files(shaped):
    real = load(Dataset(name="folder"), shaped / "data")
    assert len(real.classes) == 100 and real.classes[:3] == ("n01440764", "n01443537", "n90000000")
    assert len(real.train) == 600 and np.bincount(real.train.labels, minlength=100).min() >= 1
    assert np.bincount(real.test.labels).tolist() == [1, 2] * 50 and real.said == ()
    assert {path.name[:9] == path.parent.name for path in real.train.files} == {True}
    headers = [ImageFile.read(path).header for path in real.train.files]
    kinds = [(header.format, header.mode, header.getexif().get(0x0112)) for header in headers]
    odd = {kind: kinds.count(kind) for kind in set(kinds)}
    assert odd.pop(("JPEG", "RGB", None)) == 596
    assert odd == {("PNG", "RGB", None): 1, ("JPEG", "CMYK", None): 1, ("JPEG", "L", None): 1, ("JPEG", "RGB", 6): 1}
    strict = (shaped / "data" / ".photographs" / "strict.JPEG").read_bytes()
    assert strict.endswith(b"\0\0\0\0\xff\xd9") and strict in [path.read_bytes() for path in real.train.files]
    assert all(min(decode(path).size) == 24 for path in real.test.files)
    assert sum(path.stat().st_nlink for path in (shaped / "data" / ".photographs").iterdir()) == 750 + 12 + 5


def test_wrong_numbers_are_one_line(shaped, tmp_path, monkeypatch):
    for arguments, problem in (
        ([shaped / "photos", "--classes", "7", "--train", "6"], "a class needs an image of each split"),
        ([tmp_path], "there are no photographs in"),
        ([shaped / "photos", "--train", "900000000", "--classes", "1", "--val", "1"], "12 photographs are too few"),
    ):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments), "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit, match=problem):
            main()
        assert not (tmp_path / "out").exists()
    assert wnid_of(Path("n1/x.JPEG")) is None


def test_a_hundred_classes_go_through_all_stages(shaped, tmp_path, capsys):
    run = str(tmp_path / "run")
    for command in ("recover", "relabel", "train", "evaluate", "inspect"):
        assert fastcondense([command, *FLAGS, "--data", str(shaped / "data"), "--out", run]) == 0
    assert fastcondense(["bundle", run]) == 0 and fastcondense(["verify", f"{run}.zip"]) == 0
    assert fastcondense(["export", run, "--out", f"{run}-folder"]) == 0 and fastcondense(["status", run]) == 0
    said = capsys.readouterr().out
    assert "match" in said and "200 images, 2 of each of 100 classes" in said and "2 of 2 jobs" in said
    assert len(list(Path(f"{run}-folder").rglob("*.png"))) == 200
    assert Image.open(next(Path(f"{run}-folder").rglob("*.png"))).size == (16, 16)


def test_the_stages_of_networks_go_through_a_hundred_classes(shaped, tmp_path, capsys, monkeypatch):
    """They check themselves: that each file is read once for two teachers, that stored labels have the bytes that they
    should, and that the gate refuses a teacher that knows nothing."""
    monkeypatch.setattr(resident, "_SMALL", resident._SMALL)  # which a stage sets to 0
    about = {
        "scratch": str(tmp_path),
        "data": str(shaped / "data"),
        "classes": 100,
        "ipc": 1,
        "gate": 3,
        "size": 24,
        "iterations": 1,
    }
    for name in ("squeeze", "labels", "fkd", "students", "plan"):
        scale_runs.STAGES[name](about)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line.get("files") or line.get("views") or line.get("jobs") for line in told] == [
        *(None, None, 600, 600),  # files, the gate, statistics
        *(100, None, None, None),  # labels, students, the page
        *(100, 100),  # FKD files
        *(100, None),  # a student of replayed labels, the page
        *(1, 1),  # Python, a plan
    ]
    assert len(list(tmp_path.glob("fkd-100-1/fkd/epoch_0/batch_0.tar"))) == 1
    assert all(line["own_mb"] < 500 for line in told if "Python" not in line["what"])  # of any child


def test_tables_say_seconds_growth_and_memory_beside_goals():
    about = {"benchmark": "at-scale", "environment": {"device": "CPU X", "commit": "abc", "date": "2026-11-29"}}
    lines = [
        {"what": what, "classes": classes, "ipc": ipc, "cpu_s": seconds, "wall_s": 2 * seconds, "own_mb": memory}
        for what, classes, ipc, seconds, memory in (
            ("the same, a second time", 10, 0, 0.1, 1),
            ("the same, a second time", 100, 0, 0.5, 2),
            ("bundle", 1000, 10, 1.0, 7),
            ("bundle", 1000, 40, 16.0, 8),
        )
    ]
    of_224 = {"what": "bundle", "classes": 1000, "cpu_s": 9.0, "wall_s": 9, "own_mb": 5, "size": 224}
    lines += [of_224 | {"ipc": 10}, of_224 | {"ipc": 20, "cpu_s": 18.0, "own_mb": 6}]
    lines.append({"what": "claims", "workers": 3, "jobs": 60, "calls_a_job": {"stat": 4.5}, "overhead_percent": 0.46})
    job = {"a_class": 10, "jobs": 100, "job_ms": 31.6, "beside_ms": 8.04}
    lines.append({"what": "recover", "classes": 100, "ipc": 0, "cpu_s": 3, "wall_s": 4, "own_mb": 9} | job)
    found = frame(("cpu/a.jsonl", place, about | line) for place, line in enumerate(lines))
    text = table(found)
    assert "| the same, a second time | 0.1 (0.2) | 0.5 (1) | | 1 to 2 MB | 2 s, 1 GB |" in text  # one is too short
    assert "| stage | 1,000 x 10 | 1,000 x 40 |" in text
    assert "| bundle | 1 (2) | 16 (32) | 2.00 | 7 to 8 MB | 2 GB |" in text
    assert "| stage | 1,000 x 10, 224 pixels | 1,000 x 20, 224 pixels |" in text
    assert "| bundle | 9 (9) | 18 (9) | 1.00 | 5 to 6 MB | 2 GB |" in text
    assert "| recover | 100 x 10 | 100 | 32 | 8.0 | 0.8 % | 9 MB |" in text and text.count("8.0 | 0.8 %") == 1
    assert growth(found) == {
        "classes": {"the same, a second time": {"1": 0.1, "10": 0.5}},
        "images a class": {"bundle": {"1": 1.0, "4": 16.0}},
        "images a class of 224 pixels": {"bundle": {"1": 9.0, "2": 18.0}},
    }
    assert growth(frame([])) == {"classes": {}, "images a class": {}}
    assert "| 3 | 60 | 4.5 | 0.5 % |" in text and "commit abc" in text and table(frame([])) == ""


@pytest.mark.parametrize(("workers", "most"), [(3, 1.6), (16, 2.0)])
def test_claims_cost_little_of_a_job_of_a_second_where_a_call_takes_a_millisecond(workers, most):
    """Where each asked all others whether they live, those too that had claimed a moment ago, 16 lost 3.0 %; where it
    met all that they had finished, 3 lost 2.9, 64 lost 53."""
    found = simulate(workers, 20 * workers, latency=1e-3, job=1.0)
    assert found["overhead_percent"] < most and found["done_twice"] == 0
    assert found["seconds"] < 1.2 * found["ideal_seconds"]
