"""Published code beside ours: adapters run the repository's own loop, and what is reported of it.

The repositories here are small fakes. Where FASTCONDENSE_PEERS names the fetched ones, their scripts run too.
"""

from __future__ import annotations

import json
import os
import types
from dataclasses import replace
from pathlib import Path

import peer_steps
import pytest
import runner
import torch
from fake_peers import make_repository, tiny_setting
from measure import Timing
from published.isolation import Overlay
from published.ours import recover_step
from published.peer import Setting, Step, Unavailable, load, prepared
from published.real_images import pixels, read_images, write_arrays, write_class
from published.repository import SRE2L, Repository
from published.sre2l import SRe2L
from published.statistics_peers import StatisticsFiles
from session import Session
from torch import nn

from fastcondense.networks import zoo

METHODS = ("sre2l", "gvbsm", "edc", "rded")


@pytest.fixture
def pinned(tmp_path: Path) -> Repository:
    return replace(SRE2L, commit=make_repository(tmp_path / "peers" / "SRe2L"))


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return tiny_setting(tmp_path / "scratch")


def adapter(pinned: Repository) -> SRe2L:
    peer = SRe2L()
    peer.repository = pinned
    return peer


# --- adapters --------------------------------------------------------------------------------------------------------


def test_an_adapter_runs_the_repositorys_own_loop(tmp_path, pinned, setting, capsys) -> None:
    step = prepared(adapter(pinned), tmp_path / "peers", setting)
    assert isinstance(step, Step)
    seen = step.advance._loop.__closure__  # the script's module is what its loop closes over
    module = next(cell.cell_contents for cell in seen if isinstance(cell.cell_contents, types.ModuleType))
    assert len(module.seen) == 1
    step.advance()
    assert [iteration for iteration, _, _ in module.seen] == [0, 1]
    assert {shape for _, shape, _ in module.seen} == {(4, 3, 20, 20)}
    moved = [(images - setting.images).abs().max().item() for _, _, images in module.seen]
    assert 0 < moved[0] < moved[1] < 0.1  # from the given images, which stay as they were
    assert any("20 pixels in place of 224" in line for line in step.adaptations)
    step.close()
    assert capsys.readouterr().out == ""
    assert not (setting.scratch / "syn_data").exists()


def test_a_peer_that_raises_is_reported_with_its_error(tmp_path: Path, setting: Setting) -> None:
    for fails_at in (0, 1):
        peers = tmp_path / str(fails_at)
        peer = adapter(replace(SRE2L, commit=make_repository(peers / "SRe2L", fails_at)))
        found = prepared(peer, peers, setting)
        if fails_at == 0:
            assert found == Unavailable("failed", "ValueError: no more")
        else:
            with pytest.raises(ValueError, match="no more"):
                found.advance()


def test_statistics_that_are_not_there_have_the_layers_shapes() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1)
    ).eval()
    files = StatisticsFiles(net, 40)
    found = files.load("a/ConvFeatureHook/class_7/Sequential=0/running.npz")
    assert (len(found["running_dd_var"]), len(found["running_patch_mean"])) == (3, 9)  # 40 pixels: 3 x 3 of 16
    found = files.load("a/BNFeatureHook/Sequential=2/running.npz")
    assert (len(found["running_dd_mean"]), len(found["running_patch_var"])) == (8, 4)
    assert not any(module._forward_hooks for module in net)


def test_given_images_become_files(setting: Setting) -> None:
    digits = read_images(None, 1800, 8)  # one more than there are is the first again
    assert torch.equal(digits[1797], digits[0]) and digits.shape == (1800, 3, 8, 8)
    wanted = digits[:20]
    given = replace(setting, images=wanted)
    shown = pixels(wanted).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert (shown - (wanted * std + mean)).abs().max() <= 0.5 / 255 + 1e-6
    again = read_images(write_class(given) / "train", 20, 8)
    assert (again - wanted).abs().mean() < 0.2  # JPEG
    assert (write_arrays(given, 10) / "train.npz").exists()


