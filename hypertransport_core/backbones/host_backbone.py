"""Any MODEL and CLIP that ComfyUI has loaded, as a Backbone: for fitting and training through the host's own code.

With `comfyui.py` the exception to the rule that the core never imports ComfyUI; import it only inside a host.

Noise levels are what the host calls 1 - percent, so equal steps are those of its scheduler "simple". Latents are kept in
coordinates in which pure noise is standard normal: those of the host for flow matching, and divided by
sqrt(sigma_data² + sigma²) for the models whose sigma has no bound (SD 1.5, SDXL, PixArt). So a run may begin at any
level, and its network then sees noise of unit variance, as one-step models were distilled on.
"""
from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import comfy.sd
import torch
from torch import Tensor, nn

from .. import files
from ..sites import Site, find_sites
from ..steering import Forward, Steering, shadowed
from .host import HostBackboneError

# In these, joint transformers later add to the normalised tensor in place, which would spoil what autograd kept.
_NORMS = ("LayerNorm", "RMSNorm", "GroupNorm")
# Of prompts already read; those used longest ago are read anew. T5 gives 4 MB a prompt.
MOST_REMEMBERED = 2 * 2**30
TIMESTEPS = 1000  # of the models that know timesteps; the last, 999, is noise level 1


class HostConditioning:
    """The conditioning of B prompts, one per row. Stands where the core passes a tensor (B, T, D): it has its first
    dimension, can be indexed by slice or by a long tensor, and moved to a device.

    rows: for each prompt what the model's `extra_conds` made of it, ready for `apply_model`.
    """

    def __init__(self, rows: Sequence[Mapping[str, comfy.conds.CONDRegular]], device: torch.device) -> None:
        self.rows, self.device = list(rows), device

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B,)."""
        return (len(self.rows),)

    def __getitem__(self, index: slice | Tensor) -> HostConditioning:
        rows = self.rows[index] if isinstance(index, slice) else [self.rows[i] for i in index.tolist()]
        return HostConditioning(rows, self.device)

    def to(self, device: Any) -> HostConditioning:
        """Itself: the rows are on the model's device already."""
        return self

    def together(self) -> dict[str, Any]:
        """Keyword arguments of one `apply_model` call over all rows. Raises HostBackboneError when they do not fit."""
        rows = with_masks(self.rows)
        first, names = rows[0], rows[0].keys()
        for other in rows[1:]:
            if other.keys() != names:
                raise HostBackboneError("The prompts got different kinds of conditioning from the text encoder, expected "
                                        "the same for all: use prompts of plain words.")
            for name in names:
                if not first[name].can_concat(other[name]):
                    raise HostBackboneError(f"The prompts got conditioning '{name}' of different shapes, expected the "
                                            "same: use prompts of similar length.")
        return {name: first[name].concat([row[name] for row in rows[1:]]) for name in names}


def with_masks(rows: Sequence[Mapping[str, comfy.conds.CONDRegular]]) -> Sequence[Mapping[str, comfy.conds.CONDRegular]]:
    """Conditioning whose rows all have an attention mask or none: the host leaves out one that masks nothing."""
    mask = next((row["attention_mask"] for row in rows if "attention_mask" in row), None)
    if mask is None:
        return rows
    whole = type(mask)(torch.ones_like(mask.cond))
    return [{**row, "attention_mask": row.get("attention_mask", whole)} for row in rows]


