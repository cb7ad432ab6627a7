"""Published scripts are imported and run without a trace, and their loops stand still between two steps."""

from __future__ import annotations

import os
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fake_peers import tiny_setting
from published.isolation import Overlay, isolated, on_device
from published.paused import PausedLoop
from published.peer import Setting, load
from torch import nn

CPU = torch.device("cpu")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return tiny_setting(tmp_path / "scratch")


def state() -> tuple:
    sharing = torch.multiprocessing.get_sharing_strategy()
    return list(sys.path), dict(sys.modules), list(sys.argv), os.getcwd(), sys.dont_write_bytecode, sharing


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scripts whose names others use too: a module `utils` is loaded already."""
    before = types.ModuleType("utils")
    before.who = "mine"
    monkeypatch.setitem(sys.modules, "utils", before)
    scripts = tmp_path / "scripts"
    (scripts / "parts").mkdir(parents=True)
    (scripts / "utils.py").write_text("who = 'theirs'\n")
    (scripts / "parts" / "deep.py").write_text("from utils import who\n")
    lines = ["import sys, torch, warnings, no_such_package", "from no_such_package import Run", "import utils"]
    lines += ["from parts.deep import who", "warnings.filterwarnings('error')", "argv = sys.argv[1:]"]
    lines += ["torch.multiprocessing.set_sharing_strategy('file_system')", "open('written.txt', 'w').close()"]
    (scripts / "script.py").write_text("\n".join(lines) + "\n")
    (scripts / "broken.py").write_text("import utils\nraise RuntimeError('broken')\n")
    return scripts


def test_scripts_are_imported_without_a_trace(folder: Path, setting: Setting) -> None:
    before = state()
    (module,) = load(folder, ["script"], setting, argv=["--all"], absent=["no_such_package"])
    assert (module.who, module.utils.who, module.argv, module.Run) == ("theirs", "theirs", ["--all"], None)
    assert (setting.scratch / "written.txt").exists()
    assert state() == before
    assert sys.modules["utils"].who == "mine"
    assert not list(folder.rglob("__pycache__"))


def test_a_failing_import_leaves_no_trace(folder: Path, setting: Setting) -> None:
    before = state()
    for script, kind in (("broken", RuntimeError), ("script", ModuleNotFoundError)):
        with pytest.raises(kind):
            load(folder, [script], setting)
        assert state() == before


def test_new_modules_of_a_folder_are_forgotten(folder: Path, setting: Setting) -> None:
    with isolated(folder, setting.scratch):
        import utils

        assert utils.who == "theirs" and os.getcwd() == str(setting.scratch)
    assert "parts" not in sys.modules and "script" not in sys.modules


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is changed where there is a GPU")
def test_cuda_means_the_device() -> None:
    before = torch.zeros, torch.Tensor.to, torch.Tensor.cuda, torch.cuda.set_device
    with on_device(CPU):
        torch.cuda.set_device(0)
        made = [torch.zeros(2, device="cuda"), torch.tensor([1.0, 2.0], device="cuda:0"), torch.ones(2).cuda(0)]
        made += [torch.ones(2).to("cuda"), torch.ones(2).to(device=torch.device("cuda", 0), dtype=torch.float64)]
        assert [one.device for one in made] == [CPU] * 5 and made[4].dtype == torch.float64
        assert nn.Linear(2, 2).cuda().weight.device == CPU
        assert torch.ones(2).to(torch.float16).dtype == torch.float16
    assert (torch.zeros, torch.Tensor.to, torch.Tensor.cuda, torch.cuda.set_device) == before


def test_an_overlay_changes_names_for_its_holder_alone() -> None:
    changed = Overlay(torch, zeros=3)
    assert changed.zeros == 3 and changed.ones is torch.ones and torch.zeros(1).shape == (1,)


# --- loops -----------------------------------------------------------------------------------------------------------


def test_a_loop_goes_on_by_one_iteration_a_call() -> None:
    log: list[object] = []

    @contextmanager
    def around():
        log.append("in")
        yield
        log.append("out")

    def loop(pause) -> None:
        for k in range(3):
            pause()
            log.append(k)

    step = PausedLoop(loop, around)
    assert log == ["in", "out"]
    step()
    assert log == ["in", "out", "in", 0, "out"]
    step()
    step()
    assert log[-2:] == [2, "out"]
    with pytest.raises(RuntimeError, match="ended"):
        step()
    step.close()


def test_a_loops_error_is_the_callers() -> None:
    def loop(pause) -> None:
        pause()
        raise KeyError("lost")

    step = PausedLoop(loop, lambda: on_device(CPU))
    with pytest.raises(KeyError, match="lost"):
        step()
    step.close()


def test_a_closed_loop_is_left_where_it_stands() -> None:
    log = []

    def loop(pause) -> None:
        try:
            while True:
                pause()
        except Exception:
            log.append("caught")
        finally:
            log.append("left")

    step = PausedLoop(loop, lambda: on_device(CPU))
    step()
    step.close()
    assert log == ["left"] and not step._thread.is_alive()
