"""Condensed sets on the Hugging Face Hub: fetched into its library's cache, and pushed, as data sets `user/set`."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import validate_repo_id

from ..loaders.class_folders import EXTENSIONS
from ..loaders.reading import naming
from . import tensor_sets
from .published_sets import CLASSES_FILE

PREFIX = "hf://"
_NAMED = re.compile(r"hf://(?P<set>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<inside>.+?))?/?")
_READ = (*sorted(EXTENSIONS), ".parquet", *tensor_sets.SUFFIXES)


def is_name(text: str) -> bool:
    """Whether a text names a set of the Hub."""
    return text.startswith(PREFIX)


def fetch(name: str) -> tuple[Path, str]:
    """The place of the images `hf://user/set[@revision][/folder-or-file]`, which are downloaded where they are not yet
    in the library's cache, and their name with the commit for a revision, which names them for good.

    Raises ValueError for a name of another form, and if they cannot be had.
    """
    if not (match := _NAMED.fullmatch(name)):
        raise ValueError(f"{name} is no set of the Hub: needed is hf://user/set, hf://user/set@revision/folder")
    inside = match["inside"] or ""
    below = f"{inside}/" if inside else ""
    endings = [*_READ, *(ending.upper() for ending in _READ)]
    patterns = [f"{below}*{ending}" for ending in endings] + [inside] * bool(inside)
    with naming(name, "{path} cannot be fetched: {error}"):
        root = Path(
            snapshot_download(
                match["set"],
                repo_type="dataset",
                revision=match["revision"],
                allow_patterns=[*patterns, f"{below}{CLASSES_FILE}", f"{below}{tensor_sets.ABOUT}"],
            )
        )
    path = root / inside
    if not path.exists():
        raise ValueError(f"{name} holds no images of a kind that is read: files of images, parquet, tensors or .npz")
    return path, f"{PREFIX}{match['set']}@{root.name}" + f"/{inside}" * bool(inside)


def check_name(name: str) -> None:
    """Raises ValueError for a name `user/set` that the Hub would not take."""
    if name.count("/") != 1:
        raise ValueError(f"--push-to-hub needs user/set: {name!r} is another form")
    with naming(name, "--push-to-hub needs user/set: {error}"):
        validate_repo_id(name)


def push(path: Path, name: str) -> str:
    """Uploads a file, or what is in a folder, to the data set `user/set`, which is made if it is not there; returns its
    address. Raises ValueError if that fails; the files stay.
    """
    with naming(name, f"{{path}} cannot be pushed to, and {path} is kept: {{error}}"):
        hub, about = HfApi(), f"{path.name}, by fastcondense"
        address = str(hub.create_repo(name, repo_type="dataset", exist_ok=True))
        if path.is_dir():
            hub.upload_folder(repo_id=name, repo_type="dataset", folder_path=path, commit_message=about)
        else:
            hub.upload_file(
                path_or_fileobj=path,
                path_in_repo=path.name,
                repo_id=name,
                repo_type="dataset",
                commit_message=about,
            )
    return address
