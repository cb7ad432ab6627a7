"""The report of a run: its figures are those of the run's files, it asks for nothing from outside, and never fails."""

import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from small import fastcondense

from fastcondense.cli import main

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "digits"
    assert fastcondense("run", out) == 0
    return out


def test_it_holds_the_runs_figures_and_readable_pictures(run):
    page = (run / "report.html").read_text()
    result = json.loads((run / "result.json").read_text())
    for scores in (result, *result["baselines"].values()):
        assert f"{scores['top1_last']['mean']:.1f}" in page and f"{scores['top1_best']['mean']:.1f}" in page
    assert result["recipe_sha256"][:8] in page and "sre2l/digits-ipc2" in page
    assert "not run" not in page
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([\w+/=]{40,})", page)]
    assert pictures and any(getattr(picture, "n_frames", 1) > 1 for picture in pictures)  # images forming, animated
    assert all(np.asarray(picture.convert("RGB")).std() > 0 for picture in pictures)


def test_nothing_is_asked_from_outside(run):
    page = (run / "report.html").read_text()
    addresses = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)""", page) + re.findall(r"url\(([^)]*)\)", page)
    assert addresses and all(address.strip("\"'").startswith(("#", "data:")) for address in addresses)
    assert "<script src" not in page and "@import" not in page


def test_what_has_not_run_is_said(tmp_path):
    out = tmp_path / "digits"
    assert fastcondense("inspect", out) == 0
    assert (out / "report.html").read_text().count("not run") >= 3
    assert fastcondense("recover", out) == 0 and main(["inspect", str(out), "--device", "cpu"]) == 0
    page = (out / "report.html").read_text()
    assert "not run" in page and "Images forming" in page


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_shows_it(run, tmp_path):
    picture = tmp_path / "page.png"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=390,900"]
    subprocess.run(
        [*command, f"--screenshot={picture}", (run / "report.html").as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    shown = np.asarray(Image.open(picture).convert("RGB"))
    assert shown.shape == (900, 390, 3) and len(np.unique(shown.reshape(-1, 3), axis=0)) > 20
