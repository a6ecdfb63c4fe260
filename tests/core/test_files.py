"""The one file format: round trips, atomic writing, and hostile files. Every refusal is one FileError naming the
path."""

from __future__ import annotations

import errno
import json
import pickle
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small_networks import TWO_BLOCKS, two_blocks
from torch import nn

from hypertransport_core import files
from hypertransport_core.files import (FileError, check_fits, load_file, network_fingerprint, save_file,
                                       weights_agreement)

KIND = "transport_maps"


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"a": torch.randn(6, 5, generator=generator), "half": torch.randn(7, generator=generator).half(),
            "whole": torch.arange(4), "flag": torch.tensor([True, False]), "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 3)}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "good.safetensors"
    save_file(path, _tensors(), KIND, {"who": "me", "sites": [["a.b", "mlp", 5, -1]], "x": (1, 2.5)},
              {"title": "Title"})
    return path


def refused(path: Path, match: str | None = None, kind: str | None = KIND) -> None:
    with pytest.raises(FileError, match=match) as caught:
        load_file(path, kind)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) < 600


def rewrite(path: Path, change) -> None:
    """Change the JSON under `hypertransport` and write the file again, checksum as it was unless `change` sets it."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    full = json.loads(metadata[files.METADATA_KEY])
    tensors = safetensors.torch.load(path.read_bytes())
    changed = change(full, tensors)
    metadata[files.METADATA_KEY] = json.dumps(full if changed is None else changed)
    safetensors.torch.save_file(tensors, path, metadata)


def test_round_trip_is_exact(path: Path) -> None:
    tensors, header = load_file(path, KIND)
    assert header == {"who": "me", "sites": [["a.b", "mlp", 5, -1]], "x": [1, 2.5]}
    for name, value in _tensors().items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value)
    assert load_file(path, ("other", KIND))[1] == header == load_file(path)[1]
    full, metadata, _ = files.read_header(path)
    assert metadata["modelspec.title"] == "Title" and full["kind"] == KIND


def test_any_reader_of_safetensors_opens_it(path: Path) -> None:
    assert torch.equal(safetensors.torch.load_file(path)["a"], _tensors()["a"])
    files.check_safetensors(path)


def test_tied_transposed_and_grad_tensors(tmp_path: Path) -> None:
    base = torch.randn(4, 3, requires_grad=True)
    save_file(tmp_path / "t.safetensors", {"x": base, "same": base, "turned": base.T}, KIND, {})
    tensors, _ = load_file(tmp_path / "t.safetensors", KIND)
    assert torch.equal(tensors["turned"], base.detach().T) and torch.equal(tensors["same"], base.detach())


def test_same_content_same_bytes(path: Path, tmp_path: Path) -> None:
    tensors, header = load_file(path)
    save_file(tmp_path / "again.safetensors", tensors, KIND, header, {"title": "Title"})
    full = [files.read_header(p)[0] for p in (path, tmp_path / "again.safetensors")]
    assert full[0] == full[1]


def test_truncated_anywhere(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    for part in range(50):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(data[:len(data) * part // 50])
        refused(cut)
    cut.write_bytes(data[:-1])
    refused(cut)
    with pytest.raises(FileError):
        files.check_safetensors(cut)
    cut.write_bytes(data + b"\0")
    refused(cut)


def test_flipped_bytes_anywhere(path: Path, tmp_path: Path) -> None:
    """Every changed byte is refused, or changes nothing that is used (titles for other programs)."""
    data = bytearray(path.read_bytes())
    before, header = load_file(path, KIND)
    flipped = tmp_path / "flipped.safetensors"
    unused = 0
    for position in range(0, len(data), 3):
        for bit in (0, 5):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            flipped.write_bytes(changed)
            try:
                tensors, again = load_file(flipped, KIND)
            except FileError as error:
                assert str(flipped) in str(error)
                continue
            unused += 1
            assert again == header and all(torch.equal(tensors[name], before[name]) for name in before)
    assert unused < len(data) * 2 / 3 * 0.1


def test_flipped_data_byte_names_the_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # within 'empty', 'flag', ... whatever lies last: small, finite
    path.write_bytes(data)
    refused(path)
    data[-1] ^= 1
    position = data.index(struct.pack("<f", float(_tensors()["a"][2, 3])))
    data[position] ^= 1
    path.write_bytes(data)
    refused(path, "checksum")
    assert load_file(path, KIND, verify=False)[1]["who"] == "me"


def test_edited_header_is_found(path: Path) -> None:
    rewrite(path, lambda full, tensors: full["header"].update(who="you"))
    refused(path, "checksum")


@pytest.mark.parametrize(("change", "match"), [
    (lambda full, tensors: full.update(format_version=2), "update the node pack"),
    (lambda full, tensors: full.update(format_version="1"), "format version '1'"),
    (lambda full, tensors: full.update(format_version=True), "format version True"),
    (lambda full, tensors: full.update(format_version=0), "format version 0"),
    (lambda full, tensors: full.pop("format_version"), "format version None"),
    (lambda full, tensors: full.update(kind="hypernetwork"), "'hypernetwork' file, expected 'transport_maps'"),
    (lambda full, tensors: full.pop("kind"), "'None' file"),
    (lambda full, tensors: full.pop("header"), "lacks parts"),
    (lambda full, tensors: full.update(header=[1]), "lacks parts"),
    (lambda full, tensors: full.pop("checksum"), "lacks parts"),
    (lambda full, tensors: full.update(tensors=3), "lacks parts"),
    (lambda full, tensors: full["tensors"].update(a=[6, 4]), r"'a' with the shape \[6, 5\], expected \[6, 4\]"),
    (lambda full, tensors: full["tensors"].pop("a") and None, "holds a tensor 'a'"),
    (lambda full, tensors: tensors.pop("a"), "names 'a' in its header"),
    (lambda full, tensors: tensors.update(a=tensors["a"].T.contiguous()), "shape"),
    (lambda full, tensors: tensors.update(a=tensors["a"].double()), "checksum"),
    (lambda full, tensors: tensors["a"].__setitem__((0, 0), float("nan")), "NaN or infinite values in 'a'"),
    (lambda full, tensors: tensors["half"].__setitem__(0, float("inf")), "NaN or infinite values in 'half'"),
    (lambda full, tensors: [1, 2], "a list, expected a dictionary"),
])
def test_wrong_content(path: Path, change, match: str) -> None:
    def apply(full, tensors):
        result = change(full, tensors)
        return result if result == [1, 2] else None

    rewrite(path, apply)
    refused(path, match)


def test_header_claims(tmp_path: Path) -> None:
    path = tmp_path / "claim.safetensors"
    for claim in (100 * 1024 * 1024, 2**63, 2**64 - 1, 200):
        path.write_bytes(struct.pack("<Q", claim) + b"{}" + b" " * 100)
        refused(path, "claims a header")
    with open(path, "wb") as file:  # sparse: the file is really as long as it claims
        file.write(struct.pack("<Q", 100 * 1024 * 1024))
        file.truncate(101 * 1024 * 1024)
    refused(path, "claims a header")


@pytest.mark.parametrize("table", [
    b"[]", b"null", b"{", b"\xff\xfe", b"[" * 5000, b'{"__metadata__": 3}', b'{"__metadata__": {}}', b"1" * 6000,
    b'{"__metadata__": {"hypertransport": "{"}}', b'{"__metadata__": {"hypertransport": "[1]"}}',
    b'{"__metadata__": {"hypertransport": 4}}', b'{"__metadata__": {"hypertransport": ["x"]}}',
    b'{"a": 1, "__metadata__": {"hypertransport": "{\\"format_version\\": 1, \\"kind\\": \\"transport_maps\\", '
    b'\\"tensors\\": {\\"a\\": null}, \\"header\\": {}, \\"checksum\\": \\"\\"}"}}',
    b'{"a": {"dtype": "F32", "shape": [1000000000000, 1000000000000], "data_offsets": [0, 4]}, '
    b'"__metadata__": {"hypertransport": "{\\"format_version\\": 1, \\"kind\\": \\"transport_maps\\", '
    b'\\"tensors\\": {\\"a\\": '
    b'[1000000000000, 1000000000000]}, \\"header\\": {}, \\"checksum\\": \\"\\"}"}}',
])
def test_odd_tables(tmp_path: Path, table: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(table)) + table + bytes(4))
    refused(path)


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    """A length of 128 modulo 256 begins like an old checkpoint, and must not be taken for one."""
    lengths = set()
    for extra in range(40):
        file = tmp_path / f"{extra}.safetensors"
        save_file(file, {"a": torch.zeros(1)}, KIND, {"text": "x" * 8 * extra})
        lengths.add(struct.unpack("<Q", file.read_bytes()[:8])[0] % 256)
        load_file(file, KIND)
    assert 128 in lengths


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(b"")
    refused(path, "0 bytes")
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3] * 50}))
    refused(path, "old PyTorch checkpoint")
    torch.save({"a": torch.ones(3)}, path)
    refused(path, "old PyTorch checkpoint")
    safetensors.torch.save_file({"a": torch.ones(3)}, path)
    refused(path, "without 'hypertransport' metadata")
    (tmp_path / "folder.safetensors").mkdir()
    refused(tmp_path / "folder.safetensors", "is a folder")
    refused(tmp_path / "nothing.safetensors", "cannot be read")


def test_failed_write_leaves_the_old_file_and_no_rubbish(path: Path, monkeypatch) -> None:
    before = path.read_bytes()

    def full_disk(tensors, name, metadata=None):
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(FileError, match="the disk is full.*free some space"):
        save_file(path, _tensors(), KIND, {})
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_interrupted_write_leaves_the_old_file(path: Path) -> None:
    before = path.read_bytes()

    def interrupted(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, interrupted)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_written(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    for tensors, header in (({"x": torch.tensor([float("nan")])}, {}), ({}, {"x": object()}),
                            ({}, {"x": float("inf")})):
        with pytest.raises(FileError, match="was not written"):
            save_file(path, tensors, KIND, header)
    assert path.read_bytes() == before
    with pytest.raises(FileError, match="is a folder"):
        save_file(tmp_path, {}, KIND, {})
    with pytest.raises(FileError, match="was not written"):
        save_file(path / "below_a_file" / "x.safetensors", {}, KIND, {})


def test_new_files_are_readable_by_others_and_folders_appear(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.safetensors"
    save_file(path, {"a": torch.ones(1)}, KIND, {})
    assert path.stat().st_mode & 0o044 == 0o044


# fingerprints and fits

def header_for(net: nn.Module, family: str = "tiny") -> dict:
    return {"backbone": {"family": family, "fingerprint": network_fingerprint(net, TWO_BLOCKS)},
            "sites": files.sites_to_header(TWO_BLOCKS),
            "encoder": {"id": "clip-a", "width": 8}}


def test_fingerprint_is_json_and_survives_storage_dtypes() -> None:
    net = two_blocks()
    fingerprint = network_fingerprint(net, TWO_BLOCKS)
    assert json.loads(json.dumps(fingerprint)) == fingerprint and fingerprint["weights"]
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        assert weights_agreement(fingerprint, two_blocks().to(dtype)) == 1.0
    assert network_fingerprint(two_blocks().half(), TWO_BLOCKS) == fingerprint
    assert network_fingerprint(net, TWO_BLOCKS[:-1])["structure"] != fingerprint["structure"]
    assert weights_agreement(fingerprint, two_blocks().to("meta")) is None


def test_same_network_fits_without_a_note() -> None:
    net = two_blocks()
    assert check_fits(header_for(net), "f", network=net, family="tiny", encoder_id="clip-a", encoder_width=8) == []


def test_fine_tune_fits_with_a_note() -> None:
    net, tuned = two_blocks(), two_blocks()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 * parameter.std())
    notes = check_fits(header_for(net), "f", network=tuned)
    assert len(notes) == 1 and "fine-tune" in notes[0]


@pytest.mark.parametrize(("arguments", "words"), [
    ({"family": "other"}, ["tiny (4 sites, 64 channels)", "other"]),
    ({"network": two_blocks(5)}, ["tiny", "other weights", "expected at least 75%"]),
    ({"network": nn.Linear(3, 3), "family": "tiny"}, ["tiny", "no such site at 'blocks.0.attn.proj'"]),
    ({"encoder_id": "clip-b", "encoder_width": 8}, ["'clip-a'", "'clip-b'"]),
    ({"encoder_id": "clip-b", "encoder_width": 9}, ["width 8", "width 9", "clip-b"]),
])
def test_refusals_name_both_sides(arguments: dict, words: list[str]) -> None:
    with pytest.raises(FileError) as caught:
        check_fits(header_for(two_blocks()), "my.safetensors", **arguments)
    assert all(word in str(caught.value) for word in [*words, "my.safetensors"])


def test_other_width_is_refused() -> None:
    net = two_blocks()
    net["blocks"][1]["mlp"] = nn.Linear(16, 24)
    with pytest.raises(FileError, match="24 channels at 'blocks.1.mlp', expected 16"):
        check_fits(header_for(two_blocks()), "f", network=net)
