"""CSMF: one two-tower model whose output dimensions are divided into blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfcsmf.cascade.batch_loss import StageNegatives, UpstreamMargin, batch_loss
from tfcsmf.cascade.histories import close_histories, opening_stages
from tfcsmf.config import Config
from tfcsmf.data.batch_parts import PART, part_of_batch
from tfcsmf.data.inputs import CANDIDATE_ID, QUERY_ID, EntityInputs, history_name
from tfcsmf.data.prepared import EntityTable, PreparedLog
from tfcsmf.data.rows import NUM_RESERVED
from tfcsmf.data.sequences import NUM_GAPS
from tfcsmf.heterrec.query_sequence import QuerySequence
from tfcsmf.heterrec.settings import build_encoder, uses_features
from tfcsmf.losses import SampledSoftmax
from tfcsmf.towers import (
    FREE,
    FeatureSpec,
    HistoryFeatures,
    MaskedEmbedding,
    OwnedParameter,
    RowBlock,
    Tower,
    block_slack,
    bounded,
)
from tfcsmf.towers.ownership import new_owner
from tfcsmf.towers.tower import (
    CANDIDATE_SCALE,
    FEATURED_SCALE,
    NO_BLOCKS,
    QUERY_SCALE,
    Blocks,
)

Inputs = Mapping[str, tf.Tensor]


class CSMF(tfrs.Model):
    """One network, one vector and one index for all objectives of a cascade.

    Dimension j of both vectors belongs to one stage (`block_owner[j]`). With
    stages counted from 0:

    - the candidate vector is v = [v_0; ..; v_{S-1}], block s from pass s of the
      candidate tower, fixed for ever once stage s is frozen;
    - the query vector of objective o, u^(o), is pass o of the query tower on
      blocks 0..o, and zero elsewhere;
    - the score is s_o = <u^(o), v>, and for request weights w the fused score
      is <sum_o w_o u^(o), v>: exact, with one query against one index.

    Args:
      query_tower: inputs to [n, d].
      candidate_tower: inputs to [n, d].
      loss: the sampled softmax task.
      disjoint_blocks: use block o alone in s_o instead of blocks 0..o.
      margin: keyword arguments of `adaptive_margin` (`form`, `strength`,
        `maximum`), and `share` of the training batches that have margins.
      normalize: vectors of bounded length, see `tfcsmf.towers.bounded`: u^(o) and
        v_0 have length 1, later blocks of v at most 1.

    Attributes:
      stage: the stage in training, 0-based; it uses raw parameters and owns the
        `FREE` entries until it is pruned.
      frozen_candidates: float [C, d], vectors of the catalogue on the blocks of
        earlier stages, zero elsewhere; `None` in stage 0.
      sampling_probability: float [C], see `StageBatches.probability`.
      negatives: what else the loss has to know of the stage's negatives.

    References:
      CSMF, arXiv 2504.12920; blocks and fusion are our reading, the one that
      satisfies its claim of one vector of unchanged size exactly.
    """

    def __init__(
        self,
        query_tower: Tower,
        candidate_tower: Tower,
        loss: SampledSoftmax,
        disjoint_blocks: bool = False,
        margin: Mapping[str, Any] | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.query_tower = query_tower
        self.candidate_tower = candidate_tower
        self.task = loss
        self.disjoint_blocks = disjoint_blocks
        settings = dict(margin or {"form": "none", "strength": 0.0})
        self.margin_share = float(settings.pop("share", 1.0))
        self.margin = settings
        self.normalize = normalize
        self.block_owner = new_owner("block_owner", (query_tower.dimension,))
        self.stage = 0
        self.frozen_candidates: tf.Tensor | None = None
        self.sampling_probability: tf.Tensor | None = None
        self.negatives = StageNegatives()
        for tower in (candidate_tower, query_tower):
            if not tower.built:
                tower.build(None)
        self.built = True

    @property
    def dimension(self) -> int:
        """Size d of the query and candidate vectors."""
        return self.query_tower.dimension

    @property
    def owned_parameters(self) -> list[OwnedParameter]:
        """Every trainable tensor with its owners."""
        return [
            *self.query_tower.owned_parameters(),
            *self.candidate_tower.owned_parameters(),
        ]

    @property
    def num_parameters(self) -> int:
        """Trainable entries; owners are not parameters."""
        return sum(parameter.size for parameter in self.owned_parameters)

    def block_sizes(self, stages: int) -> list[int]:
        """Returns the output dimensions each stage owns."""
        owners = self.block_owner.numpy()
        return [int(np.sum(owners == stage)) for stage in range(stages)]

    def query_vectors(
        self,
        inputs: Inputs,
        stage: int,
        training: bool = False,
        seed: tf.Tensor | None = None,
        blocks: Blocks = NO_BLOCKS,
        part: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns u^(stage), float [n, d].

        Args:
          inputs: encoded query inputs.
          stage: the objective, 0-based.
          training: the stage is the one in training: use raw parameters, and the
            `FREE` dimensions count as its own.
          seed: int [2], switches dropout on.
          blocks: see `row_blocks`.
          part: the rows to encode, see `Tower`.
        """
        raw = None if training else stage
        vectors = self.query_tower(inputs, raw, seed=seed, blocks=blocks, part=part)
        vectors = tf.where(self._query_blocks(stage, training), vectors, 0.0)
        return bounded(vectors) if self.normalize else vectors

    def candidate_vectors(
        self,
        inputs: Inputs,
        stage: int,
        training: bool = False,
        seed: tf.Tensor | None = None,
        blocks: Blocks = NO_BLOCKS,
    ) -> tf.Tensor:
        """Returns block `stage` of the candidate vectors, zero elsewhere, [n, d]."""
        vectors = self.candidate_tower(
            inputs, None if training else stage, seed=seed, blocks=blocks
        )
        vectors = tf.where(self._own_block(stage, training), vectors, 0.0)
        return bounded(vectors, block_slack(stage)) if self.normalize else vectors

    def all_blocks(self, inputs: Inputs, stages: int) -> tf.Tensor:
        """Returns the candidate vectors on the blocks of the first `stages` stages."""
        vectors = self.candidate_vectors(inputs, 0)
        for stage in range(1, stages):
            vectors += self.candidate_vectors(inputs, stage)
        return vectors

    def compute_loss(
        self, inputs: Mapping[str, Any], training: bool = False
    ) -> tf.Tensor:
        """Returns the mean softmax loss of the positives of a batch.

        The stage is the current one.

        Args:
          inputs: a batch of `tfcsmf.data.batches.StageBatches`. With a `part` of its
            rows, that part's share of the loss, see `tfcsmf.data.batch_parts`.
          training: switches dropout on.
        """
        stage, part = self.stage, inputs.get(PART)
        seed = inputs["seed"] if training else None
        blocks = self.row_blocks(inputs.get("rows", {}))
        query = self.query_vectors(inputs["query"], stage, True, seed, blocks, part)
        other_seed = None if seed is None else seed + [0, 7]
        candidate = self.candidate_vectors(
            inputs["candidate"], stage, True, other_seed, blocks
        )
        if part is not None:
            inputs = part_of_batch(inputs)
        margin = None
        if stage > 0:
            if self.frozen_candidates is None:
                raise ValueError(
                    "`frozen_candidates` should be set to the vectors of earlier "
                    f"stages before stage {stage} is trained. Received: None. Use "
                    "`all_blocks`."
                )
            frozen = tf.gather(self.frozen_candidates, inputs["items"])
            # The own block of `frozen` is zero, so this joins the blocks.
            candidate = candidate + frozen
            margin = self._margin(inputs, query, frozen, blocks, seed)
        return batch_loss(
            self.task,
            inputs,
            query,
            candidate,
            self.negatives,
            probability=self.sampling_probability,
            normalized=self.normalize,
            frozen_candidates=self.frozen_candidates,
            margin=margin,
            sample_weight=inputs.get("weight"),
            training=training,
        )

    @property
    def id_tables(self) -> dict[str, MaskedEmbedding]:
        """The tables of both towers' ids, by id name."""
        towers = (self.query_tower, self.candidate_tower)
        return {tower.id_name: tower.id_table for tower in towers}

    def row_blocks(self, rows: Mapping[str, tf.Tensor]) -> dict[str, RowBlock]:
        """Returns table rows by id name, for inputs whose ids are numbers in them."""
        return {name: self.id_tables[name].block(part) for name, part in rows.items()}

    def _margin(
        self,
        inputs: Mapping[str, Any],
        query: tf.Tensor,
        frozen: tf.Tensor,
        blocks: Blocks,
        seed: tf.Tensor | None,
    ) -> UpstreamMargin | None:
        if self.margin["form"] == "none" or self.margin["strength"] == 0.0:
            return None

        def upstream_queries() -> tf.Tensor:
            vectors = self.query_vectors(
                inputs["query"], self.stage - 1, blocks=blocks, part=inputs.get(PART)
            )
            return tf.stop_gradient(vectors / (self.task.temperature or 1.0))

        due = None
        if seed is None or self.margin_share == 1.0:
            upstream = upstream_queries()
        else:
            due = margins_due(seed, self.margin_share)
            upstream = tf.cond(due, upstream_queries, lambda: tf.zeros_like(query))
        # Of this stage's block, where earlier stages' vectors are 0.
        own = tf.cast(self._own_block(self.stage, True), tf.int32)
        spare = tf.one_hot(tf.argmax(own), tf.size(own))
        return UpstreamMargin(
            self.margin, upstream, frozen, inputs["positives"], spare, due
        )

    def _own_block(self, stage: int, training: bool) -> tf.Tensor:
        owner = tf.convert_to_tensor(self.block_owner)
        own = tf.equal(owner, tf.constant(stage, tf.int8))
        return own | tf.equal(owner, tf.constant(FREE, tf.int8)) if training else own

    def _query_blocks(self, stage: int, training: bool) -> tf.Tensor:
        own = self._own_block(stage, training)
        if self.disjoint_blocks:
            return own
        earlier = tf.less(
            tf.convert_to_tensor(self.block_owner), tf.cast(stage, tf.int8)
        )
        return own | earlier


