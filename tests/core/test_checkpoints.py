"""Training states as files: everything comes back, equal states are equal files, a flipped bit is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hypertransport_core.checkpoints import load_checkpoint, save_checkpoint

STATE = {
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "mask": torch.tensor([True, False]),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "turned": torch.arange(12.0).view(3, 4).t(),
    "nested": {"list": [1, "text", None, torch.arange(2)], "deep": {"x": 0.1}},
}


def test_everything_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", STATE)
    found = load_checkpoint(tmp_path / "a.safetensors")
    assert found.keys() == STATE.keys() and found["nested"]["deep"] == {"x": 0.1} and found["nested"]["list"][:3] == [1, "text", None]
    for name in ("scalar", "empty", "mask", "half", "turned"):
        assert found[name].dtype == STATE[name].dtype and torch.equal(found[name], STATE[name])


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    contents = set()
    for number in range(8):
        save_checkpoint(tmp_path / f"{number}.safetensors", STATE)
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(start, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(ValueError, match="not a whole checkpoint"):
            load_checkpoint(path)


def test_files_without_a_checksum_are_still_read(tmp_path: Path) -> None:
    new, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    save_checkpoint(new, STATE)
    with safe_open(str(new), "pt") as file:
        (key, saved), tensors = next(iter(file.metadata().items())), {name: file.get_tensor(name) for name in file.keys()}
    save_file(tensors, str(old), metadata={key: json.dumps(json.loads(saved)["tree"])})
    assert torch.equal(load_checkpoint(old)["turned"], STATE["turned"])
