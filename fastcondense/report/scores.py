"""The report's sections on students and costs: accuracy beside baselines, class by class, bytes and seconds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from ..records import Result
from ..student_records import SizeCurve
from ..students.arms import CONDENSED
from ..students.kept import Student
from ..words import bytes_in_words, seconds_in_words
from . import plots
from .findings import Findings
from .html import Html, bar, counted, figure, join, legend, not_run, note, section, short, table, tag
from .plots import COLORS
from .report import (
    MARGIN,
    SCORE_HEAD,
    arm_title,
    evaluation_rows,
    ranking_rows,
    score_rows,
    seeds_in_words,
    size_curves,
)

CLASSES = 20
"""Classes that are shown one by one: those that students on condensed images know least."""
_OWN = CONDENSED.name
_IN_COLOR = (_OWN, "random_soft", "random_hard", "full", "herding_soft", "herding_hard", "full_soft", "medoid_soft")
_NUMBERS = defaultdict(
    lambda: 7,  # a baseline of the user's own
    {arm: number for number, arm in enumerate((*_IN_COLOR, "best_soft", "bps_soft"))} | {"nearest": 8, "aligned": 9},
)
"""Each arm's colour; probes of frozen networks have no arms with soft labels."""


def _titles(found: Findings) -> Callable[[str], str]:
    """Names an arm."""
    return lambda arm: arm_title(arm, found.run.recipe.labels.source, bool(found.origin))


def accuracy(found: Findings) -> Html:
    """The honest table with bars, and top-1 over epochs."""
    result, recipe, title = found.result, found.run.recipe, _titles(found)
    scores = not_run("The students are not scored yet.", "fastcondense evaluate RUN")
    if result:
        scores = _scores(found, result)
    if len(found.results) > 1:
        scores = join([scores, _evaluations(found.results)])
    trained = {arm: students for arm, students in found.students.items() if students}
    if trained:
        histories = {
            arm: [
                ([found.views[arm] * e["epoch"] for e in s.history], [e["top1"] for e in s.history]) for s in students
            ]
            for arm, students in (trained | found.others).items()
        }
        numbers = [_NUMBERS[arm] for arm in trained] + [7 + k % 3 for k in range(len(found.others))]
        plot = plots.views(histories, numbers)
        names = [*map(title, trained), *found.others]
        every = zip(names, [*trained.values(), *found.others.values()], numbers, strict=True)
        keys = {f"{name} ({len(some)})": COLORS[number] for name, some, number in every}
        missing = [title(arm) for arm, some in found.students.items() if len(some) < recipe.train.seeds]
        caption = "Top-1 on the test images over the views seen; a line is a student, their number is in brackets."
        caption += f" Not all students are trained yet: {', '.join(missing)}." if missing else ""
        curves = figure(join([plot, legend(keys)]), caption)
    else:
        curves = not_run("No student is trained yet.", "fastcondense train RUN")
    parts = [curves, *([_needs(result)] if result else []), *([_sizes(found.sizes)] if found.sizes else [])]
    if found.ranking:
        parts.append(tag("div", tag("h3", "DD-Ranking"), table(("score", "last", "best"), ranking_rows(found.ranking))))
    return section("accuracy", "Accuracy", scores, tag("div", *parts, class_="halves"))


def _needs(result: Result) -> Html:
    """Top-1 of each arm by the bytes that its training needs, as far as the result says them."""
    arms = {_OWN: result, **result["baselines"]}
    points = [
        (of["needs"], of["top1_last"]["mean"], of["top1_last"]["std"], _NUMBERS[arm])
        for arm, of in arms.items()
        if "needs" in of
    ]
    caption = "Top-1 of the last epoch by the bytes that training needs: images, stored labels, or teachers; as above."
    return figure(plots.needs(points), caption) if points else join([])


