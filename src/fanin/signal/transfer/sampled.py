"""What has no rule: the operation is run on arrays drawn from the incoming states."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from fanin.errors import NotCoveredError
from fanin.signal.draws import JOINT, draws, run
from fanin.signal.joint import measured, sample
from fanin.signal.state import State
from fanin.signal.table import Table
from fanin.signal.transfer.call import Call, Gradients

_DRAWS = 8
_LARGEST = 1 << 24  # elements of an operand that is drawn whole
_PROFILE = 1 << 10  # elements along an axis that are told apart
_RANKED = ("sort", "topk", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")


def joint(call: Call) -> bool:
    """Whether an operation is small enough to be drawn whole, with what made its operands."""
    sizes = [call.graph.values[i].size for i in (*call.node.inputs, *call.node.outputs)]
    return call.node.kernel is not None and max(sizes) <= JOINT // 8


def refuse(call: Call, why: str) -> NotCoveredError:
    """The error for an operation that can neither be derived nor run."""
    return NotCoveredError(
        f"signal of {call.node.op} in {call.node.path or 'the model'}",
        expected="an operation with a transfer rule, or one that can be run on samples",
        got=why,
        fix="register a rule with fanin.signal.transfer.forward(name)",
    )


def sampled(call: Call) -> list[State]:
    """The states of the outputs, measured on draws of the inputs.

    The standard error is that of the second moment over the draws, relative.
    """
    if call.node.kernel is None:
        raise refuse(call, "no rule and no kernel")
    largest = max((prod(s.shape) for s in call.operands), default=0)
    if largest > _LARGEST:
        raise refuse(call, f"operands of more than {_LARGEST} elements")
    count, kept = _draws(largest), draws(call.graph)
    with np.errstate(all="ignore"):
        operands = [kept.values(call, i, count) for i in call.node.inputs]
        results = run(call.node, operands, count)
    return [_measured(call, i, list(r)) for i, r in enumerate(results)]


def _draws(elements: int) -> int:
    """Number of draws: more of small tensors."""
    return int(np.clip((1 << 18) // max(elements, 1), 2, 4 * _DRAWS))


def _measured(call: Call, position: int, results: Sequence[np.ndarray]) -> State:
    """The state of one output from its draws."""
    value = call.output(position)
    finite = [np.nan_to_num(np.asarray(r, dtype=float), posinf=0.0, neginf=0.0) for r in results]
    shape = value.shape
    if any(r.shape != shape for r in finite):  # a shape that depends on the data
        mean = float(np.mean([r.mean() for r in finite if r.size] or [0.0]))
        second = float(np.mean([(r**2).mean() for r in finite if r.size] or [0.0]))
        table = Table.iid(shape, mean, second)
    else:
        table = measured(np.stack(finite), _uneven(call, position))
    levels = [float((r**2).mean()) if r.size else 0.0 for r in finite]
    error = float(np.std(levels) / np.sqrt(len(levels)) / max(np.mean(levels), 1e-300))
    low = min((float(r.min()) for r in finite if r.size), default=0.0)
    data = None if value.floating or np.shape(results[0]) != shape else np.asarray(results[0])
    return State(
        table, f"sampled ± {error:.1%}", call.token(position), nonnegative=low >= 0,
        roots=call.roots, data=data,
    )  # fmt: skip


def _uneven(call: Call, position: int) -> tuple[int, ...]:
    """The axes of an output along which its elements are not alike: ranks, steps so far."""
    if call.node.name in _RANKED:
        shape = call.output(position).shape
        axis = call.node["dim"] % max(len(shape), 1)
        return (axis,) if shape and shape[axis] <= _PROFILE else ()
    recurrent = call.node.name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    if not recurrent or position or len(call.output(0).shape) != 3:
        return ()
    return (1,) if call.node.get("batch_first") else (0,)


def averaged_tables(tables: Sequence[Table]) -> Table:
    """The average of tables of one layout, from as many draws."""
    mean, pairs = (np.mean([getattr(t, n) for t in tables], axis=0) for n in ("mean", "pairs"))
    return Table(tables[0].dims, mean, pairs)


def sampled_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    """Gradients of the inputs from the operation's own derivative, on draws of both."""
    if call.node.kernel is None:
        raise refuse(call, "no backward rule and no kernel")
    largest = max((prod(s.shape) for s in call.operands), default=0)
    generator = call.generator()
    found: dict[int, list[Table]] = {}
    count = max(_draws(largest) // 2, 2)
    operands = [draws(call.graph).values(call, i, count) for i in call.node.inputs]
    for place in range(count):
        arrays = [o[place] for o in operands]
        cotangents = [
            None if g is None else sample(g, generator).reshape(call.output(i).shape)
            for i, g in enumerate(grads)
        ]
        backs: dict[int, np.ndarray] = {}
        pulled = call.node.kernel.vjp(arrays, cotangents)
        for index, back in zip(call.node.inputs, pulled, strict=True):
            if back is not None and call.graph.values[index].floating:
                backs[index] = backs.get(index, 0.0) + np.nan_to_num(back)
        for index, whole in backs.items():
            found.setdefault(index, []).append(Table.measured(whole))
    for index, tables in found.items():
        yield index, averaged_tables(tables)
