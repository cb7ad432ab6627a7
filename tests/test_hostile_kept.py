"""What a run keeps on its way, in a stranger's folder: other tensors than ours are one line that names the file."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from small import fastcondense, frozen_network, image_folder

from fastcondense.data.jobs import Job
from fastcondense.log import Log
from fastcondense.networks import zoo
from fastcondense.recipe.recipe import load
from fastcondense.recipe.recover import Initial
from fastcondense.recover import mosaic
from fastcondense.recover.anchors import RetrievedAnchors
from fastcondense.recover.learnable_subset import LearnableSubset
from fastcondense.recover.own import own_start
from fastcondense.recover.representatives import Rule, representatives
from fastcondense.recover.unfinished import Unfinished, remaining
from fastcondense.run import Run
from fastcondense.sets.condensed import read_seconds
from fastcondense.sets.parts import in_order
from fastcondense.statistics import targets
from fastcondense.statistics.class_directions import class_directions
from fastcondense.statistics.class_parts import part_means
from fastcondense.statistics.collection import Collection
from fastcondense.statistics.collector import Collector
from fastcondense.statistics.difficulty import grade
from fastcondense.student_records import Confusion, check_confusion
from fastcondense.students.closest import closest_images
from fastcondense.students.frozen import FrozenStudent
from fastcondense.teachers.teacher import Teacher
from fastcondense.teachers.weights import head_size
from fastcondense.tensor_files import read_kept, read_tensors, write_tensors

NAME = "zoo/convnet3_w32"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run on the digits with a teacher that nobody trained."""
    folder, settings = tmp_path_factory.mktemp("kept"), load("means/digits")
    (folder / "x.py").write_text("def start(images, slot):\n    return images[slot].float()\n")
    squeeze = dataclasses.replace(settings.squeeze, teachers=(NAME,))
    initial = Initial(kind="mosaic", candidates=9, crops=2)
    recover = dataclasses.replace(settings.recover, teachers=(), initial=initial)
    train = dataclasses.replace(settings.train, student=NAME)
    recipe = dataclasses.replace(settings, ipc=2, squeeze=squeeze, recover=recover, train=train)
    run = Run(recipe, folder / "run", log=Log(is_silent=True))
    net = frozen_network(NAME, 10)
    run.kept["teachers"] = [Teacher.of(net, NAME, run.real.classes, range(10), settings.dataset, ("bn", "conv"))]
    return run


def category(run):
    """Targets of the whole and of each class, given to a teacher that lacks them."""
    (teacher,) = run.kept["teachers"]
    lacking = dataclasses.replace(teacher, targets={}, class_targets={})
    recover = dataclasses.replace(run.recipe.recover, targets=("category",), statistics=("bn", "conv"))
    other = Run(dataclasses.replace(run.recipe, recover=recover), run.out, log=run.log)
    targets.complete(other, [lacking])
    return [*lacking.targets.values(), *lacking.class_targets.values()]


def graded(run):
    """The groups of difficulty of all classes, and the statistics of each."""
    teacher = Teacher.of(frozen_network(NAME, 10), NAME, run.real.classes, range(10), run.recipe.dataset, ("bn",))
    return grade(run, [teacher]), teacher.group_targets


def retrieved(run):
    """The anchors of two grey images of class 6."""
    anchors = RetrievedAnchors(run, run.kept["teachers"][0])
    return anchors(Job(0, 0, 2, 6, 1), torch.zeros(2, 3, 8, 8), run.recipe.dataset.image_size)


