"""Every stage at ImageNet's shape on a machine of any size: 1,000 classes, 1.28 million files, 200 images a class.

    python scripts/imagenet_shaped.py PHOTOS --out DIR --size 64
    fastcondense bench at-scale --data DIR

Each stage is a process of its own; its wall and processor time are kept, which other work on the machine lengthens, and
the most memory that it held of its own, beside pages of files and what it held when it began. Condensed images are
noise, in the real classes' number: how they are stored, read and sent is measured, and not how they are made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claims import simulate
from session import Session

STAGES = ("index", "epoch", "pack", "set", "bundle", "status", "claims")
QUICK = {"classes": [5], "ipc": [2], "size": 16, "workers": [1, 8], "only": ["set", "bundle", "status", "claims"]}
_BATCHES = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder of scripts/imagenet_shaped.py, for index, epoch and pack")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--ipc", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--size", type=int, default=64, help="side of the condensed images in pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 3, 8, 64, 256], help="of the simulated claims")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--folder", type=Path, help="a disk with room for two sets; default: a temporary folder")


def run(session: Session, options: argparse.Namespace) -> None:
    if options.data is None and (without := sorted({"index", "epoch", "pack"} & set(options.only))):
        raise ValueError(f"{', '.join(without)} need --data, a folder of scripts/imagenet_shaped.py")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        scratch = Path(name)
        for classes in options.classes if options.data else ():
            part = _part(options.data, classes, scratch / f"{classes}-classes")
            for stage in ("index", "epoch", "pack"):
                if stage in options.only:
                    _measured(session, stage, classes, 0, {"data": str(part), "scratch": name})
        for ipc in options.ipc:
            for stage in ("set", "bundle", "status"):
                if stage in options.only:
                    most = max(options.classes)
                    _measured(
                        session, stage, most, ipc, {"classes": most, "ipc": ipc, "size": options.size, "scratch": name}
                    )
    for workers in options.workers if "claims" in options.only else ():
        session.add("claims", f"{workers} workers", **simulate(workers, 20 * workers, latency=1e-3, job=1.0))


def _part(data: Path, classes: int, folder: Path) -> Path:
    """A folder of links to the first classes of both splits."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for source in sorted((data / split).iterdir())[:classes]:
            (folder / split / source.name).symlink_to(source.resolve())
    return folder


