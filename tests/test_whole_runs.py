"""Runs of the digits and of image folders from end to end: their files, again, killed, interrupted, and refused."""

import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from launches import launched
from PIL import Image
from small import FLAGS, fastcondense, image_folder, said, shards

from fastcondense.cli import main
from fastcondense.files import read_json
from fastcondense.recover import stage as condense
from fastcondense.run import Run
from fastcondense.tensor_files import read_tensors


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that went through undisturbed."""
    out = tmp_path_factory.mktemp("run") / "digits"
    assert fastcondense("run", out) == 0
    return out


def test_run_leaves_all_files_and_an_honest_result(finished):
    for name in ("recipe.toml", "environment.json", "log.jsonl", "condensed/grid.png", "condensed/losses.png"):
        assert (finished / name).stat().st_size > 0
    result = json.loads((finished / "result.json").read_text())
    for scores in (result, *result["baselines"].values()):
        for key in ("top1_last", "top1_best", "top5_last"):
            assert 0 <= scores[key]["mean"] <= 100 and scores[key]["std"] >= 0
        assert scores["top1_best"]["mean"] >= scores["top1_last"]["mean"]
    assert set(result["baselines"]) == {"random_soft", "random_hard"}
    assert (result["dataset"], result["method"], result["ipc"], result["epochs"], result["seeds"]) == (
        ("digits", "sre2l", 2, 4, 2)
    )
    assert result["bytes"]["labels"] == 0
    assert result["bytes"]["images"] == 10 * 2 * 3 * 8 * 8
    assert set(result["seconds"]) == {"squeeze", "recover", "train", "evaluate"} and min(result["seconds"].values()) > 0
    assert len(result["recipe_sha256"]) == 64 and result["versions"]["torch"] == torch.__version__
    assert all(json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines())
    assert not list(finished.rglob("*.tmp")) and not list(finished.rglob("checkpoint*"))


def test_the_table_holds_the_stored_students_accuracy(finished):
    """top1_last is recomputed here from the stored weights with plain numpy bookkeeping."""
    from fastcondense.data import datasets
    from fastcondense.networks import zoo
    from fastcondense.recipe import recipe

    settings = recipe.load(str(finished / "recipe.toml"))
    test = datasets.load(settings.dataset, None).test
    mean, std = (np.array(x)[:, None, None] for x in (settings.dataset.mean, settings.dataset.std))
    x = torch.from_numpy(((test.images.transpose(0, 3, 1, 2) / 255 - mean) / std).astype(np.float32))
    scores = []
    for path in sorted(finished.glob("students/*/condensed/seed*/weights.safetensors")):
        net = zoo.build("zoo/convnet1", 10)
        net.load_state_dict(read_tensors(path)[0])
        predicted = net.eval()(x).argmax(1).numpy()
        scores.append(100 * (predicted == test.labels).mean())
    assert len(scores) == 2
    stored = json.loads((finished / "result.json").read_text())["top1_last"]
    assert stored["mean"] == pytest.approx(np.mean(scores)) and stored["std"] == pytest.approx(np.std(scores, ddof=1))


def test_images_are_the_classes_of_the_manifest(finished):
    manifest = read_json(finished / "condensed" / "manifest.json")
    assert manifest["classes"] == [str(k) for k in range(10)]
    assert manifest["replay"]["seeds"] == [0, 1] and len(manifest["fingerprint"]["logits"]) == 40
    for k, path in enumerate(sorted((finished / "condensed").glob("shard-*"))):
        shard, _ = read_tensors(path)
        assert shard["images"].shape == (5, 3, 8, 8) and shard["images"].dtype == torch.uint8
        assert (
            shard["classes"].tolist() == list(range(5 * (k % 2), 5 * (k % 2) + 5))
            and shard["slots"].tolist() == [k // 2] * 5
        )
    assert np.asarray(Image.open(finished / "condensed" / "grid.png")).shape == (10 * 68 - 4, 2 * 68 - 4, 3)


def test_a_second_run_changes_nothing(finished, capsys):
    before = shards(finished)
    result = json.loads((finished / "result.json").read_text())
    assert fastcondense("run", finished) == 0
    assert shards(finished) == before
    again = json.loads((finished / "result.json").read_text())
    assert again == result
    assert "4 of 4 jobs are finished already" in capsys.readouterr().out


def test_stages_one_by_one_give_the_same_images_and_scores(finished, tmp_path):
    for command in ("squeeze", "recover", "relabel", "train", "evaluate", "inspect"):
        assert fastcondense(command, tmp_path / "r") == 0
    assert shards(tmp_path / "r") == shards(finished)
    one, other = (json.loads((p / "result.json").read_text()) for p in (finished, tmp_path / "r"))
    assert one["top1_last"] == other["top1_last"]
    manifests = [read_json(p / "condensed" / "manifest.json") for p in (finished, tmp_path / "r")]
    assert manifests[0]["replay"] == manifests[1]["replay"]


def test_the_folder_of_a_run_names_it(finished, tmp_path, capsys):
    assert main(["evaluate", str(finished), "--device", "cpu"]) == 0
    assert "sre2l/digits-ipc2" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "neither the folder of a run" in said(capsys)
    assert main(["evaluate", str(finished), "--recipe", "sre2l/digits-ipc2"]) == 1
    assert "has its own recipe" in said(capsys)


def test_killed_at_any_moment_the_images_are_bit_identical(finished, tmp_path):
    """SIGKILL in the teacher's training and after each job, the last time in the middle of a write."""
    out = tmp_path / "killed"
    for wanted in ("teachers/*/checkpoint-*.pt", "condensed/shard-00000*", "condensed/shard-00001*"):
        process = launched("recover", out, is_saved_often=True)
        deadline = time.monotonic() + 120
        while not list(out.glob(wanted)) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert list(out.glob(wanted))
    (out / "condensed" / ".shard-00003.safetensors.1.tmp").write_bytes(b"half a file")
    (out / "condensed" / "shard-00002.safetensors").write_bytes(b"damaged")
    assert fastcondense("recover", out) == 0
    assert shards(out) == shards(finished)