READERS = {
    "difficulty": ("difficulty-*/part-03*", graded),
    "anchors": ("anchors-*/class-00006*", retrieved),
    "targets": ("teachers/*/targets-*", category),
    "class means": (
        "teachers/*/targets-*",
        lambda run: class_directions(
            Run(dataclasses.replace(run.recipe, ipc=1), run.out, log=run.log), run.kept["teachers"]
        ),
    ),
    "class parts": ("class-parts-*/part-03*", lambda run: part_means(run, run.kept["teachers"], [32])),
    "mosaics": ("initial-*/class-00003*", lambda run: vars(mosaic.ranked(run, run.kept["teachers"], 3))),
    "herding": ("initial-*/class-00004*", lambda run: representatives(run, Rule("herding", None), 4, 2)),
    "own images": (
        "initial-*/class-00005*",
        lambda run: own_start(run, f"{run.out.parent / 'x.py'}:start")(Job(0, 0, 2, 0, 10)),
    ),
    "nearest": ("students/features/nearest-*", lambda run: closest_images(run, "nearest", 2)[0].read(run.device)),
    "features": ("students/features/*-test-*", lambda run: FrozenStudent(run).test),
}


def forged(tensors):
    """Other tensors in the place of each, and none, and one more."""
    for name, tensor in tensors.items():
        yield {key: value for key, value in tensors.items() if key != name}
        others = [tensor.double(), tensor[..., None], tensor.flatten()[:0]]
        others += [torch.cat([tensor, tensor], -1)] if tensor.dim() > 1 else []
        if tensor.is_floating_point():
            others += [torch.full_like(tensor, float("nan")), torch.full_like(tensor, float("inf"))]
        elif tensor.dtype == torch.int64:
            others += [torch.full_like(tensor, value) for value in (-7, 1 << 40, 10)]
        yield from (tensors | {name: other} for other in others)
    yield tensors | {"more": torch.ones(1)}
    yield {}


