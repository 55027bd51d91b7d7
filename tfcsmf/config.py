"""The configuration: one typed tree, YAML in, YAML out.

Every field has a default, so `Config()` runs the cascade on the simulator. The
reason for a default stands beside it; figures are in `docs/results.md`.

Example:
  >>> config = Config.from_dict({"towers": {"dimension": 32}}, ["seed=7"])
  >>> config.towers.dimension, config.seed
  (32, 7)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
import yaml

from tfcsmf._config_base import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Share,
)
from tfcsmf._config_negatives import ClusterConfig as ClusterConfig
from tfcsmf._config_negatives import EsansConfig as EsansConfig
from tfcsmf._config_negatives import HardestConfig as HardestConfig
from tfcsmf._config_negatives import NegativesConfig as NegativesConfig
from tfcsmf._config_negatives import SamplerName as SamplerName
from tfcsmf._config_sequence import SequenceConfig as SequenceConfig
from tfcsmf._config_trees import assign, copy_tree, explain
from tfcsmf._config_trees import read_yaml as read_yaml
from tfcsmf._config_trees import with_options as with_options
from tfcsmf.errors import ConfigError, nearest

FeatureKind = Literal["categorical", "numeric", "multi", "vector"]


class Columns(Section):
    """Column names of the input tables (ours: theirs)."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    event: str = "event"
    split: str = "split"
    # The first of these that is present orders the events of a user.
    time: tuple[str, ...] = ("timestamp", "date", "position")


class DataConfig(Section):
    """Which log is read, and how it is split and encoded."""

    # A file, a folder or a glob of Parquet or CSV; None runs the simulator.
    events: str | None = None
    items: str | None = None
    users: str | None = None
    # A folder that pipelines/prepare.py made of these files: run_cascade.py then
    # trains from it, with bounded memory, and the files are not read.
    prepared: str | None = None
    columns: Columns = Columns()
    # Kinds by column name; columns not named here are inferred from their type.
    query_features: dict[str, FeatureKind] = {}
    candidate_features: dict[str, FeatureKind] = {}
    # Columns of the item and user tables that are not features.
    ignore: tuple[str, ...] = ()
    # auto: the split column if present, else by time, else leave-last-out by
    # position, else random.
    split: Literal["auto", "file", "time", "leave_last_out", "random"] = "auto"
    test_share: Share = 0.1
    # Validation pairs per objective: at most this many users, one pair each,
    # and at most this share of its training pairs. The standard error of recall@50
    # on Taobao is .008 with 2,000 users.
    validation_users: NonNegative = 5000
    validation_share: Share = 0.1
    # Last events kept per history feature.
    history_length: Positive = 200
    # Where time is known: a user's events of an objective are predicted from at most so
    # many points of its histories. Who has events at more times has those that follow
    # each other predicted together, from what came before the first of them.
    rows_per_user: Positive = 32
    # Where no time is known: share of a user's positives that training takes out of
    # the histories, anew in every batch, to predict them from what is left.
    target_share: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.5
    # Share of the targets that histories of other events show: a carted item is
    # bought more often, which is learned from these.
    visible_share: Annotated[float, pydantic.Field(ge=0.0, le=1.0)] = 0.5
    # None: one history per objective.
    history_events: tuple[str, ...] | None = None
    # Ids and categories with fewer training events share the UNKNOWN row.
    min_count: Positive = 1
    # Users below `min_count` share this many rows by a hash of their ids, instead of
    # the UNKNOWN row; 0 is off. Items never do: of one row none could be told apart.
    hash_buckets: NonNegative = 0
    numeric_buckets: Annotated[int, pydantic.Field(ge=2)] = 20
    # Multi-valued features keep at most this many values per entity.
    max_values: Positive = 20


class SimulatorConfig(Section):
    """The built-in cascade simulator (`tfcsmf.data.simulator`)."""

    users: Positive = 3000
    items: Positive = 2000
    # Mean impressions per user; the funnel thins them out level by level.
    exposures_per_user: Positive = 80
    # Latent dimension of the ground truth.
    factors: Positive = 12
    # Zipf exponent of item popularity.
    popularity: NonNegativeFloat = 0.8
    # Mean share of each level that reaches the next one.
    click_rate: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.22
    conversion_rate: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.18
    days: Positive = 30


