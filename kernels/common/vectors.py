# ruff: noqa: ARG001, ARG005 - signatures are those of what numba compiles
"""Vectors of float32 as values in numba's loops, which make none of a sum whose terms are weighed lane by lane.

LLVM gives them the processor's registers, whatever their width. A product is fused with a sum where the processor does.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

LANES = 8
_FUSED = ("contract",)


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


_vector = _Vector()
_ir: Any = ir.VectorType(ir.FloatType(), LANES)


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, front_end: Any) -> None:
        super().__init__(manager, front_end, _ir)


def _address(context, builder, array_type, array, i):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [i]), _ir.as_pointer())


def _zeros(_context):
    return _vector(), lambda context, builder, signature, arguments: ir.Constant(_ir, [0.0] * LANES)


def _load(_context, array, i):
    def generate(context, builder, signature, arguments):
        return builder.load(_address(context, builder, signature.args[0], *arguments), align=4)

    return _vector(array, types.intp), generate


def _keep(_context, array, i, vector):
    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _address(context, builder, signature.args[0], *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _vector), generate


def _add_product(_context, total, weights, value):
    def generate(context, builder, signature, arguments):
        total, weights, value = arguments
        lanes = ir.VectorType(ir.IntType(32), LANES)
        first = builder.insert_element(ir.Constant(_ir, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
        values = builder.shuffle_vector(first, ir.Constant(_ir, ir.Undefined), ir.Constant(lanes, [0] * LANES))
        return builder.fadd(builder.fmul(weights, values, flags=_FUSED), total, flags=_FUSED)

    return _vector(_vector, _vector, types.float32), generate


zeros: Any = intrinsic(_zeros)  # zeros()
load: Any = intrinsic(_load)  # load(array, i): elements i, i + 1, ... of a contiguous float32 array
keep: Any = intrinsic(_keep)  # keep(array, i, vector) stores it there
add_product: Any = intrinsic(_add_product)  # add_product(total, weights, value): total + weights * value
