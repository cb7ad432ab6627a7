"""The byte meter: its table of kernels against Triton's interpreter, its sums against passes counted by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from meter import KERNELS, Meter, launches, metered, size_of
from peers import Objective
from torch import Tensor, nn
from torch.nn import functional as F
from traffic import OBJECTIVES, ours, published, traffic

from fastcondense.kernels.crop import crop
from fastcondense.kernels.feature_maps import feature_maps
from fastcondense.kernels.frozen_batch_norm import Activation, frozen_batch_norm
from fastcondense.kernels.frozen_batch_norm_pool import frozen_batch_norm_pool
from fastcondense.kernels.pixel_adam import pixel_adam
from fastcondense.kernels.replay_crop import replay_crop
from fastcondense.kernels.soft_label import Kind, soft_label_loss

BIG = 256  # bytes: more than the vectors and tables, of which kernels read parts, or the same part in every program


def normalize(activation: Activation, residual: bool, has_output: bool, goes_on: bool = True) -> None:
    x = torch.randn(2, 24, 9, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    other = torch.randn_like(x).requires_grad_() if residual else None
    vectors = [torch.rand(24) for _ in range(4)]
    outputs = frozen_batch_norm(
        x, *vectors[:3], residual=other, activation=activation, output_center=vectors[3] if has_output else None
    )
    torch.stack([output.sum() for output in (outputs if goes_on else outputs[1:])]).sum().backward()


def pool(has_output: bool) -> None:
    x = torch.randn(2, 24, 9, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    vectors = [torch.rand(24) for _ in range(4)]
    outputs = frozen_batch_norm_pool(x, *vectors[:3], output_center=vectors[3] if has_output else None)
    torch.stack([output.sum() for output in outputs]).sum().backward()


def measure_maps(has_neighbours: bool, has_channels: bool, goes_on: bool) -> None:
    x = torch.randn(2, 24, 9, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    outputs = feature_maps(x, torch.rand(24), has_neighbours=has_neighbours, has_channels=has_channels)
    used = outputs if goes_on else outputs[1:]
    torch.stack([output.sum() for output in used if output is not None]).sum().backward()


def cut(shared: bool, gain: bool) -> None:
    images = torch.randn(2, 3, 12, 12).requires_grad_()
    windows = torch.tensor([(0, 0, 12, 12, 1, 2, 3)] * (1 if shared else 2), dtype=torch.int32)
    crop(
        images, windows, 12, gain=torch.ones(3) if gain else None, offset=torch.ones(3) if gain else None
    ).sum().backward()


def step_pixels() -> None:
    images, gradient, first, second = (torch.rand(2, 3, 20, 20) for _ in range(4))
    one, bound = torch.tensor(1.0), torch.ones(3)
    pixel_adam(images, gradient, first, second, one, one, betas=(0.5, 0.9), low=-bound, high=bound)


def replay(mix: str) -> None:
    """Two images, all of whose pixels are seen: with CutMix the right half in their own view, the left in the other."""
    images = torch.randint(256, (2, 3, 12, 12), dtype=torch.uint8)
    ids, windows = torch.arange(2), torch.tensor([(0, 0, 12, 12, 1, 0, 0)] * 2, dtype=torch.int32)
    partners = {} if mix == "none" else {"partners": ids.flip(0), "partner_windows": windows.clone()}
    boxes = torch.tensor([(0, 12, 0, 6)] * 2) if mix == "cutmix" else None
    share = torch.rand(2) if mix == "mixup" else None
    gain, offset = torch.rand(3), torch.rand(3)
    replay_crop(images, ids, windows, 12, gain=gain, offset=offset, boxes=boxes, share=share, **partners)


def soften(kind: Kind, needs_gradient: bool) -> None:
    student = torch.randn(6, 40).requires_grad_(needs_gradient)
    teachers = None if kind == "ce" else torch.randn(2, 6, 40)
    labels, share = torch.arange(6), torch.rand(6)
    loss = soft_label_loss(student, teachers, labels, labels.flip(0), share, kind=kind, ce_weight=0.1)
    if needs_gradient:
        loss.backward()


CASES: dict[str, Callable[[], None]] = {
    "bn": lambda: normalize("none", False, False),
    "bn-relu": lambda: normalize("relu", False, False),
    "bn-residual": lambda: normalize("none", True, False),
    "bn-residual-relu": lambda: normalize("relu", True, False),
    "bn-residual-silu": lambda: normalize("silu", True, False),
    "bn-relu-output": lambda: normalize("relu", False, True),
    "bn-residual-output": lambda: normalize("none", True, True),
    "bn-residual-relu-output": lambda: normalize("relu", True, True),
    "bn-residual-silu-output": lambda: normalize("silu", True, True),
    "bn-moments-alone": lambda: normalize("relu", True, False, goes_on=False),
    "bn-moments-alone-output": lambda: normalize("relu", True, True, goes_on=False),
    "pool": lambda: pool(False),
    "pool-output": lambda: pool(True),
    "maps": lambda: measure_maps(False, True, False),
    "maps-neighbours": lambda: measure_maps(True, False, True),
    "maps-neighbours-channels": lambda: measure_maps(True, True, True),
    "crop-shared": lambda: cut(True, False),
    "crop-gain": lambda: cut(False, True),
    "adam": step_pixels,
    "replay": lambda: replay("none"),
    "replay-cutmix": lambda: replay("cutmix"),
    "replay-mixup": lambda: replay("mixup"),
    "labels-kl": lambda: soften("kl", True),
    "labels-kl-evaluation": lambda: soften("kl", False),
    "labels-mse": lambda: soften("mse_ce", True),
    "labels-ce": lambda: soften("ce", True),
}


class Accesses:
    """Addresses that the interpreted kernel loads and stores, in bytes of distinct elements of each tensor."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[np.ndarray, int]]] = defaultdict(list)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        from triton.runtime.interpreter import InterpreterBuilder

        def seen(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def access(builder: Any, pointers: Any, *args: Any) -> Any:
                mask = args[0] if kind == "read" else args[1]
                size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
                addresses, live = np.broadcast_arrays(pointers.data, mask.data.astype(bool))
                self.found[kind].append((addresses[live].astype(np.int64), size))
                return function(builder, pointers, *args)

            return access

        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
        with (
            mock.patch.object(InterpreterBuilder, "create_masked_load", seen("read", load)),
            mock.patch.object(InterpreterBuilder, "create_masked_store", seen("written", store)),
        ):
            yield

    def size(self, kind: str, x: Tensor) -> tuple[int, int]:
        """Bytes of x's distinct elements that were accessed, and of all accesses."""
        elements = x.data_ptr() + np.array(0)
        for extent, stride in zip(x.shape, x.stride(), strict=True):
            elements = np.add.outer(elements, np.arange(extent) * stride * x.element_size())
        inside = [(at[np.isin(at, elements)], size) for at, size in self.found[kind]]
        distinct = {(address, size) for at, size in inside for address in at.tolist()}
        return sum(size for _, size in distinct), sum(at.size * size for at, size in inside)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("case", CASES)
def test_the_table_says_what_kernels_read_and_write(case: str) -> None:
    names = []

    def check(name: str, arguments: dict[str, Any], execute: Callable[[], None]) -> None:
        accesses = Accesses()
        with accesses.recorded():
            execute()
        names.append(name)
        table = KERNELS[name]
        # of what corrections stands for in each step, one step is read
        table_of_steps = arguments["corrections_ptr"].data_ptr() if "corrections_ptr" in arguments else None
        gathered = [arguments[f"{key}_ptr"].data_ptr() for key in table.gathers.split()]
        tensors = {x.data_ptr(): x for x in arguments.values() if isinstance(x, Tensor) and x.numel()}
        for kind, listed in (("read", table.reads), ("written", table.writes)):
            wanted = {x.data_ptr(): x for x in table.tensors(listed, arguments)}
            for address, x in tensors.items():
                distinct, total = accesses.size(kind, x)
                where = (name, kind, tuple(x.shape))
                assert (distinct > 0) == (address in wanted) and distinct <= size_of(x), where
                if size_of(x) >= BIG and distinct and x.data_ptr() != table_of_steps:
                    assert distinct == size_of(x), where
                if size_of(x) >= BIG and x.dim() > 1 and address not in gathered:
                    assert total == distinct, where

    with launches(check):
        CASES[case]()
    assert names


def test_every_kernel_of_the_table_is_checked() -> None:
    seen = set()
    with launches(lambda name, *_: seen.add(name)):
        for case in CASES.values():
            case()
    assert seen == KERNELS.keys()


def test_operators_read_and_write_once() -> None:
    meter = Meter()
    x = torch.randn(8, 16, 4, 4, requires_grad=True)
    size = size_of(x)
    with metered(meter):
        meter.enter("forward", "layer")
        y = F.relu(x.permute(1, 0, 2, 3).contiguous())  # a copy and a ReLU
        y.backward(torch.ones(1, 1, 1, 1).expand_as(y))
        z = x.detach().add_(1)[torch.tensor([1, 2])]
    moved = [(record.part, record.layer, record.name, record.read, record.written) for record in meter.records]
    assert moved[:2] == [("forward", "layer", "clone", size, size), ("forward", "layer", "relu", size, size)]
    assert ("forward", "layer", "threshold_backward", size + 4, size) in moved
    assert ("update", "", "add_", size, size) in moved
    assert moved[-1] == ("update", "", "index", size_of(z) + 16, size_of(z))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.relu, self.last, self.head = nn.ReLU(), nn.Conv2d(16, 4, 1), nn.Linear(4, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.relu(self.norm(self.conv(x)))).mean((2, 3)))


