"""The plan of a run: memory beside what a process takes, bytes beside what a run leaves, times beside a clock."""

import gc
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import fastcondense

from fastcondense.cli import main
from fastcondense.data.jobs import jobs
from fastcondense.networks.precision import on_threads
from fastcondense.options import PlanOptions, parse_plan
from fastcondense.plan import timing, work
from fastcondense.plan.advice import advice
from fastcondense.plan.extent import Extent, extent
from fastcondense.plan.memory import Footprint, LiveTensors
from fastcondense.plan.plan import Plan
from fastcondense.plan.timing import Timing, time_steps
from fastcondense.recipe.recipe import from_toml, load
from fastcondense.students.costs import views_an_epoch
from fastcondense.words import seconds_in_words

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
GROWTH = """
import gc, sys, torch
from pathlib import Path
from fastcondense.data.jobs import jobs
from fastcondense.plan import stand_ins, steps
from fastcondense.plan.job_size import recover_footprint
from fastcondense.recipe.recipe import load
torch.set_num_threads(1)
recipe, classes, device = load(sys.argv[1]), 100, torch.device("cpu")
first = jobs(recipe, classes)[0]
teachers = [stand_ins.teacher(recipe, name, classes, device) for name in stand_ins.matched(recipe)]
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
def growth(count):
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    steps.recover_step(recipe, stand_ins.smaller(first, count, classes), teachers, device)()
    return status("VmHWM") - before
growth(4)
print(growth(60) - growth(20), recover_footprint(recipe, classes, device).per_image)
"""

MATCHING = """
[dataset]
name = "cifar100"
image_size = 32
[squeeze]
teachers = ["zoo/convnet3_w64"]
[recover]
iterations = 50
statistics = ["bn", "conv", "patch"]
patch_size = 4
targets = ["global", "category"]
target_weights = [0.5, 0.5]
flatness_weight = 0.25
"""


def test_computed_memory_is_what_a_process_takes(tmp_path):
    """Within 10 % of what 40 more images add, to a process whose C library gives back what is freed."""
    (tmp_path / "mine.toml").write_text(MATCHING)
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "mine.toml")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    measured, per_image = map(float, said.split())
    assert measured == pytest.approx(40 * per_image, rel=0.1) and per_image > 1e6


def test_live_tensors_are_counted_by_hand():
    with LiveTensors() as count:
        x = torch.zeros(1000, dtype=torch.float64)  # 8000
        y = x.view(10, 100)[2:]  # the same memory
        z = (x + 1) * 2  # 8000 for a while, and 8000
        assert (count.live, count.peak) == (16000, 24000)
        del z
        count.restart()
        assert (count.live, count.peak) == (8000, 8000)
        del x
        assert count.live == 8000  # y holds it
        del y
        assert count.live == 0
        held = [torch.zeros(10)]
        held.append(held)  # as what is traced is held
        del held
        assert count.live == 40 and gc.get_freeze_count() > 100_000  # which no collection looks at
        count.restart()
        assert count.live == 0
    assert gc.get_freeze_count() == 0


def test_footprint_is_the_line_through_two_sizes():
    line = Footprint.of(lambda count: 100 + 7 * count)
    assert (line.fixed, line.per_image, line.at(10)) == (100, 7, 170)
    assert line.largest(170) == 10 and line.largest(169) == 9 and line.largest(50) == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan") / "run"
    more = ("--recover.iterations", "100", "--recover.initial.kind", "mosaic", "--labels.source", "stored")
    assert fastcondense("run", folder, *more, "--evaluate.baselines", "random_soft") == 0
    return folder


def test_disk_is_what_a_run_leaves(finished):
    recipe = load(str(finished / "recipe.toml"))
    planned = Plan(recipe, extent(recipe, None), 1, CPU, 1.0).disk

    def held(pattern: str) -> int:
        return sum(path.stat().st_size for path in finished.glob(pattern))

    assert planned["images"] == 10 * 2 * 3 * 8 * 8
    assert planned["teachers"] == pytest.approx(held("teachers/*/weights.safetensors"), rel=0.05)
    assert planned["students"] == pytest.approx(held("students/*/*/*/weights.safetensors"), rel=0.05)
    assert planned["rankings"] == pytest.approx(held("initial-*/*"), rel=0.5)  # small files: most of it is headers
    assert planned["labels"] == 2 * 4 * 20 * 10 * 2 == held("labels/*/logits.npy") - 2 * 128


def test_time_of_recover_is_that_of_a_clock(finished):
    """Within a factor of three: the machine may be busy with something else."""
    recipe = load(str(finished / "recipe.toml"))
    planned = Plan(recipe, extent(recipe, None), 1, CPU, 4.0)
    seconds, _ = planned._job_seconds()
    from fastcondense.tensor_files import read_metadata

    paths = sorted(finished.glob("condensed/shard-*"))
    clock = sorted(float(read_metadata(path)["seconds"]) for path in paths)
    assert len(seconds) == len(paths) == 4
    assert clock[1] / 3 < seconds[0] < 3 * clock[2]  # the first of all compiles


