"""Gradient checkpointing: blocks of the frozen network keep their input only, and run again in backward.

Everything that acts on a network here (steering, capture, the host's safe norms) shadows `forward` of modules for the
length of one call, but backward comes after it: a block that ran again bare would give wrong gradients without a word.
So a block remembers what shadowed its modules when it ran, and puts that back for the second run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..steering import Forward, shadowed
from .config import ConfigError


def find_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """{path: module} of the repeated blocks: the composite members of lists and sequences, such as transformer and
    residual blocks; where such a member holds a list of blocks of its own, those instead. Raises ConfigError when there
    are none.
    """
    root = getattr(network, "_orig_mod", network)
    found: dict[str, nn.Module] = {}
    _gather(root, "", False, found)
    if not found:
        raise ConfigError(
            f"gradient_checkpointing is on, but the network {type(root).__name__} has no repeated blocks, expected "
            "lists of modules: switch it off and lower samples_per_pass instead."
        )
    return found


def _gather(module: nn.Module, path: str, member: bool, found: dict[str, nn.Module]) -> None:
    container = isinstance(module, (nn.ModuleList, nn.Sequential))
    if member and not container:
        weighted = sum(1 for part in module.modules() if next(part.parameters(recurse=False), None) is not None)
        if weighted < 2:
            return
        if not any(isinstance(part, nn.ModuleList) and _composite(part) for part in module.modules()):
            found[path] = module
            return
    for name, child in module.named_children():
        _gather(child, f"{path}.{name}" if path else name, container, found)


def _composite(blocks: nn.ModuleList) -> bool:
    return any(next(block.children(), None) is not None for block in blocks)


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Inside the block, network calls with gradients keep only the inputs of the network's blocks; backward may come
    later. Raises ConfigError.
    """
    root = getattr(network, "_orig_mod", network)
    makers = {path: _recomputing(block) for path, block in find_blocks(root).items()}
    with shadowed(root, makers):
        yield


def _recomputing(block: nn.Module) -> Any:
    def make(forward: Forward) -> Forward:
        def on_copies(*args: Any, **kwargs: Any) -> Any:
            # Joint transformers add to their input in place; the second run needs it as it was.
            return forward(*map(_copy, args), **{name: _copy(value) for name, value in kwargs.items()})

        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            shadows = [(part, part.__dict__.get("forward")) for part in block.modules() if part is not block]

            def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), _reinstated(shadows)

            # The network is frozen and in evaluation mode, so there is no randomness to repeat.
            return checkpoint(
                on_copies, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **kwargs
            )

        return call

    return make


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def _reinstated(shadows: list[tuple[nn.Module, Forward | None]]) -> Iterator[None]:
    present = [(part, part.__dict__.get("forward")) for part, _ in shadows]
    try:
        _put(shadows)
        yield
    finally:
        _put(present)


def _put(shadows: list[tuple[nn.Module, Forward | None]]) -> None:
    for part, forward in shadows:
        if forward is not None:
            part.forward = forward  # type: ignore[method-assign]
        else:
            part.__dict__.pop("forward", None)
