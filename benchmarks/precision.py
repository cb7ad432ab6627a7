"""Whole runs in bf16 beside the same runs in fp32: what it does to losses and to scores, seed by seed.

    fastcondense bench precision --recipes sre2l/digits-ipc10 edc/digits-ipc10 --change recover.iterations=1000

Both runs of a seed have the same teachers, trained in fp32, and recover, label and train in the precision that the line
names. A line a run: the mean of the last fifth of all jobs' losses, total, cross-entropy and weighted matching; and the
students' top-1. Runs that lie in --runs already are read, or finished.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from end_to_end import flags, run_stage
from session import Session

from fastcondense.files import read_json
from fastcondense.recipe import recipe as recipes
from fastcondense.tensor_files import read_tensors

QUICK = {
    "recipes": ["sre2l/digits-ipc1"],
    "change": ["squeeze.epochs=2", "squeeze.gate_images=0", "recover.iterations=5", "train.epochs=2", "train.seeds=1"],
    "seeds": [0],
}
PARTS = ("recover", "labels", "train")


def last_losses(folder: Path) -> list[float]:
    """Means over all jobs and the last fifth of the iterations: total, cross-entropy, weighted matching."""
    shards = sorted((folder / "condensed").glob("shard-*.safetensors"))
    losses = torch.stack([read_tensors(shard, "losses")[0]["losses"] for shard in shards])
    return [float(f"{value:.5g}") for value in losses[:, -(losses.shape[1] // 5 or 1) :].double().mean((0, 1)).tolist()]


def measure(session: Session, name: str, seed: int, precision: str, arguments: list[str], out: Path) -> None:
    """One run and its line."""
    out.mkdir(parents=True, exist_ok=True)
    flags = [word for part in PARTS for word in (f"--{part}.precision", precision)]
    fixed = ["--recipe", name, "--seed", str(seed), "--squeeze.precision", "fp32", "--evaluate.baselines"]
    if not (out / "result.json").exists():
        run_stage("run", out, [*fixed, *flags, *arguments])
    result, made = read_json(out / "result.json"), recipes.load(str(out / "recipe.toml"))
    total, entropy, matching = last_losses(out)
    about = {key: result[key] for key in ("recipe", "recipe_sha256", "dataset", "method", "ipc", "student", "epochs")}
    session.add(
        name,
        precision,
        **about,
        dtype=precision,
        shapes=[(result["ipc"], 3, *2 * (made.dataset.image_size,))],
        changed=[word for word in arguments if word.startswith("--") and word != "--data"],
        seed=seed,
        iterations=made.recover.iterations,
        loss=total,
        cross_entropy=entropy,
        matching=matching,
        top1=result["top1_last"]["mean"],
        seeds=result["seeds"],
    )
    print(f"  {name}, seed {seed}, {precision}: loss {total}, top-1 {result['top1_last']['mean']:.2f} %", flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipes", nargs="*", default=["sre2l/digits-ipc10", "edc/digits-ipc10"])
    parser.add_argument("--data", help="of recipes that are not of the digits")
    parser.add_argument("--change", nargs="*", default=[], metavar="FIELD=VALUE", help="settings of all recipes")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--runs", type=Path, help="folder in which the runs stay; default: they are deleted")


def run(session: Session, options: argparse.Namespace) -> None:
    arguments = flags(options)
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.recipes:
            for seed in options.seeds:
                for precision in options.precisions:
                    out = (options.runs or Path(temporary)) / f"{name.replace('/', '-')}-{precision}-{seed}"
                    try:
                        measure(session, name, seed, precision, arguments, out)
                    except (ValueError, OSError) as error:
                        session.skip(f"{name} {precision} {seed}", str(error))
