"""The list of recipes, and a recipe with the origin of every value."""

import dataclasses
import tomllib

import pytest

from fastcondense.recipe import catalogue, layers, recipe
from fastcondense.recipe.recipe import from_toml, load


@pytest.mark.parametrize(
    "name", ["edc/cifar10-corrected-ipc1", "fadrm-plus/imagenet1k-ipc1", "rded/imagenet1k", "sre2l/digits"]
)
def test_a_shown_recipe_is_the_recipe(name):
    assert from_toml(catalogue.resolved(name), "shown") == load(name)


def test_values_come_from_where_they_are_written():
    origins, table = {}, ""
    for line in catalogue.resolved("rded/cifar10-ipc1").splitlines():
        value, _, origin = line.partition("  # ")
        table = line.strip("[]") + "." if line.startswith("[") else table
        origins[table + value.partition(" = ")[0]] = origin.strip()
    assert origins["train.batch_size"] == "shared/rded/students, [by_ipc.1]"
    students = tomllib.loads((layers.RECIPES / "shared" / "rded" / "students.toml").read_text())
    assert students["by_ipc"]["1"]["train"] == {"batch_size": load("rded/cifar10-ipc1").train.batch_size}
    assert origins["squeeze.teachers"] == "shared/sre2l/teacher-cifar"
    assert origins["train.temperature"] == "shared/rded/students"
    assert origins["ipc"] == "ipc" and origins["recover.betas"] == "default"


def test_entries_hold_what_their_recipes_say():
    found = catalogue.find("*imagenette*")
    assert found == [name for name in recipe.names() if "imagenette" in name] == catalogue.find("imagenette")
    for name in found:
        entry, full = catalogue.entry(name), load(name)
        assert (entry.student, entry.size) == (full.train.student, full.dataset.image_size)
    assert catalogue.entry("rded/imagenet1k").published == {1: 6.6, 10: 42.0, 50: 56.5, 100: 59.8}
    described = "RDED on ImageNet-1k (Sun et al., CVPR'24): four crops an image, no optimisation."
    assert catalogue.entry("rded/imagenet1k").description == described
    assert all(entry.description.endswith(".") for entry in map(catalogue.entry, recipe.names()))
    assert {field.name for field in dataclasses.fields(catalogue.Entry)} >= {"dataset", "published"}
