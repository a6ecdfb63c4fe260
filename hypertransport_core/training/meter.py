"""How much memory tensors take while code runs: counted as they are made and freed, on any device, also on `meta`."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Meter(TorchDispatchMode):
    """Context manager that counts the bytes of tensors made inside it, in forward and backward: `now` those alive,
    `peak` the most at once. What was there before is not counted, nor what kernels need only while they run.

    Raises torch.OutOfMemoryError above `limit` bytes, also on a CPU, where the system would end the process.
    """

    def __init__(self, limit: float = math.inf) -> None:
        super().__init__()
        self.limit = limit
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._note((args, kwargs), new=False)  # results may be views of these
        found = func(*args, **kwargs)
        self._note(found, new=True)
        return found

    def _note(self, tree: Any, new: bool) -> None:
        for value in tree_iter(tree):
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            if id(storage) not in self._known:
                self._follow(storage, storage.nbytes() if new else 0)

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)

        def freed(_: Any) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)
        if self.now > self.limit:
            raise torch.OutOfMemoryError(f"Tensors take {self.now} bytes, expected at most {self.limit:.0f}.")
