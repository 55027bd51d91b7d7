"""The served query of a sequence encoder is that of training, from raw histories."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.retrieval.export import export
from tfcsmf.retrieval.exported import ExportedModel

SETTINGS = {
    "sequence.length": 9,
    "sequence.width": 8,
    "sequence.feed_forward": 8,
    "towers.normalize": True,
}


@pytest.fixture(scope="module")
def make(tmp_path_factory, helpers):
    made = {}

    def build(encoder, **more):
        key = (encoder, *more.items())
        if key not in made:
            own = SETTINGS | {"towers.query_encoder": encoder} | more
            made[key] = helpers.make_shop(tmp_path_factory.mktemp("shop"), **own)
        return made[key]

    return build


def users_and_ends(shop, count=12):
    users = np.arange(count, dtype=np.int32)
    lists = shop.log.train_histories.lists
    return users, np.stack([lists[e].offsets[users + 1] for e in lists], axis=1)


@pytest.mark.parametrize(
    "encoder",
    [
        "heterrec",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("sasrec", "gru4rec")),
    ],
)
def test_every_pass_is_that_of_the_model(make, helpers, encoder):
    """Raw strings in, the vectors that training and evaluation use out: no skew."""
    shop = make(encoder)
    users, ends = users_and_ends(shop)
    raw = helpers.named(shop, helpers.query_arguments(shop, users))
    actual = shop.serving.query_vectors(raw).numpy()
    sequence = shop.serving.query_tower.sequence
    inputs = shop.serving.query_inputs(raw)
    encodings = sequence(inputs).numpy()
    for stage in range(3):
        expected = shop.encoder.query_vectors(
            users, ends, shop.log.train_histories, stage
        )
        np.testing.assert_allclose(actual[:, stage], expected, rtol=1e-5, atol=1e-6)
        names = shop.model.query_tower.histories
        own = shop.model.query_tower.sequence({n: inputs[n] for n in names}, stage)
        np.testing.assert_allclose(encodings[stage], own, rtol=1e-5, atol=1e-6)
    assert np.abs(encodings).max() > 0.1
    assert np.abs(encodings[2] - encodings[1]).max() > 1e-3


@pytest.mark.slow
def test_with_times_sequences_are_chronological_everywhere(make, helpers):
    shop = make("heterrec", **{"towers.history_times": True})
    layer = shop.model.query_tower.sequence
    assert layer.with_times and layer.encoder.settings.num_gaps > 0
    users, ends = users_and_ends(shop)
    arguments = helpers.query_arguments(shop, users)
    histories = shop.log.train_histories
    for event, lists in histories.lists.items():
        name = f"history_{event}".replace(" ", "_")
        times = np.zeros(arguments[name].shape, np.int64)
        for row, user in enumerate(users):
            own = histories.times[event][slice(*lists.offsets[user : user + 2])]
            assert (np.diff(own) >= 0).all()
            times[row, : len(own)] = own
        arguments[f"{name}_time"] = tf.constant(times)
    raw = helpers.named(shop, arguments)
    actual = shop.serving.query_vectors(raw).numpy()
    for stage in range(3):
        expected = shop.encoder.query_vectors(users, ends, histories, stage)
        np.testing.assert_allclose(actual[:, stage], expected, rtol=1e-5, atol=1e-6)
    # Later by as much is the same; in another rhythm or order it is not.
    timed = [name for name in raw if name.endswith("/time")]
    assert len(timed) == 3
    encode = shop.serving.query_tower.sequence
    before = encode(shop.serving.query_inputs(raw)).numpy()[2]
    for change, same in (
        (lambda t: t + 10**6, True),
        (lambda t: t * 9, False),
        (tf.zeros_like, False),
    ):
        moved = raw | {name: change(raw[name]) for name in timed}
        after = encode(shop.serving.query_inputs(moved)).numpy()[2]
        assert (np.abs(after - before).max() < 1e-5) == same


@pytest.mark.slow
def test_it_is_exported_with_the_contracts_inputs_alone(make, helpers, tmp_path):
    shop = make("heterrec")
    export(shop.serving, tmp_path)
    exported = ExportedModel(tmp_path)
    names = {"user_id", *(f"history_{e}" for e in shop.log.history_events)}
    assert set(exported.description["query_inputs"]) == names | {"age", "city"}
    users, _ = users_and_ends(shop, 4)
    arguments = helpers.query_arguments(shop, users)
    raw = helpers.named(shop, arguments)
    weights = np.float32([[0.5, -1.0, 2.0]] * 4)
    vectors = exported.signatures["embed_query_objectives"](**arguments)["vectors"]
    fused = np.einsum("bs,bsd->bd", weights, vectors)
    answer = exported.signatures["retrieve_weighted"](
        **arguments,
        objective_weights=tf.constant(weights),
        exclude_item_ids=tf.zeros([4, 0], tf.string),
    )
    expected = shop.serving.retrieve(raw, tf.constant(weights))
    np.testing.assert_array_equal(answer["item_ids"], expected["item_ids"])
    catalogue = shop.encoder.candidates(3)
    best = np.sort(fused @ catalogue.T, axis=1)[:, ::-1][:, :10]
    np.testing.assert_allclose(answer["scores"], best, rtol=1e-4, atol=1e-5)
    # The order of a history counts, and a query without any gets an answer.
    view = next(name for name in arguments if name.endswith("view"))
    turned = arguments | {view: tf.reverse(arguments[view], [1])}
    other = exported.signatures["embed_query"](**turned)["vectors"]
    assert (
        np.abs(other - exported.signatures["embed_query"](**arguments)["vectors"]).max()
        > 1e-4
    )
    items = exported.retrieve("nobody")
    assert len(items) == 10 and all(np.isfinite(item.score) for item in items)
