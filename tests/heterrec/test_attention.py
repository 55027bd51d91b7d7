"""Attention and its mask, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.heterrec import SelfAttention, attention_bias


def allowed(mask, *arguments):
    bias = attention_bias(tf.constant(mask), *arguments)
    return np.asarray(bias[:, 0] == 0).astype(int).tolist()


def test_strict_mask_over_two_tokens_per_item():
    # padding, then one item of two tokens: the second sees the first
    assert allowed([[False, True]], 2) == [
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    ]


def test_item_mask_lets_the_tokens_of_an_item_see_each_other():
    assert allowed([[True, True]], 2, "item") == [
        [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    ]


def test_two_heads_by_hand():
    rng = np.random.default_rng(0)
    layer = SelfAttention(4, 2)
    inputs = rng.normal(size=[2, 3, 4]).astype(np.float32)
    mask = tf.constant([[True, True, True], [False, True, True]])
    got = layer(inputs, attention_bias(mask)).numpy()
    kernel, mix = layer.projection.kernel.numpy(), layer.mixture.kernel.numpy()
    for row, first in ((0, 0), (1, 1)):
        query, key, value = np.split(inputs[row] @ kernel, 3, axis=1)
        for place in range(first, 3):
            seen = slice(first, place + 1)
            heads = []
            for columns in (slice(0, 2), slice(2, 4)):
                scores = key[seen, columns] @ query[place, columns] / np.sqrt(2)
                weights = np.exp(scores) / np.exp(scores).sum()
                heads.append(weights @ value[seen, columns])
            expected = np.concatenate(heads) @ mix
            np.testing.assert_allclose(got[row, place], expected, rtol=1e-4, atol=1e-6)


def test_heads_have_to_divide_the_width():
    with pytest.raises(ValueError, match="3 heads and a width of 4"):
        SelfAttention(4, 3)
