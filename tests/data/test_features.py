"""Feature encoders: hand-computed rows, and the same answer from TensorFlow."""

import datetime
import json
import math

import numpy as np
import polars as pl
import pytest

import tfcsmf  # noqa: F401  (selects Keras 2 before TensorFlow is imported)
from tfcsmf.config import DataConfig
from tfcsmf.data.features import FeatureEncoder
from tfcsmf.data.kinds import check_ignored, encode_table, fit_encoders, infer_kind
from tfcsmf.data.rows import MISSING, NUM_RESERVED, PADDING, UNKNOWN
from tfcsmf.errors import DataError

NAN = float("nan")
fit = FeatureEncoder.fit


def test_categorical_rows_by_frequency_then_value():
    series = pl.Series(["b", "c", "a", "c", None, ""])
    encoder = fit("f", "categorical", series)
    assert encoder.vocabulary == ("c", "a", "b")
    rows = encoder.encode(pl.Series(["c", "a", "b", "z", None, ""]))
    assert rows.tolist() == [3, 4, 5, UNKNOWN, MISSING, MISSING]
    assert rows.dtype == np.int32 and encoder.num_rows == 6
    assert fit("f", "categorical", series, min_count=2).vocabulary == ("c",)


def test_whole_floats_match_integers():
    encoder = fit("f", "categorical", pl.Series([1, 2, 2]))
    assert encoder.encode(pl.Series([2.0, 1.0, NAN])).tolist() == [3, 4, MISSING]


def test_numeric_buckets():
    encoder = fit("f", "numeric", pl.Series(np.arange(1, 101)), buckets=4)
    assert encoder.boundaries == (25.0, 50.0, 75.0)
    raw = pl.Series([-1e9, 24.9, 25.0, 75.0, math.inf, -math.inf, None, NAN])
    rows = encoder.encode(raw) - NUM_RESERVED
    assert rows[:6].tolist() == [0, 0, 1, 3, 3, 0]
    assert encoder.encode(raw)[6:].tolist() == [MISSING, MISSING]
    assert encoder.num_rows == NUM_RESERVED + 4


@pytest.mark.parametrize(
    ("values", "boundaries"),
    [
        ([5.0, 5.0], ()),
        ([None, NAN, math.inf], ()),
        ([0.0] * 99 + [1.0], (1.0,)),  # a rare value keeps its bucket
    ],
)
def test_numeric_boundaries_of_odd_columns(values, boundaries):
    encoder = fit("f", "numeric", pl.Series(values, dtype=pl.Float64))
    assert encoder.boundaries == boundaries


@pytest.mark.parametrize(
    "series",
    [
        pl.Series([["x", "y", "z"], [], None, ["x", None, ""]]),
        pl.Series(["x|y|z", "", None, "x"]),
        pl.Series(["x, y,z", " ", None, "x,"]),
    ],
)
def test_multi(series):
    encoder = fit("f", "multi", series, max_values=2)
    assert encoder.vocabulary == ("x", "y", "z")
    none = [MISSING, PADDING]
    assert encoder.encode(series).tolist() == [[3, 4], none, none, [3, PADDING]]


@pytest.mark.parametrize(
    "series",
    [
        pl.Series([[1.0, 2.0], None, [3.0, NAN], [3.0, -2.0]]),
        pl.Series(
            [[1.0, 2.0], None, [3.0, NAN], [3.0, -2.0]], dtype=pl.Array(pl.Float32, 2)
        ),
        pl.Series(["[1, 2]", None, "3|nan", "3,-2"]),
    ],
)
def test_vector(series):
    encoder = fit("f", "vector", series)
    assert encoder.width == 2 and encoder.num_rows == 0
    # Around (2, 0) they are (-1, 2) and (1, -2), of length sqrt(5).
    near, far = 1 / np.sqrt(5), 2 / np.sqrt(5)
    expected = [[-near, far, 0], [0, 0, 1], [0, 0, 1], [near, -far, 0]]
    np.testing.assert_allclose(encoder.encode(series), expected, rtol=1e-6)


