"""What the run says: sizes in the table, and lines where there is no terminal."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from fastcondense import log
from fastcondense.report import plots, report
from fastcondense.words import bytes_in_words, seconds_in_words


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (71_400, "71.4 kB"),
        (3_010_000, "3.0 MB"),
        (113_300_000_000, "113.3 GB"),
    ],
)
def test_sizes_are_decimal(count, text):
    assert bytes_in_words(count) == text


def test_seconds_are_in_one_unit_of_four_digits_at_most():
    told = [seconds_in_words(value) for value in (0.04, 119.9, 120, 7199, 7200, 172_799, 172_800, 864_000)]
    assert told == ["0.0 s", "119.9 s", "2.0 min", "120.0 min", "2.0 h", "48.0 h", "2.0 days", "10.0 days"]


def test_plain_lines_without_a_terminal(monkeypatch):
    monkeypatch.setattr(log, "_SECONDS_BETWEEN_LINES", -1.0)
    written = io.StringIO()
    assert list(log.Log(Console(file=written)).track([5, 6, 7], "job")) == [5, 6, 7]
    lines = written.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["job: 1 of 3", "job: 2 of 3"]


def test_a_width_of_nothing_is_no_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    assert log.PlainConsole(file=io.StringIO()).width >= 80


def test_the_item_in_hand_moves_the_bar_or_is_told():
    written = io.StringIO()
    log.Log(Console(file=written)).within(0.3, "job 7 is at 3 of 10")
    assert written.getvalue() == "job 7 is at 3 of 10\n"
    terminal = log.Log(Console(file=io.StringIO(), force_terminal=True))
    with terminal.progress("recover", 4, 1) as show:
        terminal.within(0.5, "")
        assert terminal._advance.__closure__ and "1.5" in str(seen(terminal))
        terminal.within(0.75, "")
        assert "1.75" in str(seen(terminal))
        show(2)
        assert str(seen(terminal)) == "2"
    assert terminal._advance is None


def seen(terminal: log.Log) -> float:
    """What the bar stands at."""
    bar = next(cell.cell_contents for cell in terminal._advance.__closure__ if hasattr(cell.cell_contents, "tasks"))
    return bar.tasks[0].completed


def test_names_are_no_markup_of_tables_or_plots():
    written, name = io.StringIO(), "[red]$\\frac{$ [/nope]"
    Console(file=written, width=200).print(report.plain_table(name, ("a", name), [(name, "1")], caption=name))
    assert written.getvalue().count(name) == 4
    assert "$\\frac{$" in plots.dots([name], [([0.5], 0)], "share")


def test_margins_are_students_t_of_paired_differences():
    """The interval of five differences by the table's 2.776 (4 degrees of freedom), and scipy's paired test."""
    from scipy.stats import ttest_rel

    own, other = [51.0, 52.5, 50.0, 53.0, 52.0], [49.0, 51.0, 49.5, 50.0, 49.0]
    differences = np.subtract(own, other)
    half = 2.776 * differences.std(ddof=1) / np.sqrt(5)
    mean, low, high = report.margin(own, other)
    assert (mean, low, high) == pytest.approx((2.0, 2 - half, 2 + half), abs=1e-3)
    interval = ttest_rel(own, other).confidence_interval(0.95)
    assert (low, high) == pytest.approx((interval.low, interval.high))
    assert report.margin_in_words(own, other) == f"+2.0 [{2 - half:+.1f}, {2 + half:+.1f}]"
    assert report.margin_in_words([50.0, 60.0], [51.0, 57.0]) == "no difference [-24.4, +26.4]"  # 12.706 * 2
    assert (
        report.margin_in_words([50.0], [52.25]) == "-2.2"
        and report.margin_in_words([5.0] * 2, [5.0] * 2) == "no difference [+0.0, +0.0]"
    )


def test_axes_stand_around_their_values():
    texts = re.findall(r">([\d.]+)</text>", plots.dots(["a", "b"], [([93.0, 95.5], 0), ([94.0, 97.0], 1)], "top-1, %"))
    assert min(map(float, texts)) >= 85 and max(map(float, texts)) <= 101 and len(texts) > 2
