"""A cascade simulator with a known truth: exposure -> click -> conversion -> ...

It needs no download, scales from a unit test to a demo, and because the true
probabilities are known, the best possible recall is known too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from tfcsmf.config import SimulatorConfig
from tfcsmf.data._simulator_world import World, item_table, make_world, user_table
from tfcsmf.errors import ConfigError, DataError, nearest

START_TIME = 1_704_067_200  # 2024-01-01 00:00 UTC, in seconds
MIN_EXPOSURES = 3

_DAY = 86_400
_EXPOSURE_STRENGTH = 1.5  # how strongly level 1 follows taste beside popularity
_STRENGTH = 1.5  # ... and the later levels, which ignore popularity
_QUALITY_STRENGTH = 0.5
_PRICE_LEVEL = 2  # index of the first level at which the price deters
# Median seconds between an event and its parent, by level index; the last repeats.
_DELAYS = (0.0, 30.0, 1_800.0)
_BLOCK_ELEMENTS = 4_000_000  # bounds the memory of user x item blocks


@dataclass(frozen=True)
class _Level:
    """One level of the funnel: factor weights [F] of unit norm, and intercept."""

    index: int
    weights: np.ndarray
    intercept: float = 0.0

    def scores(self, world: World, users: np.ndarray) -> np.ndarray:
        """Returns the logits of these users for all items, [n, I]."""
        scores = (world.users[users] * self.weights) @ world.items.T
        scores = self._strength * scores + self._item_terms(world)
        if self.index >= _PRICE_LEVEL:
            scores -= np.outer(world.price_sensitivity[users], world.price_score)
        return scores + self.intercept

    def pair_scores(
        self, world: World, users: np.ndarray, items: np.ndarray
    ) -> np.ndarray:
        """Returns the logits of (user, item) pairs, [n]."""
        weighted = world.users[users] * self.weights
        scores = np.einsum("nf,nf->n", weighted, world.items[items])
        scores = self._strength * scores + self._item_terms(world)[items]
        if self.index >= _PRICE_LEVEL:
            scores -= world.price_sensitivity[users] * world.price_score[items]
        return scores + self.intercept

    @property
    def _strength(self) -> float:
        return _STRENGTH if self.index else _EXPOSURE_STRENGTH

    def _item_terms(self, world: World) -> np.ndarray:
        """What everybody agrees on, [I]: popularity first, quality later."""
        if self.index:
            return _QUALITY_STRENGTH * world.quality
        return world.log_popularity


@dataclass(frozen=True)
class Simulation:
    """A simulated log and the truth behind it.

    Attributes:
      events: `user_id`, `item_id`, `event` (strings) and `timestamp` (Int64,
        seconds since 1970), sorted by time.
      items: `item_id`, `category`, `brand` (strings), `price` (float), `tags`
        (list of strings) and `image` (Array of 8 Float32); row n is item `i{n}`.
      users: `user_id`, `age_group`, `country` (strings), `income` (float); row
        n is user `u{n}`.
      objectives: names of the levels, in cascade order.
      exposures: number of impressions of each user, int64 [U].
    """

    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    objectives: tuple[str, ...]
    exposures: np.ndarray
    _world: World = field(repr=False)
    _levels: tuple[_Level, ...] = field(repr=False)

    def probability(self, objective: str, users: np.ndarray) -> np.ndarray:
        """Returns how probable it was that an item reached a level of a user.

        Level 1 is the probability of being among the user's `exposures[u]`
        impressions, in the usual exponential-clock approximation (rows sum to
        `exposures[u]`); each later level multiplies its exact conditional rate.

        Args:
          objective: one of `objectives`.
          users: user rows, integers [n].

        Returns:
          float64 [n, I]; ranking a row by it is the best ranking there is.

        Raises:
          ConfigError: for an unknown objective.
        """
        if objective not in self.objectives:
            raise ConfigError(
                f"The objective should be one of {list(self.objectives)}. "
                f"Received: {objective!r}.{nearest(objective, self.objectives)}"
            )
        last = self.objectives.index(objective)
        scores = self._levels[0].scores(self._world, users)
        probability = _inclusion(scores, self.exposures[users])
        for level in self._levels[1 : last + 1]:
            probability *= _sigmoid(level.scores(self._world, users))
        return probability

    def user_rows(self, ids: Sequence[str] | np.ndarray | pl.Series) -> np.ndarray:
        """Returns the row of every user id, int64 [n].

        Raises:
          DataError: if an id is not in this simulation.
        """
        return _rows(ids, "u", len(self.users))

    def item_rows(self, ids: Sequence[str] | np.ndarray | pl.Series) -> np.ndarray:
        """Returns the row of every item id, int64 [n].

        Raises:
          DataError: if an id is not in this simulation.
        """
        return _rows(ids, "i", len(self.items))


def simulate(
    config: SimulatorConfig, objectives: Sequence[str], seed: int
) -> Simulation:
    """Simulates a cascade of events, and the tables of users and items.

    Every user is shown items drawn without replacement from a softmax of
    popularity and taste. An item that reached one level reaches the next with
    probability `sigmoid(a + taste + quality - price)`; the levels weight the
    latent factors differently, so they agree in part only. `a` is solved so that
    the mean rate is the configured one. A longer cascade with the same seed has
    the same events at its first levels.

    Args:
      config: sizes and rates. A user gets at least 3 impressions and at most
        one per item.
      objectives: names of the levels, at least one; the first is the exposure.
      seed: at least 0; the same seed gives the same tables.

    Returns:
      The tables and the truth. Events may trail the last impression by up to a
      day per level.

    Raises:
      ConfigError: if the objectives are not distinct names.

    Example:
      >>> config = SimulatorConfig(users=50, items=40, exposures_per_user=10)
      >>> simulation = simulate(config, ("view", "buy"), seed=0)
      >>> simulation.events.columns
      ['user_id', 'item_id', 'event', 'timestamp']
      >>> simulation.probability("buy", simulation.user_rows(["u3"])).shape
      (1, 40)
    """
    names = tuple(objectives)
    if not names or len(set(names)) != len(names):
        raise ConfigError(
            f"objectives should be one or more distinct names. Received: {names}."
        )
    streams = np.random.Generator(np.random.PCG64(seed)).spawn(4 + len(names))
    # One stream per purpose: a later level never disturbs an earlier one.
    world = make_world(config, streams[0])
    exposures = _exposure_counts(config, streams[3])
    levels: list[_Level] = []
    parts: list[pl.DataFrame] = []
    for index, rng in enumerate(streams[4:]):
        level = _make_level(index, config.factors, rng)
        if index == 0:
            users, items = _expose(level, world, exposures, rng)
            times = START_TIME + rng.integers(config.days * _DAY, size=len(users))
        else:
            scores = level.pair_scores(world, users, items)
            rate = config.click_rate if index == 1 else config.conversion_rate
            level = _Level(index, level.weights, _solve_intercept(scores, rate))
            reached = rng.random(len(users)) < _sigmoid(scores + level.intercept)
            users, items = users[reached], items[reached]
            times = times[reached] + _delays(index, len(users), rng)
        levels.append(level)
        parts.append(_frame(index, users, items, times))
    return Simulation(
        events=_assemble(parts, names),
        items=item_table(world, streams[1]),
        users=user_table(world, streams[2]),
        objectives=names,
        exposures=exposures,
        _world=world,
        _levels=tuple(levels),
    )


def _make_level(index: int, factors: int, rng: np.random.Generator) -> _Level:
    """Draws factor weights: a part all levels share, and a part of its own."""
    weights = 0.3 + 0.7 * rng.exponential(size=factors)
    return _Level(index, weights / np.linalg.norm(weights))


def _exposure_counts(config: SimulatorConfig, rng: np.random.Generator) -> np.ndarray:
    """Draws impressions per user: negative binomial, at least 3, int64 [U]."""
    extra = max(config.exposures_per_user - MIN_EXPOSURES, 0)
    activity = rng.gamma(2.0, 0.5, size=config.users)  # mean 1, variance 1/2
    counts = MIN_EXPOSURES + rng.poisson(extra * activity)
    return np.minimum(counts, config.items)


def _expose(
    level: _Level, world: World, counts: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws each user's impressions without replacement: (user, item) rows."""
    num_items = len(world.items)
    block = max(1, _BLOCK_ELEMENTS // num_items)
    parts = []
    for start in range(0, len(counts), block):
        rows = np.arange(start, min(start + block, len(counts)))
        # Gumbel top-n samples n items without replacement from the softmax.
        keys = level.scores(world, rows).astype(np.float32)
        clocks = rng.standard_exponential(keys.shape, dtype=np.float32)
        keys -= np.log(np.maximum(clocks, np.finfo(np.float32).tiny))
        most = int(counts[rows].max())
        top = np.argpartition(-keys, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(keys, top, 1), axis=1)
        top = np.take_along_axis(top, order, 1)
        parts.append(top[np.arange(most) < counts[rows, None]])
    return np.repeat(np.arange(len(counts)), counts), np.concatenate(parts)


def _inclusion(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Probability of each item to be among `counts` draws without replacement.

    The draws are the first arrivals of exponential clocks with rates softmax(scores).
    At the (nearly fixed) time `t` of the last one, item i has arrived with
    probability `1 - exp(-t p_i)`; `t` is solved so that these sum to the count.
    """
    if not scores.size:
        return np.empty(scores.shape)
    rates = np.exp(scores - scores.max(axis=1, keepdims=True))
    low, high = np.full(len(scores), -20.0), np.full(len(scores), 60.0)
    for _ in range(60):
        middle = (low + high) / 2
        arrived = -np.expm1(-np.exp(middle)[:, None] * rates).sum(axis=1)
        enough = arrived >= counts
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return -np.expm1(-np.exp(high)[:, None] * rates)


def _solve_intercept(scores: np.ndarray, rate: float) -> float:
    """Returns `a` with `mean(sigmoid(scores + a)) == rate`, by bisection."""
    if not len(scores):
        return float(np.log(rate / (1 - rate)))
    low, high = -float(scores.max()) - 50.0, -float(scores.min()) + 50.0
    for _ in range(60):
        middle = (low + high) / 2
        if _sigmoid(scores + middle).mean() < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _delays(index: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Seconds after the parent event: log-normal, from 1 second to a day."""
    median = _DELAYS[min(index, len(_DELAYS) - 1)]
    seconds = median * np.exp(rng.standard_normal(size))
    return np.clip(seconds, 1, _DAY).astype(np.int64)


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * scores))


