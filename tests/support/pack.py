"""The pack as the host loads it: its root `__init__` by path, under a name of its own, and its entry point awaited.

    from pack import load_pack
    steer = load_pack().nodes.steer

Its core is `hypertransport_pack.hypertransport_core`, another module object than the `hypertransport_core` of the
core tests: host tests take classes from here, or `isinstance` fails.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, TypeVar

import comfy_boot

T = TypeVar("T")
NAME = "hypertransport_pack"
ROOT = comfy_boot.PACK


def load_pack() -> ModuleType:
    """The package module, loaded once, with `.nodes` and `.hypertransport_core`. Boots comfy if needed."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    missing = comfy_boot.boot()
    if missing:
        raise RuntimeError(missing)
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
        module.extension = awaited(module.comfy_entrypoint())
        for name in ("nodes", "hypertransport_core"):
            importlib.import_module(f"{NAME}.{name}")
    except BaseException:
        for name in [name for name in sys.modules if name == NAME or name.startswith(NAME + ".")]:
            del sys.modules[name]
        raise
    return module


def pack_module(name: str) -> ModuleType:
    """A module of the pack by its dotted name: `pack_module("hypertransport_core.transport")`."""
    load_pack()
    return importlib.import_module(f"{NAME}.{name}")


def awaited(coroutine: Coroutine[Any, Any, T]) -> T:
    """Its result, from a loop in a thread of its own: a browser that tests have opened keeps a loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def run_node(node: type, **inputs: Any) -> tuple:
    """What a V3 node's execute returns, as a tuple of outputs; an async execute is awaited."""
    out = node.execute(**inputs)
    if asyncio.iscoroutine(out):
        out = awaited(out)
    return tuple(out.result or ())
