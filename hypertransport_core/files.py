"""The one file format of the pack: safetensors whose metadata key `hypertransport` holds a JSON header."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .sites import Site, SiteError, output_module, site_module

FORMAT_VERSION = 1
METADATA_KEY = "hypertransport"
MAX_HEADER_BYTES = 32 * 1024 * 1024
RESPONSE = "+response-"  # in an encoder's id, before what tells how the base model's response is read
AGAIN = "download the file again or export it anew"


class FileError(ValueError):
    """A file that cannot be used or written; the message is one sentence: path, what was found and expected, cure."""


def content_checksum(tensors: Mapping[str, Tensor], kind: str, header: Mapping[str, Any]) -> str:
    """sha256 (hex) over kind and header (as canonical JSON) and, by name, dtypes, shapes and bytes of all tensors."""
    digest = hashlib.sha256(json.dumps([kind, header], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def facts_digest(facts: Any) -> str:
    """Sixteen letters that tell JSON-able facts: the start of the sha256 of their canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def save_file(path: str | Path, tensors: Mapping[str, Tensor], kind: str, header: Mapping[str, Any],
              modelspec: Mapping[str, str] | None = None) -> None:
    """Write `tensors` and `header` to `path`, whole or not at all; an existing file stays as it was if anything fails.

    kind: what the file is (`hypernetwork`, `transport_maps`, ...); header: JSON-able facts, read back by
    `load_file`; modelspec: texts stored as `modelspec.<key>`. Parent folders are made. Raises FileError.
    """
    path = Path(path)
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in ready.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FileError(f"{path} was not written: its tensor '{name}' holds NaN or infinite values, expected "
                            "finite numbers: lower the learning rate or go back to an earlier checkpoint")
    full = {"format_version": FORMAT_VERSION, "kind": kind, "tensors": {n: list(t.shape) for n, t in ready.items()},
            "header": dict(header)}
    try:
        # tuples become lists and number keys texts, so that what will be read back is what is hashed
        full = json.loads(json.dumps(full, allow_nan=False))
        full["checksum"] = content_checksum(ready, kind, full["header"])
        text = json.dumps(full)
    except (TypeError, ValueError) as error:
        raise FileError(f"{path} was not written: its header is not plain JSON ({error}), "
                        "expected texts, finite numbers, lists and dictionaries only: convert the values "
                        "first") from error
    metadata = {METADATA_KEY: text, "format": "pt"}
    for key, value in (modelspec or {}).items():
        metadata[f"modelspec.{key.removeprefix('modelspec.')}"] = str(value)
    # Tied tensors share memory, which safetensors refuses; each gets its own bytes.
    seen: set[int] = set()
    for name, tensor in ready.items():
        if tensor.untyped_storage().data_ptr() in seen:
            ready[name] = tensor.clone()
        seen.add(ready[name].untyped_storage().data_ptr())
    from safetensors.torch import save_file as write

    write_atomically(path, lambda temporary: write(ready, str(temporary), metadata=metadata))


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)` on a new file beside `path`, flush it to the disk, then move it over `path`.

    On any failure the temporary file is removed and `path` is what it was. Raises FileError for whatever the disk
    refuses.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(f"'{path.name}' is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(_usual_mode(path))
        os.replace(temporary, path)
        temporary = None
    except FileError:
        raise
    except Exception as error:  # safetensors wraps the system's errors in its own kinds
        if not isinstance(error, (OSError, ValueError, RuntimeError)) and type(error).__name__ != "SafetensorError":
            raise
        raise FileError(f"{path} was not written ({_reason(error)}), expected a writable folder with free space: "
                        "free some space or choose another place; what was there before is untouched") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _usual_mode(path: Path) -> int:
    # mkstemp makes files private; the finished file should be readable like any other
    return path.stat().st_mode & 0o777 if path.exists() else 0o644


def _reason(error: BaseException) -> str:
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip().rstrip(".").split("\n")[0]
    return "the disk is full" if "No space left" in text or "os error 28" in text else text


def read_header(path: str | Path) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Read only the front of a file: (full header, all metadata, safetensors table of tensors). Raises FileError."""
    path = Path(path)
    table, _ = _read_table(path)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise FileError(f"{path} has a damaged header (metadata is no dictionary), expected a safetensors file: "
                        f"{AGAIN}")
    if METADATA_KEY not in metadata:
        raise FileError(f"{path} is a safetensors file without '{METADATA_KEY}' metadata, expected a file written by "
                        "HyperTransport: choose a hypernetwork or transport maps file, other weights go to their own "
                        "loader")
    try:
        full = json.loads(metadata[METADATA_KEY])
    except (TypeError, ValueError, RecursionError) as error:
        raise FileError(f"{path} has a damaged '{METADATA_KEY}' header ({_reason(error)}), expected JSON: "
                        f"{AGAIN}") from error
    if not isinstance(full, dict):
        raise FileError(f"{path} has a '{METADATA_KEY}' header that is a {type(full).__name__}, expected a dictionary: "
                        f"{AGAIN}")
    return full, metadata, table


def _read_table(path: Path) -> tuple[dict[str, Any], int]:
    """The safetensors table and the byte where tensor data begins; no more is allocated than the file really holds."""
    try:
        if path.is_dir():
            raise FileError(f"{path} is a folder, expected one .safetensors file: choose the file inside it")
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise FileError(f"{path} holds {size} bytes, expected a safetensors file of at least 8: {AGAIN}")
            (length,) = struct.unpack("<Q", start)
            # Only where the bytes cannot be a length: a sound header may happen to be 128 or 0x4b50 bytes long.
            if length > size - 8 and (start[:2] == b"PK" or start[:1] == b"\x80"):
                raise FileError(f"{path} is an old PyTorch checkpoint (.ckpt, .pt, .bin) under another name, expected "
                                "safetensors: convert it in the program that wrote it, such files are never opened "
                                "here")
            if length > MAX_HEADER_BYTES or length > size - 8:
                raise FileError(f"{path} claims a header of {length} bytes in a file of {size} bytes, expected at most "
                                f"{min(MAX_HEADER_BYTES, max(size - 8, 0))}: the file is cut short or no safetensors, "
                                f"{AGAIN}")
            raw = file.read(length)
    except OSError as error:
        raise FileError(f"{path} cannot be read ({_reason(error)}), expected a readable file: "
                        "check the path and its permissions") from error
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} has an unreadable safetensors header ({_reason(error)}), expected JSON: "
                        f"{AGAIN}") from error
    if not isinstance(table, dict):
        raise FileError(f"{path} has a safetensors header that is a {type(table).__name__}, expected a dictionary: "
                        f"{AGAIN}")
    return table, 8 + length


def check_safetensors(path: str | Path) -> None:
    """Refuse a file of any origin that is no whole-looking safetensors; reads its table only. Raises FileError."""
    path = Path(path)
    table, begin = _read_table(path)
    try:
        end = max((entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"), default=0)
        whole = begin + end == path.stat().st_size
    except (KeyError, IndexError, TypeError) as error:
        raise FileError(f"{path} has a damaged table of tensors ({_reason(error)}), expected safetensors: "
                        f"{AGAIN}") from error
    if not whole:
        raise FileError(f"{path} holds {path.stat().st_size} bytes, expected {begin + end}: it is cut short, {AGAIN}")


def load_file(path: str | Path, kind: str | tuple[str, ...] | None = None, *, verify: bool = True,
              ) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read (tensors, header) of a file written by `save_file`; the header gains nothing and loses nothing.

    kind: the kind(s) accepted, None = any; verify: compare the checksum, so that flipped data bytes are found, and
    refuse NaN or infinite values. Tensors are on the CPU in their stored dtypes. Raises FileError.
    """
    path = Path(path)
    full, _, table = read_header(path)
    _check_version_and_kind(path, full, kind)
    declared = full.get("tensors")
    header = full.get("header")
    if not isinstance(declared, dict) or not isinstance(header, dict) or not isinstance(full.get("checksum"), str):
        raise FileError(f"{path} lacks parts of its header, expected 'tensors', 'checksum' and 'header': {AGAIN}")
    found = {name: entry.get("shape") if isinstance(entry, dict) else None for name, entry in table.items()}
    for name in sorted(declared.keys() ^ found.keys()):
        where = ("names '{}' in its header but holds no such tensor" if name in declared
                 else "holds a tensor '{}' that its header does not name").format(name)
        raise FileError(f"{path} {where}, expected both to agree: {AGAIN}")
    for name, shape in declared.items():
        if found[name] != shape:
            raise FileError(f"{path} holds '{name}' with the shape {found[name]}, expected {shape} as its header "
                            f"declares: {AGAIN}")
    tensors = _read_tensors(path)
    for name, tensor in tensors.items() if verify else ():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FileError(f"{path} holds NaN or infinite values in '{name}', expected finite numbers: use an earlier "
                            "or another file")
    if verify and content_checksum(tensors, full["kind"], header) != full["checksum"]:
        raise FileError(f"{path} does not match its own checksum, expected sha256 {full['checksum'][:12]}...: "
                        f"bytes were changed on the way, {AGAIN}")
    return tensors, header


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        # Bytes are read rather than mapped: a mapped file that is replaced or cut later would take the process down.
        return load(path.read_bytes())
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError,
            AttributeError) as error:
        raise FileError(f"{path} is damaged ({_reason(error)}), expected a whole safetensors file: {AGAIN}") from error


def _check_version_and_kind(path: Path, full: Mapping[str, Any], kind: str | tuple[str, ...] | None) -> None:
    version = full.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FileError(f"{path} has the format version {version!r}, expected a whole number from 1 to "
                        f"{FORMAT_VERSION}: {AGAIN}")
    if version > FORMAT_VERSION:
        raise FileError(f"{path} has format version {version}, this HyperTransport reads up to {FORMAT_VERSION}: "
                        "update the node pack")
    kinds = (kind,) if isinstance(kind, str) else kind
    if kinds is not None and full.get("kind") not in kinds:
        raise FileError(f"{path} is a '{full.get('kind')}' file, expected '{' or '.join(kinds)}': choose a file of "
                        "that kind")


def sites_to_header(sites: Sequence[Site]) -> list[list[Any]]:
    """Sites as plain JSON: [path, kind, channels, channel_dim] each, in order."""
    return [[site.path, site.kind, site.channels, site.channel_dim] for site in sites]


def sites_from_header(header: Mapping[str, Any], path: str | Path) -> tuple[Site, ...]:
    """The ordered sites of a header's 'sites' entry; raises FileError if they are no list of sites."""
    try:
        sites = tuple(Site(str(entry[0]), entry[1], int(entry[2]), int(entry[3])) for entry in header["sites"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise FileError(f"{path} has no proper list of sites ({_reason(error)}), expected [path, kind, channels, "
                        f"channel dimension] each: {AGAIN}") from error
    if not sites or len({site.path for site in sites}) != len(sites):
        raise FileError(f"{path} lists {len(sites)} sites, expected at least one and none twice: {AGAIN}")
    return sites


def weight_signs(tensor: Tensor, count: int = 64) -> str:
    """Sign bits of `count` evenly spaced values as hex: the same in fp32, fp16, bf16 and fp8 and at any scale."""
    flat = tensor.detach().reshape(-1)
    index = torch.linspace(0, flat.numel() - 1, count, dtype=torch.float64).round().long().to(flat.device)
    bits = torch.signbit(flat[index].float()).tolist()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):0{(count + 3) // 4}x}"


def network_fingerprint(network: nn.Module, sites: Sequence[Site], parameters: int = 16) -> dict[str, Any]:
    """What tells one backbone from another, JSON-able, independent of dtype and device.

    Returns {"structure": hash over site paths, kinds and channels, "weights": {parameter name: sign bits as hex}} of
    about `parameters` matrices spread over the network. Copies agree fully, fine-tunes almost, others by half.
    """
    structure = hashlib.sha256(json.dumps(sites_to_header(sites)).encode()).hexdigest()[:16]
    matrices = [(name.replace("_orig_mod.", ""), value) for name, value in network.named_parameters()
                if value.ndim >= 2 and value.is_floating_point() and not value.is_meta and value.numel() >= 64]
    chosen = matrices[::max(1, len(matrices) // parameters)]
    return {"structure": structure, "weights": {name: weight_signs(value) for name, value in chosen}}


def weights_agreement(fingerprint: Mapping[str, Any], network: nn.Module) -> float | None:
    """Share of equal sign bits in [0, 1] between a stored fingerprint and a live network: 1 = the same weights, about
    0.95 and more = a fine-tune, 0.5 = unrelated; None when nothing can be compared (quantised storage)."""
    live = {name.replace("_orig_mod.", ""): value for name, value in network.named_parameters()}
    equal = total = 0
    for name, stored in fingerprint.get("weights", {}).items():
        value = live.get(name)
        if value is None or value.is_meta or not value.is_floating_point() or value.numel() < 64:
            continue
        differing = bin(int(stored, 16) ^ int(weight_signs(value), 16)).count("1")
        equal, total = equal + 64 - differing, total + 64
    return equal / total if total else None


def check_fits(header: Mapping[str, Any], path: str | Path, *, network: nn.Module | None = None,
               family: str | None = None, encoder_id: str | None = None,
               encoder_width: int | None = None) -> list[str]:
    """Refuse a file that was made for another backbone or encoder; what is not given is not checked.

    header: of a `hypernetwork` or `transport_maps` file. Returns notes for the user (a fine-tune of the file's
    backbone, most often none). Raises FileError naming both sides.
    """
    notes = []
    if network is not None or family is not None:
        notes += _check_backbone(header, path, network, family)
    encoder = header.get("encoder", {})
    cure = "load the encoder that the file names"
    if encoder_id is not None and str(encoder.get("id")).startswith(f"{encoder_id}{RESPONSE}"):
        cure = "connect these weights, the base model and its CLIP to Load Concept Encoder, as they read the model's response too"
    if encoder_width is not None and encoder.get("width") not in (None, encoder_width):
        raise FileError(f"{path} reads concepts of width {encoder['width']} from the encoder '{encoder.get('id')}', "
                        f"the connected encoder '{encoder_id}' gives width {encoder_width}: {cure}")
    if encoder_id is not None and encoder.get("id") not in (None, encoder_id):
        raise FileError(f"{path} reads concepts of the encoder '{encoder['id']}', the connected encoder is "
                        f"'{encoder_id}': {cure}")
    return notes


def _check_backbone(header: Mapping[str, Any], path: str | Path, network: nn.Module | None,
                    family: str | None) -> list[str]:
    backbone = header.get("backbone", {})
    made_for = backbone.get("family", "an unnamed model")
    sites = sites_from_header(header, path)
    mine = f"{made_for} ({len(sites)} sites, {sum(site.channels for site in sites)} channels)"
    connected = family or type(network).__name__
    if family is not None and backbone.get("family") not in (None, family):
        raise FileError(f"{path} was made for {mine}, the connected model is {connected}: "
                        f"connect a {made_for} model or choose a file made for {connected}")
    if network is None:
        return []
    for site in sites:
        try:
            _, leaf = output_module(site_module(network, site.path), site.path)
            found = f"{leaf_channels(leaf)} channels"
        except SiteError:
            found = "no such site"
        if found != f"{site.channels} channels":
            raise FileError(f"{path} was made for {mine}, the connected model is {connected}, which has {found} at "
                            f"'{site.path}', expected {site.channels} channels: connect the model it was made for, or "
                            "choose another file")
    agreement = weights_agreement(backbone.get("fingerprint", {}), network)
    if agreement is None or agreement > 0.98:
        return []
    if agreement < 0.75:
        raise FileError(f"{path} was made for {mine} with other weights, the connected {connected} has the same shape "
                        f"but only {agreement:.0%} of the compared signs agree, expected at least 75%: connect the "
                        "model it was made for")
    return [f"{path} was made for {made_for}, the connected model looks like a fine-tune of it ({agreement:.0%} of the "
            "compared signs agree), so the effect may differ"]


def leaf_channels(leaf: nn.Module) -> int:
    """Output channels C of a Linear, Conv2d, GroupNorm or LayerNorm."""
    for name in ("out_features", "out_channels", "num_channels"):
        if hasattr(leaf, name):
            return int(getattr(leaf, name))
    shape: Any = leaf.normalized_shape
    return int(shape[-1])
