"""How numba kernels run: over torch's memory, on torch's threads, cached where that can be; memory that is kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from fastcondense.kernels.common.memory import memory
from fastcondense.kernels.common.threads import NUM_CHUNKS, chunk_length, kernel, launch, launch_at, part, planes

ROOT = Path(__file__).parents[1]
SOURCE = "def add(x, y):\n    for i in numba.prange(x.size):\n        x[i] += y\n"


def test_a_function_without_a_place_for_its_cache_is_compiled_all_the_same():
    names = {"numba": numba}
    exec(compile(SOURCE, "<nowhere>", "exec"), names)
    x = torch.zeros(5, requires_grad=True)
    launch(kernel(names["add"]), x, 2.0)
    assert x.tolist() == [2.0] * 5


@part
def halve_row(i, like, x, y, rows, columns, scale):
    source, made = memory(x, (rows, columns), like), memory(y, (rows, columns), like)
    factor = memory(scale, rows, np.float32)[i] if scale != 0 else np.float32(0.5)
    for j in range(columns):
        made[i, j] = source[i, j] * factor


@kernel
def halve(like, x, y, rows, columns, scale):
    for i in numba.prange(rows):
        halve_row(np.int64(i), like, x, y, rows, columns, scale)


def test_a_kernel_makes_its_arrays_of_addresses():
    x, y = torch.arange(6.0).view(2, 3).requires_grad_(), torch.full((4, 3), -1.0)
    launch_at(halve, x.dtype, x, y[1:], 2, 3, None)
    assert y.tolist() == [[-1.0] * 3, [0, 0.5, 1], [1.5, 2, 2.5], [-1.0] * 3]
    launch_at(halve, x.dtype, x, y, 2, 3, torch.tensor([1.0, 2.0]))
    assert y[:2].tolist() == [[0, 1, 2], [6, 8, 10]]


def test_a_tensor_without_memory_on_the_cpu_is_refused():
    for x in (torch.empty(2, 3, device="meta"), torch.empty(0)):
        with pytest.raises(ValueError, match="a loop needs tensors in the CPU's memory"):
            launch_at(halve, torch.float32, x, x, 2, 3, None)


def test_the_first_launch_leaves_torchs_thread_count_alone():
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from fastcondense.kernels.crop import crop\n"
        "crop(torch.zeros(2, 3, 4, 4), torch.tensor([(0, 0, 4, 4, 0, 0, 0)]), 4); print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["1"]


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 1000])
def test_chunks_cover_all_rows(length):
    assert chunk_length(length) * NUM_CHUNKS >= length and chunk_length(max(1, length)) * NUM_CHUNKS < length + 2 * 64


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_planes_are_rows_of_the_same_memory(layout):
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5).contiguous(memory_format=layout)
    rows, apart = planes(x)
    assert rows.data_ptr() == x.data_ptr() and rows.is_contiguous()
    plane = rows[1 * 3 + 2] if apart == 1 else rows[1][:, 2::3]
    assert apart == (1 if layout == torch.contiguous_format else 3) and torch.equal(plane, x[1, 2])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(("given", "is_kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "65536"}, False)])
def test_freed_maps_are_not_given_back_to_the_system_and_asked_for_again(given, is_kept):
    """16 MB, freed and made anew, are 4,096 pages that the system clears each time, or none at all."""
    code = """
import resource, torch
from fastcondense.devices import choose_device
choose_device("cpu")
def faults():
    for _ in range(4):
        torch.ones(4_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults(), faults()
print(-faults() + faults())
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert (int(done.stdout) < 500) == is_kept


def test_kept_code_is_not_used_once_what_it_calls_has_changed(tmp_path):
    package = tmp_path / "fastcondense"
    shutil.copytree(ROOT / "fastcondense", package, ignore=shutil.ignore_patterns("__pycache__", "recipes"))
    called = package / "kernels" / "common" / "called.py"
    (package / "kernels" / "calling.py").write_text(
        "import torch\nfrom numba import prange\nfrom .common.called import change\n"
        "from .common.threads import kernel, launch\n\n\n@kernel\ndef run(x):\n"
        "    for i in prange(x.size):\n        x[i] = change(x[i])\n\n\n"
        "x = torch.ones(3)\nlaunch(run, x)\nprint(x.sum().item(), sum(run.stats.cache_hits.values()))\n"
    )
    code, found = "import fastcondense.kernels.calling", []
    kept = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    for term in (1.0, 1.0, 2.0):
        called.write_text(f"from .threads import part\n\n\n@part\ndef change(value):\n    return value + {term}\n")
        os.utime(called, ns=(int(term) * 10**9,) * 2)  # the same file, the second time
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept, cwd=tmp_path)
        assert not done.returncode, done.stderr
        found.append(done.stdout.split())
    assert found == [["6.0", "0"], ["6.0", "1"], ["9.0", "0"]]


def test_a_run_says_once_that_loops_are_compiled_and_not_where_they_are_loaded(tmp_path):
    command = [Path(sys.executable).with_name("fastcondense"), "squeeze", "--recipe", "sre2l/digits-ipc1", "--seed"]
    fast = ["--squeeze.teachers", "zoo/convnet1", "--squeeze.epochs", "1", "--squeeze.batch-size", "1000"]
    kept, found = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}, []
    for seed in "12":
        out = ["--out", str(tmp_path / seed), "--squeeze.gate-images", "0"]
        done = subprocess.run([*command, seed, *fast, *out], capture_output=True, text=True, env=kept, check=True)
        found.append(done.stdout.count("compiling the CPU's loops for this processor"))
    assert found == [1, 0]
