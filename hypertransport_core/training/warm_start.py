"""A start in closed form: what the collected statistics alone say about every concept, put into a fresh hypernetwork.

Per training concept and site the shift that carries the generic class's mean to the concept's is known without any
gradient (Mean-AcT, arXiv 2410.23054, §3). A singular value decomposition over the concepts gives the directions in
which such shifts differ, ridge regression says how far along each of them a concept embedding lies. Every site's shift
is worked out as if it were the only one, so all of them together go too far: a part of them is the start.

Scales stay 1. On Postcard (attention and MLP outputs) scales from the spread of the samples changed the validation loss
of the start by less than 1 % at the parts 0.1 and 0.3, and made it worse by half at 1.

How it gets into the MLP: everything before the bottleneck stays as it was drawn, a few hundred fixed random features of
the embedding. The two linear layers behind them are exactly a basis and its coefficients, so the ridge regression runs
on those features: `narrow` takes its weights, `head` the basis. A linear skip path from the embedding would be exact
for shifts that are linear in it, but it would be a part that every weights file would have to know; the random features
hold linear functions (nearly) and more, and nothing is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..concepts import Concept
from ..hypernetworks import Hypernetwork, MLPHypernetwork
from .config import ConfigError, TrainingConfig
from .data import DataFolder
from .embeddings import EmbeddingBank
from .progress import log

PENALTIES = tuple(10.0**power for power in range(-5, 3))  # of the ridge, in units of the mean variance of a feature
FOLDS = 5


def warm_start(
    network: Hypernetwork, data: DataFolder, concepts: Sequence[Concept], bank: EmbeddingBank, config: TrainingConfig
) -> None:
    """Let a fresh network predict `config.warm_start` times the closed form; 0 leaves it as it is, bit for bit.

    network: with its source statistics set, on the CPU; concepts and bank: of the training, in one order. Reads every
    concept's table once and holds ΣC floats per concept (and per set of maps). Raises ConfigError for a network that is
    no MLP, FileError for data that cannot be read.
    """
    if config.warm_start == 0:
        return
    if not isinstance(network, MLPHypernetwork):
        raise ConfigError(
            f'warm_start is {config.warm_start:g} with hypernetwork = "{config.hypernetwork}", expected "mlp", whose '
            "last layers take a basis: use it or set warm_start to 0."
        )
    owners = torch.arange(len(concepts))
    embeddings = bank.all_text()
    if config.image_share > 0 and all(len(pictures) for pictures in bank.images):
        pictures = torch.stack([bank.of_images(i) for i in range(len(concepts))])
        embeddings, owners = torch.cat([embeddings, pictures]), owners.repeat(2)
    share = install(network, embeddings, owners, closed_form(network, data, concepts), config.warm_start)
    log.info(
        "warm start: %g of the closed form, which explains %.0f %% of what tells concepts apart (those left out of it)",
        config.warm_start,
        100 * share,
    )


def closed_form(network: Hypernetwork, data: DataFolder, concepts: Sequence[Concept]) -> Tensor:
    """Shifts (steps, concepts, ΣC) fp32, in source deviations, from the source's mean to each concept's.

    A network with one set of maps for all noise levels gets the average over the levels, as its source statistics are.
    """
    levels, channels = range(len(data.levels)), network.channels
    shifts = torch.zeros(network.steps, len(concepts), channels)
    for number, concept in enumerate(concepts):
        means = torch.stack([data.targets(concept, level, 1)[0, :channels] for level in levels])
        means = means.mean(0, keepdim=True) if network.steps == 1 else means
        shifts[:, number] = (means - network.source_mean) / network.source_std
    return shifts


@dataclass(frozen=True)
class Ridge:
    """Coefficients (R, k) from features (R, F): weight (k, F), bias (k,), share explained in concepts left out."""

    weight: Tensor
    bias: Tensor
    share: float


def ridge(features: Tensor, wanted: Tensor, owners: Tensor) -> Ridge:
    """Ridge regression with the penalty, of `PENALTIES`, that predicts best the concepts left out, in `FOLDS` parts.

    features (R, F); wanted (R, k); owners (R,): each row's concept, whose rows are left out together.
    """
    folds = min(FOLDS, int(owners.max()) + 1)
    errors = torch.zeros(len(PENALTIES), dtype=torch.float64)
    for fold in range(folds if folds > 1 else 0):
        out = owners % folds == fold
        for number, (weight, bias) in enumerate(_solutions(features[~out], wanted[~out])):
            errors[number] += (wanted[out] - features[out] @ weight.T - bias).square().sum()
    best = int(errors.argmin()) if folds > 1 else len(PENALTIES) - 1
    weight, bias = _solutions(features, wanted)[best]
    spread = float((wanted - wanted.mean(0)).square().sum())
    return Ridge(weight, bias, 1 - float(errors[best]) / spread if folds > 1 and spread > 0 else 0.0)


def _solutions(features: Tensor, wanted: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) for every penalty, from one decomposition."""
    mean, centre = features.mean(0), wanted.mean(0)
    moved = features - mean
    values, vectors = torch.linalg.eigh(moved.T @ moved / len(moved))
    projected = vectors.T @ (moved.T @ (wanted - centre)) / len(moved)
    unit = values.mean().clamp(min=1e-12)
    found = []
    for penalty in PENALTIES:
        weight = (vectors @ (projected / (values.clamp(min=0) + penalty * unit)[:, None])).T
        found.append((weight, centre - weight @ mean))
    return found


