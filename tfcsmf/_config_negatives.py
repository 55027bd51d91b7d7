"""The section of negative samplers (`tfcsmf.negatives`)."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from tfcsmf._config_base import NonNegativeFloat, Positive, PositiveFloat, Section

SamplerName = Literal[
    "auto",
    "in_batch",
    "uniform",
    "popularity",
    "mixed",
    "cross_batch",
    "dns",
    "mixgcf",
    "esans",
]
# Drawn two by two, both from one cluster.
Even = Annotated[int, pydantic.Field(ge=0, multiple_of=2)]


class ClusterConfig(Section):
    """MSAC: semantic clusters of the catalogue (docs/esans.md)."""

    # Vector features of candidates, and "behaviour" for vectors made of the log's
    # co-occurrences. None takes all there are. "random" is none of them: vectors
    # drawn at random, to see what clusters are worth.
    modalities: tuple[str, ...] | None = None
    # Dimension of the space that modalities are aligned in, and of behaviour vectors.
    aligned_dimension: Positive = 64
    # Steps of the alignment; not needed with one modality.
    alignment_steps: Positive = 1000
    # Clusters of the first level and of the second; None is the root of an eighth
    # of the items, about eight of them per pair of codes.
    first_level: Positive | None = None
    second_level: Positive | None = None


class EsansConfig(Section):
    """ESANS: negatives of single positives, real and virtual (docs/esans.md)."""

    # Real negatives per positive: from other clusters of the first level, and from
    # the positive's own, of which another of the second level.
    easy: Even = 8
    hard: Even = 8
    # What all rows share beside them: other rows' positives (in_batch), those and
    # `loss.uniform_negatives` uniform draws (mixed), or nothing.
    pool: Literal["in_batch", "mixed", "none"] = "in_batch"
    # EDIS: between negatives of one cluster (simple), between the positive and a
    # hard one (hard).
    virtual: Literal["both", "simple", "hard", "none"] = "both"
    # How far hard virtual ones go towards the positive: U(0, .5), or U(-.5, 1.5) as
    # in a digest of the paper, which holds the positive itself.
    mixing: Literal["safe", "literal"] = "safe"
    # Whether virtual negatives leave the positive's vector where it is.
    stop_positive: bool = True
    # How often the items that easy, hard and virtual draws stand for count.
    easy_weight: PositiveFloat = 1.0
    hard_weight: PositiveFloat = 1.0
    virtual_weight: PositiveFloat = 1.0
    # Inverse temperature of P(j|i) = softmax(-scale dist(C_i, C_j)).
    distance_scale: NonNegativeFloat = 1.0
    clusters: ClusterConfig = ClusterConfig()


class HardestConfig(Section):
    """dns and mixgcf: of uniform draws for a positive, the highest scored."""

    draws: Positive = 32  # per positive
    hardest: Positive = 4  # of them, and with mixgcf of their mixtures, that count
    # Other rows' positives are negatives as well.
    in_batch: bool = True
    # How often the items that draws stand for count.
    weight: PositiveFloat = 1.0


class NegativesConfig(Section):
    """Which sampler; `cascade.stages.<objective>.sampler` overrides it."""

    # auto: the whole catalogue up to `loss.whole_catalogue` items, else mixed. Any
    # other is used whatever the size of the catalogue. uniform and popularity draw
    # `loss.uniform_negatives`; mixed adds as many uniform ones to those in the batch.
    sampler: SamplerName = "auto"
    # Candidates of the batches before that cross_batch keeps, vectors included.
    memory: Positive = 4096
    hardest: HardestConfig = HardestConfig()
    esans: EsansConfig = EsansConfig()
