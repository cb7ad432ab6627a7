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
from torch import Tensor, nn
from torch.nn import functional as F
from traffic import OBJECTIVES, ours, published, traffic

from fastcondense.kernels.crop import crop
from fastcondense.kernels.feature_maps import feature_maps
from fastcondense.kernels.frozen_batch_norm import frozen_batch_norm
from fastcondense.kernels.frozen_batch_norm_pool import frozen_batch_norm_pool
from fastcondense.kernels.pixel_adam import pixel_adam

BIG = 256  # bytes: more than the vectors and tables, of which kernels read parts, or the same part in every program


def normalize(residual: bool, relu: bool) -> None:
    x = torch.randn(2, 24, 9, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    other = torch.randn_like(x).requires_grad_() if residual else None
    vectors = [torch.rand(24) for _ in range(3)]
    y, mean, var = frozen_batch_norm(x, *vectors, residual=other, relu=relu)
    (y.sum() + mean.sum() + var.sum()).backward()


def match_moments_alone() -> None:
    x = torch.randn(2, 24, 9, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    frozen_batch_norm(x, *(torch.rand(24) for _ in range(3)), residual=torch.rand_like(x), relu=True)[
        1
    ].sum().backward()


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


CASES: dict[str, Callable[[], None]] = {
    "bn": lambda: normalize(False, False),
    "bn-relu": lambda: normalize(False, True),
    "bn-residual": lambda: normalize(True, False),
    "bn-residual-relu": lambda: normalize(True, True),
    "bn-moments-alone": match_moments_alone,
    "pool": lambda: pool(False),
    "pool-output": lambda: pool(True),
    "maps": lambda: measure_maps(False, True, False),
    "maps-neighbours": lambda: measure_maps(True, False, True),
    "maps-neighbours-channels": lambda: measure_maps(True, True, True),
    "crop-shared": lambda: cut(True, False),
    "crop-gain": lambda: cut(False, True),
    "adam": step_pixels,
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
        begin, end = x.data_ptr(), x.data_ptr() + x.untyped_storage().nbytes()
        inside = [(at[(begin <= at) & (at < end)], size) for at, size in self.found[kind]]
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
        gathered = [arguments[f"{key}_ptr"].data_ptr() for key in table.gathers.split()]
        pointers = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
        tensors = {x.data_ptr(): x for x in pointers.values()}
        for kind, listed in (("read", table.reads), ("written", table.writes)):
            wanted = {x.data_ptr(): x for x in table.tensors(listed, arguments)}
            for address, x in tensors.items():
                distinct, total = accesses.size(kind, x)
                where = (name, kind, tuple(x.shape))
                assert (distinct > 0) == (address in wanted) and distinct <= size_of(x), where
                if size_of(x) >= BIG and distinct:
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
    monkeypatch.setattr("fastcondense.zoo.build", lambda *_: Tiny())
    plain, hooks, edc, fused = (
        traffic(partial(style, "tiny", OBJECTIVES[name], 64), 100)
        for name, style in (("plain", published), ("sre2l", published), ("edc", published), ("sre2l", ours))
    )
    # BatchNorm 2, ReLU 2; ReLU 3, BatchNorm 2
    assert plain.passes("BatchNorm")["norm"] == pytest.approx(9, abs=0.01)
    # mean 1, copy 2, variance 1; variance 5, mean 1, sums of gradients 6
    assert hooks.passes("BatchNorm")["norm"] == pytest.approx(9 + 16, abs=0.01)
    assert fused.passes("BatchNorm")["all"] == pytest.approx(5, abs=0.1)
    assert edc.passes("convolution input", plain)["conv"] == pytest.approx(38, abs=0.1)
    assert (hooks.syncs, fused.syncs) == (1, 0)
