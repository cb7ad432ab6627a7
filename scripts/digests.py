"""Digests of what short runs make: the proof that a refactoring changes no bit.

python scripts/digests.py OUT.json [RECIPE ...]             runs every method on the digits
python scripts/digests.py OUT.json --data FOLDER            and SRe2L and EDC on CIFAR-10 (train.npz and test.npz)
python scripts/digests.py OUT.json --against BEFORE.json    the same, and exits with 1 if a digest differs

Of each run: condensed images and their losses, teachers, students, their scores and the labels' fingerprint. Digests
depend on processor and torch, so both files are made on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

SHORT = (
    "--squeeze.epochs 2 --squeeze.self-supervision.epochs 2 --squeeze.probe.epochs 2 --recover.iterations 12 "
    "--train.epochs 2 --train.seeds 1 --evaluate.baselines random_soft"
).split()
CIFAR = "--squeeze.teachers zoo/convnet3_w64 --squeeze.weights train --train.student zoo/convnet3_w64".split()
GRADIENTS = "--recover.iterations 2 --recover.gradients.inner 2 --recover.gradients.net-images 64".split()


def made(folder: Path) -> dict[str, Any]:
    """The digests of a run's folder: of every tensor that it keeps, and scores and fingerprint as they are."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        digest = hashlib.sha256()
        for name, tensor in sorted(load_file(path).items()):
            if not name.startswith("snapshots/"):
                digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        # without the networks' names and the hashes of settings that names of files hold
        kind = re.sub(r"-[0-9a-f]{8}\b", "", path.relative_to(folder).as_posix())
        kind = "/".join(part for part in kind.split("/") if not part.startswith("zoo-"))
        found[kind] = sorted([*found.get(kind, []), digest.hexdigest()])
    result = json.loads((folder / "result.json").read_text())
    found["scores"] = [
        result[key]["values"] if "values" in result[key] else result[key]["mean"] for key in ("top1_last", "top5_last")
    ]
    manifest = json.loads((folder / "condensed" / "manifest.json").read_text())
    found["fingerprint"] = hashlib.sha256(json.dumps(manifest.get("fingerprint"), sort_keys=True).encode()).hexdigest()
    return found


def run(name: str, arguments: list[str]) -> dict[str, Any] | str:
    """The digests of a short run of a recipe, or what kept it from ending."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from fastcondense.cli import main; main()", "run", "--recipe", name]
        done = subprocess.run([*command, "--out", folder, *arguments], capture_output=True, text=True)
        return made(Path(folder)) if done.returncode == 0 else done.stderr.strip()[-300:]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path)
    options.add_argument("recipes", nargs="*")
    options.add_argument("--data", type=Path)
    options.add_argument("--against", type=Path)
    chosen = options.parse_args()
    listed = subprocess.run(
        [sys.executable, "-c", "from fastcondense.cli import main; main()", "recipes"], capture_output=True, text=True
    )
    names = [name for line in listed.stdout.splitlines() for name in line.split()[:1] if "/digits" in name]
    wanted = {f"{name}-ipc2": SHORT for name in names}
    for name in [name for name in wanted if name.startswith(("idc", "mdc"))]:
        wanted[name] = SHORT + GRADIENTS
    if chosen.data:
        wanted |= {f"{name}/cifar10-ipc1": [*SHORT, *CIFAR, "--data", str(chosen.data)] for name in ("sre2l", "edc")}
    kept = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    for name, arguments in wanted.items():
        if name not in kept and (not chosen.recipes or name in chosen.recipes):
            kept[name] = run(name, arguments)
            chosen.out.write_text(json.dumps(kept, indent=1))
            print(name, "ends" if isinstance(kept[name], dict) else kept[name], flush=True)
    if chosen.against:
        before = json.loads(chosen.against.read_text())
        wrong = [
            f"{name}: {key}"
            for name in kept.keys() & before.keys()
            for key in before[name]
            if before[name][key] != kept[name].get(key)
        ]
        print(
            f"{len(kept.keys() & before.keys())} runs compared, {len(wrong)} digests differ", *sorted(wrong), sep="\n"
        )
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