def test_an_interrupted_training_does_not_go_on_with_other_settings(tmp_path):
    """The teacher is stopped after two epochs; with other settings it must train as if from nothing."""

    def interrupt(*_):
        raise KeyboardInterrupt

    more = ["--squeeze.lr", "0.01"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcondense.networks.fit._SECONDS_BETWEEN_CHECKPOINTS", 0)
        assert fastcondense("squeeze", tmp_path / "clean", *more) == 0
        patch.setattr(Run, "report_epoch", interrupt)
        assert fastcondense("squeeze", tmp_path / "mixed", "--squeeze.evaluate-every", "3") == 130
    assert list((tmp_path / "mixed").glob("teachers/*/checkpoint-*.pt"))
    assert fastcondense("squeeze", tmp_path / "mixed", *more) == 0
    weights = [read_tensors(next((tmp_path / run).glob("teachers/*/weights*")))[0] for run in ("clean", "mixed")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_larger_ipc_goes_on_from_the_finished_images(finished, tmp_path):
    out = tmp_path / "r"
    assert fastcondense("recover", out, "--ipc", "1") == 0
    first = shards(out)
    assert len(first) == 2 and fastcondense("recover", out) == 0
    assert first.items() <= shards(out).items() and shards(out) == shards(finished)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--recover.lr", "0.2"], "recover.lr was 0.1, now 0.2"),
        (["--squeeze.epochs", "5"], "squeeze.epochs was 4, now 5"),
    ],
)
def test_another_recipe_is_refused(finished, capsys, more, words):
    before, recipe = shards(finished), (finished / "recipe.toml").read_bytes()
    assert fastcondense("recover", finished, *more) == 1
    assert words in said(capsys)
    assert shards(finished) == before and (finished / "recipe.toml").read_bytes() == recipe


def test_train_before_recover_and_evaluate_before_train(tmp_path, capsys):
    assert fastcondense("train", tmp_path / "r") == 1
    assert "run recover first" in said(capsys)
    assert fastcondense("recover", tmp_path / "r") == 0
    capsys.readouterr()
    assert fastcondense("evaluate", tmp_path / "r") == 1
    assert "run train first" in said(capsys)


