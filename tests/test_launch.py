"""`--gpus 0 --workers N`: the images of one worker from any number, whole runs, and what is refused."""

import json
import os
import signal
import subprocess

import pytest
from launches import ROOT, command, ended, launched, listened_at, run_alone, started, wait_for, workers_of
from safetensors.numpy import load_file
from small import fastcondense, shards

from fastcondense.cli import main
from fastcondense.files import read_json
from fastcondense.tensor_files import read_tensors


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run_alone(tmp_path_factory.mktemp("alone"))


def test_any_number_of_workers_makes_the_same_images(alone, tmp_path):
    """Five here, and three in a whole run, below."""
    run, more = alone
    said = ended(launched("recover", tmp_path / "run", *more, "--gpus", "0", "--workers", "5"))
    assert shards(tmp_path / "run") == shards(run) and len(shards(run)) == 8
    (mine,), (theirs,) = ((out / "teachers").rglob("targets-*") for out in (tmp_path / "run", run))
    assert load_file(mine).keys() == load_file(theirs).keys() and mine.read_bytes() == theirs.read_bytes()
    assert said.count("loader:") == 1 and not list((tmp_path / "run").rglob("*.tmp"))
    assert not list((tmp_path / "run").rglob("parts-*")) and not list((tmp_path / "run").rglob("unfinished-*"))


def test_a_second_launch_helps_and_a_first_that_was_frozen_wakes_up_and_does_the_rest(alone, tmp_path):
    more = [*alone[1], "--train.seeds", "1", "--evaluate.baselines"]
    first = launched("run", tmp_path / "run", *more, "--gpus", "0", "--workers", "2")
    wait_for((tmp_path / "run" / "condensed" / ".jobs.claims").exists)
    for worker in workers_of(first, 2):
        os.kill(worker, signal.SIGSTOP)
    second = launched("run", tmp_path / "run", *more)
    said = ended(second)
    assert "helped another launch on" in said and "student" not in said
    assert shards(tmp_path / "run") == shards(alone[0]) and not (tmp_path / "run" / "result.json").exists()
    (log,) = (tmp_path / "run").glob(f"log-0-*-{second.pid}.jsonl")
    assert sum(json.loads(line)["event"] == "job" for line in log.read_text().splitlines()) > 2
    for worker in workers_of(first, 2):
        os.kill(worker, signal.SIGCONT)
    ended(first)
    assert shards(tmp_path / "run") == shards(alone[0]) and (tmp_path / "run" / "result.json").exists()
    assert not list((tmp_path / "run").rglob("*.claims"))


def test_two_threads_make_the_images_of_one(alone, tmp_path):
    run, more = alone
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run(command("recover", tmp_path / "run", *more), cwd=ROOT, env=environment, check=True)
    assert shards(tmp_path / "run") == shards(run)


def test_a_refusal_is_said_once_and_not_tried_again(alone, tmp_path):
    _, more = alone
    bad = tmp_path / "teacher.safetensors"
    bad.write_bytes(b"not weights")
    process = launched(
        "recover", tmp_path / "run", *more, "--squeeze.weights", str(bad), "--gpus", "0", "--workers", "2"
    )
    said = ended(process, 1)
    assert said.count("fastcondense: ") == 1 and "cannot be read" in said and "again" not in said


def test_options_that_cannot_be(tmp_path, capsys):
    for options, text in {
        ("--gpus", "3"): "--gpus 3: this machine has 0; --gpus 0 --workers N starts CPU workers",
        ("--gpus", "0", "--workers", "0"): "--workers must be at least 1",
        ("--gpus", "0", "--workers", "100000"): "are for 8 each at most",
        ("--gpus", "-1"): "--gpus and --restarts cannot be negative",
    }.items():
        assert fastcondense("recover", tmp_path / "run", *options) == 1
        assert text in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_whole_run_by_three_workers_leaves_what_one_leaves_and_listens_to_nobody(alone, tmp_path):
    run, more = alone
    more = [*more, "--ipc", "2", "--train.seeds", "1", "--evaluate.baselines", "random_hard"]
    process = started("run", tmp_path / "run", *more, "--gpus", "0", "--workers", "3")
    assert listened_at(process) == {"127.0.0.1"}  # DDP over the loopback interface
    ended(process)
    made = shards(tmp_path / "run")
    assert made == {name: data for name, data in shards(run).items() if name in made} and len(made) == 4
    assert fastcondense("run", tmp_path / "alone", *more) == 0
    names = [{path.name for path in folder.iterdir()} for folder in (tmp_path / "run", tmp_path / "alone")]
    assert names[0] == names[1] | {"log-1.jsonl", "log-2.jsonl"}
    results = [read_json(folder / "result.json") for folder in (tmp_path / "run", tmp_path / "alone")]
    assert results[0].keys() == results[1].keys() and results[0]["bytes"] == results[1]["bytes"]
    assert main(["verify", str(tmp_path / "run")]) == 0


def test_two_workers_train_a_teacher_together_and_students_on_imported_images(alone, tmp_path):
    """Each sees a half of every batch, and both report the loss of all."""
    assert main(["export", str(alone[0]), "--format", "folder", "--out", str(tmp_path / "set")]) == 0
    more = ["--gpus", "0", "--workers", "2", "--squeeze.shared", "--images", str(tmp_path / "set")]
    said = ended(launched("train", tmp_path / "run", *more, "--train.seeds", "1", "--evaluate.baselines"))
    (path,) = (tmp_path / "run" / "teachers").rglob("weights.safetensors")
    kept = read_tensors(path)[1]
    assert float(kept["top1"]) > 90 and said.count("teacher zoo/convnet3_w32: epoch 4 of 4") == 1
    assert said.count("student on condensed, seed 0: epoch 4 of 4") == 1
    assert not list((tmp_path / "run").rglob("checkpoint*"))
    logs = [(tmp_path / "run" / name).read_text() for name in ("log.jsonl", "log-1.jsonl")]
    losses = [[json.loads(line)["loss"] for line in log.splitlines() if '"epoch"' in line] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) > 0
