"""What is published: sdist and wheel hold all that runs need, and the wheel works where there is no checkout."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from fastcondense import __version__, vision
from fastcondense.networks import zoo
from fastcondense.recipe import recipe

pytest.importorskip("build", reason="the package is built by `build`: pip install -e '.[dev]'")
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SKIPPED = (".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")


def run(command, **options) -> str:
    """What a command that succeeds prints."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it; the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("built")
    excluded = [f"--exclude={name}" for name in SKIPPED]
    (folder / "source").mkdir()
    run(["tar", *excluded, "-cf", folder / "source.tar", "."], cwd=ROOT)
    run(["tar", "-xf", folder / "source.tar", "-C", folder / "source"])
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"])
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """A fresh environment with the wheel, without its sources; libraries are those of the environment that tests."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False, system_site_packages=True)
    python = folder / "bin" / "python"
    packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    (packages / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", built[1]])
    return folder / "bin"


def expected() -> set[str]:
    """Every file of the package in the checkout, links followed, that is no cache."""
    walked = (Path(top) / name for top, _, names in os.walk(ROOT / "fastcondense", followlinks=True) for name in names)
    return {path.relative_to(ROOT).as_posix() for path in walked if "__pycache__" not in path.parts}


def test_both_hold_every_file_of_the_package(built):
    files = expected()
    for name in ("py.typed", "report/report.css", "kernels/crop/gpu.py", "loaders/ffcv.py", "squeeze/moco.py"):
        assert f"fastcondense/{name}" in files
    recipes = {name for name in files if name.endswith(".toml")}
    assert {f"fastcondense/recipes/{name.removesuffix('-corrected')}.toml" for name in recipe.names()} <= recipes
    with tarfile.open(built[0]) as sdist, ZipFile(built[1]) as wheel:
        in_sdist = {name.partition("/")[2] for name in sdist.getnames()}
        in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files - in_sdist == set() and files - in_wheel == set()
    assert in_wheel - files == set(), "the wheel brings nothing but the package"
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "constraints.txt"} <= in_sdist


def test_the_wheel_names_its_command_and_licence(built):
    with ZipFile(built[1]) as wheel:
        info = f"fastcondense-{__version__}.dist-info"
        assert "fastcondense = fastcondense.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
        metadata = wheel.read(f"{info}/METADATA").decode()
        assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert f"Version: {__version__}\n" in metadata and "License-Expression: Apache-2.0\n" in metadata
    (author,) = yaml.safe_load((ROOT / "CITATION.cff").read_text())["authors"]
    assert f"Author: {author['name']}\n" in metadata and "Typing :: Typed\n" in metadata


def test_what_few_need_is_an_extra_that_a_message_names(monkeypatch):
    needed = {re.split(r"\W", requirement)[0] for requirement in PROJECT["dependencies"]}
    extras = PROJECT["optional-dependencies"]
    assert not needed & {"timm", "triton", "ffcv", "datasets", "pyarrow", "tensorboard", "wandb", "pandas"}
    assert {"timm", "ffcv", "dali", "dali-cuda12", "hf", "logging", "docs", "dev"} <= set(extras)
    monkeypatch.setattr(vision, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"networks timm/NAME need .* pip install 'fastcondense\[timm\]'"):
        zoo.build("timm/resnet10t", 3)


def test_an_installed_wheel_works_without_a_checkout(installed, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path / "numba"), "OMP_NUM_THREADS": "1"}

    def say(*command):
        return run([installed / command[0], *command[1:]], cwd=tmp_path, env=environment)

    assert set(recipe.names()) <= set(say("fastcondense", "recipes").split())
    code = (
        "import fastcondense\nfrom fastcondense import cli\nfrom fastcondense.recipe import recipe\n"
        "from fastcondense.report import html\n"
        "print(fastcondense.__file__, len([recipe.load(name) for name in recipe.names()]))\ncli.main(['--help'])"
    )
    found, usage = say("python", "-c", code).split("\n", 1)
    where, count = found.split()
    assert where.startswith(str(installed.parent)) and int(count) == len(recipe.names())
    assert usage.startswith("usage: fastcondense COMMAND")


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "The fastcondense developers"}] and citation["license"] == "Apache-2.0"
    newest = re.search(r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None and newest[1] == __version__


def test_commits_are_checked_as_the_tests_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"].split()[:2] for hook in hooks] == [["ruff", "check"], ["ruff", "format"], ["mypy"]]
    run([sys.executable, "-m", "pre_commit", "validate-config"], cwd=ROOT)
