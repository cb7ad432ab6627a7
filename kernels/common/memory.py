# ruff: noqa: ARG001 - signatures are those of what is overloaded
"""Arrays in numba's loops over memory that is given as an address: contiguous always, and made for nothing."""

from numba import carray, types
from numba.extending import intrinsic, overload


@intrinsic
def _pointer(context, address, like):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), generate


def memory(address, shape, like):
    """A contiguous array at an address, of the type of elements of `like`: an array, or np.float32 and so on.

    Only a `part` may write to it: in a kernel numba takes the array for the kernel's own, which nobody reads
    once it has ended, and leaves out a prange that does nothing else.
    """
    raise NotImplementedError("for numba's loops only")


@overload(memory, inline="always")
def _(address, shape, like):
    # numba adds the first argument of an intrinsic
    return lambda address, shape, like: carray(_pointer(address, like), shape)  # type: ignore[call-arg]
