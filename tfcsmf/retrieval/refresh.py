"""A new catalogue for an exported model, without training.

The towers and vocabularies of the export stay; all items of a new table are embedded,
an index is built and calibrated, and the next version is published. Items without
training events, and ids the model has never seen, get their vectors from features.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import tensorflow as tf

from tfcsmf.config import RetrievalConfig
from tfcsmf.data.inputs import CANDIDATE_ID
from tfcsmf.data.log import entity_table
from tfcsmf.data.prepared import EntityTable
from tfcsmf.data.reader import read_table
from tfcsmf.data.scalars import as_numbers, as_text
from tfcsmf.data.values import as_tokens, as_vectors
from tfcsmf.errors import DataError, ExportError, nearest
from tfcsmf.files import write_atomic
from tfcsmf.retrieval.exact_index import Index
from tfcsmf.retrieval.export import Exported, export
from tfcsmf.retrieval.exported import QUERIES, ExportedModel
from tfcsmf.retrieval.filters import ItemFilters
from tfcsmf.retrieval.indexes import build_index
from tfcsmf.retrieval.raw_inputs import ItemTable
from tfcsmf.retrieval.serving_model import ENCODING_PARTS, ServingModel
from tfcsmf.retrieval.signatures import Raw

_LOG = logging.getLogger(__name__)
_BATCH = 8192  # items embedded at once
_OLD = "Run pipelines/run_cascade.py again for an export that can be refreshed."


class RefreshedModel(ServingModel):
    """The encoders of an exported model with another catalogue.

    Histories are read with the vocabulary of the export: a new item in a history is an
    unknown one.

    Args:
      model: the loaded export.
      items: the catalogue; `item_id` and the features of the model.
      index: of the catalogue in this order.
      max_k: see `ServingModel`.
      queries: float32 [Q, S, d], see `ServingModel`.
    """

    def __init__(
        self,
        model: ExportedModel,
        items: pl.DataFrame,
        index: Index,
        max_k: int,
        queries: np.ndarray,
    ) -> None:
        tf.Module.__init__(self)
        # Saved signatures may only use what hangs on the model that is saved. The old
        # index does not, so that it is left behind.
        for name in ENCODING_PARTS:
            setattr(self, name, getattr(model.saved_model, name))
        embed_query = model.signatures["embed_query_objectives"]
        embed_candidate = model.signatures["embed_candidate"]
        description = model.description
        self._embed = lambda: (embed_query, embed_candidate)
        self._description = lambda: description
        self._objectives = model.objectives
        ids = items[CANDIDATE_ID].to_numpy()
        self.item_table = ItemTable(EntityTable(ids, 0, (), {}))
        self.index = index
        inputs = description["candidate_inputs"].items()
        names = [name for name, spec in inputs if spec["kind"] == "categorical"]
        self.filters = ItemFilters.of_columns(
            {name: items[name] for name in names}, items.height
        )
        self._max_k = max_k
        # Its query vectors are calibrated already.
        self.scales = tf.ones([len(model.objectives)])
        self.default_weights = tf.constant(description["default_weights"], tf.float32)
        self.calibration_queries = lambda: queries

    def query_vectors(self, raw: Raw) -> tf.Tensor:
        """Returns calibrated query vectors, float [B, S, d]."""
        inputs = self._description()["query_inputs"]
        return self._embed()[0](**_by_argument(raw, inputs))["vectors"]

    def embed_candidate(self, raw: Raw) -> dict[str, tf.Tensor]:
        """Returns candidate vectors; see `ServingModel.embed_candidate`."""
        inputs = self._description()["candidate_inputs"]
        return dict(self._embed()[1](**_by_argument(raw, inputs)))

    def query_specs(self) -> dict[str, tf.TensorSpec]:
        """Returns the type of every query input."""
        return _specs(self._description()["query_inputs"])

    def candidate_specs(self) -> dict[str, tf.TensorSpec]:
        """Returns the type of every candidate input."""
        return _specs(self._description()["candidate_inputs"])

    def describe(self) -> dict[str, Any]:
        """Returns the contents of `cascade.json`."""
        return self._description() | {
            "k": self.index.k,
            "max_k": self.max_k,
            "catalogue": self.index.size,
            "filters": self.describe_filters(),
            "index": self.index.describe(),
        }


def refresh_index(
    model_path: str | os.PathLike[str],
    items: str,
    settings: Mapping[str, Any] | None = None,
    item_id: str = "item_id",
    vectors_path: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Exported:
    """Publishes the newest version of a model once more, for another item table.

    Args:
      model_path: folder of a run or of versions, which gets one more.
      items: Parquet or CSV with all items to list and the model's item features; see
        `read_table`. Items it does not name are dropped.
      settings: fields of `RetrievalConfig`; `k`, `max_k` and `target_recall` default to
        those of the export.
      item_id: the id column.
      vectors_path: where ids and vectors go as Parquet, for other engines.
      seed: of the index.

    Raises:
      DataError: if the table is empty, lacks a feature of the model, or has missing
        or repeated ids.
      ExportError: if the model cannot be loaded or was exported before versions could
        be refreshed.
    """
    model = ExportedModel(model_path)
    queries = _calibration_queries(model)
    table = read_items(items, item_id, model.description["candidate_inputs"])
    _note_changes(model, table)
    vectors = embed_items(model, table)
    if vectors_path is not None:
        write_vectors(vectors_path, table[CANDIDATE_ID], vectors)
    found = model.description["index"]
    defaults = {
        "k": model.k,
        "target_recall": found.get("target_recall", RetrievalConfig().target_recall),
    }
    # Else the catalogue was the limit, or it was exported before there was one.
    if model.description.get("max_k", np.inf) < model.description["catalogue"]:
        defaults["max_k"] = model.description["max_k"]
    retrieval = RetrievalConfig(**(defaults | dict(settings or {})))
    index = build_index(vectors, queries, retrieval, seed)
    refreshed = RefreshedModel(model, table, index, retrieval.max_k, queries)
    return Exported(export(refreshed, model.path.parent), index.describe())


def read_items(
    path: str, item_id: str, inputs: Mapping[str, Mapping[str, Any]]
) -> pl.DataFrame:
    """Reads the id and the features a model needs, `item_id` first.

    Args:
      path: see `read_table`.
      item_id: the id column.
      inputs: `candidate_inputs` of the model.

    Raises:
      DataError: see `refresh_index`.
    """
    table = read_table(path, "items")
    features = [name for name in inputs if name != CANDIDATE_ID]
    missing = [name for name in (item_id, *features) if name not in table.columns]
    if missing:
        what = "id column (--item-id)" if missing[0] == item_id else "features"
        raise DataError(
            f"The items table should have the {what} of the model, "
            f"{[item_id, *features]}. Received: {table.columns}, without {missing}."
            f"{nearest(missing[0], table.columns)} Add what is missing; single values "
            "may be empty."
        )
    return entity_table(table.select(item_id, *features), item_id, CANDIDATE_ID)


def embed_items(model: ExportedModel, items: pl.DataFrame) -> np.ndarray:
    """Embeds all items of a table, float32 [C, d]; see `read_items`."""
    inputs = model.description["candidate_inputs"]
    embed = model.signatures["embed_candidate"]
    parts = []
    for start in range(0, items.height, _BATCH):
        part = items.slice(start, _BATCH)
        arguments = {
            spec["argument"]: _column(part[name], spec) for name, spec in inputs.items()
        }
        parts.append(embed(**arguments)["vectors"].numpy())
    return np.concatenate(parts)


def write_vectors(
    path: str | os.PathLike[str], ids: pl.Series, vectors: np.ndarray
) -> None:
    """Writes `item_id` (text) and `vector` (d float32 each) as Parquet, atomically."""
    column = pl.Series("vector", vectors, pl.Array(pl.Float32, vectors.shape[1]))
    buffer = io.BytesIO()
    pl.DataFrame([ids, column]).write_parquet(buffer)
    write_atomic(path, buffer.getvalue())


def _calibration_queries(model: ExportedModel) -> np.ndarray:
    if "embed_query_objectives" not in model.signatures:
        raise ExportError(
            "A model to refresh should have the signature embed_query_objectives. "
            f"Received: {sorted(model.signatures)} in {str(model.path)!r}. {_OLD}"
        )
    try:
        return np.load(model.path / QUERIES, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ExportError(
            "A model to refresh should have queries to calibrate its index with. "
            f"Received: {str(model.path / QUERIES)!r} ({error}). {_OLD}"
        ) from error


def _note_changes(model: ExportedModel, items: pl.DataFrame) -> None:
    """Says what the new table changes."""
    old = pl.Series(model.saved_model.item_table.ids.numpy()).cast(pl.String)
    new = items[CANDIDATE_ID]
    added = (~new.is_in(old.implode())).sum()
    dropped = (~old.is_in(new.implode())).sum()
    _LOG.info("%d items: %d new, %d dropped.", new.len(), added, dropped)
    if added and len(model.description["candidate_inputs"]) == 1:
        _LOG.warning(
            "The model has no item features: all %d new items share one vector. Train "
            "again with an item table (--items) to tell them apart.",
            added,
        )


def _column(series: pl.Series, spec: Mapping[str, Any]) -> tf.Tensor:
    """A column as the signature takes it; missing values as docs/serving.md says."""
    kind = spec["kind"]
    if kind in ("id", "categorical"):
        return tf.constant(as_text(series).fill_null("").to_list(), tf.string)
    if kind == "numeric":
        return tf.constant(as_numbers(series))
    if kind == "vector":
        return tf.constant(as_vectors(series, spec["width"]))
    rows, tokens = as_tokens(series)  # sorted by row
    column = np.arange(len(rows)) - np.searchsorted(rows, rows)
    values = np.full((len(series), column.max(initial=0) + 1), "", object)
    values[rows, column] = tokens.to_numpy()
    return tf.constant(values.tolist(), tf.string)


def _by_argument(raw: Raw, inputs: Mapping[str, Mapping[str, Any]]) -> Raw:
    return {spec["argument"]: raw[name] for name, spec in inputs.items()}


def _specs(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, tf.TensorSpec]:
    specs = {}
    for name, spec in inputs.items():
        lists = spec["kind"] in ("history", "multi", "times")
        numbers = spec["kind"] in ("numeric", "vector")
        shape: list[int | None] = [None, None] if lists else [None]
        if spec["kind"] == "vector":
            shape = [None, spec["width"]]
        kind = tf.float32 if numbers else tf.string
        kind = tf.int64 if spec["kind"] == "times" else kind
        specs[name] = tf.TensorSpec(shape, kind)
    return specs
