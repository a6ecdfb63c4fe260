"""Where the host looks for this pack's files: `models/hypertransport`, and what is shipped in the pack."""
from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import folder_paths

MODEL_FOLDER = "hypertransport"
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def register_model_folder() -> None:
    """Make `models/hypertransport` and the files shipped in this pack known to the host, the user's folder first.

    `folder_paths.add_model_folder_path` is not used: on a new name it registers no file extensions, which means every file.
    Paths that extra_model_paths.yaml has named before stay, and stay first. Registering twice changes nothing.
    """
    paths, extensions = folder_paths.folder_names_and_paths.get(MODEL_FOLDER, ([], set()))
    own = Path(folder_paths.models_dir) / MODEL_FOLDER
    with suppress(OSError):  # a read-only models folder still lists what is shipped here
        own.mkdir(parents=True, exist_ok=True)
    paths = [*paths, *(path for path in (str(own), str(WEIGHTS)) if path not in paths)]
    folder_paths.folder_names_and_paths[MODEL_FOLDER] = (paths, {*extensions, ".safetensors"})
