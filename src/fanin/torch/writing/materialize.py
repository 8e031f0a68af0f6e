"""From the meta device to memory: every tensor gets its values, or the call is an error."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from fanin.draw import canonical_name
from fanin.errors import ArgumentError, ArgumentTypeError, PlanError, UninitializedError
from fanin.planning.names import near
from fanin.planning.plan import Centre, Plan, Values
from fanin.torch.tracing.trace import Inputs
from fanin.torch.writing.centring import centre_
from fanin.torch.writing.computed import Computed, class_of, computed, plain
from fanin.torch.writing.progress import progress
from fanin.torch.writing.rebuild import rebuilt
from fanin.torch.writing.resetting import reset, resetter
from fanin.torch.writing.seeds import seed_of
from fanin.torch.writing.shard import local, regions
from fanin.torch.writing.write import refuse_placeholder, write_

Source = Plan | Mapping[str, Values] | None
Chosen = Mapping[str, tuple[Values, str, Centre | None]]  # what, of which stream, less what


@dataclass
class Slot:
    """One tensor that has no memory yet, in every place of the model where it stands.

    Attributes:
        name: its first name in the model, without wrappers' parts.
        places: modules, and the key in each, that share it.
        meta: the tensor without memory.
        buffer: whether it is a buffer.
        names: every name that reaches it.
    """

    name: str
    places: list[tuple[nn.Module, str]]
    meta: torch.Tensor
    buffer: bool
    names: list[str] = field(default_factory=list)

    @property
    def tensor(self) -> torch.Tensor:
        """What stands in the model now."""
        module, key = self.places[0]
        found = (module._buffers if self.buffer else module._parameters)[key]
        assert found is not None
        return found

    def put(self, tensor: torch.Tensor) -> None:
        """Put one tensor in every place."""
        for module, key in self.places:
            (module._buffers if self.buffer else module._parameters)[key] = tensor


class Beside(Slot):
    """A weight that a parametrization computes; its values wait beside the model."""

    def __init__(self, weight: Computed) -> None:
        self.weight, self.value = weight, weight.like()
        super().__init__(
            weight.name, [(weight.module, weight.key)], self.value, False, [weight.name]
        )

    @property
    def tensor(self) -> torch.Tensor:
        """The values that it will have."""
        return self.value

    def put(self, tensor: torch.Tensor) -> None:
        """Keep its values; the model is not touched."""
        self.value = tensor.detach()


@dataclass(frozen=True)
class Materialized:
    """Where the values of each tensor came from, by name.

    Attributes:
        sources: for each tensor what gave it its values.
        seed: of the streams.
        notes: what the reader must know, as which parts of names do not count.

    Example:
        >>> print(Materialized({"fc.weight": "Normal(mean=0.0, std=0.5)"}))
        fc.weight  Normal(mean=0.0, std=0.5)
    """

    sources: Mapping[str, str]
    seed: int = 0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        width = max((len(name) for name in self.sources), default=0)
        lines = [f"{name:<{width}}  {source}" for name, source in self.sources.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def materialize_(
    model: nn.Module,
    device: torch.device | str = "cpu",
    plan: Source = None,
    seed: int | None = None,
    *,
    inputs: Inputs | None = None,
    rule: object = "auto",
    generator: torch.Generator | None = None,
    rename: Callable[[str], str] | None = None,
) -> Materialized:
    """Give every tensor of a model that is on the meta device memory and its values.

    A tensor that the plan names is drawn as the plan says. The others get what their module's own
    `reset_parameters` gives them, with the same distributions, drawn from streams by name; what
    that leaves open, such as frequency tables, is had back by constructing the module again, if its
    arguments are still known. A parametrized weight is drawn and assigned through its
    parametrization. Tensors that already have memory stay as they are. Sharded tensors
    (DTensor, FSDP2) are drawn in place, each rank its own part, before or after
    `fully_shard`. If anything is left without a value, the model stays as it was.

    Args:
        model: with parameters or buffers on meta.
        device: where they go; for sharded tensors, the type of their mesh (or "cpu" under CPU
            offload).
        plan: a `Plan`, or distributions by name or pattern (the first that matches counts), or
            None for the modules' own.
        seed: of the streams, in [0, 2^64); the one that the plan records, or 0, if not given.
        inputs: in place of a plan, what `fanin.plan(model, inputs, rule)` takes to make one; the
            model is not sharded then.
        rule: for `inputs`.
        generator: where the seed is taken from instead, as one integer of 63 bits.
        rename: from a name here to the name in the whole model, for pipeline stages whose layers
            are numbered anew.

    Returns:
        For each tensor where its values came from.

    Raises:
        UninitializedError: tensors that nothing gives a value, with the class that owns them.
        PlanError: a name or pattern that matches no tensor of the model.
        NotCoveredError: a parametrization that does not run on meta, or is sharded.
        ArgumentError: nothing is on meta; both a plan and inputs; both a seed and a generator.

    Example:
        >>> from fanin import draw
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))
        >>> print(materialize_(model, plan={"0.weight": draw.Normal(std=0.5)}))
        0.weight  Normal(mean=0.0, std=0.5)
        0.bias    Linear.reset_parameters
        1.weight  LayerNorm.reset_parameters
        1.bias    LayerNorm.reset_parameters
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(
            "materialize_(model)", expected="an nn.Module", got=type(model).__name__
        )
    seed = seed_of("materialize_", seed, generator, plan)
    _check_device(device)
    tensors = [t._replace(name=(rename or str)(t.name)) for t in _tensors(model)]
    slots = _slots(t for t in tensors if local(t.tensor).is_meta)
    if tensors and not slots:
        raise ArgumentError(
            "materialize_(model)",
            expected="a model with tensors on the meta device",
            got="one whose tensors all have memory",
            fix="use fanin.init_ to initialise it",
        )
    if inputs is not None:
        plan = _planned(model, plan, inputs, rule)
    modules = dict(model.named_modules())
    weights = [w.renamed(rename or str) for w in computed(modules)]
    _check_patterns(plan, [t.name for t in tensors] + [w.name for w in weights])
    spared = [t.tensor for t in tensors if not local(t.tensor).is_meta]
    sources = _fill(modules, slots, plan, device, seed, weights, spared)
    return Materialized(sources, seed, wrapper_notes(model))


