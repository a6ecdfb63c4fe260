"""Damaged, foreign and lying weights files of every shipped kind: each is refused in one sentence that names the file."""

from __future__ import annotations

import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file
from small_postcard import write_world

from hypertransport_core.checkpoints import load_checkpoint, save_checkpoint
from hypertransport_core.commands import main
from hypertransport_core.files import FileError, load_file
from hypertransport_core.files import save_file as save_ours
from hypertransport_core.pipeline import CLIP_FILE, HYPERNETWORK_FILE, JUDGE_FILE, MODEL_FILE
from hypertransport_core.postcard.clip import PostcardCLIP
from hypertransport_core.postcard.judge import Judge
from hypertransport_core.postcard.model import load_network
from hypertransport_core.weights_io import load_hypernetwork

LOADERS: dict[str, Callable[[Path], object]] = {
    MODEL_FILE: load_network, CLIP_FILE: PostcardCLIP.load, HYPERNETWORK_FILE: load_hypernetwork, JUDGE_FILE: Judge.load,
}
MB = 2**20
every_file = pytest.mark.parametrize("name", LOADERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def world(folder: Path, tmp_path: Path) -> Path:
    """The same weights in a folder that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "weights"))


def refused(name: str, path: Path) -> str:
    """The sentence of a loader that refuses a file."""
    with pytest.raises(FileError) as caught:
        LOADERS[name](path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) < 700
    return text


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write other tensors under the metadata that were there, checksum and all."""
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors = load(path.read_bytes())
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)


def a_matrix(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if tensors[name].ndim == 2 and len(set(tensors[name].shape)) == 2)


def turn(tensors: dict[str, torch.Tensor]) -> None:
    name = a_matrix(tensors)
    tensors[name] = tensors[name].T


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors[a_matrix(tensors)][0, 0] = float("nan")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 37 // 50])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 8
    path.write_bytes(content)


def claim(path: Path) -> None:
    """A header of 100 MB, in a file that is really as long."""
    with open(path, "rb+") as file:
        file.write(struct.pack("<Q", 100 * MB))
        file.truncate(101 * MB)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": shorten,
    "a byte flipped": flip,
    "wrong shapes": lambda path: rewritten(path, turn),
    "NaN": lambda path: rewritten(path, poison),
    "a header of 100 MB": claim,
    "a pickle renamed": lambda path: path.write_bytes(pickle.dumps({"weights": [1.0] * 500})),
}


@every_file
def test_cut_at_every_fiftieth(world: Path, name: str) -> None:
    content = (world / name).read_bytes()
    for part in range(50):
        (world / name).write_bytes(content[: len(content) * part // 50])
        refused(name, world / name)


@every_file
def test_flipped_bytes_of_the_weights(world: Path, name: str) -> None:
    content = bytearray((world / name).read_bytes())
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    for place in range(begin, len(content), (len(content) - begin) // 12):
        content[place] ^= 1
        (world / name).write_bytes(content)
        refused(name, world / name)
        content[place] ^= 1


@pytest.mark.parametrize("damage", DAMAGE)
@every_file
def test_the_commands_say_one_sentence(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    DAMAGE[damage](world / name)
    command = ["demo", "--concept", "neon", "--strength", "1", "--steps", "1", "--output", str(tmp_path / "out")]
    if name == JUDGE_FILE:
        command = ["evaluate", "--quick", "--quiet", "--json", str(tmp_path / "out.json")]
    assert main([*command, "--weights", str(world)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and str(world / name) in printed.err
    assert printed.err.endswith(".\n") and "Traceback" not in printed.err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.json").exists()


@every_file
def test_shapes_of_another_network_with_a_checksum_that_is_right(world: Path, name: str) -> None:
    tensors, header = load_file(world / name)
    kind = {MODEL_FILE: "postcard_model", CLIP_FILE: "postcard_clip", HYPERNETWORK_FILE: "hypernetwork"}
    for change in (turn, lambda t: t.pop(a_matrix(t)), lambda t: t.update(extra=torch.ones(2))):
        changed = dict(tensors)
        change(changed)
        if name == HYPERNETWORK_FILE and "extra" in changed:
            changed["network.extra"] = changed.pop("extra")
        save_ours(world / name, changed, kind.get(name, "postcard_judge"), header)
        refused(name, world / name)


@pytest.mark.parametrize(
    "config",
    [
        {"model_channels": 32 * 10**9},
        {"model_channels": -32},
        {"model_channels": "wide"},
        {"num_res_blocks": -1},
        {"num_res_blocks": 10**6},
        {"num_head_channels": 0},
        {"transformer_depth": [1] * 5000, "channel_mult": [1] * 5000, "num_res_blocks": 1},
        {"channel_mult": []},
        {"channel_mult": [0.5, 2]},
        {"context_dim": None},
    ],
)
def test_a_model_whose_dimensions_lie(world: Path, config: dict) -> None:
    tensors, header = load_file(world / MODEL_FILE)
    save_ours(world / MODEL_FILE, tensors, "postcard_model", {"config": {**header["config"], **config}})
    refused(MODEL_FILE, world / MODEL_FILE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"widths": [10**12, 8, 8, 8]}, "claims widths"),
        ({"widths": [8, 8, 8]}, "shape|lacks|holds"),
        ({"widths": []}, "shape|cannot be built"),
        ({"widths": "8"}, "names neither"),
        ({"widths": [8, 8, 8, "x"]}, "cannot be built"),
        ({"widths": [8, 8, 8, -8]}, "cannot be built"),
        ({"concepts": ["neon"]}, "judges 1 concepts .*postcard.train_judge"),
        ({"concepts": None}, "names neither"),
    ],
)
def test_a_judge_whose_header_lies(world: Path, change: dict, words: str) -> None:
    tensors, header = load_file(world / JUDGE_FILE)
    save_ours(world / JUDGE_FILE, tensors, "postcard_judge", {**header, **change})
    with pytest.raises(FileError, match=words):
        Judge.load(world / JUDGE_FILE)


def test_a_training_state_of_any_damage_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, {"step": 3, "weights": torch.randn(40, 20), "list": [torch.ones(2), {"a": None}]})
    whole = path.read_bytes()

    def spoil(change: Callable[[Path], object]) -> None:
        path.write_bytes(whole)
        change(path)
        with pytest.raises(ValueError, match="not a whole checkpoint of this trainer") as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    for part in range(50):
        spoil(lambda path, part=part: path.write_bytes(whole[: len(whole) * part // 50]))
    for damage in ("a byte flipped", "NaN", "a header of 100 MB", "a pickle renamed"):
        spoil(DAMAGE[damage])
    trees = ("[]", "3", "{", "[" * 5000, '{"crc32": "00000000"}', '{"value": 1, "more": 2}', '{"dict": [[1]]}',
             '{"list": {"tensor": "none"}}', '{"tensor": "not there"}', '{"list": [3]}', "null")
    for tree in trees:
        spoil(lambda path, tree=tree: save_file({"a": torch.ones(2)}, path, {"hypertransport_checkpoint": tree}))