def _evaluations(results: Sequence[Result]) -> Html:
    """All evaluations of the images: the table across architectures and settings."""
    head, rows = evaluation_rows(results)
    cells = [[short(row[0]), *row[1:]] for row in rows]
    remark = note(
        "Top-1 of the last epoch in %; ± is the deviation over seeds. Other settings: what is not as in the first row."
    )
    return join([tag("h3", "All students"), table(head, cells), remark])


def _sizes(result: SizeCurve) -> Html:
    """Top-1 at several numbers of images a class."""
    curves = size_curves(result)
    keys = legend({name: COLORS[k % len(COLORS)] for k, name in enumerate(curves)})
    caption = f"Top-1 of the last epoch by images a class, {short(result['student'])}, {result['epochs']} epochs."
    return figure(join([tag("h3", "At every size"), plots.sizes(curves), keys]), caption)


def _scores(found: Findings, result: Result) -> Html:
    arms = [(_OWN, result), *result["baselines"].items()]
    rows = []
    for (arm, scores), (name, *cells) in zip(arms, score_rows(result), strict=True):
        share = bar(scores["top1_last"]["mean"] / 100, COLORS[_NUMBERS[arm]])
        rows.append((join([name, share]), *cells))
    remarks = (
        f"Top-1 and top-5 in % of {result['test_images']} test images, {result['epochs']} epochs, "
        f"{seeds_in_words(result)}; ± is the deviation over seeds. Best is chosen on the test images, as the field "
        "does; last is not."
    )
    if found.has_other_scores:
        remarks += f" These are scores of the run with settings {result['recipe_sha256'][:12]}, not of those above."
    return join([table(SCORE_HEAD, rows), note(remarks, f" {MARGIN[0].upper()}{MARGIN[1:]}.")])


def by_class(found: Findings) -> Html:
    """Top-1 of each class, and what the images of the worst classes are taken for."""
    head, title = "Class by class", _titles(found)
    counted = {arm: [s for s in some if s.classes is not None] for arm, some in found.students.items()}
    counted = {arm: some for arm, some in counted.items() if some}
    if _OWN not in counted:
        if found.students.get(_OWN):
            return section("classes", head, note("These students were trained before answers were counted by class."))
        return section("classes", head, not_run("No student is trained yet.", "fastcondense train RUN"))
    shown = [arm for arm in (_OWN, "random_soft", "random_hard") if arm in counted][:2]
    scores = {arm: _class_scores(counted[arm]) for arm in shown}
    known = [label for label, score in enumerate(scores[_OWN]) if score == score]
    worst = sorted(known, key=lambda label: scores[_OWN][label])[:CLASSES]
    columns = [([scores[arm][label] for label in worst], _NUMBERS[arm]) for arm in shown]
    plot = plots.dots([found.titles[label] for label in worst], columns, "top-1, %")
    keys = {title(arm): COLORS[_NUMBERS[arm]] for arm in shown}
    left_out = len(known) - len(worst)
    caption = "Top-1 of the last epoch, all seeds together; lowest first."
    caption += f" The {left_out} classes that students know better are left out." if left_out else ""
    confusion = tag("div", tag("h3", "Taken for"), _confusion(found, counted[_OWN], worst[:10]))
    return section("classes", head, tag("div", figure(join([plot, legend(keys)]), caption), confusion, class_="halves"))


def _class_scores(students: Sequence[Student]) -> list[float]:
    """Top-1 of each class in per cent, over all students together; NaN without test images."""
    tables = [student.classes for student in students if student.classes is not None]
    images = [sum(column) for column in zip(*(table["images"] for table in tables), strict=True)]
    right = [sum(column) for column in zip(*(table["right"] for table in tables), strict=True)]
    return [100 * r / n if n else float("nan") for r, n in zip(right, images, strict=True)]


