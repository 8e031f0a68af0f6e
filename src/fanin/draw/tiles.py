"""A tile of a matrix product that stays in registers, in LLVM's own language.

Every element adds its products one after the other, and products and sums are rounded apart: the
bits are those of plain loops. Of plain loops LLVM makes vectors too, but it loads and stores the
sums again for every few products.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

VECTOR = 32  # bytes; a processor with shorter vectors takes several
WIDTH = 2 * VECTOR  # bytes in a row of a tile
HEIGHT = 4  # rows: so many sums hide the time that an addition takes


@intrinsic  # type: ignore[untyped-decorator]
def place(typing: Any, matrix: Any, i: Any, j: Any) -> Any:
    """The address of an element of a matrix."""
    signature = types.CPointer(matrix.dtype)(matrix, types.intp, types.intp)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0]
        made = context.make_array(kind)(context, builder, values[0])
        return cgutils.get_item_pointer(context, builder, kind, made, values[1:])

    return signature, generate


def _tile(height: int) -> Any:
    """c[height, WIDTH] += a[height, length] b[length, WIDTH], in the order of length > 0.

    The intrinsic takes three addresses, the length, and the elements from row to row of each.
    """

    def tile(typing: Any, c: Any, a: Any, b: Any, length: Any, nc: Any, na: Any, nb: Any) -> Any:
        signature = types.void(c, a, b, *(types.intp,) * 4)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            _write_loop(builder, height, *values)
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(tile)


def _write_loop(
    to: Any, height: int, c: Any, a: Any, b: Any, length: Any, nc: Any, na: Any, nb: Any
) -> None:
    """Load the tile of c, add `length` products to each of its elements, and store it."""
    scalar, number = c.type.pointee, length.type
    size = 4 if isinstance(scalar, ir.FloatType) else 8
    vector = ir.VectorType(scalar, VECTOR // size)
    zero, one = ir.Constant(number, 0), ir.Constant(number, 1)

    def row(base: Any, i: Any, step: Any) -> Any:
        return to.gep(base, [to.mul(i, step)])

    def vectors(base: Any) -> list[Any]:
        starts = [
            to.gep(base, [ir.Constant(number, i)]) for i in range(0, WIDTH // size, VECTOR // size)
        ]
        return [to.bitcast(start, vector.as_pointer()) for start in starts]

    def repeated(address: Any) -> Any:
        lane, lanes = ir.IntType(32), ir.VectorType(ir.IntType(32), vector.count)
        alone = to.insert_element(ir.Constant(vector, ir.Undefined), to.load(address), lane(0))
        return to.shuffle_vector(alone, ir.Constant(vector, ir.Undefined), ir.Constant(lanes, None))

    rows = [ir.Constant(number, i) for i in range(height)]
    targets = [v for i in rows for v in vectors(row(c, i, nc))]
    factors = [row(a, i, na) for i in rows]
    before = [to.load(address, align=size) for address in targets]
    entry, loop, done = to.block, to.append_basic_block("k"), to.append_basic_block("done")
    to.branch(loop)
    to.position_at_end(loop)
    k = to.phi(number)
    sums = [to.phi(vector) for _ in targets]
    others = [to.load(address, align=size) for address in vectors(row(b, k, nb))]
    products = [to.fmul(repeated(to.gep(factor, [k])), x) for factor in factors for x in others]
    after = [to.fadd(s, p) for s, p in zip(sums, products, strict=True)]
    following = to.add(k, one)
    for phi, start, end in zip([k, *sums], [zero, *before], [following, *after], strict=True):
        phi.add_incoming(start, entry)
        phi.add_incoming(end, loop)
    to.cbranch(to.icmp_signed("<", following, length), loop, done)
    to.position_at_end(done)
    for value, address in zip(after, targets, strict=True):
        to.store(value, address, align=size)


tile, tile_of_one_row = _tile(HEIGHT), _tile(1)
