"""All encoders: causality, padding, batches, passes, gradients, saving."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.heterrec import (
    BlockSettings,
    EncoderSettings,
    HierarchicalEncoder,
    History,
)
from tfcsmf.heterrec.recurrent import RecurrentEncoder
from tfcsmf.towers import FREE

WIDTH, TOKENS, LENGTH = 4, 3, 8
RNG = np.random.default_rng(0)


def hierarchical(norm="post", **options):
    settings = {"num_tokens": TOKENS, "length": LENGTH, "num_gaps": 6} | options
    return HierarchicalEncoder(
        EncoderSettings(**settings), BlockSettings(WIDTH, 2, 8, norm=norm), name="query"
    )


ENCODERS = {
    "heterrec": lambda: hierarchical(num_events=6),
    "pre_norm": lambda: hierarchical(norm="pre", token_layers=2),
    "item_mask": lambda: hierarchical(token_mask="item", num_events=6),
    "mean": lambda: hierarchical(merge="mean"),
    "no_item_level": lambda: hierarchical(item_layers=0),
    "merged": lambda: hierarchical(token_layers=0, num_events=6),
    "sasrec": lambda: hierarchical(num_tokens=1, token_layers=0, num_gaps=0),
    "gru4rec": lambda: RecurrentEncoder(WIDTH, 2, name="query"),
}


def history(lengths=(5, 3, 1), width=5):
    batch = len(lengths)
    mask = np.arange(width) >= width - np.array(lengths)[:, None]
    return {
        "tokens": RNG.normal(size=[batch, width, TOKENS, WIDTH]).astype(np.float32),
        "mask": mask,
        "events": np.where(mask, RNG.integers(3, 6, mask.shape), 0),
        "gaps": np.where(mask, RNG.integers(1, 6, mask.shape), 0),
    }


def encode(encoder, parts, stage=None):
    parts = dict(parts)
    if getattr(getattr(encoder, "settings", None), "num_tokens", 1) == 1:
        parts["tokens"] = parts["tokens"][:, :, :1]
    result = encoder(History(**{k: tf.constant(v) for k, v in parts.items()}), stage)
    outputs = [result.items.numpy()]
    if result.tokens is not None:
        outputs.append(result.tokens.numpy())
    return outputs


@pytest.fixture(params=list(ENCODERS))
def encoder(request):
    return ENCODERS[request.param]()


def changed_from(parts, place):
    """The same history with other items from one place on."""
    other = {name: values.copy() for name, values in parts.items()}
    fresh = history()
    for name in ("tokens", "events", "gaps"):
        other[name][:, place:] = fresh[name][:, place:]
    other["mask"] = parts["mask"]
    return other


def test_what_comes_later_changes_nothing(encoder):
    parts = history()
    before = encode(encoder, parts)
    for place in range(1, 5):
        after = encode(encoder, changed_from(parts, place))
        for old, new in zip(before, after, strict=True):
            real = parts["mask"][:, :place]
            np.testing.assert_array_equal(
                old[:, :place][real], new[:, :place][real], err_msg=str(place)
            )
            assert not np.allclose(old[0, place:], new[0, place:])


def test_later_tokens_of_an_item_are_unseen_by_earlier_ones():
    parts = history()
    other = {name: values.copy() for name, values in parts.items()}
    other["tokens"][:, 2, 1] += 1.0
    strict, item = hierarchical(), hierarchical(token_mask="item")
    old, new = encode(strict, parts)[1], encode(strict, other)[1]
    np.testing.assert_array_equal(old[0, 2, 0], new[0, 2, 0])
    assert not np.allclose(old[0, 2, 1:], new[0, 2, 1:])
    old, new = encode(item, parts)[1], encode(item, other)[1]
    assert not np.allclose(old[0, 2, 0], new[0, 2, 0])


def test_padding_changes_nothing(encoder):
    parts = history()
    wider = {}
    for name, values in parts.items():
        junk = RNG.integers(3, 6, [3, 2, *values.shape[2:]]).astype(values.dtype)
        wider[name] = np.concatenate([junk, values], axis=1)
    wider["mask"][:, :2] = False
    for old, new in zip(encode(encoder, parts), encode(encoder, wider), strict=True):
        real = parts["mask"]
        np.testing.assert_allclose(new[:, 2:][real], old[real], rtol=1e-4, atol=1e-5)
    assert (encode(encoder, wider)[0][~wider["mask"]] == 0).all()


def test_a_batch_equals_its_rows_and_a_sequence_its_beginnings(encoder):
    parts = history()
    together = encode(encoder, parts)
    for row in range(3):
        alone = encode(encoder, {k: v[row : row + 1] for k, v in parts.items()})
        for one, all_rows in zip(alone, together, strict=True):
            real = parts["mask"][row]
            np.testing.assert_allclose(
                one[0][real], all_rows[row][real], rtol=1e-4, atol=1e-5
            )
    start = encode(encoder, {k: v[:1, :3] for k, v in parts.items()})
    np.testing.assert_allclose(start[0][0], together[0][0, :3], rtol=1e-4, atol=1e-5)


def randomize_owners(layer, owners=(0, 1, FREE)):
    for parameter in layer.owned_parameters("query"):
        choice = (0,) if parameter.role == "bias" else owners
        shape = parameter.owner.shape.as_list()
        parameter.owner.assign(RNG.choice(np.array(choice, np.int8), shape))


def test_a_pass_uses_its_own_entries_alone(encoder):
    parts = history()
    encode(encoder, parts)
    randomize_owners(encoder)
    first, second = encode(encoder, parts, 0)[0], encode(encoder, parts, 1)[0]
    assert not np.allclose(first, second)
    for parameter in encoder.owned_parameters("query"):
        later = parameter.owner.numpy() > 0
        value = parameter.variable.numpy()
        parameter.variable.assign(np.where(later, np.nan, value))
    np.testing.assert_array_equal(encode(encoder, parts, 0)[0], first)
    for parameter in encoder.owned_parameters("query"):
        value = parameter.variable.numpy()
        parameter.variable.assign(np.where(np.isnan(value), 0.0, value))
    np.testing.assert_allclose(encode(encoder, parts)[0], first, rtol=1e-4, atol=1e-5)


def test_gradients_flow_everywhere(encoder):
    parts = history((5, 5, 5))
    encode(encoder, parts)
    owned = encoder.owned_parameters("query")
    assert {p.variable.ref() for p in owned} == {
        v.ref() for v in encoder.trainable_variables
    }
    assert len({p.name for p in owned}) == len(owned)
    assert len({v.name for v in encoder.variables}) == len(encoder.variables)
    tokens = tf.constant(parts["tokens"])
    if getattr(getattr(encoder, "settings", None), "num_tokens", 1) == 1:
        tokens = tokens[:, :, :1]
    with tf.GradientTape() as tape:
        tape.watch(tokens)
        result = encoder(
            History(tokens, *(parts[k] for k in ("mask", "events", "gaps")))
        )
        target = tf.random.stateless_normal(tf.shape(result.items), [1, 2])
        loss = tf.reduce_sum(result.items * target)
    variables = [p.variable for p in owned]
    gradients = tape.gradient(loss, [tokens, *variables])
    for name, gradient in zip(
        ["tokens", *(p.name for p in owned)], gradients, strict=True
    ):
        assert gradient is not None, name
        values = tf.convert_to_tensor(gradient).numpy()
        assert np.isfinite(values).all() and np.abs(values).max() > 0, name


def test_save_and_load(encoder, request, tmp_path):
    parts = history()
    expected = encode(encoder, parts)
    path = tf.train.Checkpoint(encoder=encoder).write(str(tmp_path / "checkpoint"))
    other = ENCODERS[request.node.callspec.params["encoder"]]()
    assert not np.allclose(encode(other, parts)[0], expected[0])
    tf.train.Checkpoint(encoder=other).read(path).assert_consumed()
    for old, new in zip(expected, encode(other, parts), strict=True):
        np.testing.assert_array_equal(old, new)


def test_configuration_round_trip(encoder):
    again = type(encoder).from_config(encoder.get_config())
    assert again.get_config() == encoder.get_config()


def test_items_start_as_the_sum_of_their_tokens_by_the_root_of_the_width():
    parts = history()
    (items,) = encode(hierarchical(token_layers=0, item_layers=0), parts)
    total = WIDTH**0.5 * parts["tokens"].sum(axis=2)
    expected = np.where(parts["mask"][:, :, None], total, 0.0)
    np.testing.assert_allclose(items, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("token_layers", "item_layers"), [(0, 2), (1, 2), (1, 0)])
def test_embeddings_are_dropped_once(token_layers, item_layers):
    encoder = hierarchical(token_layers=token_layers, item_layers=item_layers)
    stacks = [encoder.token_blocks, encoder.item_blocks]
    dropping = [stack.drop_inputs for stack in stacks if stack is not None]
    assert sum(dropping) == 1 and dropping[0]


def test_a_gated_unit_by_hand():
    layer = RecurrentEncoder(1)
    parts = {"tokens": np.full([1, 2, 1, 1], 0.5, np.float32), "mask": [[True, True]]}
    encode(layer, parts)
    layer.inputs[0].kernel.assign([[1.0, 2.0, 3.0]])
    layer.states[0].kernel.assign([[-1.0, 0.5, 2.0]])
    layer.states[0].bias.assign([0.1, 0.2, 0.3])

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    state, expected = 0.0, []
    for _ in range(2):
        keep = sigmoid(0.5 - state + 0.1)
        reset = sigmoid(1.0 + 0.5 * state + 0.2)
        new = np.tanh(1.5 + reset * (2 * state + 0.3))
        state = keep * state + (1 - keep) * new
        expected.append([state])
    np.testing.assert_allclose(encode(layer, parts)[0][0], expected, rtol=1e-5)
