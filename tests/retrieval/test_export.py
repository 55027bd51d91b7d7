import errno
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.errors import ExportError
from tfcsmf.retrieval import export as export_module
from tfcsmf.retrieval.export import export, export_cascade
from tfcsmf.retrieval.exported import ExportedModel
from tfcsmf.retrieval.serving_model import NO_SCORE

FRESH = """
import json, sys
{imports}
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
request = json.loads(sys.argv[2])
arguments = {{name: tf.constant(value, tf.float32 if name == "age" else tf.string)
             for name, value in request.items()}}
answer = model.signatures["serving_default"](**arguments)
forbidden = [name for name in {forbidden} if name in sys.modules]
print(json.dumps({{
    "item_ids": [[i.decode() for i in row] for row in answer["item_ids"].numpy()],
    "scores": answer["scores"].numpy().tolist(), "forbidden": forbidden,
    "objective_scores": answer["objective_scores"].numpy().tolist(),
}}))
"""


def ask_in_fresh_process(path, arguments, imports, forbidden):
    request = {}
    for name, value in arguments.items():
        values = value.numpy()
        texts = value.dtype == tf.string
        request[name] = (
            np.char.decode(values.astype("S"), "utf-8").tolist()
            if texts
            else values.tolist()
        )
    code = FRESH.format(imports=imports, forbidden=forbidden)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), json.dumps(request)],
        capture_output=True,
        text=True,
        cwd=path,  # not the checkout
        env={k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def check_equal(answer, expected):
    ids = [[name.decode() for name in row] for row in expected["item_ids"].numpy()]
    assert answer["forbidden"] == []
    assert answer["item_ids"] == ids
    for name in ("scores", "objective_scores"):
        np.testing.assert_allclose(answer[name], expected[name], rtol=1e-5, atol=1e-6)


def test_the_exact_export_needs_nothing_but_tensorflow(shop, helpers, base_path):
    arguments = helpers.query_arguments(shop, [0, 3, 5])
    forbidden = ["tfcsmf", "tensorflow_recommenders", "scann", "tf_keras"]
    answer = ask_in_fresh_process(base_path / "1", arguments, "", forbidden)
    raw = helpers.named(shop, arguments)
    check_equal(answer, shop.serving.retrieve(raw, shop.serving.default_weights))


@pytest.fixture(scope="session")
def scann_shop(shop, helpers, tmp_path_factory):
    """The same shop with a ScaNN index, which needs more items than it has."""
    pytest.importorskip("scann")
    from tfcsmf.retrieval import indexes

    folder = tmp_path_factory.mktemp("scann_shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexes, "_APPROXIMATE_MINIMUM", 50)
        shop = helpers.make_shop(folder, **{"retrieval.index": "scann"})
    return shop, export(shop.serving, folder / "serving")


def test_the_scann_export_needs_scann_alone(scann_shop, helpers):
    shop, path = scann_shop
    arguments = helpers.query_arguments(shop, [0, 3, 5])
    forbidden = ["tfcsmf", "tensorflow_recommenders", "tf_keras"]
    answer = ask_in_fresh_process(path, arguments, "import scann", forbidden)
    raw = helpers.named(shop, arguments)
    check_equal(answer, shop.serving.retrieve(raw, shop.serving.default_weights))
    assert (
        json.loads((path / "assets.extra/cascade.json").read_text())["index"]["kind"]
        == "scann"
    )


def test_scann_excludes_and_scores_like_exact_search(scann_shop, shop, helpers):
    approximate, path = scann_shop
    model = ExportedModel(path)
    best = shop.serving.retrieve(
        helpers.named(shop, helpers.query_arguments(shop, [2])),
        tf.constant([1.0, 1, 2]),
    )
    excluded = [name.decode() for name in best["item_ids"].numpy()[0][:6]]
    items = model.retrieve(str(shop.log.users.ids[2]), exclude=excluded)
    assert items and not {item.item_id for item in items} & set(excluded)


def test_scores_are_the_weighted_sums_of_objective_scores(shop, helpers, base_path):
    signatures = ExportedModel(base_path).signatures
    arguments = helpers.query_arguments(shop, [1, 4, 6])
    weights = np.float32([[1, 0, 0], [0.5, -2, 3], [0, 0, 1]])
    answer = signatures["retrieve_weighted"](
        **arguments,
        objective_weights=tf.constant(weights),
        exclude_item_ids=tf.zeros([3, 0], tf.string),
    )
    by_objective = answer["objective_scores"].numpy()
    summed = np.einsum("bs,bks->bk", weights, by_objective)
    np.testing.assert_allclose(answer["scores"], summed, rtol=1e-4, atol=1e-5)
    assert (np.diff(answer["scores"].numpy(), axis=1) <= 0).all()
    # Against the explicit scores of the model, over the whole catalogue.
    queries = shop.serving.query_vectors(helpers.named(shop, arguments)).numpy()
    scores = np.einsum("bsd,cd->bcs", queries, shop.encoder.candidates(3))
    explicit = np.einsum("bcs,bs->bc", scores / shop.scales, weights)
    expected = np.argsort(-explicit, axis=1, kind="stable")[:, :10]
    np.testing.assert_allclose(
        np.take_along_axis(explicit, expected, 1),
        answer["scores"],
        rtol=1e-4,
        atol=1e-5,
    )
    assert answer["item_ids"].numpy()[1].tolist() == [
        str(shop.log.items.ids[p]).encode() for p in expected[1]
    ]


def test_a_batch_is_its_single_requests(shop, helpers, base_path):
    serve = ExportedModel(base_path).signatures["serving_default"]
    arguments = helpers.query_arguments(shop, [0, 1, 2, 3])
    whole = serve(**arguments)
    for row in range(4):
        alone = serve(
            **{name: value[row : row + 1] for name, value in arguments.items()}
        )
        assert alone["item_ids"].numpy()[0].tolist() == (
            whole["item_ids"].numpy()[row].tolist()
        )
        np.testing.assert_allclose(alone["scores"][0], whole["scores"][row], rtol=1e-5)


def test_embeddings_reproduce_the_scores(shop, helpers, base_path):
    signatures = ExportedModel(base_path).signatures
    arguments = helpers.query_arguments(shop, [0, 1])
    answer = signatures["serving_default"](**arguments)
    queries = signatures["embed_query"](**arguments)["vectors"].numpy()
    best = [
        shop.log.items.ids.tolist().index(name.decode())
        for name in answer["item_ids"].numpy()[:, 0]
    ]
    candidates = shop.encoder.candidates(3)[best]
    np.testing.assert_allclose(
        np.sum(queries * candidates, axis=1), answer["scores"][:, 0], rtol=1e-4
    )


def test_embed_candidate_equals_the_index_also_for_raw_features(shop, base_path):
    import polars as pl

    frame = pl.read_parquet(shop.config.data.items)
    rows = {row["item_id"]: row for row in frame.iter_rows(named=True)}
    ids = [str(name) for name in shop.log.items.ids[:9]]
    tags = [rows[name]["tags"] + [""] * (3 - len(rows[name]["tags"])) for name in ids]
    embed = ExportedModel(base_path).signatures["embed_candidate"]
    vectors = embed(
        item_id=tf.constant(ids),
        brand=tf.constant([rows[name]["brand"] for name in ids]),
        tags=tf.constant(tags),
        image=tf.constant([rows[name]["image"] for name in ids], tf.float32),
    )["vectors"]
    np.testing.assert_allclose(vectors, shop.encoder.candidates(3)[:9], rtol=1e-5)


def test_padding_of_exclusions_changes_nothing(shop, helpers, base_path):
    users = np.arange(3)
    arguments = helpers.query_arguments(shop, users) | {
        "objective_weights": tf.constant([[1.0, 0.5, 2.0]] * 3)
    }
    retrieve = ExportedModel(base_path).signatures["retrieve_weighted"]
    none = retrieve(**arguments, exclude_item_ids=tf.zeros([3, 0], tf.string))
    padding = tf.constant([["", ""]] * 3)
    padded = retrieve(**arguments, exclude_item_ids=padding)
    for name, values in none.items():
        np.testing.assert_array_equal(padded[name], values)
    # One request of the batch excludes its best, the others nothing.
    best = none["item_ids"].numpy()[1, 0].decode()
    mixed = tf.constant([["", ""], ["", best], ["", ""]])
    answer = retrieve(**arguments, exclude_item_ids=mixed)["item_ids"].numpy()
    np.testing.assert_array_equal(answer[[0, 2]], none["item_ids"].numpy()[[0, 2]])
    np.testing.assert_array_equal(answer[1, :-1], none["item_ids"].numpy()[1, 1:])


def test_excluding_the_whole_catalogue_leaves_empty_places(shop, helpers, base_path):
    arguments = helpers.query_arguments(shop, [0])
    answer = ExportedModel(base_path).signatures["retrieve_weighted"](
        **arguments,
        objective_weights=tf.ones([1, 3]),
        exclude_item_ids=tf.constant([[str(name) for name in shop.log.items.ids]]),
    )
    assert answer["item_ids"].numpy().tolist() == [[b""] * 10]
    assert (answer["scores"].numpy() == np.float32(NO_SCORE)).all()
    assert not answer["objective_scores"].numpy().any()
    json.dumps(answer["scores"].numpy().tolist(), allow_nan=False)


def test_weights_that_are_not_numbers_are_refused(shop, helpers, base_path):
    with pytest.raises(tf.errors.InvalidArgumentError, match="objective_weights"):
        ExportedModel(base_path).signatures["retrieve_weighted"](
            **helpers.query_arguments(shop, [0]),
            objective_weights=tf.constant([[np.nan, 1, 1]]),
            exclude_item_ids=tf.zeros([1, 0], tf.string),
        )


@pytest.mark.parametrize("shape", [(2, 1), (2, 2), (2, 4), (1, 3), (3, 3), (3,), ()])
@pytest.mark.parametrize("where", ["exported", "traced"])
def test_weights_of_another_shape_are_refused(shop, helpers, base_path, shape, where):
    signatures = (
        ExportedModel(base_path).signatures
        if where == "exported"
        else shop.serving.signatures()
    )
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="objective_weights should have"
    ):
        signatures["retrieve_weighted"](
            **helpers.query_arguments(shop, [0, 1]),
            objective_weights=tf.ones(shape),
            exclude_item_ids=tf.zeros([2, 0], tf.string),
        )


def test_versions_count_up_and_the_description_is_complete(shop, tmp_path):
    for name in ("7", "notes", "0099x"):
        (tmp_path / name).mkdir()
    assert export(shop.serving, tmp_path) == tmp_path / "8"
    text = (tmp_path / "8/assets.extra/cascade.json").read_text(encoding="utf-8")
    description = json.loads(text)
    assert description["objectives"] == ["view", "add to cart", "buy"]
    assert description["default_weights"] == [1, 1, 2]
    assert description["scales"] == [0.5, 1, 2]
    assert sum(description["blocks"]) == description["dimension"] == 8
    assert description["query_inputs"]["history_add to cart"]["argument"] == (
        "history_add_to_cart"
    )


def test_export_cascade_returns_the_version_and_the_index(shop, tmp_path):
    done = export_cascade(shop.model, shop.log, shop.config, shop.scales, tmp_path)
    assert done.path == tmp_path / "1" and done.index["kind"] == "exact"


def fake_save(content=b"x", barrier=None, error=None):
    def save(model, folder):
        (folder / "saved_model.pb").write_bytes(content)
        if barrier is not None:
            barrier.wait()
        if error is not None:
            raise error

    return save


def test_two_exports_at_once_get_two_versions(monkeypatch, tmp_path):
    barrier = threading.Barrier(4, action=None)
    waited = threading.local()

    def save(model, folder):
        (folder / "saved_model.pb").write_bytes(b"x")
        if not getattr(waited, "once", False):  # not again when retrying
            waited.once = True
            barrier.wait(timeout=30)

    monkeypatch.setattr(export_module, "_save", save)
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(export(None, tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in paths) == ["1", "2", "3", "4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()]
)
def test_a_failing_export_changes_nothing(base_path, monkeypatch, error):
    before = sorted(base_path.rglob("*"))
    monkeypatch.setattr(export_module, "_save", fake_save(error=error))
    with pytest.raises(type(error)):
        export(None, base_path)
    assert sorted(base_path.rglob("*")) == before
    assert ExportedModel(base_path).path == base_path / "1"


def test_a_folder_that_cannot_be_written_is_named(shop, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file"):
        export(shop.serving, tmp_path / "file")
