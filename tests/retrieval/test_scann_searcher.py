import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("scann")

from tfcsmf.retrieval.scann_index import ScannIndex  # noqa: E402

K = 5


class Pair(tf.Module):
    """Two indexes of different catalogues in one model."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        self.indexes = [
            ScannIndex(
                rng.standard_normal((1200, 8)).astype("f"), K, leaves_to_search=35
            )
            for _ in range(2)
        ]

    def signature(self, *numbers):
        def call(queries):
            return {
                str(number): self.indexes[number].search(queries, K)[1]
                for number in numbers
            }

        spec = tf.TensorSpec([None, 8], tf.float32, name="queries")
        return tf.function(call).get_concrete_function(spec)


@pytest.fixture(scope="module")
def pair():
    return Pair()


@pytest.fixture(scope="module")
def path(pair, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("pair"))
    signatures = {
        "both": pair.signature(0, 1),
        "first": pair.signature(0),
        "again": pair.signature(0),
    }
    tf.saved_model.save(pair, path, signatures)
    return path


@pytest.fixture
def queries():
    return tf.constant(np.random.default_rng(1).standard_normal((9, 8)).astype("f"))


def test_indexes_of_one_model_answer_for_themselves_once_loaded(pair, path, queries):
    expected = [index.search(queries, K)[1] for index in pair.indexes]
    assert not np.array_equal(*expected)
    loaded = [tf.saved_model.load(path) for _ in range(2)]
    for model in loaded:
        found = model.signatures["both"](queries=queries)
        np.testing.assert_array_equal(found["0"], expected[0])
        np.testing.assert_array_equal(found["1"], expected[1])


def test_requests_do_not_build_searchers(path):
    # Two first requests at once built it twice, one under the search of the other.
    for signature in tf.saved_model.load(path).signatures.values():
        graph = signature.graph.as_graph_def()
        nodes = [node.op for f in graph.library.function for node in f.node_def]
        assert any("SearchBatched" in name for name in nodes)
        assert not any("TensorsToScann" in name for name in nodes)


def test_first_requests_may_come_at_the_same_time(pair, path):
    many = tf.random.stateless_normal([500, 8], [0, 1])
    expected = pair.indexes[0].search(many, K)[1]
    for _ in range(5):
        model = tf.saved_model.load(path)  # kept, or its variables would be gone
        with ThreadPoolExecutor(3) as pool:
            found = pool.map(lambda f: f(queries=many), model.signatures.values())
            for answer in found:
                np.testing.assert_array_equal(answer["0"], expected)


def test_a_searcher_is_freed_with_its_model_and_no_other(path, queries):
    kept, dropped = (tf.saved_model.load(path) for _ in range(2))
    names = [model.indexes[0].resource.resource_handle for model in (kept, dropped)]

    def search(handle):
        from scann.scann_ops.py import scann_ops

        return scann_ops.ScannSearcher(handle).search_batched(queries).indices

    assert search(names[1]).shape == (9, K)
    del dropped
    gc.collect()
    with pytest.raises(tf.errors.NotFoundError):
        search(names[1])
    assert search(names[0]).shape == (9, K)


def test_the_searcher_of_the_training_is_freed(monkeypatch, queries):
    from scann.scann_ops.py import scann_ops

    made = []

    def create(*arguments, **options):
        made.append(scann_create_searcher(*arguments, **options))
        return made[-1]

    scann_create_searcher = scann_ops.scann_create_searcher
    monkeypatch.setattr(scann_ops, "scann_create_searcher", create)
    vectors = np.random.default_rng(2).standard_normal((1200, 8)).astype("f")
    index = ScannIndex(vectors, K, leaves_to_search=35)
    trained, own = made
    with pytest.raises(tf.errors.NotFoundError):
        scann_ops.ScannSearcher(trained).search_batched(queries, K)
    # The one that took its place, under its own name, has all vectors.
    found = scann_ops.ScannSearcher(own).search_batched(queries, K)
    np.testing.assert_array_equal(found.indices, index.search(queries, K)[1])
