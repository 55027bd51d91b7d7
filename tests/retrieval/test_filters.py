"""Filters and k chosen at request time: always the true best of what passes."""

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tfcsmf.config import RetrievalConfig
from tfcsmf.errors import ExportError
from tfcsmf.retrieval.approximate import overlap
from tfcsmf.retrieval.exact_index import ExactIndex
from tfcsmf.retrieval.export import export
from tfcsmf.retrieval.exported import ExportedModel
from tfcsmf.retrieval.filters import ItemFilters, best_of, search_passing
from tfcsmf.retrieval.indexes import build_index
from tfcsmf.retrieval.refresh import refresh_index
from tfcsmf.retrieval.serving_model import NO_SCORE

SIZE = 3000


def clustered(size, seed=0):
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(9).normal(size=(40, 16))
    noise = 0.3 * rng.normal(size=(size, 16))
    return (means[rng.integers(40, size=size)] + noise).astype(np.float32)


@pytest.fixture(scope="module", params=["exact", "ivf", "scann"])
def index(request):
    if request.param == "scann":
        pytest.importorskip("scann")
    queries = clustered(90, seed=5).reshape(30, 3, 16)
    settings = RetrievalConfig(
        index=request.param, k=10, max_exclusions=0, target_recall=0.99
    )
    return build_index(clustered(SIZE), queries, settings)


def brute_force(query, passing, count):
    scores = np.where(passing, clustered(SIZE) @ query, -np.inf)
    order = np.argsort(-scores, kind="stable")[:count]
    return np.where(np.isneginf(scores[order]), -1, order), scores[order]


@pytest.fixture
def colours():
    table = {
        "colour": pl.Series(["red", "blue", None, "blue", "red", ""]),
        "size": pl.Series([1, 2, 2, 1, None, 2]),
    }
    return ItemFilters.of_columns(table, 6)


@pytest.mark.parametrize(
    ("colour", "size", "expected"),
    [
        ([], [], [0, 1, 2, 3, 4, 5]),
        ([""], ["", ""], [0, 1, 2, 3, 4, 5]),
        (["blue"], [], [1, 3]),
        (["", "blue", "red", "blue"], [], [0, 1, 3, 4]),
        (["blue"], ["1"], [3]),
        ([], ["2"], [1, 2, 5]),
        (["pink"], [], []),
        (["pink", "red"], ["1"], [0]),
        (["red"], ["7"], []),
    ],
)
def test_values_of_one_attribute_add_up_and_attributes_narrow(
    colours, colour, size, expected
):
    chosen = {
        name: tf.constant([values], tf.string, [1, len(values)])
        for name, values in {"colour": colour, "size": size}.items()
    }
    codes = [own[0] for own in colours.codes(chosen)]
    assert np.flatnonzero(colours.passing(codes)).tolist() == expected


def test_attributes_are_described(colours):
    assert colours.names == ("colour", "size")
    about = colours.describe()
    assert about["colour"] == {"values": 2, "examples": ["blue", "red"]}
    assert about["size"] == {"values": 2, "examples": ["1", "2"]}


def test_an_attribute_nobody_has_lets_none_pass():
    filters = ItemFilters.of_columns({"a": pl.Series([None, None], dtype=pl.String)}, 2)
    (codes,) = filters.codes({"a": tf.constant([["x", ""]])})
    assert filters.passing([codes[0]]).numpy().tolist() == [False, False]


