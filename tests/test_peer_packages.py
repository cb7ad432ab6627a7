"""Packages that evaluate condensed sets, beside ours: run as they are, without a trace, or absent. Fakes here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import runner
import torch
import train
from published.packages import DDRanking, Epoch, RethinkDC, prepared, version
from published.peer import Step, Unavailable
from torch import nn

from fastcondense.vision import torchvision

CPU = torch.device("cpu")
DDRANKING = {
    "__init__.py": """
import torch
class KLDivergenceLoss(torch.nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature
    def forward(self, mine, wanted):
        t = self.temperature
        logs, shares = torch.log_softmax(mine / t, 1), torch.softmax(wanted / t, 1)
        return torch.nn.functional.kl_div(logs, shares, reduction="batchmean")
class Cutmix:
    def __init__(self, params):
        self.beta = params["beta"]
    def __call__(self, images):
        return images
""",
    "utils.py": """
import torch
TensorDataset = torch.utils.data.TensorDataset
seen = []
def get_optimizer(name, model, lr, weight_decay, momentum):
    return torch.optim.AdamW(model.parameters(), lr, momentum, weight_decay=weight_decay)
def train_one_epoch(epoch, student, loader, loss_fn, optimizer, mode, mix, teachers, device="cuda"):
    print("an epoch")
    for images, labels in loader:
        assert mode == "M" and not teachers[0].training and not next(teachers[0].parameters()).requires_grad
        optimizer.zero_grad()
        loss = loss_fn(student(mix(images.to(device))), teachers[0](images))
        loss.backward()
        optimizer.step()
        seen.append((images, labels, loss.item()))
""",
}
RETHINKDC = {
    "__init__.py": "",
    "imagenet_ipc.py": """
from torchvision.datasets import ImageFolder
class ImageFolderIPC(ImageFolder):
    @staticmethod
    def make_dataset(directory, class_to_idx, extensions=None, is_valid_file=None):
        return ImageFolder.make_dataset(directory, class_to_idx, extensions, is_valid_file)
""",
    "utils.py": "def print_args_rich(args):\n    print(args)\n",
    "utils_fkd.py": "",
    "train_KD.py": """
seen = []
def get_args():
    raise SystemExit("arguments are not parsed")
def main():
    args = get_args()
    from rethinkdc.imagenet_ipc import ImageFolderIPC
    from rethinkdc.utils import print_args_rich
    import torch, torchvision, wandb
    from torchvision import transforms
    wandb.login(key=args.wandb_api_key)
    print_args_rich(args)
    if not torch.cuda.is_available():
        raise Exception("a GPU, please")
    cut = transforms.Compose([transforms.RandomResizedCrop(224, scale=(0.08, 1)), transforms.ToTensor()])
    images = ImageFolderIPC(args.train_dir, transform=cut)
    loader = torch.utils.data.DataLoader(images, args.batch_size)
    student, teacher = (torchvision.models.__dict__[args.model](pretrained=True).cuda() for _ in range(2))
    for epoch in range(args.start_epoch, args.epochs):
        print("epoch", epoch)
        if epoch == args.fails_at:
            raise KeyError("lost")
        wandb.log({"val/top1": 0})
        seen.append((epoch, [tuple(batch.cuda().shape) for batch, _ in loader], student is teacher))
        wandb.log({"train/loss": 1.0})
""",
}


def install(folder: Path, name: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that Python and importlib.metadata find, until the test ends."""
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    (folder / name).mkdir(parents=True)
    for file, text in files.items():
        (folder / name / file).write_text(text)
    (folder / f"{name}-9.1.dist-info").mkdir()
    (folder / f"{name}-9.1.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.1\n")
    monkeypatch.syspath_prepend(folder)


@pytest.fixture(autouse=True)
def forget():
    """Fakes are not left in sys.modules."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("ddranking", "rethinkdc"):
            del sys.modules[name]


@pytest.fixture
def epoch(tmp_path: Path) -> Epoch:
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(3, 4, 2), nn.Flatten())
    pixels = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8)
    return Epoch(net, pixels, 3, 4, 20.0, 0, CPU, tmp_path / "scratch")


def test_ddranking_trains_the_student_towards_the_teacher(tmp_path, epoch, monkeypatch, capsys) -> None:
    install(tmp_path / "site", "ddranking", DDRANKING, monkeypatch)
    step = prepared(DDRanking(), epoch)
    assert isinstance(step, Step) and version(DDRanking()) == "ddranking 9.1"
    seen = sys.modules["ddranking.utils"].seen
    assert [len(images) for images, _, _ in seen] == [4, 2]
    assert sorted(torch.cat([labels for _, labels, _ in seen]).tolist()) == [0, 0, 1, 1, 2, 2]
    assert seen[0][2] == pytest.approx(0, abs=1e-6)  # student and teacher are the same network
    values = torch.cat([images for images, _, _ in seen])
    assert values.min() < -1.5 and values.max() > 1.5  # normalised
    step.advance()
    assert len(seen) == 4 and capsys.readouterr().out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the fake runs on the CPU")
def test_rethinkdc_runs_from_the_end_of_an_epoch_to_that_of_the_next(tmp_path, epoch, monkeypatch, capsys) -> None:
    install(tmp_path / "site", "rethinkdc", RETHINKDC, monkeypatch)
    before = torch.cuda.is_available, torchvision.transforms.RandomResizedCrop, dict(vars(torchvision.models))
    monkeypatch.setattr(RethinkDC, "_arguments", with_failure(-1))
    step = prepared(RethinkDC(), epoch)
    assert isinstance(step, Step), step
    module = sys.modules["rethinkdc.train_KD"]
    assert [number for number, _, _ in module.seen] == [1, 2]
    step.advance()
    assert module.seen[-1] == (3, [(4, 3, 16, 16), (2, 3, 16, 16)], False)
    after = torch.cuda.is_available, torchvision.transforms.RandomResizedCrop, dict(vars(torchvision.models))
    assert after == before and "wandb" not in sys.modules
    step.close()
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the fake runs on the CPU")
def test_a_failing_package_is_reported_and_leaves_no_trace(tmp_path, epoch, monkeypatch) -> None:
    install(tmp_path / "site", "rethinkdc", RETHINKDC, monkeypatch)
    before = torch.cuda.is_available, torchvision.transforms.RandomResizedCrop
    monkeypatch.setattr(RethinkDC, "_arguments", with_failure(1))
    assert prepared(RethinkDC(), epoch) == Unavailable("failed", "KeyError: 'lost'")
    assert (torch.cuda.is_available, torchvision.transforms.RandomResizedCrop) == before
    assert "wandb" not in sys.modules and "given" not in vars(torchvision.models)


def with_failure(fails_at: int) -> staticmethod:
    """The adapter's arguments, and the fake's own."""
    arguments = RethinkDC._arguments

    def made(epoch: Epoch):
        found = arguments(epoch)
        found.fails_at = fails_at
        return found

    return staticmethod(made)


def test_what_is_not_installed_is_absent(epoch, tmp_path, monkeypatch) -> None:
    package = DDRanking()
    package.name = "no_such_package"
    assert prepared(package, epoch) == Unavailable("absent", "the package no_such_package is not installed")
    broken = {"__init__.py": "import no_such_dependency\n"}
    install(tmp_path / "site", "ddranking", broken, monkeypatch)
    reason = "it needs no_such_dependency, which is not installed"
    assert prepared(DDRanking(), epoch) == Unavailable("absent", reason)


def test_a_benchmark_has_a_line_for_each(tmp_path, monkeypatch) -> None:
    install(tmp_path / "site", "ddranking", DDRANKING, monkeypatch)
    absent = RethinkDC()
    absent.name = "no_such_package"
    monkeypatch.setitem(train.PACKAGES, "rethinkdc", absent)
    out = tmp_path / "lines.jsonl"
    arguments = ["--network", "zoo/convnet1", "--images", "8", "--size", "16", "--classes", "4", "--batch-size", "4"]
    variants = ["--variants", "ours", "rethinkdc", "ddranking"]
    assert runner.main(["train", "--quick", "--no-gate", *arguments, *variants, "--out", str(out)]) == 0
    rethinkdc, ours, ddranking = map(json.loads, out.read_text().splitlines())
    assert (rethinkdc["what"], rethinkdc["skipped"]) == (
        "rethinkdc",
        "absent: the package no_such_package is not installed",
    )
    assert ours["variant"] == "ours" and ours["ratio_to_ours"] == 1 and ours["median_ms"] > 0
    assert ddranking["peer"] == "ddranking 9.1" and len(ddranking["adaptations"]) == 2
    assert ddranking["ratio_to_ours"] == pytest.approx(ddranking["median_ms"] / ours["median_ms"], rel=0.01)
