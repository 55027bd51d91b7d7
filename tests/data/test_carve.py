"""Carving a test part from training events."""

import polars as pl
import pytest

from tfcsmf.data.carve import carve_test
from tfcsmf.errors import DataError


def log_of(rows):
    names = ("user_id", "item_id", "event", "split")
    return pl.DataFrame(rows, schema=list(names[: len(rows[0])]), orient="row")


def many(users=30, items=8):
    rows = []
    for user in range(users):
        for item in range(items):
            rows.append((f"u{user}", f"i{item}", "view", "train"))
        rows.append((f"u{user}", "i0", "buy", "train"))  # bought and viewed
        rows += [(f"u{user}", f"b{n}", "buy", "train") for n in range(user % 3)]
        rows.append((f"u{user}", "t", "buy", "test"))
    return log_of(rows)


def test_held_out_pairs_are_met_in_no_other_way():
    carved = carve_test(many(), {"view": 3, "buy": 1})
    assert "t" not in carved["item_id"].to_list()  # the log's own test rows
    held, left = (carved.filter(pl.col("split") == part) for part in ("test", "train"))
    keys = ["user_id", "item_id"]
    assert held.join(left, on=keys, how="semi").is_empty()
    per_user = held.group_by("user_id", "event").len()
    assert per_user.filter(pl.col("event") == "view")["len"].to_list() == [3] * 30
    buys = per_user.filter(pl.col("event") == "buy")
    # Only users with two buys of their own can spare one.
    assert set(buys["user_id"]) == {f"u{user}" for user in range(30) if user % 3 == 2}
    assert buys["len"].to_list() == [1] * 10


def test_rows_stay_in_their_order_and_the_choice_goes_by_ids_alone():
    whole = many()
    train = whole.filter(pl.col("split") == "train")
    carved = carve_test(whole, {"view": 2})
    assert carved.drop("split").equals(train.drop("split"))
    again = carve_test(whole.reverse(), {"view": 2})
    assert again.sort(again.columns).equals(carved.sort(carved.columns))
    drawn = carved.filter(pl.col("split") == "test")["item_id"].n_unique()
    assert drawn > 2  # not the same items for everybody


def test_a_log_without_a_split_is_all_training():
    carved = carve_test(many().drop("split"), {"buy": 1})
    assert set(carved["split"]) == {"train", "test"}


@pytest.mark.parametrize(
    ("take", "message"),
    [({"vieww": 1}, "view"), ({"view": 99}, "Take fewer")],
)
def test_what_cannot_be_carved_is_an_error(take, message):
    with pytest.raises(DataError, match=message):
        carve_test(many(), take)
    with pytest.raises(DataError, match="item_id"):
        carve_test(many().drop("item_id"), {"view": 1})
