"""Compiles every Triton kernel ahead of time, as it would be launched; writes one JSON line a case. Needs no GPU.

Run by test_kernel_compile.py in a process of its own: Triton's interpreter and its compiler exclude each other.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcondense.kernels.common import channel_moments_gpu as moments
from fastcondense.kernels.common.launch import OPTIONS, pixel_tiles, power_of_two, row_tiles
from fastcondense.kernels.crop import gpu as windowed
from fastcondense.kernels.feature_maps import gpu as maps
from fastcondense.kernels.frozen_batch_norm import gpu as frozen
from fastcondense.kernels.frozen_batch_norm_pool import gpu as stem
from fastcondense.kernels.pixel_adam import gpu as adam
from fastcondense.kernels.replay_crop import gpu as replay
from fastcondense.kernels.soft_label import gpu as soft

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Accesses(NamedTuple):
    """Accesses to global memory in a kernel's code: at least so many of 128 bits, at most so many of fewer bits."""

    wide_loads: int
    wide_stores: int
    narrow_loads: int
    narrow_stores: int


@dataclass(frozen=True)
class Case:
    """One specialisation: types of the run-time arguments, values of the constexprs, integers divisible by 16."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    divisible: frozenset[str] = frozenset()
    accesses: Accesses | None = None
    """What a kernel on big tensors must keep to."""
    options: tuple[tuple[str, int], ...] = ()
    """Further options of the compiler."""


BN = Accesses(4, 1, 1, 4)  # narrow: packed signs, two or four partial sums
ADAM = Accesses(4, 2, 20, 0)  # narrow: bounds and scalars
POOL = Accesses(4, 1, 4, 5)  # narrow: the argmax of four windows, a store of it, four partial sums
SOFT = Accesses(4, 2, 1, 3)
MAPS_FORWARD = Accesses(1, 0, 21, 8)  # narrow: centre and weights, six map and two channel sums
MAPS_BACKWARD = Accesses(1, 1, 21, 8)

# activation, residual, moments of the output
_FORMS = [("relu", False, False), ("relu", True, False)]
_MORE_FORMS = [
    ("none", True, False),
    ("none", True, True),
    ("relu", False, True),
    ("relu", True, True),
    ("relu6", False, False),
    ("silu", False, True),
    ("silu", True, True),
    ("hardswish", False, False),
    ("hardswish", True, True),
]
# dtype, channels, side of the feature (0: one row), form
_FROZEN = [
    *((dtype, 64, 112, *form) for form in _FORMS for dtype in ("fp32", "bf16")),
    *(("bf16", 64, 112, *form) for form in _MORE_FORMS),
    ("fp32", 64, 112, "relu", True, True),
    ("fp32", 64, 112, "silu", True, True),
    ("fp16", 512, 7, "none", False, False),
    ("bf16", 116, 28, "relu", True, False),
    ("bf16", 24, 56, "relu6", True, True),
    ("fp32", 3, 0, "relu", True, False),
]


def frozen_batch_norm_cases() -> Iterator[Case]:
    names = ("scale", "shift", "center", "output_center", "mean", "dmean", "dvar", "y_mean", "dy_mean", "dy_var")
    vectors = {f"{name}_ptr": "*fp32" for name in names}
    for dtype, channels, size, activation, residual, output in _FROZEN:
        num_rows = max(1, 100 * size * size)
        kept = frozen.kept(activation, residual, output)
        types = {
            **dict.fromkeys(("x_ptr", "residual_ptr", "y_ptr", "dy_ptr", "dx_ptr", "dresidual_ptr"), f"*{dtype}"),
            **dict.fromkeys(("sign_ptr", "kept_ptr"), "*u8" if kept == "sign" else f"*{dtype}"),
            "partial_ptr": "*fp32",
            "num_rows": "i32",
            "chunk": "i32",
            **vectors,
        }
        common = {"C": channels, "ACTIVATION": activation, "HAS_OUTPUT": output}
        if num_rows == 1:
            common["num_rows"] = 1
        divisible = frozenset({"chunk", "num_rows"} if num_rows % 16 == 0 else {"chunk"})
        label = f"{dtype}-{channels}-{activation}{'-residual' if residual else ''}{'-output' if output else ''}"
        light = frozen.is_light(4 if dtype == "fp32" else 2, residual, activation)
        tiles = frozen.forward_tiles(num_rows, channels, output, light)
        forward = common | {"BLOCK_R": tiles.block_r, "BLOCK_C": tiles.block_c}
        forward |= {"HAS_RESIDUAL": residual, "SAVE_SIGN": kept == "sign"}
        tiles = row_tiles(num_rows, channels)
        backward = common | {"BLOCK_R": tiles.block_r, "BLOCK_C": tiles.block_c}
        backward |= {
            "HAS_DY": True,
            "HAS_INPUT": True,
            "KEPT": kept,
            "HAS_DRESIDUAL": residual and (output or activation != "none"),
        }
        wide, options = BN if channels == 64 else None, (("maxnreg", frozen.REGISTERS),)
        yield Case(f"bn-forward-{label}", frozen.forward_kernel, types, forward, 8, divisible, wide, options)
        yield Case(f"bn-backward-{label}", frozen.backward_kernel, types, backward, 8, divisible, wide)
    for channels, num_sums, ones in ((64, 2, ()), (64, 4, ()), (3, 2, ("num_chunks", "num_rows", "y_num_rows"))):
        names = ("partial", "center", "mean", "var")
        types = {f"{of}{name}_ptr": "*fp32" for of in ("", "y_") for name in names}
        types |= dict.fromkeys(("num_rows", "y_num_rows", "num_chunks"), "i32")
        tile = {"C": channels, "SUMS": num_sums, "BLOCK_P": moments.BLOCK_P, "BLOCK_C": moments.BLOCK_C}
        constants = tile | dict.fromkeys(ones, 1)
        yield Case(f"bn-combine-{channels}-{num_sums}", moments.combine_kernel, types, constants, moments.WARPS)


def frozen_batch_norm_pool_cases() -> Iterator[Case]:
    vectors = ("scale", "shift", "center", "output_center", "mean", "dmean", "dvar", "y_mean", "dy_mean", "dy_var")
    integers = ("num_positions", "num_images", "height", "width", "chunk")
    for dtype, channels, size, output in (
        ("fp32", 64, 112, False),
        ("bf16", 64, 112, False),
        ("bf16", 64, 112, True),
        ("fp16", 24, 9, True),
        ("fp32", 3, 7, False),
        ("bf16", 116, 1, True),
    ):
        tiles = stem.pool_tiles(100, channels, *[(size + 1) // 2] * 2)
        types = {
            **dict.fromkeys(("x_ptr", "y_ptr", "dy_ptr", "dx_ptr"), f"*{dtype}"),
            "argmax_ptr": "*u8",
            **dict.fromkeys(("partial_ptr", "output_partial_ptr", *(f"{name}_ptr" for name in vectors)), "*fp32"),
            **dict.fromkeys(integers, "i32"),
        }
        divisible = frozenset({"num_positions", "height", "width"} if size % 16 == 0 else ())
        tile = {"C": channels, "BLOCK_P": tiles.block_p, "BLOCK_C": tiles.block_c, "HAS_OUTPUT": output}
        if size == 1:  # and one image
            tile |= {"height": 1, "width": 1}
        forward = tile | ({"num_positions": 1, "chunk": 1} if size == 1 else {})
        backward = tile | {"HAS_INPUT": True} | ({"num_images": 1} if size == 1 else {})
        label = f"{dtype}-{channels}{'-output' if output else ''}"
        wide = POOL if channels == 64 else None
        yield Case(f"pool-forward-{label}", stem.forward_kernel, types, forward, stem.WARPS, divisible, wide)
        yield Case(f"pool-backward-{label}", stem.backward_kernel, types, backward, stem.WARPS, divisible, wide)


def crop_cases() -> Iterator[Case]:
    strides = ("stride_n", "stride_c", "stride_h", "stride_w")
    for source, output, size, shared in (
        ("fp32", "fp32", 224, True),
        ("u8", "bf16", 224, False),
        ("fp32", "bf16", 32, True),
    ):
        types = {
            **dict.fromkeys(("images_ptr", "dimages_ptr"), f"*{source}"),
            **dict.fromkeys(("output_ptr", "dout_ptr"), f"*{output}"),
            **dict.fromkeys(("gain_ptr", "offset_ptr", "share_ptr"), "*fp32"),
            "windows_ptr": "*i32",
            **dict.fromkeys(("height", "width", *strides), "i32"),
        }
        # Triton makes a constant of an integer argument that is 1
        unit = {"stride_c": 1} if source == "u8" else {"stride_w": 1}
        common = {"C": 3, "SIZE": size, "SHARED": shared, "CHANNELS": windowed.CHANNELS, "BLOCK": windowed.BLOCK} | unit
        gains = {"HAS_GAIN": not shared, "HAS_OFFSET": not shared}
        yield Case(
            f"crop-forward-{source}-{output}-{size}", windowed.forward_kernel, types, common | gains, windowed.WARPS
        )
        if source != "u8":
            constants = common | {"HAS_GAIN": False}
            yield Case(f"crop-backward-{output}-{size}", windowed.backward_kernel, types, constants, windowed.WARPS)
    yield Case("crop-share", windowed.share_kernel, types, {"SIZE": 224, "BLOCK": windowed.BLOCK}, windowed.WARPS)


def replay_crop_cases() -> Iterator[Case]:
    tables = dict.fromkeys(("ids_ptr", "partners_ptr"), "*i64")
    tables |= dict.fromkeys(("windows_ptr", "partner_windows_ptr", "boxes_ptr"), "*i32")
    tables |= dict.fromkeys(("share_ptr", "gain_ptr", "offset_ptr"), "*fp32")
    for output, size, mix in (("fp32", 32, "none"), ("bf16", 224, "box"), ("fp32", 28, "box"), ("fp16", 64, "share")):
        types = tables | {"images_ptr": "*u8", "output_ptr": f"*{output}", "height": "i32", "width": "i32"}
        constants = {"C": 3, "SIZE": size, "HAS_BOX": mix == "box", "HAS_SHARE": mix == "share"}
        constants |= {"CHANNELS": windowed.CHANNELS, "BLOCK": windowed.BLOCK}
        yield Case(f"replay-crop-{mix}-{output}-{size}", replay.replay_kernel, types, constants, windowed.WARPS)


def soft_label_cases() -> Iterator[Case]:
    types = {
        "teachers_ptr": "*fp32",
        **dict.fromkeys(("labels_ptr", "partners_ptr"), "*i64"),
        **dict.fromkeys(("share_ptr", "loss_ptr", "result_ptr", "dloss_ptr"), "*fp32"),
        **dict.fromkeys(("num_rows", "plane", "size"), "i32"),
        **dict.fromkeys(("factor", "ce_weight", "scale"), "fp32"),
    }
    aligned = frozenset({"num_rows", "plane", "size"})
    for dtype, classes, teachers in (("fp32", 1000, 1), ("bf16", 1000, 4), ("fp16", 10, 1), ("fp32", 21841, 2)):
        logits = types | dict.fromkeys(("student_ptr", "direction_ptr", "dstudent_ptr"), f"*{dtype}")
        block_k = min(power_of_two(classes), soft.WIDEST)
        tile = {"K": classes, "BLOCK_R": max(1, soft.TILE // block_k), "BLOCK_K": block_k, "HAS_GRADIENT": True}
        label = f"{dtype}-{classes}"
        wide = SOFT if label == "fp32-1000" else None
        soften = tile | {"E": teachers}
        yield Case(f"soft-divergence-{label}", soft.divergence_kernel, logits, soften, soft.WARPS, aligned, wide)
        yield Case(f"soft-hard-{label}", soft.hard_kernel, logits, tile | {"E": teachers % 4}, soft.WARPS, aligned)
        block = {"BLOCK": soft.SCALE_BLOCK}
        yield Case(f"soft-scale-{label}", soft.scale_kernel, logits, block, soft.WARPS, aligned)
    yield Case("soft-sum", soft.sum_kernel, types, {"BLOCK": soft.SUM_BLOCK}, soft.WARPS)


def pixel_adam_cases() -> Iterator[Case]:
    names = ("images", "gradient", "first", "second", "rate", "step", "corrections", "low", "high")
    types = {**{f"{name}_ptr": "*fp32" for name in names}, "size": "i32", "stride_c": "i32"}
    betas = {"STEPS": 356, "BETA1": 0.5, "BETA2": 0.9, "EPS": 1e-8}
    constants = {"C": 3, **betas, "BLOCK": adam.BLOCK}
    both = frozenset({"size", "stride_c"})
    yield Case("adam-planar", adam.step_kernel, types, constants, adam.WARPS, both, ADAM)
    yield Case("adam-channels_last", adam.step_kernel, types, constants | {"stride_c": 1}, adam.WARPS, both, ADAM)


# dtype, channels, side of the feature, neighbours, channel moments
_MAPS = [
    *((dtype, 64, 112, has_neighbours, False) for has_neighbours in (False, True) for dtype in ("fp32", "bf16")),
    ("bf16", 64, 56, True, True),
    ("fp32", 64, 56, True, True),
    ("fp16", 512, 7, True, False),
    ("bf16", 116, 28, True, False),
    ("fp32", 3, 224, False, True),
    ("bf16", 960, 1, True, True),
]


def feature_maps_cases() -> Iterator[Case]:
    fp32 = ("center_ptr", "map_center_ptr", "channel_ptr", "map_ptr", "mean_ptr", "dmean_ptr", "dvar_ptr", "dmap_ptr")
    for dtype, channels, side, has_neighbours, has_channels in _MAPS:
        tiles = pixel_tiles(100, channels, side * side)
        types = {
            **dict.fromkeys(("x_ptr", "dy_ptr", "dx_ptr"), f"*{dtype}"),
            **dict.fromkeys(fp32, "*fp32"),
            **dict.fromkeys(("num_images", "chunk", "height", "width"), "i32"),
            "scale": "fp32",
        }
        constants = {
            **(dict.fromkeys(("height", "width"), 1) if side == 1 else {}),
            "C": channels,
            "BLOCK_P": tiles.block_p,
            "BLOCK_C": tiles.block_c,
            "HAS_NEIGHBOURS": has_neighbours,
            "HAS_CHANNELS": has_channels,
        }
        label = f"{dtype}-{channels}-{side}{'-neighbours' * has_neighbours}{'-channels' * has_channels}"
        divisible = frozenset({"height", "width"} if side % 16 == 0 else ())
        is_big = channels == 64
        lanes = min(tiles.block_c, 4 if dtype == "fp32" else 8)
        forward = constants | {"LANES": lanes} | ({"chunk": 1} if tiles.chunk == 1 else {})
        backward = constants | {"HAS_DY": True}
        wide = (MAPS_FORWARD, MAPS_BACKWARD) if is_big else (None, None)
        yield Case(f"maps-forward-{label}", maps.forward_kernel, types, forward, maps.WARPS, divisible, wide[0])
        yield Case(f"maps-backward-{label}", maps.backward_kernel, types, backward, maps.WARPS, divisible, wide[1])
    types = {"partial_ptr": "*fp32", "map_ptr": "*fp32", "num_partials": "i32", "size": "i32"}
    for num_partials in (1, 7, 400):
        block_p = min(power_of_two(num_partials), maps.COMBINE_P)
        constants = {"BLOCK_P": block_p, "BLOCK_M": maps.COMBINE // block_p}
        if num_partials == 1:
            constants["num_partials"] = 1
        yield Case(f"maps-combine-{num_partials}", maps.combine_maps_kernel, types, constants, 4)


def build(case: Case, arch: int) -> dict[str, Any]:
    """Resources of the compiled kernel and its global accesses in bits, each with its count."""
    names = [parameter.name for parameter in case.kernel.params]
    signature = {name: "constexpr" if name in case.constants else case.types[name] for name in names}
    divisible = case.divisible - case.constants.keys()
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name in divisible]
    source = ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs=case.constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": case.num_warps, **OPTIONS, **dict(case.options)}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", cubin.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage.stdout + usage.stderr)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {usage.stdout}")
    resources = dict(zip(("registers", "stack", "shared", "local"), map(int, found.groups()), strict=True))
    accesses = dict.fromkeys(("ld128", "st128", "ld", "st"), 0)
    for kind, vector, bits in re.findall(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)", compiled.asm["ptx"]):
        accesses[f"{kind}128" if int(vector or 1) * int(bits) == 128 else kind] += 1
    report = {
        "name": case.name,
        "arch": arch,
        "num_warps": case.num_warps,
        "expected": case.accesses and case.accesses._asdict(),
    }
    return report | accesses | resources | {"shared": compiled.metadata.shared}


def of_architecture(cases: list[Case], arch: int) -> list[Case]:
    """All for sm_90; else of each kernel the first, the last, and the last on big tensors."""
    kept: dict[tuple[str, str], Case] = {}
    for case in cases:
        kernel = "-".join(case.name.split("-")[:2])
        kept.setdefault((kernel, "first"), case)
        kept[kernel, "big" if case.accesses else "last"] = case
    return cases if arch == 90 else [case for case in cases if case in kept.values()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    makers = (
        frozen_batch_norm_cases,
        frozen_batch_norm_pool_cases,
        feature_maps_cases,
        crop_cases,
        replay_crop_cases,
        soft_label_cases,
        pixel_adam_cases,
    )
    cases = [case for make in makers for case in make()]
    with arguments.out.open("w") as lines:
        for arch in (80, 90, 100):
            for case in of_architecture(cases, arch):
                lines.write(json.dumps(build(case, arch)) + "\n")


if __name__ == "__main__":
    main()
