"""Settings that must hold before anything else is imported.

Without a GPU the Triton kernels run in Triton's interpreter, which is chosen when triton is imported. One thread: the
tests' tensors are small, and OpenMP threads that wait for each other on a busy machine cost more than they bring.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from fastcondense import vision  # noqa: E402

_ = vision.torchvision  # prepared for tests that import it themselves

LONGEST = "launch_ends kernel_compile large_sets launch kills ffcv_loader methods docs ranks cli".split()
"""Files whose tests take longest, the longest first."""


def pytest_configure(config):
    """Files are dealt out in their order, not by their number of tests, which says little of their time."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Long files come first: no process is left with one at the end."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
