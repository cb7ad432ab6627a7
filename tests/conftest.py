"""Without a GPU, Triton runs in its interpreter; that is decided when triton is imported first."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