# --- results ---------------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_of_what_was_measured(tmp_path: Path) -> None:
    session = Session("peers", tmp_path / "lines.jsonl")
    steps = {"published-code": Step(lambda: None, ("changed",)), "ours-fp32": Step(lambda: None)}
    timings = {"ours-fp32": Timing(2.0, 1.0, 3.0), "published-code": Timing(5.0, 4.0, 6.0)}
    peer_steps.report(session, "edc", steps, timings, {"shapes": [(2, 3, 4, 4)]})
    published, measured = lines_of(tmp_path / "lines.jsonl")
    assert (published["peer"], published["adaptations"]) == ("shaoshitong/EDC@80116a7", ["changed"])
    assert (measured["variant"], measured["median_ms"], measured["published_over_it"]) == ("ours-fp32", 2.0, 2.5)


def test_a_benchmark_without_peers_says_so_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTCONDENSE_PEERS", raising=False)
    out = tmp_path / "lines.jsonl"
    assert runner.main(["peers", "--quick", "--no-gate", "--out", str(out)]) == 0
    lines = lines_of(out)
    assert [line["what"] for line in lines] == [f"{name} {peer_steps.PEERS[name].repository}" for name in METHODS]
    assert all(line["skipped"].startswith("absent: no folder of peers was named") for line in lines)


def test_the_published_code_is_timed_beside_ours(tmp_path, pinned, monkeypatch) -> None:
    monkeypatch.setitem(peer_steps.PEERS, "sre2l", adapter(pinned))
    out = tmp_path / "lines.jsonl"
    options = ["--methods", "sre2l", "--peers", str(tmp_path / "peers"), "--out", str(out)]
    assert runner.main(["peers", "--quick", "--no-gate", *options]) == 0
    measured = {line["variant"]: line for line in lines_of(out) if "skipped" not in line}
    assert {"published-code", "published-style", "ours-fp32"} <= set(measured)
    code, ours = measured["published-code"], measured["ours-fp32"]
    assert ours["published_over_it"] == pytest.approx(code["median_ms"] / ours["median_ms"], rel=0.01)
    assert code["shapes"] == ours["shapes"] == [[4, 3, 16, 16]] and code["published_over_it"] == 1
    assert [line["what"] for line in lines_of(out) if "skipped" in line] == ["sre2l compiled"]


IS_FETCHED = pytest.mark.skipif("FASTCONDENSE_PEERS" not in os.environ, reason="FASTCONDENSE_PEERS names no folder")


@pytest.fixture
def real(setting: Setting) -> Setting:
    """Digits and a ResNet-18 whose running statistics are not those of a new one."""
    torch.manual_seed(0)
    net = zoo.build("torchvision/resnet18", 1000)
    images = read_images(None, 8, 32)
    with torch.no_grad():
        net.train()(images + torch.randn_like(images))
    return replace(setting, net=net.eval(), images=images)


@IS_FETCHED
def test_rdeds_repository(real: Setting) -> None:
    step = prepared(peer_steps.PEERS["rded"], Path(os.environ["FASTCONDENSE_PEERS"]), real)
    assert isinstance(step, Step), step
    step.advance()


@IS_FETCHED
@pytest.mark.parametrize("method", ["sre2l", "gvbsm", "edc"])
def test_the_published_code_and_ours_minimise_the_same_loss(method, real, monkeypatch) -> None:
    """At the first iteration, on uncropped images: what the published script says of its loss, and our step's."""
    said: dict[str, float] = {}

    def say(*words: object) -> None:
        if len(words) == 2:
            said.setdefault(str(words[0]), float(words[1]))

    def load_uncropped(*arguments, **options):
        (module,) = load(*arguments, **options)
        still = {"RandomResizedCrop": lambda *_, **__: nn.Identity(), "RandomHorizontalFlip": nn.Identity}
        module.__dict__.update(print=say, transforms=Overlay(module.transforms, **still))
        return [module]

    for module in ("published.sre2l", "published.statistics_peers"):
        monkeypatch.setattr(f"{module}.load", load_uncropped)
    monkeypatch.setattr(Setting, "jitter", 0)
    monkeypatch.setattr("published.peer.SIZE", 32)
    step = prepared(peer_steps.PEERS[method], Path(os.environ["FASTCONDENSE_PEERS"]), real)
    assert isinstance(step, Step), step
    step.close()
    ours = recover_step(method, real, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    ours()
    total, entropy, _ = ours.losses[0].tolist()
    assert said["main criterion"] == pytest.approx(entropy, rel=1e-4)
    assert said["total loss"] == pytest.approx(total, rel=1e-4)
    assert total > entropy + 0.1
