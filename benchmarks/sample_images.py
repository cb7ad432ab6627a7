"""Real pixels without a data set: parts of the two photographs that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from fastcondense.rng import Stream


def photograph_parts(count: int, height: int, width: int) -> np.ndarray:
    """Random parts of the photographs (427 x 640), in turns: uint8 [count, height, width, 3].

    Raises ValueError if they are larger than the photographs.
    """
    from sklearn.datasets import load_sample_images

    pictures = load_sample_images().images
    if height > pictures[0].shape[0] or width > pictures[0].shape[1]:
        raise ValueError(f"the photographs have 427 x 640 pixels, less than {height} x {width}")
    u_top, u_left, *_ = Stream(0, "benchmark/photographs").uniform(np.arange(count), 0)
    parts = np.empty((count, height, width, 3), dtype=np.uint8)
    for k in range(count):
        picture = pictures[k % len(pictures)]
        top, left = int(u_top[k] * (picture.shape[0] - height)), int(u_left[k] * (picture.shape[1] - width))
        parts[k] = picture[top : top + height, left : left + width]
    return parts