def fill_own_(
    module: nn.Module, path: str, plan: Source, device: torch.device | str | None, seed: int
) -> None:
    """`materialize_` for the tensors of one module without its children.

    Its reset may write its children too, as attentions do; not what the plan says of them.

    Args:
        module: the module; what belongs to a parametrization is filled with its layer.
        path: its path in the whole model.
        plan: of the whole model.
        device: where the tensors go; None for tensors that have memory, which are written again.
        seed: of the streams.
    """
    if "parametrizations" in path.split("."):
        return
    tensors = list(_tensors(module, path, recurse=False))
    modules = {path: module}
    if isinstance(lists := getattr(module, "parametrizations", None), nn.ModuleDict):
        below = f"{path}.parametrizations" if path else "parametrizations"
        tensors += _tensors(lists, below)
        modules |= dict(lists.named_modules(prefix=below))
    slots = _slots(t for t in tensors if device is None or local(t.tensor).is_meta)
    children = (t for t in _tensors(module, path) if t.module is not module)
    filled = _slots(t for t in children if not local(t.tensor).is_meta)
    planned = _chosen(plan, filled)
    spared = [slot.tensor for slot in filled if slot.name in planned]
    _fill(modules, slots, plan, device, seed, list(computed({path: module})), spared)


def _check_device(device: object) -> None:
    """Refuse what is no device with memory."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type == "meta":
        raise ArgumentError(
            "materialize_(device)", expected="a device with memory, as 'cpu'", got=repr(device)
        )


def _planned(model: nn.Module, plan: Source, inputs: Inputs, rule: object) -> Plan:
    """The plan that inputs make, where none is given beside them."""
    if plan is not None:
        raise ArgumentError(
            "materialize_(plan, inputs)", expected="one of the two", got="a plan and inputs"
        )
    from fanin.torch.apply import plan as make  # `apply` writes through this room

    return make(model, inputs, rule)


def wrapper_notes(model: object) -> tuple[str, ...]:
    """That wrappers' parts of names do not count, where there are any."""
    if not isinstance(model, nn.Module):
        return ()
    names = [n for n, _ in (*model.named_parameters(), *model.named_buffers())]
    changed = [n for n in names if canonical_name(n) != n]
    if not changed:
        return ()
    example = f"{changed[0]} is {canonical_name(changed[0])}"
    return (f"names are those without a wrapper's parts: {example}",)


class _Entry(NamedTuple):
    """One tensor in one place of a model."""

    name: str
    module: nn.Module
    key: str
    tensor: torch.Tensor
    buffer: bool


