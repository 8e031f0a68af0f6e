"""The name that decides a tensor's random stream: the user's own, without what wrappers add."""

from __future__ import annotations

from fanin.errors import ArgumentTypeError

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DataParallel/DDP, torch.compile, FSDP and activation checkpointing put into names."""


def canonical_name(name: str) -> str:
    """The name of a parameter with the parts removed that wrappers insert.

    *Definition.* Of the parts between dots, each part in `WRAPPERS` is dropped, wherever it stands,
    unless it is the last one (which names the tensor itself).

    Args:
        name: a name as in `model.named_parameters()`.

    Returns:
        The name that the stream depends on.

    Raises:
        ArgumentTypeError: the name is no string.

    Example:
        >>> canonical_name("_orig_mod.module.blocks.0._checkpoint_wrapped_module.fc.weight")
        'blocks.0.fc.weight'
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(
            "draw(name)",
            expected="the tensor's name, a string",
            got=type(name).__name__,
            fix="pass the name of model.named_parameters()",
        )
    *path, last = name.split(".")
    return ".".join([part for part in path if part not in WRAPPERS] + [last])