def test_vectors_are_centred_and_of_mean_square_length_one():
    rng = np.random.default_rng(0)
    vectors = (5.0 + rng.normal(size=(50, 4)) * [1, 2, 3, 4]).astype(np.float32)
    encoder = fit("f", "vector", pl.Series(vectors))
    encoded = encoder.encode(pl.Series(vectors))[:, :-1]
    np.testing.assert_allclose(encoded.mean(axis=0), 0, atol=1e-6)
    assert np.square(encoded).sum(axis=1).mean() == pytest.approx(1, rel=1e-5)
    again = FeatureEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    np.testing.assert_array_equal(again.encode(pl.Series(vectors))[:, :-1], encoded)


def test_equal_vectors_and_encoders_of_earlier_versions():
    same = pl.Series([[1.0, 2.0], [1.0, 2.0]])
    encoder = fit("f", "vector", same)
    assert not encoder.encode(same).any()
    state = encoder.to_dict()
    del state["centre"], state["factor"]
    old = FeatureEncoder.from_dict(state)
    assert old.encode(same).tolist() == [[1, 2, 0], [1, 2, 0]]


@pytest.mark.parametrize(
    ("kind", "series", "message"),
    [
        ("vector", pl.Series([[1.0], [1.0, 2.0]]), "same length"),
        ("vector", pl.Series(["1,2", "1,x"]), "should hold numbers"),
        ("vector", pl.Series([None], dtype=pl.String), "at least one vector"),
        ("numeric", pl.Series(["1", "cheap"]), "'cheap' in row 1"),
        ("numeric", pl.Series([[1]]), "should hold numbers"),
        ("categorical", pl.Series([["a"]]), "single values"),
        ("colour", pl.Series(["a"]), "kind of feature"),
    ],
)
def test_refusals(kind, series, message):
    with pytest.raises(DataError, match=message):
        fit("f", kind, series)


WORDS = ["", "a", "b", "ü", "日本", "a b", "unknown", "x|y"]


def _raw(kind, rng, size=200):
    """Random raw values, as a column and as the tensor a client would send."""
    if kind == "categorical":
        words = [WORDS[i] for i in rng.integers(len(WORDS), size=size)]
        return pl.Series([word or None for word in words]), np.array(words, object)
    if kind == "multi":
        lists = [
            [WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(5))]
            for _ in range(size)
        ]
        padded = [values + [""] * (6 - len(values)) for values in lists]
        return pl.Series(lists, dtype=pl.List(pl.String)), np.array(padded, object)
    shape = (size, 3) if kind == "vector" else (size,)
    values = np.round(rng.normal(size=shape), 1).astype(np.float32)
    values[rng.random(size) < 0.2] = NAN
    if kind == "vector":
        return pl.Series(values, dtype=pl.Array(pl.Float32, 3)), values
    values[rng.random(size) < 0.1] = math.inf
    return pl.Series(values), values


@pytest.mark.parametrize("kind", ["categorical", "numeric", "multi", "vector"])
@pytest.mark.parametrize("seed", [0, 1])
def test_tensor_encoding_is_the_same(kind, seed):
    import tensorflow as tf

    rng = np.random.default_rng(seed)
    series, raw = _raw(kind, rng)
    known = series if kind != "categorical" else series.filter(series != "unknown")
    encoder = fit("f", kind, known, buckets=5, max_values=3)
    expected = encoder.encode(series)
    # Traced first: the table must not belong to the traced graph.
    traced = tf.function(encoder.encode_tensor)(tf.constant(raw))
    np.testing.assert_array_equal(traced.numpy(), expected)
    eager = encoder.encode_tensor(tf.constant(raw))
    np.testing.assert_array_equal(eager.numpy(), expected)
    assert eager.dtype == expected.dtype
    restored = FeatureEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert restored == encoder
    np.testing.assert_array_equal(restored.encode(series), expected)


