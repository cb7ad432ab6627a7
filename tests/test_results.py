"""Results stay: each evaluation of a run's images is a file, and the run's recipe is what the images were made with."""

import base64
import io
import json
import re
import shlex
import shutil
import statistics
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from browser import CHROMIUM, look
from PIL import Image
from small import FLAGS, fastcondense

from fastcondense import records
from fastcondense.cli import main
from fastcondense.data import datasets
from fastcondense.devices import processor
from fastcondense.files import read_json
from fastcondense.labels.views import ReplayedViews
from fastcondense.networks import zoo
from fastcondense.recipe import recipe
from fastcondense.records import Result, checked, read_manifest
from fastcondense.report.compare import Compared, names_of, page, remarks
from fastcondense.rng import Stream
from fastcondense.run import Run
from fastcondense.sets import sealed_zip
from fastcondense.sets.bundle import read_bundle, read_folder
from fastcondense.sets.results import is_of, read_results
from fastcondense.students.real_views import ids_of_epoch, real_views
from fastcondense.tensor_files import read_metadata, read_tensors

FAST = "--squeeze.epochs 2 --recover.iterations 2 --squeeze.gate-images 0 --train.seeds 2".split()
OTHER = (
    "--train.student zoo/convnet2 --train.epochs 2 --train.evaluate-every 1 --labels.mix none --train.seeds 1".split()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run."""
    out = tmp_path_factory.mktemp("results") / "digits"
    assert fastcondense("run", out, *FAST) == 0
    return out


@pytest.fixture(scope="module")
def kept(folder):
    """Files of the run before it is evaluated with other settings."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def twice(folder, kept):
    """The run after an evaluation with other settings."""
    assert kept
    assert main(["run", str(folder), *OTHER, "--device", "cpu"]) == 0
    return folder


def top1(folder, arm, student, seeds):
    """Accuracies of stored weights on the test images, in plain numpy."""
    settings = recipe.load(str(folder / "recipe.toml"))
    test = datasets.load(settings.dataset, None).test
    mean, std = (np.array(x)[:, None, None] for x in (settings.dataset.mean, settings.dataset.std))
    x = torch.from_numpy(((test.images.transpose(0, 3, 1, 2) / 255 - mean) / std).astype(np.float32))
    found = []
    for path in sorted(folder.glob(f"students/{student.replace('/', '-')}-*/{arm}/seed*/weights.safetensors")):
        net = zoo.build(student, 10)
        net.load_state_dict(read_tensors(path)[0])
        found.append(100 * float((net.eval()(x).argmax(1).numpy() == test.labels).mean()))
    assert len(found) == seeds
    return found


def test_an_evaluation_with_other_settings_is_one_more_file(twice, kept):
    changed = {path.name for path, data in kept.items() if path.read_bytes() != data}
    assert changed <= {"log.jsonl", "environment.json", "result.json", "report.html", ".lock", "grid.png", "losses.png"}
    first, second = sorted(twice.glob("results/*.json"), key=lambda path: path in kept, reverse=True)
    assert first.name.startswith("zoo-convnet1-") and second.name.startswith("zoo-convnet2-")
    assert (twice / "result.json").read_bytes() == second.read_bytes() and kept[first] == first.read_bytes()
    for path, student, seeds in ((first, "zoo/convnet1", 2), (second, "zoo/convnet2", 1)):
        result = read_json(path)
        assert checked(result, Result, path) and result["settings"]["train"]["student"] == student
        for arm in ("condensed", "random_soft", "random_hard"):
            scores, wanted = (
                (result if arm == "condensed" else result["baselines"][arm]),
                top1(twice, arm, student, seeds),
            )
            assert scores["top1_last"]["seeds"] == pytest.approx(wanted)
            assert scores["top1_last"]["mean"] == pytest.approx(sum(wanted) / seeds)
            assert scores["top1_last"]["std"] == pytest.approx(statistics.stdev(wanted) if seeds > 1 else 0)


def test_the_next_plain_command_goes_on_with_the_runs_own_recipe(twice, kept, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    students = {path: path.stat().st_mtime_ns for path in twice.glob("students/**/weights.safetensors")}
    assert main(["run", str(twice), "--device", "cpu"]) == 0
    (own,) = (path for path in kept if path.parent.name == "results")
    assert (twice / "result.json").read_bytes() == own.read_bytes()
    assert students == {path: path.stat().st_mtime_ns for path in twice.glob("students/**/weights.safetensors")}
    words = capsys.readouterr().out
    assert "all 2 evaluations of its images" in words and "labels.mix none" in words
    rows = [line for line in words.splitlines() if "zoo/convnet" in line and "│" in line]
    for row, (student, seeds) in zip(rows, (("zoo/convnet1", 2), ("zoo/convnet2", 1)), strict=True):
        means = [
            f"{sum(top1(twice, arm, student, seeds)) / seeds:.1f}"
            for arm in ("condensed", "random_soft", "random_hard")
        ]
        cells = [cell.split(" ±")[0].strip() for cell in row.strip("│ ").split("│")]
        assert cells[:1] + cells[3:6] == [student, *means]


def test_more_seeds_and_baselines_train_what_is_missing_alone(twice, tmp_path):
    out = tmp_path / "more"
    shutil.copytree(twice, out)
    have = {path.parent for path in out.glob("students/**/weights.safetensors")}
    more = "--train.seeds 3 --evaluate.baselines random_soft full full_soft --evaluate.full-epochs 1".split()
    assert main(["train", str(out), *more, "--device", "cpu"]) == 0
    fresh = {path.parent for path in out.glob("students/**/weights.safetensors")} - have
    names = sorted(f"{path.parent.name}/{path.name}" for path in fresh)
    every = [f"{arm}/seed{seed}" for arm in ("full", "full_soft") for seed in range(3)]
    assert names == ["condensed/seed2", *every, "random_soft/seed2"]


def test_all_real_images_take_the_places_of_condensed_ones(twice):
    """full_soft: as many views, windows and boxes as the condensed set's; no image twice before all were seen."""
    run = Run(recipe.load(str(twice / "recipe.toml")), twice)
    train, condensed = run.real.train, read_folder(twice).condensed
    pixels, labels = condensed.flat()
    replayed = ReplayedViews(pixels, labels, run.recipe.labels, run.normalize, 1)
    stream, total = Stream(1, "baselines/full_soft"), len(train)
    seen = np.concatenate([ids_of_epoch(stream, total, 20, epoch) for epoch in range(2 * total // 20 + 1)])
    assert np.array_equal(np.sort(seen[:total]), np.arange(total))
    assert np.array_equal(np.sort(seen[total : 2 * total]), np.arange(total))
    for epoch in (0, 71):  # the second has the last of one order and the first of the next
        made, wanted = (
            list(real_views(run, 1, run.recipe.labels)(epoch)),
            list(replayed.tables(epoch, run.recipe.train)),
        )
        ids = seen[20 * epoch : 20 * (epoch + 1)]
        for (views, table), own in zip(made, wanted, strict=True):
            assert table.num_views == own.num_views and torch.equal(table.table.windows, own.table.windows)
            assert torch.equal(table.table.boxes, own.table.boxes) and torch.equal(table.table.ids, own.table.ids)
            assert np.array_equal(views.images.permute(0, 2, 3, 1), train.images[ids])
            assert views.labels.tolist() == train.labels[ids].tolist()


def test_a_bundle_carries_all_evaluations_and_verify_covers_them(twice, tmp_path, capsys):
    file = tmp_path / "set.zip"
    assert main(["bundle", str(twice), "--out", str(file)]) == 0 and main(["verify", str(file)]) == 0
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members["manifest.json"])
    results = manifest["bundle"]["results"]
    assert [result["student"] for result in results] == ["zoo/convnet1", "zoo/convnet2"]
    results[1]["settings"]["train"]["epochs"] = 300  # another protocol than the scores are of
    with sealed_zip.writing(file) as archive:
        for name, data in (members | {"manifest.json": json.dumps(manifest).encode()}).items():
            archive.put(name, data)
    capsys.readouterr()
    assert main(["verify", str(file)]) == 1 and "its scores are those of another recipe" in capsys.readouterr().out


def test_settings_of_images_are_refused_by_every_stage(twice, capsys):
    before = (twice / "recipe.toml").read_bytes()
    for command in ("train", "evaluate", "relabel", "inspect"):
        assert main([command, str(twice), "--recover.lr", "0.3", "--device", "cpu"]) == 1
        assert "holds images of another recipe (recover.lr was 0.1, now 0.3)" in capsys.readouterr().err
    assert (twice / "recipe.toml").read_bytes() == before


def test_a_recipe_of_which_nothing_was_made_may_be_replaced(tmp_path):
    def remembered(settings):
        run = Run(settings, tmp_path)
        run.check()
        run.open()
        run.record()
        return recipe.load(str(tmp_path / "recipe.toml"))

    base = recipe.load("sre2l/digits-ipc2")
    longer = replace(base, train=replace(base.train, epochs=9))
    assert remembered(base) == base == remembered(longer)
    other = replace(longer, recover=replace(base.recover, lr=0.3))
    assert remembered(other) == other
    assert remembered(replace(base, recover=other.recover, ipc=5)) == replace(other, ipc=5)


def test_results_of_other_images_are_left_out_and_strangers_are_checked(twice, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(twice, out)
    own = recipe.load(str(out / "recipe.toml"))
    assert [result["student"] for result in read_results(out, own)] == ["zoo/convnet1", "zoo/convnet2"]
    result = read_json(out / "result.json")
    assert is_of(result, own) and not is_of(result | {"settings": result["settings"] | {"recover": {}}}, own)
    path = out / "results" / "stranger.json"
    path.write_text(json.dumps(result | {"recipe_sha256": "5eed" * 16}))
    assert len(read_results(out, own)) == 2
    score = result["top1_last"]
    for change in ({"mean": 100.5}, {"std": -1.0}, {"seeds": []}, {"mean": float("nan")}, {"seeds": [float("inf")]}):
        path.write_text(json.dumps(result | {"top1_last": score | change}))
        with pytest.raises(ValueError, match=r"stranger.json is damaged: field top1_last\."):
            read_results(out, own)
    path.write_text(json.dumps(result | {"top5_last": score | {"seeds": [1.0, 2.0, 3.0]}}))
    with pytest.raises(ValueError, match=r"stranger.json is damaged: field top5_last.seeds: expected 2, got 3"):
        read_results(out, own)
    many = {"results": [result] * 10_001, "format": 3, "teachers": {}, "embedded": [], "recipe_sha256": "5eed" * 16}
    with pytest.raises(ValueError, match=r"M is damaged: field results"):
        checked(many, records.Bundled, "M")
    assert read_manifest(out / "condensed" / "manifest.json")["replay"]["epochs"] == own.train.epochs


def test_the_report_shows_all_students_and_how_they_came_about(twice):
    assert main(["inspect", str(twice), *OTHER, "--device", "cpu"]) == 0  # the report is the run's, not the launch's
    html = (twice / "report.html").read_text()
    part = html[html.index("All students") :].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", part)[1:]]
    for row, (student, seeds) in zip(rows, (("zoo/convnet1", 2), ("zoo/convnet2", 1)), strict=True):
        means = [sum(top1(twice, arm, student, seeds)) / seeds for arm in ("condensed", "random_soft", "random_hard")]
        assert row[0] == student and [cell.split(" ")[0] for cell in row[3:6]] == [f"{mean:.1f}" for mean in means]
    assert "labels.mix none" in rows[1][6] and rows[0][6] == ""
    assert re.search(r"zoo/convnet2, 2 epochs, [^<]*labels.mix none[^<]* \(1\)", html)
    assert f"fastcondense run {shlex.join([*FLAGS, '--out', str(twice), *FAST])}" in html.replace("&#39;", "'")
    assert "<h1>sre2l/digits-ipc2</h1>" in html and "none: it comes with a package" in html and processor() in html


# --- compare ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(twice, tmp_path_factory):
    """The run as a file whose name is markup."""
    file = tmp_path_factory.mktemp("bundle") / "<b>[red]set.zip"
    assert main(["bundle", str(twice), "--out", str(file)]) == 0
    return file


def cells(html, section):
    """Texts of the cells of a section's table, row by row."""
    part = html[html.index(f'id="{section}"') :].partition("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", part, re.DOTALL)[1:]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]


def test_compare_shows_every_evaluation_of_every_set(twice, bundle, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["compare", str(twice), str(bundle), "--out", str(page)]) == 0
    words, html = capsys.readouterr().out, page.read_text()
    assert "condensed sets side by side" in words and "different data" not in words and "different ways" not in words
    accuracy, costs = cells(html, "accuracy"), cells(html, "costs")
    assert [row[0] for row in accuracy] == ["digits", "digits", *["&lt;b&gt;[red]set"] * 2]
    teachers = sum(path.stat().st_size for path in twice.glob("teachers/*/weights.safetensors"))
    seconds = [float(read_metadata(path)["seconds"]) for path in twice.glob("teachers/*/weights.safetensors")]
    seconds += [float(read_metadata(path)["seconds"]) for path in twice.glob("condensed/shard-*")]
    for row, cost, (student, seeds) in zip(
        accuracy, costs, [("zoo/convnet1", 2), ("zoo/convnet2", 1)] * 2, strict=True
    ):
        arms = ("condensed", "random_soft", "random_hard")
        values = [top1(twice, arm, student, seeds) for arm in arms]
        spread = (f" ± {statistics.stdev(one):.1f}" if seeds > 1 else "" for one in values)
        means = [f"{sum(one) / seeds:.1f}{more}" for one, more in zip(values, spread, strict=True)]
        assert row[1:] == ["sre2l", student, "2", *means]
        files = twice.glob(f"students/{student.replace('/', '-')}-*/condensed/*/student.json")
        trained = [read_json(path)["seconds"]["train"] for path in files]
        wanted = [f"{10 * 2 * 3 * 8 * 8 / 1000:.1f} kB", "0 B", f"{teachers / 1000:.1f} kB"]
        assert cost[4:] == [*wanted, f"{sum(seconds):.1f} s", f"{sum(trained) / seeds:.1f} s"]
    shown = re.findall(r'<img src="data:image/webp;base64,([^"]*)" alt="3 of digits, image 1">', html)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0]))).convert("RGB"))
    assert np.array_equal(image, read_bundle(bundle).condensed.images[3, 1].permute(1, 2, 0).numpy())
    assert html.count("<img") == 2 * 10 * 2 and "<script" not in html and "<b>[" not in html


