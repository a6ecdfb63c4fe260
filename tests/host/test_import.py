"""What importing the pack costs a host that has imported its own things: which modules it asks for, and how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

SUPPORT = Path(__file__).resolve().parents[1] / "support"
# Installed with every ComfyUI and imported by it before it looks at any pack.
ALLOWED = {"torch", "safetensors", "numpy", "comfy", "comfy_api", "folder_paths"}

# Who imports what is noted while the pack is loaded: a module that the host has imported already would not be new, but it
# must not be asked for either, or the next host, which imports it late or not at all, pays.
PROBE = """
import builtins, json, sys, time
sys.path.insert(0, sys.argv[1])
import comfy_boot
missing = comfy_boot.boot()
if missing:
    print(json.dumps({"missing": missing})); sys.exit()
import comfy.sd, comfy.model_patcher, comfy.samplers, comfy.weight_adapter, comfy_api.latest, folder_paths
import pack
asked, real, before = set(), builtins.__import__, set(sys.modules)
def noted(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and str((globals or {}).get("__name__", "")).startswith(pack.NAME):
        asked.add(name.split(".")[0])
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = noted
cpu, wall = time.process_time(), time.perf_counter()
module = pack.load_pack()
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
builtins.__import__ = real
print(json.dumps({"asked": sorted(asked), "new": sorted(set(sys.modules) - before), "cpu": cpu, "wall": wall,
                  "nodes": len(module.nodes.NODES)}))
"""


def test_importing_asks_for_nothing_beyond_the_host() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, str(SUPPORT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    if "missing" in told:
        pytest.skip(f"no ComfyUI host: {told['missing']}")
    print(f"\nimport of the pack: {told['cpu']:.2f} s of processor time, {told['wall']:.2f} s")
    assert told["nodes"] > 15
    assert told["cpu"] < 1.0  # of processor time, which other work on the machine hardly changes
    foreign = [name for name in told["asked"] if name not in sys.stdlib_module_names and name not in ALLOWED]
    assert foreign == [], "import these where they are used"
    own = ("hypertransport_pack", *ALLOWED)
    new = {name.split(".")[0] for name in told["new"]} - set(sys.stdlib_module_names) - set(own)
    assert new == set(), "and none of them through something else"
