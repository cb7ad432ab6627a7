"""Every command that README and docs show is run on the digits, with fewer epochs, or it is said why it is not."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from documents import WRITTEN
from test_documented import documented

from fastcondense import cli, stages
from fastcondense.cli import main

FEWER = (
    "--squeeze.teachers zoo/convnet3_w32 --squeeze.epochs 5 --recover.iterations 20 "
    "--train.student zoo/convnet1 --train.epochs 2 --train.evaluate-every 2 --train.seeds 1 "
    "--ranking.real-accuracy 98 --device cpu"
).split()
NOT_RUN = {
    r"^new ": "run in test_new.py",
    r"^bench ": "minutes of measuring: parsed in test_documented.py, run by scripts/gpu_suite.sh",
    r"my_recipe\.toml": "run in test_own_page.py",
    r"^(run|recover|squeeze|pack) .*--data /data/": "needs ImageNet or CIFAR-10; parsed in test_documented.py",
    r"runs/my-teacher": "the run of own.md's teacher: run in test_own_page.py",
    r"means/digits": "its student is a teacher: run in test_frozen_students.py",
    r"runs/means": "in the folder of a run on Imagenette",
    r"imagenet1k": "in the folder of a run on ImageNet",
    r"--data DIR --out DIR-packed": "run in test_pack.py",
    r"hf://": "run in test_hub.py, beside a stub of the Hub",
    r"runs/sizes": "a curve of many students: run in test_curve.py",
    r"--help(-all)?$": "parsed in test_documented.py",
}
BEFORE = {
    "verify RUN.zip": ["bundle RUN"],
    "train RUN.zip --data /data/imagenet": ["bundle RUN"],
    "verify RUN.zip --teachers DIR": ["bundle RUN --teachers reference"],
    "compare RUN RUN.zip": ["bundle RUN"],
    "train RUN --store": ["relabel RUN --store"],
    "compare RUN OTHER.zip": ["bundle RUN --out OTHER.zip"],
    "train RUN --labels.source stored --labels.stored DIR": ["export RUN --format fkd --out DIR"],
}
"""What a page says before a command, in other words."""


def reason(line: str) -> str | None:
    """Why a command is not run here."""
    if "parquet" in line and not all(find_spec(name) for name in ("pyarrow", "datasets")):
        return "needs pip install 'fastcondense[hf]'"
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, line)), None)


def run(line: str) -> None:
    """Runs a command in the current folder."""
    command, *rest = line.replace("RUN-or-BUNDLE", "RUN").replace(" --data /data/imagenet", "").split()
    if command in cli.STAGES:
        rest += FEWER
    assert main([command, *rest]) == 0, line


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run on the digits."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(stages, "inspect", lambda _run: None)  # on all but the command of that name
        run("run --recipe sre2l/digits-ipc10")
    return folder / "runs" / "sre2l" / "digits-ipc10"


LINES = list(dict.fromkeys(" ".join(arguments) for _, arguments in documented()))


@pytest.mark.parametrize("line", [line for line in LINES if reason(line) is None])
def test_it_runs(line, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "inspect" not in line:
        for name in ("inspect", "picture"):
            monkeypatch.setattr(stages, name, lambda _run: None)
    for copy in ("RUN", "runs/sre2l/digits-ipc10"):
        if not line.startswith("squeeze"):
            shutil.copytree(made, Path(copy))
    if line == "verify RUN.zip --teachers DIR":
        shutil.copytree(made, "DIR")
    for before in BEFORE.get(line, []):
        run(before)
    run(line)


def test_what_is_not_run_is_few_and_its_reasons_are_needed():
    skipped = [line for line in LINES if any(re.search(pattern, line) for pattern in NOT_RUN)]
    assert len(LINES) - len(skipped) >= 25
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in skipped), pattern
    assert {page.name for page in WRITTEN} >= {"README.md", "quick-start.md", "labels.md"}
