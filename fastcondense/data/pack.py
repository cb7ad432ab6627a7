"""Image folders, as ImageNet's, into .beton files that the ffcv loader reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..loaders.folder import index_folder
from ..loaders.pack import Packing, pack
from ..log import Log

SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """What is packed where, and how."""

    data: Path | None = None
    """Folder <class>/<image>, or one that holds such folders train/ and val/."""
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
    """Packs what the options say; goes on where it was stopped. Raises ValueError that names what is wrong."""
    data, out = options.data, options.out
    if data is None or out is None:
        raise ValueError("pack needs --data DIR and --out FILE.beton or DIR")
    has_splits = any((data / split).is_dir() for split in SPLITS)
    if out.suffix != ".beton":
        jobs = [(data / split, out / f"{split}.beton") for split in SPLITS]
    elif has_splits and options.split is None:
        raise ValueError(f"{data} has train/ and val/: name one by --split, or give a folder as --out for both")
    else:
        jobs = [(data / options.split if has_splits and options.split else data, out)]
    for source, beton in jobs:
        files, labels, classes = index_folder(source)
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