def test_passes_over_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcondense.networks.zoo.build", lambda *_: Tiny())
    steps = (("plain", published), ("sre2l", published), ("edc", published), ("sre2l", ours), ("edc", ours))
    plain, hooks, edc, fused, fused_edc = (
        traffic(partial(style, "tiny", OBJECTIVES[name], 64), 100) for name, style in steps
    )
    # BatchNorm 2, ReLU 2; ReLU 3, BatchNorm 2
    assert plain.passes("BatchNorm")["norm"] == pytest.approx(9, abs=0.01)
    # mean 1, copy 2, variance 1; variance 5, mean 1, sums of gradients 6
    assert hooks.passes("BatchNorm")["norm"] == pytest.approx(9 + 16, abs=0.01)
    assert fused.passes("BatchNorm")["all"] == pytest.approx(5, abs=0.1)
    assert edc.passes("convolution input", plain)["conv"] == pytest.approx(38, abs=0.1)
    # patches: read forward; gradient and input read, gradient written; the BatchNorm has the channels' moments
    assert fused_edc.passes("convolution input", plain)["last"] == pytest.approx(4, abs=0.3)
    assert fused_edc.passes("BatchNorm")["all"] == pytest.approx(5, abs=0.4)
    assert (hooks.syncs, fused.syncs, fused_edc.syncs) == (1, 0, 0)


def test_what_the_host_waits_for_and_what_it_sends_is_counted() -> None:
    meter = Meter()
    with metered(meter):
        x = torch.zeros(3) + torch.arange(3)
        assert (meter.syncs, meter.uploads) == (0, 0)
        x += torch.tensor([1.0, 2.0, 3.0])
        assert (meter.syncs, meter.uploads) == (0, 1)
        float(x[0])
    assert (meter.syncs, meter.uploads) == (1, 1)


def test_a_step_of_edc_takes_patches_of_one_size_together() -> None:
    meter = ours("torchvision/resnet18", Objective("edc"), 64, 2)
    assert len(meter.records) <= 320 and (meter.syncs, meter.uploads) == (0, 0)


def test_a_step_of_sre2l_launches_nothing_for_gradients_that_are_none() -> None:
    meter = ours("torchvision/resnet18", Objective("sre2l"), 64, 2)
    assert (meter.syncs, meter.uploads) == (0, 0)
    assert len(meter.records) <= 160 and "zeros_like" not in {record.name for record in meter.records}
