"""Row-sparse optimizers: the stock rules, lazily, and never on frozen entries."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.optimizers import RowAdagrad, RowAdam
from tfcsmf.towers import FREE, OwnedParameter

KINDS = [RowAdam, RowAdagrad]


def owned(variable, owner, role="kernel"):
    owner = tf.Variable(np.asarray(owner, np.int8))
    return OwnedParameter("p", variable, owner, role)


def sparse(rows, values):
    return tf.IndexedSlices(
        tf.constant(values, tf.float32), tf.constant(rows, tf.int64)
    )


@pytest.mark.parametrize(
    ("mine", "stock"),
    [
        (RowAdam(0.05, 0.8, 0.95), tf.keras.optimizers.Adam(0.05, 0.8, 0.95)),
        (RowAdagrad(0.05), tf.keras.optimizers.Adagrad(0.05, 0.1, 1e-7)),
    ],
)
def test_equals_the_stock_optimizer_on_dense_gradients(mine, stock):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape).astype(np.float32) for shape in ([4, 3], [3])]
    ours, theirs = [tf.Variable(s) for s in start], [tf.Variable(s) for s in start]
    for _ in range(6):
        gradients = [tf.constant(rng.normal(size=v.shape), tf.float32) for v in ours]
        mine.apply_gradients(zip(gradients, ours, strict=True))
        stock.apply_gradients(zip(gradients, theirs, strict=True))
    assert int(mine.iterations) == 6
    for a, b, s in zip(ours, theirs, start, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.abs(a.numpy() - s).min() > 1e-4


def numpy_step(kind, table, slots, rows, values, step, decay):
    """One lazy step in float64; sums duplicates."""
    distinct, inverse = np.unique(rows, return_inverse=True)
    g = np.zeros([len(distinct), table.shape[1]])
    np.add.at(g, inverse, values)
    rate, epsilon = 0.1, 1e-7
    if kind is RowAdam:
        m, v = slots
        m[distinct] = 0.9 * m[distinct] + 0.1 * g
        v[distinct] = 0.999 * v[distinct] + 0.001 * g**2
        alpha = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        update = alpha * m[distinct] / (np.sqrt(v[distinct]) + epsilon)
    else:
        (sums,) = slots
        sums[distinct] += g**2
        update = rate * g / (np.sqrt(sums[distinct]) + epsilon)
    table[distinct] -= update + rate * decay * table[distinct]


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_rows_equal_a_numpy_lazy_optimizer(kind, decay):
    rng = np.random.default_rng(1)
    expected = rng.normal(size=[7, 2])
    table = tf.Variable(expected, dtype=tf.float32)
    slots = [np.zeros([7, 2])] * 1 + [np.zeros([7, 2])]
    if kind is RowAdagrad:
        slots = [np.full([7, 2], 0.1)]
    optimizer = kind(0.1, decay=decay)
    untouched = table.numpy()[6]
    for step in range(1, 9):
        rows = rng.integers(0, 6, 5)  # with duplicates; row 6 is never met
        values = rng.normal(size=[5, 2])
        before = table.numpy()
        optimizer.apply_gradients([(sparse(rows, values), table)])
        numpy_step(kind, expected, slots, rows, values, step, decay)
        np.testing.assert_allclose(table, expected, rtol=2e-4, atol=1e-5)
        others = np.setdiff1d(np.arange(7), rows)
        np.testing.assert_array_equal(table.numpy()[others], before[others])
    np.testing.assert_array_equal(table.numpy()[6], untouched)


@pytest.mark.parametrize("kind", KINDS)
def test_decay_is_decoupled_and_spares_biases(kind):
    kernel, bias = tf.Variable([[2.0, -4.0]]), tf.Variable([2.0, -4.0])
    optimizer = kind(0.1, decay=0.5)
    gradients = [tf.zeros([1, 2]), tf.zeros([2])]
    optimizer.apply_gradients(zip(gradients, [kernel, bias], strict=True))
    np.testing.assert_allclose(kernel, [[2 * (1 - 0.05), -4 * (1 - 0.05)]], rtol=1e-6)
    np.testing.assert_array_equal(bias, [2.0, -4.0])


@pytest.mark.parametrize("kind", KINDS)
def test_duplicate_rows_are_summed(kind):
    tables = [tf.Variable(tf.ones([3, 2])) for _ in range(2)]
    gradients = [
        sparse([1, 0, 1], [[1, 2], [3, 4], [5, 6]]),
        sparse([0, 1], [[3, 4], [6, 8]]),
    ]
    for table, gradient in zip(tables, gradients, strict=True):
        optimizer = kind(0.1)
        optimizer.apply_gradients([(gradient, table)])
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_entries_are_bit_equal_whatever_the_slots_and_decay(kind):
    rng = np.random.default_rng(2)
    shape = [6, 4]
    kernel = tf.Variable(rng.normal(size=shape), dtype=tf.float32)
    by_entry = tf.Variable(rng.normal(size=shape), dtype=tf.float32)
    by_column = tf.Variable(rng.normal(size=shape), dtype=tf.float32)
    whole = tf.Variable(rng.normal(size=shape), dtype=tf.float32)
    choice = np.array([0, 1, FREE])
    parameters = [
        owned(kernel, rng.choice(choice, shape)),
        owned(by_entry, rng.choice(choice, shape), "table"),
        owned(by_column, [[0, 1, FREE, 1]], "table"),
        owned(whole, [[0]], "table"),
    ]
    optimizer = kind(0.5, decay=0.4)
    variables = [p.variable for p in parameters]
    optimizer.build(variables)
    optimizer.update_only(parameters)

    @tf.function
    def train(dense, rows, values):
        slices = tf.IndexedSlices(values, rows)
        gradients = [dense, slices, slices, slices]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    for stage in (FREE, 1, FREE):
        optimizer.reset(stage)
        before = [v.numpy() for v in variables]
        for _ in range(25):
            train(
                tf.constant(rng.normal(size=shape), tf.float32),
                tf.constant(rng.integers(0, 6, 8)),
                tf.constant(rng.normal(size=[8, 4]), tf.float32),
            )
        for parameter, old in zip(parameters, before, strict=True):
            mine = np.broadcast_to(parameter.owner.numpy() == stage, shape)
            new = parameter.variable.numpy()
            np.testing.assert_array_equal(new[~mine], old[~mine])
            assert (new[mine] != old[mine]).all()
    # Compiled once for all three owners.
    assert train.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_gradients_do_not_leak_into_frozen_entries(kind, bad):
    variable = tf.Variable(tf.ones([2, 2]))
    table = tf.Variable(tf.ones([3, 2]))
    parameters = [
        owned(variable, [[0, FREE], [0, FREE]]),
        owned(table, [[0, FREE]] * 3, "table"),
    ]
    optimizer = kind(0.1, decay=0.1)
    optimizer.update_only(parameters)
    gradients = [tf.constant([[bad, 1.0], [1.0, 1.0]]), sparse([1], [[bad, 1.0]])]
    for _ in range(2):
        optimizer.apply_gradients(zip(gradients, [variable, table], strict=True))
    np.testing.assert_array_equal(variable.numpy()[:, 0], 1.0)
    np.testing.assert_array_equal(table.numpy()[:, 0], 1.0)
    assert np.isfinite(variable).all() and (variable.numpy()[:, 1] < 1).all()
    assert np.isfinite(table).all() and table[1, 1] < 1
    # A later stage, for which this entry is free, starts from clean slots.
    optimizer.reset(0)
    optimizer.apply_gradients([(tf.ones([2, 2]), variable)])
    assert np.isfinite(variable).all() and (variable.numpy()[:, 0] < 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_reset_returns_to_the_initial_state(kind):
    variable, table = tf.Variable(tf.ones([2, 2])), tf.Variable(tf.ones([3, 2]))
    parameters = [owned(variable, [[FREE, 0]] * 2), owned(table, [[FREE, 0]], "table")]
    optimizer = kind(0.1)
    optimizer.build([variable, table])
    optimizer.update_only(parameters)
    initial = [s.numpy() for s in optimizer.state()]
    compiled = tf.function(
        lambda: optimizer.apply_gradients(
            [(tf.fill([2, 2], 2.0), variable), (sparse([1], [[3, 3]]), table)]
        )
    )
    compiled()
    first = variable.numpy(), table.numpy()
    compiled()
    assert all(
        (s.numpy() != i).any() for s, i in zip(optimizer.state(), initial, strict=True)
    )
    optimizer.reset(0)
    assert int(optimizer.updatable_owner) == 0 and int(optimizer.iterations) == 0
    for slot, start in zip(optimizer.state(), initial, strict=True):
        np.testing.assert_array_equal(slot, start)
    before = variable.numpy(), table.numpy()
    compiled()  # the same function now moves the entries of owner 0 ...
    np.testing.assert_array_equal(variable.numpy()[:, 0], before[0][:, 0])
    # ... and by the very first step of a fresh optimizer.
    np.testing.assert_array_equal(variable.numpy()[:, 1], first[0][:, 0])
    np.testing.assert_array_equal(table.numpy()[1, 1], first[1][1, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_state_carries_a_run_over(kind):
    rng = np.random.default_rng(5)
    gradients = [tf.constant(rng.normal(size=[3, 2]), tf.float32) for _ in range(4)]
    through = tf.Variable(tf.ones([3, 2]))
    optimizer = kind(0.1)
    for gradient in gradients:
        optimizer.apply_gradients([(gradient, through)])

    halves = tf.Variable(tf.ones([3, 2]))
    first, second = kind(0.1), kind(0.1)
    for gradient in gradients[:2]:
        first.apply_gradients([(gradient, halves)])
    second.build([halves])
    for old, new in zip(first.state(), second.state(), strict=True):
        new.assign(old)
    for gradient in gradients[2:]:
        second.apply_gradients([(gradient, halves)])
    np.testing.assert_array_equal(through, halves)


@pytest.mark.parametrize(
    "optimizer",
    [RowAdam(0.02, 0.7, 0.9, 1e-5, 0.3, "a"), RowAdagrad(0.02, 0.2, 1e-5, 0.3, "b")],
)
def test_config_round_trip(optimizer):
    config = optimizer.get_config()
    copy = type(optimizer).from_config(config)
    assert copy.get_config() == config
    assert config["learning_rate"] == pytest.approx(0.02) and config["decay"] == 0.3
