"""Linear probes: the backbone's bits, files in every spelling, and checkpoints that need one, on the command line."""

import dataclasses

import pytest
import torch
from torch import nn

from fastcondense.cli import main
from fastcondense.data import datasets
from fastcondense.networks import fit as fit_module
from fastcondense.networks import zoo
from fastcondense.recipe import recipe
from fastcondense.run import Run
from fastcondense.squeeze import probe as probe_module
from fastcondense.squeeze.probe import read_probe, train_probe
from fastcondense.tensor_files import read_tensors

FLAGS = (
    "--recipe sre2l/digits-ipc2 --squeeze.teachers zoo/convnet3_w32 --squeeze.gate-images 4 --device cpu "
    "--squeeze.probe.epochs 3 --squeeze.probe.optimizer adamw --squeeze.probe.lr 0.02 --squeeze.probe.batch-size 128"
).split()


def backbone(seed=0):
    """A network with statistics of its own."""
    torch.manual_seed(seed)
    net = zoo.build("zoo/convnet3_w32", 7)
    real = datasets.load(recipe.load("sre2l/digits").dataset, None)
    for norm in net.norms:
        norm.momentum = None
    with torch.no_grad():
        net(torch.from_numpy(real.train.images).permute(0, 3, 1, 2) / 96 - 0.8)
    return net


def small_run(tmp_path):
    found = recipe.load("sre2l/digits-ipc2")
    probe = dataclasses.replace(
        found.squeeze.probe, epochs=3, optimizer="adamw", lr=0.02, batch_size=128, evaluate_every=1
    )
    squeeze = dataclasses.replace(found.squeeze, teachers=("zoo/convnet3_w32",), probe=probe)
    return Run(dataclasses.replace(found, squeeze=squeeze), tmp_path / "out")


def assert_same(made, wanted, but=""):
    for name, value in wanted.state_dict().items():
        if not but or not name.startswith(but):
            assert torch.equal(made.state_dict()[name], value), name


def test_the_probe_leaves_the_backbones_bits_alone_and_learns(tmp_path):
    run, net = small_run(tmp_path), backbone()
    probed = train_probe(run, net, "head", 0, tmp_path / "probe.pt")
    assert probed is net and probed.head.out_features == 10
    assert_same(probed, backbone(), but="head")
    assert all(parameter.requires_grad for parameter in probed.parameters())
    history = torch.load(tmp_path / "probe.pt")["history"]
    assert history[-1]["loss"] < 0.9 * history[0]["loss"] and history[-1]["top1"] > 50


class Interruption(Exception):
    pass


def test_an_interrupted_probe_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    whole = train_probe(small_run(tmp_path), backbone(), "head", 0, tmp_path / "whole.pt")
    cut, scored = small_run(tmp_path), []

    def report(what, entry, epochs):
        scored.append((what, entry["epoch"], epochs))
        if entry["epoch"] == 2:
            raise Interruption

    monkeypatch.setattr(cut, "report_epoch", report)
    with pytest.raises(Interruption):
        train_probe(cut, backbone(), "head", 0, tmp_path / "cut.pt")
    resumed = train_probe(small_run(tmp_path), backbone(), "head", 0, tmp_path / "cut.pt")
    assert_same(resumed, whole)
    assert scored == [("probe of zoo/convnet3_w32", 1, 3), ("probe of zoo/convnet3_w32", 2, 3)]


