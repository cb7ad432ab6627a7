"""The profile of a step: whose time an event is, bytes by part, and a whole profile of a small network."""

import argparse
import json
from types import SimpleNamespace

import pytest
import torch
from meter import Record
from peers import Objective
from session import Session
from step_profile import HOST, REST, metered_bytes, milliseconds, part, profile
from torch.autograd import DeviceType

from fastcondense.networks import zoo

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Crop", "crop, forward"),
        ("CropBackward", "crop, backward"),
        ("autograd::engine::evaluate_function: FrozenBatchNormBackward", "frozen batch norm, backward"),
        ("FrozenBatchNormPool", "frozen batch norm and pool, forward"),
        ("_PatchMoments", "statistics of maps, forward"),
        ("aten::mkldnn_convolution", "convolutions, forward"),
        ("aten::cudnn_convolution", "convolutions, forward"),
        ("aten::convolution_backward", "convolutions, backward"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "convolutions, backward"),
        ("aten::addmm", "linear layer, forward"),
        ("AddmmBackward0", "linear layer, backward"),
        ("aten::max_pool2d_with_indices_backward", "pooling, backward"),
        ("_DistancesBackward", "distances"),
        ("pixel_adam", "Adam and clip"),
        ("step", HOST),
        ("aten::stack", None),
    ],
)
def test_events_belong_to_operators(name, wanted):
    assert part(name) == wanted


def test_bytes_grow_with_the_images():
    def records(images):
        made = [Record("", "", "convolution", 100 + 10 * images, 5 * images)]  # 100 of weights
        return [*made, Record("", "", "crop.backward_kernel", 4 * images, 4 * images)]

    assert metered_bytes(records(2), records(4), 100) == {"convolutions, forward": 1600, "crop, backward": 800}


def event(name, start, end=None, own=0.0, above=None, kernels=(), device=DeviceType.CPU, is_user_annotation=False):
    """As torch.profiler's; kernels: how long those took that it launched."""
    owned, span = [SimpleNamespace(duration=duration) for duration in kernels], SimpleNamespace(start=start, end=end)
    times = {"time_range": span, "self_cpu_time_total": own, "kernels": owned}
    return SimpleNamespace(
        name=name, cpu_parent=above, device_type=device, is_user_annotation=is_user_annotation, **times
    )


def test_time_is_given_to_the_nearest_known_event_of_each_step():
    steps = [event("step", start, own=100) for start in (0, 1000)]
    conv = event("aten::convolution", 10, own=200, above=steps[0])
    inner = event("aten::empty", 20, own=50, above=conv)
    back, loose = event("CropBackward", 1010, own=400), event("aten::add", 1020, own=30)
    before, kernel = event("Crop", -5, own=999), event("Crop", 5, own=999, device=DeviceType.CUDA)
    found = milliseconds([*steps, conv, inner, back, loose, before, kernel], CPU)
    assert found == {
        HOST: [0.1, 0.1],
        "convolutions, forward": [0.25, 0.0],
        "crop, backward": [0.0, 0.4],
        REST: [0.0, 0.03],
    }


def test_a_gpus_time_is_that_of_kernels_and_what_no_event_owns_is_not_lost():
    step = event("step", 0, 1000)
    conv = event("aten::convolution", 10, 20, above=step, kernels=[300.0])
    loose = event("aten::add", 30, 40, above=step, kernels=[100.0])
    kernels = [event("k", start, end, device=DeviceType.CUDA) for start, end in ((50, 350), (350, 450), (450, 650))]
    shadow = event("step", 50, 650, device=DeviceType.CUDA, is_user_annotation=True)
    found = milliseconds([step, conv, loose, *kernels, shadow], torch.device("cuda"))
    assert found == {"convolutions, forward": [0.3], REST: [pytest.approx(0.3)], HOST: [0.4]}


@pytest.mark.parametrize("statistics", ["sre2l", "edc"])
def test_a_profile_names_every_operator_of_the_step(tmp_path, capsys, statistics):
    torch.manual_seed(0)
    session = Session("recover", tmp_path / "x.jsonl")
    options = argparse.Namespace(network="zoo/resnet20", images=3, size=32, repeats=2, warmup=1)
    objective = Objective(statistics, tv_weight=0.1, l2_weight=0.1)
    profile(session, zoo.build("zoo/resnet20", 1000), objective, "fp32", tmp_path / "trace.json", options)
    lines = {line["variant"]: line for line in map(json.loads, session.out.read_text().splitlines())}
    wanted = {
        f"{name}, {way}" for name in ("crop", "convolutions", "frozen batch norm") for way in ("forward", "backward")
    }
    wanted |= {"Adam and clip", "distances"} | ({"statistics of maps, forward"} if statistics == "edc" else set())
    assert wanted <= lines.keys()
    assert sum(line["share_of_step"] for line in lines.values()) == pytest.approx(1, abs=2e-3)
    assert lines["convolutions, backward"]["bytes"] > 1e6 and 0 < lines["Adam and clip"]["share_of_copy"]
    # images, gradient and two moments are read, and all but the gradient are written: 7 x 4 bytes a pixel; and a table
    assert lines["Adam and clip"]["bytes"] == pytest.approx(7 * 4 * 3 * 3 * 32 * 32, rel=0.02)
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert {"Crop", "step"} <= {event.get("name") for event in trace["traceEvents"]}
    assert "of a copy" in capsys.readouterr().out
