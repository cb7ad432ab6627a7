"""Precision "auto": what a device gets, where it is written down, and that whoever goes on computes the same."""

from dataclasses import replace

import pytest
import torch
from small import fastcondense, shards

from fastcondense import devices
from fastcondense.devices import fastest_arithmetic
from fastcondense.networks.precision import arithmetic, network_dtype
from fastcondense.recipe.precision import PARTS, precisions, settled, with_precisions
from fastcondense.recipe.recipe import Recipe, from_toml, load, names
from fastcondense.run import Run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AUTO = [word for part in ("recover", "labels", "train") for word in (f"--{part}.precision", "auto")]


INTEL, AMD = "Intel(R) Xeon(R) Processor", "AMD EPYC"


def has_amx(monkeypatch, is_there, cpu=INTEL):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": is_there, "avx512_bf16": True})
    monkeypatch.setattr(devices, "processor", lambda: cpu)


@pytest.mark.parametrize(
    ("is_there", "cpu", "limit", "chosen"),
    [
        (True, INTEL, None, "bf16"),
        (False, INTEL, None, "fp32"),
        (True, INTEL, "AVX512_CORE_BF16", "fp32"),
        (True, INTEL, "avx512_core_amx", "bf16"),
        (True, INTEL, "ALL", "bf16"),
        (False, AMD, None, "bf16"),
        (False, AMD, "AVX512_CORE_BF16", "bf16"),
        (False, AMD, "AVX10_1_512_AMX", "bf16"),
        (False, AMD, "AVX512_CORE_VNNI", "fp32"),
        (False, AMD, "AVX2", "fp32"),
    ],
)
def test_a_cpu_takes_bf16_with_amx_and_amds_with_avx_512(monkeypatch, is_there, cpu, limit, chosen):
    has_amx(monkeypatch, is_there, cpu)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert fastest_arithmetic(CPU)[:2] == (chosen, "fp32")


def test_an_amd_cpu_without_these_instructions_takes_fp32(monkeypatch):
    has_amx(monkeypatch, False, AMD)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert fastest_arithmetic(CPU) == ("fp32", "fp32", "a CPU without fast bf16")


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "tf32")])
def test_a_gpu_takes_bf16_from_compute_capability_8_on(monkeypatch, capability, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert fastest_arithmetic(CUDA)[:2] == (chosen, "tf32")


def test_every_part_is_settled_and_what_was_asked_for_stays():
    recipe = Recipe()
    assert set(precisions(recipe).values()) == {"auto"} and set(precisions(recipe)) == set(PARTS)
    assert precisions(settled(recipe, "bf16", "tf32")) == dict.fromkeys(PARTS, "bf16")
    asked = with_precisions(recipe, {"recover": "fp32", "squeeze.probe": "tf32"})
    assert precisions(settled(asked, "bf16", "tf32")) == {
        **dict.fromkeys(PARTS, "bf16"),
        "recover": "fp32",
        "squeeze.probe": "tf32",
    }
    begun = with_precisions(recipe, dict.fromkeys(PARTS, "fp32") | {"labels": "auto"})
    assert precisions(settled(asked, "bf16", "tf32", begun)) == {
        **dict.fromkeys(PARTS, "fp32"),
        "squeeze.probe": "tf32",
        "labels": "bf16",
    }


def test_gradients_are_matched_in_float32_and_what_takes_no_iteration_is_the_same_everywhere():
    assert settled(load("idc/cifar10-ipc1"), "bf16", "tf32").recover.precision == "tf32"
    assert settled(load("idc/cifar10-ipc1"), "bf16", "fp32").recover.precision == "fp32"
    assert settled(load("rded/cifar10-ipc1"), "bf16", "tf32").recover.precision == "fp32"
    assert settled(load("rded/cifar10-ipc1"), "bf16", "tf32").labels.precision == "bf16"


def test_recipes_run_at_auto_and_those_of_the_digits_in_fp32():
    for name in names():
        found = set(precisions(load(name)).values())
        assert found == ({"fp32"} if "/digits" in name else {"auto"}), name


def test_what_no_run_has_settled_is_float32():
    assert network_dtype("auto") == torch.float32
    with arithmetic("auto"):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"


def test_another_machine_goes_on_as_the_set_was_begun(monkeypatch, tmp_path, capsys):
    """A set begun with AMX, and made larger without, is the one that was asked for in bf16 from the start."""
    brief = ["--recover.iterations", "3", "--ipc", "1", "--squeeze.gate-images", "0"]
    has_amx(monkeypatch, True)
    assert fastcondense("recover", tmp_path / "auto", *brief, *AUTO) == 0
    assert "precision: recover bf16, labels bf16, train bf16, for a CPU with AMX" in capsys.readouterr().out
    begun = from_toml((tmp_path / "auto" / "recipe.toml").read_text(), "")
    assert begun.recover.precision == begun.train.precision == "bf16" and begun.squeeze.precision == "fp32"
    has_amx(monkeypatch, False)
    assert fastcondense("recover", tmp_path / "auto", *brief, *AUTO, "--ipc", "2") == 0
    assert "precision: recover bf16, labels bf16, train bf16, as the run was begun" in capsys.readouterr().out
    asked = [word.replace("auto", "bf16") for word in AUTO]
    assert fastcondense("recover", tmp_path / "asked", *brief, *asked, "--ipc", "2") == 0
    assert shards(tmp_path / "auto") == shards(tmp_path / "asked") and len(shards(tmp_path / "auto")) == 4
    assert fastcondense("recover", tmp_path / "auto", *brief, "--recover.precision", "fp32") == 1
    assert "(recover.precision was" in capsys.readouterr().err


def test_a_helper_takes_the_precision_of_the_first_launch_and_is_refused_with_another(monkeypatch, tmp_path):
    recipe = with_precisions(load("sre2l/digits-ipc1"), dict.fromkeys(PARTS, "auto"))
    has_amx(monkeypatch, True)
    first = Run(recipe, tmp_path)
    first.open()
    assert first.recipe.sha256() == with_precisions(recipe, dict.fromkeys(PARTS, "bf16")).sha256()
    has_amx(monkeypatch, False)
    helper = Run(replace(recipe), tmp_path)
    helper.open(is_helper=True)
    assert helper.recipe == first.recipe
    other = Run(with_precisions(recipe, {"squeeze": "fp32"}), tmp_path)
    with pytest.raises(ValueError, match=r"another launch works on .* with squeeze\.precision bf16, not fp32"):
        other.open(is_helper=True)
