"""Public file formats, written by hand, as the event logs they should become."""

import polars as pl
import pytest

from tfcsmf.config import Config
from tfcsmf.data.datasets import event_log
from tfcsmf.data.prepare import prepare
from tfcsmf.errors import DataError


def _write(folder, encoding="utf-8", **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        path = folder / name.replace("__", ".")
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return folder


def _read(name, folder, tmp_path):
    """The tables as rows: events as they are, entities by id."""
    files = event_log(name, folder, tmp_path / "cache")
    tables = [pl.read_parquet(files.events)]
    for path in (files.items, files.users):
        table = None if path is None else pl.read_parquet(path)
        if table is not None:
            table = {row[0]: row[1:] for row in table.rows()}
        tables.append(table)
    return files, *tables


def test_taobao_userbehavior(tmp_path):
    lines = [
        "1,2268318,2520377,pv,1511544070",
        "1,2333346,2520771,cart,1511561733",
        "1,2333346,2520771,buy,1511561734",
        "100,2268318,2520377,fav,1512316799",
        "100,2576651,149192,pv,1512316800",  # the first second after the week
        "100,2576651,149192,pv,-1",
    ]
    folder = _write(tmp_path / "raw", UserBehavior__csv=lines)
    files, events, items, users = _read("taobao_userbehavior", folder, tmp_path)
    assert files.objectives == ("pv", "cart", "buy")
    assert events.columns == ["user_id", "item_id", "event", "timestamp"]
    assert events.rows() == [
        (1, 2268318, "pv", 1511544070),
        (1, 2333346, "cart", 1511561733),
        (1, 2333346, "buy", 1511561734),
        (100, 2268318, "fav", 1512316799),
    ]
    assert items == {2268318: ("2520377",), 2333346: ("2520771",), 2576651: ("149192",)}
    assert users is None


def test_retailrocket(tmp_path):
    folder = _write(
        tmp_path / "raw" / "archive",
        events__csv=[
            "timestamp,visitorid,event,itemid,transactionid",
            "1433221332117,257597,view,355908,",
            "1433224214164,257597,addtocart,355908,",
            "1433224230000,257597,transaction,355908,4000",
            "1433221999827,111016,view,318965,",
        ],
        item_properties_part1__csv=[
            "timestamp,itemid,property,value",
            "1435460400000,355908,categoryid,1338",
            "1433041200000,355908,categoryid,209",  # earlier, although further down
            "1441508400000,206783,888,1116713 960601 n277.200",
        ],
        item_properties_part2__csv=[
            "timestamp,itemid,property,value",
            "1433041200000,318965,categoryid,5",
            "1433041200000,318965,available,0",
        ],
        category_tree__csv=["categoryid,parentid", "209,1016", "1016,213", "213,"],
    )
    files, events, items, users = _read("retailrocket", folder.parent, tmp_path)
    assert files.objectives == ("view", "addtocart", "transaction")
    assert events.rows()[2] == (257597, 355908, "transaction", 1433224230000)
    assert events.height == 4
    # 209 < 1016 < 213; the tree does not know 5.
    assert items == {318965: ("5", None), 355908: ("209", "213")}
    assert users is None


KUAIRAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,"
    "is_forward,is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,"
    "comment_stay_time,is_profile_enter,is_rand,tab"
)
KUAIRAND_USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,"
    "friend_user_num,friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{number}" for number in range(18))
)


def test_kuairand(tmp_path):
    end = ",15,10,0,0,0,0,1"
    folder = _write(
        tmp_path / "raw" / "KuaiRand-1K" / "data",
        log_standard_4_08_to_4_21_1k__csv=[
            KUAIRAND_LOG,
            "0,7,20220421,400,1650485801301,1,1,0,0,0,0,0" + end,
        ],
        log_standard_4_22_to_5_08_1k__csv=[
            KUAIRAND_LOG,
            "3,8,20220422,500,1650585801301,0,0,0,0,0,1,0" + end,
        ],
        log_random_4_22_to_5_08_1k__csv=[
            KUAIRAND_LOG,
            "3,9,20220423,500,1650685801301,1,0,0,0,0,0,0,15,10,0,0,0,1,1",
        ],
        user_features_1k__csv=[
            KUAIRAND_USERS,
            '0,full_active,0,0,1,5,"(0,10]",312,"[100,1k)",0,0,3624,730+,'
            + ",".join(["1", "2", "2", "1153"] + ["0"] * 14),
        ],
        video_features_basic_1k__csv=[
            "video_id,author_id,video_type,upload_dt,upload_type,visible_status,"
            "video_duration,server_width,server_height,music_id,music_type,tag",
            '7,441,NORMAL,2020-07-08,ShortImport,1,17200.0,720,1280,98,4,"12,65"',
            "8,442,AD,2020-07-08,ShortImport,1,,720,1280,99,,",
        ],
    )
    root = folder.parents[1]
    files, events, items, users = _read("kuairand_1k", root, tmp_path)
    assert files.objectives == ("exposure", "click", "long_view", "like")
    assert events.rows() == [
        (0, 7, "exposure", 1650485801301),
        (0, 7, "click", 1650485801301),
        (0, 7, "like", 1650485801301),
        (3, 8, "exposure", 1650585801301),
    ]
    assert items[7] == ("441", "NORMAL", "ShortImport", 17200.0, "4", ["12", "65"])
    assert items[8][3:] == (None, None, None)
    assert users[0][:6] == ("full_active", "0", "0", "1", "(0,10]", "[100,1k)")
    assert users[0][-15] == "1153"  # onehot_feat3