def _tensors(model: nn.Module, prefix: str = "", recurse: bool = True) -> Iterator[_Entry]:
    """Every tensor in every place."""
    for path, module in model.named_modules(prefix=prefix) if recurse else [(prefix, model)]:
        for buffer, entries in ((False, module._parameters), (True, module._buffers)):
            for key, tensor in entries.items():
                if tensor is not None:
                    name = canonical_name(f"{path}.{key}" if path else key)
                    _refuse_shapeless(name, module, tensor)
                    yield _Entry(name, module, key, tensor, buffer)


def _refuse_shapeless(name: str, module: nn.Module, tensor: torch.Tensor) -> None:
    """Raise for a tensor that stands for another, of a shape that it does not have yet."""
    where = f"materialize_({name})"
    if hasattr(tensor, "ds_shape"):
        refuse_placeholder(where, tensor)
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
        raise UninitializedError(
            where,
            expected="a tensor with a shape",
            got=f"a lazy one of {type(module).__name__}",
            fix="run one forward pass first",
        )


def _slots(entries: Iterable[_Entry]) -> list[Slot]:
    """The tensors, each once."""
    found: dict[int, Slot] = {}
    for name, module, key, tensor, buffer in entries:
        slot = found.setdefault(id(tensor), Slot(name, [], tensor, buffer))
        slot.places.append((module, key))
        slot.names.append(name)
    return list(found.values())


def _check_patterns(plan: Source, known: list[str]) -> None:
    """Refuse a plan of another kind, and a pattern that matches nothing."""
    if plan is None or isinstance(plan, Plan):
        return
    if not isinstance(plan, Mapping):
        raise ArgumentTypeError(
            "materialize_(plan)",
            expected="a Plan, distributions by name, or None",
            got=type(plan).__name__,
        )
    unmatched = [rule for rule in plan if not fnmatch.filter(known, rule)]
    if unmatched:
        raise PlanError(
            f"materialize_(plan={{{unmatched[0]!r}: ...}})",
            expected="a name or pattern of the model's tensors",
            got=f"0 of {len(known)} tensors matched",
            fix=near(unmatched[0], known),
        )


def _chosen(plan: Source, slots: list[Slot]) -> Chosen:
    """What the plan draws for each slot that it covers, and what a bias subtracts from that."""
    if plan is None:
        return {}
    if isinstance(plan, Plan):
        rows = {canonical_name(n): row for row in plan.rows for n in (row.path, *row.names)}
        found = {s.name: rows[n] for s in slots for n in reversed(s.names) if n in rows}
        return {k: (r.values, r.path, r.centre) for k, r in found.items() if r.values is not None}
    chosen: dict[str, tuple[Values, str, Centre | None]] = {}
    for slot in slots:
        matching = (r for r in plan if any(fnmatch.fnmatchcase(n, r) for n in slot.names))
        rule = next(matching, None)
        if rule is not None:
            chosen[slot.name] = plan[rule], slot.name, None
    return chosen


def _fill(
    modules: Mapping[str, nn.Module],
    slots: list[Slot],
    plan: Source,
    device: torch.device | str | None,
    seed: int,
    weights: list[Computed],
    spared: Sequence[torch.Tensor] = (),
) -> dict[str, str]:
    """Allocate, fill, and see to it that nothing is left over; else all is as it was."""
    beside = _beside(weights, slots, plan)
    below = {name for slot in beside for name in slot.weight.below}
    wanted = [*(s for s in slots if below.isdisjoint(s.names)), *beside]
    chosen = _chosen(plan, wanted)
    try:
        with torch.no_grad():
            for slot in (*slots, *beside):
                if device is not None:
                    slot.put(_allocated(slot.meta, device))
            sources = _filled(modules, wanted, chosen, seed, spared)
            _refuse_missing([slot for slot in wanted if slot.name not in sources])
            tensors = {name: slot.tensor for slot in slots for name in slot.names}
            for slot in beside:
                slot.weight.assign(slot.value, tensors, seed)
                source = f"{sources.pop(slot.name)}, as {slot.name} through {slot.weight.kinds}"
                sources |= dict.fromkeys(slot.weight.below, source)
    except BaseException:
        for slot in slots:
            slot.put(slot.meta)
        raise
    return {slot.name: sources[slot.name] for slot in slots}