def margins_due(seed: tf.Tensor, share: float) -> tf.Tensor:
    """Returns whether a batch is of the share that has margins, a bool scalar.

    By the batch's own seed, int [2]: the same on all workers and after a resume.
    """
    return tf.random.stateless_uniform([], seed + [0, 13]) < share


def build_model(config: Config, log: PreparedLog, devices: Sequence[str] = ()) -> CSMF:
    """Builds the model of a configuration for a prepared log, untrained.

    Args:
      config: of the run.
      log: see `build_towers`.
      devices: hold the shards of id tables in turn; none for where all else is.
    """
    tf.keras.utils.set_random_seed(config.seed)
    query_tower, candidate_tower = build_towers(config, log, devices=devices)
    query_tower.build(None)
    close_histories(query_tower, history_stages(config, log))
    return CSMF(
        query_tower,
        candidate_tower,
        build_loss(config),
        disjoint_blocks=config.cascade.blocks == "disjoint",
        margin=config.loss.margin.model_dump(),
        normalize=config.towers.normalize,
    )


def build_towers(
    config: Config,
    log: PreparedLog,
    query_class: Callable[..., Tower] = Tower,
    copies: int = 1,
    devices: Sequence[str] = (),
    **query_options: Any,
) -> tuple[Tower, Tower]:
    """Builds the query and the candidate tower of a configuration.

    Args:
      config: `towers` is used.
      log: gives vocabularies, features and histories.
      query_class: called with the arguments of `Tower`.
      copies: how many blocks of `towers.dimension` both vectors have; each starts
        as the identity.
      devices: see `build_model`.
      **query_options: further arguments of `query_class`.
    """
    towers = config.towers
    common: dict[str, Any] = {
        "dimension": towers.dimension * copies,
        "copies": copies,
        "hidden_units": towers.hidden_units,
        "embedding_dimension": towers.embedding_dimension,
        "feature_dimension": towers.feature_dimension,
        "activation": towers.activation,
        "ownership": towers.embedding_ownership,
        "dropout": towers.dropout,
        "shard_rows": towers.shard_rows,
    }
    features = feature_specs(log.items)
    histories = [history_name(event) for event in log.history_events]
    candidate_tower = Tower(
        CANDIDATE_ID,
        log.items.num_rows,
        features,
        # Without features an unknown candidate has nothing to be known by.
        id_hidden=hidden_ids(log, towers.candidate_id_prior) if features else None,
        id_scale=FEATURED_SCALE if features else CANDIDATE_SCALE,
        is_item=True,
        devices=devices,
        name="candidate",
        **common,
    )
    # The users' shards go on where the items' end.
    turn = candidate_tower.id_table.num_shards % max(1, len(devices))
    query_tower = query_class(
        QUERY_ID,
        log.users.num_rows,
        feature_specs(log.users),
        id_dropout=towers.query_id_dropout,
        histories=histories,
        history_dropout=towers.history_dropout,
        history_table=candidate_tower.id_table,
        history_features=(
            HistoryFeatures(candidate_tower, EntityInputs(log.items, CANDIDATE_ID))
            if features and histories and towers.history_features
            else None
        ),
        id_scale=QUERY_SCALE,
        sequence=build_sequence(config, log, candidate_tower, histories),
        devices=[*devices[turn:], *devices[:turn]],
        name="query",
        **common,
        **query_options,
    )
    return query_tower, candidate_tower