class HostBackbone:
    """A frozen MODEL of the host, whatever its family. Its weights and LoRAs count; wrappers and patches of other nodes
    (steering, attention patches, ControlNet) are not run.

    model: as a MODEL socket carries; clip: as a CLIP socket carries, needed to encode; vae: needed to decode;
    latent: a tensor (B, *latent_shape) of the size to work at, such as an empty latent's samples; channels are fitted to
    the model as samplers do. before_call: called before every network call, may raise to cancel.
    timesteps: for distilled models, the timesteps 0 to 999 that they are sampled at, falling; else levels are equally
    spaced. renoise: sample as the host's "lcm", with fresh noise in every step, instead of as its "euler".
    extra: what nodes add to a conditioning, such as {"guidance": 3.5} for FLUX.1-dev.
    """

    def __init__(self, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP | None = None, *, latent: Tensor,
                 vae: comfy.sd.VAE | None = None, before_call: Callable[[], None] | None = None,
                 timesteps: Sequence[int] = (), renoise: bool = False, extra: Mapping[str, Any] | None = None) -> None:
        import comfy.sample

        self.model, self.clip, self.vae = model, clip, vae
        self.before_call = before_call or (lambda: None)
        self.timesteps, self.renoise, self.extra = tuple(timesteps), renoise, dict(extra or {})
        self.steps_default = len(self.timesteps) or 4
        self.latent_shape = tuple(comfy.sample.fix_empty_latent_channels(model, latent[:1] * 0).shape[1:])
        self.family = family_of(model)
        self._encoded: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lengths: dict[str, int] = {}
        self._loaded = False
        if self.timesteps and isinstance(self.sampling, comfy.model_sampling.CONST):
            raise HostBackboneError(f"{self.family} is a flow model, which has no timesteps, expected none with it: leave "
                                    "timesteps empty.")

    @property
    def base(self) -> comfy.model_base.BaseModel:
        """The model inside the patcher, loaded on its device."""
        if not self._loaded:
            management.load_models_gpu([self.model], self.model.memory_required([8, *self.latent_shape]))
            self._loaded = True
        return self.model.model

    @property
    def network(self) -> nn.Module:
        """The diffusion model, whose sites are steered."""
        return self.base.diffusion_model

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.load_device

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which the network computes, whatever its weights are kept in."""
        return self.base.manual_cast_dtype or self.base.get_dtype()

    @property
    def sampling(self) -> Any:
        """The host's sigmas and parametrisation, after ModelSampling nodes."""
        return self.model.get_model_object("model_sampling")

    def sites(self, site_set: str = "attention_mlp", pattern: str | None = None) -> tuple[Site, ...]:
        """The steerable places of the network, see `find_sites`. Raises SiteError."""
        return find_sites(self.network, site_set, pattern=pattern)

    def fingerprint(self, sites: Sequence[Site] | None = None) -> dict[str, Any]:
        """What tells these weights from others, see `files.network_fingerprint`; over all sites unless some are given."""
        return files.network_fingerprint(self.network, self.sites("everything") if sites is None else sites)

    def prepare(self, prompts: Sequence[str]) -> None:
        """Read all prompts at once, so that text encoder and model need not take turns in memory. Raises
        HostBackboneError without a CLIP."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._encoded]
        for prompt in prompts:
            if prompt in self._encoded:
                self._encoded.move_to_end(prompt)
        if not missing:
            return
        if self.clip is None:
            raise HostBackboneError("There is no CLIP to read the prompts with; connect the CLIP that belongs to the model.")
        # The text encoder may move its weights, which the server made in inference mode and which can only be changed in
        # it; what comes out is copied by `ordinary`.
        with torch.inference_mode():
            found = self._encode_same_length(missing)
        self._encoded.update(zip(missing, found))
        self._loaded = False  # the text encoder may have taken the model's place
        self._forget(keep=len(set(prompts)))

    def _forget(self, keep: int) -> None:
        """Drop the prompts used longest ago, all but the last `keep` at most, until what is left fits."""
        sizes = [sum(v.nbytes for v in cond.values() if isinstance(v, Tensor)) for cond in self._encoded.values()]
        excess = sum(sizes) - MOST_REMEMBERED
        for prompt, size in list(zip(self._encoded, sizes))[:max(0, len(sizes) - keep)]:
            if excess <= 0:
                return
            del self._encoded[prompt]
            excess -= size

    def pad_to_longest(self, prompts: Sequence[str]) -> None:
        """Make room for these: text encoders without a fixed length pad every prompt to the longest of them from now
        on, so that prompts read at different times fit one batch and are read alike in each."""
        if self.clip is None:
            return
        probes = [self._token_counts(prompt) for prompt in ("a", "a small red house by the sea, seen from above")]
        if probes[0] == probes[1]:
            return  # all prompts have one length anyway
        for prompt in prompts:
            for name, count in self._token_counts(prompt).items():
                self._lengths[name] = max(count, self._lengths.get(name, 0))
        self._encoded.clear()

    def _token_counts(self, prompt: str) -> dict[str, int]:
        assert self.clip is not None
        return {name: len(rows[0]) for name, rows in self.clip.tokenize(prompt).items()}

    def _encode_same_length(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """One cond per prompt. Text encoders without a fixed length (T5 for PixArt, language models) get all prompts
        padded to the longest, as the host pads for others, so that they fit one batch."""
        assert self.clip is not None
        clip, tokens = self.clip, [self.clip.tokenize(prompt) for prompt in prompts]
        longest = {name: max(self._lengths.get(name, 0), *(len(t[name][0]) for t in tokens if name in t))
                   for name in tokens[0]}
        if any(len(t[name][0]) != longest[name] for t in tokens for name in t):
            options = {f"{name}_min_length": length for name, length in longest.items()}
            tokens = [clip.tokenize(prompt, tokenizer_options=options) for prompt in prompts]
        conds = []
        for each in tokens:
            self.before_call()
            (cond, extra), *_ = clip.encode_from_tokens_scheduled(each, show_pbar=False)
            conds.append({**extra, "cross_attn": cond, "model_conds": {}})
        return conds

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> HostConditioning:
        """B prompts -> conditioning, each prompt read once. Raises HostBackboneError without a CLIP."""
        self.prepare(prompts)
        noise = torch.zeros(1, *self.latent_shape, device=self.device)
        rows = []
        for prompt in prompts:
            cond = {key: ordinary(value) for key, value in self._encoded[prompt].items()} | self.extra
            (ready,) = comfy.samplers.encode_model_conds(self.base.extra_conds, [cond], noise, self.device, "positive",
                                                         latent_image=noise, seed=0)
            rows.append({key: value.process_cond(batch_size=1, device=self.device, area=None)
                         for key, value in ready["model_conds"].items()})
        return HostConditioning(rows, self.device)

    def encode_alone(self, prompt: str) -> HostConditioning:
        """One prompt as if it were the only one: padded to no other's length, as a stock node would encode it."""
        others = self._lengths, self._encoded
        self._lengths, self._encoded = {}, OrderedDict()
        try:
            return self.encode([prompt])
        finally:
            self._lengths, self._encoded = others

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """B seeds -> standard normal (B, *latent_shape) float32; row i depends on seeds[i] only, also on a GPU."""
        rows = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        return torch.stack(rows).to(self.device)

    def noise_levels(self, steps: int) -> list[float]:
        """steps + 1 equally spaced levels from 1.0 to 0.0, or those of the timesteps, then 0.0. Raises
        HostBackboneError for less than one step, or another number of steps than there are timesteps."""
        if steps < 1:
            raise HostBackboneError(f"The number of sampling steps is {steps}, but must be at least 1; use "
                                    f"{self.steps_default}.")
        if not self.timesteps:
            return [(steps - i) / steps for i in range(steps + 1)]
        if steps != len(self.timesteps):
            raise HostBackboneError(f"The number of sampling steps is {steps}, expected {len(self.timesteps)}, one for "
                                    f"each of the timesteps {', '.join(map(str, self.timesteps))}: change one of them.")
        return [step / (TIMESTEPS - 1) for step in self.timesteps] + [0.0]

    def sigma(self, level: float) -> float:
        """The host's sigma at a noise level; level 1 is its largest."""
        sampling = self.sampling
        return min(float(sampling.percent_to_sigma(1.0 - level)), float(sampling.sigma_max))

    def spread(self, sigma: float) -> float:
        """Factor from our latents, in which noise is standard normal, to the host's at a sigma."""
        sampling = self.sampling
        if isinstance(sampling, comfy.model_sampling.CONST):
            return 1.0
        return float((float(getattr(sampling, "sigma_data", 1.0)) ** 2 + sigma**2) ** 0.5)

    def denoise(self, x: Tensor, level: float, conditioning: HostConditioning) -> Tensor:
        """Predicted clean latents of x (B, *latent_shape) at a noise level, float32. One row of conditioning serves all.

        Gradients flow to x and to whatever is installed on the network, if the weights are ordinary tensors; see
        `trainable`. Raises HostBackboneError.
        """
        self.before_call()
        base, rows = self.base, x.shape[0]
        if len(conditioning) == 1 < rows:
            conditioning = HostConditioning(conditioning.rows * rows, conditioning.device)
        sigma = self.sigma(level)
        sigmas = torch.full((rows,), sigma, device=x.device)
        options = {"cond_or_uncond": [0] * rows, "sigmas": sigmas,
                   "sample_sigmas": torch.tensor([sigma, 0.0], device=x.device)}
        with safe_norms(base.diffusion_model) if torch.is_grad_enabled() else nullcontext():
            return base.apply_model(x * self.spread(sigma), sigmas, transformer_options=options, **conditioning.together())

    def advance(self, x: Tensor, clean: Tensor, level: float, next_level: float, noise: Tensor | None = None) -> Tensor:
        """One step of the host's sampler "euler", or "lcm" with `renoise`, from one noise level to the next.

        noise: what the run began with, x itself if not given; "lcm" draws its fresh noise from it (`fresh_noise`).
        """
        if next_level <= 0.0:
            return clean
        sigma, following = self.sigma(level), self.sigma(next_level)
        if self.renoise:
            fresh = fresh_noise(x if noise is None else noise, next_level)
            noised = self.sampling.noise_scaling(torch.tensor(following, device=x.device), fresh, clean)
            return noised / self.spread(following)
        moved = clean + (x * self.spread(sigma) - clean) * (following / sigma)
        return moved / self.spread(following)

    def sample(self, conditioning: HostConditioning, noise: Tensor, steps: int = 4, steering: Sequence[Steering] = (),
               rows: Tensor | None = None, start: float = 1.0) -> Tensor:
        """Latents (B, *latent_shape) by Euler's method, without guidance; gradients flow. See `Backbone.sample`."""
        x, levels = noise, [start * level for level in self.noise_levels(steps)]
        for level, following in zip(levels, levels[1:]):
            with ExitStack() as stack:
                for one in steering:
                    stack.enter_context(one.installed(self.network, noise_level=level, batch=x.shape[0], rows=rows))
                clean = self.denoise(x, level, conditioning)
            x = self.advance(x, clean, level, following, noise)
        return x

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures (B, 3, H, W) in [0, 1], without gradient. Raises HostBackboneError without a VAE."""
        if self.vae is None:
            raise HostBackboneError("There is no VAE to decode with; connect the VAE that belongs to the model.")
        pictures = self.vae.decode(self.base.process_latent_out(latents.detach().float()))
        self._loaded = False  # the VAE may have taken the model's place
        if not bool(pictures.isfinite().all()):
            raise HostBackboneError("The VAE made pictures that are not finite, expected finite numbers: use a VAE that "
                                    "works in half precision, such as sdxl-vae-fp16-fix for SDXL.")
        if pictures.ndim == 5:  # a video of one frame
            pictures = pictures[:, 0]
        return pictures[..., :3].movedim(-1, 1).float()


def family_of(model: comfy.model_patcher.ModelPatcher) -> str:
    """The architecture's name as files record it: "postcard", else the host's own name for its configuration."""
    name = type(model.model.model_config).__name__
    return "postcard" if name == "PostcardConfig" else name


def fresh_noise(noise: Tensor, level: float) -> Tensor:
    """Standard normal noise like `noise` (B, ...), another for every noise level; row i depends on row i of `noise`
    only, bit for bit, so on its seed, and on no other row or device."""
    rows = []
    for row in noise:
        start = row.flatten()[:64].float().cpu().contiguous().numpy().tobytes()
        seed = int.from_bytes(hashlib.sha256(start + f"{level:.6f}".encode()).digest()[:7], "big")
        rows.append(torch.randn(row.shape, generator=torch.Generator().manual_seed(seed)))
    return torch.stack(rows).to(noise)


def ordinary(value: Any) -> Any:
    """A tensor that autograd may keep: a copy, when it was made in inference mode; other values as they are."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