def _features(*values):
    return "\x01".join(f"{field}\x02{code}\x03{value}" for field, code, value in values)


def test_ali_ccp_as_published(tmp_path):
    item = ("205", 9041437, "1.0"), ("206", 77, "1.0"), ("216", 5, "1.0")
    other = ("2051", 3, "1.0"), ("205", 88, "1.0"), ("853", 4, "2.3")
    user = ("101", 31319, "1.0"), ("121", 3438658, "1.0"), ("109_14", 452, "0.69315")
    rows = {
        "sample_skeleton_train": [
            f"1,0,0,aa,3,{_features(*item)}",
            f"2,1,1,aa,3,{_features(*other)}",
            f"3,0,1,aa,3,{_features(*other)}",  # bought, but not clicked
        ],
        "common_features_train": [f"aa,3,{_features(*user)}"],
        "sample_skeleton_test": [f"4,1,0,bb,3,{_features(*item)}"],
        "common_features_test": [f"bb,1,{_features(('101', 4, '1.0'))}"],
    }
    for name, lines in rows.items():
        folder = tmp_path / "raw" / f"sample_{name.split('_')[-1]}"
        _write(folder, **{f"{name}__csv": lines})
    files, events, items, users = _read("ali_ccp", tmp_path / "raw", tmp_path)
    assert files.objectives == ("exposure", "click", "purchase")
    assert events.rows() == [
        (31319, 9041437, "exposure", "train"),
        (31319, 88, "exposure", "train"),
        (31319, 88, "click", "train"),
        (31319, 88, "purchase", "train"),
        (31319, 88, "exposure", "train"),
        (4, 9041437, "exposure", "test"),
        (4, 9041437, "click", "test"),
    ]
    assert items == {9041437: ("77", None, None, "5"), 88: (None,) * 4}
    assert users == {31319: ("3438658", *[None] * 7), 4: (None,) * 8}


