"""One set at several sizes: prefixes, orders, and sets made in other ways beside them."""

import json

import numpy as np
import pytest
import torch
from small import fastcondense

from fastcondense.cli import main
from fastcondense.data.jobs import jobs
from fastcondense.files import read_json, read_tensors
from fastcondense.recipe.recipe import load
from fastcondense.sets.bundle import read_bundle
from fastcondense.sets.condensed import read_set

SEQUENTIAL = (
    "--recover.nested.mode sequential --recover.iterations 4 --train.seeds 1 --evaluate.baselines random_soft"
).split()


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """A sequential set of 3 images a class, scored at two sizes beside all that it can be compared with."""
    out = tmp_path_factory.mktemp("curve") / "digits"
    assert fastcondense("recover", out, *SEQUENTIAL, "--ipc", "3") == 0
    more = "--ipc 1,3 --evaluate.compare independent stacked prefix --device cpu".split()
    assert main(["evaluate", str(out), *more]) == 0
    return out


def test_every_size_and_every_way_is_scored(nested):
    result = read_json(nested / "curve.json")
    assert result["sizes"] == [1, 3] and result["epochs"] == 4
    assert set(result["top1_last"]) == {"nested", "random_soft", "independent", "stacked", "prefix"}
    for curve in result["top1_last"].values():
        assert list(curve) == ["1", "3"] and all(0 <= score["mean"] <= 100 for score in curve.values())
    assert (nested / "curve.png").stat().st_size > 1000
    # slot 0 knows nothing of others: it is the same in all ways
    assert result["top1_last"]["nested"]["1"] == result["top1_last"]["prefix"]["1"]
    assert result["top1_last"]["independent"]["1"] == result["top1_last"]["prefix"]["1"]


def test_the_compared_sets_are_what_they_are_called(nested):
    classes, settings = tuple("0123456789"), load(str(nested / "recipe.toml"))
    assert settings.ipc == 3

    def images(folder, ipc):
        made = jobs(load(str(nested / "recipe.toml")), 10)
        return read_set(folder / "condensed", made, ipc, classes).images

    mine, prefix = images(nested, 3), images(nested / "compare" / "prefix", 3)
    assert torch.equal(mine[:, 0], prefix[:, 0]) and not torch.equal(mine[:, 1], prefix[:, 1])
    assert torch.equal(images(nested / "compare" / "independent-ipc3", 3), prefix)
    first, second = (images(nested / "compare" / f"stacked-{k}", 1) for k in (0, 1))
    assert torch.equal(first[:, 0], prefix[:, 0]) and not torch.equal(second, first)


def test_a_smaller_ipc_reads_the_first_images(nested, capsys):
    assert main(["train", str(nested), "--ipc", "2", "--device", "cpu"]) == 0
    assert main(["evaluate", str(nested), "--ipc", "2", "--device", "cpu"]) == 0
    result = json.loads((nested / "result.json").read_text())
    assert result["ipc"] == 2 and result["bytes"]["images"] == 10 * 2 * 3 * 8 * 8
    assert main(["evaluate", str(nested), "--ipc", "1,x"]) == 1
    assert "commas between" in capsys.readouterr().err
    assert main(["evaluate", str(nested), "--ipc", "1,4", "--device", "cpu"]) == 1
    assert "has 3 images a class" in capsys.readouterr().err.replace("\n", " ")


def test_an_order_by_statistics_is_kept_and_bundled(nested, tmp_path):
    order = ["--train.order", "statistics", "--device", "cpu", "--ipc", "3"]
    for stage in ("relabel", "train"):
        assert main([stage, str(nested), *order]) == 0
    ranks = torch.tensor(read_json(nested / "condensed" / "ranks.json")["ranks"])
    assert torch.equal(ranks.sort(1).values, torch.arange(3).expand(10, 3))
    assert not torch.equal(ranks, torch.arange(3).expand(10, 3))
    assert main(["bundle", str(nested), "--out", str(tmp_path / "b.zip")]) == 0
    made = read_set(nested / "condensed", jobs(load(str(nested / "recipe.toml")), 10), 3, tuple("0123456789")).images
    expected = np.stack([made[k].numpy()[ranks[k].numpy()] for k in range(10)])
    assert np.array_equal(read_bundle(tmp_path / "b.zip").condensed.images.numpy(), expected)
    assert main(["train", str(tmp_path / "b.zip"), "--out", str(tmp_path / "r"), "--device", "cpu"]) == 0
    ours, theirs = (
        [read_tensors(p)[0] for p in sorted(folder.glob("students/*/condensed/seed0/weights.safetensors"))]
        for folder in (nested, tmp_path / "r")
    )
    assert any(all(torch.equal(mine[key], theirs[0][key]) for key in mine) for mine in ours)
