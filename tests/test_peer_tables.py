"""The table of published code beside ours: which lines it takes, and its ratios."""

from peer_tables import peers
from result_files import Result


def result(benchmark, what, variant, median, file="gpu/a.jsonl", **more):
    about = {"network": "torchvision/resnet18", "shapes": [[20, 3, 64, 64]], "what": what, "variant": variant}
    made = {"device": "GPU X", "commit": "abc", "date": "2026-11-28"}
    return Result(benchmark, about | {"median_ms": median, "environment": made} | more, file.split("/")[0], file, 0)


CODE = {"peer": "a/EDC@1234567", "runs": "a loop"}


def test_theirs_over_our_best_of_the_same_run():
    found = [
        result("peers", "edc", "published-code", 30.0, **CODE),
        result("peers", "edc", "published-style", 29.0),
        result("peers", "edc", "ours-fp32", 15.0),
        result("peers", "edc", "ours-bf16", 5.0),
        result("peers", "edc", "published-code", 99.0, file="cpu/a.jsonl", **CODE),
        result("peer-epochs", "epoch", "ours", 8.0),
        result("peer-epochs", "epoch", "rethinkdc", 20.0, peer="rethinkdc 1", runs="main"),
        result("recover", "edc", "ours-bf16", 1.0),
    ]
    *head, text, source = peers(found).split("\n\n")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in [*head, text][0].splitlines()[2:]]
    assert [(row[0], row[1], *row[4:]) for row in rows] == [
        ("cpu", "EDC", "99.0 ms", "–", "–"),  # noqa: RUF001
        ("gpu", "rethinkdc", "20.0 ms", "8.0 ms, ours", "2.50"),
        ("gpu", "EDC", "30.0 ms", "5.0 ms, ours-bf16", "6.00"),
    ]
    assert rows[2][2:4] == ["`a/EDC@1234567`: a loop", "resnet18, 20 x 3 x 64 x 64"]
    assert "cpu/a.jsonl" in text + source and "gpu/a.jsonl" in text + source


def test_without_results_it_says_so():
    assert peers([]) == "Not measured yet: there is no result file."
