"""The adapter to ComfyUI: Postcard as its MODEL, CLIP and VAE. Import it only inside a host."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import files
from ..postcard.clip import TEXT_WIDTH, PostcardCLIP, WordTokenizer, read_over, words_of
from ..postcard.model import KIND, PATCH, TIMESTEPS
from ..postcard.unet import UNetConfig


class PostcardLatents(comfy.latent_formats.LatentFormat):
    """48 channels at a quarter of the picture's side: 4 x 4 pixels of RGB in [-1, 1], unscaled."""

    latent_channels = 3 * PATCH * PATCH
    # Newer hosts fit the stock Empty Latent Image, which is a picture's side / 8, to the model by this number.
    spacial_downscale_ratio = PATCH

    def __init__(self) -> None:
        # The preview is a linear map: the mean of each colour's 16 channels. Previews expect values in [-1, 1].
        share = 1.0 / (PATCH * PATCH)
        self.latent_rgb_factors = [[share if colour == c // PATCH**2 else 0.0 for colour in range(3)] for c in range(self.latent_channels)]


class FlowToPicture(comfy.model_sampling.CONST):
    """ComfyUI's rectified flow (x_t = (1 - t) x0 + t noise) for a network that predicts x0 itself instead of noise - x0."""

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_output


class PostcardSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, FlowToPicture):
    """Sigmas are noise levels in [0, 1], without shift."""


class PostcardModel(comfy.model_base.BaseModel):
    """The host's BaseModel, whose network predicts x0 under whichever flow schedule a ModelSampling node has put in place."""

    model_sampling: Any

    def _apply_model(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        schedule = self.model_sampling
        if isinstance(schedule, FlowToPicture):
            return super()._apply_model(x, t, *args, **kwargs)
        if not isinstance(schedule, comfy.model_sampling.CONST):
            raise ValueError(f"Postcard cannot be sampled with {_noise_rule(schedule)}, expected a flow: take the node that changes the "
                             "model's sampling away, or use ModelSamplingSD3")
        # Schedules like ModelSamplingSD3's only choose other noise levels; at each level the network's time and its answer,
        # a picture, mean the same. So for this one call it is read by its own rule.
        self.model_sampling = PostcardSampling(self.model_config)
        try:
            return super()._apply_model(x, t, *args, **kwargs)
        finally:
            self.model_sampling = schedule


def _noise_rule(schedule: object) -> str:
    """The host's name of a schedule's noise rule, such as EPS; node classes are all called ModelSamplingAdvanced."""
    return next((base.__name__ for base in reversed(type(schedule).__mro__) if base.__module__ == comfy.model_sampling.__name__),
                type(schedule).__name__)


class PostcardConfig(comfy.supported_models.SD15):
    """Stable Diffusion 1.5 with free dimensions. Only built by `postcard_model`, never by ComfyUI's detection."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}  # SD15 would force 8 heads
    sampling_settings = {"shift": 1.0, "multiplier": TIMESTEPS}
    latent_format = PostcardLatents
    supported_inference_dtypes = [torch.float32, torch.bfloat16, torch.float16]

    def model_type(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.FLOW

    def inpaint_model(self) -> bool:
        return False  # more than 4 input channels would otherwise be taken for an inpainting model

    def get_model(self, state_dict: Mapping[str, Tensor], prefix: str = "", device: Any = None) -> comfy.model_base.BaseModel:
        model = PostcardModel(self, model_type=self.model_type(state_dict, prefix), device=device)
        model.model_sampling = PostcardSampling(self)
        return model


def postcard_model(state_dict: Mapping[str, Tensor], config: UNetConfig, *, dtype: torch.dtype = torch.float32,
                   ) -> comfy.model_patcher.ModelPatcher:
    """What a MODEL socket carries, with ComfyUI's own UNetModel inside.

    state_dict: of a `PostcardUNet`, any float dtype, all names required (RuntimeError otherwise); dtype: of the weights in use.
    """
    settings = PostcardConfig(config.to_comfy_config())
    settings.set_inference_dtype(dtype, None)
    model = settings.get_model({}).train(False).requires_grad_(False)
    # ComfyUI leaves parameters uninitialised, so a missing name must not pass.
    model.diffusion_model.load_state_dict({name: value.to(dtype) for name, value in state_dict.items()}, strict=True)
    return comfy.model_patcher.ModelPatcher(model, load_device=management.get_torch_device(),
                                            offload_device=management.unet_offload_device())


def load_postcard_model(path: str | Path, *, dtype: torch.dtype = torch.float32) -> comfy.model_patcher.ModelPatcher:
    """`postcard_model` from a `postcard_model` file. Raises FileError."""
    tensors, header = files.load_file(path, KIND)
    try:
        return postcard_model(tensors, UNetConfig.from_dict(header["config"]), dtype=dtype)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise files.FileError(f"{path} does not hold a whole Postcard network ({reason}), expected its weights and dimensions: "
                              "download or train the file again") from error


class PixelShuffle(torch.nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] <-> latents (B, 48, H/4, W/4), without loss."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)  # the host reads dtype and device off a parameter

    def encode(self, pixels: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return F.pixel_unshuffle(pixels, PATCH)

    def decode(self, samples: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return F.pixel_shuffle(samples, PATCH)


def postcard_vae() -> comfy.sd.VAE:
    """What a VAE socket carries: exact, and nothing to load from a file."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    vae.first_stage_model = PixelShuffle().train(False).to(vae.vae_dtype)
    vae.latent_channels = 3 * PATCH * PATCH
    vae.downscale_ratio = vae.upscale_ratio = PATCH
    vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, load_device=vae.device,
                                                   offload_device=management.vae_offload_device())
    return vae


class PostcardTokenizer:
    """Words to ids in the host's form, {"postcard": [[(id, weight), ...]]}, one row of 24 as `PostcardCLIP.tokenize` gives.

    (word) and (word:1.2) carry weights as everywhere in the host, so parentheses that mean nothing need a backslash. Words
    beyond 22 are left out; textual inversions ("embedding:") are unknown words here.
    """

    def __init__(self, words: WordTokenizer) -> None:
        self.words = words

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, list[list[tuple[Any, ...]]]]:
        """One row of (id, weight) or (id, weight, number of the word, 0 for begin, end and padding)."""
        if kwargs.get("disable_weights", False):
            parts = [(text, 1.0)]
        else:
            escaped = comfy.sd1_clip.escape_important(text)
            parts = [(comfy.sd1_clip.unescape_important(part), weight) for part, weight in comfy.sd1_clip.token_weights(escaped, 1.0)]
        words = [(word, weight) for part, weight in parts for word in words_of(part)]
        self._report(words)
        words = words[:self.words.length - 2]
        row: list[tuple[Any, ...]] = [(self.words.begin_id, 1.0, 0)]
        row += [(self.words.word_id(word), weight, number) for number, (word, weight) in enumerate(words, 1)]
        row += [(self.words.end_id, 1.0, 0)]
        row += [(self.words.pad_id, 1.0, 0)] * (self.words.length - len(row))
        return {"postcard": [row if return_word_ids else [entry[:2] for entry in row]]}

    def _report(self, words: Sequence[tuple[str, float]]) -> None:
        unknown = [word for word, _ in words if self.words.word_id(word) == self.words.unknown_id]
        if unknown:
            logging.warning("%s", read_over(unknown))
        if len(words) > self.words.length - 2:
            logging.warning("Postcard reads %d words of a prompt, the last %d are left out.", self.words.length - 2,
                            len(words) - self.words.length + 2)

    def untokenize(self, token_weight_pair: Sequence[tuple[Any, ...]]) -> list[tuple[tuple[Any, ...], str]]:
        """Each entry with its word, for tools that show tokens."""
        special = {self.words.pad_id: "<pad>", self.words.begin_id: "<begin>", self.words.unknown_id: "<unknown>", self.words.end_id: "<end>"}
        return [(entry, special.get(entry[0]) or self.words.vocabulary[entry[0] - 3]) for entry in token_weight_pair]

    def state_dict(self) -> dict[str, Any]:
        """Nothing that a checkpoint would have to hold."""
        return {}