def test_compare_says_what_does_not_compare(twice, capsys, tmp_path):
    one = read_folder(twice)
    dataset = replace(one.recipe.dataset, name="cifar10", image_size=32)
    results = [result | {"test_images": 10_000} for result in one.results]
    results[0]["settings"] = json.loads(json.dumps(results[0]["settings"]))
    results[0]["settings"]["train"] |= {"epochs": 300, "lr": 0.5}
    results[0] |= {"student": "<script>[red]x"}
    other = replace(one, recipe=replace(one.recipe, dataset=dataset), results=results)
    told = " ".join(remarks([Compared("a", one), Compared("b", other), Compared("c", replace(one, results=[]))]))
    assert "different data, accuracies do not compare: data set digits (a, c), cifar10 (b)." in told
    assert "pixels a side 8 (a, c), 32 (b)." in told and "test images 360 (a), 10000 (b)." in told
    results[0] |= {"student": "zoo/convnet1"}
    told = " ".join(remarks([Compared("a", one), Compared("b", other)]))
    lr = one.recipe.train.lr
    assert (
        f"zoo/convnet1 are trained in different ways: train.epochs 4 (a), 300 (b); train.lr {lr} (a), 0.5 (b)." in told
    )
    results[0] |= {"student": "<script>[red]x"}
    html = page([Compared("<script>a", one), Compared("b", other)])
    assert "<script" not in html and "&lt;script&gt;[red]x" in html
    assert main(["compare", str(twice)]) == 1 and "compare needs two sets or more" in capsys.readouterr().err
    (kept := tmp_path / "recipe.toml").write_text("kept")
    assert main(["compare", str(twice), str(twice), "--out", str(kept)]) == 1
    assert "whose name ends in .html" in capsys.readouterr().err and kept.read_text() == "kept"


def test_names_of_sets_are_as_short_as_they_can_be(tmp_path):
    paths = [tmp_path / name for name in ("a/digits", "b/digits", "b/cifar-1.5")]
    for path in paths:
        path.mkdir(parents=True)
    assert names_of(paths[1:]) == ["digits", "cifar-1.5"] and names_of(paths) == ["a/digits", "b/digits", "b/cifar-1.5"]
    assert len(set(names_of([paths[0], paths[0]]))) == 2


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_compare_fits_a_desk_and_a_phone(twice, bundle, tmp_path):
    assert main(["compare", str(twice), str(bundle), "--out", str(tmp_path / "page.html")]) == 0
    for found, width in zip(look(tmp_path / "page.html", [1200, 390], 2000, tmp_path)[1], (1200, 390), strict=True):
        assert (found["width"], found["scroll"]) == (width, width) and found["outside"] == []
        assert found["requests"] == [] and found["broken"] == 0 and found["images"] == 40
