"""The modules of a model while it is traced: names, which one runs, and their state put back."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as hooks
from torch.nn.utils.parametrize import ParametrizationList

from fanin.errors import ArgumentTypeError
from fanin.signal.graph import Module
from fanin.torch.tracing.memory import geometry, plain

_OLD_PARAMETRIZATIONS = ("WeightNorm", "SpectralNorm")


def original(model: nn.Module, where: str = "model") -> nn.Module:
    """The model inside `torch.compile` and the wrappers of data parallelism."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(where, expected="a torch.nn.Module", got=repr(model))
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@dataclass(frozen=True)
class Named:
    """A parameter or buffer with all names that reach it."""

    tensor: torch.Tensor
    names: tuple[str, ...]
    kind: str
    persistent: bool = True


def named_tensors(model: nn.Module) -> tuple[Named, ...]:
    """Every parameter and buffer once, in order of registration; tied ones with all names."""
    found: dict[Any, tuple[torch.Tensor, str, list[str]]] = {}
    kinds = (("parameter", model.named_parameters), ("buffer", model.named_buffers))
    for kind, members in kinds:
        for name, tensor in members(remove_duplicate=False):
            found.setdefault(_identity(tensor), (tensor, kind, []))[2].append(name)
    passing = {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    return tuple(
        Named(tensor, tuple(names), kind, not passing.intersection(names))
        for tensor, kind, names in found.values()
    )


def _identity(tensor: torch.Tensor) -> Any:
    """Equal for two tensors that are the same memory seen in the same way."""
    if is_lazy(tensor) or not plain(tensor) or tensor.numel() == 0:
        return id(tensor)
    return StorageWeakRef(tensor.untyped_storage()), geometry(tensor)


class Sites:
    """Which module runs now; used as a context, with hooks that are gone afterwards.

    Args:
        model: its modules are followed.
        computed: told of each weight that a parametrization computed: its name, the names of
            the parametrizations, and the tensor.
    """

    def __init__(
        self, model: nn.Module, computed: Callable[[str, tuple[str, ...], torch.Tensor], None]
    ) -> None:
        self.computed = computed
        self._paths: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(path)
        self._modules = {id(module): module for module in model.modules()}
        self._calls: Counter[int] = Counter()
        self._stack: list[tuple[nn.Module, str, int]] = []
        self._handles: list[Any] = []

    def __call__(self) -> tuple[str, int]:
        """The path of the innermost module that runs, and which call of it this is."""
        return self._stack[-1][1:] if self._stack else ("", 0)

    def __enter__(self) -> Sites:
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def table(self) -> tuple[Module, ...]:
        """All modules, with the number of times that each was called."""
        return tuple(
            Module(
                paths[0],
                f"{type(self._modules[key]).__module__}.{type(self._modules[key]).__qualname__}",
                self._calls[key],
                tuple(paths),
            )
            for key, paths in self._paths.items()
        )

    def _enter(self, module: nn.Module, _: Any) -> None:
        """Note that a module of the model starts."""
        if id(module) in self._paths:
            self._stack.append((module, self._paths[id(module)][0], self._calls[id(module)]))
            self._calls[id(module)] += 1

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        """Note that it ended, well or not, and the weights that it computed."""
        if id(module) not in self._paths:
            return
        while self._stack and self._stack.pop()[0] is not module:
            pass
        path = self._paths[id(module)][0]
        if isinstance(module, ParametrizationList) and isinstance(output, torch.Tensor):
            how = tuple(type(step).__name__ for step in module)
            self.computed(path.replace("parametrizations.", ""), how, output)
        for hook in module._forward_pre_hooks.values():
            if type(hook).__name__ in _OLD_PARAMETRIZATIONS:
                name = f"{path}.{hook.name}".lstrip(".")
                self.computed(name, (type(hook).__name__,), getattr(module, hook.name))


def is_lazy(tensor: torch.Tensor) -> bool:
    """Whether a parameter or buffer waits for the first forward pass to get its shape."""
    return isinstance(tensor, nn.parameter.UninitializedTensorMixin)


def watch_lazy(
    model: nn.Module, device: Any, start: Callable[[], None], end: Callable[[nn.Module], None]
) -> None:
    """Let lazy modules find their shapes on stand-ins for their parameters; inside `put_back`.

    Args:
        model: the model.
        device: where the stand-ins are; None for that of the parameter.
        start, end: called before and after a module finds its shapes.
    """
    for module in model.modules():
        members = (module._parameters, module._buffers)
        if not any(t is not None and is_lazy(t) for group in members for t in group.values()):
            continue
        for group in members:
            for name, tensor in group.items():
                if tensor is not None and is_lazy(tensor):
                    kind: Any = type(tensor)
                    group[name] = kind(device=device or tensor.device, dtype=tensor.dtype)
        module.register_forward_pre_hook(lambda *_: start(), prepend=True)
        module.register_forward_pre_hook(lambda module, _: end(module))


def drop_sharding_hooks(model: nn.Module) -> None:
    """Leave out the hooks by which shards are gathered and spread; inside `put_back`.

    The trace sees whole tensors, of global shape, in their place.
    """
    for module in model.modules():
        for group in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(group.items()):
                origin = getattr(hook, "func", hook)  # of a partial
                if (getattr(origin, "__module__", None) or "").startswith("torch.distributed."):
                    del group[key]


@contextlib.contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Whatever a forward pass sets on the modules (caches, counters) is as before at the end."""
    saved = [(module, type(module), _shallow(module.__dict__)) for module in model.modules()]
    try:
        yield
    finally:
        for module, kind, attributes in saved:
            if type(module) is not kind:
                module.__class__ = kind
            _restore(module.__dict__, attributes)


def _shallow(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each attribute, with a copy of its content if it is a container."""
    return {
        name: (item, item.copy() if isinstance(item, (dict, list, set)) else None)
        for name, item in attributes.items()
    }


def _restore(attributes: dict[str, Any], saved: dict[str, tuple[Any, Any]]) -> None:
    """Put attributes and the content of containers back, the objects being the same."""
    for name in [name for name in attributes if name not in saved]:
        del attributes[name]
    for name, (item, content) in saved.items():
        attributes[name] = item
        if isinstance(item, list):
            item[:] = content
        elif isinstance(item, (dict, set)):
            item.clear()
            item.update(content)
