"""Fixtures and process settings shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Read by TensorFlow when it is first imported: quiet, and friendly to neighbours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import tfcsmf  # noqa: E402, F401  (selects Keras 2 before any test meets TensorFlow)

# No doctests in there; pytest would take each for another one's module of that name.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Returns a function: data set name -> its folder, or the test is skipped."""

    def find(name: str) -> Path:
        folder = _SHARED / name
        if not folder.is_dir():
            pytest.skip(f"needs the data set {name!r} in ../shared/data/{name}")
        return folder

    return find


@pytest.fixture(scope="session")
def tiny_config() -> Any:
    """A configuration whose simulated log and model train in milliseconds."""
    from tfcsmf.config import Config

    return Config.from_dict(
        {
            "simulator": {
                "users": 60,
                "items": 40,
                "exposures_per_user": 20,
                "click_rate": 0.4,
                "conversion_rate": 0.4,
            },
            "data": {"history_length": 6},
            "towers": {
                "dimension": 8,
                "hidden_units": [10],
                "embedding_dimension": 6,
                "feature_dimension": 4,
                # Plain inner products, which are easier to follow by hand.
                "normalize": False,
                "query_id_dropout": 0.1,
            },
            "loss": {"uniform_negatives": 8, "temperature": 1.0},
            "cascade": {"stage": {"batch_size": 32, "epochs": 2}},
        }
    )


@pytest.fixture(scope="session")
def tiny_log(tiny_config: Any) -> Any:
    """The prepared log of `tiny_config`: 60 users, 40 items, all feature kinds."""
    from tfcsmf.data.prepare import prepare

    return prepare(tiny_config)


@pytest.fixture(scope="session")
def untimed_log(tiny_config: Any, tmp_path_factory: Any) -> Any:
    """The events of `tiny_log` in an order of no meaning, their times unknown."""
    from tfcsmf.config import Config
    from tfcsmf.data.prepare import prepare
    from tfcsmf.data.simulator import simulate

    simulation = simulate(
        tiny_config.simulator, tiny_config.cascade.objectives, tiny_config.seed
    )
    folder = tmp_path_factory.mktemp("untimed")
    events = simulation.events.select("user_id", "item_id", "event").unique()
    tree = tiny_config.to_dict()
    for name, table in (
        ("events", events.sort("user_id", "item_id", "event")),
        ("items", simulation.items),
        ("users", simulation.users),
    ):
        table.write_parquet(folder / f"{name}.parquet")
        tree["data"][name] = str(folder / f"{name}.parquet")
    return prepare(Config.from_dict(tree))


@pytest.fixture
def build(tiny_config: Any, tiny_log: Any) -> Callable[..., Any]:
    """Returns a function: `section.key=value` assignments -> an untrained model."""
    from tfcsmf.cascade.model import build_model
    from tfcsmf.config import Config

    # Tests that run stages by hand open no histories on the way.
    all_open = "cascade.history_access=all"

    def make(*assignments: str) -> Any:
        tree = tiny_config.to_dict()
        return build_model(Config.from_dict(tree, [all_open, *assignments]), tiny_log)

    return make


@pytest.fixture(scope="session")
def some_inputs(tiny_log: Any) -> tuple[Any, Any]:
    """Encoded inputs of 20 queries and of the whole catalogue."""
    import tensorflow as tf

    from tfcsmf.data.inputs import CANDIDATE_ID, EntityInputs, QueryInputs

    log = tiny_log
    examples = log.train["conversion"]
    queries = QueryInputs(log.users, log.train_histories, 6)(
        tf.constant(examples.pairs.users[:20]), tf.constant(examples.history_end[:20])
    )
    catalogue = EntityInputs(log.items, CANDIDATE_ID)(tf.range(log.items.size))
    return queries, catalogue


@pytest.fixture(scope="session")
def table_rows() -> Callable[[Any], Any]:
    """Returns a function: a training batch -> the same with ids as table rows."""
    import tensorflow as tf

    def convert(batch: Any) -> Any:
        query, candidate = dict(batch["query"]), dict(batch["candidate"])
        rows = batch["rows"]
        query["user_id"] = tf.gather(rows["user_id"], query["user_id"])
        candidate["item_id"] = tf.gather(rows["item_id"], candidate["item_id"])
        for name, values in query.items():
            if name.startswith("history_"):
                flat = tf.gather(rows["item_id"], values.flat_values)
                query[name] = values.with_flat_values(flat)
        rest = {key: batch[key] for key in batch if key != "rows"}
        return rest | {"query": query, "candidate": candidate}

    return convert
