"""One evaluation for any images: RD3's settings, what stays of a recipe, and who asks for it."""

import dataclasses

import pytest
from small import fastcondense, shards

import fastcondense as fc
from fastcondense.files import read_json
from fastcondense.recipe.protocol import with_protocol
from fastcondense.recipe.recipe import load


@pytest.mark.parametrize(
    ("name", "teacher", "crop", "flip", "stretch"),
    [
        ("edc/imagenet1k-ipc10", "torchvision/resnet18", 0.5, 0.5, 1),
        ("cim/cifar10-ipc1", "zoo/resnet18", 1.0, 0.5, 1),
        ("cvdd/tiny-imagenet-ipc50", "zoo/resnet18", 1.0, 0.5, 1),
        ("gvbsm/digits-ipc10", "zoo/convnet3_w64", 1.0, 0.0, 2),
    ],
)
def test_rd3s_labels_and_training_with_the_recipes_images(name, teacher, crop, flip, stretch):
    """Epochs, batch, loss and rates of the paper; nothing of a recipe's own tricks is left."""
    recipe = load(name)
    found = with_protocol(recipe, "rd3")
    labels, train = found.labels, found.train
    assert labels.teachers == (teacher,) and labels.crop_scale == (crop, 1.0) and labels.flip == flip
    assert (labels.mix, labels.ensemble, labels.batch_norm, labels.tile_pick) == ("cutmix", "mean", "eval", 1)
    assert (train.epochs, train.batch_size, train.lr, train.loss, train.ema) == (400, 50, 1e-3, "kl", 0)
    assert (train.schedule, train.schedule_stretch) == ("cosine", stretch)
    parts = recipe.recover_parts()
    assert found.sha256(*parts) == recipe.sha256(*parts)  # the same images
    kept = ("student", "seeds", "precision", "evaluate_every")
    assert all(getattr(train, key) == getattr(recipe.train, key) for key in kept)
    assert (found.evaluate, labels.precision) == (recipe.evaluate, recipe.labels.precision)


def test_two_recipes_are_evaluated_alike():
    """Of the same data set and teacher, but for how often students are scored."""
    one, other = (with_protocol(load(f"{name}/cifar10-ipc10"), "rd3") for name in ("sre2l", "fadrm"))
    assert one.labels == other.labels
    assert one.train == dataclasses.replace(other.train, evaluate_every=one.train.evaluate_every)


def test_what_is_no_protocol_and_what_has_no_teacher():
    with pytest.raises(ValueError, match="there is no protocol 'rd4'; the nearest is 'rd3'"):
        with_protocol(load("sre2l/digits"), "rd4")
    with pytest.raises(ValueError, match=r"protocol rd3 needs a teacher that labels, .* none \(squeeze.teachers\)"):
        with_protocol(load("idc/digits"), "rd3")


def test_a_finished_run_is_evaluated_by_the_protocol_beside_its_own(tmp_path):
    """The images stay as they are; flags behind the protocol count."""
    out, small = tmp_path / "run", ["--train.student", "zoo/convnet1", "--train.epochs", "2", "--train.seeds", "1"]
    assert fastcondense("recover", out, "--recover.iterations", "2") == 0
    made = shards(out)
    for stage in ("train", "evaluate"):
        assert fc_main(stage, out, "--protocol", "rd3", *small) == 0
    result = read_json(out / "result.json")
    assert (result["settings"]["train"]["batch_size"], result["epochs"]) == (50, 2)
    assert result["settings"]["train"]["temperature"] == 20 and shards(out) == made
    assert load(str(out / "recipe.toml")).train.batch_size == 8  # the run's own is remembered


def fc_main(stage, out, *more):
    from fastcondense.cli import main

    return main([stage, str(out), "--device", "cpu", *more])


def test_the_api_takes_a_protocol():
    found = fc.recipe("sre2l/digits-ipc2", protocol="rd3", **{"train.epochs": 7})
    assert (found.train.epochs, found.train.batch_size, found.ipc) == (7, 50, 2)
