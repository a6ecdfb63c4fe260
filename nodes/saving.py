"""Where nodes write files: numbered names below a folder, never over a file that is there."""
from __future__ import annotations

from pathlib import Path

import folder_paths

from ..hypertransport_core.files import FileError

SUFFIX = ".safetensors"


def numbered_path(prefix: str, folder: str | Path) -> Path:
    """The first free `<folder>/<prefix>_00001.safetensors`; the prefix may have sub-folders and the host's %date% words.

    Raises FileError for a prefix that leads out of the folder or is empty.
    """
    folder, name = Path(folder).resolve(), prefix.strip().removesuffix(SUFFIX)
    wanted = (folder / name).resolve() if name else folder
    if wanted == folder or folder not in wanted.parents:
        raise FileError(f"The file name '{prefix}' leads to {wanted}, expected a name below {folder}: write a name such "
                        "as 'hypertransport/oil painting'")
    place, base, number, _, _ = folder_paths.get_save_image_path(name, str(folder))
    while (path := Path(place) / f"{base}_{number:05d}{SUFFIX}").exists():
        number += 1
    return path


def first_folder(kind: str) -> Path:
    """The folder of `models` that new files of a kind go to. Raises FileError when the host has none."""
    folders = folder_paths.get_folder_paths(kind)
    if not folders:
        raise FileError(f"This ComfyUI has no folder for '{kind}', expected one: check extra_model_paths.yaml")
    return Path(folders[0])
