"""Repositories of published code: where they are, at which commit they are measured, and whether a folder has them.

    python benchmarks/published/repository.py FOLDER

clones them from github.com, with git. They are their authors' work, under their licences; nothing of them is part of
fastcondense.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class Absent(Exception):
    """A peer that cannot be measured here, and why."""


@dataclass(frozen=True)
class Repository:
    """A public repository at one commit."""

    owner: str
    name: str
    commit: str
    """All 40 digits."""
    licence: str
    """SPDX name, or "none" where the repository states none."""
    paths: tuple[str, ...] = ()
    """Folders that are needed; nothing means all of it."""
    needs: tuple[str, ...] = ()
    """Packages that its step calls, by the names that are imported."""

    @property
    def url(self) -> str:
        return f"https://github.com/{self.owner}/{self.name}"

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}@{self.commit[:7]}"

    def folder(self, peers: Path | None) -> Path:
        """Its folder below `peers`, which holds one for each repository.

        Raises Absent if there is none, if it is not a git checkout of the pinned commit without changes, or if a
        package that the step calls is not installed.
        """
        if peers is None:
            raise Absent("no folder of peers was named: --peers FOLDER or FASTCONDENSE_PEERS")
        folder = peers / self.name
        if not folder.is_dir():
            raise Absent(
                f"the folder of peers has no {self.name}: benchmarks/published/repository.py clones {self.url}"
            )
        found = _git(folder, "rev-parse", "HEAD")
        if Path(_git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            raise Absent(f"{self.name} is not a git checkout, so its commit is not known")
        if found != self.commit:
            raise Absent(f"{self.name} is at {found[:7]}, but {self.commit[:7]} is what is measured")
        if changed := _git(folder, "status", "--porcelain", "--untracked-files=no"):
            raise Absent(f"{self.name} has changes: {changed.splitlines()[0].strip()}")
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                raise Absent(f"its step needs the package {package}, which is not installed")
        return folder

    def fetch(self, peers: Path) -> Path:
        """Clones the pinned commit, as far as it is needed, into a folder below `peers`; a finished clone is kept.

        Raises ValueError with git's words if it fails.
        """
        folder = peers / self.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if not (folder / ".git").exists():
                _git(folder, "init", "--quiet")
                _git(folder, "remote", "add", "origin", self.url)
            if self.paths:
                _git(folder, "sparse-checkout", "set", *self.paths)
            _git(folder, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", self.commit)
            _git(folder, "checkout", "--quiet", "--detach", self.commit)
        except Absent as error:
            raise ValueError(f"{self.url} was not fetched: {error}") from None
        return folder


SRE2L = Repository(
    "VILA-Lab", "SRe2L", "8d00cba364bfa34aa1f5a8107dc041ae1be8ebe6", licence="none", paths=("SRe2L/recover",)
)
GVBSM = Repository(
    "shaoshitong",
    "G_VBSM_Dataset_Condensation",
    "1ed80b0ed0bdde206ac61f5b0b9e70f8e8a5d30e",
    licence="none",
    paths=("Branch_full_ImageNet_1k/recover",),
    needs=("einops", "tqdm"),
)
EDC = Repository(
    "shaoshitong",
    "EDC",
    "80116a79ebaeae14e0f9d7517c5b193efa26c059",
    licence="none",
    paths=("Branch_full_ImageNet_1k/recover",),
    needs=("einops", "tqdm", "scipy"),
)
RDED = Repository("LINs-lab", "RDED", "3f6453d8b18b6a9bcc6c718bc16ecda6bb94d59f", licence="Apache-2.0", needs=("tqdm",))
MDC = Repository("he-y", "Multisize-Dataset-Condensation", "e9b9f7e4992299892612ed2882bab2b683cbc862", licence="MIT")
REPOSITORIES = (SRE2L, GVBSM, EDC, RDED, MDC)


def fetch_all(peers: Path, repositories: Iterable[Repository] = REPOSITORIES) -> dict[str, str]:
    """What became of each repository: "ready", or why it was not fetched. Goes on after a failure."""
    found = {}
    for repository in repositories:
        try:
            repository.fetch(peers)
            found[str(repository)] = "ready"
        except ValueError as error:
            found[str(repository)] = str(error)
    return found


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, whoever owns the folder. Raises Absent with what it complains of."""
    try:
        own = ["-c", f"safe.directory={folder.resolve()}"]
        done = subprocess.run(["git", *own, "-C", folder, *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise Absent("git is not installed, so the commit cannot be checked") from None
    if done.returncode:
        raise Absent((done.stderr or done.stdout).strip().splitlines()[-1])
    return done.stdout.strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    states = fetch_all(Path(sys.argv[1]))
    for repository in REPOSITORIES:
        print(f"{repository}, licence {repository.licence}: {states[str(repository)]}")
    sys.exit(int(any(state != "ready" for state in states.values())))
