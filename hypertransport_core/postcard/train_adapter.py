"""Train the image-prompt adapter that results compare with, on the data of a training of the hypernetwork.

`python -m hypertransport_core.postcard.train_adapter --data runs/mine/data`. It learns from what the hypernetwork
learns from: the folder that `train_hypernet.py --preset postcard` has collected, its training concepts, its pictures
with their noise, and the same draws of concepts, scenes and noise levels; towards the stored predictions under the
prompt with the concept, at strength 1.
"""
from __future__ import annotations

import argparse
import copy
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from ..files import network_fingerprint
from ..fitting.image_adapter import TOKENS, ImageAdapter
from ..network_state import load_into
from ..training.batches import Objective, draw
from ..training.config import TrainingConfig
from ..training.data import DataFolder, network_device
from ..training.loop import follow, rate_factor
from ..training.presets import World, preset
from ..training.progress import Rate
from ..training.stages import require
from .trainers import carried_out, trainer_options

log = logging.getLogger(__name__)
PRESET = "postcard"
# Whole concepts shown by pictures: words are nothing to an image-prompt adapter.
ONLY_PICTURES: dict[str, Any] = {"image_share": 1.0, "partial_share": 0.0, "removal_share": 0.0}


class Training:
    """Adapter, running mean of its weights, optimiser and step: all that a state holds, as draws depend on seed and
    step alone."""

    def __init__(self, world: World, data: DataFolder, config: TrainingConfig, tokens: int = TOKENS) -> None:
        self.world, self.config = world, config
        self.concepts = list(world.concepts.train)
        require(data, world.concepts.train)
        self.bank = data.embeddings(self.concepts)
        self.objective = Objective(world, data, config)
        torch.manual_seed(config.seed)
        self.network = world.backbone.network.eval().requires_grad_(False)
        self.adapter = ImageAdapter.beside(self.network, world.encoder.width, tokens).to(network_device(world))
        self.average = copy.deepcopy(self.adapter).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.adapter.parameters(), config.learning_rate, betas=(0.9, 0.99),
                                           weight_decay=config.weight_decay)
        self.step = 0

    def state(self) -> dict[str, object]:
        """What `load` takes."""
        return {"adapter": self.adapter.state_dict(), "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(), "step": self.step, "seed": self.config.seed}

    def load(self, path: Path) -> None:
        """Take over a state. Raises CheckpointError for one of another seed, FileError for one of another adapter."""
        state = load_checkpoint(path)
        seed = state.get("seed", self.config.seed)  # the first states did not say
        if seed != self.config.seed:
            raise CheckpointError(f"{path} holds a training with the seed {seed}, expected the seed {self.config.seed}: name "
                                  "another --state")
        load_into(self.adapter, state["adapter"], path)
        load_into(self.average, state["average"], path)
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    def losses(self, step: int, adapter: ImageAdapter, strength: float = 1.0) -> torch.Tensor:
        """(concepts,) mean squared differences to the stored predictions on the draw of a step."""
        levels = self.objective.data.levels
        batch = draw(step, self.bank, len(self.world.scenes), len(levels), self.config)
        inputs = self.objective.recall([self.concepts[i] for i in batch.concepts], batch.scenes, batch.levels[0])
        embeddings = batch.embeddings[inputs.owner].to(network_device(self.world))
        with adapter.installed(self.network, embeddings, strength):
            _, paired = self.objective.losses(None, inputs)
        return paired

    def advance(self) -> float:
        """One optimisation step; returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * rate_factor(self.step, self.config)
        loss = self.losses(self.step, self.adapter).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.config.gradient_clip)
        self.optimiser.step()
        self.step += 1
        follow(self.average, self.adapter, self.step, self.config.ema)
        return loss.item()

    def save(self, path: Path, training: dict[str, object]) -> None:
        """The weights file, of the running mean. Raises FileError."""
        means = {name: mean for name, mean in self.bank.means.items() if name.startswith("image")}
        self.average.save(path, family=self.world.backbone.family,
                          fingerprint=network_fingerprint(self.network, self.average.sites),
                          encoder_id=self.world.encoder.encoder_id, means=means, training=training)


def settings(args: argparse.Namespace) -> TrainingConfig:
    """The preset's settings, with pictures only. Raises ConfigError."""
    own = {"steps": args.steps, "learning_rate": args.rate, "weights": str(args.model),
           "encoder_weights": str(args.clip), "seed": args.seed, "collect_seed": 0}
    return TrainingConfig().with_values({**preset(PRESET).settings, **ONLY_PICTURES, **own})


def train(args: argparse.Namespace) -> None:
    """Train the adapter, writing state and weights file on the way. Raises CheckpointError, ConfigError, FileError,
    TrainingError."""
    config = settings(args)
    world = preset(PRESET).build(config)
    run = Training(world, DataFolder(args.data, world, config), config, args.tokens)
    if args.state.exists():
        run.load(args.state)
    count = sum(p.numel() for p in run.adapter.parameters())
    log.info("%.2f M parameters beside %d layers, %d concepts, from step %d", count / 1e6, len(run.adapter.sites),
             len(run.concepts), run.step)
    pace, window, about = Rate(), [], {"seed": args.seed, "concepts": len(run.concepts), "version": __version__}
    while run.step < args.steps:
        window.append(run.advance())
        pace.count()
        if run.step % args.log_every == 0 or run.step == args.steps:
            with torch.no_grad():
                before, after = (float(run.losses(run.step - 1, run.adapter, s).mean()) for s in (0.0, 1.0))
            log.info("step %d/%d loss %.4f (last draw: %.4f, without the adapter %.4f) %.2f steps/s, %s left", run.step,
                     args.steps, sum(window) / len(window), after, before, pace.per_second(),
                     pace.left(args.steps - run.step))
            window.clear()
        if run.step % args.save_every == 0 or run.step == args.steps:
            save_checkpoint(args.state, run.state())
        if run.step % args.save_every == 0:
            run.save(args.output, {"steps": run.step, **about})
    run.save(args.output, {"steps": run.step, **about})  # also where the state was at the end already


def main(argv: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = trainer_options(__doc__, "postcard_image_adapter.safetensors", "image_adapter.safetensors", seed=0)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER",
                        help="collected by train_hypernet.py --preset postcard with its seed, 0")
    parser.add_argument("--model", type=Path, default=Path("weights/postcard.safetensors"),
                        help="what it is trained beside")
    parser.add_argument("--clip", type=Path, default=Path("weights/postcard_clip.safetensors"),
                        help="that reads the pictures")
    parser.add_argument("--steps", type=int, default=2000, help="optimisation steps, 32 pictures each")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="made of one picture")
    parser.add_argument("--log-every", type=int, default=25, help="steps between log lines")
    parser.add_argument("--save-every", type=int, default=100, help="steps between training states")
    return carried_out(train, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
