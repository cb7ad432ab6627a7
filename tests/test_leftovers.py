"""What killed processes leave behind: known whatever its kind, removed once nobody needs it, and never in the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcondense.files import new_file, new_folder
from fastcondense.leftovers import clean, hold, sweep, temporary_beside
from fastcondense.log import Log, read_events
from fastcondense.report.findings import hours_of
from fastcondense.workers.lock import locked

ROOT = Path(__file__).parents[1]


def test_what_work_that_goes_on_needs_stays_and_what_is_finished_goes(tmp_path):
    needed = (
        "condensed/unfinished-00001.safetensors",
        "condensed/shard-00000.safetensors",
        "teachers/a/checkpoint-0123abcd.pt",
        "teachers/b/weights.safetensors",
        "teachers/b/targets-11111111.safetensors",
        "teachers/parts-11111111-22222222/part-00.safetensors",
        "students/0/checkpoint.pt",
        "students/1/student.json",
        "mine/.notes.3.tmp/text",
    )
    needless = (
        "condensed/unfinished-00000.safetensors",
        "condensed/.shard-00001.safetensors.host.name-7-8.tmp",
        "teachers/b/checkpoint-0123abcd.pt",
        "teachers/b/probe-0123abcd.pt",
        "teachers/parts-11111111/part-00.safetensors",
        "students/1/checkpoint.pt",
        ".export.host-1-1.tmp/images/0.png",
    )
    for name in (*needed, *needless):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with locked(tmp_path):
        found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*needed, ".lock"}


def test_temporaries_of_the_living_stay(tmp_path):
    file, folder = (temporary_beside(tmp_path / name) for name in ("set.zip", "export"))
    folder.mkdir()
    held = [os.open(file, os.O_RDWR | os.O_CREAT), os.open(folder, os.O_RDONLY)]
    for number in held:
        hold(number)
    other = temporary_beside(tmp_path / "other.zip")
    other.touch()
    sweep(tmp_path, "set.zip")
    clean(tmp_path)
    assert file.exists() and folder.exists() and not other.exists()
    for number in held:
        os.close(number)
    sweep(tmp_path, "set.zip")
    assert not file.exists() and folder.exists()
    clean(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["new_file", "new_folder"])
def test_a_killed_writer_leaves_what_the_next_one_removes(tmp_path, kind):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom fastcondense.files import new_file, new_folder\n"
        f"with {kind}(Path(sys.argv[1])) as made:\n"
        "    (made.write(b'half'), made.flush()) if hasattr(made, 'write') else (made / 'half').touch()\n"
        "    os.kill(os.getpid(), 9)"
    )
    out = tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", code, str(out)], cwd=ROOT).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1 and not out.exists()
    if kind == "new_folder":
        with new_folder(out) as folder:
            (folder / "whole").touch()
    else:
        sweep(tmp_path, "out")
        with new_file(out) as file:
            file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- a log blocks nothing --------------------------------------------------------------------------------------------

COST = {"time": 2.0, "event": "cost", "stage": "recover", "hours": 0.25, "unit": "GPU-hours"}
TORN = (
    b'{"time": 3.0, "event": "co',
    b"\0" * 700,
    b"[" * 100_000,
    b'{"time": 3.0, "event": "cost"}',
    b'{"time": 3.0, "event": "cost", "stage": [], "hours": 1, "unit": "x"}',
    b'{"time": 3.0, "event": "cost", "stage": "train", "hours": NaN, "unit": "x"}',
    b'{"time": 1e999, "event": "cost", "stage": "train", "hours": 1, "unit": "x"}',
    b'{"time": 1' + b"0" * 400 + b', "event": "cost", "stage": "train", "hours": 1, "unit": "x"}',
    b'["event"]',
    b"\xff\xfe{}",
)


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_line_is_left_out_and_the_next_stands_on_its_own(tmp_path, torn):
    path, log = tmp_path / "log.jsonl", Log(is_silent=True)
    path.write_bytes(json.dumps(COST).encode() + b"\n" + torn)
    log.write_to(path)
    log.event("cost", **{key: value for key, value in COST.items() if key not in ("time", "event")})
    assert hours_of(path) == {"recover": (0.5, "GPU-hours")}
    assert len(list(read_events(path, ("cost",)))) == 2


def test_a_log_that_is_a_link_or_a_pipe_is_refused(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (tmp_path / "log.jsonl").symlink_to(mine)
    os.mkfifo(tmp_path / "log-1.jsonl")
    for name in ("log.jsonl", "log-1.jsonl"):
        with pytest.raises(ValueError, match=f"{name} is a link or no file"):
            Log().write_to(tmp_path / name)
    assert mine.read_text() == "precious"


def test_a_run_without_its_environment_writes_it_and_keeps_its_recipe(tmp_path):
    """As it is after a kill between the two files, and in a folder that was made from a bundle."""
    from fastcondense.recipe import recipe
    from fastcondense.run import Run

    settings = recipe.load("sre2l/digits-ipc2")
    Run(settings, tmp_path, log=Log(is_silent=True)).open()
    before, kept = (tmp_path / "environment.json").read_text(), (tmp_path / "recipe.toml").read_bytes()
    (tmp_path / "environment.json").unlink()
    other = recipe.load("sre2l/digits-ipc10")
    Run(other, tmp_path, log=Log(is_silent=True)).open()
    assert (tmp_path / "environment.json").read_text() == before
    assert (tmp_path / "recipe.toml").read_bytes() == kept
