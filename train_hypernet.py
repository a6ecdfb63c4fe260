"""Train a hypernetwork: `python train_hypernet.py --preset postcard --output runs/mine`; `--help` lists every
setting.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # This folder may have any name and lie anywhere, custom_nodes included: Python looks beside a script first.
    from hypertransport_core.training.cli import main

    sys.exit(main())
