"""scripts/slurm.sh beside stand-ins of Slurm's programs: what processes are told, and when it is queued again."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from documents import ROOT

PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "$@" >>"$OUT/requeued"; fi',
    "srun": 'echo "$@" >"$OUT/srun"; while [ "$1" != bash ]; do shift; done; SLURM_PROCID=3 SLURM_LOCALID=1 exec "$@"',
    "fastcondense": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $@" >"$OUT/started"; eval "$BODY"',
}


def start(folder: Path, body: str) -> subprocess.Popen[str]:
    """The job, on an environment in `folder` in which fastcondense does what `body` says."""
    for name, text in PROGRAMS.items():
        where = folder / ("venv/bin" if name == "fastcondense" else "slurm") / name
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(f"#!/usr/bin/env bash\n{text}\n")
        where.chmod(0o755)
    (folder / "venv/bin/activate").write_text(f'PATH="{folder}/venv/bin:$PATH"\n')
    slurm = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NTASKS": "16", "SLURM_CPUS_PER_TASK": "6"}
    environment = os.environ | slurm | {"OUT": str(folder), "BODY": body, "FASTCONDENSE_VENV": f"{folder}/venv"}
    environment["PATH"] = f"{folder}/slurm:{environment['PATH']}"
    command = ["bash", ROOT / "scripts" / "slurm.sh", "run", "--recipe", "a b"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_processes_are_told_who_they_are_and_where_they_meet(tmp_path):
    assert start(tmp_path, "exit 0").wait(10) == 0
    rank, local, world, host, port, *arguments = (tmp_path / "started").read_text().split()
    assert (rank, local, world, host) == ("3", "1", "16", "node7") and arguments == ["run", "--recipe", "a", "b"]
    with socket.socket() as free:
        free.bind(("", int(port)))
    assert "--cpus-per-task=6" in (tmp_path / "srun").read_text()
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("status", [1, 137])
def test_a_failure_is_not_tried_again(tmp_path, status):
    assert start(tmp_path, f"exit {status}").wait(10) == status
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(("saved", "queued"), [("exit 143", "requeue 41\n"), ("exit 0", "")])
def test_before_its_time_is_over_it_saves_and_is_queued_again(tmp_path, saved, queued):
    job = start(tmp_path, f"trap 'touch $OUT/saved; {saved}' TERM; while :; do sleep 0.05; done")
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(10) == int(saved.split()[1]) and (tmp_path / "saved").exists()
    requeued = tmp_path / "requeued"
    assert (requeued.read_text() if requeued.exists() else "") == queued


def test_without_an_environment_it_says_so(tmp_path):
    job = start(tmp_path, "")
    job.kill()
    (tmp_path / "venv/bin/fastcondense").unlink()
    environment = {"PATH": f"{tmp_path}/slurm:/usr/bin:/bin", "FASTCONDENSE_VENV": f"{tmp_path}/venv"}
    done = subprocess.run(["bash", ROOT / "scripts" / "slurm.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and f"there is no fastcondense in {tmp_path}/venv" in done.stderr