def build_sequence(
    config: Config, log: PreparedLog, tower: Tower, histories: Sequence[str]
) -> QuerySequence | None:
    """Builds the sequence encoder of the query tower, if there is to be one.

    Args:
      config: `towers.query_encoder` says which; `sequence` has its sizes.
      log: gives the catalogue's features.
      tower: the candidate tower.
      histories: names of the lists it reads.
    """
    name = config.towers.query_encoder
    if name == "pooled" or not histories:
        return None
    settings = config.sequence.model_copy(update={"encoder": name})
    rich = uses_features(settings)
    tokens = 1 + (len(tower.features) if rich else 0)
    events = NUM_RESERVED + len(histories) if len(histories) > 1 else 0
    timed = log.train_histories.times is not None
    gaps = NUM_GAPS if timed and settings.time_gaps else 0
    return QuerySequence(
        tower,
        EntityInputs(log.items, CANDIDATE_ID),
        build_encoder(settings, tokens, events, gaps),
        histories,
        settings.length,
        rich,
        timed,
        name="sequence",
    )


def hidden_ids(
    log: PreparedLog, prior: float, events: np.ndarray | None = None
) -> np.ndarray:
    """Returns the chance that training hides an item's id, float32 [rows].

    Our choice, like the weight of a prior of so many events: `prior / (prior + n)`
    for an item with n training events of all objectives.

    Args:
      log: gives the catalogue.
      prior: >= 0; 0 hides none.
      events: int [C], n of every item; default those of training.
    """
    if events is None:
        events = np.sum([log.item_counts(name) for name in log.train], axis=0)
    counts = np.zeros(log.items.num_rows)
    counts[NUM_RESERVED:] += events[: log.items.trained]
    chances = prior / np.maximum(prior + counts, 1e-9)
    chances[:NUM_RESERVED] = 0.0
    return chances.astype(np.float32)


def build_loss(config: Config) -> SampledSoftmax:
    """Builds the sampled softmax of a configuration."""
    return SampledSoftmax(
        temperature=config.loss.temperature,
        # Batches exclude a user's known positives, the row's own among them.
        remove_accidental_hits=False,
        correct_positives=False,
    )


def history_stages(config: Config, log: PreparedLog) -> dict[str, int]:
    """Returns the first stage that sees each history; see `opening_stages`."""
    return opening_stages(
        log.objectives, log.history_events, config.cascade.history_access
    )


def feature_specs(table: EntityTable) -> list[FeatureSpec]:
    """Returns what a tower has to know of a table's features."""
    return [
        FeatureSpec(
            encoder.name,
            encoder.kind,
            table.features[encoder.name].shape[1]
            if encoder.kind == "vector"
            else encoder.num_rows,
        )
        for encoder in table.encoders
    ]
