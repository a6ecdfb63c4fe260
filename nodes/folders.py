"""Where the host looks for this pack's files: `models/hypertransport`, and what is shipped in the pack."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import folder_paths

from ..hypertransport_core.files import FileError, read_header

MODEL_FOLDER = "hypertransport"
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def register_model_folder() -> None:
    """Make `models/hypertransport` and the files shipped in this pack known to the host, the user's folder first.

    `folder_paths.add_model_folder_path` is not used: on a new name it registers no file extensions, which means every
    file. Paths that extra_model_paths.yaml has named before stay, and stay first. Registering twice changes nothing.
    """
    paths, extensions = folder_paths.folder_names_and_paths.get(MODEL_FOLDER, ([], set()))
    own = Path(folder_paths.models_dir) / MODEL_FOLDER
    with suppress(OSError):  # a read-only models folder still lists what is shipped here
        own.mkdir(parents=True, exist_ok=True)
    paths = [*paths, *(path for path in (str(own), str(WEIGHTS)) if path not in paths)]
    folder_paths.folder_names_and_paths[MODEL_FOLDER] = (paths, {*extensions, ".safetensors"})


def files_of_kind(*kinds: str) -> list[str]:
    """Names, as a combo shows them, of the files of these kinds (`hypernetwork`, ...). Reads headers only, and once."""
    names = []
    for name in folder_paths.get_filename_list(MODEL_FOLDER):
        path = folder_paths.get_full_path(MODEL_FOLDER, name)
        if path is not None and _kind(path, fingerprint(path)) in kinds:
            names.append(name)
    return names


def find_file(name: str, folder: str = MODEL_FOLDER) -> Path:
    """The path of a file a combo named. Raises FileError when it is gone."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise FileError(
            f"{name} is not in models/{folder}, expected one of its files: put it there and refresh, or choose another"
        )
    return Path(path)


def fingerprint(path: str | Path) -> str:
    """What changes when a file does: its time of change and size, for `fingerprint_inputs`."""
    with suppress(OSError):
        found = Path(path).stat()
        return f"{path}:{found.st_mtime_ns}:{found.st_size}"
    return f"{path}: not there"


@lru_cache(maxsize=512)
def _kind(path: str, _fingerprint: str) -> str:
    with suppress(FileError, OSError):
        return str(read_header(path)[0].get("kind", ""))
    return ""
