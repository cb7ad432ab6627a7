# ruff: noqa: ARG001 - signatures are those of what numba compiles
"""Vectors of LANES float32 as values in numba's loops, which can be added, subtracted, multiplied and fused.

For sums that numba's compiler makes no vectors of: weighed lane by lane, or of arrays that might overlap. LLVM gives
them the processor's registers, whatever their width. Every rounding is as written: no width moves a bit.
"""

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

LANES = 8


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


_vector = _Vector()
_floats: Any = ir.VectorType(ir.FloatType(), LANES)
_words: Any = ir.VectorType(ir.IntType(32), LANES)
_undefined: Any = ir.Constant(_floats, ir.Undefined)


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, front_end: Any) -> None:
        super().__init__(manager, front_end, _floats)


def _address(context, builder, array_type, element, array, i):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [i]), ir.VectorType(element, LANES).as_pointer())


def _load(_context, array, i):
    def generate(context, builder, signature, arguments):
        if array.dtype == types.float32:
            return builder.load(_address(context, builder, array, ir.FloatType(), *arguments), align=4)
        bits = builder.load(_address(context, builder, array, ir.IntType(16), *arguments), align=2)
        return builder.bitcast(builder.shl(builder.zext(bits, _words), ir.Constant(_words, [16] * LANES)), _floats)

    return _vector(array, types.intp), generate


def _keep(_context, array, i, vector):
    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _address(context, builder, array, ir.FloatType(), *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _vector), generate


def _splat(_context, value):
    def generate(context, builder, signature, arguments):
        first = builder.insert_element(_undefined, arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, _undefined, ir.Constant(_words, [0] * LANES))

    return _vector(types.float32), generate


def _sum_lanes(_context, vector):
    def generate(context, builder, signature, arguments):
        total, width = arguments[0], LANES
        while width > 1:  # halves, which every processor adds alike
            width //= 2
            lanes = ir.VectorType(ir.IntType(32), width)
            low, high = (
                builder.shuffle_vector(total, ir.Constant(total.type, ir.Undefined), ir.Constant(lanes, list(places)))
                for places in (range(width), range(width, 2 * width))
            )
            total = builder.fadd(low, high)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return types.float32(_vector), generate


def _fused(_context, first, second, third):
    if not first == second == third:
        return None
    element, name = (_floats, f"v{LANES}f32") if first == _vector else (ir.FloatType(), "f32")

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(element, [element] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.{name}"), arguments)

    return first(first, first, first), generate


def _arithmetic(symbol: Any, name: str) -> None:
    def typed(_context, first, second):
        def generate(context, builder, signature, arguments):
            return getattr(builder, name)(*arguments)

        return _vector(_vector, _vector), generate

    compute: Any = intrinsic(typed)

    @overload(symbol)
    def _(first, second):
        if first == second == _vector:
            return lambda first, second: compute(first, second)
        return None


for _name, _symbols in {
    "fadd": (operator.add, operator.iadd),
    "fsub": (operator.sub, operator.isub),
    "fmul": (operator.mul, operator.imul),
}.items():
    for _symbol in _symbols:
        _arithmetic(_symbol, _name)

load: Any = intrinsic(_load)  # load(array, i): elements i, i + 1, ... of contiguous float32 or bfloat16 (uint16)
keep: Any = intrinsic(_keep)  # keep(array, i, vector) stores it in contiguous float32
splat: Any = intrinsic(_splat)  # splat(value): a float32 in all lanes
fused: Any = intrinsic(_fused)  # fused(a, b, c): a * b + c of vectors or float32, rounded once
sum_lanes: Any = intrinsic(_sum_lanes)  # sum_lanes(vector): float32
