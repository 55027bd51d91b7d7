"""MovieLens: ratings as levels, rated > liked (4 and more) > loved (5).

Read from the archives' own files, from what tensorflow-datasets has prepared in the
data folder, or else downloaded and prepared there by its builder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tfcsmf.data.datasets.sources import Types, scan_bare, scan_named, with_levels
from tfcsmf.data.datasets.spec import DataSet, Files, Layout, Reader, SourceFile, Tables
from tfcsmf.errors import DataError

_LOG = logging.getLogger(__name__)
_LEVELS = {
    "rate": pl.lit(True),
    "like": pl.col("rating") >= 4,
    "love": pl.col("rating") >= 5,
}
# Order of the flags in u.item.
_GENRES = (
    "Unknown|Action|Adventure|Animation|Children|Comedy|Crime|Documentary|Drama|"
    "Fantasy|Film-Noir|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")
# Codes 0 to 20 of the 1m data.
_OCCUPATIONS = (
    "other/not specified|academic/educator|artist|clerical/admin|college/grad student|"
    "customer service|doctor/health care|executive/managerial|farmer|homemaker|"
    "K-12 student|lawyer|programmer|retired|sales/marketing|scientist|self-employed|"
    "technician/engineer|tradesman/craftsman|unemployed|writer"
).split("|")
_USER = ("gender", "age", "occupation")
_BATCH = 65_536


def _tables(
    ratings: pl.LazyFrame, items: pl.LazyFrame, users: pl.LazyFrame | None
) -> Tables:
    events = with_levels(ratings, _LEVELS).select(
        "user_id", "item_id", "event", "timestamp"
    )
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Float32)
    items = items.select("item_id", "genres", year.alias("year")).sort("item_id")
    return Tables(events, items, None if users is None else users.sort("user_id"))


def _read_100k(files: Files, work: Path) -> Tables:
    columns = ("user_id", "item_id", "rating", "timestamp")
    ratings = scan_bare(files["ratings"], dict.fromkeys(columns, pl.Int64), "\t")
    types: Types = {
        **{"item_id": pl.Int64},
        **dict.fromkeys(("title", "released", "video", "url", *_GENRES), pl.String),
    }
    flags = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in _GENRES]
    items = scan_bare(files["items"], types, "|").with_columns(
        genres=pl.concat_list(flags).list.drop_nulls()
    )
    types = {"user_id": pl.Int64, "age": pl.Float32}
    types |= dict.fromkeys(("gender", "occupation", "zip"), pl.String)
    users = scan_bare(files["users"], types, "|")
    return _tables(ratings, items, users.select("user_id", *_USER))


def _read_1m(files: Files, work: Path) -> Tables:
    # Split at every ":", the columns between the two of a "::" are empty.
    columns = ("user_id", "a", "item_id", "b", "rating", "c", "timestamp")
    types: Types = {name: pl.String if len(name) == 1 else pl.Int64 for name in columns}
    ratings = scan_bare(files["ratings"], types, ":")
    # Titles have colons of their own.
    part = pl.col("line").str.extract_groups(r"^(\d+)::(.*)::([^:]*)$")
    items = scan_bare(files["items"], {"line": pl.String}, "\x1f").select(
        part.struct[0].cast(pl.Int64).alias("item_id"),
        part.struct[1].alias("title"),
        genres=_genres(part.struct[2]),
    )
    types = {
        **{"user_id": pl.Int64, "a": pl.String, "gender": pl.String, "b": pl.String},
        **{"age": pl.Float32, "c": pl.String, "code": pl.Int64, "d": pl.String},
        "zip": pl.String,
    }
    users = scan_bare(files["users"], types, ":").with_columns(
        occupation=pl.col("code").replace_strict(
            dict(enumerate(_OCCUPATIONS)), return_dtype=pl.String
        )
    )
    return _tables(ratings, items, users.select("user_id", *_USER))


def _read_csv(files: Files, work: Path) -> Tables:
    types: Types = {
        **{"userId": pl.Int64, "movieId": pl.Int64},
        **{"rating": pl.Float32, "timestamp": pl.Int64},
    }
    ratings = scan_named(files["ratings"], types)
    types = {"movieId": pl.Int64, "title": pl.String, "genres": pl.String}
    items = scan_named(files["items"], types).with_columns(
        genres=_genres(pl.col("genres"))
    )
    names = {"userId": "user_id", "movieId": "item_id"}
    return _tables(ratings.rename(names), items.rename({"movieId": "item_id"}), None)


def _genres(text: pl.Expr) -> pl.Expr:
    return _given(
        text.str.replace("Children's", "Children", literal=True).str.split("|")
    )


def _given(genres: pl.Expr) -> pl.Expr:
    """Empties the list of a movie without genres, which says so in words."""
    known = pl.element() != "(no genres listed)"
    return genres.list.eval(pl.element().filter(known))


def _read_prepared(files: Files, work: Path) -> Tables:
    """Reads what the builder of tensorflow-datasets has prepared."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(files["info"][-1].parent))
    path = work / "ratings.parquet"
    _write(builder, path)
    rows = pl.scan_parquet(path)
    names = rows.collect_schema().names()
    items = rows.group_by("item_id").agg(pl.col("title", "genres").first())
    items = items.with_columns(_given(pl.col("genres")))
    users = None
    if "gender" in names:
        users = rows.group_by("user_id").agg(pl.col(_USER).first())
    return _tables(rows, items, users)


