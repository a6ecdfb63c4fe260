"""Steering a MODEL of the host: a clone whose network calls are steered, and nothing that outlives a call.

Live: a wrapper around `BaseModel.apply_model`, the innermost one that every backbone calls, shadows `forward` of the
sites for one call (hypertransport_core.steering). It holds maps, never modules, and reads schedules at run time, so
nodes before and after it, other clones, unloading and torch.compile see nothing of it. Folded: the maps as patches of
the host's patcher.

Which conds are negative. A guider names its lists; those called "negative" are, all others count as positive: DualCFG's
`cond2` and PerpNeg's empty prompt too. The list is recognised in the call that batches conds. Its conds' uuids serve
where a node goes around that call, and the position in the batch where there is no guider at all.
"""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.nn.functional import interpolate

from ..hypertransport_core.files import FileError, check_fits, sites_to_header
from ..hypertransport_core.steering import Steering, SteeringError
from .folding import fold_into_patches, why_not_folded
from .prediction import predict
from .sockets import PredictedMaps
from .strengths import Curve, percent_of

__all__ = ["MODES", "SCOPES", "LiveSteering", "check_maps", "install", "predict", "steer_model"]

KEY = "hypertransport"
RUN = "hypertransport_run"
NEGATIVES = "hypertransport_negatives"
SCOPES = ("both", "positive", "negative")
MODES = ("live", "folded", "auto")
_COMPUTE = (torch.float32, torch.float16, torch.bfloat16)
_checked: weakref.WeakKeyDictionary[torch.nn.Module, dict[Any, str | None]] = weakref.WeakKeyDictionary()


def steer_model(
    model: ModelPatcher,
    maps: PredictedMaps,
    strength: float | Tensor = 1.0,
    *,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    curve: Sequence[float] = (1.0,),
    factors: Mapping[str, float] | None = None,
    mask: Tensor | None = None,
    scope: str = "both",
    mode: str = "live",
) -> ModelPatcher:
    """A clone of MODEL that is steered; the model itself where nothing would be: strength 0, closed range, empty mask.

    strength: λ, or a tensor (N,) with one per row of the latent batch; 0 is off, 1 the full map.
    start_percent, end_percent: of the schedule, 0 = pure noise, 1 = finished; acts from start on, end excluded.
    curve: factors on the strength, spread evenly from start to end with straight lines between them.
    factors: {site kind or site path: factor on the strength}. mask: (H, W) or (N, H, W) in [0, 1], fitted to latents.
    scope: "both", "positive" or "negative" conds; see above. mode: "live", "folded" (into the weights), "auto" (folded
    where nothing needs live).

    Several steered clones of one another act in their order. Raises FileError for maps of another model,
    SteeringError for values out of range and maps that cannot be folded, in one sentence.
    """
    _check_choice("scope", scope, SCOPES)
    _check_choice("mode", mode, MODES)
    steering = LiveSteering(maps, strength, start_percent, end_percent, factors, mask, scope, curve)
    check_maps(model, maps)
    if steering.is_off:
        return model
    if mode != "live":
        why = why_not_folded(model, steering, wary=mode == "auto")
        if why is None:
            return fold_into_patches(model, steering.stretches[0].steering.blended())
        if mode == "folded":
            raise SteeringError(
                f"These maps cannot be folded into the weights because {why}; choose the mode live or auto."
            )
    return install(model, steering)


def check_maps(model: ModelPatcher, maps: PredictedMaps) -> None:
    """Refuse maps made for another model, by sites, channels and the signs of a few weights. LoRAs, fine-tunes pass.

    Looked at once per model and kind of maps. Raises FileError, one sentence naming both sides and the cure.
    """
    sites = maps.steps[0].sites
    key = (sites, json.dumps(dict(maps.backbone), sort_keys=True, default=str))
    verdicts = _checked.setdefault(model.model, {})
    if key not in verdicts:
        name = f"The set of maps '{maps.name}'" if maps.name else "The set of maps"
        header = {"backbone": dict(maps.backbone), "sites": sites_to_header(sites)}
        try:
            for note in check_fits(header, name, network=_network(model.model)):
                logging.warning("HyperTransport: %s", note)
            verdicts[key] = None
        except FileError as error:
            verdicts[key] = str(error)
    if verdicts[key] is not None:
        raise FileError(verdicts[key])


def install(model: ModelPatcher, steering: LiveSteering) -> ModelPatcher:
    """A clone with one more live steering, after those it has."""
    clone = model.clone()
    if not clone.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _note_run)
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _note_negatives)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, steering)
    return clone


class Stretch:
    """Maps for a part of the schedule: active from `start` on, `end` excluded (0 = pure noise, 1 = finished)."""

    def __init__(self, start: float, end: float, steering: Steering) -> None:
        self.start, self.end, self.steering = start, end, steering

    def times(self, factor: float) -> Steering | None:
        """The steering at a multiple of its strength; None where that is off."""
        one = self.steering
        made = Steering(one.maps, one.strength * factor, factors=one.factors, mask=one.mask)
        return None if made.is_off() else made

    def active(self, sigma: Callable[[], float], model_sampling: Any) -> bool:
        """Whether a network call at this noise acts. Ask late: a schedule node after this one moves the percents."""
        return not (
            self.start > 0.0
            and sigma() > float(model_sampling.percent_to_sigma(self.start))
            or self.end < 1.0
            and sigma() <= float(model_sampling.percent_to_sigma(self.end))
        )


