"""The importer of published statistics: folders of every layout, swapped patch files, and refusals."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from rich.console import Console

from fastcondense.log import Log
from fastcondense.networks import zoo
from fastcondense.recipe.recipe import Recipe, load
from fastcondense.recipe.recover import Recover
from fastcondense.run import Run
from fastcondense.statistics import targets
from fastcondense.teachers.teacher import Teacher
from fastcondense.tensor_files import read_tensors

NAME = "zoo/convnet3_w32"
SIZE, P, NUM_CLASSES = 8, 4, 10
KEYS = ("running_dd_mean", "running_dd_var", "running_patch_mean", "running_patch_var")
BOTH = {"targets": ("global", "category"), "target_weights": (0.5, 0.5)}


def make_run(tmp_path, outputs=range(10), **recover):
    """A run of the digits whose teacher is untrained, and what it says."""
    base: Recipe = load("sre2l/digits")
    given = {"statistics": ("bn", "conv", "patch"), "patch_size": P, "statistics_files": str(tmp_path / "statistic")}
    settings = Recover(**given | recover)
    said = io.StringIO()
    run = Run(dataclasses.replace(base, recover=settings), tmp_path / "run", log=Log(Console(file=said, width=1000)))
    torch.manual_seed(0)
    net = zoo.build(NAME, max(outputs) + 1).eval()
    statistics = settings.statistics, settings.patch_size
    run.kept["teachers"] = [Teacher.of(net, NAME, run.real.classes, list(outputs), base.dataset, *statistics)]
    return run, said


def lengths_of(run):
    teacher = run.kept["teachers"][0]
    return {
        layer.name: [len(vector) for vector in vectors]
        for layer, vectors in zip(teacher.layers, teacher.batch_targets(torch.zeros(1, 3, SIZE, SIZE)), strict=True)
    }


def write(path, vectors, keys=KEYS):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(zip(keys, vectors, strict=False)))


def publish(run, root, network, classes=range(NUM_CLASSES), is_swapped=False):
    """Random statistics in the published layout; returns what should be read: global, and by class."""
    generator = np.random.default_rng(0)
    everything, by_class = {}, {}

    def draw(lengths):
        vectors = [generator.normal(size=n).astype(np.float32) for n in lengths]
        vectors[1::2] = [np.abs(vector) for vector in vectors[1::2]]
        return vectors

    for layer in run.kept["teachers"][0].layers:
        lengths = lengths_of(run)[layer.name]
        kind = "BN" if layer.is_batch_norm else "Conv"
        folder, name = root / f"{kind}FeatureHook", f"{network}={layer.name}"
        if not layer.is_batch_norm:
            everything[layer.name] = draw(lengths)
            write(folder / name / "running.npz", everything[layer.name])
        by_class[layer.name] = {}
        for k in classes:
            vectors = by_class[layer.name][k] = draw(lengths)
            swapped = [vectors[j] for j in (0, 1, 3, 2)] if is_swapped and len(vectors) == 4 else vectors
            write(folder / f"class_{k}" / name / "running.npz", swapped)
    return everything, by_class


def assert_read(run, everything, by_class, outputs=range(NUM_CLASSES)):
    teacher = run.kept["teachers"][0]
    for name, vectors in everything.items():
        assert all(np.array_equal(a, b) for a, b in zip(teacher.targets[name], vectors, strict=True)), name
    for name, rows in by_class.items() if teacher.class_targets else ():
        wanted = [np.stack(vectors) for vectors in zip(*(rows[k] for k in outputs), strict=True)]
        assert all(np.array_equal(a, b) for a, b in zip(teacher.class_targets[name], wanted, strict=True)), name


@pytest.mark.parametrize("network", ["ConvNet", "ConvNet_convnet3_w32", "ConvNet_ConvNet3_W32"])
@pytest.mark.parametrize("aims", [BOTH, {}, {"targets": ("category",)}], ids=["both", "global", "category"])
def test_every_layout_is_read_once_and_kept(tmp_path, network, aims):
    run, said = make_run(tmp_path, **aims)
    everything, by_class = publish(run, tmp_path / "statistic", network)
    before = {name: run.kept["teachers"][0].targets[name] for name in by_class if name not in everything}
    targets.complete(run, run.kept["teachers"])
    assert_read(run, everything, by_class)
    assert bool(run.kept["teachers"][0].class_targets) == ("category" in run.recipe.recover.targets)
    assert all(run.kept["teachers"][0].targets[name] is vectors for name, vectors in before.items())
    assert "swapped" not in said.getvalue()
    (path,) = (tmp_path / "run" / "teachers").rglob("targets-*.safetensors")
    kept, again = path.stat().st_mtime_ns, make_run(tmp_path, **aims)[0]
    targets.complete(again, again.kept["teachers"])
    assert path.stat().st_mtime_ns == kept
    assert_read(again, everything, by_class)
    assert read_tensors(path)[1]["teacher"] == run.kept["teachers"][0].sha256


def test_statistics_of_channels_or_of_patches_alone_are_taken_from_the_same_files(tmp_path):
    run, _ = make_run(tmp_path, **BOTH)
    everything, _ = publish(run, tmp_path / "statistic", "ConvNet")
    for statistics, taken in ((("conv",), slice(0, 2)), (("patch",), slice(2, 4))):
        other, _ = make_run(tmp_path, statistics=statistics, **BOTH)
        targets.complete(other, other.kept["teachers"])
        assert_read(other, {name: vectors[taken] for name, vectors in everything.items()}, {})


def test_classes_are_found_by_the_networks_outputs(tmp_path):
    outputs = [12, 3, 7, 0, 1, 2, 4, 5, 6, 11]
    run, _ = make_run(tmp_path, outputs, **BOTH)
    everything, by_class = publish(run, tmp_path / "statistic", "ConvNet", sorted(outputs))
    targets.complete(run, run.kept["teachers"])
    assert_read(run, everything, by_class, outputs)


@pytest.mark.parametrize("as_published", [False, True])
def test_swapped_class_patches_are_found_and_put_right(tmp_path, as_published):
    run, said = make_run(tmp_path, swapped_patches=as_published, **BOTH)
    everything, by_class = publish(run, tmp_path / "statistic", "ConvNet", is_swapped=True)
    targets.complete(run, run.kept["teachers"])
    assert said.getvalue().count("patch means and variances swapped") == 1
    assert_read(run, everything, by_class)
    first = next(k for k, layer in enumerate(run.kept["teachers"][0].layers) if not layer.is_batch_norm)
    found = run.kept["teachers"][0].category_targets(torch.tensor([3]))[first]
    wanted = by_class[run.kept["teachers"][0].layers[first].name][3]
    order = (0, 1, 3, 2) if as_published else (0, 1, 2, 3)
    assert all(np.array_equal(vector, wanted[k]) for vector, k in zip(found, order, strict=True))


def test_changed_files_are_read_again(tmp_path):
    run, _ = make_run(tmp_path)
    everything, _ = publish(run, tmp_path / "statistic", "ConvNet", [])
    targets.complete(run, run.kept["teachers"])
    everything["convs.0"] = [vector + 1 for vector in everything["convs.0"]]
    write(tmp_path / "statistic" / "ConvFeatureHook" / "ConvNet=convs.0" / "running.npz", everything["convs.0"])
    again, _ = make_run(tmp_path)
    targets.complete(again, again.kept["teachers"])
    assert_read(again, everything, {})


# --- refusals --------------------------------------------------------------------------------------------------------

GLOBAL = "ConvFeatureHook/ConvNet=convs.1/running.npz"
OF_CLASS = "ConvFeatureHook/class_7/ConvNet=convs.1/running.npz"
OF_NORM = "BNFeatureHook/class_7/ConvNet=norms.1/running.npz"


def damage(path, how):
    vectors = dict(np.load(path))
    if how == "remove":
        path.unlink()
    elif how == "text":
        path.write_text("<html>404</html>")
    elif how == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "key":
        del vectors["running_dd_var"]
        np.savez(path, **vectors)
    elif how == "shape":
        np.savez(path, **vectors | {"running_dd_mean": np.zeros(5, np.float32)})
    elif how == "nan":
        np.savez(path, **vectors | {"running_dd_mean": vectors["running_dd_mean"] * np.nan})
    elif how == "negative":
        np.savez(path, **vectors | {"running_dd_var": vectors["running_dd_var"] - 100})


@pytest.mark.parametrize("file", [GLOBAL, OF_CLASS, OF_NORM])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("remove", r"there is no .*{}"),
        ("text", r"{} cannot be read"),
        ("array", r"{} cannot be read"),
        ("cut", r"{} cannot be read"),
        ("key", r"{} lacks running_dd_var"),
        ("shape", r"{}: running_dd_mean has shape \(5,\), but the layer needs \(32,\)"),
        ("nan", r"not finite"),
        ("negative", r"negative variances"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, file, how, message):
    run, _ = make_run(tmp_path, **BOTH)
    publish(run, tmp_path / "statistic", "ConvNet")
    damage(tmp_path / "statistic" / file, how)
    with pytest.raises(ValueError, match=f"recover.statistics_files: .*{message.format(file)}") as caught:
        targets.complete(run, run.kept["teachers"])
    assert "\n" not in str(caught.value) and not list((tmp_path / "run").rglob("*.safetensors"))


def test_statistics_of_other_networks_are_refused_by_name(tmp_path):
    run, _ = make_run(tmp_path)
    with pytest.raises(ValueError, match=r"there is no folder .*ConvFeatureHook"):
        targets.complete(run, run.kept["teachers"])
    publish(run, tmp_path / "statistic", "ResNet", [])
    publish(run, tmp_path / "statistic", "WideResNet_wrn16_2", [])
    with pytest.raises(ValueError, match=r"of ConvNet_convnet3_w32 or ConvNet, but of ResNet, WideResNet_wrn16_2$"):
        targets.complete(run, run.kept["teachers"])


def test_full_variances_cannot_come_from_published_files(tmp_path):
    run, _ = make_run(tmp_path, class_variance="full", **BOTH)
    publish(run, tmp_path / "statistic", "ConvNet")
    with pytest.raises(ValueError, match=r"hold within-image variances; recover\.class_variance cannot be full"):
        targets.complete(run, run.kept["teachers"])