def test_times_are_extrapolated_on_a_line():
    measured = Timing({4: 1.0, 8: 1.8})
    assert measured.at(8) == 1.8 and measured.at(4) == 1.0
    assert measured.at(28) == pytest.approx(5.8) and measured.at(6) == pytest.approx(1.4)
    assert Timing({10: 2.0}).at(30) == pytest.approx(6.0)
    assert Timing({4: 1.0, 8: 1.0}).at(80) == pytest.approx(10.0)  # no line to go on with: in proportion


def test_sizes_are_measured_until_the_time_is_up(monkeypatch):
    now, made = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])

    def make(count):
        made.append(count)

        def step():
            now[0] += 0.1 * count

        return step

    assert time_steps(make, 100, CPU, budget=12.0).seconds == pytest.approx({4: 0.4, 8: 0.8, 16: 1.6})
    assert made == [4, 8, 16]  # 1.6 + 3.2 + 6.4 s are spent, and 32 images would take 12.8
    assert sorted(time_steps(make, 5, CPU, budget=0.0).seconds) == [4, 5]


def test_jobs_are_shared_out_largest_first():
    assert work.makespan([5, 4, 3, 3, 3], 2) == 10  # 5 3 (3?) and 4 3 3
    assert work.makespan([1.0] * 500, 8) == 63 and work.makespan([2, 1], 10**12) == 2


def test_work_of_recipes():
    size = Extent(1000, 1281167, 50000, "dataset.counts")
    rded = load("rded/imagenet1k-ipc10")
    assert work.crops_a_class(rded, size) == (300 * 5, 300)
    edc = replace(rded.recover.initial, candidates=0, preselected=300, one_per_image=False)
    edc_recipe = replace(rded, recover=replace(rded.recover, initial=edc))
    assert work.crops_a_class(edc_recipe, size) == (1281 + 1500, 1500)
    assert views_an_epoch(rded, 1000) == 10000
    lpld = replace(rded, labels=replace(rded.labels, pool=0.5), train=replace(rded.train, batch_size=3000))
    assert views_an_epoch(lpld, 1000) == 9000