FOLDER = (
    "--recipe sre2l/digits-ipc2 --dataset.name folder --dataset.image-size 16 --dataset.resize 16 --squeeze.epochs 4 "
    "--squeeze.teachers zoo/convnet2 --squeeze.gate-images 4 --recover.iterations 5 --train.epochs 2 --train.seeds 1 "
    "--train.student zoo/convnet1 --evaluate.baselines random_soft full --evaluate.full-epochs 1 --device cpu"
).split()


def test_an_image_folder_goes_all_the_way(tmp_path):
    data = image_folder(tmp_path / "data")
    assert main(["run", *FOLDER, "--data", str(data), "--out", str(tmp_path / "r")]) == 0
    result = read_json(tmp_path / "r" / "result.json")
    assert set(result["baselines"]) == {"random_soft", "full"} and result["test_images"] == 12
    assert read_json(tmp_path / "r" / "condensed" / "manifest.json")["classes"] == ["class0", "class1", "class2"]


def test_a_broken_image_is_named_and_nothing_is_lost(tmp_path, capsys):
    data = image_folder(tmp_path / "data", train=8)
    victim = data / "train" / "class1" / "3.png"
    good = victim.read_bytes()
    command = ["run", *FOLDER, "--data", str(data), "--out", str(tmp_path / "r")]
    for content in (b"", good[: len(good) // 2]):
        victim.write_bytes(content)
        assert main(command) == 1
        assert str(victim) in said(capsys)
    victim.write_bytes(good)
    assert main(command) == 0


def test_a_class_with_too_few_images_is_named(tmp_path, capsys):
    data = image_folder(tmp_path / "data", train=5)
    for k in range(1, 5):
        (data / "train" / "class2" / f"{k}.png").unlink()
    assert main(["run", *FOLDER, "--data", str(data), "--out", str(tmp_path / "r")]) == 1
    assert "class 'class2' has 1 training images" in said(capsys)
    assert not (tmp_path / "r").exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path, capsys):
    from fastcondense.networks import zoo

    torch.save(zoo.build("zoo/convnet1", 10).state_dict(), tmp_path / "other.pth")
    command = ["squeeze", *FLAGS, "--out", str(tmp_path / "r"), "--squeeze.weights", str(tmp_path / "other.pth")]
    assert main(command) == 1
    assert "lacks 'convs.1.weight'" in said(capsys)


def test_an_untrained_checkpoint_does_not_pass_the_gate(tmp_path, capsys):
    from fastcondense.networks import zoo

    torch.manual_seed(0)
    torch.save(zoo.build("zoo/convnet3_w32", 10).state_dict(), tmp_path / "raw.pth")
    command = ["recover", *FLAGS, "--out", str(tmp_path / "r"), "--squeeze.weights", str(tmp_path / "raw.pth")]
    assert main(command) == 1
    assert "is at chance" in said(capsys)
    assert not (tmp_path / "r" / "condensed").exists()


def test_ctrl_c_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(condense.ByStatistics, "__call__", interrupt)
    assert fastcondense("recover", tmp_path / "r") == 130
    assert "interrupted" in said(capsys)


def test_a_full_disk_loses_nothing(finished, tmp_path, capsys, monkeypatch):
    """The third job cannot be written; the first two stay, no half file remains, and a rerun completes the set."""
    real_fsync, written = os.fsync, []

    def fsync(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        written.append("shard-" in name)
        if sum(written) == 3:
            raise OSError(28, "No space left on device", name)
        real_fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert fastcondense("recover", tmp_path / "r") == 1
    assert "No space left on device" in said(capsys)
    assert len(shards(tmp_path / "r")) == 2 and not list((tmp_path / "r").rglob("*.tmp"))
    assert fastcondense("recover", tmp_path / "r") == 0
    assert shards(tmp_path / "r") == shards(finished)


def test_the_operating_systems_own_limit_on_files_is_one_line(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "fastcondense.cli", "squeeze", *FLAGS, "--out", str(tmp_path / "r")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1 and done.stderr.strip().startswith("fastcondense: ")
    assert len(done.stderr.strip().split("\n")) == 1
    assert not list((tmp_path / "r").rglob("*.tmp"))
