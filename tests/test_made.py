"""What counts as a finished job: shards of this recipe, whole, and in their place."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import fastcondense, shards

FAST = ("--squeeze.epochs", "1", "--squeeze.gate-images", "0", "--recover.iterations", "3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "run"
    assert fastcondense("recover", out, *FAST) == 0
    return out


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_a_shard_of_another_recipe_is_named_and_kept(run, copy, tmp_path, capsys):
    assert fastcondense("recover", tmp_path / "other", *FAST, "--seed", "1") == 0
    name = "shard-00001.safetensors"
    shutil.copy(tmp_path / "other" / "condensed" / name, copy / "condensed" / name)
    assert fastcondense("recover", copy, *FAST) == 1
    assert f"{name} is of another recipe; move it away" in capsys.readouterr().err
    (copy / "condensed" / name).unlink()
    assert fastcondense("recover", copy, *FAST) == 0
    assert shards(copy) == shards(run)


def test_a_shard_in_another_ones_place_is_named(copy, capsys):
    folder = copy / "condensed"
    shutil.copy(folder / "shard-00000.safetensors", folder / "shard-00001.safetensors")
    assert fastcondense("recover", copy, *FAST) == 1
    assert "shard-00001.safetensors is of another job" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0, -1])
def test_a_damaged_shard_is_said_and_made_again(run, copy, kept, capsys):
    path = copy / "condensed" / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert fastcondense("recover", copy, *FAST) == 0
    said = capsys.readouterr().out
    assert "shard-00001.safetensors cannot be read" in said and "the job is done again" in said
    assert shards(copy) == shards(run)


def test_shards_of_older_versions_count(copy):
    """They do not name their recipe; their folder's manifest does."""
    path = copy / "condensed" / "shard-00001.safetensors"
    save_file(load_file(path), path, {"seconds": "1.0"})
    before = path.read_bytes()
    assert fastcondense("recover", copy, *FAST) == 0
    assert path.read_bytes() == before


def test_images_of_other_versions_are_not_mixed_unasked(copy, capsys):
    path, shard = (copy / "condensed" / name for name in ("manifest.json", "shard-00001.safetensors"))
    manifest = json.loads(path.read_text())
    assert manifest["versions"]["torch"] == torch.__version__
    for package in ("torch", "timm", "fastcondense"):
        path.write_text(json.dumps(manifest | {"versions": manifest["versions"] | {package: "0.0.1"}}))
        if shard.exists():
            assert fastcondense("recover", copy, *FAST) == 0  # all images are there
            shard.unlink()
        assert fastcondense("recover", copy, *FAST) == 1
        assert f"begun with {package} 0.0.1" in capsys.readouterr().err
    assert fastcondense("recover", copy, *FAST, "--mixed-versions") == 0
    assert f"begun with {package} 0.0.1" in capsys.readouterr().out