def _confusion(found: Findings, students: Sequence[Student], labels: Sequence[int]) -> Html:
    """The most frequent wrong answers of students on condensed images, in per cent of a class's test images."""
    wrong: dict[int, Counter[int]] = {label: Counter() for label in labels}
    images: Counter[int] = Counter()
    for student in students:
        assert student.classes is not None
        for label in labels:
            images[label] += student.classes["images"][label]
        for label, answer, count in student.classes["confused"]:
            if label in wrong:
                wrong[label][answer] += count
    scores = _class_scores(students)
    rows = [
        (
            found.titles[label],
            ", ".join(f"{found.titles[k]} ({100 * n / images[label]:.0f} %)" for k, n in wrong[label].most_common(3))
            or "none",
            f"{scores[label]:.1f}",
        )
        for label in labels
    ]
    remarks = (
        f"The {len(labels)} classes that students on condensed images know least, and their most frequent answers."
    )
    return join([table(("class", "most frequent wrong answers", "top-1"), rows, num_text=2), note(remarks)])


def costs(found: Findings) -> Html:
    """Bytes and seconds of each stage, as far as they have run."""
    recipe, size = found.run.recipe, found.run.recipe.dataset.image_size
    squeezed, recovered = bool(found.teachers) or not recipe.squeeze.teachers, found.num_finished > 0
    trained, labels = [student for some in found.students.values() for student in some], _label_bytes(found)
    teachers = counted(len(found.teachers), len(recipe.squeeze.teachers), "teacher")
    jobs = counted(found.num_finished, found.num_jobs, "job")
    students = counted(len(trained), recipe.train.seeds * len(found.students), "student")
    stages: list[tuple[str, str, int | None, float | None]] = [
        (
            *("squeeze", teachers, sum(teacher.bytes for teacher in found.teachers) if squeezed else None),
            sum(teacher.seconds for teacher in found.teachers) if squeezed else None,
        ),
        (
            *("recover", f"{counted(found.num_images, found.num_images, 'image')} by {jobs}"),
            *((found.num_images * 3 * size * size, found.recover_seconds) if recovered else (None, None)),
        ),
        ("relabel", "labels" if labels else "what replays the labels", labels, None),
        ("train", students, None, sum(s.seconds["train"] for s in trained) if trained else None),
        (
            *("evaluate", "top-1 and top-5 of students, while they are trained", None),
            sum(s.seconds["evaluate"] for s in trained) if trained else None,
        ),
    ]
    spent = sum(seconds or 0.0 for *_, seconds in stages)
    rows = [
        (
            join([stage, bar(seconds / spent, COLORS[0]) if spent and seconds else ""]),
            tag("em", "not run") if num_bytes is None and seconds is None else made,
            "" if num_bytes is None else bytes_in_words(num_bytes),
            "" if seconds is None else seconds_in_words(seconds),
        )
        for stage, made, num_bytes, seconds in stages
    ]
    source = recipe.labels.source
    remarks = (
        f"Images count as uint8, 3 x {size} x {size}; their files, with loss curves and what this page shows of their "
        f"making, hold {bytes_in_words(found.shard_bytes)}. Seconds of recover are summed over jobs, those of train "
        "and evaluate over all students, the baselines' too. Labels are "
        f"{'replayed by the teachers, which are counted' if source == 'teachers' else source}."
    )
    if found.hours:
        parts = ", ".join(f"{stage} {hours:.2g}" for stage, (hours, _) in found.hours.items() if hours > 0)
        spent, unit = sum(hours for hours, _ in found.hours.values()), next(iter(found.hours.values()))[1]
        remarks += f" All launches so far took {spent:.2g} {unit}, workers times hours, waiting included: {parts}."
    return section(
        "costs", "Bytes and seconds", table(("stage", "made", "bytes", "time"), rows, num_text=2), note(remarks)
    )


def _label_bytes(found: Findings) -> int | None:
    """Bytes of stored labels, as the result says; before there is one, none are stored once they can be replayed."""
    if found.result:
        return int(found.result["bytes"]["labels"])
    return 0 if found.replay is not None else None
