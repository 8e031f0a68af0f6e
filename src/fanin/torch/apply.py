"""Plans for torch models: made from a trace, and written once, completely or not at all."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from fanin import draw
from fanin.draw.fill import kernels_for
from fanin.errors import ArgumentError, ArgumentTypeError, PlanError
from fanin.planning.plan import Centre, Mirrored, Plan, Row, Stack
from fanin.planning.solve import solve
from fanin.signal.graph import Graph
from fanin.signal.spec import Spec
from fanin.torch.present import Held, constants, kept, present
from fanin.torch.slots import fixes_scale, refuse, submodule, writable
from fanin.torch.tracing.modules import is_lazy, named_tensors, original
from fanin.torch.tracing.trace import Inputs, trace
from fanin.torch.writing.centring import centre_
from fanin.torch.writing.held import held_interrupts
from fanin.torch.writing.materialize import wrapper_notes
from fanin.torch.writing.progress import progress
from fanin.torch.writing.seeds import seed_of
from fanin.torch.writing.undo import Undo
from fanin.torch.writing.write import refuse_placeholder, refuse_values, write_

_UNSEEN = (
    "on meta: what the model sets itself (zero starts, priors, codes of positions) is not seen and "
    "has rows like any other; init_ leaves it on a model in memory"
)


def plan(model: nn.Module, inputs: Inputs, rule: object = "auto") -> Plan:
    r"""What each parameter of a model should be before the first step, and why; nothing is touched.

    *Definition*: the model is traced on these inputs; the signal goes forward through the graph,
    and each weight is decided when it is reached, by the rule and by what the weight reads.

    Args:
        model: any module, on any device, on meta too.
        inputs: a tensor, a tuple, a dict, or `fanin.spec`s in their place.
        rule: "auto"; a rule of `fanin.theory.rules`; a recipe ("gpt2", ...); a distribution; or an
            ordered mapping of glob patterns to these, of which the first match decides.

    Returns:
        The plan: a row for every parameter and buffer.

    Raises:
        TraceError: the model does not run on these inputs.
        ArgumentError: inputs without a sample, or with a nan or inf.
        UnknownNameError: no such rule.
        PlanError: a pattern that matches nothing.

    Example:
        >>> made = plan(nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 4)),
        ...             Spec((8, 64)), rule="second_moment")
        >>> round(made["0.weight"].std * 8, 3), made["2.weight"].role
        (1.0, 'head')
    """
    inner = original(model, "plan(model)")
    made = _planned(inner, inputs, rule, kept(inner))
    unseen = (_UNSEEN,) if any(p.is_meta for p in inner.parameters()) else ()
    return replace(made, notes=made.notes + wrapper_notes(model) + unseen)


def init_(
    model: nn.Module,
    inputs: Inputs,
    rule: object = "auto",
    seed: int = 0,
    *,
    generator: torch.Generator | None = None,
    only_missing: bool | Iterable[str] = False,
) -> Plan:
    """Plan a model's weights and write them.

    *Definition*: `apply_(model, plan(model, inputs, rule), seed)`. The value of a weight depends on
    (seed, its name, the position in it) alone; torch's random state is left as it was.

    Args:
        model: any module with its tensors in memory; lazy modules are written at their first
            forward.
        inputs: a tensor, a tuple, a dict, or `fanin.spec`s in their place.
        rule: as for `plan`.
        seed: an integer in [0, 2^64).
        generator: where the seed is taken from instead, as one integer of 63 bits.
        only_missing: leave loaded tensors as they are: the names that `load_state_dict` reported
            missing, or True to tell by marks and by what was written since the model was built.

    Returns:
        The plan that was written, with the seed in it.

    Raises:
        UninitializedError: a tensor on meta, or a placeholder without elements.
        PlanError: the plan does not fit the model. The model is then as it was.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> made = init_(net, Spec((8, 64)), seed=1)
        >>> round(float(net[0].weight.detach().std() / made["0.weight"].std), 1)
        1.0
    """
    notes, model = wrapper_notes(model), original(model, "init_(model)")
    seed = seed_of("init_", seed, generator)
    keep = kept(model)
    if only_missing is not False:
        keep = {**keep, **present(model, only_missing)}
    _check_memory(model)
    made = _planned(model, inputs, rule, keep)
    return apply_(model, replace(made, notes=made.notes + notes), seed)


def _planned(model: nn.Module, inputs: Inputs, rule: object, keep: Mapping[str, str]) -> Plan:
    """Trace and solve."""
    _check_inputs(inputs)
    graph = trace(model, inputs)
    given = _given(graph, inputs)
    return solve(
        graph, rule, inputs=given, keep=keep, constants=constants(model), values=Held(model)
    )


def _check_inputs(inputs: Inputs) -> None:
    """Refuse data that says nothing: no sample at all, or numbers that are none.

    Minus infinity is what masks are made of.
    """
    found = tree_flatten_with_path(inputs)[0]
    tensors = {keystr(key): t for key, t in found if isinstance(t, torch.Tensor)}
    if tensors and all(t.numel() == 0 for t in tensors.values()):
        key, tensor = next(iter(tensors.items()))
        raise ArgumentError(
            f"inputs{key}", expected="at least one sample", got=f"shape {tuple(tensor.shape)}"
        )
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        bad = int((tensor.isnan() | tensor.isposinf()).sum())
        if bad:
            raise ArgumentError(
                f"inputs{key}",
                expected="finite numbers",
                got=f"{bad} of {tensor.numel()} that are nan or inf",
                fix="clean them, or give a fanin.spec in their place",
            )


def _given(graph: Graph, inputs: Inputs) -> dict[str, Any]:
    """The inputs by the names that the graph gives them: arrays where there is data, else specs."""
    leaves = [i for i in tree_leaves(inputs) if isinstance(i, torch.Tensor | Spec)]
    given: dict[str, Any] = {}
    for index, leaf in zip(graph.inputs, leaves, strict=False):
        value = graph.values[index]
        if isinstance(leaf, Spec):
            given[value.name] = leaf
        elif not leaf.is_meta and value.data is None:
            plain = leaf.detach().cpu()
            narrow = plain.dtype in (torch.bfloat16, torch.float16)
            given[value.name] = np.asarray((plain.float() if narrow else plain).numpy())
    return given


def apply_(
    model: nn.Module,
    plan: Plan,
    seed: int | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Plan:
    """Write a plan into a model: every row that has values, tied tensors once, biases last.

    *Definition*: row r is drawn from `draw` with (seed, r.path), through its parametrization where
    it has one; a centred bias then subtracts its mean times the row sums of the weight as stored.

    Args:
        model: the model of the plan, on any device; its tensors are in memory.
        plan: made for it, or loaded.
        seed: an integer in [0, 2^64); the one that the plan records, or 0, if not given.
        generator: where the seed is taken from instead, as one integer of 63 bits.

    Returns:
        The plan, with the seed in it.

    Raises:
        PlanError: a tensor of the plan is missing or has another shape, or a tensor of the model is
            not in the plan.
        UninitializedError: a tensor on meta, or a placeholder without elements.
        NotCoveredError: a parametrization that cannot take values.
        All are found before anything is written, or what was written is put back.

    An interrupt waits until all is written; a second one does not wait. Whatever else ends the
    writing, a lack of memory above all: tensors of 64 MiB together are put back. Of larger models
    the tensors that need memory to be drawn go first, and the first of them is put back; after
    that the error carries a note that some have new values.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> row = Row("weight", (2, 4), "head", "given", "as asked", draw.Constant(0.5))
        >>> kept = Row("bias", (2,), "bias", "left alone", "as asked")
        >>> _ = apply_(net, Plan((row, kept), rule="given"))
        >>> net.weight.sum().item()
        4.0
    """
    model = original(model, "apply_(model)")
    seed = seed_of("apply_", seed, generator, plan)
    _check(model, plan)
    written = [row for row in sorted(plan.rows, key=_turn) if row.values is not None]
    memory = {row.path: _memory(model, row) for row in written}
    later = [row for row in written if memory[row.path] is None]
    now = [row for row in written if memory[row.path] is not None]
    undo, elements = Undo(sum(n or 0 for n in memory.values())), sum(map(_size, now))
    kernels_for(elements)  # many small tensors together are worth the import
    with torch.no_grad(), held_interrupts(), progress(elements) as advance, undo:
        for row in now:
            old, must = functools.partial(_old_values, model, row), row.kind == "parametrized"
            with undo.writing(old, must=must, may_fail=_needs_room(row)):
                _write(model, row, seed)
            advance(_size(row))
    for path in dict.fromkeys(row.path.rpartition(".")[0] for row in later):
        rows = [row for row in later if row.path.rpartition(".")[0] == path]
        AtFirstForward(model, path, rows, seed)
    return replace(plan, seed=seed)


class AtFirstForward:
    """A hook that writes the rows of a lazy module once it knows its shapes, and then goes."""

    def __init__(self, model: nn.Module, path: str, rows: list[Row], seed: int) -> None:
        self.model, self.rows, self.seed = model, rows, seed
        self.handle = model.get_submodule(path).register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: object) -> None:
        self.handle.remove()
        with torch.no_grad():
            for row in self.rows:
                _fits(self.model, row)
                _write(self.model, row, self.seed)


def _write(model: nn.Module, row: Row, seed: int) -> None:
    """Draw one row into its tensor."""
    owner, name = _owner(model, row.path)
    with writable(owner, name, scale_fixed=fixes_scale(owner, name)) as tensor:
        assert row.values is not None
        write_(tensor, row.values, seed=seed, name=row.path)
        if row.centre is not None:
            own = row.centre.weight == row.path
            centre_(tensor, row.centre, None if own else _tensor(model, row.centre.weight))


# --- before anything is written -----------------------------------------------------------------


def _check_memory(model: nn.Module) -> None:
    """Refuse what has no memory before a long plan is made."""
    for named in named_tensors(model):
        if named.kind == "parameter" and not is_lazy(named.tensor):
            tensor = named.tensor
            if tensor.is_meta or (tensor.numel() == 0 and tensor.dim() == 1):
                refuse(f"init_: {named.names[0]}", tensor.detach() if tensor.is_meta else tensor)


def _check(model: nn.Module, plan: Plan) -> None:
    """Whether the plan is of this model, and all that it writes can be written."""
    if not isinstance(plan, Plan):
        raise ArgumentTypeError(
            "apply_(plan)",
            expected="a Plan",
            got=type(plan).__name__,
            fix="make one with fanin.plan, or read a file with fanin.load_plan",
        )
    names = {n for t in named_tensors(model) for n in t.names}
    planned = {n for row in plan.rows for n in (row.path, *row.names)}
    unplanned = sorted(names - planned)
    if unplanned:
        raise PlanError(
            f"apply_: {unplanned[0]}",
            expected="a row for every tensor of the model",
            got=f"none for {len(unplanned)} of them",
            fix="make the plan from this model",
        )
    known: set[object] = set()
    for row in plan.rows:
        tensor = _fits(model, row) if row.values is not None else None
        if tensor is None or row.values is None:
            continue
        kind = tensor.dtype, row.shape, row.values, getattr(tensor, "placements", None)
        if kind not in known:
            refuse_values(f"apply_: {row.path}", tensor.detach(), row.values)
            known.add(kind)
        if row.kind == "parameter":
            refuse_placeholder(f"apply_: {row.path}", tensor.detach())


def _fits(model: nn.Module, row: Row) -> torch.Tensor | None:
    """A row's tensor, which is there, of its shape and writable; None where it is lazy."""
    try:
        tensor = _tensor(model, row.path)
    except AttributeError:
        raise PlanError(
            f"apply_: {row.path}", expected="a tensor of the model", got="none"
        ) from None
    if is_lazy(tensor):
        return None
    if hasattr(tensor, "ds_shape"):
        refuse(f"apply_: {row.path}", tensor)
    if tuple(tensor.shape) != row.shape:
        raise PlanError(
            f"apply_: {row.path}",
            expected=f"shape {row.shape}",
            got=str(tuple(tensor.shape)),
            fix="make the plan from this model",
        )
    if tensor.numel() or tensor.is_meta:
        refuse(f"apply_: {row.path}", tensor.detach())
    if isinstance(row.values, Stack):
        rows = sum(n for n, _ in row.values.blocks)
        if rows != row.shape[0]:
            raise PlanError(
                f"apply_: {row.path}", expected=f"blocks of {row.shape[0]} rows", got=str(rows)
            )
    elif isinstance(row.values, Mirrored) and not row.values.fits(row.shape):
        raise PlanError(
            f"apply_: {row.path}",
            expected=f"a shape of pairs along {row.values.pairs}",
            got=f"shape {row.shape}",
        )
    elif isinstance(row.values, draw.Orthogonal | draw.DeltaOrthogonal):
        batch = row.values.batch_dims if isinstance(row.values, draw.Orthogonal) else 0
        if len(row.shape) < batch + 2:
            raise PlanError(f"apply_: {row.path}", expected="a matrix", got=f"shape {row.shape}")
    if row.centre is not None:
        _centre_fits(model, row, row.centre)
    return tensor


