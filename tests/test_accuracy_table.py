"""Tables of runs and of curves: what is copied from a run, what counts as reduced, and what is shown where."""

import dataclasses
import json
import statistics

import add_run
import cells
import curves
import pytest
from accuracy import differences, is_reduced, page, table
from add_run import add, line_of, main, read_lines

from fastcondense.recipe.evaluation import PARTS
from fastcondense.recipe.recipe import load

DAY = 1_795_000_000  # 2026-11-18


def finished(folder, recipe_name, /, *, mean=50.04, std=0.26, time=DAY, **changes):
    """The folder of a finished run of a recipe, with settings changed by dotted name ("train__epochs")."""
    made = load(recipe_name)
    for key, value in changes.items():
        part, _, field = key.rpartition("__")
        owner = getattr(made, part) if part else made
        owner = dataclasses.replace(owner, **{field: value})
        made = dataclasses.replace(made, **{part: owner}) if part else owner
    score = {"mean": mean, "std": std, "seeds": [mean] * made.train.seeds}
    scores = {"top1_last": score, "top1_best": {"mean": mean + 1, "std": std}, "top5_last": score}
    result = {
        "recipe": made.name,
        "recipe_sha256": made.sha256(),
        "settings": made.parts(*PARTS),
        "dataset": made.dataset.name,
        "method": made.method,
        "ipc": made.ipc,
        "student": made.train.student,
        "teachers": list(made.squeeze.teachers),
        "epochs": made.train.epochs,
        "seed": made.seed,
        "seeds": made.train.seeds,
        "test_images": 10000,
        **scores,
        "baselines": {"random_soft": scores, "random_hard": scores},
        "bytes": {"images": 1, "labels": 0, "teachers": 2},
        "seconds": {"squeeze": 1.23456, "recover": 2.0, "train": 3.0, "evaluate": 4.0},
        "versions": {"torch": "2.13.0"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(made.to_toml())
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.13.0", "device": "cpu"}))
    (folder / "log.jsonl").write_text(json.dumps({"time": time, "event": "result"}) + "\n")
    return folder / "result.json"


def row(text, name, student=""):
    start = f"| `{name}`{student} |"
    (found,) = [line for line in text.splitlines() if line.startswith(start)]
    return [column.strip() for column in found.strip("|").split("|")][1:]


def test_a_line_holds_the_figures_and_the_settings(tmp_path):
    result = finished(tmp_path, "edc/cifar10-ipc10", train__seeds=3, squeeze__weights=("/home/me/net.pth",))
    line = line_of(result)
    assert (line["recipe"], line["ipc"], line["seeds"], line["epochs"]) == ("edc/cifar10", 10, 3, 1000)
    assert line["top1_last"] == {"mean": 50.04, "std": 0.26} and line["top1_best"]["mean"] == 51.04
    assert line["baselines"]["random_hard"]["top1_last"]["mean"] == 50.04
    assert (line["date"], line["device"], line["seconds"]["squeeze"]) == ("2026-11-18", "cpu", 1.2)
    assert line["settings"]["recover.iterations"] == 75 and "recover.match_weight" not in line["settings"]
    assert line["settings"]["squeeze.weights"] == ["net.pth"] and "/home" not in json.dumps(line)
    assert differences(line) == {"squeeze.weights": (["net.pth"], ["train"])}


def test_whole_runs_stand_beside_real_images(tmp_path):
    def line(name, recipe_name, **changes):
        result = finished(tmp_path / name, recipe_name, train__seeds=3, **changes)
        found = json.loads(result.read_text())
        found["top1_last"]["seeds"] = [50.0, 52.0, 51.0]
        found["baselines"]["random_soft"]["top1_last"] = {"mean": 47.0, "std": 1.0, "seeds": [46.0, 48.0, 47.0]}
        found["baselines"]["random_hard"]["top1_last"] = {"mean": 50.5, "std": 1.0, "seeds": [51.0, 51.0, 49.5]}
        found["baselines"]["best_soft"] = found["baselines"]["random_soft"] | {"chosen": "herding"}
        result.write_text(json.dumps(found))
        return line_of(result)

    ours = line("a", "edc/cifar10-ipc10", squeeze__teachers=("zoo/resnet20",))
    assert ours["baselines"]["random_soft"]["margin"] == [4.0, 4.0, 4.0]
    mean, low, high = ours["baselines"]["random_hard"]["margin"]  # of differences -1, 1 and 1.5
    half = 4.302653 * statistics.stdev([-1, 1, 1.5]) / 3**0.5  # Student's t of 2 degrees of freedom
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-3)
    old = line("b", "edc/cifar10-ipc10", squeeze__teachers=("zoo/resnet20",), mean=40.0, time=DAY - 10**6)
    single = line_of(finished(tmp_path / "c", "rded/cifar10-ipc1"))
    others = [line("d", "sre2l/digits-ipc10"), line("e", "edc/cifar10-ipc1", train__epochs=5)]  # unpublished, reduced
    others += [line("f", "fastcondense/digits-ipc1"), line("g", "fastcondense/cifar10-convnet3-ipc10")]  # of our own
    rows = [text.split(" | ") for text in cells.table([old, ours, single, *others]).splitlines()]
    names = ["`edc/cifar10-ipc10`", "`rded/cifar10-ipc1`", "`fastcondense/cifar10-convnet3-ipc10`"]
    assert sorted(row[0].strip("| ") for row in rows[2:]) == sorted(names)
    rows = [*rows[:2], *(row for row in rows[2:] if "fastcondense" not in row[0])]
    assert rows[2][1:] == [
        *("resnet18", "79.1", "**50.0 ± 0.3** *other teacher*", "47.0 ± 1.0; +4.0 [+4.0, +4.0]"),
        *("47.0 ± 1.0 (herding); +4.0 [+4.0, +4.0]", "not run", "50.5 ± 1.0; no difference [-2.8, +3.8] |"),
    ]
    assert rows[3][1:] == ["resnet18", "22.9", "**50.0**", "50.0", "not run", "not run", "50.0 |"]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {}),
        ({"seed": 7, "train__seeds": 3, "train__evaluate_every": 99, "train__student": "zoo/convnet3"}, {}),
        ({"recover__iterations": 9}, {"recover.iterations": (9, 75)}),
        ({"train__epochs": 5, "train__lr": 0.5}, {"train.epochs": (5, 1000), "train.lr": (0.5, 1e-3)}),
        ({"recover__iterations": 4000}, {"recover.iterations": (4000, 75)}),
    ],
)
def test_what_counts_as_reduced(tmp_path, changes, wanted):
    """Every setting that decides the accuracy, and no other; the recipe's default of one is a difference as well."""
    line = line_of(finished(tmp_path, "edc/cifar10-ipc10", **changes))
    assert differences(line) == wanted and is_reduced(line) == bool(wanted)


