"""The picture of condensed sets holds their pixels, and those of real images."""

import runpy
import sys

import numpy as np
import pytest
from documents import ROOT
from PIL import Image
from sklearn.datasets import load_digits
from small import fastcondense

from fastcondense.tensor_files import read_tensors

SCRIPT = str(ROOT / "scripts" / "gallery.py")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
    runpy.run_path(SCRIPT, run_name="__main__")


def test_tiles_are_the_first_images_of_every_class(tmp_path, monkeypatch):
    for method in ("sre2l", "rded"):
        changes = () if method == "sre2l" else ("--recover.iterations", "0", "--method", "rded")
        assert fastcondense("recover", tmp_path / method, *changes) == 0
    run(monkeypatch, tmp_path / "sre2l", tmp_path / "rded", "--out", tmp_path / "gallery.png")
    picture = np.asarray(Image.open(tmp_path / "gallery.png"))
    assert picture.shape == (3 * 68 + 4, 132 + 10 * 68, 3)
    digits, shard = load_digits(), read_tensors(tmp_path / "rded" / "condensed" / "shard-00001.safetensors")[0]
    scan = np.rint(digits.images[list(digits.target).index(3)] * 255 / 16)[..., None].repeat(3, 2)
    seventh = shard["images"][shard["classes"].tolist().index(7)].permute(1, 2, 0).numpy()
    for row, column, pixels in ((0, 3, scan), (2, 7, seventh)):
        top, left = 4 + 68 * row, 132 + 68 * column
        tile = picture[top : top + 64, left : left + 64]
        np.testing.assert_array_equal(tile, pixels.astype(np.uint8).repeat(8, 0).repeat(8, 1))
        assert (picture[top + 64, left : left + 64] == 255).all()


def test_what_is_no_run_is_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"gallery: .* is not the folder of a run"):
        run(monkeypatch, tmp_path, "--out", tmp_path / "gallery.png")
