"""What has no rule: the operation is run on arrays drawn from the incoming states."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from fanin.errors import NotCoveredError
from fanin.signal.graph import Value
from fanin.signal.state import State, law
from fanin.signal.table import Table
from fanin.signal.transfer.call import Call, Gradients

_DRAWS = 8
_LARGEST = 1 << 24


def _array(state: State, value: Value, generator: np.random.Generator) -> np.ndarray:
    """One draw of an operand, in its own shape and kind."""
    if state.data is not None:
        return np.asarray(state.data)
    latent, function, _, _ = law(state)
    x = latent.sample(generator)
    x = x if function is None else np.asarray(function(x))
    x = x.reshape(state.shape)
    if state.allowed is not None:
        x = np.where(np.broadcast_to(state.allowed.keep, x.shape), x, state.allowed.fill)
    if value.floating:
        return x
    return x > 0.5 if value.dtype == "bool" else np.rint(x).astype(value.dtype)


def _operands(call: Call, generator: np.random.Generator) -> list[np.ndarray]:
    """One draw of all operands; a tensor that is read twice is drawn once."""
    drawn: dict[int, np.ndarray] = {}
    for index in call.node.inputs:
        if index not in drawn:
            drawn[index] = _array(call.states[index], call.graph.values[index], generator)
    return [drawn[i] for i in call.node.inputs]


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
    if max((prod(s.shape) for s in call.operands), default=0) > _LARGEST:
        raise refuse(call, f"operands of more than {_LARGEST} elements")
    generator = call.generator()
    draws = _DRAWS if max((prod(s.shape) for s in call.operands), default=0) < 1 << 20 else 2
    runs = []
    for _ in range(draws):
        with np.errstate(all="ignore"):
            runs.append(call.node.kernel(*_operands(call, generator)))
    return [
        _measured(call, position, [r[position] for r in runs])
        for position in range(len(call.node.outputs))
    ]


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
        tables = [Table.measured(r) for r in finite]
        table = Table(
            tables[0].dims,
            np.mean([t.mean for t in tables], axis=0),
            np.mean([t.pairs for t in tables], axis=0),
        )
    levels = [float((r**2).mean()) if r.size else 0.0 for r in finite]
    error = float(np.std(levels) / np.sqrt(len(levels)) / max(np.mean(levels), 1e-300))
    low = min((float(r.min()) for r in finite if r.size), default=0.0)
    data = None if value.floating or np.shape(results[0]) != shape else np.asarray(results[0])
    return State(
        table, f"sampled ± {error:.1%}", call.token(position), nonnegative=low >= 0,
        roots=call.roots, data=data,
    )  # fmt: skip


def sampled_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    """Gradients of the inputs from the operation's own derivative, on draws of both."""
    if call.node.kernel is None:
        raise refuse(call, "no backward rule and no kernel")
    generator = call.generator()
    found: dict[int, list[Table]] = {}
    for _ in range(_DRAWS // 2):
        arrays = _operands(call, generator)
        cotangents = [
            None if g is None else g.sample(generator).reshape(call.output(i).shape)
            for i, g in enumerate(grads)
        ]
        for index, back in zip(
            call.node.inputs, call.node.kernel.vjp(arrays, cotangents), strict=True
        ):
            if back is not None and call.graph.values[index].floating:
                found.setdefault(index, []).append(Table.measured(np.nan_to_num(back)))
    for index, tables in found.items():
        mean, pairs = (np.mean([getattr(t, n) for t in tables], axis=0) for n in ("mean", "pairs"))
        yield index, Table(tables[0].dims, mean, pairs)
