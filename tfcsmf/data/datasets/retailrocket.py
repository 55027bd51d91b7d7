"""RetailRocket: views, carts and transactions of a shop over four and a half months."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tfcsmf.data.datasets.sources import scan_named
from tfcsmf.data.datasets.spec import DataSet, Files, Layout, SourceFile, Tables

_EVENTS = {
    "timestamp": pl.Int64,
    "visitorid": pl.Int64,
    "event": pl.String,
    "itemid": pl.Int64,
}
_PROPERTIES = {
    "timestamp": pl.Int64,
    "itemid": pl.Int64,
    "property": pl.String,
    "value": pl.String,
}
_TREE = {"categoryid": pl.String, "parentid": pl.String}


def _read(files: Files, work: Path) -> Tables:
    events = scan_named(files["events"], _EVENTS).select(
        pl.col("visitorid").alias("user_id"),
        pl.col("itemid").alias("item_id"),
        "event",
        "timestamp",
    )
    if "properties" not in files:
        return Tables(events)
    items = (
        scan_named(files["properties"], _PROPERTIES)
        .filter(pl.col("property") == "categoryid")
        .select(pl.col("itemid").alias("item_id"), "timestamp", category="value")
        # The earliest value: a later one may be of a time that is to be predicted.
        .sort("item_id", "timestamp", "category")
        .unique("item_id", keep="first", maintain_order=True)
        .drop("timestamp")
    )
    if "tree" in files:
        roots = _roots(scan_named(files["tree"], _TREE).collect())
        items = items.join(roots.lazy(), on="category", how="left")
    return Tables(events, items.sort("item_id"))


def _roots(tree: pl.DataFrame) -> pl.DataFrame:
    """The topmost category above every category."""
    parent = tree.select(
        pl.col("categoryid").alias("root_category"), pl.col("parentid").alias("above")
    )
    roots = tree.select(
        pl.col("categoryid").alias("category"),
        pl.col("categoryid").alias("root_category"),
    )
    for _ in range(tree.height):  # by depth: it ends at the deepest category
        above = roots.join(
            parent, on="root_category", how="left", maintain_order="left"
        )["above"]
        if above.null_count() == len(above):
            break
        roots = roots.with_columns(
            pl.coalesce(above, pl.col("root_category")).alias("root_category")
        )
    return roots


RETAILROCKET = DataSet(
    name="retailrocket",
    title="Retailrocket recommender system dataset",
    homepage="https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
    licence="CC BY-NC-SA 4.0",
    download=(
        "Log in to Kaggle, download the archive and unzip it. Without "
        "item_properties_part*.csv and category_tree.csv items have no features."
    ),
    objectives=("view", "addtocart", "transaction"),
    layouts=(
        Layout(
            (
                SourceFile("events", "events.csv"),
                SourceFile("properties", "item_properties_part*.csv", False),
                SourceFile("tree", "category_tree.csv", False),
            ),
            _read,
        ),
    ),
    folders=("archive", "ecommerce-dataset"),
    published={"view": 2_664_312, "addtocart": 69_332, "transaction": 22_457},
)