def test_dropout_of_the_backbone_is_off():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 3))
    frozen = probe_module.FrozenBackbone(net, "2").train()
    x = torch.randn(6, 4)
    assert torch.equal(frozen(x), frozen(x)) and not any(module.training for module in net.modules())
    frozen(x).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["2.weight", "2.bias"]


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.linear.", "linear.", "fc.", "module.fc.", "classifier.", "head.", ""])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_probe_file_is_read(tmp_path, prefix, is_wrapped):
    weight, bias = torch.randn(5, 8), torch.randn(5)
    tree = {f"{prefix}weight": weight, f"{prefix}bias": bias}
    layer = read_probe({"epoch": 100, "state_dict": tree, "best_acc": 75.3} if is_wrapped else tree, tmp_path, 8)
    assert torch.equal(layer.weight, weight) and torch.equal(layer.bias, bias)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"linear.weight": torch.zeros(5, 8)}, "must hold a weight and a bias alone"),
        (
            {"fc.weight": torch.zeros(5, 8), "fc.bias": torch.zeros(5), "conv1.weight": torch.zeros(1)},
            "it has conv1.we",
        ),
        ({"fc.weight": torch.zeros(5, 9), "fc.bias": torch.zeros(5)}, r"\(5, 9\) and a bias of \(5,\); \[classes, 8\]"),
        ({"fc.weight": torch.zeros(5, 8), "fc.bias": torch.zeros(6)}, r"a bias of \(6,\)"),
        ({"fc.weight": torch.zeros(8), "fc.bias": torch.zeros(8)}, "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
    ],
)
def test_a_probe_that_does_not_fit_is_refused(tmp_path, tree, message):
    with pytest.raises(ValueError, match=message):
        read_probe(tree, tmp_path / "probe.pth", 8)


# --- squeeze ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A MoCo checkpoint of a network that knows the digits, its linear probe in a file of its own, and the network."""
    folder = tmp_path_factory.mktemp("pretrained")
    command = ["squeeze", *FLAGS, "--squeeze.epochs", "4", "--out", str(folder / "run")]
    assert main(command) == 0
    state = read_tensors(folder / "run" / "teachers" / "zoo-convnet3_w32" / "weights.safetensors")[0]
    moco = {f"module.encoder_q.{name}": value for name, value in state.items() if not name.startswith("head.")}
    moco |= {f"module.encoder_q.head.{k}.{part}": torch.ones(3) for k in (0, 2) for part in ("weight", "bias")}
    torch.save({"epoch": 3, "state_dict": moco | {"module.queue": torch.ones(4)}}, folder / "moco.pth")
    torch.save({f"module.linear.{part}": state[f"head.{part}"] for part in ("weight", "bias")}, folder / "linear.pth")
    return folder, state


def squeeze(folder, out, *more):
    return main(["squeeze", *FLAGS, "--squeeze.weights", str(folder / "moco.pth"), "--out", str(out), *more])


def weights(out):
    return read_tensors(out / "teachers" / "zoo-convnet3_w32" / "weights.safetensors")[0]


def test_a_backbone_and_a_probe_file_make_the_teacher(pretrained, tmp_path, capsys):
    folder, state = pretrained
    assert squeeze(folder, tmp_path, "--squeeze.probe-weights", str(folder / "linear.pth")) == 0
    made = weights(tmp_path)
    assert made.keys() == state.keys() and all(torch.equal(made[name], value) for name, value in state.items())
    said = capsys.readouterr().out
    assert "MoCo v2 pretraining checkpoint: took 18 entries of module.encoder_q.; dropped projector (4, " in said


def test_a_probe_is_trained_on_a_backbone(pretrained, tmp_path):
    folder, state = pretrained
    assert squeeze(folder, tmp_path, "--squeeze.probe-weights", "train") == 0
    made = weights(tmp_path)
    for name, value in state.items():
        assert torch.equal(made[name], value) == (not name.startswith("head.")), name
    assert not list((tmp_path / "teachers").glob("*/*.pt"))


def test_a_backbone_without_a_probe_is_refused(pretrained, tmp_path, capsys):
    assert squeeze(pretrained[0], tmp_path) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "has no classifier" in said and "squeeze.probe_weights" in said and "MoCo v2 pretraining" in said


def test_a_probe_in_place_of_the_classifier_that_a_checkpoint_has(pretrained, tmp_path):
    folder, state = pretrained
    torch.save(state | {"head.weight": state["head.weight"].flip(0)}, tmp_path / "whole.pth")
    more = ["--squeeze.weights", str(tmp_path / "whole.pth"), "--squeeze.probe-weights", str(folder / "linear.pth")]
    assert squeeze(folder, tmp_path / "out", *more) == 0
    assert torch.equal(weights(tmp_path / "out")["head.weight"], state["head.weight"])


def test_one_probe_a_teacher_or_one_for_all():
    with pytest.raises(ValueError, match=r"squeeze\.probe_weights needs none, one, or one a teacher \(1\), got 2"):
        recipe.from_toml("[squeeze]\nprobe_weights = ['a', 'b']", "mine.toml")
