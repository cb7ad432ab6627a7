"""The tables of speeds: their figures, which results they take, and that they cannot go out of date unseen."""

import json
import shutil
from pathlib import Path

import pytest
import tables
from pages import drawn_from, replaced
from results import frame, index, newest, read
from tables import main
from throughput import MISSING, NOT_MEASURED, TABLES, bars, draw, profile, table

DAY = "2026-11-28"


def result(benchmark, line, file="gpu/a.jsonl", date=DAY, place=0):
    return (
        file,
        place,
        line | {"benchmark": benchmark, "environment": {"device": "GPU X", "commit": "abc", "date": date}},
    )


def rows_of(name, lines):
    return cells(table(name, frame(lines)))


def step(variant, median, **more):
    about = {"statistics": "sre2l", "network": "torchvision/resnet18", "shapes": [[20, 3, 64, 64]]}
    return about | {"variant": variant, "median_ms": median, "ratio_to_plain": median / 10} | more


def cells(text):
    """The rows below the head of a table."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_only_whole_gated_measurements_are_read(tmp_path):
    (tmp_path / "cpu-x").mkdir()
    lines = [
        {"benchmark": "recover_step", "a": 1},
        {"benchmark": "train", "quick": True},
        {"benchmark": "train", "ungated": True},
        {"benchmark": "train", "skipped": "no GPU"},
        {"benchmark": "train", "a": 2},
    ]
    (tmp_path / "cpu-x" / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read(tmp_path)
    assert found[["benchmark", "a", "device", "file", "place"]].values.tolist() == [
        ["recover", 1, "cpu-x", "cpu-x/b.jsonl", 0],
        ["train", 2, "cpu-x", "cpu-x/b.jsonl", 4],
    ]


def test_the_newest_line_of_a_key_is_kept():
    old, new = result("x", {"k": 1, "v": 1}, date="2026-11-01"), result("x", {"k": 1, "v": 2}, file="gpu/0.jsonl")
    other, later = result("x", {"k": 2, "v": 3}), result("x", {"k": 2, "v": 4}, place=1)
    kept = newest(frame([new, later, old, other]), ["k"], [])
    assert sorted(kept[["k", "v"]].values.tolist()) == [[1, 2], [2, 4]]


def test_variants_of_different_files_are_not_compared():
    old = [result("x", {"k": 1, "variant": v}, date="2026-11-01") for v in ("ours", "eager")]
    new = result("x", {"k": 1, "variant": "ours"}, file="gpu/b.jsonl")
    assert newest(frame([new, *old]), ["k"])["file"].tolist() == ["gpu/b.jsonl"]


def test_the_recover_table():
    lines = [step("plain", 10.0), step("published", 40.0), step("compiled", 20.0), step("ours-fp32", 12.0)]
    lines += [step("ours-bf16", 5.0), step("ours-unmatched", 1.0)]
    text = table("recover step", frame(result("recover", line) for line in lines))
    assert cells(text) == [
        [
            "gpu",
            "SRe2L",
            "resnet18",
            "20 x 64 x 64",
            "40.0 ms (4.00)",
            "compiled 20.0 ms",
            "5.0 ms (0.50), ours-bf16",
            "8.00",
        ]
    ]
    assert text.endswith(f"From `gpu/a.jsonl` (GPU X, commit abc, {DAY}).")


def test_the_page_of_the_profile():
    about = {"what": "profile", "statistics": "edc", "network": "torchvision/resnet18", "shapes": [[4, 3, 64, 64]]}
    about |= {"dtype": "float32", "step_ms": 20.5}
    crop = {"variant": "crop, forward", "median_ms": 5.0, "share_of_step": 0.25, "bytes": 10**9, "GB/s": 200.0}
    made = [
        result("recover", about | crop | {"share_of_copy": 0.5}),
        result("recover", about | {"variant": "host", "median_ms": 15.0, "share_of_step": 0.75}, place=1),
        result("recover", step("ours-fp32", 12.0)),
    ]
    page, none = profile(frame(made)), MISSING
    assert cells(page) == [["host", "15", "75.0", none, none, none], ["crop, forward", "5", "25.0", "1", "200", "50"]]
    assert "## edc, resnet18, (4, 3, 64, 64), float32, gpu" in page and "20.5 ms a step" in page
    assert NOT_MEASURED in profile(frame([]))


def test_the_kernels_table_takes_medians_over_cases():
    def line(case, variant, median, share):
        about = {"operator": "crop", "dtype": "float32", "pass": "forward", "case": case, "variant": variant}
        return result("kernels", about | {"median_ms": median, "share_of_copy": share})

    made = [line(str(k), "ours", 1.0, share) for k, share in enumerate((0.5, 0.7, 0.9))]
    made += [line(str(k), "eager", times, 0.1) for k, times in enumerate((2.0, 6.0, 4.0))]
    (row,) = rows_of("kernels", made)
    assert row == ["gpu", "`crop` forward", "float32", "3", "70", "4.0", MISSING]


def test_the_loaders_labels_and_train_tables():
    loader = {"data": "x", "variant": "dali", "crops": "train", "images_per_s": 1234.4, "ratio_to_own": 0.874}
    (row,) = rows_of("loaders", [result("loaders", loader)])
    assert row == ["gpu", "x", "`dali`", "1234 (0.87)", MISSING]

    about = {"network": "torchvision/resnet18", "size": 64, "batch_size": 16, "precision": "fp32", "images": 250}
    times = {"step on-the-fly": 12.0, "step in-memory": 10.0, "epoch ours": 50.0, "epoch views": 1.0}
    made = []
    for name, median in times.items():
        part, variant = name.split()
        made.append(result("labels", about | {"part": part, "variant": variant, "median_ms": median}))
    (row,) = rows_of("labels", made)
    assert row[1:] == ["resnet18, 64 pixels, batches of 16, fp32", "1.20", "2.0", MISSING]
    assert table("label sources", frame(made)) == NOT_MEASURED  # an epoch of ours alone compares nothing

    about |= {"part": "epoch"}
    epochs = {"ours": 500.0, "stored": 400.0, "stored-top-5": 450.0, "fkd": 600.0, "hard": 375.0, "published": 1000.0}
    made = [result("labels", about | {"variant": name, "median_ms": median}) for name, median in epochs.items()]
    rows = rows_of("label sources", made)
    shown = ["2.00 s (1.00)", "1.60 s (0.80)", "1.80 s (0.90)", "2.40 s (1.20)", "1.50 s (0.75)", "4.00 s (2.00)"]
    assert [row[3] for row in rows] == shown and rows[0][2] == "0 B"

    about = {"network": "zoo/convnet3", "shapes": [[8, 3, 32, 32]], "images": 64, "dtype": "float32"}
    made = [
        result("train", about | {"variant": name, "median_ms": median, "views_per_s": 1e3 * 64 / median})
        for name, median in (("ours", 100.0), ("published", 350.0))
    ]
    rows = rows_of("train step", made)
    assert [row[2:] for row in rows] == [["ours", "float32", "640", "1.00"], ["published", "float32", "183", "3.50"]]


def test_the_traffic_table():
    about = {"network": "torchvision/resnet18", "size": 224}
    made = [
        result("traffic", about | {"step": name, "gigabytes": {"total": total}, "launches": {"total": 7}})
        for name, total in (("plain", 17.86), ("edc published", 71.8), ("edc ours", 14.44))
    ]
    passes = {"plain": 9.6, "edc published": 25.6, "edc ours": 5.7}
    made += [result("traffic", about | {"of": "BatchNorm", "layer": "all", "passes": passes})]
    made += [result("passes", about | {"of": "BatchNorm", "layer": "bn1", "passes": {}})]
    none = MISSING
    assert rows_of("traffic", made) == [
        ["network alone", "17.9", none, "7", none, "9.6", none],
        ["EDC's statistics", "71.8", "14.4", "7", "7", "25.6", "5.7"],
    ]


def test_costs_and_extrapolations():
    about = {"recipe": "sre2l/digits-ipc10", "recipe_sha256": "0123456789"}
    hours = {"squeeze": 0.1, "recover": 0.2, "train": 0.3, "evaluate": 0.05}
    made = [
        result("end-to-end", about | {"stage": stage, "seconds": 10 * k + 9.6, "device_hours": spent})
        for k, (stage, spent) in enumerate(hours.items())
    ]
    sizes = {"images": 19_200, "labels": 0, "teachers": 312_000}
    made += [result("end-to-end", about | {"stage": "all", "handed_on": sizes})]
    inputs = {"recover_step_ms": 9.5, "recover_images": 100, "student_step_ms": 80, "student_batch": 128, "size": 224}
    inputs |= {"iterations": 4000, "jobs": 100, "epochs": 300}
    guess = {"recipe": "sre2l/imagenet1k-ipc10", "extrapolated": True, "inputs": inputs, "dtype": "bf16"}
    made += [result("end-to-end", guess | {"device_hours": {"recover": 1055.6, "train": 0.5208}})]
    (row,) = rows_of("costs", made)
    assert row == ["gpu", "`sre2l/digits-ipc10` (01234567)", "10 + 20 + 30 + 40", "0.65 GPU-hours", "19 + 0 + 312"]
    (row,) = rows_of("extrapolated", made)
    assert row[1:4] == ["`sre2l/imagenet1k-ipc10`", "1,056", "0.521"] and "100 jobs x 4000 iterations" in row[4]


def test_published_code_over_our_best_of_the_same_run():
    code = {"peer": "a/EDC@1234567", "runs": "a loop"}

    def line(benchmark, what, variant, median, file="gpu/a.jsonl", **more):
        about = {"network": "torchvision/resnet18", "shapes": [[20, 3, 64, 64]], "what": what, "variant": variant}
        return result(benchmark, about | {"median_ms": median} | more, file)

    found = [
        line("peers", "edc", "published-code", 30.0, **code),
        line("peers", "edc", "published-style", 29.0),
        line("peers", "edc", "ours-fp32", 15.0),
        line("peers", "edc", "ours-bf16", 5.0),
        line("peers", "edc", "published-code", 99.0, file="cpu/a.jsonl", **code),
        line("peer-epochs", "epoch", "ours", 8.0),
        line("peer-epochs", "epoch", "rethinkdc", 20.0, peer="rethinkdc 1", runs="main"),
        line("recover", "edc", "ours-bf16", 1.0),
    ]
    rows = rows_of("peers", found)
    assert [(row[0], row[1], *row[4:]) for row in rows] == [
        ("cpu", "EDC", "99.0 ms", MISSING, MISSING),
        ("gpu", "rethinkdc", "20.0 ms", "8.0 ms, ours", "2.50"),
        ("gpu", "EDC", "30.0 ms", "5.0 ms, ours-bf16", "6.00"),
    ]
    assert rows[2][2:4] == ["`a/EDC@1234567`: a loop", "resnet18, 20 x 3 x 64 x 64"]
    sources = table("peers", frame(found)).splitlines()[-1]
    assert "cpu/a.jsonl" in sources and "gpu/a.jsonl" in sources


def test_a_table_without_results_says_so():
    assert {table(name, frame([])) for name in TABLES} == {NOT_MEASURED}


def test_the_part_between_markers_is_replaced():
    begin, end = "<!-- x: begin -->", "<!-- x: end -->"
    pages = {Path("a"): "no part", Path("b"): f"a\n{begin}\nold\n{end}\nb"}
    assert replaced(pages, "x", "new") == pages | {Path("b"): f"a\n{begin}\nnew\n{end}\nb"}
    for text in ("", f"{end}\n{begin}", f"{begin}\n{end}\n{begin}\n{end}", begin):
        with pytest.raises(ValueError, match=r"README.md and docs/ need the markers <!-- x: begin --> and"):
            replaced({Path("a"): text}, "x", "new")
    with pytest.raises(ValueError, match="once each"):
        replaced(pages | {Path("c"): pages[Path("b")]}, "x", "new")  # on two pages


def test_the_plot_remembers_its_figures(tmp_path):
    made = bars(frame([result("recover", step("published", 40.0)), result("recover", step("ours-fp32", 12.0))]))
    assert made == {"sre2l, 20 x 64 px\ngpu": {"ours-fp32": 1.2, "published": 4.0}}
    draw(made, tmp_path / "x.svg")
    assert drawn_from(tmp_path / "x.svg") == made and drawn_from(tmp_path / "absent.svg") is None
    first = (tmp_path / "x.svg").read_bytes()
    draw(made, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_bytes() == first


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of README, of docs and of all results."""
    shutil.copytree(tables.RESULTS, tmp_path / "results")
    shutil.copytree(tables.ROOT / "docs", tmp_path / "docs")
    shutil.copy(tables.ROOT / "README.md", tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    return tmp_path


def test_the_pages_are_up_to_date():
    assert main(["--check"]) == 0


def test_removing_any_result_file_fails_the_check(copied, capsys):
    files = sorted((copied / "results").glob("*/*.jsonl"))
    listed = (copied / "results" / "index.md").read_text()
    assert len(files) > 5 and index(copied / "results") == listed
    for file in files:
        file.rename(file.with_suffix(".gone"))
        assert index(copied / "results") != listed, file.name
        file.with_suffix(".gone").rename(file)
    files[0].unlink()
    assert main(["--check"]) == 1 and "index.md" in capsys.readouterr().err


def test_a_changed_figure_fails_the_check_until_the_tables_are_written(copied, capsys):
    (file,) = (copied / "results").glob("*/2026-11-21-2893d69.jsonl")
    text = file.read_text()
    assert '"images_per_s": 689.2' in text
    file.write_text(text.replace('"images_per_s": 689.2', '"images_per_s": 4321.0'))
    assert main(["--check"]) == 1 and "speed.md, index.md: not up to date" in capsys.readouterr().err
    assert main([]) == 0 and main(["--check"]) == 0
    assert "| `torchvision` | 4321 | 566 |" in (copied / "docs" / "speed.md").read_text()
    (copied / "results" / "steps.svg").unlink()
    assert main(["--check"]) == 1 and "steps.svg: not up to date" in capsys.readouterr().err


def test_the_index_holds_a_hash_of_every_file(tmp_path):
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "a.jsonl").write_text('{"benchmark": "copy", "environment": {"commit": "abc"}}\n')
    first = index(tmp_path)
    assert "| [gpu/a.jsonl](gpu/a.jsonl) | copy 1 | abc | `" in first
    (tmp_path / "gpu" / "a.jsonl").write_text('{"benchmark": "copy", "environment": {"commit": "abc"} }\n')
    assert index(tmp_path) != first
