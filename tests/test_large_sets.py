"""Sets in their shards: what is read is what was written, and memory does not grow with the images a class."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcondense.cli import main
from fastcondense.data.jobs import jobs
from fastcondense.data.real import Normalization
from fastcondense.labels import resident
from fastcondense.labels.resident import HostImages, place
from fastcondense.labels.views import ReplayedViews
from fastcondense.recipe.recipe import load
from fastcondense.recipe.settings import Dataset, Labels
from fastcondense.recipe.train import Train
from fastcondense.recover import representatives
from fastcondense.run import Run
from fastcondense.sets import stored_images
from fastcondense.sets.condensed import CondensedSet, read_set, shard_path, write_shard
from fastcondense.sets.loss_bands import read_loss_band
from fastcondense.sets.stored_images import StoredImages
from fastcondense.students.arms import Arm
from fastcondense.students.real_views import real_views
from fastcondense.students.students import task_of
from fastcondense.tensor_files import read_tensors, write_tensors

ROOT = Path(__file__).parents[1]
SIDE, MORE = 64, 400
FLAGS = (
    f"--recipe sre2l/digits-ipc20 --dataset.image-size {SIDE} --dataset.resize {SIDE} --recover.iterations 2 "
    "--squeeze.teachers zoo/convnet3_w32 --squeeze.epochs 1 --squeeze.gate-images 0 --evaluate.baselines "
    "--train.student zoo/convnet1 --device cpu --recover.snapshots 1"
).split()
COMMANDS = """
import json, sys
from pathlib import Path
import torch
from fastcondense.cli import main
from fastcondense.report import looks
torch.set_num_threads(1)
looks.embed = lambda *_: None  # a t-SNE of thousands of features, which holds no images

def peak():
    return 1024 * next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)

out, flags, found = sys.argv[1], json.loads(sys.argv[2]), {}
for name in ("recover", "inspect", "export"):
    Path("/proc/self/clear_refs").write_text("5")
    arguments = [out, "--out", out + "-folder"] if name == "export" else [*flags, "--out", out]
    assert main([name, *arguments]) == 0
    found[name] = peak()
