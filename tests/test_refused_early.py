"""What a run could not do at its end is refused at its beginning, and damage to a student's files is named."""

import json

import pytest
import torch
from labelled_runs import made
from small import fastcondense

from fastcondense.cli import main
from fastcondense.networks import zoo

FAST = (
    "--squeeze.teachers zoo/convnet1 --squeeze.epochs 1 --squeeze.gate-images 0 --recover.iterations 1 "
    "--train.epochs 1 --train.seeds 1 --evaluate.baselines"
).split()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "--train.student timm/vit_tiny_patch16_224",
            "'timm/vit_tiny_patch16_224' cannot take 8 x 8 images: Input height",
        ),
        ("--train.student torchvision/vgg11", "'torchvision/vgg11' cannot take 8 x 8 images"),
        ("--train.student torchvision/resnet81", "torchvision has no 'resnet81'; the nearest is 'resnet18'"),
        ("--train.student timm/resnet18q", "timm has no model 'resnet18q'"),
        ("--train.student resnet18", "must be zoo/NAME, torchvision/NAME, timm/NAME or module:function"),
        ("--squeeze.teachers zoo/convnet1 zoo/convnet33", "zoo has no 'convnet33'; the nearest is 'convnet3'"),
        ("--evaluate.baselines nowhere.py:f", "there is no file"),
    ],
)
def test_nothing_is_made_first(tmp_path, capsys, flags, words):
    assert fastcondense("run", tmp_path / "run", *FAST, *flags.split()) == 1
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not list(tmp_path.glob("run/teachers/*"))


def test_a_layer_to_match_that_the_teacher_has_not(tmp_path, capsys):
    flags = "--recipe cim/digits --squeeze.gate-images 0 --recover.features.layer layer3 --device cpu".split()
    assert main(["run", *flags, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "has no module 'layer3' whose input could be matched; near: " in error
    assert not list(tmp_path.glob("run/teachers/*"))


def test_a_plan_refuses_it_too(capsys):
    assert main(["plan", "sre2l/digits-ipc1", "--train.student", "timm/vit_tiny_patch16_224"]) == 1
    assert "'timm/vit_tiny_patch16_224' cannot take 8 x 8 images" in capsys.readouterr().err


def test_an_out_that_is_no_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert fastcondense("run", tmp_path / "file", *FAST) == 1
    assert "file is not a folder; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "size"), [("googlenet", 32), ("inception_v3", 80)])
def test_networks_with_more_heads_give_logits_alone_in_training(name, size):
    net = zoo.trainable(f"torchvision/{name}", 7, size)
    assert net.training
    logits = net(torch.randn(2, 3, size, size))
    assert isinstance(logits, torch.Tensor) and logits.shape == (2, 7)


def test_damaged_files_of_a_student_are_named(tmp_path, capsys):
    run = made(tmp_path / "run", FAST, "run")
    (student,) = run.out.glob("students/*/condensed/seed0")
    (result,) = run.out.glob("results/*.json")
    kept = result.read_bytes()

    def refused(name, text, words):
        before = (student / name).read_bytes()
        (student / name).write_text(text)
        assert fastcondense("evaluate", run.out, *FAST) == 1
        assert words in capsys.readouterr().err
        assert result.read_bytes() == kept
        (student / name).write_bytes(before)

    tree = json.loads((student / "student.json").read_text())
    for top1 in (1e9, -1.0):
        tree["history"][0]["top1"] = top1
        refused("student.json", json.dumps(tree), "student.json is damaged: field history[0].top1")
    refused("seen.json", "{}", "seen.json is damaged: it names nothing that was seen")
    assert fastcondense("evaluate", run.out, *FAST) == 0
