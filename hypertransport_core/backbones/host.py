"""Where ComfyUI lies, for commands run outside it. Inside it nothing here is needed: the host is importable already."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACK = Path(os.path.abspath(__file__)).parents[2]  # not resolved: the pack may be a link inside custom_nodes


class HostError(RuntimeError):
    """No usable ComfyUI, or a file it cannot find or load; the message is one sentence with the cure."""


class HostBackboneError(ValueError):
    """A MODEL or CLIP that cannot be used; the message is one sentence with the cure."""


def find_host() -> tuple[Path | None, str]:
    """(the ComfyUI checkout or None, where it was looked for, in words).

    In this order: $COMFYUI_PATH; the ComfyUI in whose custom_nodes the pack lies; ~/comfy/ComfyUI. A variable that is
    set but wrong is not passed over in silence: then there is no host.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        path = Path(named).expanduser()
        return (path, str(path)) if _is_host(path) else (None, f"COMFYUI_PATH={named} holds no ComfyUI")
    places = [PACK.parent.parent] if PACK.parent.name == "custom_nodes" else []
    places.append(Path("~/comfy/ComfyUI").expanduser())
    for path in places:
        if _is_host(path):
            return path, str(path)
    return None, (
        "no ComfyUI found: set COMFYUI_PATH to its folder, install the pack in its custom_nodes, or put it at "
        "~/comfy/ComfyUI"
    )


def _is_host(path: Path) -> bool:
    return (path / "comfy" / "model_base.py").is_file()


def make_importable(device: str | None = None) -> None:
    """Let `import comfy` work in this process: on the CPU, where the host asks for no GPU, unless `device` names
    another, which the host then finds by itself. Where it has been imported already, only check that it is for the
    kind of device that is named. Only for commands a person runs, never for nodes: it adds a folder to the module
    search path, behind all others. Raises HostError."""
    if "comfy.model_management" in sys.modules:
        if device is not None:
            _refuse_other_device(device)
        return
    host, words = find_host()
    if host is None:
        ending = "" if ": " in words else ", expected the folder that holds its main.py: correct or unset the variable"
        raise HostError(f"{words}{ending}.")
    sys.path.append(str(host))
    try:
        from comfy.cli_args import args

        # Both are read when comfy.model_management is imported. This attention differentiates, and is fast on a CPU too.
        args.cpu = device in (None, "cpu")
        args.use_pytorch_cross_attention = args.disable_xformers = True
        import comfy.model_management  # noqa: F401
    except ImportError as error:
        raise HostError(
            f"ComfyUI at {host} cannot be imported ({error}), expected what its requirements.txt names: use the Python "
            "that ComfyUI runs with, or install that file into this one."
        ) from error


def _refuse_other_device(device: str) -> None:
    chosen = sys.modules["comfy.model_management"].get_torch_device().type
    if chosen != device.partition(":")[0]:
        raise HostError(
            f"device is '{device}', but ComfyUI was imported for '{chosen}' in this process, expected the same: set "
            f"device to '{chosen}'."
        )
