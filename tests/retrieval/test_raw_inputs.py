import keyword

import numpy as np
import tensorflow as tf

from tfcsmf.data.rows import NUM_RESERVED, UNKNOWN
from tfcsmf.retrieval.raw_inputs import ItemTable, argument_names


def test_argument_names_are_distinct_identifiers():
    names = ["a b", "a-b", "A_b", "class", "7", "", "_x", "é", "objective_weights"]
    arguments = argument_names(names)
    values = list(arguments.values())
    assert all(v.isidentifier() and not keyword.iskeyword(v) for v in values)
    assert len({value.lower() for value in values}) == len(names)
    assert arguments["objective_weights"] != "objective_weights"
    assert argument_names(["user_id", "history_view"]) == {
        "user_id": "user_id",
        "history_view": "history_view",
    }


def test_histories_keep_the_last_known_items_oldest_first(shop):
    ids = [str(name) for name in shop.log.items.ids]
    history = ["nobody", *ids[:3], "", "nobody", *ids[3:7], "", "nobody"]
    raw = {
        "user_id": tf.constant(["u1"]),
        "age": tf.constant([np.nan]),
        "city": tf.constant([""]),
        **{
            f"history_{event}": tf.constant([history])
            for event in shop.log.history_events
        },
    }
    inputs = shop.serving.query_inputs(raw)
    rows = inputs["history_add to cart"].numpy()[0]
    known = rows[rows > 0] - NUM_RESERVED
    assert known.tolist() == [2, 3, 4, 5, 6]  # history_length = 5


def test_ids_become_positions_and_rows(shop):
    table = ItemTable(shop.log.items)
    ids = tf.constant([[str(shop.log.items.ids[4]), "", "nobody"]])
    assert table.positions(ids).numpy().tolist() == [[4, -1, -1]]
    assert table.rows(ids, UNKNOWN).numpy().tolist() == [
        [4 + NUM_RESERVED, UNKNOWN, UNKNOWN]
    ]
    names = table.names(tf.constant([4, -1])).numpy().tolist()
    assert names == [str(shop.log.items.ids[4]).encode(), b""]