class TowersConfig(Section):
    """Sizes of both towers, and how their parameters can be owned."""

    # Output dimension, shared by all objectives: the vector that is indexed.
    dimension: Positive = 64
    embedding_dimension: Positive = 64
    feature_dimension: Positive = 16
    hidden_units: tuple[Positive, ...] = (128,)
    # What the query tower sees of histories: their pooled items, or beside them what a
    # sequence encoder says of all of them together; `sequence` has its sizes.
    query_encoder: Literal["pooled", "heterrec", "merged", "sasrec", "gru4rec"] = (
        "pooled"
    )
    # Its sequences by time over all events, with time gaps, where the log has times;
    # requests then have to give times too. Else event by event, from the lists alone.
    history_times: bool = False
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    # Vectors of length 1, whose inner products are cosines (`tfcsmf.towers.bounded`);
    # to be used with a temperature well below 1.
    normalize: bool = True
    # How CPP frees parameters: single weights or whole hidden units.
    granularity: Literal["weight", "unit"] = "weight"
    # Who owns embedding tables: entries (CPP on the table), columns, or all of
    # it stage 1 ("frozen").
    embedding_ownership: Literal["entries", "columns", "frozen"] = "entries"
    # Tables of ids with more rows are kept in shards of so many rows, which change no
    # number: `--distribution parameter_server` puts them on other machines, and what is
    # done with whole tables (pruning, checkpoints) is done shard by shard.
    shard_rows: Annotated[int, pydantic.Field(ge=4, multiple_of=4)] = 1 << 20
    # Histories say what the features of their items are, not only which items.
    history_features: bool = True
    # Share of query ids replaced by UNKNOWN in training, so that histories and
    # features have to answer: ids of users learn their events by heart. A user never
    # seen before gets a trained answer.
    query_id_dropout: Share = 0.95
    # Where candidates have features: an item that was met n times in training has its
    # id replaced with probability c / (c + n), c being this, so that features answer
    # for what is rarely met, and for what nobody has met yet. 0 never does.
    candidate_id_prior: NonNegativeFloat = 8.0
    # Share of the events of every history left out in training, anew in every step.
    history_dropout: Share = 0.0
    dropout: Share = 0.0


class StageConfig(Section):
    """How one stage is trained; `cascade.stages.<objective>` overrides fields."""

    learning_rate: PositiveFloat = 1e-3
    embedding_learning_rate: PositiveFloat = 5e-3
    optimizer: Literal["adam", "adagrad"] = "adam"
    # Rows of a batch: queries, each with all its positives. Where no time is known a
    # row is a user; else it is a user at one point of its histories.
    batch_size: Positive = 512
    epochs: Positive = 50
    # Evaluations without improvement before a stage stops; 0 never stops early.
    patience: NonNegative = 5
    # What is validated and kept is an exponential average over the ends of epochs:
    # the weight of the newest. 1 keeps the newest alone.
    averaging: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.25
    # Where negatives come from; None is `loss.negatives.sampler`.
    sampler: SamplerName | None = None
    # Decoupled L2 decay of dense kernels and of touched embedding rows.
    weight_decay: NonNegativeFloat = 0.0
    # Share of information mass CPP frees after the stage (method 1.3). .1 frees a
    # third of the entries of a Gaussian layer (docs/results.md).
    tau: Share = 0.1
    # ... of embedding tables, if it differs, and of output dimensions.
    embedding_tau: Share | None = None
    output_tau: Share | None = 0.05
    # The best of these epochs, or the pruned state, is kept.
    recovery_epochs: NonNegative = 6
    # Share of the stage's examples recovery uses. All of them: on a subset the
    # kept entries memorise that subset, and validation falls as the loss does.
    recovery_share: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 1.0
    # Learning rates of recovery, as a share of the stage's.
    recovery_rate: PositiveFloat = 0.3
    # What freed parameters start the next stage from: "keep" (their value before
    # pruning) starts it from the whole previous network.
    freed: Literal["zero", "keep", "reinitialize"] = "keep"


