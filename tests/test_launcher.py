"""The launcher with workers that do nothing but end in all ways: how it ends then, when, and what it says."""

import multiprocessing
import os
import signal
import sys
import time

import psutil
from launches import wait_for
from small import FLAGS

from fastcondense.cli import main
from fastcondense.workers import launch as module

FORK = multiprocessing.get_context("fork")
SPEAK = "import os, signal, sys, time\nrank, attempt = os.environ['RANK'], os.environ['FASTCONDENSE_ATTEMPT']\n"


def launcher(tmp_path, code, *more):
    """A launcher of two workers that run some code, in a process of its own; and what it has said."""
    process = FORK.Process(target=start, args=(tmp_path, code, more))
    process.start()
    return process


def start(tmp_path, code, more):
    os.setsid()
    module._COMMAND = (sys.executable, "-c", SPEAK + code.replace("FOLDER", repr(str(tmp_path))))
    said = os.open(tmp_path / "said", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    arguments = ["recover", *FLAGS, "--out", str(tmp_path / "run"), "--gpus", "0", "--workers", "2", *more]
    os._exit(main(arguments))


def ended(tmp_path, process, status):
    process.join(200)
    said = (tmp_path / "said").read_text()
    assert process.exitcode == status, said
    return said


def test_workers_are_told_who_they_are_and_to_talk_over_loopback(tmp_path):
    code = (
        "names = 'RANK LOCAL_RANK WORLD_SIZE GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME MASTER_ADDR'.split()\n"
        "open(FOLDER + '/' + rank, 'w').write(' '.join(os.environ.get(name, '-') for name in names))\n"
        "assert os.path.isdir(os.environ['FASTCONDENSE_LAUNCHER']) and sys.argv[1] == 'recover'"
    )
    assert ended(tmp_path, launcher(tmp_path, code), 0) == ""
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["0 0 2 lo lo -", "1 1 2 lo lo -"]


def test_workers_that_are_connected_listen_at_the_loopback_address_alone(tmp_path):
    code = (
        "import psutil, torch\n"
        "from fastcondense.workers import distributed\n"
        "distributed.join(torch.device('cpu'))\n"
        "total = distributed.all_sum(torch.tensor(1.0 + int(rank)))\n"
        "found = {s.laddr.ip for s in psutil.Process().net_connections('inet') if s.status == psutil.CONN_LISTEN}\n"
        "distributed.meet()\n"
        "open(FOLDER + '/' + rank, 'w').write(f'{total.item()} {sorted(found)}')\n"
    )
    assert ended(tmp_path, launcher(tmp_path, code), 0) == ""
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["3.0 ['127.0.0.1']"] * 2


def test_all_are_started_again_when_one_has_died(tmp_path):
    code = (
        "open(FOLDER + f'/{rank}-{attempt}', 'w')\n"
        "if attempt == '0' and rank == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "if attempt == '0': time.sleep(60)\n"
    )
    said = ended(tmp_path, launcher(tmp_path, code), 0)
    assert said == "fastcondense: worker 1 died of SIGKILL; the workers are started again\n"
    assert (tmp_path / "0-1").exists() and (tmp_path / "1-1").exists()


def test_workers_that_die_too_often_fail(tmp_path):
    said = ended(tmp_path, launcher(tmp_path, "sys.exit(int(rank) * 3)", "--restarts", "1"), 1)
    assert said.splitlines() == [
        "fastcondense: worker 1 ended with 3; the workers are started again",
        "fastcondense: worker 1 ended with 3; what is finished is kept, and the same command goes on from here",
    ]


def test_a_refusal_is_said_once_and_ends_all(tmp_path):
    code = (
        "if rank == '0': time.sleep(60)\n"
        "open(os.environ['FASTCONDENSE_LAUNCHER'] + '/refusal', 'x').write('no such file')\n"
        "sys.exit(1)"
    )
    assert ended(tmp_path, launcher(tmp_path, code), 1) == "fastcondense: no such file\n"


def test_all_end_within_ten_seconds_though_one_hangs(tmp_path):
    """One is stopped, and one does not listen."""
    code = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(FOLDER + '/' + rank, 'w').write(str(os.getpid()))\n"
        "if rank == '0': os.kill(os.getpid(), signal.SIGSTOP)\n"
        "time.sleep(60)\n"
    )
    process = launcher(tmp_path, code)
    wait_for(lambda: all((tmp_path / str(rank)).exists() and (tmp_path / str(rank)).read_text() for rank in (0, 1)))
    began_at = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    said = ended(tmp_path, process, 128 + signal.SIGTERM)
    assert time.monotonic() - began_at < 10 and said.count("\n") == 1 and "interrupted; the same command" in said
    numbers = [int((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    wait_for(lambda: not any(map(psutil.pid_exists, numbers)))  # whoever inherits them takes a moment to bury them