@pytest.mark.parametrize("kind", ["categorical", "multi", "numeric"])
def test_nothing_learnt_still_encodes(kind):
    import tensorflow as tf

    encoder = fit("f", kind, pl.Series([None, None], dtype=pl.String))
    raw = {"numeric": [1.0, NAN], "categorical": ["a", ""], "multi": [["a"], [""]]}
    column = {"numeric": [1.0, None], "categorical": ["a", None], "multi": ["a", None]}
    expected = encoder.encode(pl.Series(column[kind]))
    assert encoder.encode_tensor(tf.constant(raw[kind])).numpy().tolist() == (
        expected.tolist()
    )


def test_saved_model_keeps_the_vocabulary(tmp_path):
    import tensorflow as tf

    encoder = fit("f", "categorical", pl.Series(["a", "ü"]))
    module = tf.Module()
    module.lookup = encoder.build_lookup()
    spec = tf.TensorSpec([None], tf.string)
    module.encode = tf.function(encoder.encode_tensor, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    assert loaded.encode(tf.constant(["ü", "", "z"])).numpy().tolist() == [4, 1, 2]


@pytest.mark.parametrize(
    ("series", "kind"),
    [
        (pl.Series(["a", "b"]), "categorical"),
        (pl.Series([True]), "categorical"),
        (pl.Series(["a"], dtype=pl.Categorical), "categorical"),
        (pl.Series([str(i) for i in range(1001)]), None),
        (pl.Series([str(i) for i in range(1001)] * 2), "categorical"),
        (pl.Series(range(1000)), "categorical"),
        (pl.Series(range(1001)), "numeric"),
        (pl.Series([1.0]), "numeric"),
        (pl.Series([["a"]]), "multi"),
        (pl.Series([[1, 2]]), "multi"),
        (pl.Series([[1.0, 2.0]]), "vector"),
        (pl.Series([[1.0]], dtype=pl.Array(pl.Float16, 1)), "vector"),
        (pl.Series([datetime.date(2024, 1, 1)]), None),
        (pl.Series([{"a": 1}]), None),
        (pl.Series([None]), None),
    ],
)
def test_infer_kind(series, kind):
    inferred, reason = infer_kind(series)
    assert inferred == kind
    assert bool(reason) == (kind is None)


def test_infer_kind_refuses_vectors_of_different_lengths():
    with pytest.raises(DataError, match="same length"):
        infer_kind(pl.Series([[1.0], [1.0, 2.0]]))


TABLE = pl.DataFrame(
    {"item_id": ["a", "b"], "id": [1, 2], "tags": ["x|y", "x"], "note": ["n", "m"]}
)


def test_tables_declared_ignored_and_missing_rows():
    data = DataConfig(ignore=("note",))
    encoders, notes = fit_encoders(TABLE, {"tags": "multi"}, data, "items")
    assert [(e.name, e.kind) for e in encoders] == [
        ("id", "categorical"),
        ("tags", "multi"),
    ]
    ids = np.array(["b", "new"], object)
    features = encode_table(TABLE, ids, encoders)
    assert features["id"].tolist() == [4, MISSING]
    assert features["tags"].tolist() == [[3, PADDING], [MISSING, PADDING]]
    without = encode_table(None, ids, encoders)
    assert without["tags"].tolist() == [[MISSING, PADDING]] * 2
    assert notes == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE, "Did you mean 'tags'"),
        (None, "no items table"),
        (TABLE.rename({"tags": "tag"}), "Did you mean 'tag'"),
    ],
)
def test_declared_feature_must_exist(table, message):
    with pytest.raises(DataError, match=message):
        fit_encoders(table, {"tgs": "multi"}, DataConfig(), "items")


def test_ignored_column_must_exist():
    with pytest.raises(DataError, match="Did you mean 'note'"):
        check_ignored([TABLE, None], ["notes"])
