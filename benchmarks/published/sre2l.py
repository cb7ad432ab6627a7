"""SRe2L: the loop of SRe2L/recover/data_synthesis.py."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from .peer import FOR_EVER, Setting, Step, load, recover_loop
from .repository import SRE2L


class SRe2L:
    """get_images with the arguments of recover.sh: crop, roll, forward with hooks, backward, Adam, clip, loss read.

    Adapted: the loop is paused where it sets its learning rate; it begins with the given images and network, without
    nn.DataParallel, a verifier or prints; other sizes than 224 pixels and the CPU as `recover_loop` says.
    """

    repository = SRE2L
    what = "get_images, one iteration"

    def prepare(self, folder: Path, setting: Setting) -> Step:
        (module,) = load(folder / "SRe2L" / "recover", ["data_synthesis"], setting)
        arguments = Namespace(
            batch_size=setting.count,
            iteration=FOR_EVER,
            lr=0.25,
            jitter=setting.jitter,
            r_bn=0.01,
            first_bn_multiplier=10.0,
            tv_l2=0.0,
            l2_scale=0.0,
            store_best_images=False,
        )
        net = setting.frozen()
        return recover_loop(
            module,
            setting,
            lambda: module.get_images(arguments, net, None, 0),
            "no DataParallel, no verifier",
        )
