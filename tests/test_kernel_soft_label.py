"""soft_label_loss' Triton kernels against float64 autograd of its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import DEVICE, TOLERANCE, poisoned, relative_rms
from test_soft_label import KINDS, expected, gradient_floor, problem
from torch import Tensor

from fastcondense.kernels.soft_label.gpu import SoftLabelLoss


def loss_and_gradient(tensors: dict[str, Any], settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    student, *others = (None if value is None else value.detach().to(DEVICE) for value in tensors.values())
    assert student is not None
    student.requires_grad_()
    options = (settings["kind"], settings.get("temperature", 1.0), settings.get("ce_weight", 0.0))
    with poisoned():
        loss = SoftLabelLoss.apply(student, *others, *options)
        (gradient,) = torch.autograd.grad(3 * loss, student)
    return loss, gradient


def check(name: str, shape: tuple[int, int], spread: str = "usual", teachers: int = 2, rising: bool = False) -> None:
    tensors, settings = problem(name, shape, spread, teachers)
    if rising:
        for logits in ("student", "teachers"):
            tensors[logits] = None if tensors[logits] is None else tensors[logits].sort(-1).values
    loss, gradient = loss_and_gradient(tensors, settings)
    wanted, wanted_gradient = expected(tensors, settings)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert relative_rms(loss, wanted, 1e-2) <= 1e-6
    assert relative_rms(gradient, wanted_gradient, gradient_floor(tensors, settings)) <= 1e-6


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", [(5, 1), (7, 3), (150, 10), (2, 1000), (1, 1003)], ids=str)
def test_equals_float64_autograd(shape: tuple[int, int], name: str) -> None:
    check(name, shape)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("spread", ["large", "close"])
def test_far_logits_and_close_ones(spread: str, name: str) -> None:
    check(name, (6, 100), spread)


@pytest.mark.parametrize("name", KINDS)
def test_the_maximum_may_come_in_the_last_block(name: str) -> None:
    check(name, (2, 4100), rising=True)


@pytest.mark.parametrize("teachers", [1, 5])
def test_any_number_of_teachers(teachers: int) -> None:
    check("kl", (6, 10), teachers=teachers)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_students(dtype: torch.dtype, name: str) -> None:
    tensors, settings = problem(name, (6, 100), dtype=dtype)
    loss, gradient = loss_and_gradient(tensors, settings)
    wanted, wanted_gradient = expected(tensors, settings)
    assert gradient.dtype == dtype and relative_rms(loss, wanted, 1e-2) <= 1e-6
    # Rounded twice: as it is stored, and when it is scaled.
    assert relative_rms(gradient, wanted_gradient) <= 2 * TOLERANCE[dtype]


def test_two_runs_agree_bit_for_bit() -> None:
    for name in ("kl", "mse_ce"):
        runs = [loss_and_gradient(*problem(name, (150, 10))) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_what_is_not_a_number_shows() -> None:
    for name in KINDS:
        tensors, settings = problem(name, (4, 20))
        tensors["student"][1, 7] = float("nan")
        assert loss_and_gradient(tensors, settings)[0].isnan()
    tensors, settings = problem("ce", (4, 20))
    tensors["labels"][2] = 20
    assert loss_and_gradient(tensors, settings)[0].isnan()
