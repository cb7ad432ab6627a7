"""The user's own functions that fail or give something else: one line that names the setting and the function."""

import hashlib
import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small import FLAGS, said

from fastcondense.cli import main
from fastcondense.labels.labels import OwnLabels
from fastcondense.user_functions import load_function, source_sha256

FILE = """
import sys

import numpy as np
import torch
from torch import nn


def network(num_classes, channels=3, kernel=3, **kinds):
    layers = nn.Conv2d(channels, 4, kernel, padding=1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, num_classes)).to(**kinds)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def nothing(*_, **__):
    return None


def fails(*_, **__):
    raise KeyError("oops")


def wider(num_classes):
    return network(num_classes + 3)


def narrower(num_classes):
    return network(num_classes - 3)


def pair(num_classes):
    return Pair()


def grey(num_classes):
    return network(num_classes, channels=1)


def large(num_classes):
    return network(num_classes, kernel=11)


def double(num_classes):
    return network(num_classes, dtype=torch.float64)


def frozen(num_classes):
    return network(num_classes).requires_grad_(False)


def arrays(_):
    images, labels = np.full((8, 8, 8, 3), 9, np.uint8), np.arange(8) % 2
    return "ab", (list(images), labels), (images, labels)


def tensors(_):
    images, labels = np.full((8, 8, 8, 3), 9, np.uint8), np.arange(8) % 2
    return "ab", (torch.from_numpy(images), labels), (images, labels)


def share(images, _):
    return images[0] / 255


def chances(views, *_):
    return torch.full((len(views), 10), 0.1)


def no_numbers(views, *_):
    return torch.full((len(views), 10), torch.nan)


def one_argument(views):
    return views.mean()


def leaves(*_, **__):
    sys.exit(0)


def imaginary(views, *_):
    return views.mean() * 1j


def in_place(views, classes, partners, share):
    logits = torch.stack((views.sum((1, 2, 3)), classes.float(), share), 1)
    for part in (views, classes, partners, share):
        part.zero_()
    return logits


def first_of_all(images, _):
    first = images[0].float()
    images.zero_()
    return first
"""


@pytest.mark.parametrize(
    ("setting", "function", "words"),
    [
        (
            "dataset.name",
            "fails",
            "dataset.name 'own.py:fails' raised KeyError: 'oops'; FASTCONDENSE_TRACEBACK=1 shows",
        ),
        (
            "dataset.name",
            "arrays",
            "training, needs images uint8 [N, H, W, 3] or paths of files, got a list of neither",
        ),
        ("dataset.name", "tensors", "needs images uint8 [N, H, W, 3] or paths of files, got a Tensor of neither"),
        ("squeeze.teachers", "fails", "architecture 'own.py:fails' raised KeyError: 'oops'"),
        ("squeeze.teachers", "nothing", "architecture 'own.py:nothing' must give a torch.nn.Module, got NoneType"),
        ("squeeze.teachers", "wider", "'own.py:wider' must give logits [1, 10] for an image, got (1, 13)"),
        ("squeeze.teachers", "narrower", "'own.py:narrower' must give logits [1, 10] for an image, got (1, 7)"),
        ("squeeze.teachers", "pair", "'own.py:pair' must give logits [1, 10] for an image, got tuple"),
        ("squeeze.teachers", "grey", "'own.py:grey' cannot take 8 x 8 images: Given groups=1"),
        ("squeeze.teachers", "large", "'own.py:large' cannot take 8 x 8 images: Calculated padded input size"),
        ("squeeze.teachers", "double", "'own.py:double' cannot take 8 x 8 images: "),
        ("squeeze.teachers", "frozen", "'own.py:frozen' has no weights to train"),
        ("squeeze.teachers", "one_argument", "architecture 'own.py:one_argument' must take num_classes=...: "),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, monkeypatch, capsys, setting, function, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)
    assert main(["squeeze", *FLAGS, "--out", "run", f"--{setting}", f"own.py:{function}"]) == 1
    assert words in said(capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--recover.initial.kind", "own.py:share", "--recover.iterations", "0"],
            "recover.initial.kind 'own.py:share' must give levels from 0 to 255, got 0 to 0.9372",
        ),
        (
            ["--recover.loss", "own.py:one_argument"],
            "recover.loss 'own.py:one_argument' raised TypeError: one_argument()",
        ),
        (["--recover.loss", "own.py:leaves"], "recover.loss 'own.py:leaves' raised SystemExit: 0;"),
        (
            ["--recover.loss", "own.py:imaginary"],
            "must give one number with a gradient in the images, got () of torch.c",
        ),
    ],
)
def test_functions_of_recover_that_cannot_be_used_are_one_line(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)
    assert main(["recover", *FLAGS, "--squeeze.epochs", "1", "--squeeze.gate-images", "0", "--out", "run", *flags]) == 1
    assert words in said(capsys)


