"""Sequence models exported: from raw histories to the vectors that training saw."""

import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.heterrec.training import SequenceTrainer
from tfcsmf.retrieval.export import build_sequence_serving_model, export
from tfcsmf.retrieval.exported import ExportedModel
from tfcsmf.retrieval.refresh import refresh_index

SMALL = {
    "length": 6,
    "width": 8,
    "feed_forward": 8,
    "head_units": [6],
    "item_layers": 1,
    "steps": 1,
}
EVENTS = ("view", "buy")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Days, so that many events of a user happen at the same time."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    count, days = 700, rng.integers(40, size=700)
    pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in rng.integers(25, size=count)],
            "item_id": [f"i{i}" for i in rng.integers(40, size=count)],
            "event": rng.choice(EVENTS, count, p=[0.7, 0.3]),
            "timestamp": days,
            "split": np.where(days < 36, "train", "test"),
        }
    ).write_parquet(folder / "events.parquet")
    pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(45)],
            "brand": [f"b{i % 4}" for i in range(45)],
            "price": np.linspace(1.0, 9.0, 45),
        }
    ).write_parquet(folder / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def make(tables):
    made = {}

    def build(encoder, events=EVENTS, **sequence):
        key = (encoder, events, *sequence.items())
        if key not in made:
            tree = {
                "data": {
                    "events": str(tables / "events.parquet"),
                    "items": str(tables / "items.parquet"),
                    "validation_users": 0,
                },
                "cascade": {"objectives": list(events)},
                "sequence": SMALL | {"encoder": encoder} | sequence,
                "retrieval": {"k": 10},
            }
            config = Config.from_dict(tree)
            log = prepare(config)
            made[key] = SequenceTrainer(config, log, show_progress=False)
        return made[key]

    return build


def lists_of(trainer, users):
    """Raw training histories and times of users, from the log's own table."""
    log, result = trainer.log, {}
    table = pl.read_parquet(trainer.config.data.events).filter(split="train")
    table = table.unique(maintain_order=True).sort("timestamp", maintain_order=True)
    for event, lists in log.train_histories.lists.items():
        own = [table.filter(user_id=log.users.ids[user], event=event) for user in users]
        rows = [part["item_id"].to_list() for part in own]
        for user, row in zip(users, rows, strict=True):
            assert row == [str(log.items.ids[p]) for p in lists.row(user)]
        result[event] = (rows, [part["timestamp"].to_list() for part in own])
    return result


def arguments_of(lists, users, timed=True):
    """Arguments of a signature, padded at the end."""
    arguments = {"user_id": tf.constant(["?"] * len(users))}
    for event, (rows, times) in lists.items():
        width = max(map(len, rows)) + 1
        texts = [row + [""] * (width - len(row)) for row in rows]
        arguments[f"history_{event}"] = tf.constant(texts)
        if timed:
            whole = [row + [0] * (width - len(row)) for row in times]
            arguments[f"history_{event}_time"] = tf.constant(whole, tf.int64)
    return arguments


def expected_vectors(trainer, users):
    """What evaluation computes for whole training histories."""
    trainer.encoder.candidates()
    lists = trainer.log.train_histories.lists
    ends = np.stack([lists[e].offsets[users + 1] for e in lists], axis=1)
    return trainer.encoder.query_vectors(users, ends, trainer.log.train_histories)


CASES = [
    ("heterrec", EVENTS),
    pytest.param("merged", EVENTS, marks=pytest.mark.slow),
    pytest.param("sasrec", ("view",), marks=pytest.mark.slow),
    pytest.param("gru4rec", EVENTS, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("encoder", "events"), CASES)
def test_raw_histories_give_the_vectors_of_training(make, encoder, events):
    trainer = make(encoder, events)
    users = np.arange(20, dtype=np.int32)
    serving = build_sequence_serving_model(trainer.model, trainer.log, trainer.config)
    inputs = serving.describe()["query_inputs"]
    timed = [name for name, spec in inputs.items() if spec["kind"] == "times"]
    assert len(timed) == (0 if encoder == "sasrec" else len(events))
    arguments = arguments_of(lists_of(trainer, users), users, bool(timed))
    raw = {name: arguments[spec["argument"]] for name, spec in inputs.items()}
    expected = expected_vectors(trainer, users)
    np.testing.assert_allclose(
        serving.embed_query(raw)["vectors"], expected, rtol=1e-4, atol=1e-5
    )
    assert np.abs(expected[1:] - expected[:1]).max(axis=1).min() > 1e-3
    if timed:  # they matter: all at once is another sequence
        other = raw | {name: tf.zeros([20, 0], tf.int64) for name in timed}
        moved = np.abs(serving.embed_query(other)["vectors"] - expected).max(axis=1)
        assert (moved > 1e-3).mean() > 0.5
        assert np.isfinite(moved).all()


def test_one_event_without_gaps_asks_for_its_list_alone(make):
    trainer = make("heterrec", ("view",), time_gaps=False)
    assert trainer.model.encoder.settings.num_gaps == 0
    serving = build_sequence_serving_model(trainer.model, trainer.log, trainer.config)
    assert set(serving.query_specs()) == {"user_id", "history_view"}
    users = np.arange(5, dtype=np.int32)
    raw = arguments_of(lists_of(trainer, users), users, timed=False)
    np.testing.assert_allclose(
        serving.embed_query(raw)["vectors"],
        expected_vectors(trainer, users),
        rtol=1e-4,
        atol=1e-5,
    )
    # With gaps it does not.
    trainer = make("heterrec", ("view",))
    serving = build_sequence_serving_model(trainer.model, trainer.log, trainer.config)
    assert set(serving.query_specs()) == {
        "user_id",
        "history_view",
        "history_view/time",
    }


FRESH = """
import json, sys
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
request = {n: tf.constant(v, tf.int64 if n.endswith("_time") else tf.string)
           for n, v in json.loads(sys.argv[2]).items()}
answer = model.signatures["serving_default"](**request)
assert "tfcsmf" not in sys.modules and "tf_keras" not in sys.modules
print(json.dumps({"ids": [[i.decode() for i in r] for r in answer["item_ids"].numpy()],
                  "scores": answer["scores"].numpy().tolist(),
                  "shape": answer["objective_scores"].shape.as_list()}))
"""


@pytest.mark.slow
def test_an_export_answers_alone_and_can_be_refreshed(make, tables, tmp_path):
    trainer = make("heterrec")
    serving = build_sequence_serving_model(trainer.model, trainer.log, trainer.config)
    path = export(serving, tmp_path / "serving")
    users = np.arange(6, dtype=np.int32)
    arguments = arguments_of(lists_of(trainer, users), users)
    exported = ExportedModel(tmp_path / "serving")
    assert exported.objectives == ("view + buy",)
    assert set(exported.signatures) >= {
        "serving_default",
        "retrieve_weighted",
        "embed_query",
        "embed_candidate",
    }
    catalogue = trainer.encoder.candidates()
    queries = exported.signatures["embed_query"](**arguments)["vectors"]
    best = np.sort(queries @ catalogue.T, axis=1)[:, ::-1][:, :10]
    weighted = exported.signatures["retrieve_weighted"](
        **arguments,
        objective_weights=tf.fill([6, 1], 3.0),
        exclude_item_ids=tf.zeros([6, 0], tf.string),
    )
    np.testing.assert_allclose(weighted["scores"], 3 * best, rtol=1e-4, atol=1e-4)
    # Items, of raw features, do not depend on who asks: that is no input.
    about = exported.description["candidate_inputs"]
    assert set(about) == {"item_id", "brand", "price"}
    items = pl.read_parquet(tables / "items.parquet")
    order = {str(name): at for at, name in enumerate(trainer.log.items.ids)}
    got = exported.signatures["embed_candidate"](
        item_id=tf.constant(items["item_id"].to_list()),
        brand=tf.constant(items["brand"].to_list()),
        price=tf.constant(items["price"].to_list(), tf.float32),
    )["vectors"]
    expected = catalogue[[order[name] for name in items["item_id"]]]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    found = exported.retrieve(
        histories={"view": ["i1", "i2"]}, features={"history_view/time": [3, 9]}
    )
    assert len(found) == 10 and list(found[0].objective_scores) == ["view + buy"]
    # A process without the package, and the same for another catalogue.
    fresh_path = refresh_index(path.parent, str(tables / "items.parquet")).path
    for folder in (path, fresh_path):
        request = {
            name: np.char.decode(v.numpy().astype("S")).tolist()
            if v.dtype == tf.string
            else v.numpy().tolist()
            for name, v in arguments.items()
        }
        done = subprocess.run(
            [sys.executable, "-c", FRESH, str(folder), json.dumps(request)],
            capture_output=True,
            text=True,
            cwd=folder,
            env={k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        answer = json.loads(done.stdout.splitlines()[-1])
        np.testing.assert_allclose(answer["scores"], best, rtol=1e-4, atol=1e-4)
        assert answer["shape"] == [6, 10, 1]
