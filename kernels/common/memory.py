"""Arrays in numba's loops over memory that is given as an address: contiguous always, and made for nothing."""

from typing import Any

from numba import carray, types
from numba.extending import intrinsic

from .threads import inline


def _pointer(_context, address, like):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), generate


_pointer_to: Any = intrinsic(_pointer)


@inline
def memory(address, shape, like):
    """A contiguous array at an address, of the type of elements of `like`: an array, or np.float32 and so on.

    Only a `part` may write to it: in a kernel numba takes the array for the kernel's own, which nobody reads
    once it has ended, and leaves out a prange that does nothing else.
    """
    return carray(_pointer_to(address, like), shape)
