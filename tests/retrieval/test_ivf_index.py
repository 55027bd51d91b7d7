import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.config import RetrievalConfig
from tfcsmf.evaluation.topk import top_k
from tfcsmf.retrieval import ivf_index
from tfcsmf.retrieval.approximate import overlap, random_fusions
from tfcsmf.retrieval.indexes import build_index
from tfcsmf.retrieval.ivf_index import IvfIndex

STOCK = """
import json, sys
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
search = model.signatures["serving_default"]
answer = search(queries=tf.constant(json.loads(sys.argv[2])))
known = set(tf.raw_ops.__dict__)  # only TensorFlow's own are registered here
graph = search.graph.as_graph_def()
used = {node.op for node in graph.node}
used |= {node.op for function in graph.library.function for node in function.node_def}
others = [name for name in sys.modules if name.split(".")[0] in
          ("tfcsmf", "scann", "tensorflow_recommenders", "tf_keras")]
print(json.dumps({"positions": answer["positions"].numpy().tolist(),
                  "foreign": sorted(used - known), "others": others,
                  "used": sorted(used)}))
"""


def catalogue(size=4000, dimension=16, seed=0):
    """Groups, with norms that differ by the factor of e and more."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(9).normal(size=(60, dimension))
    vectors = means[rng.integers(60, size=size)]
    vectors = vectors + 0.3 * rng.normal(size=(size, dimension)) + 0.5
    return (vectors * np.exp(0.3 * rng.normal(size=(size, 1)))).astype(np.float32)


def queries(count=40, seed=1):
    return catalogue(3 * count, seed=seed).reshape(count, 3, -1)


@pytest.fixture(scope="module")
def index():
    settings = RetrievalConfig(index="ivf", k=20)
    return build_index(catalogue(), queries(100), settings)


def test_it_reaches_the_target_under_weights_it_was_not_calibrated_on(index):
    found = index.describe()
    assert found["target_reached"] and found["kind"] == "ivf"
    fused = random_fusions(queries(100, seed=2), seed=5)
    _, positions = index.search(tf.constant(fused), 20)
    _, exact = top_k(fused, catalogue(), 20)
    assert overlap(positions.numpy(), exact) >= 0.93
    # And far from reading everything.
    assert found["probes"] < found["tiles"] / 4


def test_the_curve_rises_with_the_probes_and_ends_at_the_target(index):
    curve = index.describe()["curve"]
    recalls = [point["recall"] for point in curve]
    assert recalls == sorted(recalls)
    assert [recall >= 0.95 for recall in recalls] == [False] * (len(curve) - 1) + [True]
    assert curve[-1]["probes"] == index.probes
    assert curve[-1]["oversampling"] == index.oversampling


def test_scores_are_inner_products_best_first(index):
    fused = random_fusions(queries(), seed=3)
    scores, positions = index.search(tf.constant(fused), 20)
    expected = np.take_along_axis(fused @ catalogue().T, positions.numpy(), axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 20 for row in positions.numpy())


@pytest.mark.parametrize("count", [1, 20, 900, 4000])
def test_as_many_are_found_as_are_asked_for(index, count):
    fused = random_fusions(queries(3), seed=3)
    scores, positions = index.search(tf.constant(fused), count)
    assert positions.shape == scores.shape == (3, count)
    assert all(len(set(row)) == count for row in positions.numpy())
    assert positions.numpy().min() >= 0


def test_what_is_missing_is_marked():
    index = IvfIndex(np.float32([[1], [2], [3]]), k=2, tile=16)
    index.probes = index.tiles = 1
    # One tile of several, so that not everything can be found.
    found = index.search(tf.constant([[1.0]]), 3)[1].numpy()
    assert found[0][0] == 2 and (found == -1).any()


def test_no_request_reads_the_whole_catalogue(index):
    """Reading a variable that is gathered from, instead of gathering, copies it."""
    spec = tf.TensorSpec([None], tf.int32)
    take = tf.function(index.take, autograph=False).get_concrete_function(spec)
    used = {node.op for node in take.graph.as_graph_def().node}
    assert "ResourceGather" in used and "ReadVariableOp" not in used


def test_negative_scores_are_found_before_empty_places():
    candidates = -np.abs(catalogue(300)) - 1
    index = IvfIndex(candidates, k=5, probes=3)
    scores, positions = index.search(tf.ones([1, 16]), 5)
    assert (positions.numpy() >= 0).all() and (scores.numpy() < 0).all()


def test_parts_give_the_same_answers(index, monkeypatch):
    fused = tf.constant(random_fusions(queries(), seed=4))
    whole = index.search(fused, 20)
    monkeypatch.setattr(ivf_index, "_DECODED", 3 * index.probes * index.tile * 16)
    parts = index.search(fused, 20)
    np.testing.assert_array_equal(parts[1], whole[1])
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-6)


def test_a_constant_dimension_has_a_step():
    candidates = catalogue(500)
    candidates[:, 3] = 7
    index = IvfIndex(candidates, k=5, probes=500)
    fused = random_fusions(queries(5), seed=0)
    _, exact = top_k(fused, candidates, 5)
    np.testing.assert_array_equal(index.search(tf.constant(fused), 5)[1], exact)


def test_the_saved_graph_has_stock_operations_only(index, tmp_path):
    @tf.function(input_signature=[tf.TensorSpec([None, 16], tf.float32, "queries")])
    def search(queries):
        scores, positions = index.search(queries, index.k)
        return {"scores": scores, "positions": positions}

    holder = tf.Module()
    holder.index, holder.search = index, search
    tf.saved_model.save(holder, str(tmp_path), signatures=search)
    fused = random_fusions(queries(3), seed=6)
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(tmp_path), json.dumps(fused.tolist())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            k: v
            for k, v in os.environ.items()
            if k not in ("PYTHONPATH", "TF_USE_LEGACY_KERAS")
        },
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["foreign"] == [] and answer["others"] == []
    assert {"TopKV2", "Cast"} <= set(answer["used"])
    expected = index.search(tf.constant(fused), 20)[1].numpy().tolist()
    assert answer["positions"] == expected
