"""What the preparation asks every shard, in rounds, and what follows from it.

A round has three pure functions: `facts` of one shard, `merge` of many facts into one
(in any order and grouping), and `decide`, which adds to the plan. An engine runs the
rounds one after the other, wherever its shards are.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from tfcsmf.config import Config
from tfcsmf.data import splits
from tfcsmf.data.carving import count_test_pairs, held_out_alone
from tfcsmf.data.log import check_names, entity_table
from tfcsmf.data.prepare import check_catalogue, check_training, chosen_users
from tfcsmf.data.reader import read_table
from tfcsmf.data.sharded.bucket import Bucket
from tfcsmf.data.sharded.pieces import Source
from tfcsmf.data.sharded.plan import Plan, Vocabulary, split_bucket

Facts = dict[Any, Any]


class Round(abc.ABC):
    """One question to all shards."""

    @abc.abstractmethod
    def facts(self, bucket: Bucket, plan: Plan) -> Facts:
        """Answers for one shard."""

    @abc.abstractmethod
    def merge(self, facts: Iterable[Facts]) -> Facts:
        """Puts answers together; what it returns may be merged again."""

    @abc.abstractmethod
    def decide(self, plan: Plan, facts: Facts) -> Plan:
        """Adds what follows from all answers to the plan."""


@dataclasses.dataclass(frozen=True)
class Survey(Round):
    """Which events there are, and when: how the log is split.

    Attributes:
      config: of the preparation.
      source: of the log.
    """

    config: Config
    source: Source

    def facts(self, bucket: Bucket, plan: Plan) -> Facts:
        """See `Round.facts`."""
        events = bucket.events["event"].value_counts(name="rows")
        named = pl.Series(bucket.names).gather(events["event"])
        facts: Facts = {
            "rows": bucket.events.height,
            "events": pl.DataFrame({"event": named, "rows": events["rows"]}),
        }
        if "time" in bucket.events.columns and "split" not in bucket.events.columns:
            objective = [
                code
                for code, name in enumerate(bucket.names)
                if name in plan.objectives
            ]
            mine = bucket.events.filter(pl.col("event").is_in(objective))
            facts["times"] = mine["time"].value_counts(name="rows")
        return facts

    def merge(self, facts: Iterable[Facts]) -> Facts:
        """See `Round.merge`."""
        facts = list(facts)
        merged: Facts = {
            "rows": sum(part["rows"] for part in facts),
            "events": summed([part["events"] for part in facts], "event"),
        }
        times = [part["times"] for part in facts if "times" in part]
        return merged | ({"times": summed(times, "time")} if times else {})

    def decide(self, plan: Plan, facts: Facts) -> Plan:
        """See `Round.decide`."""
        counts = dict(facts["events"].iter_rows())
        check_names(counts, plan.objectives, "cascade.objectives (--objectives)")
        check_names(
            counts, self.config.data.history_events or (), "data.history_events"
        )
        names = (*plan.objectives, *plan.histories, *sorted(counts))
        times = facts.get("times")
        moments = None
        boundaries = None
        if times is not None:
            times = times.sort("time")
            moments = times["time"].to_numpy()
            boundaries = splits.boundaries_of_counts(
                moments, times["rows"].to_numpy(), plan.test_share
            )
        nothing = np.zeros(0 if moments is None else len(moments), np.int32)
        log = splits.CodedLog(
            users=nothing,
            items=nothing,
            events=nothing,
            times=moments,
            split=nothing if self.source.split else None,
            num_objectives=1,
        )
        method = splits.choose_method(self.config.data.split, log, self.source.time)
        return dataclasses.replace(
            plan,
            names=tuple(dict.fromkeys(names)),
            method=method,
            boundaries=boundaries if method == "time" else None,
            read={
                "rows_read": self.source.rows,
                "duplicates_dropped": self.source.rows - facts["rows"],
            },
        )


class Parts(Round):
    """How many events of every objective are in every part."""

    def facts(self, bucket: Bucket, plan: Plan) -> Facts:
        """See `Round.facts`."""
        split = split_bucket(bucket, plan)
        last = []
        if plan.method == "random":
            last = splits.drawn_last(split.log, split.before, plan.seed)
        return {
            "counts": splits.count_parts(split.log, split.before),
            "last": [(bucket.number, found) for found in last],
        }

    def merge(self, facts: Iterable[Facts]) -> Facts:
        """See `Round.merge`."""
        facts = list(facts)
        return {
            "counts": np.sum([part["counts"] for part in facts], axis=0),
            "last": [found for part in facts for found in part["last"]],
        }

    def decide(self, plan: Plan, facts: Facts) -> Plan:
        """See `Round.decide`."""
        counts, last = facts["counts"].copy(), sorted(facts["last"], key=_shard)
        shards = {id(found): shard for shard, found in last}
        spared: dict[int, list[int]] = {}
        found = [found for _, found in last]
        for pair in splits.spared_pairs(found, len(plan.objectives)):
            spared.setdefault(shards[id(pair)], []).append(pair.pair)
            for code, rows in pair.events.items():
                if code < len(plan.objectives):
                    counts[code, splits.TEST] -= rows
                    counts[code, splits.TRAIN] += rows
        check_training(counts, plan.objectives, plan.method)
        return dataclasses.replace(
            plan,
            spared={shard: np.array(keys) for shard, keys in spared.items()},
            lacking=tuple(np.flatnonzero(counts[:, splits.VALID] == 0).tolist()),
        )


class Kept(Round):
    """The first training pair of every objective, which stays training."""

    def facts(self, bucket: Bucket, plan: Plan) -> Facts:
        """See `Round.facts`."""
        rows = bucket.events["row"]
        first = split_bucket(bucket, plan).pairs.first()
        return {
            code: (rows[row], bucket.number, key) for code, (row, key) in first.items()
        }

    def merge(self, facts: Iterable[Facts]) -> Facts:
        """See `Round.merge`."""
        merged: Facts = {}
        for part in facts:
            for code, found in part.items():
                merged[code] = min(found, merged.get(code, found))
        return merged

    def decide(self, plan: Plan, facts: Facts) -> Plan:
        """See `Round.decide`."""
        kept = {code: (shard, key) for code, (_, shard, key) in sorted(facts.items())}
        return dataclasses.replace(plan, kept=kept)


@dataclasses.dataclass(frozen=True)
class Carve(Round):
    """The validation pairs of one objective; see `tfcsmf.data.carving`.

    Attributes:
      code: of the objective.
      most_users: as in the configuration.
      share: likewise.
    """

    code: int
    most_users: int
    share: float

    def facts(self, bucket: Bucket, plan: Plan) -> Facts:
        """See `Round.facts`."""
        if self.code not in plan.lacking:
            return {}
        split = split_bucket(bucket, plan)
        facts: Facts = {
            "pairs": split.pairs.count(self.code),
            "test": np.array([count_test_pairs(split.log, split.part, self.code)]),
        }
        for alone in (False, True):
            found = split.pairs.candidates(
                self.code, alone, split.kept, split.taken, self.most_users, plan.seed
            )
            facts[_hypothesis(alone)] = pl.DataFrame(
                {
                    "last": found.last,
                    "drawn": found.drawn,
                    "user_id": bucket.user_ids.gather(found.users),
                    "key": found.keys,
                }
            ).with_columns(shard=pl.lit(bucket.number, pl.Int32))
        return facts

    def merge(self, facts: Iterable[Facts]) -> Facts:
        """See `Round.merge`."""
        facts = [part for part in facts if part]
        if not facts:
            return {}
        merged: Facts = {
            "pairs": sum(part["pairs"] for part in facts),
            "test": np.sum([part["test"] for part in facts], axis=0),
        }
        for alone in (False, True):
            name = _hypothesis(alone)
            found = pl.concat([part[name] for part in facts])
            found = found.sort("last", "drawn", "user_id")
            merged[name] = found.head(self.most_users)
        return merged

    def decide(self, plan: Plan, facts: Facts) -> Plan:
        """See `Round.decide`."""
        if not facts:
            return plan
        found = facts[_hypothesis(held_out_alone(facts["test"]))]
        chosen = found.head(min(self.most_users, int(self.share * facts["pairs"])))
        kept = set(plan.kept.values())
        taken: dict[int, list[int]] = {}
        for shard, key in chosen.select("shard", "key").iter_rows():
            if (shard, key) not in kept:
                taken.setdefault(shard, []).append(key)
        keys = {shard: np.array(pairs) for shard, pairs in taken.items()}
        return dataclasses.replace(plan, taken={**plan.taken, self.code: keys})


@dataclasses.dataclass(frozen=True)
class Vocabularies(Round):
    """The order of users and items: by training events, then by id.

    Attributes:
      config: of the preparation.
    """

    config: Config

    def facts(self, bucket: Bucket, plan: Plan) -> Facts:
        """See `Round.facts`."""
        split = split_bucket(bucket, plan)
        log = split.log
        part = split.pairs.hide(split.part, split.taken)
        training = part == splits.TRAIN
        target = training & log.is_objective
        used = training & np.isin(log.events, plan.history_codes)
        valid = {}
        for code in range(len(plan.objectives)):
            mine = (part == splits.VALID) & (log.events == code)
            valid[code] = bucket.user_ids.gather(np.unique(log.users[mine]))
        return {
            "users": _counted(bucket.user_ids, log.users[target]),
            "items": _counted(bucket.item_ids, log.items[target | used]),
            "valid": valid,
        }

    def merge(self, facts: Iterable[Facts]) -> Facts:
        """See `Round.merge`."""
        facts = list(facts)
        return {
            "users": pl.concat([part["users"] for part in facts]),
            "items": summed([part["items"] for part in facts], "id"),
            "valid": {
                code: pl.concat([part["valid"][code] for part in facts])
                for code in facts[0]["valid"]
            },
        }

    def decide(self, plan: Plan, facts: Facts) -> Plan:
        """See `Round.decide`."""
        data = self.config.data
        users = _vocabulary(
            facts["users"],
            side_table(data.users, "user_id", self.config),
            data.min_count,
        )
        items = _vocabulary(
            facts["items"],
            side_table(data.items, "item_id", self.config),
            data.min_count,
        )
        check_catalogue(len(items.ids))
        valid = [
            np.sort(users.positions_of(facts["valid"][code]))
            for code in range(len(plan.objectives))
        ]
        chosen = chosen_users(valid, data.validation_users, self.config.seed)
        return dataclasses.replace(
            plan, users=users, items=items, validation_users=dict(enumerate(chosen))
        )


def side_table(path: str | None, key: str, config: Config) -> pl.DataFrame | None:
    """Reads the item or user table of a configuration, ids in the first column."""
    if path is None:
        return None
    name = getattr(config.data.columns, key)
    return entity_table(read_table(path, key.removesuffix("_id") + "s"), name, key)


def _vocabulary(
    counts: pl.DataFrame, table: pl.DataFrame | None, least: int
) -> Vocabulary:
    if table is not None:
        more = table.select(id=pl.first(), rows=pl.lit(0, pl.Int64))
        counts = summed([counts, more], "id")
    ordered = counts.sort("rows", "id", descending=[True, False])
    ordered = ordered.with_columns(position=pl.int_range(pl.len(), dtype=pl.Int32))
    by_id = ordered.sort("id")
    trained, met = (int((counts["rows"] >= most).sum()) for most in (least, 1))
    return Vocabulary(by_id["id"], by_id["position"].to_numpy(), trained, met)


def _counted(ids: pl.Series, codes: np.ndarray) -> pl.DataFrame:
    rows = np.bincount(codes, minlength=len(ids)).astype(np.int64)
    return pl.DataFrame({"id": ids, "rows": rows})


def summed(frames: Sequence[pl.DataFrame], key: str) -> pl.DataFrame:
    """Adds up the column `rows` by another one."""
    wide = [frame.with_columns(pl.col("rows").cast(pl.Int64)) for frame in frames]
    return pl.concat(wide).group_by(key).agg(pl.col("rows").sum())


def _hypothesis(alone: bool) -> str:
    return "alone" if alone else "together"


def _shard(item: tuple[int, Any]) -> int:
    return item[0]


def rounds_of(config: Config, source: Source) -> list[Round]:
    """Returns the rounds that decide everything about a log."""
    data = config.data
    carving = [
        Carve(code, data.validation_users, data.validation_share)
        for code in range(len(config.cascade.objectives))
    ]
    return [Survey(config, source), Parts(), Kept(), *carving, Vocabularies(config)]
