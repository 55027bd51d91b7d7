"""OwnedLayerNorm: by hand, configuration, saving, ownership."""

import numpy as np
import tensorflow as tf

from tfcsmf.towers import FREE, OwnedLayerNorm


def test_call_by_hand():
    layer = OwnedLayerNorm(epsilon=3.0)
    layer.build(tf.TensorShape([None, 2]))
    layer.scale.assign([10.0, 100.0])
    layer.offset.assign([1.0, 2.0])
    # mean 4, variance 1, so the deviation is sqrt(1 + 3)
    got = layer(tf.constant([[[3.0, 5.0]]]))
    np.testing.assert_allclose(got, [[[1 - 10 / 2, 2 + 100 / 2]]], rtol=1e-6)


def test_equals_the_stock_layer():
    inputs = tf.random.stateless_normal([3, 4, 5], [0, 1])
    stock = tf.keras.layers.LayerNormalization(epsilon=1e-6)(inputs)
    np.testing.assert_allclose(OwnedLayerNorm()(inputs), stock, atol=1e-5)


def test_the_first_stage_will_own_it():
    layer = OwnedLayerNorm(name="norm")
    layer.build(tf.TensorShape([None, 3]))
    scale, offset = layer.owned_parameters("query")
    assert (scale.name, offset.name) == ("query/norm/scale", "query/norm/offset")
    assert {p.role for p in (scale, offset)} == {"bias"}
    assert scale.owner_shares() == {FREE: 1.0}
    assert OwnedLayerNorm.from_config(layer.get_config()).epsilon == layer.epsilon


def test_save_and_load(tmp_path):
    layer, other = OwnedLayerNorm(), OwnedLayerNorm()
    for each in (layer, other):
        each.build(tf.TensorShape([None, 3]))
    layer.scale.assign([1.0, 2.0, 3.0])
    layer.scale_owner.assign([1])
    path = tf.train.Checkpoint(layer=layer).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(layer=other).read(path).assert_consumed()
    np.testing.assert_array_equal(other.scale, layer.scale)
    np.testing.assert_array_equal(other.scale_owner, layer.scale_owner)
