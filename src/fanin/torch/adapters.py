"""The library's draws in the forms that other frameworks ask for.

FSDP takes `param_init_fn(module)`, Megatron and TransformerEngine take `init_method(tensor)`, and
whatever builds on the meta device may call `module.reset_parameters()`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from fanin.draw import canonical_name
from fanin.errors import ArgumentTypeError
from fanin.planning.plan import Values
from fanin.torch.writing.materialize import Source, fill_own_
from fanin.torch.writing.write import write_


class ParamInitFn:
    """`param_init_fn` for FSDP: fills a module's own tensors, and not those of its children.

    Names are those in the model that it is made for, also after FSDP has wrapped parts of it.

    Args:
        model: the whole model, before it is wrapped.
        plan: as for `materialize_`.
        device: where the tensors go.
        seed: of the streams.

    Example:
        >>> from fanin import draw
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> init = ParamInitFn(model, {"0.weight": draw.Constant(0.5)})
        >>> init(model[0])
        >>> float(model[0].weight.detach().sum()), model[0].bias.is_meta
        (3.0, False)
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Source = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.paths = {id(m): canonical_name(f"{path}.x")[:-2] for path, m in model.named_modules()}
        self.plan, self.device, self.seed = plan, device, seed

    def __call__(self, module: nn.Module) -> None:
        if id(module) not in self.paths:
            raise ArgumentTypeError(
                "param_init_fn(module)",
                expected="a module of the model that the function was made for",
                got=f"another {type(module).__name__}",
                fix="make it from the model before it is copied or wrapped",
            )
        fill_own_(module, self.paths[id(module)], self.plan, self.device, self.seed)


@dataclass
class InitMethod:
    """`init_method` for Megatron and TransformerEngine: draws the one tensor that it is given.

    A tensor without a name draws from a stream by the number of the call, so equal layers get
    different weights, and the order of construction counts, as it does in those frameworks. Give
    each layer `.named(its name)` to be free of the order.

    Args:
        values: what to draw.
        seed: of the streams.
        name: of the tensor, or of the method.

    Example:
        >>> from fanin import draw
        >>> init = InitMethod(draw.Normal(std=0.02))
        >>> a, b = init(torch.empty(4)), init(torch.empty(4))
        >>> bool((a == b).any())
        False
    """

    values: Values
    seed: int = 0
    name: str = "init_method"
    unnamed: bool = True
    calls: int = field(default=0, compare=False)

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        name = f"{self.name}.{self.calls}" if self.unnamed else self.name
        self.calls += 1
        return write_(tensor, self.values, seed=self.seed, name=name)

    def named(self, name: str) -> InitMethod:
        """The method for one tensor of this name."""
        return InitMethod(self.values, self.seed, name, unnamed=False)


def add_reset_parameters_(model: nn.Module, plan: Source = None, seed: int = 0) -> nn.Module:
    """Give every module with tensors of its own a `reset_parameters()` that follows a plan.

    The module's tensors must have memory by then, as after `to_empty()`, and are written in place.
    What the plan does not name gets what the module's former `reset_parameters` gives it.

    Args:
        model: changed in place.
        plan: as for `materialize_`.
        seed: of the streams.

    Returns:
        `model`.

    Example:
        >>> from fanin import draw
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(nn.Linear(3, 2))
        >>> _ = add_reset_parameters_(model, {"0.weight": draw.Constant(0.5)})
        >>> _ = model.to_empty(device="cpu")
        >>> model[0].reset_parameters()
        >>> float(model[0].weight.detach().sum())
        3.0
    """
    for path, module in model.named_modules():
        if any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            name = canonical_name(f"{path}.x")[:-2]
            module.reset_parameters = partial(fill_own_, module, name, plan, None, seed)
    return model
