"""Every method's recipe for the digits, from real images to a score, cut down to seconds; and what a rerun makes."""

import pytest
from small import shards

from fastcondense.cli import main
from fastcondense.files import read_json
from fastcondense.recipe import recipe

METHODS = sorted(name for name in recipe.names() if name.endswith(("/digits", "/digits-corrected")))
SHORT = (
    "--squeeze.epochs 2 --squeeze.gate-images 0 --squeeze.probe.epochs 1 --squeeze.self-supervision.epochs 1 "
    "--recover.initial.candidates 20 --recover.gradients.inner 2 --train.epochs 1 --train.seeds 1 --device cpu"
).split()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_from_end_to_end_and_the_same_way_again(name, tmp_path):
    settings = recipe.load(name)
    flags = ["--recipe", f"{name}-ipc2", *SHORT, "--out", str(tmp_path)]
    flags += ["--recover.iterations", str(min(4, settings.recover.iterations))]
    flags += ["--recover.pyramid.every", "1"] if settings.recover.pyramid.every else []
    flags += [] if settings.train.frozen else ["--train.student", "zoo/convnet1"]
    assert main(["run", *flags]) == 0
    result, made = read_json(tmp_path / "result.json"), shards(tmp_path)
    assert 0 <= result["top1_last"]["mean"] <= 100 and set(result["baselines"]) == set(settings.evaluate.baselines)
    assert (result["bytes"]["labels"] > 0) == name.startswith("lpqld/") and result["bytes"]["images"] > 0
    (last,) = sorted((tmp_path / "condensed").glob("shard-*"))[-1:]
    last.unlink()
    assert main(["recover", *flags]) == 0
    assert shards(tmp_path) == made


def test_a_setting_that_failed_before_any_image_can_be_mended(tmp_path, capsys):
    flags = [
        "--recipe",
        "cim/digits-ipc2",
        *SHORT,
        "--train.student",
        "zoo/convnet1",
        "--recover.iterations",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert main(["recover", *flags, "--recover.features.layer", "headd"]) == 1
    assert "near: head" in capsys.readouterr().err
    assert main(["recover", *flags]) == 0
    assert main(["recover", *flags, "--recover.features.layer", "convs.1"]) == 1
    assert "holds images of another recipe (recover.features.layer was" in capsys.readouterr().err
