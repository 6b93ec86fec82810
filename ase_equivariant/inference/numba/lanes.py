"""Vectors as wide as the processor's registers, as values in compiled kernels.

A loop over channels that a compiler vectorises by itself keeps its sums in memory between two passes. Here a kernel
names its vectors, so that sums of many edges stay in registers:

    v = load(array, i, n)     elements i … i + n - 1 of a flat array
    store(array, i, v)
    v = fill(x, n)            n times the number x
    v = spread(array, i, n)   n times element i
    v = mul(v, v), fma(v, v, v) = v · v + v, total(v) = the sum of the elements

`n` is a constant. Any machine runs any n; COUNT[dtype] of them fill a register of this one.
"""

from __future__ import annotations

from math import gcd, prod

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, register_model

_HOST = get_host_cpu_features()
_BYTES = 64 if _HOST.get("avx512f") else 32 if _HOST.get("avx2") else 16
COUNT = {"float32": _BYTES // 4, "float64": _BYTES // 8}
_LINE = 64  # bytes of a cache line
REGISTERS = 16 if _HOST.get("sse2") and _BYTES < 64 else 32


class Lanes(types.Type):
    """Numba's type of a vector."""

    def __init__(self, dtype: types.Type, count: int):
        self.dtype, self.count = dtype, count
        super().__init__(name=f"Lanes({dtype}, {count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(dmm.lookup(fe_type.dtype).get_value_type(), fe_type.count))


def _address(context, builder, array_type, array, index):
    """Of a vector that begins at an element, aligned as one element is."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic(prefer_literal=True)
def load(typingctx, array, index, n):
    def codegen(context, builder, signature, args):
        vector = context.get_value_type(signature.return_type)
        address = _address(context, builder, array, *args[:2])
        found = builder.load(builder.bitcast(address, vector.as_pointer()))
        found.align = array.dtype.bitwidth // 8
        return found

    return Lanes(array.dtype, n.literal_value)(array, types.intp, n), codegen


@intrinsic
def store(typingctx, array, index, vector):
    def codegen(context, builder, signature, args):
        address = _address(context, builder, array, *args[:2])
        written = builder.store(args[2], builder.bitcast(address, args[2].type.as_pointer()))
        written.align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic(prefer_literal=True)
def fill(typingctx, x, n):
    def codegen(context, builder, signature, args):
        return _filled(context, builder, signature, args[0])

    return Lanes(x, n.literal_value)(x, n), codegen


@intrinsic(prefer_literal=True)
def spread(typingctx, array, index, n):
    def codegen(context, builder, signature, args):
        return _filled(context, builder, signature, builder.load(_address(context, builder, array, *args[:2])))

    return Lanes(array.dtype, n.literal_value)(array, types.intp, n), codegen


def _filled(context, builder, signature, number):
    vector = context.get_value_type(signature.return_type)
    nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(builder.insert_element(nothing, number, first), nothing, everywhere)


@intrinsic
def mul(typingctx, a, b):
    def codegen(context, builder, signature, args):
        return builder.fmul(*args)

    return a(a, b), codegen


@intrinsic
def fma(typingctx, a, b, c):
    def codegen(context, builder, signature, args):
        kind = args[0].type
        name = f"llvm.fmuladd.v{kind.count}{kind.element.intrinsic_name}"
        return builder.call(get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name), args)

    return a(a, b, c), codegen


@intrinsic
def total(typingctx, a):
    def codegen(context, builder, signature, args):
        kind = args[0].type
        name = f"llvm.vector.reduce.fadd.v{kind.count}{kind.element.intrinsic_name}"
        function = ir.FunctionType(kind.element, [kind.element, kind])
        zero = ir.Constant(kind.element, 0.0)
        called = get_or_insert_function(builder.module, function, name)
        return builder.call(called, [zero, args[0]], fastmath=("reassoc",))

    return a.dtype(a), codegen


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that begins at a cache line."""
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in such an array."""
    copy = empty(array.shape, dtype)
    copy[...] = array
    return copy


def lanes_of(dtype, *widths: int) -> int:
    """How many elements a vector may have, so that whole ones make up each of the widths."""
    return gcd(COUNT[dtype.name], *widths)
