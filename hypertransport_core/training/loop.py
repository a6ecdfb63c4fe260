"""The training loop: steps, validation, checkpoints, strips. Everything that a checkpoint must hold is in
`Trainer.state`.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..concepts import spread
from ..hypernetworks import Hypernetwork, build_hypernetwork
from .batches import Draw, Objective, draw
from .config import TrainingConfig
from .data import DataFolder, derived_seed, network_device
from .distilling import Teachers
from .distribution import Group
from .embeddings import check_width
from .gradients import backward
from .interruption import Interruption
from .presets import World
from .progress import Curves, Rate, log
from .samples import save_strip
from .sharing import SharedProbe, shared_backward
from .states import States, TrainingError
from .validation import Probe, departure, used_levels
from .warm_start import warm_start

MEASURED = ("loss", "transport", "paired", "gradient_norm")


class Trainer:
    """A hypernetwork, the running mean of its weights, its optimiser, and the concepts it learns from.

    Every process of the group holds all of it, the same to the last bit; only the main one writes.
    """

    def __init__(
        self, world: World, data: DataFolder, config: TrainingConfig, run: Path, group: Group | None = None
    ) -> None:
        self.world, self.data, self.config, self.run, self.group = world, data, config, run, group or Group()
        self.train_concepts = list(world.concepts.train)
        self.bank = data.embeddings(self.train_concepts)
        check_width(self.bank, world.encoder.width, world.encoder.encoder_id)
        self.device = network_device(world)
        world.backbone.network.eval().requires_grad_(False)
        torch.manual_seed(derived_seed(config.seed, "initial weights"))
        self.network = build_hypernetwork(
            {**config.hypernetwork_options(), "sites": data.sites, "embedding_dim": world.encoder.width}
        )
        if config.standardise:
            self.network.set_source(*data.source())
        warm_start(self.network, data, self.train_concepts, self.bank, config)
        self.network.to(self.device)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimiser = _optimiser(self.network, config)
        self.objective = Objective(world, data, config)
        self.teachers = Teachers(data, config, self.bank.means) if config.teacher_files() else None
        self.probe = self._probe()
        self.states = States(run, config.keep_last)
        self.step, self.window = 0, dict.fromkeys(MEASURED, 0.0)
        self.window_steps, self.since_best = 0, 0
        self.best: float | None = None
        self.identity: float | None = None

    def _probe(self) -> Probe | None:
        chosen = spread(self.world.concepts.validation, self.config.validation_concepts)
        if not chosen:
            log.warning("There are no validation concepts, so nothing will warn when the network stops learning.")
            return None
        levels = used_levels(len(self.data.levels), self.config.validation_levels)
        return SharedProbe(
            self.group, self.world, self.data, self.config, chosen, self.bank.means, levels, "validation"
        )

    # -- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that training needs to go on as if it had not stopped."""
        return {
            "step": self.step,
            "architecture": self.network.config(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "means": self.bank.means,
            "window": self.window,
            "window_steps": self.window_steps,
            "best": self.best,
            "since_best": self.since_best,
            "identity": self.identity,
            "rng": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state. Raises TrainingError when it belongs to another architecture."""
        mine = self.network.config()
        for name, value in state["architecture"].items():
            if mine.get(name) != value:
                raise TrainingError(
                    f"The checkpoint of step {state['step']} has {name} = {str(value)[:60]}, expected "
                    f"{str(mine.get(name))[:60]} as the settings say: resume with the run's own settings or start "
                    "another run."
                )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.window, self.window_steps = state["step"], dict(state["window"]), state["window_steps"]
        self.best, self.since_best, self.identity = state["best"], state["since_best"], state["identity"]
        torch.set_rng_state(state["rng"].cpu())

    def save(self) -> None:
        """Write a checkpoint of this step. Raises TrainingError."""
        self.states.save(self.step, self.state())

    def agree(self) -> None:
        """Take over the main process's weights: what the machines computed for the start may differ in the last bits."""
        self.group.adopt([*self.network.state_dict().values(), *self.average.state_dict().values()])

    # -- one step -----------------------------------------------------------------------------------------------------

    def advance(self) -> dict[str, float]:
        """One optimisation step; returns loss, transport, paired and gradient_norm. Raises TrainingError when the loss
        is not finite.
        """
        config = self.config
        torch.manual_seed(derived_seed(config.seed, "dropout", self.step))
        batch = draw(self.step, self.bank, len(self.world.scenes), len(self.data.levels), config)
        self.network.train()
        self.optimiser.zero_grad(set_to_none=True)
        learn = self._through_the_model if self.teachers is None else self.teachers.backward
        found = shared_backward(self.group, self.network, learn, batch)
        limit = config.gradient_clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit))
        if not math.isfinite(norm + found["loss"]):
            raise TrainingError(
                f"The loss at step {self.step} is {found['loss']:g} with a gradient of norm {norm:g}, expected "
                "finite numbers: lower the learning rates and continue with --resume latest."
            )
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate_factor(self.step, config)
        self.optimiser.step()
        self.step += 1
        follow(self.average, self.network, self.step, config.ema)
        found["gradient_norm"] = norm
        return found

    def _through_the_model(self, network: Hypernetwork, batch: Draw) -> dict[str, float]:
        return backward(network, self.objective, batch, self.train_concepts)

    # -- validation ---------------------------------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        """Validation losses of the averaged weights, of the identity and of the mean map; notes whether it is the best
        so far.
        """
        if self.probe is None:
            return {}
        if self.identity is None:
            self.identity = float(self.probe.identity()["loss"].mean())
        text = {name: float(value.mean()) for name, value in self.probe.from_text(self.average).items()}
        images = self.probe.from_images(self.average)
        mean_map = float(self.probe.mean_map(self.average, self.bank)["loss"].mean())
        scale, shift = departure(self.average, self.probe.bank.all_text())
        found = {
            "validation": text["loss"],
            "validation_transport": text["transport"],
            "validation_paired": text["paired"],
            "identity": self.identity,
            "mean_map": mean_map,
            "scale_departure": scale,
            "shift_departure": shift,
        }
        if images is not None:
            found["validation_image"] = float(images["loss"].mean())
        improved = self.best is None or text["loss"] < self.best
        self.since_best = 0 if improved else self.since_best + 1
        self.best = text["loss"] if improved else self.best
        log.info(
            "step %d validation %.4f (pictures %s) | identity %.4f | mean map %.4f | scale departs %.3f, shift %.3f%s"
            "%s",
            self.step,
            text["loss"],
            f"{found['validation_image']:.4f}" if images is not None else "-",
            self.identity,
            mean_map,
            scale,
            shift,
            " sd" if self.config.standardise else "",
            " | best" if improved else "",
        )
        if improved:
            state = {
                "step": self.step,
                "architecture": self.network.config(),
                "average": self.average.state_dict(),
                "means": self.bank.means,
                "validation": found,
            }
            with self.group.together():
                if self.group.main:
                    self.states.save(self.step, state, self.states.best_path)
        self._warn(text["loss"], mean_map)
        return found

    def _warn(self, loss: float, mean_map: float) -> None:
        if self.since_best >= self.config.patience:
            log.warning(
                "Validation has not improved for %d validations (best %.4f, now %.4f): the network is learning the "
                "training concepts by "
                'heart; stop, or export with export_from = "best".',
                self.since_best,
                self.best,
                loss,
            )
        if self.identity is not None and loss > 1.001 * self.identity:  # a fresh network is the identity up to rounding
            log.warning(
                "Validation %.4f is worse than the untouched network's %.4f: lower the learning rates or check the "
                "concepts.",
                loss,
                self.identity,
            )
        elif loss > mean_map and self.step > 2 * self.config.validate_every:
            log.warning(
                "Validation %.4f is no better than one mean map for all concepts (%.4f): the network does not tell "
                "concepts apart yet.",
                loss,
                mean_map,
            )

    # -- the loop -----------------------------------------------------------------------------------------------------

    def fit(self, curves: Curves | None, interruption: Interruption) -> None:
        """Train to the configured number of steps; curves: the main process's. Raises Interrupted (saved),
        TrainingError.
        """
        config, rate = self.config, Rate()
        while self.step < config.steps:
            found = self.advance()
            rate.count()
            for name in MEASURED:
                self.window[name] += found[name]
            self.window_steps += 1
            last = self.step == config.steps
            values: dict[str, float] = {}
            if self.step % config.log_every == 0 or last:
                values.update(self._log_line(rate))
            stop = False
            if self.step % config.validate_every == 0 or last:
                values.update(self.validate())
                stop = config.early_stop and self.since_best >= config.patience
            asked = interruption.asked()
            saving = self.step % config.save_every == 0 or last or stop or asked
            if values or saving:
                with self.group.together():
                    if curves is not None:
                        self._write(curves, values, saving, drawing=saving and not asked)
            if asked:
                interruption.stop(
                    f"Stopped at step {self.step} of {config.steps}, saved in {self.run}; continue with --resume latest."
                )
            if stop:
                log.info("Stopped early at step %d: validation no longer improves.", self.step)
                return

    def _write(self, curves: Curves, values: dict[str, float], saving: bool, drawing: bool) -> None:
        if values:
            curves.add(self.step, values)
        if saving:
            self.save()
        if drawing:
            self._strip(curves)

    def _log_line(self, rate: Rate) -> dict[str, float]:
        mean = {name: total / max(1, self.window_steps) for name, total in self.window.items()}
        self.window, self.window_steps = dict.fromkeys(MEASURED, 0.0), 0
        learning_rate = self.config.learning_rate * rate_factor(self.step - 1, self.config)
        log.info(
            "step %d/%d loss %.4f (transport %.4f, paired %.4f) gradient %.3f lr %.2g | %.2f steps/s, %s left",
            self.step,
            self.config.steps,
            mean["loss"],
            mean["transport"],
            mean["paired"],
            mean["gradient_norm"],
            learning_rate,
            rate.per_second(),
            rate.left(self.config.steps - self.step),
        )
        return {**mean, "learning_rate": learning_rate, "steps_per_second": rate.per_second()}

    def _strip(self, curves: Curves) -> None:
        chosen = spread(self.world.concepts.validation or self.world.concepts.train, self.config.strip_concepts)
        if not self.config.strip_concepts:
            return
        image = save_strip(
            self.run / "strips" / f"step-{self.step:08d}.png",
            self.world,
            self.config,
            self.average,
            self.bank.means,
            chosen[: self.config.strip_concepts],
            f"step {self.step}",
        )
        if image is not None:
            curves.picture(self.step, "strip", image)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, step: int, memory: float) -> None:
    """Move a running mean of weights toward those of a network after a step (counted from 1); memory: share that is kept,
    less at first, so that the start is soon forgotten."""
    keep = min(memory, step / (step + 9))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - keep)


def rate_factor(step: int, config: TrainingConfig) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine down to `final_learning_rate`."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    progress = min(1.0, max(0.0, (step - config.warmup) / max(1, config.steps - config.warmup)))
    return rise * (
        config.final_learning_rate + (1 - config.final_learning_rate) * (1 + math.cos(math.pi * progress)) / 2
    )


def _optimiser(network: Hypernetwork, config: TrainingConfig) -> torch.optim.AdamW:
    groups = [
        {"params": network.trunk_parameters(), "peak": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": network.head_parameters(), "peak": config.head_learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99))