def test_imagenet_is_planned_without_its_data(capsys):
    """1,000 classes and 1,281,167 images stand in the recipe; its networks are made small here."""
    flags = "--squeeze.teachers zoo/convnet3_w32 --squeeze.weights train --train.student zoo/convnet1 --seconds 1"
    sizes = "--dataset.image-size 48 --recover.batch-size 50 --train.batch-size 16 --squeeze.batch-size 16"
    assert main(["plan", "sre2l/imagenet1k-ipc200", "--gpus", "64", *flags.split(), *sizes.split()]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1000 classes and 1281167 training images by dataset.counts; 4000 jobs of up to 50 images" in said
    assert "on 64 workers" in said and "│ 1.4 GB │" in said  # 200,000 images of 3 x 48 x 48, on disk alone
    assert "condensed images stay in their files" in " ".join(said.replace("│", " ").split())
    for stage in ("squeeze", "recover", "train", "evaluate"):
        assert f"│ {stage}" in said


def test_eight_workers_take_an_eighth_of_the_jobs_time():
    recipe = replace(load("sre2l/digits-ipc16"), recover=replace(load("sre2l/digits").recover, iterations=10))
    planned = Plan(recipe, extent(recipe, None), 8, CPU, 2.0)
    stage = planned._recover()
    assert stage.one == pytest.approx(8 * stage.wall) and len(planned.jobs) == 16


@pytest.mark.parametrize("name", ["rded/digits", "cim/digits", "mdc/digits", "fadrm/digits"])
def test_every_kind_of_method_is_planned(name):
    recipe = load(name)
    small = replace(recipe, train=replace(recipe.train, student="zoo/convnet1"), ipc=2)
    made = Plan(small, extent(small, None), 2, CPU, 0.5)
    assert [stage.name for stage in made.times] == ["squeeze", "recover", "train", "evaluate"]
    assert made.times[1].one >= made.times[1].wall > 0 and made.times[2].wall > 0
    assert made.disk["images"] == 10 * 2 * 3 * 8 * 8


def test_teachers_are_shared_out_or_shared(monkeypatch):
    """Two equal teachers on two workers take half the time, on four no less; with squeeze.shared a quarter."""
    monkeypatch.setattr("fastcondense.plan.plan.time_steps", lambda *_: Timing({1: 0.001, 64: 0.064, 128: 0.128}))
    recipe = load("sre2l/digits")
    two = replace(recipe.squeeze, teachers=("zoo/convnet3_w32", "zoo/convnet3_w64"))

    def squeeze(num_workers, **changes):
        changed = replace(recipe, squeeze=replace(two, **changes))
        return Plan(changed, extent(changed, None), num_workers, CPU)._squeeze()

    assert squeeze(2).wall == pytest.approx(squeeze(2).one / 2)
    assert squeeze(4).wall == squeeze(2).wall
    training = 2 * 30 * 23 * 0.064  # teachers, epochs, updates
    checks = squeeze(1).one - training
    assert squeeze(4, shared=True).wall == pytest.approx(training / 4 + checks)


def test_a_plan_of_days_says_what_takes_less(monkeypatch):
    """What it advises is planned, too: half as much takes half the time, more workers what is said of them."""
    monkeypatch.setattr("fastcondense.plan.plan.time_steps", lambda *_: Timing({1: 1.0, 1000: 1000.0}))
    recipe = load("sre2l/digits-ipc16")

    def planned(num_workers=1, **changes):
        tree = replace(recipe, ipc=changes.pop("ipc", 16))
        for name, value in changes.items():
            part, field = name.split("__")
            tree = replace(tree, **{part: replace(getattr(tree, part), **{field: value})})
        return Plan(tree, extent(tree, None), num_workers, CPU)

    whole = planned()
    lines = {line.split(" takes ")[0]: line for line in advice(whole)}
    iterations, epochs, seeds = recipe.recover.iterations, recipe.train.epochs, recipe.train.seeds
    assert lines["recover"].startswith(
        f"recover takes {seconds_in_words(whole.wall('recover'))}: --recover.iterations {iterations // 2} or --ipc 8 "
    )
    for change in ({"recover__iterations": iterations // 2}, {"ipc": 8}):
        assert planned(**change).wall("recover") == pytest.approx(whole.wall("recover") / 2)
    count = int(re.search(r"--gpus (\d+) takes", lines["recover"])[1])
    some = planned(count).wall("recover")
    assert f"--gpus {count} takes {seconds_in_words(some)}" in lines["recover"] and count in (2, 4, 8, 16)
    assert count == 16 or some <= 12 * 3600 < planned(count // 2).wall("recover")
    assert f"--train.epochs {epochs // 2} takes half" in lines["train"]
    assert planned(train__epochs=epochs // 2).wall("train") == pytest.approx(whole.wall("train") / 2)
    one = whole.wall("train") / (seeds * (1 + len(recipe.evaluate.baselines)))
    assert f"students of {seconds_in_words(one)} on average" in lines["train"]
    often, half = (planned(train__evaluate_every=every) for every in (1, 2))
    assert any(line.endswith(": --train.evaluate-every 2 takes half") for line in advice(often))
    assert half.wall("evaluate") == pytest.approx(often.wall("evaluate") / 2)
    monkeypatch.setattr("fastcondense.plan.plan.time_steps", lambda *_: Timing({1: 1e-6, 1000: 1e-3}))
    assert advice(planned()) == []


def test_one_worker_has_one_column_of_time(capsys):
    few = "--gpus 0 --workers 1 --seconds 0.1 --train.student zoo/convnet1".split()
    assert main(["plan", "rded/digits-ipc1", *few]) == 0
    said = capsys.readouterr().out
    head = next(line for line in said.splitlines() if "known from" in line)
    assert re.findall(r"\w[\w ]*\w", head) == ["stage", "time", "known from"] and "worker-hours" not in said


def test_steps_are_measured_on_the_threads_that_a_worker_has(monkeypatch, capsys):
    """Of four threads recover has one, because it is reproducible; two workers on the CPU have two each."""
    few = "sre2l/digits-ipc1 --train.student zoo/convnet1 --squeeze.teachers zoo/convnet1 --device cpu".split()

    def threads(*more):
        seen = []

        def noted(*_):
            seen.append(torch.get_num_threads())
            return Timing({1: 0.001})

        monkeypatch.setattr("fastcondense.plan.plan.time_steps", noted)
        with on_threads(4):
            assert main(["plan", *few, *more]) == 0
        return seen

    assert set(alone := threads()) == {1, 4} and "share its cores" not in capsys.readouterr().out
    shared = threads("--gpus", "0", "--workers", "2")
    assert shared == [min(count, 2) for count in alone]
    assert "steps were measured on 2 threads, which is one's part" in " ".join(capsys.readouterr().out.split())
    assert 1 not in threads("--recover.no-reproducible")


def test_what_plan_refuses(capsys):
    assert main(["plan", "sre2l/nothing"]) == 1
    assert "there is no recipe 'sre2l/nothing'" in capsys.readouterr().err
    assert main(["plan", "sre2l/imagenet1k", "--dataset.counts", "0", "0", "0"]) == 1
    assert "plan needs --data DIR, or --dataset.counts" in capsys.readouterr().err
    assert main(["plan", "sre2l/digits", "--gpus", "-1"]) == 1
    assert "--gpus of 0 or more" in capsys.readouterr().err


def test_counts_do_not_change_a_recipe():
    recipe = from_toml('[dataset]\nname = "digits"\ncounts = [10, 1437, 360]', "mine")
    assert recipe.sha256() == from_toml('[dataset]\nname = "digits"', "mine").sha256()
    real = load("sre2l/digits")
    assert Extent(*real.dataset.counts, "the data") == extent(real, None)


def test_a_recipe_is_named_without_a_flag():
    options = parse_plan(PlanOptions, "plan", "", ["rded/cifar10-ipc50", "--gpus", "4"])
    assert (options.launch.gpus, options.settings.ipc, options.settings.method) == (4, 50, "rded")
    assert len(jobs(options.settings, 10)) > 1
