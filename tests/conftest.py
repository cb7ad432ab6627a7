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
