"""Clones the repositories of published code that `peer_steps.py` measures, at the pinned commits, from github.com.

    python benchmarks/fetch_peers.py FOLDER

Needs git and the network. They are their authors' work, under their licences; nothing of them is part of fastcondense.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from published.repository import REPOSITORIES, fetch_all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="gets a folder for each repository")
    folder = parser.parse_args().folder
    found = fetch_all(folder)
    for repository in REPOSITORIES:
        print(f"{repository}, licence {repository.licence}: {found[str(repository)]}")
    return int(any(state != "ready" for state in found.values()))


if __name__ == "__main__":
    sys.exit(main())