def test_other_teachers_stand_beside_what_is_published_and_are_named(tmp_path):
    """After a run of the recipe itself, before a reduced one of a later day."""
    own = line_of(finished(tmp_path / "own", "edc/cifar10-ipc1", mean=25.0))
    changes = {"squeeze__teachers": ("zoo/resnet20",), "squeeze__epochs": 9, "labels__priors": (1.0,)}
    other = line_of(finished(tmp_path / "other", "edc/cifar10-ipc1", mean=26.0, time=DAY + 86400, **changes))
    reduced = line_of(finished(tmp_path / "less", "edc/cifar10-ipc1", time=DAY + 2 * 86400, train__epochs=2, **changes))
    assert set(differences(other)) == {"squeeze.teachers", "squeeze.epochs", "labels.priors"}
    assert not is_reduced(other) and is_reduced(reduced)
    found = table([other, reduced])
    assert row(found, "edc/cifar10")[1].startswith("**26.0** other teacher (1)<sup>1</sup>, not run")
    assert "; other teacher: " in found and "squeeze.teachers zoo/resnet20 (recipe: 8 entries)" in found
    assert row(table([own, other, reduced]), "edc/cifar10")[1].startswith("**25.0** (1)")


def test_less_data_is_reduced_though_no_setting_says_so(tmp_path):
    result = finished(tmp_path, "rded/cifar10-ipc10")
    assert not is_reduced(line_of(result)) and is_reduced(line_of(result, "500 images a class"))


def test_the_ipc_of_the_command_line_decides_the_cell(tmp_path):
    line = line_of(finished(tmp_path, "rded/cifar10-ipc10", ipc=1))
    assert (line["recipe"], line["ipc"]) == ("rded/cifar10", 1)
    assert differences(line) == {"train.batch_size": (50, 10)}


def test_results_of_other_recipes_are_refused(tmp_path, capsys):
    result = finished(tmp_path / "a", "rded/cifar10-ipc10")
    (tmp_path / "a" / "recipe.toml").write_text(load("sre2l/cifar10-ipc10").to_toml())
    assert main([str(result)]) == 1
    assert "not a result of the recipe.toml beside it" in capsys.readouterr().err
    assert main([str(finished(tmp_path / "b", "rded/cifar10-ipc10", name="mine-ipc10"))]) == 1
    assert "there is no recipe 'mine-ipc10'" in capsys.readouterr().err
    assert main([str(tmp_path / "absent" / "result.json")]) == 1