@pytest.mark.parametrize("passing", [0, 1, 7, 93, SIZE // 32])
@pytest.mark.parametrize("count", [1, 10, 200])
def test_few_that_pass_are_searched_exactly(index, passing, count):
    rng = np.random.default_rng(passing)
    allowed = np.zeros(SIZE, bool)
    allowed[rng.choice(SIZE, passing, replace=False)] = True
    for query in clustered(3, seed=8):
        scores, positions = search_passing(index, query, allowed, tf.constant(count))
        expected, products = brute_force(query, allowed, count)
        np.testing.assert_array_equal(positions, expected)
        np.testing.assert_allclose(scores, products, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [0.04, 0.2, 0.5, 1.0])
def test_many_that_pass_are_found_as_well_as_without_a_filter(index, share):
    allowed = np.random.default_rng(1).random(SIZE) < share
    queries = clustered(30, seed=8)
    found, expected = [], []
    for query in queries:
        scores, positions = search_passing(index, query, allowed, tf.constant(10))
        best, _ = brute_force(query, allowed, 10)
        assert allowed[positions.numpy()].all()
        products = clustered(SIZE)[positions] @ query
        np.testing.assert_allclose(scores, products, rtol=1e-5, atol=1e-5)
        found.append(positions.numpy())
        expected.append(best)
    recall = overlap(np.array(found), np.array(expected))
    _, unfiltered = index.search(tf.constant(queries), 10)
    best = [brute_force(query, np.ones(SIZE, bool), 10)[0] for query in queries]
    # How good an index is depends on how its training went, which ScaNN does not seed.
    without = overlap(unfiltered.numpy(), np.array(best))
    assert without == recall == 1 if index.is_exact else recall >= without - 0.05


def test_what_the_index_does_not_reach_is_searched_exactly(index):
    """A tenth of the catalogue passes, but the tenth that is farthest away."""
    for query in clustered(4, seed=3):
        products = clustered(SIZE) @ query
        allowed = products <= np.sort(products)[SIZE // 10]
        _, positions = search_passing(index, query, allowed, tf.constant(20))
        np.testing.assert_array_equal(positions, brute_force(query, allowed, 20)[0])


def test_more_results_than_pass(index):
    allowed = np.arange(SIZE) % 10 == 0  # too many to be few
    query = clustered(1, seed=4)[0]
    scores, positions = search_passing(index, query, allowed, tf.constant(500))
    np.testing.assert_array_equal(positions, brute_force(query, allowed, 500)[0])
    assert (positions.numpy() == -1).sum() == 200 == np.isneginf(scores).sum()


def test_blocks_keep_the_order_of_equal_scores(monkeypatch):
    from tfcsmf.retrieval import filters

    monkeypatch.setattr(filters, "_BLOCK", 4)
    index = ExactIndex(np.float32([[1], [2], [1], [2], [0], [2], [1]]), 3)
    positions = tf.constant([0, 2, 3, 4, 5, 6])
    scores, found = best_of(index, tf.constant([1.0]), positions, tf.constant(5))
    assert found.numpy().tolist() == [3, 5, 0, 2, 6]
    assert scores.numpy().tolist() == [2, 2, 1, 1, 1]


# Through the exported model.


@pytest.fixture(scope="module", params=["exact", "ivf", "scann"])
def exported(request, helpers, tmp_path_factory):
    """The small shop, exported with each index, which searches all there is."""
    from tfcsmf.retrieval import indexes

    folder = tmp_path_factory.mktemp(f"filtered_{request.param}")
    settings = {"retrieval.index": request.param, "retrieval.max_k": 30}
    if request.param == "scann":
        pytest.importorskip("scann")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexes, "_APPROXIMATE_MINIMUM", 50)
        shop = helpers.make_shop(folder, **settings)
    index = shop.serving.index
    if request.param == "ivf":
        index.probes, index.oversampling = index.tiles, 7.0
    if request.param == "scann":
        index.leaves_to_search, index.reorder = index.num_leaves, index.size
    export(shop.serving, folder / "serving")
    return shop, ExportedModel(folder)


# Not 0 for all but the first: many of its scores are equal.
WEIGHTS = np.float32([[1, 0.2, 0.7], [0.5, -2, 3], [1, 1, 1], [0, 0, 1]])
BRANDS = [["b1", ""], ["b3", "b0"], ["", ""], ["b9", ""]]
EXCLUDED = [["i1", "i2", ""], ["", "", "i7"], ["i3", "", ""], ["", "", ""]]
KS = [3, 0, 30, 5]


def arguments(shop, helpers, rows=range(4)):
    rows = list(rows)
    users = [0, 3, 5, 7]
    return helpers.query_arguments(shop, [users[row] for row in rows]) | {
        "objective_weights": tf.constant(WEIGHTS[rows]),
        "exclude_item_ids": tf.constant([EXCLUDED[row] for row in rows]),
        "filter_brand": tf.constant([BRANDS[row] for row in rows]),
        "k": tf.constant([KS[row] for row in rows]),
    }


def expected_answer(shop, helpers, row):
    """Scores of the whole catalogue, without any index."""
    raw = helpers.named(shop, helpers.query_arguments(shop, [[0, 3, 5, 7][row]]))
    queries = shop.serving.query_vectors(raw).numpy()[0] / shop.scales[:, np.newaxis]
    by_objective = shop.encoder.candidates(3) @ queries.T  # [C, S]
    scores = by_objective @ WEIGHTS[row]
    table = pl.read_parquet(shop.config.data.items)
    brands = dict(table.select("item_id", "brand").iter_rows())
    wanted = {name for name in BRANDS[row] if name}
    names = [str(name) for name in shop.log.items.ids]
    kept = [
        place
        for place, name in enumerate(names)
        if (not wanted or brands[name] in wanted) and name not in EXCLUDED[row]
    ]
    order = sorted(kept, key=lambda place: -scores[place])[: KS[row] or 10]
    return [names[place] for place in order], scores[order], by_objective[order]


def test_an_answer_is_the_best_of_what_passes(exported, helpers):
    shop, model = exported
    answer = model.signatures["retrieve_filtered"](**arguments(shop, helpers))
    assert answer["item_ids"].shape == (4, 30)
    for row in range(4):
        names, scores, by_objective = expected_answer(shop, helpers, row)
        found = [name.decode() for name in answer["item_ids"].numpy()[row]]
        count = len(names)
        assert found == names + [""] * (30 - count)
        np.testing.assert_allclose(
            answer["scores"].numpy()[row, :count], scores, rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            answer["objective_scores"].numpy()[row, :count],
            by_objective,
            rtol=1e-4,
            atol=1e-5,
        )
        assert (answer["scores"].numpy()[row, count:] == np.float32(NO_SCORE)).all()
        assert not answer["objective_scores"].numpy()[row, count:].any()


def test_a_batch_is_its_single_requests(exported, helpers):
    shop, model = exported
    retrieve = model.signatures["retrieve_filtered"]
    whole = retrieve(**arguments(shop, helpers))["item_ids"].numpy()
    for row in range(4):
        alone = retrieve(**arguments(shop, helpers, [row]))["item_ids"].numpy()[0]
        width = KS[row] or 10
        assert alone.tolist() == whole[row, :width].tolist()
        assert set(whole[row, width:]) <= {b""}


def test_without_filter_and_k_it_is_the_weighted_signature(exported, helpers):
    shop, model = exported
    request = arguments(shop, helpers)
    request["filter_brand"] = tf.constant([["", ""]] * 4)
    request["k"] = tf.zeros([4], tf.int32)
    answer = model.signatures["retrieve_filtered"](**request)
    for name in ("filter_brand", "k"):
        del request[name]
    expected = model.signatures["retrieve_weighted"](**request)
    for name, values in expected.items():
        np.testing.assert_array_equal(answer[name], values)


def test_an_empty_batch_has_an_empty_answer(exported, helpers):
    shop, model = exported
    request = {n: v[:0] for n, v in arguments(shop, helpers).items()}
    answer = model.signatures["retrieve_filtered"](**request)
    assert answer["item_ids"].shape[0] == answer["scores"].shape[0] == 0


@pytest.mark.parametrize(
    ("k", "text"),
    [([31, 1, 1, 1], "from 1 to 30"), ([1, -1, 1, 1], "from 1 to 30"), ([1], "shape")],
)
def test_k_has_a_range_and_a_shape(exported, helpers, k, text):
    shop, model = exported
    request = arguments(shop, helpers) | {"k": tf.constant(k)}
    with pytest.raises(tf.errors.InvalidArgumentError, match=text):
        model.signatures["retrieve_filtered"](**request)


def test_exact_and_ivf_exports_have_stock_operations_only(exported):
    _, model = exported
    used = set()
    for signature in model.signatures.values():
        graph = signature.graph.as_graph_def()
        nodes = [*graph.node]
        for function in graph.library.function:
            nodes.extend(function.node_def)
        used |= {node.op for node in nodes}
    foreign = used - set(tf.raw_ops.__dict__)
    assert foreign <= {node for node in foreign if "Scann" in node}
    assert bool(foreign) == (model.description["index"]["kind"] == "scann")


def test_it_is_described(exported):
    _, model = exported
    assert (model.k, model.max_k) == (10, 30)
    about = model.description["filters"]
    assert about == {
        "brand": {
            "argument": "filter_brand",
            "values": 5,
            "examples": about["brand"]["examples"],
        }
    }
    assert sorted(about["brand"]["examples"]) == ["b0", "b1", "b2", "b3", "b4"]


def brands_of(shop, items):
    table = pl.read_parquet(shop.config.data.items)
    brands = dict(table.select("item_id", "brand").iter_rows())
    return {brands[item.item_id] for item in items}


def test_asking_by_names(exported):
    shop, model = exported
    items = model.retrieve("u1", filters={"brand": ["b1", "b2"]}, k=25)
    assert brands_of(shop, items) == {"b1", "b2"}
    scores = [item.score for item in items]
    assert scores == sorted(scores, reverse=True)
    rest = model.retrieve(
        "u1", filters={"brand": ["b1", "b2"]}, k=24, exclude=[items[0].item_id]
    )
    assert [i.item_id for i in rest] == [i.item_id for i in items[1:25]]
    assert model.retrieve("u1", filters={"brand": ["none such"]}) == []
    assert model.retrieve("u1", filters={"brand": []}) == model.retrieve("u1")
    assert model.retrieve("u1", k=30)[:10] == model.retrieve("u1")


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"filters": {"brnd": ["b1"]}}, "Did you mean 'brand'"),
        ({"filters": {"brand": "b1"}}, "list of strings"),
        ({"filters": {"tags": ["t1"]}}, "attribute to filter by"),
        ({"k": 31}, "1 and 30, .* Received: 31. .* --set retrieval.max_k=31"),
    ],
)
def test_mistakes_are_explained(exported, asked, text):
    with pytest.raises(ExportError, match=text):
        exported[1].retrieve("u1", **asked)


