"""Finding and naming the places of a network that can be steered.

A site is a module whose output gets an affine map. Only modules that are really *called* qualify: a network that reads
`block.attn.to_out` directly never calls `block.attn`, and whatever sits there would silently do nothing.
"""
from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

SITE_KINDS: tuple[str, ...] = ("self_attention", "cross_attention", "mlp", "norm", "convolution")

SITE_SETS: dict[str, tuple[str, ...]] = {
    "attention_mlp": ("self_attention", "cross_attention", "mlp"),
    "norm": ("norm",),
    "mlp": ("mlp",),
    "all": ("self_attention", "cross_attention", "mlp", "norm"),
    "everything": SITE_KINDS,
}

_UNET = r"(?:input_blocks\.\d+\.\d+|middle_block\.\d+|output_blocks\.\d+\.\d+)"
_UNET_TRANSFORMER = _UNET + r"\.transformer_blocks\.\d+"
_FLUX = r"double_blocks\.\d+\.(?:img|txt)"
_SD3 = r"joint_blocks\.\d+\.(?:x_block|context_block)"

# Matched against whole paths from the root of the network, so a `blocks.0.norm1` inside a text refiner is not taken for
# one of the backbone. On the UNet it is `attn1.to_out`, not `attn1`, which attention replacements like PAG skip.
# Flux's `linear2` ends attention and MLP at once; it counts as MLP because four fifths of its inputs are.
_LAYOUTS: dict[str, tuple[str, ...]] = {
    "self_attention": (
        _UNET_TRANSFORMER + r"\.attn1\.to_out",
        r"blocks\.\d+\.(?:attn|self_attn)",  # PixArt, Wan
        _FLUX + r"_attn\.proj",
        _SD3 + r"\.attn2?\.proj",
    ),
    "cross_attention": (_UNET_TRANSFORMER + r"\.attn2\.to_out", r"blocks\.\d+\.cross_attn"),
    "mlp": (
        _UNET_TRANSFORMER + r"\.ff",
        r"blocks\.\d+\.(?:mlp|ffn)",
        _FLUX + r"_mlp",
        r"single_blocks\.\d+\.linear2",
        _SD3 + r"\.mlp",
    ),
    "norm": (
        _UNET_TRANSFORMER + r"\.norm[123]",
        _UNET + r"\.(?:norm|in_layers\.0|out_layers\.0)",
        r"out\.0",
        r"blocks\.\d+\.norm[123]",
        _FLUX + r"_norm[12]",
        r"single_blocks\.\d+\.pre_norm",
        _SD3 + r"\.norm[12]",
        r"final_layer\.norm_final",
        r"head\.norm",
    ),
    "convolution": (_UNET + r"\.(?:in_layers\.2|out_layers\.3)",),
}
_KIND_PATTERNS = {kind: re.compile("|".join(f"(?:{p})" for p in patterns)) for kind, patterns in _LAYOUTS.items()}
_TEXT_STREAM = re.compile(r"(?:^|\.)(?:txt_|context_block\.)")

# Children that end a composite module, in the order in which they are looked for. Taking the last child instead would
# be wrong: Wan's image cross-attention registers `v_img` last, but ends with `o`.
_OUTPUT_CHILDREN = ("to_out", "proj", "o", "fc2", "net")


class SiteError(ValueError):
    """A network, site set or site that does not fit; the message is one sentence with the cure."""


@dataclass(frozen=True)
class Site:
    """One steerable place of a network.

    path: module path below the network, as in `named_modules()`; kind: one of `SITE_KINDS`; channels: width C of the
    output; channel_dim: -1 for tokens (..., C), 1 for feature maps (B, C, H, W).
    """

    path: str
    kind: str
    channels: int
    channel_dim: int = -1

    def __post_init__(self) -> None:
        if self.kind not in SITE_KINDS:
            raise SiteError(f"Site '{self.path}' has the kind '{self.kind}'; use one of {', '.join(SITE_KINDS)}.")
        if self.channels < 1:
            raise SiteError(f"Site '{self.path}' has {self.channels} channels, but must have at least 1.")
        if self.channel_dim not in (-1, 1):
            raise SiteError(f"Site '{self.path}' has channel_dim {self.channel_dim}; use -1 (tokens) or 1 (NCHW).")

    @property
    def is_text_stream(self) -> bool:
        """Whether the site acts on text tokens (half of a joint transformer), which have no place in the picture."""
        return _TEXT_STREAM.search(self.path) is not None


