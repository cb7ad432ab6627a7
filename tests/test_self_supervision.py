"""MoCo from end to end on the digits: what is learnt, resumption to the same bits, and settings."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from small import fastcondense

from fastcondense.networks import fit as fit_module
from fastcondense.networks import zoo
from fastcondense.recipe import recipe
from fastcondense.run import Run
from fastcondense.squeeze.self_supervision import pretrain
from fastcondense.tensor_files import read_tensors

VIEWS = (
    "--squeeze.self-supervision.epochs 3 --squeeze.self-supervision.batch-size 64 --squeeze.self-supervision.flip 0 "
    "--squeeze.self-supervision.lr 0.05 --squeeze.self-supervision.crop-scale 0.4 1 "
    "--squeeze.self-supervision.evaluate-every 1 --squeeze.self-supervision.blur 0 "
    "--squeeze.self-supervision.moco.queue 256 --squeeze.self-supervision.moco.decay 0.99 "
    "--squeeze.probe.epochs 6 --squeeze.probe.batch-size 64 --squeeze.probe.lr 0.03 --squeeze.probe.optimizer adamw"
)


def test_squeeze_without_labels_then_a_probe(tmp_path, capsys):
    flags = [*VIEWS.split(), "--squeeze.self-supervision.method", "moco"]
    assert fastcondense("squeeze", tmp_path, *flags) == 0
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event.get("what") == "moco of zoo/convnet3_w32"]
    assert len(losses) == 3 and losses[-1] < losses[0]
    probed = [event["top1"] for event in events if event.get("what") == "probe of zoo/convnet3_w32"]
    (teacher,) = [event for event in events if event["event"] == "teacher"]
    assert probed[-1] == pytest.approx(teacher["top1"]) and teacher["top1"] > 50 and teacher["gate"] > 0.5
    folder = tmp_path / "teachers" / "zoo-convnet3_w32"
    assert [path.name for path in folder.iterdir()] == ["weights.safetensors"]
    state, _ = read_tensors(folder / "weights.safetensors")
    zoo.build("zoo/convnet3_w32", 10).load_state_dict(state)
    assert "epoch 3 of 3, loss" in capsys.readouterr().out
    assert fastcondense("squeeze", tmp_path, *flags) == 0
    assert "finished already" in capsys.readouterr().out


def small_run(tmp_path, **more):
    found = recipe.load("sre2l/digits-ipc2")
    settings = dataclasses.replace(
        found.squeeze.self_supervision,
        **{"method": "moco", "epochs": 3, "batch_size": 64, "evaluate_every": 1, "crop_scale": (0.4, 1.0)} | more,
    )
    moco = dataclasses.replace(settings.moco, queue=150)
    settings = dataclasses.replace(settings, moco=moco)
    squeeze = dataclasses.replace(found.squeeze, self_supervision=settings)
    run = Run(dataclasses.replace(found, squeeze=squeeze), tmp_path / "out")
    run.real = dataclasses.replace(run.real, train=run.real.train.take(np.arange(200)))
    return run


def train(run, checkpoint):
    torch.manual_seed(4)
    net = zoo.build("zoo/convnet3_w32", 10)
    return pretrain(run, net, 0, "zoo/convnet3_w32", checkpoint)


class Interruption(Exception):
    pass


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, accumulate):
    monkeypatch.setattr(fit_module, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    whole = train(small_run(tmp_path, accumulate=accumulate), tmp_path / "whole.pt")
    cut = small_run(tmp_path, accumulate=accumulate)
    event = cut.log.event

    def interrupt(kind, **fields):
        event(kind, **fields)
        if fields.get("epoch") == 2:
            raise Interruption

    monkeypatch.setattr(cut.log, "event", interrupt)
    with pytest.raises(Interruption):
        train(cut, tmp_path / "cut.pt")
    torch.manual_seed(99)
    resumed = train(small_run(tmp_path, accumulate=accumulate), tmp_path / "cut.pt")
    untrained = zoo.build("zoo/convnet3_w32", 10).state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
        assert value.shape == untrained[name].shape
    states = [torch.load(tmp_path / name)["net"] for name in ("whole.pt", "cut.pt")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert torch.load(tmp_path / "cut.pt")["epoch"] == 3


def test_views_that_a_network_cannot_take_are_named(tmp_path):
    run = small_run(tmp_path)
    with pytest.raises(ValueError, match="teacher rigid cannot take 8 x 8 images"):
        pretrain(run, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(191, 10)), 0, "rigid", tmp_path / "x.pt")


def test_a_loss_that_diverges_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="training diverged in epoch"):
        train(small_run(tmp_path, lr=float("inf")), tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("blur = 1.5", r"blur must lie in \[0, 1\], got 1.5"),
        ("batch_size = 1", "self_supervision.batch_size must be at least 2"),
        ("epochs = 0", "self_supervision.epochs must be at least 1"),
        ("crop_scale = [0.0, 1.0]", "crop_scale needs"),
        ("method = 'moco'\nmoco = {queue = 9}", "moco.queue must hold a batch of 256 views, got 9"),
    ],
)
def test_settings_that_make_no_sense_are_refused(toml, message):
    with pytest.raises(ValueError, match=message):
        recipe.from_toml(f"[squeeze.self_supervision]\n{toml}", "mine.toml")
