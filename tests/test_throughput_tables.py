"""The tables of speeds: their figures, which results they take, and that they cannot go out of date unseen."""

import json
import shutil
from pathlib import Path

import pytest
import tables
from pages import drawn_from, replaced
from results import frame, index, newest, read
from step_pages import bars, draw
from tables import main
from throughput import MISSING, NOT_MEASURED, TABLES, table

DAY = "2026-11-28"


def result(benchmark, line, file="gpu/a.jsonl", date=DAY, place=0, **time):
    environment = {"device": "GPU X", "commit": "abc", "date": date} | time
    return file, place, line | {"benchmark": benchmark, "environment": environment}


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


def test_of_one_day_the_later_file_counts_whatever_its_commit():
    early, late = (
        result("x", {"k": 1, "v": v}, f, time=t) for v, f, t in ((1, "gpu/b", "09:59"), (2, "gpu/a", "17:50"))
    )
    before = result("x", {"k": 1, "v": 3}, "gpu/c")
    assert newest(frame([late, early, before]), ["k"], [])["v"].tolist() == [2]


def test_the_newest_line_of_a_key_is_kept():
    old, new = result("x", {"k": 1, "v": 1}, date="2026-11-01"), result("x", {"k": 1, "v": 2}, file="gpu/0.jsonl")
    other, later = result("x", {"k": 2, "v": 3}), result("x", {"k": 2, "v": 4}, place=1)
    kept = newest(frame([new, later, old, other]), ["k"], [])
    assert sorted(kept[["k", "v"]].values.tolist()) == [[1, 2], [2, 4]]


def test_variants_of_different_files_are_not_compared():
    old = [result("x", {"k": 1, "variant": v}, date="2026-11-01") for v in ("ours", "eager")]
    new = result("x", {"k": 1, "variant": "ours"}, file="gpu/b.jsonl")
    assert newest(frame([new, *old]), ["k"])["file"].tolist() == ["gpu/b.jsonl"]


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


def test_precisions_are_compared_seed_by_seed():
    """A seed that has run in one of them alone does not count."""

    def run(seed, variant, loss, top1):
        about = {"what": "a/b-ipc1", "ipc": 2, "student": "zoo/c", "iterations": 10, "epochs": 5}
        return result("precision", about | {"seed": seed, "variant": variant, "loss": loss, "top1": top1})

    lines = [run(0, "fp32", 1.0, 50.0), run(0, "bf16", 1.25, 49.0), run(1, "bf16", 2.0, 60.0), run(1, "fp32", 2.5, 58)]
    (row,) = rows_of("precision", [*lines, run(2, "fp32", 9.0, 99.0)])
    assert row[1:3] == ["`a/b`, 2 images a class, 10 iterations, c, 5 epochs", "2"]
    assert row[3:6] == ["1.750", "1.625", "-0.500 to +0.250"] and row[6:] == ["54.0", "54.5", "-1.0 to +2.0"]


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
    assert main([]) == 0  # which checks at the end
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


def test_a_frozen_step_is_told_by_the_fastest_of_each_objective():
    about = {"network": "timm/x", "views": 3.0, "shapes": [[10, 3, 64, 64]], "what": "frozen step"}
    times = {"published": 90.0, "published-bf16": 60.0, "gradient-fp32": 40.0, "means-fp32": 45.0, "means-bf16": 30.0}
    found = [result("frozen", about | {"variant": name, "median_ms": time}) for name, time in times.items()]
    assert rows_of("frozen step", found) == [["gpu", "x", "30 x 64 x 64", "90 ms", "60 ms", "40 ms", "30 ms", "3.00"]]
    assert rows_of("frozen step", found[:1])[0][4:] == [MISSING, MISSING, MISSING, MISSING]
