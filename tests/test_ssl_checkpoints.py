"""Checkpoints in the layouts of MoCo, SwAV and DINO: what is taken, what is left, what is refused."""

import argparse
import os

import pytest
import torch
from torch import nn

from fastcondense.networks import zoo
from fastcondense.squeeze.ssl_checkpoints import import_backbone, is_self_supervised
from fastcondense.teachers.weights import load_weights
from fastcondense.tensor_files import read_checkpoint

CLASSIFIERS = {"zoo/resnet20": "linear", "zoo/convnet2": "head", "torchvision/resnet18": "fc"}


def network(architecture, seed, num_classes=10):
    torch.manual_seed(seed)
    net = zoo.build(architecture, num_classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def parts(architecture, seed=0):
    """The backbone's state, and the classifier's name."""
    classifier = CLASSIFIERS[architecture]
    state = network(architecture, seed).state_dict()
    return {name: value for name, value in state.items() if not name.startswith(f"{classifier}.")}, classifier


def mlp(prefix, sizes=((8, 8), (4, 8))):
    return {f"{prefix}.{2 * k}.{part}": torch.ones(size[: 1 if part == "bias" else 2]) for k, size in enumerate(sizes)
            for part in ("weight", "bias")}  # fmt: skip


def moco_v2(backbone, classifier, other):
    state = {"module.queue": torch.zeros(4, 9), "module.queue_ptr": torch.zeros(1)}
    for prefix, weights in (("module.encoder_q.", backbone), ("module.encoder_k.", other)):
        state |= under(prefix, weights) | mlp(f"{prefix}{classifier}")
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}, "param_groups": [{}]}}


def moco_v1(backbone, classifier, other):
    tree = moco_v2(backbone, classifier, other)
    state = {name: value for name, value in tree["state_dict"].items() if f".{classifier}." not in name}
    for prefix in ("module.encoder_q.", "module.encoder_k."):
        state |= {f"{prefix}{classifier}.weight": torch.ones(128, 64), f"{prefix}{classifier}.bias": torch.ones(128)}
    return tree | {"state_dict": state}


def moco_v3(backbone, classifier, other):
    state = mlp("module.predictor")
    for prefix, weights in (("module.base_encoder.", backbone), ("module.momentum_encoder.", other)):
        state |= under(prefix, weights) | mlp(f"{prefix}{classifier}")
        state |= {f"{prefix}{classifier}.1.running_mean": torch.zeros(8)}
    return {"epoch": 300, "state_dict": state, "optimizer": {}, "scaler": {}}


def swav(backbone, _classifier, _other):
    state = under("module.", backbone) | mlp("module.projection_head") | {"module.prototypes.weight": torch.ones(30, 4)}
    return state | {"module.projection_head.1.running_mean": torch.zeros(8)}


def dino(backbone, _classifier, other):
    heads = mlp("head.mlp") | {
        "head.last_layer.weight_g": torch.ones(5, 1),
        "head.last_layer.weight_v": torch.ones(5, 2),
    }
    student = under("module.", under("backbone.", other) | heads)
    return {
        "student": student,
        "teacher": under("backbone.", backbone) | heads,
        "optimizer": {"state": {}},
        "epoch": 800,
        "args": argparse.Namespace(arch="resnet50", lr=0.3, local_crops_scale=(0.05, 0.14)),
        "fp16_scaler": {},
        "dino_loss": {"center": torch.zeros(1, 5)},
    }


LAYOUTS = {
    "MoCo v2 pretraining": (moco_v2, "module.encoder_q."),
    "MoCo v1 pretraining": (moco_v1, "module.encoder_q."),
    "MoCo v3 pretraining": (moco_v3, "module.base_encoder."),
    "SwAV pretraining": (swav, "module."),
    "DINO pretraining": (dino, "teacher: backbone."),
}
DROPPED = {
    "MoCo v2 pretraining": ("momentum encoder", "queue (2, ", "projector (4, "),
    "MoCo v1 pretraining": ("momentum encoder", "queue (2, ", "projector (2, "),
    "MoCo v3 pretraining": ("momentum encoder", "predictor (4, ", "projector (5, "),
    "SwAV pretraining": ("projector (5, ", "prototypes (1, "),
    "DINO pretraining": ("the other network", "projector (6, "),
}


def read(tree, tmp_path, architecture="zoo/resnet20"):
    torch.save(tree, tmp_path / "ssl.pth")
    wanted = network(architecture, 9).state_dict()
    path = tmp_path / "ssl.pth"
    return import_backbone(read_checkpoint(path), wanted, CLASSIFIERS[architecture], path)


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        *((kind, name) for kind in LAYOUTS for name in ("zoo/resnet20", "zoo/convnet2")),
        ("MoCo v2 pretraining", "torchvision/resnet18"),
    ],
)
def test_the_backbone_of_every_layout_is_taken_and_the_rest_is_named(tmp_path, kind, architecture):
    (backbone, classifier), (other, _) = parts(architecture), parts(architecture, 1)
    layout, where = LAYOUTS[kind]
    tree = layout(backbone, classifier, other)
    made = read(tree, tmp_path, architecture)
    assert not made.has_classifier and made.state.keys() == backbone.keys()
    for name, value in backbone.items():
        assert torch.equal(made.state[name], value), name
    assert made.report.startswith(f"{kind} checkpoint: took {len(backbone)} entries of {where}; dropped ")
    assert all(words in made.report for words in DROPPED[kind])
    assert is_self_supervised(tree, tmp_path / "ssl.pth")