print(json.dumps(found))
"""


def peaks(out: Path, ipc: int) -> dict[str, int]:
    """Most bytes that a process held while it made the last jobs of a set, described it, and exported it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back at once
    command = [sys.executable, "-c", COMMANDS, str(out), json.dumps([*FLAGS, "--ipc", str(ipc)])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_images_a_class(tmp_path, monkeypatch):
    """400 images a class more are 49 MB; recover, inspect and export do not hold half of that more (10 to 16 MB of
    other things came and went when it was tried; a set that is read whole is there at least once)."""
    monkeypatch.setattr("fastcondense.files.os.fsync", lambda _: None)  # hundreds of them take minutes on a busy disk
    few, many = tmp_path / "few", tmp_path / "many"
    assert main(["recover", *FLAGS, "--out", str(few)]) == 0
    shutil.copytree(few, many)
    images = torch.randint(0, 256, (10, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for job in jobs(load("sre2l/digits-ipc420"), 10)[20:]:
        write_shard(many / "condensed", job, images, torch.zeros(2, 3), {"seconds": "1"})
    for folder in (few, many):  # the last two jobs are made, beside all that are finished
        for path in sorted((folder / "condensed").glob("shard-*"))[-2:]:
            path.unlink()
    small, large = peaks(few, 20), peaks(many, 20 + MORE)
    added = MORE * 10 * 3 * SIDE**2
    for command in small:
        assert large[command] - small[command] < added / 2, (command, small, large)
    assert len(list((tmp_path / "many-folder").rglob("*.png"))) == 10 * (20 + MORE)


@pytest.fixture
def stored(tmp_path):
    """A set of 3 classes and 4 slots in shards of two classes, and its images."""
    recipe = load("sre2l/digits-ipc4")
    made = jobs(recipe, 3)
    images = torch.randint(0, 256, (3, 4, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for job in made:
        losses = torch.arange(6.0).view(2, 3) + job.index
        write_shard(tmp_path, job, images[job.classes(), job.slots()], losses, {})
    return tmp_path, made, images


def test_parts_of_a_stored_set_are_those_of_the_tensor(stored):
    folder, made, images = stored
    names = ("a", "b", "c")

    def both(change=lambda condensed: condensed):
        for condensed in (read_set(folder, made, 4, names), CondensedSet(images, names)):
            yield change(condensed)

    for change in (
        lambda c: c,
        lambda c: c.first(2),
        lambda c: c.first(3).first(2),
    ):
        mine, wanted = both(change)
        assert mine.shape == wanted.shape and mine.num_images == len(wanted.flat()[1])
        assert mine.digests == wanted.digests
        assert torch.equal(mine.rows(range(2, 6)), wanted.images.flatten(0, 1)[2:6])
        assert torch.equal(mine.of_class(1), wanted.images[1])
        assert torch.equal(mine.corner(2, 9), wanted.images[:2])
        assert torch.equal(mine.images, wanted.images) and torch.equal(mine.flat()[1], wanted.flat()[1])
    assert torch.equal(read_set(folder, made, 2, names).images, images[:, :2])
    with pytest.raises(ValueError, match="the set has 4 images of each class, 5 are wanted"):
        read_set(folder, made, 4, names).first(5)


def test_a_set_in_class_order_is_read_twice_and_not_for_every_class(stored, monkeypatch):
    """Each class lies in as many shards as it has images; a shard is read whole once, to see that it is what it was."""
    folder, made, images = stored
    whole, some, preadv = [], [], os.preadv

    def count(*arguments):
        some.append(sum(map(len, arguments[1])))
        return preadv(*arguments)

    monkeypatch.setattr(
        stored_images, "read_tensors", lambda path, *names: whole.append(path) or read_tensors(path, *names)
    )
    condensed = read_set(folder, made, 4, ("a", "b", "c"))
    whole.clear()
    monkeypatch.setattr(stored_images.os, "preadv", count)
    found = condensed.digests
    assert len(whole) == len(made) and sum(some) <= images.nbytes
    assert found == CondensedSet(images, condensed.classes).digests and condensed.sha256 != found[0]
    ids = torch.tensor([[7, 0], [3, 3], [11, 5]])
    assert torch.equal(condensed.unread()[0][ids].read(), images.flatten(0, 1)[ids])
    assert len(whole) == len(made)
    path = shard_path(folder, 0)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"shard-00000.safetensors cannot be read: it has become shorter"):
        condensed.of_class(0)


def test_a_large_set_stays_in_its_files_while_it_is_trained_on(stored, monkeypatch):
    folder, made, images = stored
    condensed, device = read_set(folder, made, 4, ("a", "b", "c")), torch.device("cpu")
    pixels, labels = condensed.unread()
    assert torch.equal(place(pixels, device), images.flatten(0, 1))
    monkeypatch.setattr(resident, "_SMALL", pixels.nbytes - 1)
    host = place(pixels, device)
    assert isinstance(host, HostImages) and isinstance(host.pixels, StoredImages) and len(host.pixels) == 12
    normalize = Normalization.of(Dataset(name="digits", image_size=5, resize=5), device)
    seen = [ReplayedViews(of, labels, Labels(), normalize, 3) for of in (host, images.flatten(0, 1))]
    for mine, theirs in zip(*(views.epoch(0, Train(batch_size=5)) for views in seen), strict=True):
        assert torch.equal(mine.images, theirs.images) and torch.equal(mine.labels, theirs.labels)


@pytest.mark.parametrize("arm", [Arm("random", "hard"), Arm("herding", "hard"), Arm("full", "soft")])
def test_large_baselines_are_read_as_they_are_shown(arm, tmp_path, monkeypatch):
    """Each process held all 200,000 of them; now two for each view of a batch, and views are the same to the bit."""
    taken: list[int] = []
    read_squares = representatives.read_squares
    monkeypatch.setattr(
        representatives, "read_squares", lambda run, ids: taken.append(len(ids)) or read_squares(run, ids)
    )
    recipe = load("sre2l/digits-ipc10")
    hard = {"source": "hard", "mix": "cutmix", "mix_probability": 1.0}  # so that no teacher is asked
    recipe = replace(recipe, train=replace(recipe.train, batch_size=16), labels=replace(recipe.labels, **hard))
    run = Run(recipe, tmp_path)

    def views() -> list[torch.Tensor]:
        taken.clear()
        if arm.images == "full":
            return [of.make(table).images for of, table in real_views(run, 0, recipe.labels)(0)]
        task = task_of(run, arm, 0, CondensedSet(torch.zeros(10, 1, 3, 8, 8), run.real.classes), ())
        return [task.make(item).views for item in task.batches(0)]

    in_memory, most = views(), max(taken)
    monkeypatch.setattr(resident, "_SMALL", 0)
    assert all(map(torch.equal, in_memory, views())) and len(in_memory) == 7
    assert most == 100 and max(taken) <= 2 * 16 and sum(taken) > 100


def test_what_is_missing_or_damaged_is_named(stored):
    folder, made, _ = stored
    with pytest.raises(ValueError, match="does not hold 5 images of each of 3 classes"):
        read_set(folder, made, 5, ("a", "b", "c"))
    condensed = read_set(folder, made, 4, ("a", "b", "c"))
    path = shard_path(folder, 2)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"shard-00002.safetensors cannot be read"):
        condensed.of_class(0)
    with pytest.raises(ValueError, match=r"shard-00002.safetensors cannot be read"):
        read_set(folder, made, 4, ("a", "b", "c"))
    path.unlink()
    with pytest.raises(ValueError, match=r"shard-00002.safetensors is missing; run recover again"):
        read_set(folder, made, 4, ("a", "b", "c"))


def test_loss_bands_are_those_of_all_curves_at_once(tmp_path):
    curves = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(1))
    paths = [tmp_path / f"{k}.safetensors" for k in range(5)]
    for path, losses in zip(paths, curves, strict=True):
        write_tensors(path, {"losses": losses}, {})
    band = read_loss_band(paths)
    values = curves.double().numpy()
    assert band.num_jobs == 5 and band.middle.tolist() == list(range(7))
    for mine, wanted in ((band.mean, values.mean(0)), (band.low, values.min(0)), (band.high, values.max(0))):
        assert mine == pytest.approx(wanted, rel=1e-12)
    joined = read_loss_band(paths, 3)  # iterations 0 1, 2 3 4, 5 6
    parts = [values[:, 0:2].mean(1), values[:, 2:5].mean(1), values[:, 5:7].mean(1)]
    assert joined.middle.tolist() == [0.5, 3, 5.5]
    assert joined.high == pytest.approx(np.array([part.max(0) for part in parts]), rel=1e-12)
    assert joined.mean == pytest.approx(np.array([part.mean(0) for part in parts]), rel=1e-12)
    assert read_loss_band([]) is None
