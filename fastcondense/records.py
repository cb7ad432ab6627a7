"""The JSON files of a run and a bundle as types. What is read is checked against them (msgspec), whoever wrote it.

A failure is one line: the file, the field, and what is wrong there. Fields that a type does not name are let through.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeVar, cast

import msgspec
from msgspec import Meta

from .loaders.reading import check_values, count_values, read_file

Kind = TypeVar("Kind")
_DEEPEST = 100
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
"""One that does not end reaches to the end of all, so that no part of a text is looked at twice."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Natural = Annotated[int, Meta(ge=0, le=2**53)]
_LONGEST = 1000
Name = Annotated[str, Meta(min_length=1, max_length=_LONGEST)]
Percent = Annotated[float, Meta(ge=0, le=100)]
NumWorkers = Annotated[int, Meta(ge=1, le=1_000_000)]
Digits = Annotated[str, Meta(pattern="^[0-9]{1,9}$")]
MOST_SEEDS, _ROUNDING = 10_000, 1e-6
Duration = Annotated[float, Meta(ge=0, le=1e12)]
Color = Annotated[list[float], Meta(min_length=3, max_length=3)]


class MadeBy(TypedDict, total=False):
    """The settings that decided the images, and what else did."""

    recover: dict[str, Any]
    loss_sha256: Sha256
    initial_sha256: Sha256


class Replay(TypedDict):
    """All that decides the labels of a set beside its images, its classes and the teachers' weights."""

    generator: str
    seeds: Annotated[list[Natural], Meta(min_length=1, max_length=100_000)]
    views: dict[str, Any]
    transform: str
    mean: Color
    std: Color
    epochs: Natural
    batch_size: Natural
    ipc: Natural
    images: Sha256
    classes: Sha256
    teachers: dict[Name, Sha256]
    source_sha256: NotRequired[Sha256]


class Fingerprint(TypedDict):
    """What a machine saw and answered on P sampled views: [P, 2], and of the largest logits [P, at most 5]."""

    tables: Sha256
    pixels: Annotated[list[tuple[float, float]], Meta(min_length=1, max_length=4096)]
    classes: list[Annotated[list[Natural], Meta(min_length=1, max_length=64)]]
    logits: list[Annotated[list[float], Meta(min_length=1, max_length=64)]]


class Origin(TypedDict):
    """Where imported images come from."""

    path: str
    layout: str
    sha256: Sha256
    top1: NotRequired[dict[str, float]]


class Score(TypedDict):
    """Per cent: the mean over the students of an arm, their sample deviation, and each of them, by seed."""

    mean: Percent
    std: Annotated[float, Meta(ge=0, le=100)]
    seeds: Annotated[list[Percent], Meta(min_length=1, max_length=MOST_SEEDS)]


class Scores(TypedDict):
    """Per cent of the test images."""

    top1_last: Score
    top1_best: Score
    top5_last: Score
    workers: NotRequired[Annotated[list[NumWorkers], Meta(min_length=1, max_length=MOST_SEEDS)]]
    """How many workers trained a student together: each number once."""
    views: NotRequired[Natural]
    """Views that a student sees in its training."""
    needs: NotRequired[Natural]
    """Bytes that its training needs: images, stored labels or the weights of teachers that replay them."""
    chosen: NotRequired[Literal["herding", "medoid", "bps"]]
    """The rule of the best real subset."""


class Sizes(TypedDict):
    """Bytes."""

    images: Natural
    labels: Natural
    teachers: Natural


class Seconds(TypedDict):
    squeeze: Duration
    recover: Duration
    train: Duration
    evaluate: Duration


class Result(Scores):
    """A file of results/, and result.json: a set beside its baselines. settings: the recipe's of this evaluation."""

    recipe: Name
    recipe_sha256: Sha256
    settings: dict[str, Any]
    dataset: Name
    method: Name
    ipc: Annotated[int, Meta(ge=1, le=2**31)]
    student: Name
    teachers: Annotated[list[Name], Meta(max_length=1000)]
    epochs: Natural
    seed: int
    seeds: Annotated[int, Meta(ge=1, le=MOST_SEEDS)]
    labels: Name
    test_images: Natural
    baselines: dict[Name, Scores]
    bytes: Sizes
    seconds: Seconds
    versions: dict[str, str]
    origin: NotRequired[Origin]


class Network(TypedDict):
    """A teacher that a bundle names: the sha256 of its weights, its outputs, and each class's among them, as JSON."""

    sha256: Sha256
    num_outputs: Annotated[int, Meta(ge=1, le=10_000_000)]
    outputs: str
    pixel_statistics: NotRequired[str]


class Bundled(TypedDict):
    """The part of a bundle's manifest that says what else lies in the bundle."""

    format: Natural
    teachers: dict[Name, Network]
    embedded: list[Name]
    recipe_sha256: Sha256
    results: Annotated[list[Result], Meta(max_length=10_000)]
    """All evaluations of the images."""


class Manifest(TypedDict):
    """condensed/manifest.json, and in a bundle what lies in it."""

    classes: Annotated[list[Name], Meta(min_length=1)]
    recipe: MadeBy
    teachers: NotRequired[dict[str, Sha256]]
    versions: NotRequired[dict[str, str]]
    ipc: NotRequired[Natural]
    origin: NotRequired[Origin]
    replay: NotRequired[Replay]
    digests: NotRequired[list[Sha256]]
    fingerprint: NotRequired[Fingerprint]
    bundle: NotRequired[Bundled]


class Environment(TypedDict, total=False):
    """environment.json, beside the versions of packages."""

    data: str | None
    device: str
    loader: str
    decoder: str | None
    gpu: str


class SplitDigest(TypedDict):
    images: Natural
    sha256: Sha256