def _beside(weights: list[Computed], slots: list[Slot], plan: Source) -> list[Beside]:
    """The parametrized weights to draw: what they are computed from is on meta, and not chosen."""
    names = {name for slot in slots for name in slot.names}
    own = [weight for weight in weights if names.issuperset(weight.below)]
    if isinstance(plan, Mapping):
        own = [
            weight
            for weight in own
            if _matches(weight.name, plan) or not any(_matches(name, plan) for name in weight.below)
        ]
    return [Beside(weight) for weight in own]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any pattern matches a name."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _filled(
    modules: Mapping[str, nn.Module],
    slots: list[Slot],
    chosen: Chosen,
    seed: int,
    spared: Sequence[torch.Tensor],
) -> dict[str, str]:
    """Fill what can be filled, and say from where."""
    sources: dict[str, str] = {}
    _fill_by_modules(modules, slots, chosen, seed, spared, sources)
    drawn = [slot for slot in slots if slot.name in chosen]
    with progress(sum(local(slot.tensor).numel() for slot in drawn)) as advance:
        for slot in drawn:
            values, stream, _ = chosen[slot.name]
            write_(slot.tensor, values, seed=seed, name=stream)
            sources[slot.name] = f"{values}"
            advance(local(slot.tensor).numel())
    _centre({name: slot for slot in slots for name in slot.names}, chosen)
    return sources


def _refuse_missing(missing: list[Slot]) -> None:
    """Raise for tensors that nothing gave a value."""
    if missing:
        lines = [f"{slot.name} of {class_of(slot.places[0][0])}" for slot in missing]
        raise UninitializedError(
            "materialize_(model)",
            expected="a value for every tensor",
            got=f"none for {len(lines)}: {', '.join(lines)}",
            fix="name them in the plan, or give their class a reset_parameters method",
        )


def _allocated(meta: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Memory of the same kind as a meta tensor; a Parameter's attributes are kept."""
    new = torch.empty_like(meta, device=device)
    if isinstance(meta, nn.Parameter):
        new = nn.Parameter(new, requires_grad=meta.requires_grad)
    new.__dict__.update({k: v for k, v in vars(meta).items() if k not in vars(new)})
    return new


def _fill_by_modules(
    modules: Mapping[str, nn.Module],
    slots: list[Slot],
    chosen: Chosen,
    seed: int,
    spared: Sequence[torch.Tensor],
    sources: dict[str, str],
) -> None:
    """What the modules themselves know of tensors that are not chosen, children before parents."""
    owned: dict[int, list[tuple[str, Slot]]] = {}
    for slot in slots:
        if slot.name not in chosen:
            _poison(slot.tensor)
            for module, key in slot.places:
                owned.setdefault(id(module), []).append((key, slot))
    names = {slot.name: slot.tensor for slot in slots}
    beside: dict[int, dict[str, torch.Tensor]] = {}
    for slot in slots:
        if isinstance(slot, Beside):
            beside.setdefault(id(slot.weight.module), {})[slot.weight.key] = slot.value
    for path, module in reversed(list(modules.items())):
        own, method = owned.get(id(module), []), resetter(module)
        if own and method is not None:
            with plain(beside.get(id(module), {}), module):
                reset(method, names, seed, canonical_name(path), spared)
            for _, slot in own:
                if not _poisoned(slot.tensor):
                    sources[slot.name] = f"{class_of(module)}.{method.__name__}"
        open_ = [(key, slot) for key, slot in own if slot.name not in sources]
        values = rebuilt(module) if open_ else {}
        for key, slot in open_:
            if key in values:
                _copy(slot.tensor, values[key])
                sources[slot.name] = f"{type(module).__name__}.__init__"


def _centre(slots: Mapping[str, Slot], chosen: Chosen) -> None:
    """What cancels the mean of what layers read: of biases, and of weights themselves."""
    for name, (_, _, centre) in chosen.items():
        if centre is not None:
            own = slots[centre.weight] is slots[name]
            centre_(slots[name].tensor, centre, None if own else slots[centre.weight].tensor)


def _copy(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Put whole values where a rank holds its part of them."""
    for region in regions(tensor):
        local(tensor)[region.local].copy_(values[region.whole])


def _poison(tensor: torch.Tensor) -> None:
    """Fill memory with a pattern that no module writes: NaN, or a large odd integer."""
    storage = local(tensor).untyped_storage()
    if storage.nbytes():
        storage.fill_(_pattern(tensor))


def _pattern(tensor: torch.Tensor) -> int:
    return 0xFF if tensor.is_floating_point() or tensor.is_complex() else 0x5A


def _poisoned(tensor: torch.Tensor) -> bool:
    """Whether any element still has the pattern."""
    mine = local(tensor).detach()
    for part in mine.contiguous().view(-1).split(2**22):
        rows = part.view(torch.uint8).view(-1, mine.element_size())
        if bool((rows == _pattern(tensor)).all(1).any()):
            return True
    return False