def is_equal(one, other):
    """Whether two trees of arrays, and of whatever has fields, hold the same."""
    if isinstance(one, torch.Tensor | np.ndarray):
        return type(one) is type(other) and one.shape == other.shape and bool((one == other).all())
    if dataclasses.is_dataclass(one):
        one, other = vars(one), vars(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return repr(one) == repr(other)


@pytest.mark.parametrize("name", READERS)
def test_other_tensors_than_a_run_keeps_are_named(opened, name):
    pattern, read = READERS[name]
    before = set(opened.out.rglob("*.safetensors"))
    whole = read(opened)
    (path,) = [path for path in opened.out.glob(pattern) if path not in before]
    tensors, data = read_tensors(path)[0], path.read_bytes()
    some = dict(list(tensors.items())[:2] + list(tensors.items())[-2:])
    for other in forged(some):
        write_tensors(path, {key: value for key, value in tensors.items() if key not in some} | other, {})
        try:
            assert is_equal(read(opened), whole) or name in ("herding", "own images")  # shorter: they go on from it
        except ValueError as error:
            assert re.fullmatch(rf"{re.escape(str(path))} is not what a run keeps there; remove it: [^\n]+", str(error))
        path.write_bytes(data)
    assert is_equal(read(opened), whole)


def test_parts_of_others_are_named(opened):
    (teacher,) = opened.kept["teachers"]
    path = opened.out / "teachers" / "x" / "targets-00000000.safetensors"
    collection = Collection(opened, {path: Collector(teacher, [layer.name for layer in teacher.layers], 10)})
    collection.collect()
    part = next(collection.folder.glob("part-03*"))
    for other in forged(dict(list(read_tensors(part)[0].items())[:1])):
        write_tensors(part, other, {})
        with pytest.raises(ValueError, match=r"parts-00000000 holds other parts than a run keeps there; .+$"):
            collection.joined()


def test_a_file_that_is_as_it_should_be_is_read(tmp_path):
    tensors = {"a": torch.ones(3, 2), "b": torch.arange(4)}
    write_tensors(tmp_path / "x", tensors, {})
    read = read_kept(tmp_path / "x", {"a": (torch.float32, [-1, 2]), "b": (torch.int64, [4])})
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(ValueError, match=r"x is not what a run keeps there; remove it: its 'a' is float32 \[3, 2\], w"):
        read_kept(tmp_path / "x", {"a": (torch.float32, [-1, 3]), "b": (torch.int64, [4])})


@pytest.mark.parametrize(
    "other",
    [{"total": torch.ones(1)}, {"total": torch.ones(2).double()}, {"step": torch.tensor([9])}, {"step": torch.ones(2)}],
    ids=str,
)
def test_a_state_that_would_be_stretched_is_named(tmp_path, other):
    unfinished, state = Unfinished(tmp_path, Job(3, 0, 1, 0, 2), "mine"), {"total": torch.ones(2)}
    state["step"] = torch.tensor([4])

    def restore(tensors):
        for name, buffer in state.items():
            buffer.copy_(tensors[name])

    unfinished.write(4, state | other)
    with pytest.raises(
        ValueError, match=r"unfinished-00003\.safetensors is not the state of its job; remove it: [^\n]+$"
    ):
        list(remaining(10, unfinished, torch.device("cpu"), lambda: state, restore))


@pytest.mark.parametrize(
    "change",
    [
        {"size": 4},
        {"size": -1},
        {"learned": [9]},
        {"learned": "x"},
        {"ends": {"x": 1}},
        {"distances": [1.0]},
    ],
    ids=str,
)
def test_a_subset_of_another_job_is_refused(change):
    fields = json.loads(json.dumps(vars(LearnableSubset(3, 2, [1], {2: 5}, [0.5, 0.25, 1.0]))))
    assert vars(LearnableSubset.restored(fields, 3))["ends"] == {2: 5}
    with pytest.raises((ValueError, TypeError)):
        LearnableSubset.restored(fields | change, 3)


@pytest.mark.parametrize("text", ["[]", "3", '{"files": "x"}', '{"images": {}, "files": -1}', "{}"])
def test_a_list_of_looked_at_files_is_no_other(tmp_path, capsys, text):
    run, data = tmp_path / "run", image_folder(tmp_path / "data")
    run.mkdir()
    (run / "checked.json").write_text(text)
    assert fastcondense("squeeze", run, "--dataset.name", "folder", "--data", str(data)) == 1
    assert f"{run / 'checked.json'} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["x", "nan", "-1"])
def test_seconds_of_a_job_are_numbers(tmp_path, seconds):
    for text in ("1.5", seconds):
        write_tensors(tmp_path / "shard", {"images": torch.ones(1)}, {"seconds": text})
        if text == "1.5":
            assert read_seconds(tmp_path / "shard") == 1.5
    with pytest.raises(ValueError, match="shard is damaged: field seconds"):
        read_seconds(tmp_path / "shard")


@pytest.mark.parametrize(
    "change",
    [
        {"images": [3]},
        {"right": [3, 3, 3]},
        {"right": [4, 0]},
        {"confused": [[0, 2, 1]]},
        {"confused": [[2, 0, 1]]},
        {"confused": [[0, 1, 9]]},
    ],
    ids=str,
)
def test_answers_of_a_student_are_those_of_its_classes(change):
    table = Confusion(images=[3, 3], right=[1, 2], confused=[(0, 1, 2)])
    check_confusion(table, 2, "x")
    with pytest.raises(ValueError, match=r"^x is damaged: field classes: "):
        check_confusion(table | change, 2, "x")


def test_parts_that_a_name_claims_are_not_counted_one_by_one(tmp_path):
    files = [tmp_path / f"train-0000{k}-of-{10**15}.parquet" for k in (0, 1)]
    with pytest.raises(ValueError, match="but no number 2: lacks a part"):
        in_order(files)


@pytest.mark.parametrize(
    "change",
    [
        {"head.weight": torch.ones(10**7, 0)},
        {"head.weight": torch.ones(10**7, 1, dtype=torch.uint8)},
        {"head.weight": torch.ones(10**7, dtype=torch.uint8)},
        {"head.weight": None, "head.bias": torch.ones(10**7, dtype=torch.uint8)},
        {"head.bias": torch.ones(10**7, dtype=torch.uint8)},
    ],
    ids=str,
)
def test_a_head_that_claims_more_outputs_than_it_has_weights_is_none(change):
    small, large = (zoo.build(NAME, count).state_dict() for count in (10, 11))
    assert head_size(zoo.build(NAME, 7).state_dict(), small, large) == 7
    state = {key: value for key, value in (small | change).items() if value is not None}
    assert head_size(state, small, large) is None