@contextmanager
def safe_norms(network: nn.Module) -> Iterator[None]:
    """Inside the block norms see a copy of their input. Without it the in-place residual adds of Flux and HunyuanVideo
    break backward, or with checkpointing give wrong gradients without a word."""

    def make(forward: Forward) -> Forward:
        return lambda x, *args, **kwargs: forward(x.clone(), *args, **kwargs)

    root = getattr(network, "_orig_mod", network)
    paths = [path for path, module in root.named_modules() if type(module).__name__ in _NORMS]
    with shadowed(root, dict.fromkeys(paths, make)):
        yield


@contextmanager
def trainable(model: nn.Module) -> Iterator[None]:
    """Inside the block autograd works through `model`, also in the server, which loads weights in inference mode.

    Every parameter and buffer made there is replaced by a copy, for which memory must suffice, and put back as it was.
    Weights loaded outside inference mode are not touched.
    """
    undo: list[tuple[dict[str, Any], str, Any]] = []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for module in model.modules():
                tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
                for table in tables:
                    for name, value in table.items():
                        if value is not None and value.is_inference():
                            undo.append((table, name, value))
                            copy = value.detach().clone()
                            table[name] = nn.Parameter(copy, False) if isinstance(value, nn.Parameter) else copy
            yield
    finally:
        for table, name, value in reversed(undo):
            table[name] = value