class Splits(TypedDict):
    train: SplitDigest
    test: SplitDigest


class MadeFrom(TypedDict):
    """data.json: the real images that a run was made from."""

    name: str
    path: str | None
    images: Splits


class TeacherMetadata(TypedDict):
    """The metadata of a teacher's weights; numbers are text there."""

    identity: str
    outputs: str
    num_outputs: Annotated[int, Meta(ge=1)]
    pixel_statistics: NotRequired[str]
    sha256: Sha256
    top1: Percent
    seconds: Duration
    files: NotRequired[str]


class CheckedFiles(TypedDict):
    """checked.json: how many files of which images were looked at."""

    images: dict[str, SplitDigest]
    files: Natural


class ShardMetadata(TypedDict, total=False):
    """The metadata of a finished job; numbers are text there."""

    seconds: Duration


class StoredEpochs(TypedDict):
    """manifest.json of stored labels."""

    format: int
    replay: dict[str, Any]
    first_rows: Annotated[list[Natural], Meta(min_length=1)]
    epochs_done: Natural
    digests: list[Sha256]
    """Of the rows of each epoch that is done."""


def parse_json(text: str | bytes, source: object) -> Any:
    """The tree of a JSON text. Raises ValueError that names the source of one that is damaged, or nested too deep, or
    whose tree would be many times its size."""
    try:
        data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        check_values(len(data), count_values(data))
        _check_depth(data)
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is damaged: {error}") from None


def _check_depth(text: bytes) -> None:
    """Whoever walks a tree, or writes it, may go down by calling itself."""
    brackets = _STRING.sub(b"", text).translate(None, _NO_BRACKETS)
    deepest = max(itertools.accumulate(1 if mark in b"[{" else -1 for mark in brackets), default=0)
    if deepest > _DEEPEST:
        raise ValueError(f"it nests values more than {_DEEPEST} deep")


def checked(tree: Any, kind: type[Kind], source: object, *, is_text: bool = False) -> Kind:
    """The tree itself, if it is of that kind; is_text: numbers in it are text, and become numbers.

    Raises ValueError that names the source and the field.
    """
    try:
        made = msgspec.convert(tree, kind, strict=not is_text)
    except (msgspec.ValidationError, RecursionError, UnicodeError) as error:
        what, _, where = str(error).partition(" - at `$")
        field = where.strip("`.") or "the whole"
        raise ValueError(f"{source} is damaged: field {field}: {what[:1].lower()}{what[1:]}") from None
    return made if is_text else cast(Kind, tree)


def read_checked(path: Path, kind: type[Kind]) -> Kind:
    """A JSON file of that kind. Raises ValueError that names the file and the field."""
    return checked(parse_json(read_file(path), path), kind, path)


def read_manifest(path: Path) -> Manifest:
    """condensed/manifest.json of a run."""
    return check_manifest(parse_json(read_file(path), path), path)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample deviation, which is 0 for a single value, and the values, by seed."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "seeds": list(values)}


def check_result(tree: Any, source: object) -> Result:
    """The result, if each of its scores is that of as many seeds as it says. Raises ValueError that names source and
    field."""
    result = checked(tree, Result, source)
    for arm, scores in {"": result, **{f"baselines.{arm}.": of for arm, of in result["baselines"].items()}}.items():
        for key in ("top1_last", "top1_best", "top5_last"):
            score = scores[key]
            if (count := len(score["seeds"])) != result["seeds"]:
                raise ValueError(
                    f"{source} is damaged: field {arm}{key}.seeds: expected {result['seeds']}, got {count}"
                )
            made = spread(score["seeds"])
            if max(abs(score["mean"] - made["mean"]), abs(score["std"] - made["std"])) > _ROUNDING:
                raise ValueError(f"{source} is damaged: field {arm}{key}: mean and std are not those of its seeds")
    return result


def read_data(run: Path) -> Path | None:
    """The folder in which a run found the real images, as its environment.json says."""
    path = run / "environment.json"
    data = read_checked(path, Environment).get("data") if path.is_file() else None
    return Path(data) if data else None


def check_names(classes: Iterable[str], source: str) -> None:
    """Raises ValueError that begins with `source` for a class whose name is no text, empty or too long."""
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{source}: the name {name!r} is no UTF-8") from None
        if not 1 <= len(name) <= _LONGEST:
            raise ValueError(f"{source}: a name needs 1 to {_LONGEST} characters, got {len(name)}: {name[:40]!r}")


def check_manifest(tree: Any, source: object) -> Manifest:
    """The manifest, if its fields fit each other too. Raises ValueError that names the source and the field."""
    manifest = checked(tree, Manifest, source)
    classes, kept = manifest["classes"], manifest.get("fingerprint")
    for result in manifest["bundle"]["results"] if "bundle" in manifest else []:
        check_result(result, source)
    if len(set(classes)) < len(classes):
        raise ValueError(f"{source} is damaged: field classes: two have the same name")
    check_names(classes, f"{source} is damaged: field classes")
    if len(manifest.get("digests", classes)) != len(classes):
        raise ValueError(f"{source} is damaged: field digests: expected {len(classes)}, one a class")
    if kept is not None:
        shapes = {tuple(map(len, kept[name])) for name in ("classes", "logits")}
        widths = set(next(iter(shapes)))
        if len(shapes) > 1 or len(widths) != 1 or len(kept["logits"]) != len(kept["pixels"]):
            raise ValueError(f"{source} is damaged: field fingerprint: its tables have different shapes")
        if max(map(max, kept["classes"])) >= len(classes):
            raise ValueError(f"{source} is damaged: field fingerprint.classes: there are {len(classes)} classes")
    return manifest
