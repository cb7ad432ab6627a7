"""The stages of at_scale.py that read, store and send: index, loaders, pack, condensed sets, bundles, status.

Each runs in a process of its own, `python scale_stages.py NAME JSON`, and prints a line of JSON for each of its parts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastcondense.data import datasets, kept_index
from fastcondense.data.jobs import jobs
from fastcondense.data.real import split_batches, training_batches, window_batches
from fastcondense.exchange.export import ExportOptions, export
from fastcondense.exchange.verify import check
from fastcondense.files import write_atomic, write_json
from fastcondense.labels.relabel import specification
from fastcondense.labels.resident import HostImages
from fastcondense.loaders.pack import pack
from fastcondense.loaders.source import Windowed
from fastcondense.log import Log
from fastcondense.recipe.recipe import Recipe, load
from fastcondense.rng import Stream
from fastcondense.sets.bundle import read_bundle, read_folder, read_run, write_bundle
from fastcondense.sets.condensed import write_shard
from fastcondense.sets.imported import import_images
from fastcondense.sets.published_sets import read_published
from fastcondense.views.windows import windows
from fastcondense.workers.status import read_status

MOST_PACKED = 100_000
_BATCHES = 20


def _status_of(key: str) -> int:
    """A number of kB that the system tells of this process."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if key in line)


class Meter:
    """Seconds and memory from the moment on at which it is made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.held, self.wall, self.cpu = _status_of("VmRSS"), time.perf_counter(), time.process_time()

    def tell(self, what: str, beside: Callable[[float], dict[str, Any]] = lambda _: {}, **more: Any) -> None:
        """Prints what there was until now as a line of JSON. beside: what else it tells, of seconds by the clock."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        print_line(what, wall, cpu, (_status_of("VmHWM") - self.held) // 1024, **more, **beside(wall))


def tell(what: str, function: Callable[[], Any], **more: Any) -> Any:
    """Calls a function, tells what that took, and returns what it returns."""
    meter = Meter()
    result = function()
    meter.tell(what, **more)
    return result


def print_line(what: str, wall: float, cpu: float, megabytes: int, **more: Any) -> None:
    """Prints a line of JSON, as at_scale.py takes it."""
    line = {"what": what, "variant": "ours", "wall_s": round(wall, 3), "cpu_s": round(cpu, 3), "own_mb": megabytes}
    print(json.dumps(line | more), flush=True)


def _index(about: dict[str, Any]) -> None:
    os.environ["XDG_CACHE_HOME"] = f"{about['scratch']}/cache-{Path(about['data']).name}"
    kept_index._SETTLED = -60  # the folder of links is new
    dataset = load("sre2l/imagenet1k-ipc10").dataset

    def read() -> datasets.RealData:
        real = datasets.load(dataset, Path(about["data"]))
        real.about()
        return real

    real = tell("index, counts and digest", read)
    del real
    real = tell("the same, a second time", read)
    real.check_counts(1, "")


def _epoch(about: dict[str, Any]) -> None:
    recipe, stream, device = load("sre2l/imagenet1k-ipc10"), Stream(0, "at-scale"), torch.device("cpu")
    recipe = dataclasses.replace(
        recipe, dataset=dataclasses.replace(recipe.dataset, image_size=64, resize=64, workers=2)
    )
    views, real = recipe.squeeze, datasets.load(recipe.dataset, Path(about["data"]))
    what = real.train, recipe.dataset, views, stream
    tell("first batch of an epoch", lambda: next(training_batches(*what, 0, 64, device)), files=len(real.train))

    def middle() -> None:
        batches = split_batches(stream.permutation(len(real.train), 1), 64)
        first = len(batches) // 2
        cut = Windowed(64, lambda ids, heights, widths: windows(stream, views, ids, 1, heights, widths))
        for _ in window_batches(real.train, recipe.dataset, batches[first : first + _BATCHES], cut, device):
            pass

    tell(f"{_BATCHES} batches of 64 in the middle of an epoch", middle, files=len(real.train))


def _pack(about: dict[str, Any]) -> None:
    """Packs the first files: a process is killed when it is half through, and this one goes on."""
    killed = subprocess.run([sys.executable, __file__, "half", json.dumps(about)])
    if killed.returncode != -signal.SIGKILL:
        raise ValueError(f"the process that was to be killed ended with {killed.returncode}")
    what = _to_pack(about)
    tell("the rest, by another process", lambda: pack(**what), files=len(what["files"]))
    what["out"].unlink()