class MarginConfig(Section):
    """Cross-stage adaptive margin (AML), stages >= 2 (method 1.5)."""

    form: Literal["none", "confusable", "order"] = "confusable"
    # Strength (lambda); 0 is the plain loss.
    strength: NonNegativeFloat = 0.8
    # Share of the batches, drawn at random, that have margins, which cost a pass of the
    # stage before and a matrix product more (our reading).
    share: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.125
    # Cap of the order-keeping margin.
    maximum: PositiveFloat = 5.0


class LossConfig(Section):
    """Sampled softmax (method section 4)."""

    # Scores are divided by it.
    temperature: PositiveFloat = 0.12
    # A catalogue of at most this many items is the negatives of every batch as a
    # whole; from a larger one they are sampled, as the next settings say.
    whole_catalogue: NonNegative = 20_000
    # logQ correction of in-batch negatives by their frequency in the log.
    correct_sampling: bool = True
    # Uniform negatives shared by the batch, beside the in-batch ones.
    uniform_negatives: NonNegative = 1024
    # Items of the previous level's events without the current one (exposed, not
    # clicked), drawn from all users and shared by the batch; stages >= 2.
    hard_negatives: NonNegative = 0
    margin: MarginConfig = MarginConfig()
    # Where else negatives may come from.
    negatives: NegativesConfig = NegativesConfig()


class CascadeConfig(Section):
    """The stage loop."""

    # Objectives in cascade order: values of the event column.
    objectives: tuple[str, ...] = ("exposure", "click", "conversion")
    criterion: Literal["cpp", "magnitude", "fisher", "random"] = "cpp"
    # Share of parameters a non-CPP criterion frees; CPP uses the stage's tau.
    freed_share: Share = 0.5
    # What tells output dimensions apart: how much they move scores ("principal":
    # after turning them so that few do), or the norms of their kernel columns. A
    # criterion with its own importance (fisher) goes first.
    dimension_information: Literal["principal", "scores", "weights"] = "principal"
    # Histories that an objective's pass sees: "earlier" are those of its own event and
    # of the objectives before it; "all" those of later objectives too.
    history_access: Literal["earlier", "all"] = "earlier"
    # The first stage learns most of every item vector. Pairs with an event of a later
    # objective are its positives too, and the later objectives' rows, with their own
    # histories, are trained beside it, a pair having this weight (its own have 1). 0
    # leaves both to their own stages (`tfcsmf.data.funnel`).
    later_weight: NonNegativeFloat = 2.0
    # nested: s_o uses blocks 1..o; disjoint: block o only.
    blocks: Literal["nested", "disjoint"] = "nested"
    # Free capacity after the last stage too, for an objective appended later.
    reserve: bool = False
    stage: StageConfig = StageConfig()
    stages: dict[str, dict[str, Any]] = {}
    # Steps between resumable checkpoints; each stage's end is one as well.
    checkpoint_every: Positive = 500
    keep_checkpoints: Positive = 2

    @pydantic.field_validator("objectives")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("objectives should name at least one event")
        if any(not name.strip() for name in value):
            raise ValueError("every objective should be a name, none of them blank")
        if len(set(value)) != len(value):
            raise ValueError(f"objectives should be distinct, got {list(value)}")
        return value


class EvaluationConfig(Section):
    """Whole-catalogue evaluation."""

    ks: tuple[Positive, ...] = (10, 20, 50, 100)
    # Stages stop early on recall at this k over their validation pairs.
    validation_k: Positive = 50
    bootstrap_samples: Positive = 1000
    # Learning-free references printed beside the model.
    baselines: tuple[Literal["popularity", "seen_first"], ...] = (
        "popularity",
        "seen_first",
    )
    query_batch: Positive = 512
    candidate_block: Positive = 65536
    # Points of the trade-off curve between objectives.
    tradeoff_points: Annotated[int, pydantic.Field(ge=2)] = 11


