"""The sampler of a stage, by the name its configuration gives."""

from __future__ import annotations

import numpy as np

from tfcsmf.cascade.batch_loss import StageNegatives
from tfcsmf.config import Config, SamplerName
from tfcsmf.data.batches import StageBatches
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.errors import ConfigError
from tfcsmf.negatives.clusters import SemanticClusters
from tfcsmf.negatives.esans import EsansSampler
from tfcsmf.negatives.hardest import HardestSampler
from tfcsmf.negatives.memory import CandidateMemory
from tfcsmf.negatives.sampler import NegativeSampler, PoolSampler


def make_sampler(
    name: SamplerName,
    log: PreparedLog,
    objective: str,
    config: Config,
    clusters: SemanticClusters | None = None,
) -> NegativeSampler | None:
    """Returns the sampler of a stage, `None` for what catalogues get by default.

    Args:
      name: see `NegativesConfig.sampler`.
      log: the prepared log.
      objective: of the stage.
      config: `loss` is used.
      clusters: of the catalogue, for "esans".

    Raises:
      ConfigError: if the settings leave the sampler without negatives.
    """
    settings, size = config.loss.negatives, log.items.size
    draws = config.loss.uniform_negatives
    if name in ("uniform", "popularity") and draws == 0:
        raise ConfigError(
            f"The {name} sampler draws loss.uniform_negatives negatives, at least 1. "
            "Received: 0. Raise it, or choose sampler: in_batch."
        )
    if name == "in_batch":
        return PoolSampler(0, size)
    if name == "uniform":
        return PoolSampler(draws, size, in_batch=False)
    if name == "popularity":
        if log.whole is not None:
            counts = log.whole.targets[objective]
            return PoolSampler(draws, size, in_batch=False, counts=counts)
        items = log.train[objective].pairs.items
        return PoolSampler(draws, size, items, in_batch=False)
    if name == "mixed":
        return PoolSampler(draws, size)
    if name == "cross_batch":
        return PoolSampler(0, size, memory=settings.memory)
    if name in ("dns", "mixgcf"):
        trained = max(log.items.trained, _last_example(log) + 1)
        return HardestSampler(trained, settings.hardest, mixed=name == "mixgcf")
    if name == "esans":
        if clusters is None:
            raise ValueError("`clusters` should be given for 'esans'. Received: None.")
        esans = settings.esans
        if esans.easy + esans.hard == 0:
            raise ConfigError(
                "ESANS should draw negatives: loss.negatives.esans.easy and hard are "
                "both 0. Raise one, or choose sampler: in_batch."
            )
        trained = max(log.items.trained, _last_example(log) + 1)
        return EsansSampler(
            clusters.first, clusters.second, clusters.centres, trained, esans, draws
        )
    return None


def stage_negatives(
    config: Config, batches: StageBatches, dimension: int
) -> StageNegatives:
    """Returns what a stage's loss has to know of the negatives of its batches."""
    if batches.has_whole_catalogue:
        return StageNegatives()
    sampler, esans = batches.sampler, config.loss.negatives.esans
    memory = None
    if sampler.memory:
        memory = CandidateMemory(sampler.memory, dimension, batches.known)
    return StageNegatives(
        sampler.pairs,
        esans.stop_positive,
        esans.virtual_weight,
        memory,
        sampler.hardest,
    )


def _last_example(log: PreparedLog) -> int:
    if log.whole is not None:
        return max(int(np.flatnonzero(c)[-1]) for c in log.whole.targets.values())
    return max(int(np.max(part.pairs.items, initial=0)) for part in log.train.values())
