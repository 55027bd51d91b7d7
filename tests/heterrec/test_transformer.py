"""Blocks in both orders, and what the temporal encoder adds, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.heterrec import BlockSettings, BlockStack, TransformerBlock, attention_bias
from tfcsmf.heterrec.transformer import TemporalEncoder

MASK = tf.constant([[True, True, True], [False, False, True]])
INPUTS = tf.constant(np.random.default_rng(0).normal(size=[2, 3, 4]), tf.float32)
BIAS = attention_bias(MASK)


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def parts(block):
    """The two parts of a block as functions of arrays."""
    return (
        lambda x: block.attention(tf.constant(x), BIAS).numpy(),
        lambda x: block.feed_forward(tf.constant(x)).numpy(),
    )


def test_post_norm_as_drawn():
    block = TransformerBlock(BlockSettings(4, 2, 8))
    got = block(INPUTS, BIAS).numpy()
    attend, feed = parts(block)
    x = INPUTS.numpy()
    middle = norm(x + attend(x))
    expected = norm(middle + feed(middle))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_pre_norm_with_a_last_norm():
    stack = BlockStack(1, BlockSettings(4, 2, 8, norm="pre"))
    got = stack(INPUTS, BIAS).numpy()
    attend, feed = parts(stack.blocks[0])
    x = INPUTS.numpy()
    middle = x + attend(norm(x))
    expected = norm(middle + feed(norm(middle)))
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("norm_order", ["post", "pre"])
def test_a_deep_stack_starts_near_its_inputs(norm_order):
    inputs = np.random.default_rng(0).normal(size=[2, 3, 64]).astype(np.float32)
    for depth, most in ((1, 0.1), (8, 0.25)):
        stack = BlockStack(depth, BlockSettings(64, norm=norm_order))
        away = stack(tf.constant(inputs), BIAS).numpy() - norm(inputs)
        assert 0.01 < np.sqrt((away**2).mean()) < most  # of entries that are about 1


def test_places_count_from_the_oldest_item():
    layer = TemporalEncoder(2, 5, num_gaps=4, types=2)
    gaps = tf.constant([[1, 3, 2], [0, 0, 1]])
    got = layer(tf.zeros([2, 3, 2, 2]), MASK, gaps).numpy()
    places, gap, types = (
        table.table.numpy()
        for table in (layer.places, layer.gap_table, layer.type_table)
    )
    for row, column, place in ((0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 2, 0)):
        for token in range(2):
            np.testing.assert_allclose(
                got[row, column, token],
                places[place] + gap[gaps[row, column]] + types[token],
                rtol=1e-5,
            )


def test_dropout_repeats_with_its_seed_and_differs_by_block():
    stack = BlockStack(2, BlockSettings(4, 2, 8, dropout=0.5))
    seed = tf.constant([3, 4])
    once, again = (stack(INPUTS, BIAS, seed=seed).numpy() for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, stack(INPUTS, BIAS, seed=seed + 1))
    assert not np.allclose(once, stack(INPUTS, BIAS))


@pytest.mark.parametrize("drop_inputs", [False, True])
def test_inputs_are_dropped_where_that_is_asked_for(drop_inputs):
    stack = BlockStack(1, BlockSettings(4, 2, 8, dropout=0.5), drop_inputs)
    stack(INPUTS, BIAS)  # builds it
    stack.blocks = []
    got = stack(INPUTS, BIAS, seed=tf.constant([3, 4])).numpy()
    zero = got == 0
    assert zero.any() == drop_inputs
    grown = 2 * INPUTS.numpy() if drop_inputs else INPUTS.numpy()
    np.testing.assert_allclose(got[~zero], grown[~zero])


@pytest.mark.parametrize("norm_order", ["post", "pre"])
def test_configuration_round_trip(norm_order):
    stack = BlockStack(2, BlockSettings(4, 2, 8, 0.1, norm_order), drop_inputs=False)
    assert BlockStack.from_config(stack.get_config()).get_config() == stack.get_config()
    block = TransformerBlock(BlockSettings(4, norm=norm_order))
    again = TransformerBlock.from_config(block.get_config())
    assert again.settings == block.settings
    layer = TemporalEncoder(2, 5, 4, 2)
    again = TemporalEncoder.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