class RetrievalConfig(Section):
    """The index and the exported model."""

    # auto, exact and ivf export standard TensorFlow operations only; scann needs a
    # server that is linked with its operations.
    index: Literal["auto", "exact", "scann", "ivf"] = "auto"
    # "auto" takes ivf from this catalogue size on; below it exact search takes about
    # a millisecond.
    approximate_from: Positive = 100_000
    # Recall at k against exact search, under random weights, approximate search must
    # reach.
    target_recall: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.95
    calibration_queries: Positive = 500
    k: Positive = 100
    # Most results a request may ask for (`retrieve_filtered`).
    max_k: Positive = 1000
    # Largest number of excluded items per query an index has to allow for.
    max_exclusions: NonNegative = 200
    # Default weight per objective; missing ones are 1.
    weights: dict[str, float] = {}


class Config(Section):
    """The whole tree; see the sections."""

    seed: NonNegative = 0
    data: DataConfig = DataConfig()
    simulator: SimulatorConfig = SimulatorConfig()
    towers: TowersConfig = TowersConfig()
    loss: LossConfig = LossConfig()
    cascade: CascadeConfig = CascadeConfig()
    sequence: SequenceConfig = SequenceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    retrieval: RetrievalConfig = RetrievalConfig()

    @pydantic.model_validator(mode="after")
    def _check_references(self) -> Config:
        names = self.cascade.objectives
        for section, keys in (
            ("cascade.stages", self.cascade.stages),
            ("retrieval.weights", self.retrieval.weights),
        ):
            for key in keys:
                if key not in names:
                    raise ConfigError(
                        f"{section} may only name objectives {list(names)}. "
                        f"Received: {key!r}.{nearest(key, names)}"
                    )
        for name in self.cascade.stages:
            self.stage(name)
        blocks = len(names) + int(self.cascade.reserve)
        if self.towers.dimension < blocks:
            raise ConfigError(
                "towers.dimension should give every objective (and the reserve) an "
                f"output dimension: at least {blocks}. "
                f"Received: {self.towers.dimension}."
            )
        return self

    def stage(self, objective: str) -> StageConfig:
        """Returns the stage settings of one objective, overrides applied."""
        overrides = self.cascade.stages.get(objective, {})
        merged = self.cascade.stage.model_dump() | overrides
        where = f"cascade.stages.{objective}"
        return _validate(StageConfig, merged, where)

    def sampler(self, objective: str) -> SamplerName:
        """Returns where the negatives of an objective come from."""
        return self.stage(objective).sampler or self.loss.negatives.sampler

    def objective_weights(self) -> list[float]:
        """Returns the default weight of every objective, in cascade order."""
        return [
            float(self.retrieval.weights.get(name, 1.0))
            for name in self.cascade.objectives
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns the tree as plain lists and dictionaries."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Returns the tree as YAML that `from_yaml` reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(
        cls, tree: Mapping[str, Any], assignments: Sequence[str] = ()
    ) -> Config:
        """Builds a configuration from a (partial) tree and `a.b=c` assignments.

        Args:
          tree: nested mapping; missing keys keep their defaults.
          assignments: `path=value` strings; values are read as YAML.

        Raises:
          ConfigError: for an unknown key (with the nearest valid one) or a value
            of the wrong type or range.
        """
        merged = copy_tree(tree)
        for assignment in assignments:
            assign(merged, assignment)
        return _validate(cls, merged, "")

    @classmethod
    def from_yaml(cls, path: str, assignments: Sequence[str] = ()) -> Config:
        """Reads a configuration file; see `from_dict`.

        Raises:
          ConfigError: also if the file is missing or is not a YAML mapping.
        """
        return cls.from_dict(read_yaml(path), assignments)


def _validate(cls: type, tree: Mapping[str, Any], where: str) -> Any:
    try:
        return cls(**tree)
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error, cls, where)) from None
