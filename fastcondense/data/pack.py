"""Image folders, as ImageNet's, into .beton files that the ffcv loader reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..loaders.complete import check_files
from ..loaders.file_names import FileNames
from ..loaders.pack import Packing, pack
from ..log import Log
from .image_folders import index_splits
from .kept_index import indexed

SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Options of `fastcondense pack`: what is packed where, and how."""

    data: Path | None = None
    """Folder <class>/<image>, or one that holds such folders train/ and val/ (or other usual names)."""
    out: Path | None = None
    """FILE.beton for one split; otherwise a folder, which gets train.beton and val.beton."""
    split: Literal["train", "val"] | None = None
    """Which split of --data a FILE.beton gets; needed if --data has train/ and val/."""
    workers: int = 2
    """Threads that decode and encode."""
    on_error: Literal["raise", "skip"] = "raise"
    """What happens to a file that is no image or is damaged: its name and an end, or it is left out and listed."""
    packing: Annotated[Packing, tyro.conf.arg(name="")] = field(default_factory=Packing)


def pack_folders(options: PackOptions, log: Log) -> None:
    """Packs what the options say; goes on where it was stopped. Raises ValueError that names what is wrong, before a
    byte is written: splits of other classes, and files that are cut off or no images, too."""
    data, out = options.data, options.out
    if data is None or out is None:
        raise ValueError("pack needs --data DIR and --out FILE.beton or DIR")
    if options.split is not None and out.suffix != ".beton":
        raise ValueError("pack takes --split with --out FILE.beton; a folder as --out gets both")
    if not data.is_dir():
        raise ValueError(f"there is no folder {data}")
    options.packing.check()
    splits = index_splits(data)
    if splits is None and out.suffix != ".beton":
        raise ValueError(f"{data} has no train/ and val/: a folder of classes is packed into --out FILE.beton")
    if splits is not None and out.suffix == ".beton" and options.split is None:
        raise ValueError(f"{data} has train/ and val/: name one by --split, or give a folder as --out for both")
    if splits is None:
        parts = {out: indexed(data)}
    else:
        by_name = dict(zip(SPLITS, splits, strict=True))
        parts = {out: by_name[options.split]} if options.split else {out / f"{k}.beton": v for k, v in by_name.items()}
    place = (out.parent if out.suffix == ".beton" else out).resolve()
    for root in (found.root for found in splits or parts.values()):
        if root.resolve() in place.parents:
            raise ValueError(f"{out} lies in {root}, whose folders are the classes: choose another --out")
    for found in parts.values():
        for text in found.said:
            log.say(text)
    if options.on_error == "raise":
        todo = [text for beton, found in parts.items() if not beton.exists() for text in found.files.texts()]
        check_files(FileNames(Path(), todo), options.workers, log.track)
    for beton, found in parts.items():
        source, files, labels, classes = found.root, found.files, found.labels, found.classes
        sidecar = pack(
            files,
            labels,
            classes,
            beton,
            options.packing,
            source=source,
            workers=options.workers,
            on_error=options.on_error,
            track=log.track,
        )
        log.say(
            f"{beton}: {sum(sidecar.counts)} images of {len(classes)} classes, {sidecar.length / 1e6:.0f} MB, "
            f"of {len(files)} files in {source}"
        )
        for reason in sidecar.skipped.values():
            log.say(f"left out: {reason}")
