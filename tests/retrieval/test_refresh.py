import json

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tfcsmf.errors import DataError, ExportError
from tfcsmf.retrieval.export import export
from tfcsmf.retrieval.exported import QUERIES, ExportedModel
from tfcsmf.retrieval.refresh import refresh_index


@pytest.fixture
def base(shop, tmp_path):
    """A fresh folder with the shop's model as version 1."""
    export(shop.serving, tmp_path / "serving")
    return tmp_path


def write(frame, folder):
    path = folder / "new_items.parquet"
    frame.write_parquet(path)
    return str(path)


def items(shop):
    return pl.read_parquet(shop.config.data.items)


def test_the_same_table_gives_the_same_answers(shop, helpers, base):
    done = refresh_index(base, write(items(shop), base))
    assert done.path == base / "serving" / "2"
    old, new = (ExportedModel(base, version) for version in (1, 2))
    arguments = helpers.query_arguments(shop, [0, 1, 2])
    request = {
        "objective_weights": tf.constant([[1.0, 0, 2], [0, 1, 0], [1, -1, 1]]),
        "exclude_item_ids": tf.constant([["i1", "i2"], ["", ""], ["i5", "i9"]]),
    }
    expected = old.signatures["retrieve_weighted"](**arguments, **request)
    answer = new.signatures["retrieve_weighted"](**arguments, **request)
    np.testing.assert_array_equal(answer["item_ids"], expected["item_ids"])
    for name in ("scores", "objective_scores"):
        np.testing.assert_allclose(answer[name], expected[name], rtol=1e-4, atol=1e-5)
    same = ("objectives", "scales", "default_weights", "blocks", "query_inputs", "k")
    for name in same:
        assert new.description[name] == old.description[name]


def test_items_come_and_go(shop, base):
    known = items(shop)
    new = known.head(30).with_columns(item_id="new_" + pl.col("item_id"))
    done = refresh_index(base, write(pl.concat([known.slice(20), new]), base))
    model = ExportedModel(base)
    assert model.path == done.path and model.description["catalogue"] == 80
    kept = {*known["item_id"].slice(20), *new["item_id"]}
    # A dropped item is still known to histories, and neither excluded nor found.
    rest = model.retrieve("u1", {"view": ["i3"]}, exclude=sorted(kept - {"new_i0"}))
    assert [item.item_id for item in rest] == ["new_i0"]


def test_new_items_have_the_vectors_of_their_features(shop, base):
    known = items(shop)
    first = known.head(1)
    new = first.with_columns(item_id=pl.lit("never seen"))
    other = known.slice(1, 1).with_columns(item_id=pl.lit("nor this"))
    path = base / "vectors.parquet"
    refresh_index(base, write(pl.concat([known, new, other]), base), vectors_path=path)
    vectors = pl.read_parquet(path)
    assert vectors.schema["vector"] == pl.Array(pl.Float32, 8)
    matrix = vectors["vector"].to_numpy()
    expected = {
        str(name): vector
        for name, vector in zip(
            shop.log.items.ids, shop.encoder.candidates(3), strict=True
        )
    }
    for name, vector in zip(vectors["item_id"][:70], matrix[:70], strict=True):
        np.testing.assert_allclose(vector, expected[name], rtol=1e-4, atol=1e-5)
    embed = ExportedModel(base, 1).signatures["embed_candidate"]
    row = first.row(0, named=True)
    unknown = embed(
        item_id=tf.constant(["another unknown"]),
        brand=tf.constant([row["brand"]]),
        tags=tf.constant([row["tags"]]),
        image=tf.constant([row["image"]], tf.float32),
    )["vectors"]
    np.testing.assert_allclose(matrix[70], unknown[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(matrix[70], matrix[71])


def test_a_refreshed_model_can_be_refreshed(shop, base):
    path = write(items(shop).head(50), base)
    refresh_index(base, path)
    first = ExportedModel(base).retrieve("u2", {"view": ["i4", "i60"]})
    refresh_index(base, path)
    model = ExportedModel(base)
    assert model.path.name == "3"
    again = model.retrieve("u2", {"view": ["i4", "i60"]})
    assert [item.item_id for item in again] == [item.item_id for item in first]
    # The index and the item table of version 2 are not carried along.
    sizes = [
        sum(f.stat().st_size for f in (base / "serving" / v).rglob("variables.data*"))
        for v in "23"
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop("brand"), "without \\['brand'\\]"),
        (lambda t: t.rename({"item_id": "item"}), "--item-id.*Did you mean 'item'"),
        (lambda t: pl.concat([t, t.head(2)]), "one row per"),
        (lambda t: t.head(0), "should have rows"),
        (
            lambda t: t.with_columns(image=pl.Series([[1.0, 2.0]] * t.height)),
            "same length",
        ),
    ],
)
def test_a_bad_table_publishes_nothing(shop, base, change, message):
    with pytest.raises(DataError, match=message):
        refresh_index(base, write(change(items(shop)), base))
    assert [entry.name for entry in (base / "serving").iterdir()] == ["1"]


def test_an_export_without_queries_says_what_to_do(shop, base):
    (base / "serving" / "1" / QUERIES).unlink()
    with pytest.raises(ExportError, match="run_cascade"):
        refresh_index(base, write(items(shop), base))


def test_settings_and_other_columns(shop, base):
    table = items(shop).rename({"item_id": "sku"}).with_columns(price=pl.lit(3))
    done = refresh_index(base, write(table, base), {"k": 4}, item_id="sku")
    text = (done.path / "assets.extra/cascade.json").read_text()
    assert json.loads(text)["k"] == 4
    assert len(ExportedModel(base).retrieve("u0")) == 4