def find_sites(network: nn.Module, site_set: str = "attention_mlp", *, pattern: str | None = None) -> tuple[Site, ...]:
    """The sites of a network, in the order of `named_modules()`.

    Known layouts, in their original (ldm / ComfyUI) parameter names: SD 1.x, 2.x and SDXL UNets, PixArt, Flux and
    HunyuanVideo / HunyuanImage, SD3, Wan. `network` is the diffusion model itself, compiled or not.

    site_set: a key of `SITE_SETS`. pattern: a regular expression; only sites in whose path it is found are kept.
    Raises SiteError for an unknown set, an invalid pattern, or when no site is left.
    """
    if site_set not in SITE_SETS:
        raise SiteError(f"There is no site set '{site_set}'; choose one of {', '.join(SITE_SETS)}.")
    try:
        wanted = re.compile(pattern or "")
    except re.error as error:
        raise SiteError(f"The site pattern '{pattern}' is not a regular expression ({error}); correct it.") from error
    found = []
    for name, module in network.named_modules():
        path = name.replace("_orig_mod.", "")  # torch.compile's wrappers are no part of the address
        kind = _kind_of(path)
        if kind not in SITE_SETS[site_set] or isinstance(module, nn.Identity) or not wanted.search(path):
            continue
        found.append(Site(path, kind, *_width(module, path)))
    if not found:
        among = f" matching '{pattern}'" if pattern else ""
        raise SiteError(f"The network {type(network).__name__} has no sites of the set '{site_set}'{among}; use "
                        "another set or pattern, or a network of a known layout (SD, SDXL, PixArt, Flux, SD3, Wan).")
    return tuple(found)


def total_channels(sites: Iterable[Site]) -> int:
    """Sum of the channels of all sites: the width of one row of `TransportMaps.scale`."""
    return sum(site.channels for site in sites)


def site_slices(sites: Iterable[Site]) -> dict[str, slice]:
    """Where each site's channels lie in a row of concatenated sites: {path: slice}."""
    slices, start = {}, 0
    for site in sites:
        slices[site.path] = slice(start, start + site.channels)
        start += site.channels
    return slices


def site_module(network: nn.Module, path: str) -> nn.Module:
    """The module of a site, seen through torch.compile's wrapper. Raises SiteError when there is none."""
    root = getattr(network, "_orig_mod", network)
    try:
        return root.get_submodule(path)
    except AttributeError as error:
        raise SiteError(f"The network {type(root).__name__} has no module '{path}'; these sites belong to another "
                        "network, so load the model that the maps were made for.") from error


def output_module(module: nn.Module, path: str = "") -> tuple[str, nn.Module]:
    """Path and module of the leaf whose output is that of `module`: a norm, convolution, or a composite's last Linear.

    Raises SiteError when there is none.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)):
        return path, module
    for name, child in _endings(module):
        return output_module(child, f"{path}.{name}" if path else name)
    raise SiteError(f"The number of channels of site '{path}' ({type(module).__name__}) cannot be read; steer a "
                    "Linear, Conv2d, GroupNorm or LayerNorm, or a module that ends with one.")


def _endings(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        return [(n, c) for n, c in reversed(children.items()) if not isinstance(c, (nn.Dropout, nn.Identity))]
    return [(name, children[name]) for name in _OUTPUT_CHILDREN if name in children]


def _kind_of(path: str) -> str | None:
    return next((kind for kind, pattern in _KIND_PATTERNS.items() if pattern.fullmatch(path)), None)


def _width(module: nn.Module, path: str) -> tuple[int, int]:
    """(channels, channel_dim) of a module's output."""
    _, leaf = output_module(module, path)
    if isinstance(leaf, nn.Linear):
        return leaf.out_features, -1
    if isinstance(leaf, nn.Conv2d):
        return leaf.out_channels, 1
    if isinstance(leaf, nn.GroupNorm):
        return leaf.num_channels, 1
    assert isinstance(leaf, nn.LayerNorm)
    return leaf.normalized_shape[-1], -1
