"""The device that a command works on."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:N; auto takes a GPU if there is one. Raises ValueError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"there is no device {name!r} here") from None
    torch.backends.cudnn.deterministic = True  # the same job gives the same images
    return device