def test_earlier_exports_say_what_to_do(exported):
    _, model = exported
    old = object.__new__(ExportedModel)
    old.__dict__.update(model.__dict__)
    lacking = ("filters", "max_k")
    old.description = {n: v for n, v in model.description.items() if n not in lacking}
    assert old.max_k == 10 and old.retrieve("u1") == model.retrieve("u1")
    with pytest.raises(ExportError, match="refresh_index"):
        old.retrieve("u1", filters={"brand": ["b1"]})


def test_a_refreshed_catalogue_has_the_filters_of_its_table(shop, tmp_path):
    export(shop.serving, tmp_path / "serving")
    table = pl.read_parquet(shop.config.data.items)
    brand = pl.when(pl.col("item_id") == "i5").then(pl.lit("brand new"))
    table = table.with_columns(brand=brand.otherwise(pl.col("brand")))
    table.write_parquet(tmp_path / "new.parquet")
    refresh_index(tmp_path, str(tmp_path / "new.parquet"))
    model = ExportedModel(tmp_path)
    assert model.description["filters"]["brand"]["values"] == 6
    (only,) = model.retrieve("u1", filters={"brand": ["brand new"]})
    assert only.item_id == "i5"
    # The catalogue was the limit, not the setting.
    assert model.max_k == table.height