@pytest.mark.parametrize(
    ("function", "words"),
    [("chances", "gives probabilities, and logits are needed"), ("no_numbers", "gives logits that are not finite")],
)
def test_labels_that_are_no_logits_are_refused(tmp_path, monkeypatch, function, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)
    source = OwnLabels(f"own.py:{function}", 10)
    classes = torch.arange(4)
    batch = SimpleNamespace(images=torch.zeros(4, 3, 8, 8), labels=classes, partners=classes, share=torch.ones(4))
    with pytest.raises(ValueError, match=f"^labels.source 'own.py:{function}' {words}"):
        source(batch)


def test_functions_keep_what_they_change_to_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)
    seen = {
        "images": torch.rand(4, 3, 8, 8) + 1,
        "labels": torch.arange(1, 5),
        "partners": torch.arange(1, 5),
        "share": torch.ones(4),
    }
    before = {name: part.clone() for name, part in seen.items()}
    OwnLabels("own.py:in_place", 3)(SimpleNamespace(**seen))
    assert all(torch.equal(part, before[name]) for name, part in seen.items())
    flags = ["recover", *FLAGS, "--squeeze.epochs", "1", "--squeeze.gate-images", "0", "--recover.iterations", "0"]
    flags += ["--recover.initial.kind", "own.py:first_of_all", "--ipc", "2", "--out", "run"]
    assert main(flags) == 0
    found = [load_file(path) for path in (tmp_path / "run" / "condensed").glob("shard-*.safetensors")]
    images, slots = (torch.cat([shard[name] for shard in found]) for name in ("images", "slots"))
    classes = torch.cat([shard["classes"] for shard in found])
    ordered = images[(classes * 2 + slots).argsort()].view(10, 2, -1)
    assert torch.equal(ordered[:, 0], ordered[:, 1]) and bool(ordered.any())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise ValueError('a')", "ValueError: a"),
        ("exit(0)", "SystemExit: 0"),
        ("1 +", "SyntaxError: invalid syntax"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_is_no_module_is_one_line_each_time(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(text)
    for _ in range(2):
        assert main(["squeeze", *FLAGS, "--out", "run", "--squeeze.teachers", "own.py:network"]) == 1
        assert f"architecture 'own.py:network' cannot be imported: {words}" in said(capsys)


def test_a_file_that_was_changed_is_another_module(tmp_path, monkeypatch):
    """In one program: the code that runs is that of the hash, even of two files of one size and second."""
    monkeypatch.chdir(tmp_path)
    path, found = tmp_path / "lab.py", []
    for answer in (3, 7):
        path.write_text(f"def f():\n    return {answer}\n")
        os.utime(path, (10**9, 10**9))
        digest = source_sha256("lab.py:f", "labels.source")
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
        found.append(load_function("lab.py:f", "labels.source")())
    assert found == [3, 7]


def test_functions_of_modules_without_files_are_found():
    assert load_function("builtins:len", "labels.source")([1, 2]) == 2
    with pytest.raises(ValueError, match=r"^labels.source 'builtins:len' is in no file"):
        source_sha256("builtins:len", "labels.source")


def test_a_module_that_was_changed_after_its_import_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "imported_once.py"
    path.write_text("def f():\n    return 3\n")
    before = source_sha256("imported_once:f", "labels.source")
    path.write_text("def f():\n    return 4\n")
    with pytest.raises(ValueError, match=r"imported_once.py was changed after it was imported; start again"):
        source_sha256("imported_once:f", "labels.source")
    path.write_text("def f():\n    return 3\n")
    assert source_sha256("imported_once:f", "labels.source") == before