class PostcardTextEncoder(torch.nn.Module):
    """What a CLIP socket's `cond_stage_model` has to be, around a `PostcardCLIP`."""

    def __init__(self, clip: PostcardCLIP) -> None:
        super().__init__()
        self.clip = clip.train(False).requires_grad_(False)
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: Mapping[str, Any]) -> None:
        """Nothing to set: CLIP Set Last Layer does not act on Postcard."""

    def reset_clip_options(self) -> None:
        """Nothing to take back."""

    @torch.no_grad()
    def encode_token_weights(self, token_weight_pairs: Mapping[str, Sequence[Sequence[tuple[Any, ...]]]]) -> tuple[Tensor, Tensor]:
        """States (1, 24 x rows, 192) and the first row's embedding (1, 128), float32 on the host's intermediate device.

        A word's weight moves its state away from the empty prompt's state at that place, or towards it, as in the host's own
        encoders; all weights 1 leaves every bit of the states as it is.
        """
        rows = token_weight_pairs["postcard"]
        if any(not isinstance(entry[0], int) for row in rows for entry in row):
            raise ValueError("Postcard's text encoder cannot take textual inversions, expected words only: take them out of the prompt")
        ids = torch.tensor([[entry[0] for entry in row] for row in rows], device=self.clip.device)
        weights = torch.tensor([[float(entry[1]) for entry in row] for row in rows], device=self.clip.device)
        states = self.clip.text_tokens(ids)
        if bool((weights != 1.0).any()):
            empty = self.clip.text_tokens(self.clip.tokenize([""])[0])
            states = torch.where(weights[..., None] == 1.0, states, empty + weights[..., None] * (states - empty))
        device = management.intermediate_device()
        return states.reshape(1, -1, TEXT_WIDTH).to(device), self.clip.encode_ids(ids[:1]).to(device)

    def load_sd(self, state_dict: Mapping[str, Tensor]) -> Any:
        """Weights as the host hands them over."""
        return self.clip.model.load_state_dict(state_dict, strict=False)


def postcard_clip(clip: PostcardCLIP) -> comfy.sd.CLIP:
    """What a CLIP socket carries; the host then moves `clip` between devices. Conditioning equals `PostcardBackbone.encode`."""

    class Target:
        params: dict[str, Any] = {}

        @staticmethod
        def clip(**_settings: Any) -> PostcardTextEncoder:  # the host names its own dtype and device; this one stays float32
            return PostcardTextEncoder(clip)

        @staticmethod
        def tokenizer(**_settings: Any) -> PostcardTokenizer:
            return PostcardTokenizer(clip.tokenizer)

    return comfy.sd.CLIP(Target, parameters=sum(p.numel() for p in clip.parameters()))