class LiveSteering:
    """An APPLY_MODEL wrapper. Shared by reference between MODEL clones and never changed.

    Has no `.to` on purpose: the host calls it with the model's dtype, and maps must not become fp8.
    """

    def __init__(
        self,
        maps: PredictedMaps,
        strength: float | Tensor = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        factors: Mapping[str, float] | None = None,
        mask: Tensor | None = None,
        scope: str = "both",
        curve: Sequence[float] = (1.0,),
    ) -> None:
        for name, value in (("start", start), ("end", end)):
            if not 0.0 <= value <= 1.0:
                raise SteeringError(
                    f"The {name} is at {value:g} of the schedule, but must lie between 0 (pure noise) and 1."
                )
        self.scope, self.name, self.stretches, count = scope, maps.name, [], len(maps.steps)
        self.curve = Curve(curve, start, end)
        strength = strength if self.curve.constant is None else strength * self.curve.constant
        # The core checks the mask and knows when it acts nowhere; it is laid out anew for every size of latents.
        parts = [Steering(one, strength, factors=factors, mask=mask) for one in maps.steps]
        self.mask = parts[0].mask
        for number, steering in enumerate(parts):
            low, high = max(start, number / count), min(end, (number + 1) / count)
            if low < high and not steering.is_off() and not steering.blended().is_identity():
                self.stretches.append(Stretch(low, high, steering))
        self.rows = max(parts[0].rows, self.mask.shape[0] if self.mask is not None and self.mask.ndim == 3 else 1)
        self._flags: dict[tuple, Tensor | None] = {}
        self._masks: dict[tuple, Tensor] = {}

    @property
    def is_off(self) -> bool:
        """Whether no network call would ever be changed."""
        return not self.stretches

    def __deepcopy__(self, memo: dict) -> LiveSteering:
        return self

    def __repr__(self) -> str:
        return f"LiveSteering({self.name!r}, {self.scope}, {[s.steering for s in self.stretches]})"

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        base = executor.class_obj
        steering = self._now(base, options, t)
        flags = _steered_chunks(self.scope, options) if steering is not None else (False,)
        if steering is None or not any(flags):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        per_chunk = self._check_rows(x.shape[0], len(flags))
        dtype = base.manual_cast_dtype or base.get_dtype()
        with steering.installed(
            _network(base),
            batch=x.shape[0],
            rows=self._rows(flags, per_chunk),
            device=x.device,
            dtype=dtype if dtype in _COMPUTE else None,
            mask=self._mask_for(x, options, len(flags)),
            frames=x.shape[2] if x.ndim == 5 else 1,
            text_tokens=_text_tokens(_network(base), c_crossattn),
        ):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def check_batch(self, batch: int) -> None:
        """Refuse a latent batch that does not have a row for each row of maps, strengths or masks."""
        if self.rows not in (1, batch):
            raise SteeringError(
                f"The maps, strengths or masks of {self.name or 'this steering'} have {self.rows} rows, but the "
                f"latent batch has {batch}; set the batch size to {self.rows}, or give one row for all."
            )

    def _now(self, base: Any, options: Mapping[str, Any], t: Tensor) -> Steering | None:
        found: list[float] = []

        def sigma() -> float:  # read once, and only where the schedule matters: it makes a GPU wait
            if not found:
                sigmas = options.get("sigmas")
                found.append(float((t if sigmas is None else sigmas).max()))
            return found[0]

        stretch = next((s for s in self.stretches if s.active(sigma, base.model_sampling)), None)
        if stretch is None or self.curve.constant is not None:
            return None if stretch is None else stretch.steering
        return stretch.times(self.curve.at(percent_of(sigma(), base.model_sampling)))

    def _check_rows(self, batch: int, chunks: int) -> int:
        if batch % chunks:
            raise SteeringError(
                f"The network was called with a batch of {batch} for {chunks} conditionings, but each must have as "
                "many rows; remove the node that splits the batch, or put it before HyperTransport."
            )
        self.check_batch(batch // chunks)
        return batch // chunks

    def _rows(self, flags: Sequence[bool], per_chunk: int) -> Tensor | None:
        """The map row of every row of the network's batch, -1 for none; None: all rows have the only one."""
        key = (*flags, per_chunk)
        if key not in self._flags:
            own = torch.arange(per_chunk) if self.rows > 1 else torch.zeros(per_chunk, dtype=torch.long)
            rows = torch.cat([own if flag else torch.full_like(own, -1) for flag in flags])
            needed = self.stretches[0].steering.rows > 1
            _keep(self._flags, key, rows if needed else None if all(flags) else rows >= 0)
        return self._flags[key]

    def _mask_for(self, x: Tensor, options: Mapping[str, Any], chunks: int) -> Tensor | None:
        """The mask on the grid of these latents: fitted to the whole picture, of which an area's conds see a part."""
        if self.mask is None:
            return None
        run, part = options.get(RUN), tuple(x.shape[-2:])
        whole = run.size if run is not None and all(a >= b for a, b in zip(run.size, part)) else part
        corners = (
            tuple(run.corner(uuid) for uuid in options.get("uuids", ())) if run is not None and whole != part else ()
        )
        corners = corners if len(corners) == chunks else ((0, 0),) * chunks
        key = (whole, part, corners, x.device, torch.is_inference_mode_enabled())
        if key not in self._masks:
            fitted = interpolate(self.mask.to(x.device).reshape(-1, 1, *self.mask.shape[-2:]), size=whole, mode="area")[
                :, 0
            ]
            _keep(
                self._masks, key, torch.cat([fitted[:, y : y + part[0], left : left + part[1]] for y, left in corners])
            )
        return self._masks[key]


class Run:
    """What one sampling run knows: its guider, for the lists of conds, and (height, width) of the whole latent."""

    def __init__(self, guider: Any, size: tuple[int, int]) -> None:
        self.guider, self.size = guider, size

    def __deepcopy__(self, memo: dict) -> Run:
        return self

    @property
    def conds(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The guider's lists, as processed by now."""
        return getattr(self.guider, "conds", None) or {}

    def is_negative(self, conds: Sequence[Mapping[str, Any]] | None) -> bool:
        """Whether a list of conds is the guider's list of negatives, or a copy of it."""
        negative = self.conds.get("negative")
        if not conds or not negative or conds is negative:
            return conds is not None and conds is negative
        if any(conds is other for other in self.conds.values()):
            return False
        return [c.get("uuid") for c in conds] == [c.get("uuid") for c in negative]

    def negative_uuids(self) -> set[Any]:
        """Those of negatives alone: the host gives an area's counterpart in the other list the same uuid."""
        ids = {name: {c.get("uuid") for c in conds} for name, conds in self.conds.items()}
        return ids.pop("negative", set()).difference(*ids.values())

    def corner(self, uuid: Any) -> tuple[int, int]:
        """(top, left) of a cond's area in the latent; (0, 0) without one."""
        area = next(
            (c["area"] for conds in self.conds.values() for c in conds if c.get("uuid") == uuid and "area" in c), None
        )
        if area is None:
            return 0, 0
        axes = len(area) // 2
        return int(area[2 * axes - 2]), int(area[2 * axes - 1])


def _note_run(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper: refuse wrong batches before any work; tell the wrappers within which run they are in."""
    guider = executor.class_obj
    options = guider.model_options.setdefault("transformer_options", {})  # a copy that lives as long as the run
    for steering in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}).get(KEY, ()):
        steering.check_batch(noise.shape[0])
    options[RUN] = Run(guider, (int(noise.shape[-2]), int(noise.shape[-1])))
    return executor(noise, *args, **kwargs)


def _note_negatives(
    executor: Any, model: Any, conds: Sequence[Any], x_in: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> Any:
    """CALC_COND_BATCH wrapper: which of the lists given to this call are negatives, by their place among them."""
    options = model_options.get("transformer_options", {})
    if RUN in options:
        negatives = frozenset(i for i, one in enumerate(conds) if options[RUN].is_negative(one))
        model_options = {**model_options, "transformer_options": {**options, NEGATIVES: negatives}}
    return executor(model, conds, x_in, timestep, model_options)


def _steered_chunks(scope: str, options: Mapping[str, Any]) -> tuple[bool, ...]:
    """Whether each of the equal chunks of a network's batch is steered."""
    indices, uuids = options.get("cond_or_uncond") or (), options.get("uuids") or ()
    chunks = len(indices) or len(uuids) or 1
    if scope == "both":
        return (True,) * chunks
    if NEGATIVES in options and indices:
        negative = [index in options[NEGATIVES] for index in indices]
    elif RUN in options and uuids:
        known = options[RUN].negative_uuids()
        negative = [uuid in known for uuid in uuids]
    else:
        negative = [index == 1 for index in indices] or [False]
    return tuple(one == (scope == "negative") for one in negative)


def _network(base: Any) -> torch.nn.Module:
    """The diffusion model, seen through torch.compile."""
    return getattr(base.diffusion_model, "_orig_mod", base.diffusion_model)


def _text_tokens(network: torch.nn.Module, context: Any) -> int | None:
    """How many tokens of text come first where a network joins text and picture; None where that is not known."""
    text_first = any(kind.__name__ in ("Flux", "Chroma") for kind in type(network).__mro__)
    return int(context.shape[1]) if text_first and isinstance(context, Tensor) else None


def _keep(cache: dict, key: Any, value: Any, most: int = 16) -> None:
    if len(cache) >= most:  # layouts of a run are few; a longer list means they keep changing
        cache.clear()
    cache[key] = value


def _check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise SteeringError(f"The {what} is '{value}', but must be one of {', '.join(choices)}.")
