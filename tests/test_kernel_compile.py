"""Every Triton kernel compiles for three GPU generations: no stack, no spills, wide accesses. Needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = (80, 90, 100)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What compile_kernels.py found, in a process in which Triton compiles."""
    folder = tmp_path_factory.mktemp("compile")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "compile_kernels.py"), "--out", str(folder / "found.jsonl")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "found.jsonl").read_text().splitlines()]


def test_every_kernel_compiles_for_every_architecture(reports: list[dict[str, Any]]) -> None:
    names = "crop-forward crop-backward crop-share replay-crop soft-divergence soft-hard soft-scale soft-sum".split()
    names += [f"adam-{layout}" for layout in ("planar", "channels_last")]
    names += [f"{kind}-{which}" for kind in ("bn", "maps") for which in ("forward", "backward", "combine")]
    names += ["pool-forward", "pool-backward"]
    for architecture in ARCHITECTURES:
        found = [report["name"] for report in reports if report["arch"] == architecture]
        assert {"-".join(name.split("-")[:2]) for name in found} == {"-".join(name.split("-")[:2]) for name in names}
        assert len(found) == len(set(found)) >= (100 if architecture == 90 else 35)


def test_no_stack_and_no_spills(reports: list[dict[str, Any]]) -> None:
    assert [report for report in reports if report["stack"] or report["local"]] == []


def test_shared_memory_and_registers_leave_room_for_two_programs(reports: list[dict[str, Any]]) -> None:
    assert [report for report in reports if report["shared"] > 16384] == []
    big = [report for report in reports if report["expected"]]
    assert [report for report in big if report["registers"] * 32 * report["num_warps"] > 65536 // 2] == []


def test_big_tensors_move_128_bits_at_a_time(reports: list[dict[str, Any]]) -> None:
    big = [report for report in reports if report["expected"]]
    assert len(big) >= 12 * len(ARCHITECTURES)
    for report in big:
        expected = report["expected"]
        assert report["ld128"] >= expected["wide_loads"] and report["st128"] >= expected["wide_stores"], report
        assert report["ld"] <= expected["narrow_loads"] and report["st"] <= expected["narrow_stores"], report


def test_importing_the_package_does_not_import_triton() -> None:
    files = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "kernels").rglob("*.py"))]
    modules = [f"fastcondense.{'.'.join(path.parts)}" for path in files if not path.stem.endswith("gpu")]
    assert len(modules) > 30
    # torch itself may look for triton; an empty entry makes any import of it fail
    code = "import sys; sys.modules['triton'] = None; import fastcondense, importlib; "
    code += f"[importlib.import_module(name) for name in {modules}]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
