"""A bundle becomes the folder of a run, and takes no other run's place."""

import shutil

import pytest
from small import fastcondense

from fastcondense.cli import main
from fastcondense.sets import bundle
from fastcondense.sets.bundle import read_bundle
from fastcondense.tensor_files import read_tensors, write_tensors


def test_a_bundle_is_unpacked_into_no_other_run(tmp_path):
    """Whose teachers may have taken days; an unpacking that was interrupted goes on."""
    run, file = tmp_path / "digits", tmp_path / "digits.zip"
    assert fastcondense("run", run) == 0 and main(["bundle", str(run)]) == 0
    classes = read_bundle(file).condensed.classes
    for name in ("recipe.toml", "teachers", "condensed"):
        (out := tmp_path / f"of-{name}").mkdir()
        if name == "recipe.toml":
            (out / name).write_text((run / name).read_text().replace("seed = 0", "seed = 5"))
        elif name == "teachers":
            shutil.copytree(run / name, out / name)
            (path,) = out.glob("teachers/*/weights.safetensors")
            tensors, metadata = read_tensors(path)
            write_tensors(path, tensors, metadata | {"sha256": "0" * 64})
        else:
            shutil.copytree(run / name, out / name)
            (out / "condensed" / "manifest.json").unlink()
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        with pytest.raises(ValueError, match=r"holds another run than .*digits\.zip, as .*; choose another --out"):
            bundle.unpack(file, out, classes, "digits")
        assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    bundle.unpack(file, tmp_path / "half", classes, "digits")
    whole = {path: path.read_bytes() for path in (tmp_path / "half").rglob("*") if path.is_file()}
    for lost in ("condensed/manifest.json", "recipe.toml"):
        (tmp_path / "half" / "condensed" / "manifest.json").unlink(missing_ok=True)
        (tmp_path / "half" / lost).unlink(missing_ok=True)
        bundle.unpack(file, tmp_path / "half", classes, "digits")
        assert whole == {path: path.read_bytes() for path in (tmp_path / "half").rglob("*") if path.is_file()}
