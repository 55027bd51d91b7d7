"""Reading tables: what is accepted, in which order, and every refusal."""

import datetime
import gzip

import polars as pl
import pytest

from tfcsmf.data.reader import read_table, scan_table
from tfcsmf.errors import DataError

FRAME = pl.DataFrame({"user_id": ["a", "b"], "n": [1, 2]})


def test_folder_is_read_recursively_in_sorted_order(tmp_path):
    (tmp_path / "part=2").mkdir()
    FRAME.with_columns(n=pl.lit(9)).write_parquet(tmp_path / "part=2" / "x.parquet")
    FRAME.write_parquet(tmp_path / "a.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".x.parquet").write_text("junk")
    (tmp_path / "_tmp").mkdir()
    FRAME.write_parquet(tmp_path / "_tmp" / "a.parquet")
    table = read_table(str(tmp_path), "events")
    assert table["n"].to_list() == [1, 2, 9, 9]
    assert table["part"].to_list() == [None, None, 2, 2]
    assert table.columns == ["user_id", "n", "part"]


@pytest.mark.parametrize("read", [read_table, lambda *a: scan_table(*a).collect()])
def test_folders_in_the_manner_of_hive_are_columns(tmp_path, read):
    for day, split in (("2024-01-30", "train"), ("2024-01-31", "a%2Fb")):
        folder = tmp_path / "x=1" / "log" / f"date={day}" / f"split={split}" / "n=5"
        folder.mkdir(parents=True)
        FRAME.write_parquet(folder / "part-0.parquet")
    days = [datetime.date(2024, 1, 30), datetime.date(2024, 1, 31)]
    # A column of the file goes first; folders above the path are not looked at.
    expected = pl.DataFrame(
        {
            "user_id": ["a", "b"] * 2,
            "n": [1, 2] * 2,
            "date": [days[0]] * 2 + [days[1]] * 2,
            "split": ["train"] * 2 + ["a/b"] * 2,
        }
    )
    log = tmp_path / "x=1" / "log"
    assert read(str(log), "events").equals(expected)
    assert read(str(log / "date=*" / "**" / "*.parquet"), "events").equals(expected)
    one = read(str(log / "date=2024-01-31"), "events")
    assert one.columns == ["user_id", "n", "split"]
    (file,) = (log / "date=2024-01-31").glob("*/*/*")
    assert read(str(file), "events").columns == ["user_id", "n"]


def test_folders_of_csv_files_are_columns(tmp_path):
    for year in ("2024", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"year={year}").mkdir()
        (tmp_path / f"year={year}" / "x.csv").write_text("a,b\n1,x\n")
    table = read_table(str(tmp_path), "items")
    assert table.rows() == [(1, "x", 2024), (1, "x", None)]


def test_glob_and_column_order(tmp_path):
    FRAME.write_parquet(tmp_path / "b.parquet")
    FRAME.select("n", "user_id").write_parquet(tmp_path / "c.parquet")
    table = read_table(str(tmp_path / "*.parquet"), "events")
    assert table.rows() == [("a", 1), ("b", 2)] * 2


def test_integer_widths_may_differ_between_files(tmp_path):
    FRAME.with_columns(pl.col("n").cast(pl.Int32)).write_parquet(tmp_path / "1.parquet")
    FRAME.write_parquet(tmp_path / "2.parquet")
    assert read_table(str(tmp_path), "events")["n"].to_list() == [1, 2, 1, 2]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_csv_types(tmp_path, name):
    text = "id,n,x,day,s,e\n007,1,1.5,2024-01-31,a,\n12,,2,2024-02-01,,\n"
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if "gz" in name else data)
    table = read_table(str(tmp_path / name), "events")
    assert table["id"].to_list() == ["007", "12"]  # leading zeros survive
    assert table["n"].to_list() == [1, None]
    assert table["x"].to_list() == [1.5, 2.0]
    assert table["day"].dtype == pl.Date
    assert table["s"].to_list() == ["a", None]


def _empty(path):
    (path / "t.parquet").write_bytes(b"")


def _no_rows(path):
    FRAME.head(0).write_parquet(path / "t.parquet")


def _truncated(path):
    FRAME.write_parquet(path / "t.parquet")
    data = (path / "t.parquet").read_bytes()
    (path / "t.parquet").write_bytes(data[: len(data) // 2])


def _truncated_gzip(path):
    data = gzip.compress(("a,b\n" + "1,2\n" * 5000).encode())
    (path / "t.csv.gz").write_bytes(data[: len(data) // 2])


def _ragged(path):
    (path / "t.csv").write_text("a,b\n1,2\n1,2,3\n")


def _semicolons(path):
    (path / "t.csv").write_text("a;b\n1;2\n")


def _latin1(path):
    (path / "t.csv").write_bytes("a,b\n1,\xe9\n".encode("latin-1"))


def _mixed(path):
    FRAME.write_parquet(path / "t.parquet")
    FRAME.write_csv(path / "t.csv")


def _columns(path):
    FRAME.write_parquet(path / "s.parquet")
    FRAME.rename({"n": "m"}).write_parquet(path / "t.parquet")


def _types(path):
    FRAME.write_parquet(path / "s.parquet")
    FRAME.with_columns(n=pl.Series([[1], [2]])).write_parquet(path / "t.parquet")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "holds none"),
        (_empty, "t.parquet' is empty"),
        (_no_rows, "should have rows"),
        (_truncated, "t.parquet' cannot be read"),
        (_truncated_gzip, "t.csv.gz' cannot be read"),
        (_ragged, "t.csv' cannot be read"),
        (_semicolons, "commas between its columns. Received: the header 'a;b'"),
        (_latin1, "Write it again in UTF-8"),
        (_mixed, "all Parquet or all CSV"),
        (_columns, r"differ in \['m', 'n'\]"),
        (_types, "same column types"),
    ],
)
def test_refusals(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        read_table(str(tmp_path), "events")


def test_missing_path_and_unknown_extension(tmp_path):
    with pytest.raises(DataError, match="events table .* exists"):
        read_table(str(tmp_path / "none*"), "events")
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(DataError, match="extension '.xlsx'"):
        read_table(str(tmp_path / "t.xlsx"), "events")