@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "module.backbone.", "module.encoder.", "_orig_mod.module."]
)
def test_a_backbone_alone_is_taken_under_any_prefix(tmp_path, prefix):
    backbone, _ = parts("zoo/resnet20")
    for tree in (under(prefix, backbone), {"state_dict": under(prefix, backbone), "epoch": 3}):
        made = read(tree, tmp_path)
        assert not made.has_classifier and made.state.keys() == backbone.keys()
        assert (
            made.report
            == f"backbone's checkpoint: took {len(backbone)} entries{' of ' if prefix else ''}{prefix}; dropped nothing"
        )


@pytest.mark.parametrize("is_flat", [False, True])
def test_of_dino_the_teacher_is_taken(tmp_path, is_flat):
    (backbone, classifier), (other, _) = parts("zoo/resnet20"), parts("zoo/resnet20", 1)
    tree = dino(backbone, classifier, other)
    if is_flat:
        tree = under("teacher.", tree["teacher"]) | under("student.", tree["student"])
    made = read(tree, tmp_path)
    assert all(torch.equal(made.state[name], value) for name, value in backbone.items())
    assert "the other network" in made.report and made.report.startswith("DINO pretraining")


def test_a_linear_evaluation_checkpoint_keeps_its_classifier(tmp_path):
    net = network("zoo/resnet20", 3)
    tree = {"epoch": 100, "state_dict": under("module.", net.state_dict()), "best_acc1": torch.tensor(67.5)}
    assert not is_self_supervised(tree, tmp_path)
    made = read(tree, tmp_path)
    assert made.has_classifier
    copied = network("zoo/resnet20", 4)
    load_weights(copied, made.state, tmp_path)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in copied.state_dict().items())


def test_old_files_may_lack_the_counters_of_batch_norm(tmp_path):
    backbone, classifier = parts("zoo/resnet20")
    backbone = {name: value for name, value in backbone.items() if not name.endswith("num_batches_tracked")}
    assert read(moco_v2(backbone, classifier, {}), tmp_path).state.keys() == backbone.keys()


def changed(state, change, prefix):
    if change == "missing":
        del state[f"{prefix}layer2.0.conv1.weight"]
    elif change == "statistics":
        del state[f"{prefix}layer1.1.bn2.running_var"]
    elif change == "unexpected":
        state[f"{prefix}layer9.weight"] = torch.zeros(2)
    elif change == "stranger":
        state["module.decoder.weight"] = torch.zeros(2)
    else:
        state[f"{prefix}bn1.weight"] = torch.zeros(17)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"ssl\.pth lacks 'layer2\.0\.conv1\.weight' \(1 such"),
        ("statistics", r"ssl\.pth lacks the running statistics 'layer1\.1\.bn2\.running_var' \(1 such"),
        ("unexpected", r"ssl\.pth has the unexpected '.*layer9\.weight' \(1 such"),
        ("stranger", r"ssl\.pth has the unexpected 'module\.decoder\.weight' \(1 such"),
        ("misshapen", r"ssl\.pth: 'bn1\.weight' has shape \(17,\), the network \(16,\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_report(tmp_path, kind, change, message):
    (backbone, classifier), (other, _) = parts("zoo/resnet20"), parts("zoo/resnet20", 1)
    layout, where = LAYOUTS[kind]
    tree = layout(backbone, classifier, other)
    changed(tree["teacher"] if kind.startswith("DINO") else tree.get("state_dict", tree), change, where.split(": ")[-1])
    with pytest.raises(ValueError, match=message) as caught:
        read(tree, tmp_path)
    assert f"{kind} checkpoint: took " in str(caught.value) and "dropped" in str(caught.value)


def test_another_architecture_is_refused(tmp_path):
    (backbone, _), (other, _) = parts("torchvision/resnet18"), parts("torchvision/resnet18", 1)
    with pytest.raises(ValueError, match=r"lacks '.*' \(\d+ such entries\): another architecture\? MoCo v2"):
        read(moco_v2(backbone, "fc", other), tmp_path)


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_namespace_is_read_and_code_in_it_is_not(tmp_path):
    torch.save({"args": argparse.Namespace(lr=0.3, scale=(0.1, 1)), "x": torch.ones(2)}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["args"] == argparse.Namespace(lr=0.3, scale=(0.1, 1))
    torch.save({"args": argparse.Namespace(lr=_Bomb(tmp_path / "ran"))}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"b\.pth cannot be read as weights"):
        read_checkpoint(tmp_path / "b.pth")
    assert not (tmp_path / "ran").exists()