def _centre_fits(model: nn.Module, row: Row, centre: Centre) -> None:
    """Whether what a row's centre asks can be done, which is tried without memory."""
    where = f"apply_: {row.path}"
    try:
        weight = _tensor(model, centre.weight)
    except AttributeError:
        raise PlanError(
            where, expected=f"the weight {centre.weight} that it centres", got="none"
        ) from None
    if is_lazy(weight):
        return
    own, of = (torch.empty(tuple(s), device="meta") for s in (row.shape, weight.shape))
    try:
        centre_(own, centre, None if centre.weight == row.path else of)
    except Exception as error:  # whatever axes, groups and parts of another layer lead to
        raise PlanError(
            where,
            expected=f"a centre that fits {centre.weight} of shape {tuple(weight.shape)}",
            got=" ".join(str(error).split())[:200],
            fix="make the plan from this model",
        ) from error


def _turn(row: Row) -> tuple[bool, bool, int]:
    """When a row is written: what can fail goes first, what reads another row goes last."""
    reads = row.centre is not None and row.centre.weight != row.path
    return reads, row.kind != "parametrized", -_size(row) if _needs_room(row) else 1


def _needs_room(row: Row) -> bool:
    """Whether more memory than a few pages is needed beside the tensor while it is written."""
    own = row.centre is not None and row.centre.weight == row.path
    return own or isinstance(row.values, draw.Orthogonal | draw.DeltaOrthogonal | Mirrored)


def _size(row: Row) -> int:
    return math.prod(row.shape)


def _memory(model: nn.Module, row: Row) -> int | None:
    """Bytes of what a row writes; None where it is lazy."""
    tensor = _tensor(model, row.path)
    return None if is_lazy(tensor) else tensor.nbytes


def _owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module of a tensor and its name there."""
    owner, _, name = path.rpartition(".")
    return submodule(model, owner), name


def _tensor(model: nn.Module, path: str) -> torch.Tensor:
    """A parameter, or a weight as its parametrization computes it."""
    owner, name = _owner(model, path)
    tensor = getattr(owner, name)
    if not isinstance(tensor, torch.Tensor):
        raise AttributeError(path)
    return tensor


def _old_values(model: nn.Module, row: Row) -> Callable[[], object]:
    """Copy what writing a row changes; the result puts it back."""
    owner, name = _owner(model, row.path)
    if row.kind == "parametrized":
        state = {key: tensor.clone() for key, tensor in owner.state_dict().items()}
        return lambda: owner.load_state_dict(state)
    tensor = getattr(owner, name).detach()
    old = tensor.clone()
    return lambda: tensor.copy_(old)
