"""Training on several ranks: their batches, labels, gradients and scores are those of one."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small import fastcondense, frozen_network, image_folder
from torch import multiprocessing, nn
from torch.nn import functional as F
from workers import free_port

from fastcondense.data.real import Normalization
from fastcondense.labels.labels import TeacherLabels, student_loss
from fastcondense.labels.view_tables import Span
from fastcondense.labels.views import ReplayedViews, share
from fastcondense.networks.fit import fit
from fastcondense.networks.train_step import Batch
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.settings import Dataset, Labels, Squeeze
from fastcondense.recipe.train import Train
from fastcondense.rng import Stream
from fastcondense.teachers.teacher import Teacher
from fastcondense.workers.distributed import average_buffers, join, world_size

CPU = torch.device("cpu")
DATASET = Dataset(name="digits", image_size=8, resize=8)
CHANGES = {
    "none": {"mix": "none"},
    "cutmix": {},
    "mixup": {"mix": "mixup", "pool": 0.4},
    "shuffle": {"tile_shuffle": 3, "tile_pick": 2},
    "rand": {"rand_augment": (2, 9)},
    "augment": {"mix": "none", "augment": ("flip", "contrast", "cutout")},
}


def views(count=35, **settings):
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalize = Normalization.of(DATASET, CPU)
    return ReplayedViews(images, torch.arange(count) % 5, Labels(**settings), normalize, 3)


def teachers(has_unfused=False):
    nets = [frozen_network("zoo/convnet3_w32", 5, seed) for seed in (0, 1)]
    return [Teacher.of(n, str(k), range(5), range(5), DATASET, has_unfused=has_unfused) for k, n in enumerate(nets)]


# --- shares, without other processes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize(("size", "unit"), [(64, 1), (23, 1), (8, 1), (64, 8), (65, 8), (61, 7), (29, 3)])
def test_shares_are_neighbours_of_whole_groups_and_almost_equal(world, size, unit):
    whole = Span(4, 100, 100 + size)
    shares = [share(whole, rank, world, unit) for rank in range(world)]
    assert [place for part in shares for place in range(part.begin, part.end)] == list(range(100, 100 + size))
    assert all(part.epoch == 4 and (part.begin - 100) % unit == 0 and len(part) for part in shares)
    # a last view alone belongs to the group before
    starts = [begin for begin in range(0, size, unit) if unit == 1 or size - begin > 1]
    sizes = [sum(part.begin <= 100 + begin < part.end for begin in starts) for part in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="a batch of 7 views cannot be shared by 8 ranks; take fewer ranks or another"):
        share(Span(0, 0, 7), 0, 8)
    with pytest.raises(
        ValueError, match="a batch of 17 views, of which 8 belong together, cannot be shared by 3 ranks"
    ):
        list(views(batch_norm="train").epoch(0, Train(batch_size=17), 2, 3))  # 8, and 9


@pytest.mark.parametrize(
    ("settings", "train", "world", "unit"),
    [
        ({}, {}, 8, 1),
        ({"batch_norm": "train"}, {}, 2, 8),
        ({"dropout": True, "batch_norm_size": 4}, {}, 2, 4),
        ({}, {"accumulate": 4}, 4, 16),  # a part for every rank
        ({}, {"accumulate": 4}, 8, 1),
        ({"batch_norm": "train"}, {"accumulate": 8}, 8, 8),
        ({"batch_norm": "train", "batch_norm_size": 16}, {"accumulate": 8}, 4, 16),  # a group is more than a part
    ],
)
def test_parts_and_groups_stay_on_one_rank(settings, train, world, unit):
    assert views(**settings).unit(64, Train(batch_size=64, **train), world) == unit


@pytest.mark.parametrize("world", [2, 8])
@pytest.mark.parametrize("change", CHANGES)
def test_views_of_all_ranks_are_those_of_one(change, world):
    source, train = views(**CHANGES[change]), Train(batch_size=20, epochs=8)
    alone = list(source.epoch(1, train))
    for whole, *parts in zip(alone, *(source.epoch(1, train, rank, world) for rank in range(world)), strict=True):
        assert all(part.whole == whole.span for part in parts)
        for name in ("images", "labels", "partners", "share"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@pytest.mark.parametrize("world", [2, 8])
@pytest.mark.parametrize("settings", [{}, {"batch_norm": "train", "dropout": True, "batch_norm_size": 2}])
def test_labels_of_all_ranks_are_those_of_one(settings, world):
    """To the bit where teachers see the same groups; else to rounding: products of other shapes are summed elsewise."""
    replayed, train = views(46, **settings), Train(batch_size=23)
    source = TeacherLabels(teachers(bool(settings)), Labels(**settings), 1)
    for whole, *parts in zip(
        replayed.epoch(2, train), *(replayed.epoch(2, train, rank, world) for rank in range(world)), strict=True
    ):
        made, wanted = torch.cat([source(part).logits for part in parts], 1), source(whole).logits
        assert torch.equal(made, wanted) if settings else torch.allclose(made, wanted, rtol=1e-4, atol=1e-5)


def test_how_batch_norms_are_synchronised_is_no_part_of_a_students_identity():
    plain, synchronised = Recipe(), Recipe(train=Train(sync_batch_norm=True)).check()
    assert synchronised.sha256() == plain.sha256() and synchronised != plain
    teachers = Recipe(squeeze=Squeeze(shared=True, sync_batch_norm=True)).check()
    assert teachers.sha256() == plain.sha256() and teachers != plain
    with pytest.raises(ValueError, match=r"train.sync_batch_norm needs train.accumulate 1"):
        Recipe(train=Train(sync_batch_norm=True, accumulate=2)).check()
    with pytest.raises(ValueError, match=r"squeeze.sync_batch_norm needs squeeze.accumulate 1"):
        Recipe(squeeze=Squeeze(shared=True, sync_batch_norm=True, accumulate=2)).check()
    with pytest.raises(ValueError, match=r"squeeze.sync_batch_norm needs squeeze.shared"):
        Recipe(squeeze=Squeeze(sync_batch_norm=True)).check()


# --- two processes ---------------------------------------------------------------------------------------------------

LABELS = {"ensemble": "norm-equalized", "priors": (3.0, 9.0)}
TRAIN = Train(epochs=3, batch_size=8, temperature=3.0, loss="mse_ce", ema=0.9, evaluate_every=1, lr=0.01)
FLAGS = (
    "--squeeze.teachers zoo/convnet3_w32 --squeeze.epochs 1 --squeeze.gate-images 0 --recover.iterations 1 "
    "--train.student zoo/convnet3_w32_in --train.seeds 1 --train.epochs 2 --evaluate.baselines full "
    "--evaluate.full-epochs 1 --dataset.name folder --dataset.image-size 8 --dataset.resize 8"
).split()


class Plain(nn.Module):
    """Without BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class Interruption(Exception):
    pass


