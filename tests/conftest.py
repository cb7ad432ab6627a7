"""Settings that must hold before anything else is imported.

Without a GPU the Triton kernels run in Triton's interpreter, which is chosen when triton is imported. One thread: the
tests' tensors are small, and OpenMP threads that wait for each other on a busy machine cost more than they bring.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from fastcondense import vision  # noqa: E402

_ = vision.torchvision  # prepared for tests that import it themselves

from fastcondense.report import looks, plots  # noqa: E402
from fastcondense.report.html import Html, escape  # noqa: E402

LONGEST = "launch_ends kernel_compile style docs methods launch kills large_sets ffcv_loader ranks whole_runs".split()
"""Files whose tests take longest; while numba compiles for the first one process, the other compiles nothing."""
DRAWN = "report report_page gallery".split()
"""Files whose tests look at the plots of reports."""


@pytest.fixture(scope="module", autouse=True)
def plots_without_ink(request):
    """Elsewhere the report that every run ends with is written whole, but its plots are not rendered, and features are
    not embedded by t-SNE: that takes longer than a small run."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem.removeprefix("test_") not in DRAWN:
            patch.setattr(plots, "_svg", lambda _figure, text: Html(f'<svg aria-label="{escape(text)}"></svg>'))
            patch.setattr(looks, "embed", lambda features, _seed: features[:, :2] if len(features) > 4 else None)
        yield


def pytest_configure(config):
    """Files are dealt out in their order, not by their number of tests, which says little of their time."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Long files come first: no process is left with one at the end."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
