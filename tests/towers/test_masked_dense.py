"""MaskedDense: hand-computed passes, configuration, saving."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.towers import FREE, MaskedDense
from tfcsmf.towers.ownership import keep_owned


def hand_layer(**options):
    layer = MaskedDense(2, name="hand", **options)
    layer.build(tf.TensorShape([None, 3]))
    layer.kernel.assign([[1.0, 2.0], [3.0, 4.0], [5.0, -6.0]])
    layer.kernel_owner.assign([[0, 1], [2, 0], [FREE, 1]])
    if layer.use_bias:
        layer.bias.assign([10.0, 20.0])
    return layer


INPUTS = [[1.0, 10.0, 100.0]]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (None, [1 + 30 + 500 + 10, 2 + 40 - 600 + 20]),
        (0, [1 + 10, 40 + 20]),
        (1, [1 + 10, 2 + 40 - 600 + 20]),
        (2, [1 + 30 + 10, 2 + 40 - 600 + 20]),
        (126, [1 + 30 + 10, 2 + 40 - 600 + 20]),  # FREE is in no pass
    ],
)
def test_call_by_hand(stage, expected):
    np.testing.assert_array_equal(hand_layer()(INPUTS, stage), [expected])
    rectified = np.maximum(expected, 0)
    np.testing.assert_array_equal(
        hand_layer(activation="relu")(INPUTS, stage), [rectified]
    )


def test_without_bias_and_inside_a_function():
    layer = hand_layer(use_bias=False)
    call = tf.function(lambda x: layer(x, stage=0))
    np.testing.assert_array_equal(call(tf.constant(INPUTS)), [[1.0, 40.0]])
    assert [p.role for p in layer.owned_parameters("query")] == ["kernel"]


def test_masked_entries_get_no_gradient():
    layer = hand_layer()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(INPUTS, stage=0))
    gradient = tape.gradient(loss, layer.kernel)
    np.testing.assert_array_equal(gradient, [[1, 0], [0, 10], [0, 0]])


def test_non_finite_entries_of_later_stages_stay_out_of_a_pass():
    layer = hand_layer()
    layer.kernel[0, 1].assign(np.nan)
    layer.kernel[2, 0].assign(np.inf)
    np.testing.assert_array_equal(layer(INPUTS, stage=0), [[11.0, 60.0]])
    owner = tf.constant([0, 1], tf.int8)
    kept = keep_owned(tf.constant([1.0, np.nan]), owner, 0)
    np.testing.assert_array_equal(kept, [1.0, 0.0])


def test_fresh_layer_is_free_and_has_its_parameters_only():
    layer = MaskedDense(4, output=True)
    layer.build(tf.TensorShape([None, 3]))
    assert (layer.kernel_owner.numpy() == FREE).all()
    assert [v.shape.as_list() for v in layer.trainable_variables] == [[3, 4], [4]]
    kernel, bias = layer.owned_parameters("query")
    assert (kernel.role, kernel.size, bias.role, bias.size) == ("output", 12, "bias", 4)
    assert kernel.name == f"query/{layer.name}/kernel"
    assert kernel.owner_shares() == {FREE: 1.0}
    assert hand_layer().owned_parameters("q")[0].owner_shares() == pytest.approx(
        {0: 2 / 6, 1: 2 / 6, 2: 1 / 6, FREE: 1 / 6}
    )


def test_config_round_trip():
    layer = MaskedDense(3, "gelu", use_bias=False, output=True, name="last")
    copy = MaskedDense.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert (copy.units, copy.use_bias, copy.output_layer) == (3, False, True)
    assert copy.activation is layer.activation and copy.name == "last"
    again = tf.keras.layers.deserialize(
        tf.keras.layers.serialize(layer), {"MaskedDense": MaskedDense}
    )
    assert again.get_config() == layer.get_config()


def test_save_and_load_restores_weights_and_owners(tmp_path):
    layer = hand_layer()
    path = tf.train.Checkpoint(layer=layer).write(str(tmp_path / "checkpoint"))
    other = MaskedDense(2)
    other.build(tf.TensorShape([None, 3]))
    tf.train.Checkpoint(layer=other).read(path).assert_consumed()
    for stage in (None, 0, 1, 2):
        np.testing.assert_array_equal(other(INPUTS, stage), layer(INPUTS, stage))
    np.testing.assert_array_equal(other.kernel_owner, layer.kernel_owner)

    model = tf.keras.Sequential([tf.keras.Input([3]), layer])
    model.save_weights(str(tmp_path / "weights.h5"))
    third = MaskedDense(2)
    twin = tf.keras.Sequential([tf.keras.Input([3]), third])
    twin.load_weights(str(tmp_path / "weights.h5"))
    np.testing.assert_array_equal(third.kernel, layer.kernel)
    np.testing.assert_array_equal(third.kernel_owner, layer.kernel_owner)
    np.testing.assert_array_equal(
        twin.predict(np.array(INPUTS), verbose=0), layer(INPUTS)
    )


@pytest.mark.parametrize("units", [0, -1])
def test_invalid_units(units):
    with pytest.raises(ValueError, match=f"at least 1. Received: {units}"):
        MaskedDense(units)