def _half(about: dict[str, Any]) -> None:
    """Packs half of what `_pack` packs, and ends this process as the system does where memory is short."""
    what, meter = _to_pack(about), Meter()

    def killed(chunks: Any, _: str) -> Any:
        yield from chunks[: len(chunks) // 2]
        meter.tell("pack files until half are packed, then be killed", files=len(what["files"]))
        os.kill(os.getpid(), signal.SIGKILL)

    pack(**what, track=killed)


def _to_pack(about: dict[str, Any]) -> dict[str, Any]:
    found = kept_index.indexed(Path(about["data"]) / "train")
    files, labels = found.files[:MOST_PACKED], found.labels[:MOST_PACKED]
    out = Path(about["scratch"]) / f"{Path(about['data']).name}.beton"
    return {"files": files, "labels": labels, "classes": found.classes, "out": out, "source": found.root, "workers": 1}


def write_noise(folder: Path, recipe: Recipe, classes: Sequence[str], teachers: dict[str, str]) -> dict[str, Any]:
    """Writes the manifest, which is returned, and the shards of a set of noise, in the folder of a run."""
    noise, size = torch.Generator().manual_seed(0), recipe.dataset.image_size
    manifest = {"classes": list(classes), "recipe": {}, "teachers": teachers}
    write_json(folder / "condensed" / "manifest.json", manifest)
    for job in jobs(recipe, len(classes)):
        # eight pixels a draw
        drawn = torch.empty(-(-job.num_images * 3 * size**2 // 8), dtype=torch.int64).random_(
            -(2**63), None, generator=noise
        )
        images = drawn.view(torch.uint8)[: job.num_images * 3 * size**2].view(job.num_images, 3, size, size)
        write_shard(folder / "condensed", job, images, torch.zeros(2, 3), {"seconds": "1"})
    return manifest


def _written(about: dict[str, Any]) -> tuple[Path, Recipe, dict[str, Any]]:
    """The folder of a set of noise, its recipe and its manifest, which names no teacher: none is asked."""
    recipe, size = load(f"sre2l/imagenet1k-ipc{about['ipc']}"), about["size"]
    changed = {
        "dataset": dataclasses.replace(recipe.dataset, image_size=size, resize=size),
        "recover": dataclasses.replace(recipe.recover, objective="gradients"),
        "labels": dataclasses.replace(recipe.labels, source="hard"),
    }
    recipe, folder = dataclasses.replace(recipe, **changed), Path(about["scratch"]) / f"set-{about['ipc']}"
    write_atomic(folder / "recipe.toml", recipe.to_toml().encode())
    return folder, recipe, write_noise(folder, recipe, [f"n{k:08d}" for k in range(about["classes"])], {})


def _set(about: dict[str, Any]) -> None:
    folder, _, _ = _written(about)
    condensed = tell("open the set", lambda: read_folder(folder)).condensed
    tell("the report's corner of it", lambda: condensed.corner(10, 5))
    tell("digest of every class", lambda: condensed.digests)
    tell("open --ipc 10 of it", lambda: condensed.first(min(10, about["ipc"])).corner(1, 1))

    def epoch() -> None:
        pixels, _ = condensed.unread()
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
        for _ in HostImages(pixels, torch.device("cpu")).rows(order.split(100)):
            pass

    tell("an epoch's batches of 100 from disk", epoch)
    shutil.rmtree(folder)


def _bundle(about: dict[str, Any]) -> None:
    folder, recipe, manifest = _written(about)
    condensed = read_folder(folder).condensed
    replay = {"replay": specification(recipe, condensed, {}), "digests": condensed.digests}
    write_json(folder / "condensed" / "manifest.json", manifest | replay)
    bundle = folder.with_suffix(".zip")
    tell("bundle", lambda: write_bundle(read_run(folder), folder, bundle, "embed"))
    contents = tell("open the bundle", lambda: read_bundle(bundle))
    verdict = tell("verify the bundle", lambda: check(contents, None, torch.device("cpu")))
    if verdict.kind != "match":
        raise ValueError(f"{bundle} is no bundle of its set: {verdict.reason}")
    bundle.unlink()
    shutil.rmtree(folder)


def _export(about: dict[str, Any]) -> None:
    """A set of noise as a folder of PNG files, which is imported again."""
    folder, recipe, manifest = _written(about)
    out, sha256 = folder.with_name("exported"), read_folder(folder).condensed.sha256
    tell("export as a folder", lambda: export(ExportOptions(run=folder, out=out), Log()))
    shutil.rmtree(folder)

    def imported() -> str:
        published = read_published(out, manifest["classes"], recipe.ipc, recipe.dataset, folder=out.parent)
        import_images(published, folder / "condensed", recipe, Log(is_silent=True))
        return published.sha256

    if tell("import the folder", imported) != sha256:
        raise ValueError("the images that came back are not those that went")
    for made in (folder, out):
        shutil.rmtree(made)


def _status(about: dict[str, Any]) -> None:
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
    found = tell("status of finished jobs of 8 workers", lambda: read_status(run), jobs=len(made))
    assert found.is_finished


if __name__ == "__main__":
    torch.set_num_threads(1)
    named = {"index": _index, "epoch": _epoch, "pack": _pack, "half": _half}
    named |= {"set": _set, "bundle": _bundle, "export": _export, "status": _status}
    named[sys.argv[1]](json.loads(sys.argv[2]))
