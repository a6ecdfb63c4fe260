"""ComfyUI as a library for the host tests: found, made importable, on the CPU. Nothing installed is changed."""
from __future__ import annotations

import logging
import os
import runpy
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

PACK = Path(os.path.abspath(__file__)).parents[2]  # not resolved: the pack may be a link inside custom_nodes
# By path, so that the core is not imported here: server tests see what the pack alone imports.
_HOST = runpy.run_path(str(PACK / "hypertransport_core" / "backbones" / "host.py"))
find_host: Callable[[], tuple[Path | None, str]] = _HOST["find_host"]
_kept: list[object] = []  # operator libraries vanish when collected


@lru_cache(maxsize=1)
def boot() -> str | None:
    """Import comfy on the CPU. Returns None when it is there, otherwise why not. Raises what a broken host raises."""
    host, words = find_host()
    if host is None:
        return words
    if str(host) not in sys.path:
        sys.path.insert(0, str(host))
    mend_torchvision()
    # comfy reads sys.argv only after comfy.options.enable_args_parsing(), so pytest's own arguments do no harm.
    from comfy.cli_args import args

    if "comfy.model_management" not in sys.modules:  # which reads them; a benchmark may have imported it for a GPU
        args.cpu = True
        args.use_pytorch_cross_attention = True
    level = logging.getLogger().level
    import comfy.model_management  # noqa: F401
    import comfy.sd  # noqa: F401

    logging.getLogger().setLevel(max(level, logging.WARNING))
    return None


def mend_torchvision() -> None:
    """Let a torchvision whose compiled part does not fit this torch be imported: comfy needs it at import, not its operators.

    The package index has CUDA builds only; beside a CPU torch they stop at "operator torchvision::nms does not exist",
    because Python describes operators that were never loaded. Declaring them is enough. A missing torchvision stays missing.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
        import torchvision  # noqa: F401
    except ImportError:
        return  # comfy's own import then says what is missing
