"""A page in headless Chromium, where it is installed: what it looks like at some widths, and what it asks for."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_MEASURE = """
const SCROLLS = '.scroll, pre, nav';
function measure() {
  const found = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument, width = page.documentElement.clientWidth;
    const outside = [...page.querySelectorAll('body *')].filter(element => {
      if (element.parentElement.closest(SCROLLS + ', svg')) return false;
      const box = element.getBoundingClientRect();
      return box.width > 0 && (box.right > width + 1 || box.left < -1);
    });
    const requests = frame.contentWindow.performance.getEntriesByType('resource').map(entry => entry.name);
    return {
      width, height: page.documentElement.scrollHeight, scroll: page.documentElement.scrollWidth,
      outside: outside.map(element => element.outerHTML.slice(0, 80)),
      requests: requests.filter(name => !name.startsWith('data:')),
      broken: [...page.images].filter(image => !image.naturalWidth).length, images: page.images.length,
    };
  });
  console.log('measured ' + JSON.stringify(found) + ' end');
}
"""


def look(page: Path, widths: list[int], height: int, folder: Path) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Screenshots of the page's first `height` pixels at some widths, uint8 [height, width, 3], and measurements.

    Each width is a frame of its own; every other one is shown as to somebody who prefers dark pages.
    """
    text = page.read_text()
    assert text.count("(prefers-color-scheme: dark)") == 1
    shown = [text.replace("(prefers-color-scheme: dark)", ("not all", "all")[k % 2]) for k in range(len(widths))]
    frames = [
        f'<iframe srcdoc="{html.escape(one)}" style="width:{width}px"></iframe>'
        for one, width in zip(shown, widths, strict=True)
    ]
    style = f"body {{ margin: 0; display: flex }} iframe {{ border: 0; flex: none; height: {height}px }}"
    harness = folder / "frames.html"
    harness.write_text(
        f"<!doctype html><meta charset=utf-8><style>{style}</style><script>{_MEASURE}</script>"
        f'<body onload="measure()">{"".join(frames)}'
    )
    picture = folder / "page.png"
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={sum(widths)},{height}"]
    command += ["--force-device-scale-factor=1", f"--screenshot={picture}", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    measured = re.search(r"measured (\[.*\]) end", done.stderr)
    assert measured is not None, done.stderr[-2000:]
    pixels, ends = np.asarray(Image.open(picture).convert("RGB")), np.cumsum(widths)
    return np.split(pixels, ends[:-1], 1), json.loads(measured[1])