def train(checkpoint, rank, world, last=3):
    """A student of this rank, and what all its batches showed; ends after so many epochs as if it were killed."""
    replayed, source, seen = views(23, **LABELS), TeacherLabels(teachers(), Labels(**LABELS), 0), []
    torch.manual_seed(7)
    net = Plain()

    def make(item):
        batch = replayed.make(item)
        wanted = source(batch)
        seen.append((item.whole, item.span, batch.images, wanted.logits))
        return Batch(batch.images, wanted, item.num_views)

    def interrupt(entry):
        if entry["epoch"] > last:
            raise Interruption

    arguments = (
        TRAIN,
        lambda epoch: replayed.tables(epoch, TRAIN, rank, world),
        lambda logits, wanted: student_loss(logits, wanted, TRAIN),
        lambda _: {},
        Stream(1, "test"),
        checkpoint,
        interrupt,
    )
    try:
        average, history = fit(net, *arguments, make=make, is_shared=True)
    except Interruption:
        return seen
    return {"net": net.state_dict(), "average": average.state_dict(), "history": history}, seen


def work(rank: int, folder: Path, port: int) -> None:
    """What one of two ranks does: students, begun by two and by one, the buffers of a network, a run's command."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert join(CPU) == CPU and world_size() == 2
    from fastcondense.networks import fit as module

    module._SECONDS_BETWEEN_CHECKPOINTS = 0
    kept = [train(folder / "together", rank, 2), train(folder / "by-one", rank, 2)]
    train(folder / "by-two", rank, 2, last=1)
    net = nn.BatchNorm2d(3)
    net.running_mean += rank + 1
    net.num_batches_tracked += 5 * rank + 2
    average_buffers(net)
    torch.save([*kept, net.state_dict()], folder / f"{rank}.pt")
    from fastcondense.students import students

    write, more = students._write, (*FLAGS, "--data", str(folder / "data"))

    def write_late(*parts):
        time.sleep(1)
        write(*parts)

    students._write = write_late
    assert fastcondense("train", folder / "run", *more) == 0
    finished = [path.parent.parent.name for path in folder.glob("run/students/*/*/seed0/student.json")]
    assert sorted(finished) == ["condensed", "full"]  # on every rank, however late rank 0 writes
    assert fastcondense("evaluate", folder / "run", *more) == 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One rank's student, what it saw, and the folder where two ranks have worked too."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fastcondense.networks.fit._SECONDS_BETWEEN_CHECKPOINTS", 0)
        wanted, seen = train(folder / "alone", 0, 1)
        train(folder / "by-one", 0, 1, last=1)
    data = image_folder(folder / "data", train=7, test=5)
    assert fastcondense("recover", folder / "run", *FLAGS, "--data", str(data)) == 0
    log = (folder / "run" / "log.jsonl").read_text()
    multiprocessing.spawn(work, (folder, free_port()), nprocs=2)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    return folder, wanted, seen, ranks, log


def assert_close(made, wanted):
    for kind in ("net", "average"):
        for name, value in wanted[kind].items():
            torch.testing.assert_close(made[kind][name], value, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(made["history"], wanted["history"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert (mine["epoch"], mine["lr"]) == (theirs["epoch"], theirs["lr"])


def test_two_ranks_train_the_student_of_one(alone):
    _, wanted, _, ranks, _ = alone
    for made, _ in (rank[0] for rank in ranks):
        assert_close(made, wanted)
    for name, value in ranks[0][0][0]["net"].items():
        assert torch.equal(ranks[1][0][0]["net"][name], value)


def test_two_ranks_see_the_views_and_labels_of_one(alone):
    """Crops to the bit; the norms of an ensemble are those of the whole batch."""
    _, _, seen, ranks, _ = alone
    assert len(seen) == 3 * 3
    for whole, *parts in zip(seen, *(rank[0][1] for rank in ranks), strict=True):
        assert [part[0] for part in parts] == [whole[0]] * 2
        assert (parts[0][1].end, parts[1][1].end) == (parts[1][1].begin, whole[1].end)
        assert torch.equal(torch.cat([part[2] for part in parts]), whole[2])
        torch.testing.assert_close(torch.cat([part[3] for part in parts], 1), whole[3], rtol=1e-4, atol=1e-5)


def test_a_training_goes_on_with_another_number_of_ranks(alone, monkeypatch):
    folder, wanted, seen, ranks, _ = alone
    monkeypatch.setattr("fastcondense.networks.fit._SECONDS_BETWEEN_CHECKPOINTS", 1e9)
    resumed, batches = train(folder / "by-two", 0, 1)
    assert_close(resumed, wanted)
    assert len(batches) == 2 * 3
    for mine, theirs in zip(batches, seen[3:], strict=True):
        assert mine[:2] == theirs[:2] and torch.equal(mine[2], theirs[2])
    for made, batches in (rank[1] for rank in ranks):
        assert_close(made, wanted)
        assert [batch[0] for batch in batches] == [batch[0] for batch in seen[3:]]


def test_buffers_are_averaged(alone):
    for rank in alone[3]:
        torch.testing.assert_close(rank[2]["running_mean"], torch.full((3,), 1.5))
        assert rank[2]["num_batches_tracked"] == 2


def test_the_command_trains_one_student_an_arm_and_rank_0_alone_writes(alone, capsys):
    folder, before = alone[0] / "run", alone[4]
    students = sorted(path.parent.parent.name for path in folder.glob("students/*/*/seed0/student.json"))
    assert students == ["condensed", "full"]
    lines = (folder / "log.jsonl").read_text().removeprefix(before).splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events.count("start") == 2 and events.count("epoch") == 2 and events.count("result") == 1
    tested = next(folder.glob("students/*/condensed/seed0/student.json"))
    (entry,) = json.loads(tested.read_text())["history"]
    result = json.loads((folder / "result.json").read_text())
    assert fastcondense("evaluate", folder, *FLAGS, "--data", str(alone[0] / "data")) == 0
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["workers"] == result["baselines"]["full"]["workers"] == [2]
    said = " ".join(capsys.readouterr().out.split())
    assert "students: trained by 2 workers together, each with its share of a batch." in said
    assert result["test_images"] == 15 and result["top1_last"]["mean"] == pytest.approx(entry["top1"], abs=1e-9)
    assert entry["top1"] * 15 / 100 == pytest.approx(round(entry["top1"] * 15 / 100), abs=1e-9)


def test_norms_of_an_uneven_batch_are_summed_in_its_order():
    """Squares are brought together before they are added: the same bits as of one rank."""
    from fastcondense.labels.labels import batch_norms

    torch.manual_seed(0)
    logits = torch.randn(2, 7, 5)
    with pytest.MonkeyPatch.context() as patched:
        parts = []
        patched.setattr("fastcondense.labels.labels.all_sum", parts.append)
        for span in (Span(0, 10, 14), Span(0, 14, 17)):
            batch_norms(logits[:, span.begin - 10 : span.end - 10], span, Span(0, 10, 17))
    together = sum(parts)
    assert torch.equal(together.sum(1).sqrt(), batch_norms(logits, Span(0, 10, 17), None))
    np.testing.assert_allclose(together.sum(1).sqrt(), np.linalg.norm(logits.double().flatten(1), axis=1), rtol=1e-12)
