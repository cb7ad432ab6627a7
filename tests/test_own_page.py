"""The page on one's own data, teacher and loss: its blocks are run as they stand, with fewer epochs."""

import json
import runpy
import shlex
import sys

import numpy as np
import pytest
from documents import ROOT, Block, blocks, commands, shell_lines
from sklearn.datasets import load_digits

from fastcondense import stages
from fastcondense.cli import main
from fastcondense.files import read_json
from fastcondense.recipe.recipe import load

PAGE = ROOT / "docs" / "own.md"
FEWER = (
    "--squeeze.epochs 3 --recover.iterations 4 --train.epochs 2 --train.evaluate-every 2 "
    "--evaluate.baselines random_soft --device cpu"
).split()


def run(block: Block) -> None:
    """Runs what a shell block says, in this process."""
    for line in shell_lines(block):
        program, *rest = shlex.split(line, comments=True)
        if program == "python":
            runpy.run_path(rest[0], run_name="__main__")
        else:
            for arguments in commands(line):
                assert main([*arguments, *FEWER]) == 0, line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The current folder, in which all blocks were run in their order."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        for name in ("picture", "inspect"):  # half of the time, and tested elsewhere
            patch.setattr(stages, name, lambda _run: None)
        for block in blocks(PAGE):
            if block.file is not None:
                (folder / block.file).write_text(block.text)
            elif block.language == "bash":
                run(block)
        yield folder


def result(folder, name):
    return json.loads((folder / "runs" / name / "result.json").read_text())


def test_blocks_are_about_ten_lines():
    lengths = [block.text.count("\n") for block in blocks(PAGE)]
    assert len(lengths) == 9 and max(lengths) <= 12


def test_the_data_set_is_the_one_that_was_written(folder):
    assert len(list((folder / "photos").glob("*/*.png"))) == len(load_digits().images)
    manifest = read_json(folder / "runs" / "my_recipe" / "condensed" / "manifest.json")
    assert manifest["classes"] == [f"digit-{k}" for k in range(10)] and manifest["ipc"] == 5
    assert result(folder, "my_recipe")["bytes"]["images"] == 10 * 5 * 3 * 8 * 8


def test_its_mean_and_deviation_are_the_recipes(folder):
    pixels = np.rint(load_digits().images * 15).astype(np.uint8) / 255
    dataset = load(str(folder / "my_recipe.toml")).dataset
    np.testing.assert_allclose(dataset.mean, pixels.mean(), atol=0.005)
    np.testing.assert_allclose(dataset.std, pixels.std(), atol=0.005)


def test_teachers_are_the_function_and_the_file(folder):
    trained, given = (
        read_json(folder / "runs" / name / "condensed" / "manifest.json")["teachers"]
        for name in ("my-teacher", "my-weights")
    )
    assert list(trained) == ["my_networks.py:small"]
    assert given == trained, "the weights that were read are those that were trained"
    students = sorted(path.name for path in (folder / "runs" / "my-teacher" / "students").iterdir())
    assert len(students) == 1 and students[0].startswith("my_networks.py-small-")


def test_the_loss_is_part_of_what_made_the_images(folder):
    own, without = (
        read_json(folder / "runs" / name / "condensed" / "manifest.json") for name in ("my-loss", "my_recipe")
    )
    assert own["recipe"]["recover"]["loss"] == "my_loss.py:unlike" and len(own["recipe"]["loss_sha256"]) == 64
    assert "loss_sha256" not in without["recipe"]
    assert own["digests"] != without["digests"] and own["teachers"] == without["teachers"]
    assert set(result(folder, "my-loss")["baselines"]) == {"random_soft"}
