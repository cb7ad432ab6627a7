"""The script for a GPU machine: its plan fits in one call, and packages that are missing are one line."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from check_machine import FALLBACKS, faults, remarks, wanted
from gate import Gate

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_suite.sh"


def test_the_plan_takes_at_most_570_seconds_and_begins_with_what_convinces_most():
    done = subprocess.run(["bash", SCRIPT, "--plan"], capture_output=True, text=True, check=True)
    plan = {name: int(limit) for name, limit in (line.split() for line in done.stdout.splitlines())}
    assert sum(plan.values()) <= 570
    first = ("copy", "graphs", "kernel-tests", "recover-sre2l", "recover-edc", "published", "kernels", "cifar10")
    assert tuple(plan)[:8] == first
    assert [plan[name] for name in first] == [20, 60, 75, 60, 60, 90, 60, 60]
    assert plan["labels"] + plan["train"] == 45
    assert plan.keys() >= {"profile", "compiled", "digits-edc", "digits-gvbsm", "digits-cvdd", "digits-scdd"}


@pytest.fixture
def machine(tmp_path):
    """A copy of the script in a folder whose packages are checked by what the test writes."""
    for name in ("scripts", "tests"):
        (tmp_path / name).mkdir()
    (tmp_path / "scripts" / "gpu_suite.sh").write_text(SCRIPT.read_text())
    return tmp_path


def suite(machine, **environment):
    command = ["bash", str(machine / "scripts" / "gpu_suite.sh"), "--dry-run"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=60)


def test_a_missing_package_ends_it_before_anything_is_run(machine):
    (machine / "scripts" / "check_machine.py").write_text("print('missing: tyro'); raise SystemExit(1)")
    done = suite(machine)
    assert done.returncode == 1 and done.stdout == "missing: tyro\n" and done.stderr == ""


def test_wheels_that_cannot_be_installed_end_it(machine):
    (machine / ".wheels").mkdir()
    (machine / ".wheels" / "x-1-py3-none-any.whl").write_bytes(b"no zip")
    done = suite(machine)
    assert done.returncode == 1 and "gpu_suite: the wheels in .wheels/ cannot be installed for" in done.stderr


def test_parts_go_on_after_a_failure_and_say_what_was_skipped(machine):
    (machine / "scripts" / "check_machine.py").write_text("")
    only = {"ONLY": "^(copy|published|cifar10)$", "PEERS": "nowhere", "DATA": "nowhere", "OUT": str(machine / "out")}
    done = suite(machine, **only)
    summary = (machine / "out" / "summary.txt").read_text()
    assert done.returncode == 1 and "copy: FAILED (1)" in summary  # there is no fastcondense in that folder
    assert "published: skipped, there is no folder nowhere" in summary and "cifar10: skipped" in summary


def test_packages_that_are_missing_or_too_old_are_found_behind_others_too():
    def installed(name):
        if name in ("typeguard", "numba"):
            raise PackageNotFoundError(name)
        return "0.1" if name == "tyro" else version(name)

    assert faults(wanted()).keys() <= FALLBACKS.keys()
    found = faults(wanted(), installed)
    assert found.keys() - FALLBACKS.keys() == {"typeguard", "numba", "tyro"} and found["tyro"] == "tyro>=1.0"


@pytest.mark.parametrize(
    ("triton", "numpy", "count"), [("3.6.0", "2.4.1", 1), ("3.6.0", "2.3.5", 0), ("3.7.1", "2.4.6", 0)]
)
def test_the_interpreter_that_fails_with_numpy_is_said(triton, numpy, count):
    said = remarks({"triton": triton, "numpy": numpy})
    assert len(said) == count and all(
        f"Triton {triton}'s interpreter fails with numpy {numpy}" in text for text in said
    )
    assert remarks({"numpy": numpy}) == []


def test_one_run_of_many_tests_is_what_later_gates_read(tmp_path):
    (tmp_path / "tests").mkdir()
    for name, text in {"good": "pass", "bad": "assert 1 == 2", "slow": "import time; time.sleep(60)"}.items():
        (tmp_path / "tests" / f"test_{name}.py").write_text(f"def test_x():\n    {text}\n")
    record = tmp_path / "tested.json"
    assert not Gate(tmp_path, record).run_all(["good", "bad"], 1, 60)
    later = Gate(tmp_path, record)
    assert later.known == {"good": None, "bad": "FAILED tests/test_bad.py::test_x"}
    assert later.problem(["good"]) is None and "test_bad" in later.problem(["good", "bad"])
    assert not Gate(tmp_path, record).run_all(["slow"], 1, 0.5)
    assert Gate(tmp_path, record).problem(["slow"]) == "not ended after 0 s"
