"""What is small enough for tests: a run on the digits, networks, image folders."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from fastcondense.cli import main
from fastcondense.data import datasets
from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset

FLAGS = (
    "--recipe sre2l/digits-ipc2 --squeeze.teachers zoo/convnet3_w32 --squeeze.epochs 4 --recover.iterations 20 "
    "--recover.batch-size 5 --train.student zoo/convnet1 --train.epochs 4 --train.batch-size 8 --train.seeds 2 "
    "--train.evaluate-every 2 --device cpu"
).split()


def fastcondense(command: str, out: Path, *more: str) -> int:
    """Runs a command of the small recipe in this process; returns its exit status."""
    return main([command, *FLAGS, "--out", str(out), *more])


def shards(out: Path) -> dict[str, bytes]:
    """The tensors' bytes of every finished job (its metadata holds a time)."""
    from safetensors.numpy import load_file

    return {
        path.name: b"".join(load_file(path)[key].tobytes() for key in ("images", "classes", "slots", "losses"))
        for path in sorted((out / "condensed").glob("shard-*.safetensors"))
    }


def image_folder(root: Path, classes: int = 3, train: int = 12, test: int = 4, size: int = 20) -> Path:
    """root/{train,val}/<class>/<k>.png: classes that differ in their mean colour."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = generator.integers(0, 120, (size, size + 4, 3)) + 130 * (np.arange(3) == label % 3)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k}.png")
    return root


def frozen_network(architecture: str, num_classes: int, seed: int = 0) -> nn.Module:
    """In evaluation mode, with weights and statistics in its BatchNorms that do not hide a mistake."""
    torch.manual_seed(seed)
    net = zoo.build(architecture, num_classes).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def digits(part: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [N, 3, 8, 8], and labels."""
    split = getattr(datasets.load(Dataset(name="digits"), None), part)
    return torch.from_numpy(split.images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(split.labels)


def trained_network() -> nn.Module:
    """Knows the digits, as pixels in [0, 1]."""
    pixels, labels = digits()
    torch.manual_seed(0)
    net = zoo.build("zoo/convnet3_w32", 10)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(4):
        for ids in torch.randperm(len(labels)).split(64):
            loss = F.cross_entropy(net(pixels[ids] / 255), labels[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


class SmallNetwork(nn.Module):
    """Convolution, BatchNorm, dropout, linear: parameters of all kinds, buffers, and randomness in the forward."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.drop(F.relu(self.norm(self.conv(x))).mean((2, 3))))


def said(capsys) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("fastcondense: ") and "Traceback" not in lines[0]
    return lines[0]
