"""Runs ComfyUI's main.py as `python main.py ...` would, after the cure for a torchvision that does not fit torch.

    python launch_comfy.py [--without=MODULE ...] FOLDER_OF_COMFYUI [arguments of main.py]

A module named with --without looks as if it were not installed.
"""
from __future__ import annotations

import runpy
import sys
from pathlib import Path

from comfy_boot import mend_torchvision

if __name__ == "__main__":
    del sys.argv[0]
    while sys.argv[0].startswith("--without="):
        name = sys.argv.pop(0).split("=", 1)[1]
        sys.modules[name] = None  # type: ignore[assignment]
    mend_torchvision()
    host = Path(sys.argv[0])
    sys.argv[0] = str(host / "main.py")
    sys.path[0] = str(host)  # was this file's folder
    runpy.run_path(sys.argv[0], run_name="__main__")
