"""One set at several sizes: prefixes, and sets made in other ways beside them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small import fastcondense

from fastcondense.cli import main
from fastcondense.data.jobs import jobs
from fastcondense.files import read_json
from fastcondense.recipe.recipe import load
from fastcondense.sets.condensed import read_set

SHORT = "--recover.iterations 4 --train.seeds 1 --evaluate.baselines random_soft".split()


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """A set of 3 images a class, scored at two sizes beside all that it can be compared with."""
    out = tmp_path_factory.mktemp("curve") / "digits"
    assert fastcondense("recover", out, *SHORT, "--ipc", "3") == 0
    more = "--ipc 1,3 --evaluate.compare independent stacked --device cpu".split()
    assert main(["evaluate", str(out), *more]) == 0
    return out


def test_every_size_and_every_way_is_scored(nested):
    result = read_json(nested / "curve.json")
    assert result["sizes"] == [1, 3] and result["epochs"] == 4
    assert set(result["top1_last"]) == {"nested", "random_soft", "independent", "stacked"}
    for curve in result["top1_last"].values():
        assert list(curve) == ["1", "3"] and all(0 <= score["mean"] <= 100 for score in curve.values())
    assert (nested / "curve.png").stat().st_size > 1000
    # slots know nothing of each other: the set's beginning is the set that is made for the size
    assert result["top1_last"]["nested"] == result["top1_last"]["independent"]


def test_the_compared_sets_are_what_they_are_called(nested):
    classes, settings = tuple("0123456789"), load(str(nested / "recipe.toml"))
    assert settings.ipc == 3

    def images(folder, ipc):
        made = jobs(load(str(nested / "recipe.toml")), 10)
        return read_set(folder / "condensed", made, ipc, classes).images

    mine = images(nested, 3)
    assert torch.equal(images(nested / "compare" / "independent-ipc3", 3), mine)
    first, second = (images(nested / "compare" / f"stacked-{k}", 1) for k in (0, 1))
    assert torch.equal(first[:, 0], mine[:, 0]) and not torch.equal(second, first)


def test_compared_sets_have_the_teachers_of_the_run(nested, tmp_path):
    """With its own normalisation and order of outputs."""
    state, weights = load_file(nested / "teachers" / "zoo-convnet3_w32" / "weights.safetensors"), tmp_path / "w.pt"
    torch.save({name: tensor.flip(0) if name.startswith("head") else tensor for name, tensor in state.items()}, weights)
    (tmp_path / "names.txt").write_text("".join(f"{k}\n" for k in reversed(range(10))))
    foreign = f"--squeeze.weights {weights} --squeeze.normalization 0.2,0.2,0.2/0.5,0.5,0.5 --squeeze.classes-file"
    flags = [*foreign.split(), str(tmp_path / "names.txt")]
    out = tmp_path / "foreign"
    assert fastcondense("recover", out, *flags, *SHORT, "--ipc", "2") == 0
    more = "--ipc 1,2 --evaluate.compare independent --device cpu".split()
    assert main(["evaluate", str(out), *more, *flags]) == 0
    top1 = read_json(out / "curve.json")["top1_last"]
    assert top1["nested"] == top1["independent"]
    made = [load(str(out / "recipe.toml")), tuple("0123456789")]
    one, other = (
        read_set(folder / "condensed", jobs(made[0], 10), 2, made[1]).images
        for folder in (out, out / "compare" / "independent-ipc2")
    )
    assert torch.equal(one, other)


def test_a_smaller_ipc_reads_the_first_images(nested, capsys):
    assert main(["train", str(nested), "--ipc", "2", "--device", "cpu"]) == 0
    assert main(["evaluate", str(nested), "--ipc", "2", "--device", "cpu"]) == 0
    result = json.loads((nested / "result.json").read_text())
    assert result["ipc"] == 2 and result["bytes"]["images"] == 10 * 2 * 3 * 8 * 8
    assert main(["evaluate", str(nested), "--ipc", "1,x"]) == 1
    assert "commas between" in capsys.readouterr().err
    assert main(["evaluate", str(nested), "--ipc", "1,4", "--device", "cpu"]) == 1
    assert "has 3 images a class" in capsys.readouterr().err.replace("\n", " ")