@torch.no_grad()
def install(network: MLPHypernetwork, embeddings: Tensor, owners: Tensor, shifts: Tensor, amount: float) -> float:
    """Make a fresh network predict `amount` times the ridge regression of `shifts`; returns the share that it explains.

    embeddings (R, E), as the network reads them; owners (R,): the concept of each; shifts (steps, concepts, ΣC). The
    basis has at most `bottleneck` directions; the outputs of `narrow` keep the size that they had, so that learning
    rates mean what they meant. Directions that are not needed keep their random inlets.
    """
    steps, count, channels = shifts.shape
    training = network.training
    network.eval()
    features = torch.cat([network.features(embeddings, step) for step in range(steps)])
    network.train(training)
    outputs = network.narrow(features)
    size = float((outputs - outputs.mean(0)).double().square().mean().sqrt())
    mean = shifts.mean((0, 1))
    network.head.bias[channels:] = amount * mean
    # Equal shifts differ from their mean by rounding alone, how much is up to the processor.
    rounding = 1e-12 * float(shifts.double().square().sum())
    coefficients, basis = _basis((shifts - mean).flatten(0, 1), network.bottleneck, rounding)
    used = slice(0, coefficients.shape[1])
    if not coefficients.shape[1]:
        return 0.0
    rows = torch.cat([owners + step * count for step in range(steps)])
    found = ridge(features.double(), coefficients[rows], owners.repeat(steps))
    gain = size / coefficients.square().mean(0).sqrt()
    network.narrow.weight[used] = (gain[:, None] * found.weight).float()
    network.narrow.bias[used] = (gain * found.bias).float()
    network.head.weight[channels:, used] = (amount * basis / gain).float()
    return found.share


def _basis(moved: Tensor, rank: int, least: float) -> tuple[Tensor, Tensor]:
    """(coefficients (N, k) fp64, orthonormal basis (W, k) fp64) of centred rows (N, W): at most `rank` directions, none
    along which the rows' squares sum up to `least` or less.

    By way of the (N, N) products of the rows, as there are far fewer concepts than channels.
    """
    values, vectors = torch.linalg.eigh((moved @ moved.T).double())
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    kept = values > (1e-6 * values[0]).clamp(min=least)  # what the fp32 products can tell from nothing
    values, vectors = values[kept], vectors[:, kept]
    basis = (moved.T @ vectors.float()).double() / values.sqrt()
    return vectors * values.sqrt(), basis
