"""The benchmarks' runner: one format of lines, the gate, what is skipped, quick runs, and the limit of time."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import results
import runner
import session as sessions
import torch
from gate import Gate
from measure import Timing, environment
from runner import BENCHMARKS, gate_tests, main, parser_of
from session import Session

import loaders


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def tests_folder(tmp_path):
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_good.py").write_text("def test_it(): pass\n")
    (folder / "test_bad.py").write_text("def test_it(): assert 1 == 2\n")
    return tmp_path


def test_a_line_holds_what_was_measured_and_its_share_of_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "copy_ceiling", lambda: 8.0)
    session = Session("kernels", tmp_path / "x.jsonl", is_quick=True, is_gated=False)
    session.add(
        "crop", "ours", Timing(2.0, 1.5, 2.5), shapes=[(2, 3)], dtype="float32", num_bytes=4_000_000, operator="crop"
    )
    session.add("crop", "eager", Timing(1.0, 1.0, 1.0))
    (line, other) = lines_of(tmp_path / "x.jsonl")
    assert line.pop("environment") == environment()
    assert line == {
        "benchmark": "kernels",
        "what": "crop",
        "variant": "ours",
        "shapes": [[2, 3]],
        "dtype": "float32",
        "median_ms": 2.0,
        "quartiles_ms": [1.5, 2.5],
        "bytes": 4_000_000,
        "GB/s": 2.0,
        "share_of_copy": 0.25,
        "copy_GB/s": 8.0,
        "operator": "crop",
        "quick": True,
        "ungated": True,
    }
    assert "bytes" not in other and "share_of_copy" not in other


def test_what_was_skipped_is_said_at_the_end_and_written_down(tmp_path, capsys):
    session = Session("loaders", tmp_path / "x.jsonl")
    session.skip("DALI", "not installed")
    session.skip("FFCV", "not installed")
    capsys.readouterr()
    assert session.finish() == 0
    assert "loaders skipped 2:\n  DALI, FFCV: not installed\n" in capsys.readouterr().out
    assert [(line["what"], line["skipped"]) for line in lines_of(tmp_path / "x.jsonl")] == [
        ("DALI", "not installed"),
        ("FFCV", "not installed"),
    ]
    assert Session("kernels").finish() == 0
    assert capsys.readouterr().out == "kernels skipped nothing\n"


def test_a_variant_that_cannot_run_is_skipped_with_its_reason(tmp_path):
    def raising(error):
        def step():
            raise error

        return lambda: step

    session, done = Session("recover", tmp_path / "x.jsonl"), []
    assert session.attempt("plain", lambda: lambda: done.append(1)) is not None and done == [1]
    assert session.attempt("large", raising(torch.cuda.OutOfMemoryError("no"))) is None
    assert session.attempt("compiled", raising(TypeError("bad\nmore")), is_optional=True) is None
    assert session.skipped == [("large", "out of memory"), ("compiled", "TypeError: bad")]
    with pytest.raises(TypeError):
        session.attempt("ours", raising(TypeError("bad")))


def test_the_gate_names_the_file_that_fails_and_runs_each_once(tests_folder, monkeypatch):
    record = tests_folder / "tested.json"
    gate = Gate(tests_folder, record)
    assert gate.problem(["good"]) is None
    assert "test_bad.py" in gate.problem(["good", "bad"]) and "1 == 2" in gate.problem(["bad"])
    again = Gate(tests_folder, record)
    monkeypatch.setattr(again, "_run", lambda _: pytest.fail("it has run already"))
    assert again.problem(["good"]) is None and "test_bad.py" in again.problem(["good", "bad"])


def test_files_that_fail_together_are_told_apart(tests_folder):
    gate = Gate(tests_folder)
    assert gate.problem(["bad", "good"]) is not None
    assert gate.problem(["good"]) is None and gate.problem(["bad"]) is not None


def test_no_tests_are_not_tests_that_pass(tests_folder):
    with pytest.raises(ValueError, match=r"tests/test_absent\.py, which does not exist"):
        Gate(tests_folder).problem(["good", "absent"])


def test_every_gate_has_its_files():
    for name in ("recover", "labels", "train"):
        found = gate_tests(BENCHMARKS[name])
        assert len(found) >= 4
        assert all((runner.RESULTS.parents[1] / "tests" / f"test_{test}.py").exists() for test in found), name
    assert "crop" in gate_tests(BENCHMARKS["recover"]) and "replay_crop" in gate_tests(BENCHMARKS["train"])


def test_lines_of_a_benchmark_whose_tests_fail_are_marked_and_in_no_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner.Gate, "problem", lambda *_: "tests/test_crop.py: 1 failed")
    monkeypatch.setattr("recover_step.run", lambda session, _: session.add("step", "ours", Timing(1.0, 1.0, 1.0)))
    out = tmp_path / "device" / "x.jsonl"
    assert main(["recover", "--out", str(out)]) == 1
    assert "its tests fail (tests/test_crop.py: 1 failed); its lines are marked" in capsys.readouterr().out
    (line,) = lines_of(out)
    assert line["median_ms"] == 1.0 and line["failing"] == "tests/test_crop.py: 1 failed"
    assert results.read(tmp_path).empty
    monkeypatch.setattr(runner.Gate, "problem", lambda *_: None)
    assert main(["recover", "--out", str(out)]) == 0 and len(results.read(tmp_path)) == 1


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_options_and_a_quick_mode(name):
    module = runner.importlib.import_module(BENCHMARKS[name].module)
    options = vars(parser_of(name).parse_args(["--data", "x"] if name == "loader-parity" else []))
    assert set(module.QUICK) <= set(options)


def test_quick_options_are_defaults_that_flags_override(monkeypatch):
    seen = []
    monkeypatch.setattr("train.run", lambda session, options: seen.append((session, options)))
    assert main(["train", "--quick", "--no-gate", "--images", "7"]) == 0
    assert main(["train", "--no-gate"]) == 0
    (session, options), (whole, _) = seen
    assert (options.images, options.network, session.is_quick, session.out) == (7, "zoo/convnet3", True, None)
    date, commit = environment()["date"], environment()["commit"]
    assert whole.out == runner.RESULTS / runner.folder_name() / f"{date}-{commit}.jsonl" and not whole.is_quick


def test_all_stops_at_its_limit_and_says_what_did_not_run(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])

    def run_limited(command, seconds):
        needed = {"traffic": 30.0, "kernels": 100.0, "train": 13.0}.get(command[2], 0.0)
        clock[0] += min(needed, seconds)
        return None if needed > seconds or seconds <= 0.1 else 0

    monkeypatch.setattr(runner, "run_limited", run_limited)
    assert main(["all", "--minutes", "1", "--only", "traffic", "kernels", "train"]) == 1
    report = capsys.readouterr().out.split("== all\n")[1].splitlines()
    assert [line.split(maxsplit=1)[1] for line in report] == ["30 s", "CUT OFF after 18 s", "CUT OFF after 12 s"]
    assert main(["all", "--minutes", "0", "--only", "traffic"]) == 1
    assert "traffic      skipped: no time left" in capsys.readouterr().out
    assert main(["all", "--minutes", "9", "--only", "traffic"]) == 0


def test_what_takes_too_long_is_ended_with_what_it_has_started(tmp_path):
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert runner.run_limited([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3
    assert runner.run_limited([sys.executable, "-c", parent], 5) is None
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.05)
    pytest.fail("the child goes on")


def test_a_loader_whose_tests_fail_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr("loaders.is_installed", lambda library: library == "ffcv")
    failing, session = SimpleNamespace(problem=lambda tests: f"tests/test_{tests[0]}.py: 1 failed"), Session("loaders")
    assert not loaders.is_usable(session, failing, "ffcv") and not loaders.is_usable(session, failing, "dali")
    assert session.finish() == 1
    report = capsys.readouterr().out
    assert "ffcv: not reported, its tests fail (tests/test_ffcv_loader.py: 1 failed)" in report
    assert "dali: not installed" in report
    assert loaders.is_usable(Session("loaders"), None, "ffcv")