def test_any_evaluation_of_a_run_becomes_a_line(tmp_path):
    """One with another student, whose settings recipe.toml does not hold; its seeds one by one are left out."""
    other = finished(tmp_path / "other", "rded/cifar10-ipc10", train__student="zoo/convnet3", train__seeds=2)
    own = finished(tmp_path / "run", "rded/cifar10-ipc10")
    found = json.loads(other.read_text())
    found["top1_last"]["seeds"] = [50.0, 50.08]
    kept = own.parent / "results" / "zoo-convnet3-00000000.json"
    kept.parent.mkdir()
    kept.write_text(json.dumps(found))
    line = line_of(kept)
    assert (line["student"], line["seeds"], line["recipe_sha256"]) == ("zoo/convnet3", 2, found["recipe_sha256"])
    assert line["settings"]["train.student"] == "zoo/convnet3" and line["top1_last"] == {"mean": 50.04, "std": 0.26}


def test_a_run_replaces_its_own_line_alone(tmp_path):
    path = tmp_path / "results" / "accuracy.jsonl"
    for number, mean in enumerate((10.0, 20.0, 30.0)):
        add(line_of(finished(tmp_path / str(number), "rded/cifar10-ipc10", mean=mean, seed=number % 2)), path)
    assert [line["top1_last"]["mean"] for line in read_lines(path)] == [20.0, 30.0]


def test_an_unreduced_run_is_shown_before_a_later_reduced_one(tmp_path):
    full = line_of(finished(tmp_path / "a", "rded/cifar10-ipc10", mean=37.0))
    later = line_of(finished(tmp_path / "b", "rded/cifar10-ipc10", mean=99.0, train__epochs=1, time=DAY + 86400))
    assert row(table([full, later]), "rded/cifar10")[1].startswith("**37.0** (10)")
    assert row(table([later]), "rded/cifar10")[1].startswith("*99.0 reduced* (10)")


def test_a_recipe_that_changes_makes_its_runs_reduced(tmp_path):
    line = line_of(finished(tmp_path, "rded/cifar10-ipc10"))
    assert not is_reduced(line)
    del line["settings"]["train.schedule_stretch"]  # as if the recipe had had the default then
    assert differences(line) == {"train.schedule_stretch": (1.0, 2.0)}


def test_a_result_of_a_recipe_that_is_gone_is_an_error(tmp_path):
    line = line_of(finished(tmp_path / "run", "rded/cifar10-ipc10"))
    assert "**50.0** (10)" in page([line])
    with pytest.raises(ValueError, match="no recipe 'rded/cifar99"):
        page([line | {"recipe": "rded/cifar99"}])


def curve_of(folder, lr=0.5, mean=90.04):
    """The folder of a run whose set was scored at two sizes."""
    made = load("sre2l/digits-ipc5")
    made = dataclasses.replace(made, recover=dataclasses.replace(made.recover, lr=lr))
    of = {size: {"mean": mean + k, "std": 0.26} for k, size in enumerate(("1", "5"))}
    curve = {"recipe_sha256": made.sha256(), "student": "zoo/convnet1", "epochs": 4, "seed": 0, "seeds": 2}
    curve |= {"sizes": [1, 5], "top1_last": {"nested": of, "stacked": of, "herding_soft": of}, "versions": {}}
    folder.mkdir()
    (folder / "recipe.toml").write_text(made.to_toml())
    (folder / "curve.json").write_text(json.dumps(curve))
    (folder / "environment.json").write_text(json.dumps({"device": "cpu"}))
    (folder / "log.jsonl").write_text(json.dumps({"time": DAY, "event": "result"}) + "\n")
    return folder / "curve.json"


def test_a_curve_is_copied_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(add_run, "RESULTS", tmp_path)
    for folder, mean in (("a", 80.0), ("b", 90.04)):  # the second is of the same recipe and replaces the first
        assert main([str(curve_of(tmp_path / folder, mean=mean))]) == 0
    lines = read_lines(tmp_path / "curves.jsonl")
    text = curves.page(lines)
    assert text.count("| images a class") == 1 and "![Top-1 by size](curves-digits.svg)" in text
    assert "`sre2l/digits-ipc5`" in text and "2026-11-18, cpu; changed: recover.lr 0.5." in text
    assert "| this set | 90.0 ± 0.3 | 91.0 ± 0.3 |" in text
    assert "| one-image sets (B) |" in text and "| real by herding, soft labels |" in text
    assert curves.figures(lines)["curves-digits.svg"] == {
        f"sre2l/digits-ipc5, {name}": {"1": {"mean": 90.04, "std": 0.26}, "5": {"mean": 91.04, "std": 0.26}}
        for name in ("this set", "one-image sets (B)", "real by herding, soft labels")
    }
    assert main([str(curve_of(tmp_path / "c", lr=0.125)), "--reduced", "10 images a class"]) == 0
    text = curves.page(read_lines(tmp_path / "curves.jsonl"))
    assert text.count("| images a class") == 2 and "; of the data: 10 images a class." in text
    (tmp_path / "c" / "recipe.toml").write_text(load("sre2l/digits-ipc10").to_toml())
    with pytest.raises(ValueError, match=r"is not a result of the recipe\.toml beside it"):
        line_of(tmp_path / "c" / "curve.json")
