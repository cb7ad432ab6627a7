"""The benchmarks' instrument, and that every variant of a recover step really is the step it says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from measure import Rotation, Timing, beyond_cache, environment, interleaved, write
from operators import OPERATORS, Case
from peers import Objective, PeerStep, Style
from session import Session
from steps import our_step
from torch import Tensor, nn

import kernels
from fastcondense.networks.precision import network_dtype
from fastcondense.recipe.shared import Precision

CPU = torch.device("cpu")


def test_variants_take_turns_in_a_rotating_order() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = interleaved(variants, repeats=3, warmup=1, device=CPU)
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert all(0 <= timing.low <= timing.median <= timing.high for timing in timings.values())


def test_median_and_quartiles() -> None:
    assert Timing.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Timing(3.0, 2.0, 4.0)
    assert Timing.of([1.23456, 1.23456]).line() == {"median_ms": 1.235, "quartiles_ms": [1.235, 1.235]}


def test_inputs_rotate_beyond_the_cache() -> None:
    x = torch.ones(8, 4, 256, 256).contiguous(memory_format=torch.channels_last).requires_grad_()
    rotation = Rotation([x], CPU)
    assert (len(rotation.copies) - 1) * x.numel() * 4 >= beyond_cache(CPU)
    seen = [next(rotation)[0] for _ in range(2 * len(rotation.copies))]
    assert len({y.data_ptr() for y in seen}) == len(rotation.copies)
    assert all(y.requires_grad and y.is_leaf and y.stride() == x.stride() for y in seen)


def test_lines_are_written_at_once_with_the_environment(tmp_path: Path) -> None:
    out = tmp_path / "new" / "lines.jsonl"
    write([{"a": 1}], out)
    write([{"a": 2}], out)
    write([{"a": 3}], None)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["a"] for line in lines] == [1, 2]
    assert lines[0]["environment"] == environment()
    assert {"device", "driver", "torch", "triton", "numba", "commit", "date", "time", "threads"} <= environment().keys()


def test_lines_of_an_operator_whose_tests_fail_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing:
        def problem(self, tests: list[str]) -> str | None:
            return "tests/test_crop.py: 1 failed" if tests[0].endswith("crop") else None

    session = Session("kernels", tmp_path / "x.jsonl")
    options = argparse.Namespace(operators=["crop"], gate=Failing(), cases=1, repeats=2, warmup=0, variants=["ours"])
    kernels.run(session, options)
    assert session.finish() == 1
    assert "crop: its tests fail (tests/test_crop.py: 1 failed); its lines are marked" in capsys.readouterr().out
    lines = [json.loads(line) for line in session.out.read_text().splitlines()]
    assert [line["failing"] for line in lines if "median_ms" in line] == 2 * ["tests/test_crop.py: 1 failed"]


def test_forward_and_backward_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def square(x: Tensor) -> list[Tensor]:
        return [x * x]

    monkeypatch.setattr("measure._CPU_CACHE", 1e3)
    case = Case("square", torch.float32, [torch.ones(99).requires_grad_()], {"ours": square}, 800, 1200)
    found = {which: (size, list(timings)) for which, size, timings in kernels.times(case, 2, 1, Session("x"))}
    assert found == {"forward": (800, ["ours"]), "backward": (1200, ["ours"])}


@pytest.mark.parametrize(("operator", "k"), [(name, k) for name, cases in OPERATORS.items() for k in range(len(cases))])
def test_operators_agree_with_their_peers(operator: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("operators.IMAGES", 2 if operator == "replay_crop" else 1)
    case = OPERATORS[operator][k]()
    results = {}
    for name, function in case.variants.items():
        if name != "compiled":
            results[name] = function(*(x.detach().clone().requires_grad_(x.requires_grad) for x in case.inputs))
    for name, outputs in results.items():
        for ours, theirs in zip(results["ours"], outputs, strict=True):
            tolerance = 1e-3 if case.dtype == torch.float32 else 3e-2
            # moments are float32 in ours, of the maps' own type in theirs
            torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=tolerance, atol=tolerance, msg=name)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.norm(self.first(x)))).mean((2, 3)))


STYLES = {
    "published": Style(),
    "no-sync": Style(reads_loss=False),
    "bf16": Style(bf16=True, channels_last=True, reads_loss=False),
}


@pytest.mark.parametrize("statistics", ["none", "sre2l", "edc"])
@pytest.mark.parametrize("style", STYLES)
def test_peer_steps_move_their_images(statistics: str, style: str) -> None:
    torch.manual_seed(0)
    step = PeerStep(Tiny(), 3, 20, Objective(statistics, tv_weight=0.1), STYLES[style], CPU, num_classes=10)
    before = step.images.detach().clone()
    step()
    step()
    assert torch.isfinite(step.images).all() and not torch.equal(step.images, before)
    assert len(step.loss.hooks) == {"none": 0, "sre2l": 1, "edc": 3}[statistics]
    assert (step.best is None) == (not STYLES[style].reads_loss)


@pytest.mark.parametrize("statistics", ["none", "sre2l", "edc"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_our_step_moves_its_images(statistics: str, precision: Precision) -> None:
    torch.manual_seed(0)
    step = our_step(Tiny(), 3, 20, Objective(statistics, tv_weight=0.1), CPU, precision, num_classes=10)
    before, advance = step.images.clone(), step.captured()
    for _ in range(step.recover.iterations + 1):
        advance()
    assert torch.isfinite(step.images).all() and not torch.equal(step.images, before)
    assert step.step.item() == 1
    assert {weight.dtype for weight in step.teachers[0].fused.parameters()} == {network_dtype(precision)}
    assert bool(step.losses[:, 2].all()) == (statistics != "none")
    assert len(step.matching[0].targets) == (2 if statistics == "edc" else 1)


def test_patch_statistics_of_the_edc_peer() -> None:
    """With zero targets and the first visit, the distance is that of the statistics times 1 - momentum in value."""
    torch.manual_seed(0)
    step = PeerStep(Tiny(), 3, 20, Objective("edc"), Style(), CPU, num_classes=10)
    hook = step.loss.hooks[0]
    for name, buffer in hook.named_buffers(recurse=False):
        if name.startswith(("target", "classes", "average")):
            buffer.zero_()
    view = torch.randn(3, 3, 20, 20)
    step.loss(view)
    resized = torch.nn.functional.interpolate(view.double(), (32, 32), mode="bilinear")
    tiles = resized.unfold(2, 16, 16).unfold(3, 16, 16)
    wanted = sum(
        torch.linalg.vector_norm(statistic)
        for statistic in (
            view.double().mean((0, 2, 3)),
            view.double().var((0, 2, 3), correction=0),
            tiles.mean((0, 1, 4, 5)),
            tiles.var((0, 1, 4, 5), correction=0),
        )
    )
    assert hook.distance.item() == pytest.approx(0.6 * wanted.item(), rel=1e-5)