def _frame(
    level: int, users: np.ndarray, items: np.ndarray, times: np.ndarray
) -> pl.DataFrame:
    columns = {"user": users, "item": items, "timestamp": times.astype(np.int64)}
    return pl.DataFrame(columns).with_columns(level=pl.lit(level, pl.Int64))


def _assemble(parts: list[pl.DataFrame], names: tuple[str, ...]) -> pl.DataFrame:
    """Sorts by time (ties by level, user, item) and writes ids as strings."""
    return (
        pl.concat(parts)
        .sort("timestamp", "level", "user", "item")
        .select(
            user_id="u" + pl.col("user").cast(pl.String),
            item_id="i" + pl.col("item").cast(pl.String),
            event=pl.col("level").replace_strict(
                list(range(len(names))), list(names), return_dtype=pl.String
            ),
            timestamp="timestamp",
        )
    )


def _rows(
    ids: Sequence[str] | np.ndarray | pl.Series, prefix: str, size: int
) -> np.ndarray:
    texts = pl.Series(ids, dtype=pl.String)
    rows = texts.str.strip_prefix(prefix).cast(pl.Int64, strict=False)
    same = (prefix + rows.cast(pl.String)) == texts  # refuses "u03"
    good = same & (rows >= 0) & (rows < size)
    bad = texts.filter(~good.fill_null(False))
    if len(bad):
        raise DataError(
            f"Ids of this simulation run from {prefix}0 to {prefix}{size - 1}. "
            f"Received: {bad[0]!r}."
        )
    return rows.to_numpy()
