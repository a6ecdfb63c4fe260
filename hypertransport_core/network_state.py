"""Networks from a file's header and tensors, without trusting what the header claims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .files import AGAIN, FileError

Network = TypeVar("Network", bound=nn.Module)
# What the constructors of networks raise for values that make no sense: texts for numbers, negative widths, 0 heads, ...
NONSENSE = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError)


def built(make: Callable[[], Network], claims: Mapping[str, Any], tensors: Mapping[str, Tensor],
          path: str | Path) -> Network:
    """The network that `make` builds from a header's `claims` (its dimensions), with `tensors` as its state, on the CPU.

    A header cannot make us build more than the file holds: numbers beyond its tensors' dimensions are refused, and names
    and shapes are compared on a network without memory first. tensors: {name: tensor}, floating ones are converted to
    the dtype of the parameter. Raises FileError.
    """
    largest = max([len(tensors), *(size for value in tensors.values() for size in value.shape)], default=0)
    for key, value in claims.items():
        for number in _sizes(value):
            if abs(number) > largest:
                raise FileError(f"{path} claims {key} = {number} but its largest tensor dimension is {largest}, "
                                f"expected both to agree: {AGAIN}")
    try:
        with torch.device("meta"):
            check_state(make(), tensors, path)
        # Built again on the CPU: buffers that are not stored have no values on the meta device.
        network = make()
    except FileError:
        raise
    except NONSENSE as error:
        raise FileError(f"{path} describes a network that cannot be built ({_reason(error)}), expected dimensions that "
                        "this version knows: update the node pack, or download the file again") from error
    load_into(network, tensors, path)
    return network


def check_state(network: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise FileError for the first parameter or buffer of `network` that `tensors` lacks, holds too much, or in
    another shape."""
    own = network.state_dict()
    for name in sorted(own.keys() ^ tensors.keys()):
        what = "lacks the tensor" if name in own else "holds the unexpected tensor"
        raise FileError(f"{path} {what} '{name}', expected exactly the {len(own)} tensors of {type(network).__name__}: "
                        "choose the file made for this network")
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            raise FileError(f"{path} holds '{name}' with the shape {tuple(tensors[name].shape)}, expected "
                            f"{tuple(value.shape)}: choose the file made for this network")


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy `tensors` into all parameters and buffers of `network`, names and shapes exactly; raises FileError."""
    check_state(network, tensors, path)
    network.load_state_dict(dict(tensors))


def _sizes(value: Any) -> Iterator[int | float]:
    """The numbers in a claim, and how many there are of each list."""
    if isinstance(value, (list, tuple)):
        yield len(value)
        for item in value:
            yield from _sizes(item)
    elif isinstance(value, (int, float)):
        yield value


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
