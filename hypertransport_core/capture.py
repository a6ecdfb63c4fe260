"""Reading what a network's sites put out, pooled to one vector per row: the material of statistics and loss."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .sites import Site
from .steering import Forward, shadowed

MOMENTS = {"mean": 1, "mean_std": 2, "mean_quarters": 5}
"""What a pooling keeps of a channel over tokens or pixels: so many numbers, the mean first."""
POOLINGS = (*MOMENTS, "tokens")


class CaptureError(RuntimeError):
    """A capture that cannot be read; the message is one sentence with the cure."""


class _AllSitesSeen(Exception):
    """Ends a network call early; never leaves the `with` block of its capture."""


def floored_deviation(deviation: Tensor) -> Tensor:
    """Standard deviations (..., D) fit to divide by: none below a hundredth of its row's median, so that a channel that
    hardly ever moves does not drown the others, nor below 1e-6."""
    return deviation.maximum(0.01 * deviation.median(dim=-1, keepdim=True).values).clamp(min=1e-6)


class PooledCapture:
    """Context manager that records the outputs of sites while the network runs inside the `with` block.

    It must be entered last, after any `Steering.installed`, and then sees steered outputs (LinEAS §3: ξ with all
    earlier maps active). The network computes what it would without it. If it runs several times, the last counts.

    pooling: "mean" over tokens or pixels; "mean_std": mean, then standard deviation (population); "mean_quarters": mean,
        then the means of the lowest to the highest quarter of the tokens; "tokens": not pooled.
    stop_after_last_site: end the network call, and with it the `with` block, as soon as every site was seen once; what
        follows the call inside the block is then not run.
    """

    def __init__(self, network: nn.Module, sites: Sequence[Site], pooling: str = "mean", *,
                 stop_after_last_site: bool = False) -> None:
        if pooling not in POOLINGS:
            raise CaptureError(f"There is no pooling '{pooling}'; choose one of {', '.join(POOLINGS)}.")
        if not sites:
            raise CaptureError("There are no sites to capture; give at least one.")
        self.network, self.sites, self.pooling = network, tuple(sites), pooling
        self.stop_after_last_site = stop_after_last_site
        self._seen: dict[str, tuple[Tensor, ...]] = {}
        self._open = False
        self._stack = ExitStack()

    def __enter__(self) -> PooledCapture:
        self._seen.clear()
        self._open = True
        self._stack.enter_context(shadowed(self.network, {site.path: self._recorder(site) for site in self.sites}))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> bool:
        self._open = False
        self._stack.close()
        return isinstance(error, _AllSitesSeen) and error.args[0] is self

    def features(self) -> Tensor:
        """Pooled outputs of all sites, fp32, with gradients: (B, `MOMENTS[pooling]` Σ C), all means first, then the next
        moment of all sites. Raises CaptureError when a site was not called, or with pooling "tokens".
        """
        if self.pooling == "tokens":
            raise CaptureError("Sites of different widths do not fit one tensor as tokens; read them with `tokens()`.")
        self._require_all()
        moments = zip(*(self._seen[site.path] for site in self.sites))
        return torch.cat([torch.cat(parts, dim=-1) for parts in moments], dim=-1)

    def tokens(self) -> list[Tensor]:
        """Outputs of every site as (B, T, C), T tokens or H·W pixels, in their own dtype, with gradients.

        Raises CaptureError when a site was not called, or with another pooling than "tokens".
        """
        if self.pooling != "tokens":
            raise CaptureError(f"Tokens were pooled ('{self.pooling}') and are gone; capture with pooling='tokens'.")
        self._require_all()
        return [self._seen[site.path][0] for site in self.sites]

    def _recorder(self, site: Site) -> Callable[[Forward], Forward]:
        def make(forward: Forward) -> Forward:
            def recording_forward(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                pooled = _pool(output[0] if isinstance(output, tuple) else output, site, self.pooling)
                if not self._open:  # gradient checkpointing runs a block again, when everything has been read
                    return output
                self._seen[site.path] = pooled
                if self.stop_after_last_site and len(self._seen) == len(self.sites):
                    raise _AllSitesSeen(self)
                return output

            return recording_forward

        return make

    def _require_all(self) -> None:
        missing = [site.path for site in self.sites if site.path not in self._seen]
        if missing:
            raise CaptureError(f"{len(missing)} of {len(self.sites)} sites were not called, first '{missing[0]}'; run "
                               "the network inside the `with` block, and capture sites that it calls.")


def _pool(output: Tensor, site: Site, pooling: str) -> tuple[Tensor, ...]:
    """(tokens,), or the moments (B, C) of an output (B, ..., C) or (B, C, ...), in fp32."""
    tokens = output.movedim(site.channel_dim, -1).flatten(1, -2)
    if pooling == "tokens":
        return (tokens.clone(),)  # an in-place residual add after the site would change what was captured
    mean = tokens.mean(1, dtype=torch.float32)
    if pooling == "mean":
        return (mean,)
    if pooling == "mean_quarters":
        ordered = tokens.float().sort(1).values
        # Shares of a token between two quarters, where four do not divide their number.
        return mean, *functional.adaptive_avg_pool1d(ordered.transpose(1, 2), 4).unbind(-1)
    variance = (tokens.float() - mean[:, None]).square().mean(1)
    return mean, (variance + 1e-12).sqrt()  # the root has no gradient at 0
