"""Several processes as one run: shares of the work, sums over processes, and stops and refusals that reach all of them.

Processes are started by `torchrun` or `accelerate launch` and joined by Hugging Face accelerate: gloo on CPUs, nccl on
GPUs. A process without a launcher is a group of one, for which everything here is free and accelerate is not needed.
What must not go wrong in one process while the others wait for it goes into a block of `Group.together`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .config import ConfigError
from .states import TrainingError

# The others wait while the main process draws a strip or measures the generic class; nobody waits for the dead so long,
# because the launcher ends all processes of a machine when one of them dies.
PATIENCE = timedelta(hours=2)


class Elsewhere(Exception):
    """This process ends because another one of its group has a reason to, and says it."""


class Group:
    """The processes of one launch. index: 0 = the main process, which alone writes; count: how many; device: this
    process's own, None where there is no launcher.
    """

    def __init__(self, index: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.index, self.count, self.device = index, count, device
        # Words between processes go through gloo, GPUs or not: they are few, and must pass where a GPU fails.
        self._words: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if count > 1 else None
        self._ending = self._lost = False

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.index == 0

    def share(self, items: int) -> slice:
        """This process's part of `items` in a row; parts differ by at most one and may be empty."""
        return slice(items * self.index // self.count, items * (self.index + 1) // self.count)

    # -- sums ---------------------------------------------------------------------------------------------------------

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes. Raises TrainingError when one of them is gone."""
        if self.count == 1:
            return list(values)
        words = torch.tensor(values, dtype=torch.float64)
        self.add([words])
        return words.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process. Raises TrainingError when one of them is gone."""
        return self.total([float(flag)])[0] > 0

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over all processes. Raises TrainingError when one of them is gone."""
        if self.count > 1:
            with self._listening():
                for tensor in tensors:
                    dist.all_reduce(tensor, group=self._words if tensor.device.type == "cpu" else None)

    @torch.no_grad()
    def adopt(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with the main process's. Raises TrainingError when a process is gone."""
        if self.count > 1:
            with self._listening():
                for tensor in tensors:
                    dist.broadcast(tensor, 0, group=self._words if tensor.device.type == "cpu" else None)

    # -- one fate -----------------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes leave alike: when one raises, all do, the first with its own error and the others
        with Elsewhere. The block itself must hold no exchange. Raises TrainingError when a process is gone.
        """
        if self.count == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        first = torch.tensor(self.count if error is None else self.index)
        with self._listening():
            dist.all_reduce(first, dist.ReduceOp.MIN, group=self._words)
        if first < self.count:
            self._ending = True
            if error is not None and first == self.index:
                raise error
            raise Elsewhere from error

    def same(self, things: Mapping[str, object], cure: str) -> None:
        """Raises TrainingError when one of some things, by name, is not the same in all processes."""
        if self.count == 1:
            return
        hashes = [hashlib.sha256(str(thing).encode()).digest()[:6] for thing in things.values()]
        mine = torch.tensor([int.from_bytes(code, "big") for code in hashes])
        extremes = torch.cat([mine, -mine])
        with self._listening():
            dist.all_reduce(extremes, dist.ReduceOp.MAX, group=self._words)
        highest, lowest = extremes[: len(mine)], -extremes[len(mine) :]
        with self.together():
            for name, differs in zip(things, highest != lowest):
                if differs:
                    raise TrainingError(
                        f"The {self.count} processes differ in {name}, here {str(things[name])[:60]}, expected the same "
                        f"in all of them: {cure}."
                    )

    def ends(self) -> None:
        """Note that all processes have agreed to end, so that they also leave together."""
        self._ending = True

    def leave(self) -> None:
        """Part from the others: after an agreed end all at once, so that no launcher kills those that still speak."""
        if self.device is None or self._lost or not dist.is_initialized():
            return
        if self._ending and self.count > 1:
            try:
                dist.barrier(group=self._words)
            except RuntimeError:
                return  # the others are gone already
        dist.destroy_process_group()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._lost = True
            if self.index > 1:  # one or two voices are enough
                raise Elsewhere from error
            raise TrainingError(
                f"A process of this run is gone without a word ({str(error).splitlines()[0][:100].rstrip('. ')}), "
                f"expected {self.count} of them: see what the launcher reports and continue with --resume latest, with "
                "any number of processes."
            ) from error


def join(device: str) -> Group:
    """The processes that a launcher started with this one, or a group of one. device: as in the settings.

    Raises ConfigError, in this process only.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return Group()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ConfigError(
            f"The package accelerate cannot be imported ({error}), expected it where a launcher starts processes: "
            "install it with `pip install accelerate`, or start without a launcher."
        ) from error
    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    group = Group(state.process_index, state.num_processes, state.device)
    with group.together():
        if not cpu and state.local_process_index >= torch.cuda.device_count():
            raise ConfigError(
                f"There are more processes than GPUs on a machine, expected at most {torch.cuda.device_count()}: lower "
                "--nproc-per-node, or use --device cpu."
            )
        if group.count > 1 and device not in ("auto", "cpu", "cuda"):
            raise ConfigError(
                f"device is '{device}' with {group.count} processes, expected auto or cpu, so that each takes its own: "
                "leave it out, or start one process."
            )
    return group
