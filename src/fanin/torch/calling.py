"""How a user's model is called: wrappers around it, forms of inputs, forms of outputs."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from fanin.errors import (
    ArgumentError,
    ArgumentTypeError,
    FaninError,
    TraceError,
    UninitializedError,
)
from fanin.signal.spec import Spec

SEED = 0x66616E696E
"""Of everything drawn here: no seed that a user takes, or targets could equal the user's inputs."""

_WRAPPERS = {
    "_orig_mod": "compiled: hooks are inactive in compiled code, so the original module was run",
    "module": "the module inside {kind} was run",
}
_MAIN = ("logits", "last_hidden_state", "prediction", "sample", "out", "output")
_SIDE = ("past_key_values", "hidden_states", "attentions", "cache_params")


def unwrap(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The module inside compile and data-parallel wrappers, and what was taken off."""
    notes: list[str] = []
    while True:
        kind = type(model).__name__
        inner = next(
            (
                name
                for name in _WRAPPERS
                if kind in ("OptimizedModule", "DistributedDataParallel", "DataParallel")
                and isinstance(getattr(model, name, None), nn.Module)
            ),
            None,
        )
        if inner is None:
            return model, notes
        notes.append(_WRAPPERS[inner].format(kind=kind))
        model = getattr(model, inner)


def refuse_unready(where: str, model: object) -> None:
    """Raise for what cannot be run: no module, lazy layers, tensors on meta or without elements."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(where, expected="a torch.nn.Module", got=type(model).__name__)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
            reason, fix = "is a lazy parameter", "run one forward pass first"
        elif tensor.is_meta:
            reason, fix = "is on the meta device", "call fanin.materialize_(model, device) first"
        elif tensor.numel() == 0 and hasattr(tensor, "ds_shape"):
            reason = "is a ZeRO placeholder without elements"
            fix = "gather it first (deepspeed.zero.GatheredParameters)"
        else:
            continue
        raise UninitializedError(
            f"{where}, {name}", expected="a tensor in memory", got=f"one that {reason}", fix=fix
        )


def realise(inputs: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The inputs with each `Spec` in them replaced by drawn values (always the same)."""
    generator = torch.Generator().manual_seed(SEED)

    def one(value: Any) -> Any:
        if isinstance(value, Spec):
            if not value.floating:
                drawn = torch.randint(value.high, value.shape, generator=generator)
                return drawn.to(device, getattr(torch, value.dtype))
            real = torch.randn(value.shape, generator=generator)
            kind = dtype if value.dtype == "float32" else getattr(torch, value.dtype)
            return real.to(device, kind)
        if isinstance(value, Mapping):
            return {k: one(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(map(one, value))
        return value

    return one(inputs)


def parameters_of(model: nn.Module) -> list[inspect.Parameter]:
    """What the model's forward takes; of a TorchScript method by its schema."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except ValueError:
        names = [a.name for a in model.forward.schema.arguments][1:]
        return [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]


def call(model: nn.Module, inputs: Any) -> Any:
    """Call the model: a tuple holds positional arguments, a mapping keyword arguments.

    Either is passed whole where `forward` takes a single argument that it must be.
    """
    parameters = parameters_of(model)
    open_ended = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    if isinstance(inputs, Mapping):
        names = {p.name for p in parameters}
        if open_ended or set(inputs) <= names:
            return model(**inputs)
        if len(parameters) == 1:
            return model(inputs)
        raise ArgumentError(
            "inputs",
            expected=f"keywords of forward: {', '.join(sorted(names))}",
            got=", ".join(sorted(set(map(str, inputs)) - names)),
        )
    if isinstance(inputs, tuple | list):
        return model(inputs) if len(parameters) == 1 < len(inputs) else model(*inputs)
    return model(inputs)


@contextlib.contextmanager
def running(model: nn.Module, where: str, step: str = "forward") -> Iterator[None]:
    """What a pass of the model raises, such as for inputs of another shape, as a TraceError."""
    try:
        yield
    except FaninError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        place = f"{where}: {module_of(model, error) or 'the model itself'}"
        raise does_not_run(place, what, step=step) from error


def does_not_run(where: str, what: str, fix: str = "", step: str = "forward") -> TraceError:
    """The error of a pass that did not run to its end."""
    fix = fix or "run the model on these inputs by itself to see the whole traceback"
    return TraceError(where, expected=f"a {step} pass that runs", got=_line(what), fix=fix)


def module_of(model: nn.Module, error: Exception) -> str:
    """The path of the innermost module that an error came through; empty for the model itself."""
    paths = {id(module): path for path, module in model.named_modules()}
    path, step = "", error.__traceback__
    while step is not None:
        path = paths.get(id(step.tb_frame.f_locals.get("self")), path)
        step = step.tb_next
    return path


def _line(text: str) -> str:
    """The first line of a message, cut to a bearable length."""
    first = text.strip().splitlines()[0] if text.strip() else "no message"
    return first if len(first) <= 300 else first[:300] + "..."


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in a structure of mappings and sequences, by its place."""
    if isinstance(value, torch.Tensor):
        yield name or "0", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from named_tensors(item, f"{name}.{i}" if name else str(i))
    elif isinstance(value, Distribution):
        yield from named_tensors(distribution_parameters(value), name)


def distribution_parameters(value: Distribution) -> dict[str, Any]:
    """The tensors that a policy or a decoder made its distribution of, by name."""
    held = (torch.Tensor, Distribution)
    return {k: v for k, v in vars(value).items() if k[0] != "_" and isinstance(v, held)}


def main_outputs(outputs: Any) -> list[torch.Tensor]:
    """The real-valued outputs that a loss would read: of a model output, its first; else all.

    Caches and lists of hidden states are left out: a gradient into every layer would hide that
    none arrives from the end.
    """
    found = getattr(outputs, "logits", None)
    if found is None:
        found = getattr(outputs, "last_hidden_state", None)
    if found is None and isinstance(outputs, Mapping):
        main = next((k for k in _MAIN if isinstance(outputs.get(k), torch.Tensor)), None)
        kept = {k: v for k, v in outputs.items() if k not in _SIDE}
        found = outputs[main] if main else kept
    if found is None:
        found = outputs
    return [t for _, t in named_tensors(found) if t.is_floating_point()]