def test_ali_ccp_with_common_features_of_another_download(tmp_path):
    item, user = _features(("205", 9, "1.0")), _features(("101", 4, "1.0"))
    folder = _write(
        tmp_path / "raw",
        sample_skeleton_train__csv=[f"1,0,0,aa,1,{item}"],
        common_features_train__csv=[f"cc,1,{user}"],
        sample_skeleton_test__csv=[f"4,1,0,bb,1,{item}"],
        common_features_test__csv=[f"bb,1,{user}"],
    )
    with pytest.raises(DataError, match="should have a user_id. Received: 1 of 3"):
        event_log("ali_ccp", folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_ali_ccp_sample_rows(shared_data, tmp_path):
    folder = shared_data("ali_ccp_sample")
    _, events, items, _ = _read("ali_ccp", folder, tmp_path)
    names = ("train", "val", "test")
    rows = [pl.read_csv(folder / f"ali_ccp_{name}_sample.csv") for name in names]
    rows = pl.concat(rows).filter(pl.col("205") != 0)
    counts = dict(events["event"].value_counts().rows())
    assert counts == {
        "exposure": rows.height,
        "click": rows["click"].sum(),
        "purchase": rows["purchase"].sum(),
    }
    assert set(items) == set(rows["205"])
    assert set(events["split"]) == {"train", "valid", "test"}


# The item file: fields 19, 34, 35, 36, 40, 41 and 42 of 49 are codes.
def _aliexpress_files(folder):
    """Two pages, of which the first shows one item twice and another once."""
    item = [f"0.{place:02d}" for place in range(2, 49)]
    for place in (19, 34, 35, 36, 40, 41, 42):
        item[place - 2] = str(place)
    other = [*item[:-1], "0.99"]
    user = [str(place) for place in range(2, 9)]
    user += [f"0.{place:02d}" for place in range(9, 32)] + ["32", "33"]
    join = ",".join
    return _write(
        folder,
        nl_user_train__csv=[join(["5", *user])],
        nl_item_train__csv=[
            join(["5", *item, "2"]),
            join(["5", *other, "1"]),
            join(["5", *item, "0"]),
        ],
        nl_user_test__csv=[join(["5", *user])],
        nl_item_test__csv=[join(["5", *other, "0"])],
    )


def test_aliexpress_as_published(tmp_path):
    folder = _aliexpress_files(tmp_path / "raw" / "AliExpress_NL")
    files, events, items, users = _read("aliexpress_nl", folder.parent, tmp_path)
    assert files.objectives == ("exposure", "click", "conversion")
    first, second = dict.fromkeys(events["item_id"])
    assert events.rows() == [
        ("train_5", first, "exposure", "train"),
        ("train_5", first, "click", "train"),
        ("train_5", first, "conversion", "train"),
        ("train_5", second, "exposure", "train"),
        ("train_5", second, "click", "train"),
        ("train_5", first, "exposure", "train"),
        ("test_5", second, "exposure", "test"),
    ]
    assert items[first][:7] == ("19", "34", "35", "36", "40", "41", "42")
    # The 40 other fields in file order, from 2 to 48.
    assert items[first][7:9] == pytest.approx((0.02, 0.03))
    assert items[first][-1] == pytest.approx(0.48)
    assert items[second][-1] == pytest.approx(0.99)
    assert users["test_5"][:9] == ("2", "3", "4", "5", "6", "7", "8", "32", "33")
    assert users["test_5"][9:] == pytest.approx([place / 100 for place in range(9, 32)])


def test_aliexpress_joined_gives_what_the_published_files_give(tmp_path):
    published = _aliexpress_files(tmp_path / "published")
    joined = tmp_path / "joined"
    codes = [19, 34, 35, 36, 40, 41, 42]
    for split in ("train", "test"):
        user = pl.read_csv(published / f"nl_user_{split}.csv", has_header=False)
        item = pl.read_csv(published / f"nl_item_{split}.csv", has_header=False)
        user.columns = [f"user_{place}" for place in range(1, 34)]
        item.columns = [f"item_{place}" for place in range(1, 50)]
        rows = item.join(user, left_on="item_1", right_on="user_1")
        coded = [f"user_{place}" for place in [*range(2, 9), 32, 33]]
        coded += [f"item_{place}" for place in codes]
        numbers = [f"user_{place}" for place in range(9, 32)]
        numbers += [f"item_{place}" for place in range(2, 49) if place not in codes]
        names = {name: f"categorical_{i}" for i, name in enumerate(coded, 1)}
        names |= {name: f"numerical_{i}" for i, name in enumerate(numbers, 1)}
        joined.mkdir(exist_ok=True)
        rows.select(
            pl.col("item_1").alias("search_id"),
            *(pl.col(name).alias(alias) for name, alias in names.items()),
            (pl.col("item_49") > 0).cast(pl.Int8).alias("click"),
            (pl.col("item_49") > 1).cast(pl.Int8).alias("conversion"),
        ).write_csv(joined / f"{split}.csv")
    _, *expected = _read("aliexpress_nl", published, tmp_path)
    _, *received = _read("aliexpress_nl", joined, tmp_path)
    assert received[0].equals(expected[0])
    assert received[1:] == expected[1:]


def test_aliexpress_sample_rows_are_prepared(shared_data, tmp_path):
    folder = tmp_path / "AliExpress_NL"
    folder.mkdir()
    for split in ("train", "test"):
        source = shared_data("aliexpress_sample") / f"aliexpress_{split}_sample.csv"
        (folder / f"{split}.csv").write_bytes(source.read_bytes())
    files, events, items, users = _read("aliexpress_nl", tmp_path, tmp_path)
    rows = [pl.read_csv(folder / f"{split}.csv") for split in ("train", "test")]
    counts = dict(events["event"].value_counts().rows())
    assert counts["exposure"] == rows[0].height + rows[1].height == 120
    assert counts["click"] == rows[0]["click"].sum() + rows[1]["click"].sum()
    assert len(users) == sum(part["search_id"].n_unique() for part in rows)
    paths = {"events": files.events, "items": files.items, "users": files.users}
    data = {name: str(path) for name, path in paths.items()}
    objectives = {"objectives": ["exposure", "click"]}
    log = prepare(Config.from_dict({"data": data, "cascade": objectives}))
    assert log.items.size == len(items)
    assert len(log.items.encoders) == 47 and len(log.users.encoders) == 32
    assert len(log.test["exposure"].users) > 0


MOVIES = {
    1: ("Toy Story (1995)", ["Animation", "Children", "Comedy"]),
    2: ("Misérables, Les: A (Story) (1958)", ["Drama"]),
}
RATINGS = [(1, 1, 5, 978300760), (1, 2, 3, 978302109), (2, 1, 4, 978301968)]
LEVELS = [
    (1, 1, "rate", 978300760),
    (1, 1, "like", 978300760),
    (1, 1, "love", 978300760),
    (1, 2, "rate", 978302109),
    (2, 1, "rate", 978301968),
    (2, 1, "like", 978301968),
]
FILMS = {1: (["Animation", "Children", "Comedy"], 1995.0), 2: (["Drama"], 1958.0)}


def _ml_1m(folder):
    movies = [
        f"{key}::{title}::{'|'.join(genres)}".replace("Children", "Children's")
        for key, (title, genres) in MOVIES.items()
    ]
    return _write(
        folder,
        encoding="latin-1",
        ratings__dat=["::".join(map(str, row)) for row in RATINGS],
        movies__dat=movies,
        users__dat=["1::F::1::10::48067", "2::M::56::16::70072-123"],
    )


def _ml_100k(folder):
    flags = {1: "0|0|0|1|1|1" + "|0" * 13, 2: "0" + "|0" * 7 + "|1" + "|0" * 10}
    items = [
        f"{key}|{title}|01-Jan-1995||http://us.imdb.com/M/title|{flags[key]}"
        for key, (title, _) in MOVIES.items()
    ]
    return _write(
        folder,
        encoding="latin-1",
        **{"u__data": ["\t".join(map(str, row)) for row in RATINGS]},
        **{"u__item": items, "u__user": ["1|24|F|technician|85711", "2|53|M|other|9"]},
    )


def _ml_25m(folder):
    movies = [f'{key},"{title}",{"|".join(g)}' for key, (title, g) in MOVIES.items()]
    movies.append("3,Untitled,(no genres listed)")
    return _write(
        folder,
        ratings__csv=["userId,movieId,rating,timestamp"]
        + [f"{user},{item},{rating}.0,{time}" for user, item, rating, time in RATINGS],
        movies__csv=["movieId,title,genres", *movies],
    )


def test_movielens_1m(tmp_path):
    _ml_1m(tmp_path / "raw" / "ml-1m")
    files, events, items, users = _read("movielens_1m", tmp_path / "raw", tmp_path)
    assert files.objectives == ("rate", "like", "love")
    assert events.rows() == LEVELS
    assert items == FILMS
    assert users == {1: ("F", 1.0, "K-12 student"), 2: ("M", 56.0, "self-employed")}


def test_movielens_100k(tmp_path):
    folder = _ml_100k(tmp_path / "raw")
    _, events, items, users = _read("movielens_100k", folder, tmp_path)
    assert events.rows() == LEVELS
    assert items == FILMS
    assert users == {1: ("F", 24.0, "technician"), 2: ("M", 53.0, "other")}


def test_movielens_25m(tmp_path):
    folder = _ml_25m(tmp_path / "raw")
    _, events, items, users = _read("movielens_25m", folder, tmp_path)
    assert events.rows() == LEVELS
    assert items == FILMS | {3: ([], None)}
    assert users is None


@pytest.mark.parametrize(
    ("name", "write", "size"),
    [("movielens_1m", _ml_1m, "1m"), ("movielens_100k", _ml_100k, "100k")],
)
def test_movielens_through_tensorflow_datasets(
    tmp_path, monkeypatch, name, write, size
):
    """Its own builder runs, on files put where it would download them."""
    pytest.importorskip("importlib_resources", reason="tensorflow-datasets needs it")
    import tensorflow_datasets as tfds

    archive = tmp_path / "archive"
    write(archive / f"ml-{size}")
    asked = []

    def download(self, url):
        asked.append(url)
        return str(archive)

    manager = tfds.download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", download)
    root = tmp_path / "tfds"
    root.mkdir()
    _, events, items, users = _read(name, root, tmp_path)
    assert asked == [f"https://files.grouplens.org/datasets/movielens/ml-{size}.zip"]
    assert sorted(events.rows()) == sorted(LEVELS)
    _, _, raw_items, raw_users = _read(name, archive, tmp_path)
    assert items == raw_items
    assert users == raw_users
    # The second time it is found as prepared.
    _read(name, root, tmp_path / "again")
    assert len(asked) == 1


def test_folders_of_our_own_schema_are_used_in_place(shared_data, tmp_path):
    folder = shared_data("ecomm")
    for given in (folder, folder.parent):
        files = event_log("ecomm", given, tmp_path / "cache")
        assert files.events == folder / "events.parquet"
        assert files.users == folder / "users.parquet"
        assert files.objectives == ("click", "collect", "cart", "buy")
    assert not (tmp_path / "cache").exists()