def _write(builder: Any, path: Path) -> None:
    """Writes the rated films with their users and features, batch by batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dataset = builder.as_dataset(split="train", shuffle_files=False)
    genres = np.array(builder.info.features["movie_genres"].feature.names)
    writer = None
    try:
        for batch in dataset.ragged_batch(_BATCH):
            table = pa.table(_columns(batch, genres))
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _columns(batch: Any, genres: np.ndarray) -> dict[str, Any]:
    """Turns a batch of tensors into the columns of a table."""
    import pyarrow as pa

    def text(name: str) -> Any:
        return pa.array(batch[name].numpy(), pa.binary()).cast(pa.string())

    codes = batch["movie_genres"]
    columns = {
        "user_id": text("user_id").cast(pa.int64()),
        "item_id": text("movie_id").cast(pa.int64()),
        "rating": pa.array(batch["user_rating"].numpy()),
        "timestamp": pa.array(batch["timestamp"].numpy()),
        "title": text("movie_title"),
        "genres": pa.ListArray.from_arrays(
            pa.array(codes.row_splits.numpy().astype(np.int32)),
            pa.array(genres[codes.flat_values.numpy()].tolist(), pa.string()),
        ),
    }
    if "user_gender" in batch:
        # The 100k data give the age itself, the 1m data its group only.
        age = "raw_user_age" if "raw_user_age" in batch else "bucketized_user_age"
        columns["gender"] = pa.array(np.where(batch["user_gender"].numpy(), "M", "F"))
        columns["age"] = pa.array(batch[age].numpy().astype(np.float32))
        columns["occupation"] = text("user_occupation_text")
    return columns


def _prepare(size: str) -> Callable[[Path], None]:
    def fetch(root: Path) -> None:
        import tensorflow_datasets as tfds

        _LOG.info("Preparing movielens/%s-ratings with tensorflow-datasets.", size)
        try:
            builder = tfds.builder(f"movielens/{size}-ratings", data_dir=str(root))
            builder.download_and_prepare()
        except Exception as error:  # whatever the network and the disk come up with
            raise DataError(
                f"The data set 'movielens_{size}' should lie in {str(root)!r} or be "
                f"downloaded by tensorflow-datasets. Received: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}. "
                f"Without a network, unpack ml-{size}.zip of "
                f"https://grouplens.org/datasets/movielens/ into {str(root)!r}."
            ) from error

    return fetch


def _movielens(
    size: str, ratings: str, items: str, users: str | None, read: Reader, rows: int
) -> DataSet:
    files = [SourceFile("ratings", ratings), SourceFile("items", items)]
    if users:
        files.append(SourceFile("users", users))
    info = f"movielens/{size}-ratings/*/dataset_info.json"
    return DataSet(
        name=f"movielens_{size}",
        title=f"MovieLens {size}",
        homepage="https://grouplens.org/datasets/movielens/",
        licence="GroupLens' own: research, no redistribution (README of the archive)",
        download=f"Download ml-{size}.zip and unzip it.",
        objectives=tuple(_LEVELS),
        layouts=(
            Layout(tuple(files), read),
            Layout((SourceFile("info", info),), _read_prepared),
        ),
        folders=(f"ml-{size}",),
        published={"rate": rows},
        fetch=_prepare(size),
    )


_DAT = ("ratings.dat", "movies.dat", "users.dat", _read_1m)
_CSV = ("ratings.csv", "movies.csv", None, _read_csv)

MOVIELENS = (
    _movielens("100k", "u.data", "u.item", "u.user", _read_100k, 100_000),
    _movielens("1m", *_DAT, 1_000_209),
    _movielens("20m", *_CSV, 20_000_263),
    _movielens("25m", *_CSV, 25_000_095),
)
