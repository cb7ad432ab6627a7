"""A small repository of the shape of SRe2L's, and what its script is run on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
from published.peer import Setting
from torch import nn

UTILS = """
def lr_cosine_policy(base, warmup, iterations):
    def schedule(optimizer, iteration, epoch):
        optimizer.param_groups[0]["lr"] = base
    return schedule
"""
SCRIPT = """
import sys
import torch
from torchvision import transforms
from utils import *

seen, argv = [], sys.argv[1:]

def get_images(args, net, verifier, slot):
    x = torch.randn((args.batch_size, 3, 224, 224), requires_grad=True, device="cuda")
    optimizer = torch.optim.SGD([x], lr=0.0)
    schedule = lr_cosine_policy(args.lr, 0, args.iteration)
    for iteration in range(args.iteration):
        schedule(optimizer, iteration, iteration)
        if iteration == FAILS_AT:
            raise ValueError("no more\\nof this")
        print("said")
        views = transforms.RandomResizedCrop(224)(x).cuda()
        optimizer.zero_grad()
        net(views).sum().backward()
        optimizer.step()
        seen.append((iteration, tuple(views.shape), x.detach().clone()))
"""


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", folder, *names, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def make_repository(folder: Path, fails_at: int = -1) -> str:
    """A repository of the shape of SRe2L's; returns its commit."""
    recover = folder / "SRe2L" / "recover"
    recover.mkdir(parents=True)
    (recover / "utils.py").write_text(UTILS)
    (recover / "data_synthesis.py").write_text(SCRIPT.replace("FAILS_AT", str(fails_at)))
    (folder / "other").mkdir()
    (folder / "other" / "big.txt").write_text("not needed\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


def tiny_setting(scratch: Path) -> Setting:
    """Four images of 20 pixels and a small network, on the CPU; makes the folder."""
    scratch.mkdir()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1000))
    return Setting("tiny", net, torch.randn(4, 3, 20, 20), 2, torch.device("cpu"), scratch)
