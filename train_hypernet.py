"""Train a hypernetwork: `python train_hypernet.py --preset postcard --output runs/mine`; `--help` lists every
setting.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The folder may have any name and lie anywhere, custom_nodes included; the package is found beside this file.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from hypertransport_core.training.cli import main

    sys.exit(main())
