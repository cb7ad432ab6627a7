"""soft_label_loss against float64 autograd of its definition, near zero divergence and far from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import ROUNDED, poisoned, relative_rms
from torch import Tensor

from fastcondense.kernels.soft_label import soft_label_loss
from fastcondense.kernels.soft_label.definition import soft_label_loss_reference

KINDS: dict[str, dict[str, Any]] = {
    "kl": {"kind": "kl", "temperature": 20.0},
    "kl-cold": {"kind": "kl"},
    "kl_t2": {"kind": "kl_t2", "temperature": 4.0},
    "mse_ce": {"kind": "mse_ce", "ce_weight": 0.3},
    "mse": {"kind": "mse_ce"},
    "ce": {"kind": "ce"},
}
# Deviation of the logits, and of the student's from the teachers'.
SPREADS = {"usual": (3.0, 1.0), "large": (80.0, 80.0), "close": (3.0, 1e-3)}


def problem(
    name: str, shape: tuple[int, int], spread: str = "usual", teachers: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and settings of soft_label_loss for logits of `shape`; the students' are of `dtype`."""
    generator = torch.Generator().manual_seed(0)
    scale, distance = SPREADS[spread]
    logits = torch.randn(teachers, *shape, generator=generator) * scale
    student = logits.mean(0) + distance * torch.randn(shape, generator=generator)
    tensors = {
        "student": student.to(dtype),
        "teachers": None if name == "ce" else logits,
        "labels": torch.randint(shape[1], shape[:1], generator=generator),
        "partners": torch.randint(shape[1], shape[:1], generator=generator),
        "share": torch.rand(shape[:1], generator=generator),
    }
    return tensors, KINDS[name]


def expected(tensors: dict[str, Any], settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Loss and the student's gradient, times 3 as an upstream gradient would have it, in float64 on the CPU."""
    leaf = tensors["student"].detach().double().requires_grad_()
    loss = soft_label_loss_reference(**tensors | {"student": leaf}, **settings)
    return loss.detach(), torch.autograd.grad(3 * loss, leaf)[0]


def gradient_floor(tensors: dict[str, Any], settings: dict[str, Any]) -> float:
    """Root mean square of softmax(student / tau) / (3 tau B), times 3 as the upstream gradient (and tau^2).

    The gradient of a divergence is a difference of two probabilities, which float32 knows to about 3e-7 of themselves.
    """
    tau = settings.get("temperature", 1.0)
    softmax = torch.softmax(tensors["student"].detach().double() / tau, 1)
    power = 1 if settings["kind"] == "kl_t2" else -1
    return float(softmax.square().mean().sqrt() * tau**power / len(softmax))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("shape", [(5, 1), (7, 3), (130, 10), (1, 1003)], ids=str)
def test_equals_float64_autograd(shape: tuple[int, int], spread: str, name: str) -> None:
    tensors, settings = problem(name, shape, spread)
    leaf = tensors["student"].requires_grad_()
    with poisoned():
        loss = soft_label_loss(**tensors, **settings)
        (gradient,) = torch.autograd.grad(3 * loss, leaf)
    wanted, wanted_gradient = expected(tensors, settings)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert relative_rms(loss, wanted, 1e-2) <= 1e-6
    assert relative_rms(gradient, wanted_gradient, gradient_floor(tensors, settings)) <= 1e-6


@pytest.mark.parametrize("kind", ["kl", "kl_t2"])
def test_a_tiny_divergence_keeps_its_digits(kind: str) -> None:
    settings: dict[str, Any] = {"kind": kind, "temperature": 20.0}
    tensors, _ = problem("kl", (16, 100), teachers=1)
    tensors["student"] = tensors["teachers"][0] + 2.0**-5 * torch.randint(-1, 2, (16, 100))
    assert relative_rms(soft_label_loss(**tensors, **settings), expected(tensors, settings)[0]) <= 1e-4
    tensors["student"] = tensors["teachers"][0]
    assert soft_label_loss(**tensors, **settings) == 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, name: str) -> None:
    tensors, settings = problem(name, (6, 10), dtype=dtype)
    leaf = tensors["student"].requires_grad_()
    loss = soft_label_loss(**tensors, **settings)
    (gradient,) = torch.autograd.grad(3 * loss, leaf)
    wanted, wanted_gradient = expected(tensors, settings)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and gradient.dtype == dtype
    assert relative_rms(loss, wanted, 1e-2) <= (1e-12 if dtype == torch.float64 else 1e-5)  # PyTorch's, in float32
    assert relative_rms(gradient, wanted_gradient) <= ROUNDED.get(dtype, 1e-12)


def test_the_definition_by_hand() -> None:
    torch.manual_seed(0)
    z, t = torch.randn(6, 5, dtype=torch.float64), torch.randn(2, 6, 5, dtype=torch.float64)
    labels, partners, share = torch.arange(6) % 5, torch.arange(6) % 3, torch.rand(6, dtype=torch.float64)
    hard = torch.zeros(6, 5, dtype=torch.float64)
    for row in range(6):
        hard[row, labels[row]] += share[row]
        hard[row, partners[row]] += 1 - share[row]
    p, q = torch.softmax(t.mean(0) / 4, 1), torch.softmax(z / 4, 1)
    divergence = (p * (p / q).log()).sum() / 6
    entropy = -(hard * torch.log_softmax(z, 1)).sum(1).mean()
    losses = {
        "kl": divergence,
        "kl_t2": 16 * divergence,
        "mse_ce": ((z - t.mean(0)) ** 2).mean() + 0.3 * entropy,
        "ce": entropy,
    }
    for kind, wanted in losses.items():
        settings: dict[str, Any] = {"kind": kind, "temperature": 4.0, "ce_weight": 0.3}
        teachers = None if kind == "ce" else t
        torch.testing.assert_close(soft_label_loss(z, teachers, labels, partners, share, **settings), wanted)


def test_threads_move_no_bit() -> None:
    tensors, settings = problem("mse_ce", (301, 37))
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            leaf = tensors["student"].clone().requires_grad_()
            loss = soft_label_loss(**tensors | {"student": leaf}, **settings)
            runs.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_diverged_student_shows() -> None:
    for name in KINDS:
        for value in (float("nan"), float("inf")):
            tensors, settings = problem(name, (4, 20))
            tensors["student"][1, 7] = value
            assert not torch.isfinite(soft_label_loss(**tensors, **settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(6)}, "logits"),
        ({"kind": "l1"}, "kind"),
        ({"kind": "ce"}, "no teachers"),
        ({"teachers": None}, "needs teachers"),
        ({"teachers": torch.zeros(6, 10)}, "teachers of shape"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, "labels of shape"),
        ({"labels": torch.full((6,), 10)}, "labels in"),
        ({"partners": torch.full((6,), -1)}, "partners in"),
        ({"share": torch.zeros(6, 1)}, "share of shape"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    tensors, settings = problem("kl", (6, 10))
    with pytest.raises(ValueError, match=message):
        soft_label_loss(**tensors | settings | change)