def _measured(session: Session, stage: str, classes: int, ipc: int, about: dict[str, Any]) -> None:
    """Runs a stage in a process, which tells its parts one a line."""
    command = [sys.executable, __file__, stage, json.dumps(about)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                session.add(**(told := json.loads(line)), classes=classes, ipc=ipc)
                print(f"{classes:5} x {ipc:<4} {told['what']}: {told['wall_s']} s, {told['own_mb']} MB", flush=True)
    if child.returncode:
        raise ValueError(f"{stage} of {classes} classes, {ipc} images each, ended with {child.returncode}")


# --- in the process of a stage ---------------------------------------------------------------------------------------


def _status_of(key: str) -> int:
    """A number of kB that the system tells of this process."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if key in line)


def _tell(what: str, function: Callable[[], Any], **more: Any) -> Any:
    """Calls a function and prints what that took as a line of JSON; returns what it returns."""
    Path("/proc/self/clear_refs").write_text("5")
    held, wall, cpu = _status_of("VmRSS"), time.perf_counter(), time.process_time()
    result = function()
    told = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    line = {key: round(value, 3) for key, value in told.items()} | {"own_mb": (_status_of("VmHWM") - held) // 1024}
    print(json.dumps({"what": what, "variant": "ours"} | line | more), flush=True)
    return result


def _index(about: dict[str, Any]) -> None:
    from fastcondense.data import datasets, kept_index
    from fastcondense.recipe.recipe import load

    os.environ["XDG_CACHE_HOME"] = f"{about['scratch']}/cache-{Path(about['data']).name}"
    kept_index._SETTLED = -60  # the folder of links is new
    dataset = load("sre2l/imagenet1k-ipc10").dataset

    def read() -> datasets.RealData:
        real = datasets.load(dataset, Path(about["data"]))
        real.about()
        return real

    real = _tell("index, counts and digest", read)
    del real
    real = _tell("the same, a second time", read)
    real.check_counts(1, "")


def _epoch(about: dict[str, Any]) -> None:
    import torch

    from fastcondense.data import datasets
    from fastcondense.data.real import split_batches, training_batches, window_batches
    from fastcondense.loaders.source import Windowed
    from fastcondense.recipe.recipe import load
    from fastcondense.rng import Stream
    from fastcondense.views.windows import windows

    recipe, stream, device = load("sre2l/imagenet1k-ipc10"), Stream(0, "at-scale"), torch.device("cpu")
    recipe = dataclasses.replace(
        recipe, dataset=dataclasses.replace(recipe.dataset, image_size=64, resize=64, workers=2)
    )
    views, real = recipe.squeeze, datasets.load(recipe.dataset, Path(about["data"]))
    what = real.train, recipe.dataset, views, stream
    _tell("first batch of an epoch", lambda: next(training_batches(*what, 0, 64, device)), files=len(real.train))

    def middle() -> None:
        batches = split_batches(stream.permutation(len(real.train), 1), 64)
        first = len(batches) // 2
        cut = Windowed(64, lambda ids, heights, widths: windows(stream, views, ids, 1, heights, widths))
        for _ in window_batches(real.train, recipe.dataset, batches[first : first + _BATCHES], cut, device):
            pass

    _tell(f"{_BATCHES} batches of 64 in the middle of an epoch", middle, files=len(real.train))


def _pack(about: dict[str, Any]) -> None:
    from fastcondense.data.kept_index import indexed
    from fastcondense.loaders.pack import pack

    found = indexed(Path(about["data"]) / "train")
    out = Path(about["scratch"]) / f"{Path(about['data']).name}.beton"
    files, labels = found.files[:150_000], found.labels[:150_000]
    what = f"pack {len(files)} files, stopped at the half"

    def stopped(items: Any, _: str) -> Any:
        for number, item in enumerate(items):
            if number == len(items) // 2:
                raise KeyboardInterrupt
            yield item

    def begin() -> None:
        try:
            pack(files, labels, found.classes, out, source=found.root, workers=2, track=stopped)
        except KeyboardInterrupt:
            pass

    _tell(what, begin, files=len(files))
    _tell(
        "pack the rest", lambda: pack(files, labels, found.classes, out, source=found.root, workers=2), files=len(files)
    )
    out.unlink()


def _written(about: dict[str, Any]) -> tuple[Path, Any, dict[str, Any]]:
    """Writes the shards of a set of noise; returns the folder, the recipe and the manifest, which names no teacher."""
    import torch

    from fastcondense.data.jobs import jobs
    from fastcondense.files import write_atomic, write_json
    from fastcondense.recipe.recipe import load
    from fastcondense.sets.condensed import write_shard

    torch.set_num_threads(1)
    classes, ipc, size = about["classes"], about["ipc"], about["size"]
    recipe = load(f"sre2l/imagenet1k-ipc{ipc}")
    changed = {  # so that no teacher is asked, whose time is another matter
        "dataset": dataclasses.replace(recipe.dataset, image_size=size, resize=size),
        "recover": dataclasses.replace(recipe.recover, objective="gradients"),
        "labels": dataclasses.replace(recipe.labels, source="hard"),
    }
    recipe = dataclasses.replace(recipe, **changed)
    folder = Path(about["scratch"]) / f"set-{classes}-{ipc}"
    made, noise = jobs(recipe, classes), torch.Generator().manual_seed(0)
    manifest = {"classes": [f"n{k:08d}" for k in range(classes)], "recipe": {}, "teachers": {}}
    write_atomic(folder / "recipe.toml", recipe.to_toml().encode())
    write_json(folder / "condensed" / "manifest.json", manifest)
    for job in made:
        images = torch.randint(0, 256, (job.num_images, 3, size, size), dtype=torch.uint8, generator=noise)
        write_shard(folder / "condensed", job, images, torch.zeros(2, 3), {"seconds": "1"})
    return folder, recipe, manifest


def _set(about: dict[str, Any]) -> None:
    import torch

    from fastcondense.labels.resident import HostImages
    from fastcondense.sets.bundle import read_folder

    folder, _, _ = _written(about)
    condensed = _tell("open the set", lambda: read_folder(folder)).condensed
    _tell("the report's corner of it", lambda: condensed.corner(10, 5))
    _tell("digest of every class", lambda: condensed.digests)
    _tell("open --ipc 10 of it", lambda: condensed.first(min(10, about["ipc"])).corner(1, 1))

    def epoch() -> None:
        pixels, _ = condensed.unread()
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
        for _ in HostImages(pixels, torch.device("cpu")).rows(order.split(100)):
            pass

    _tell("an epoch's batches of 100 from disk", epoch)
    shutil.rmtree(folder)


def _bundle(about: dict[str, Any]) -> None:
    import torch

    from fastcondense.exchange.export import ExportOptions, export
    from fastcondense.exchange.verify import check
    from fastcondense.files import write_json
    from fastcondense.labels.relabel import specification
    from fastcondense.log import Log
    from fastcondense.sets.bundle import read_bundle, read_folder, write_bundle

    folder, recipe, manifest = _written(about)
    condensed = read_folder(folder).condensed
    replay = {"replay": specification(recipe, condensed, ()), "digests": condensed.digests}
    write_json(folder / "condensed" / "manifest.json", manifest | replay)
    bundle, out = folder.with_suffix(".zip"), folder.with_name("exported")
    _tell("bundle", lambda: write_bundle(folder, bundle, "embed"))
    contents = _tell("open the bundle", lambda: read_bundle(bundle))
    verdict = _tell("verify the bundle", lambda: check(contents, None, torch.device("cpu")))
    if verdict.kind != "match":
        raise ValueError(f"{bundle} is no bundle of its set: {verdict.reason}")
    _tell("export as a folder", lambda: export(ExportOptions(run=folder, out=out), Log()))
    for made in (folder, out):
        shutil.rmtree(made)
    bundle.unlink()


def _status(about: dict[str, Any]) -> None:
    from fastcondense.data.jobs import jobs
    from fastcondense.recipe.recipe import load
    from fastcondense.workers.status import read_status

    made = jobs(load(f"sre2l/imagenet1k-ipc{about['ipc']}"), about["classes"])
    run = Path(about["scratch"]) / f"status-{about['classes']}-{about['ipc']}"
    (run / "condensed").mkdir(parents=True)
    for worker in range(8):
        events: list[dict[str, Any]] = [
            {"event": "recover", "jobs": len(made), "images": about["classes"] * about["ipc"]}
        ]
        for job in made[worker::8]:
            (run / "condensed" / f"shard-{job.index:05d}.safetensors").touch()
            events += [
                {"event": "working", "job": job.index, "iteration": k, "iterations": 4000} for k in range(0, 4000, 80)
            ]
            events.append({"event": "job", "index": job.index, "seconds": 1000.0, "images": job.num_images})
        lines = "".join(json.dumps({"time": 0.0} | event) + "\n" for event in events)
        (run / (f"log-{worker}.jsonl" if worker else "log.jsonl")).write_text(lines)
    found = _tell("status of finished jobs of 8 workers", lambda: read_status(run), jobs=len(made))
    assert found.is_finished


if __name__ == "__main__":
    named = {"index": _index, "epoch": _epoch, "pack": _pack, "set": _set, "bundle": _bundle, "status": _status}
    named[sys.argv[1]](json.loads(sys.argv[2]))
