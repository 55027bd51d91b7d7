"""A small shop with every kind of feature, and an untrained model of it."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tfcsmf.cascade.encoding import Encoder
from tfcsmf.cascade.model import build_model
from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.retrieval.export import build_serving_model, export
from tfcsmf.towers import FREE

OBJECTIVES = ("view", "add to cart", "buy")
USERS, ITEMS = 40, 70


def write_tables(folder):
    rng = np.random.default_rng(0)
    parts = []
    for event, count in zip(OBJECTIVES, (1500, 500, 300), strict=True):
        parts.append(
            pl.DataFrame(
                {
                    "user_id": [f"u{u}" for u in rng.integers(USERS, size=count)],
                    "item_id": [f"i{i}" for i in rng.integers(ITEMS, size=count)],
                    "event": [event] * count,
                    "timestamp": rng.integers(10**6, size=count),
                }
            )
        )
    pl.concat(parts).write_parquet(folder / "events.parquet")
    pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in range(USERS)],
            "age": rng.integers(18, 80, USERS).astype(float),
            "city": [f"c{c}" for c in rng.integers(4, size=USERS)],
        }
    ).write_parquet(folder / "users.parquet")
    pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(ITEMS)],
            "brand": [f"b{b}" for b in rng.integers(5, size=ITEMS)],
            "tags": [
                [f"t{t}" for t in rng.integers(6, size=1 + i % 3)] for i in range(ITEMS)
            ],
            "image": [row.tolist() for row in rng.normal(size=(ITEMS, 3))],
        }
    ).write_parquet(folder / "items.parquet")


def assign_owners(model, stages, free=True, seed=1):
    """What training leaves: owners everywhere, and zeros where nobody owns."""
    rng = np.random.default_rng(seed)
    choices = [*range(stages), FREE] if free else [*range(stages)]
    for parameter in model.owned_parameters:
        owner = rng.choice(choices, parameter.owner.shape).astype(np.int8)
        if parameter.role == "bias":
            owner[:] = 0
            parameter.variable.assign(rng.normal(size=parameter.variable.shape))
        parameter.owner.assign(owner)
        kept = np.broadcast_to(owner != FREE, parameter.variable.shape)
        parameter.variable.assign(parameter.variable.numpy() * kept)
    model.block_owner.assign((np.arange(model.dimension) % stages).astype(np.int8))


def make_shop(folder, **settings):
    write_tables(folder)
    tree = {
        "data": {
            name: str(folder / f"{name}.parquet")
            for name in ("events", "items", "users")
        }
        | {"history_length": 5},
        "towers": {
            "dimension": 8,
            "embedding_dimension": 6,
            "feature_dimension": 4,
            "hidden_units": [7],
            "normalize": False,
        },
        "cascade": {"objectives": list(OBJECTIVES)},
        "retrieval": {"k": 10, "weights": {"buy": 2.0}},
    }
    config = Config.from_dict(tree, [f"{k}={v}" for k, v in settings.items()])
    log = prepare(config)
    model = build_model(config, log)
    assign_owners(model, len(OBJECTIVES))
    scales = np.float32([0.5, 1.0, 2.0])
    return SimpleNamespace(
        config=config,
        log=log,
        model=model,
        scales=scales,
        encoder=Encoder(model, log, config.data.history_length),
        serving=build_serving_model(model, log, config, scales),
    )


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def normal_shop(tmp_path_factory):
    """A shop whose vectors have bounded length."""
    folder = tmp_path_factory.mktemp("normal_shop")
    return make_shop(folder, **{"towers.normalize": True})


@pytest.fixture(scope="session")
def base_path(shop, tmp_path_factory):
    """A folder of versions with the shop's model as version 1."""
    base = tmp_path_factory.mktemp("exports")
    assert export(shop.serving, base) == base / "1"
    return base


def query_arguments(shop, users, length=None, ends=None):
    """Raw inputs of known users with their training histories, oldest first."""
    log = shop.log
    frame = pl.read_parquet(shop.config.data.users)
    rows = {row["user_id"]: row for row in frame.iter_rows(named=True)}
    ids = [str(log.users.ids[u]) for u in users]
    arguments = {
        "user_id": tf.constant(ids),
        "age": tf.constant([rows[name]["age"] for name in ids], tf.float32),
        "city": tf.constant([rows[name]["city"] for name in ids]),
    }
    for event in log.history_events:
        lists = [
            [str(log.items.ids[p]) for p in log.train_histories.lists[event].row(u)]
            for u in users
        ]
        width = max(1, *map(len, lists)) if length is None else length
        padded = [row + [""] * (width - len(row)) for row in lists]
        name = f"history_{event}".replace(" ", "_")
        arguments[name] = tf.constant(padded, tf.string)
    return arguments


def named(shop, arguments):
    """The same by input names, as `ServingModel` takes them."""
    inputs = shop.serving.describe()["query_inputs"]
    return {name: arguments[spec["argument"]] for name, spec in inputs.items()}


@pytest.fixture(scope="session")
def helpers():
    return SimpleNamespace(
        query_arguments=query_arguments,
        named=named,
        make_shop=make_shop,
        assign_owners=assign_owners,
    )
