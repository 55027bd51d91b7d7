"""MSAC: semantic clusters of the catalogue on two levels, an artefact of a run."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfcsmf.config import ClusterConfig
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.errors import CheckpointError, DataError
from tfcsmf.files import atomic_directory
from tfcsmf.negatives.modalities import (
    BEHAVIOUR,
    RANDOM,
    Projection,
    align,
    item_vectors,
)

# From this many items on k-means looks at samples of them.
_MINI_BATCHES_FROM = 20_000
# Of the artefact, in the folder of a run's checkpoints.
CLUSTERS = "clusters"
_ARRAYS, _STATE = "clusters.npz", "clusters.json"


@dataclass(frozen=True)
class SemanticClusters:
    """Codes of every item, and what gives a new item its codes.

    Attributes:
      ids: of the items, str [C].
      first: int32 [C], cluster of the first level; -1 for items without any vector.
      second: int32 [C], of the second level, the same codebook everywhere; or -1.
      centres: float32 [K1, d].
      second_centres: float32 [K2, modalities * d], of residuals.
      projections: by modality.
      places: float32 [C, 2], the plane along which items differ most; for pictures.
      key: what they were made from; see `cluster_key`.
    """

    ids: np.ndarray
    first: np.ndarray
    second: np.ndarray
    centres: np.ndarray
    second_centres: np.ndarray
    projections: dict[str, Projection]
    places: np.ndarray
    key: str

    def save(self, folder: str | Path) -> None:
        """Writes the artefact, whole or not at all, in place of an older one."""
        folder = Path(folder)
        arrays = {
            "ids": self.ids,
            "first": self.first,
            "second": self.second,
            "centres": self.centres,
            "second_centres": self.second_centres,
            "places": self.places,
        }
        for name, projection in self.projections.items():
            arrays[f"mean/{name}"] = projection.mean
            arrays[f"scale/{name}"] = projection.scale
            if projection.weight is not None:
                arrays[f"weight/{name}"] = projection.weight
        state = {"key": self.key, "modalities": list(self.projections)}
        if folder.exists():
            shutil.rmtree(folder)
        with atomic_directory(folder) as hidden:
            np.savez(hidden / _ARRAYS, **arrays)  # type: ignore[arg-type]
            (hidden / _STATE).write_text(json.dumps(state), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> SemanticClusters:
        """Reads the artefact.

        Raises:
          CheckpointError: if it is missing or damaged.
        """
        folder = Path(folder)
        try:
            state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            with np.load(folder / _ARRAYS, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            projections = {
                name: Projection(
                    arrays[f"mean/{name}"],
                    arrays[f"scale/{name}"],
                    arrays.get(f"weight/{name}"),
                )
                for name in state["modalities"]
            }
            names = ("ids", "first", "second", "centres", "second_centres", "places")
            return cls(
                **{name: arrays[name] for name in names},
                projections=projections,
                key=state["key"],
            )
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise CheckpointError(
                f"{str(folder)!r} should hold semantic clusters. Received: {error}. "
                "Delete the folder to have them made again."
            ) from error

    def refreshed(self, log: PreparedLog, key: str = "") -> SemanticClusters:
        """Returns the clusters of another catalogue: known items keep their codes.

        New ones go to the nearest centres by the vectors that come with them; they
        have no behaviour vectors, which belong to the log the clusters were made of.

        Args:
          log: of the other catalogue.
          key: of what is returned; see `cluster_key`.
        """
        modalities = tuple(n for n in self.projections if n not in (BEHAVIOUR, RANDOM))
        vectors = item_vectors(log, modalities, 1, 0) if modalities else {}
        width = self.centres.shape[1]
        aligned, present = _aligned(vectors, self.projections, log.items.size, width)
        first, second = _codes(aligned, present, self.centres, self.second_centres)
        ids = log.items.ids.astype(str)
        # Of an item met before, where it stands in the old catalogue.
        order = np.argsort(self.ids)
        slots = np.minimum(np.searchsorted(self.ids[order], ids), len(order) - 1)
        before = order[slots]
        known = self.ids[before] == ids
        first = np.where(known, self.first[before], first)
        second = np.where(known, self.second[before], second)
        places = np.where(known[:, None], self.places[before], 0.0)
        # A new item is shown where the items of its cluster are.
        sums = np.zeros((len(self.centres), 2))
        np.add.at(sums, self.first[self.first >= 0], self.places[self.first >= 0])
        sizes = np.bincount(self.first[self.first >= 0], minlength=len(sums))
        middles = sums / np.maximum(sizes, 1)[:, None]
        new = ~known & (first >= 0)
        places[new] = middles[first[new]]
        return SemanticClusters(
            ids,
            first.astype(np.int32),
            second.astype(np.int32),
            self.centres,
            self.second_centres,
            self.projections,
            places.astype(np.float32),
            key,
        )


def cluster_key(log: PreparedLog, settings: ClusterConfig, seed: int) -> str:
    """Returns what tells apart the inputs that clusters are made from."""
    sums = [zlib.crc32("\n".join(map(str, log.items.ids)).encode())]
    for examples in log.train.values():
        sums.append(zlib.crc32(examples.pairs.items.tobytes()))
        sums.append(zlib.crc32(examples.pairs.users.tobytes()))
    return json.dumps([settings.model_dump(mode="json"), seed, sums])


def build_clusters(
    log: PreparedLog, settings: ClusterConfig, seed: int
) -> SemanticClusters:
    """Aligns the modalities of a log and clusters its catalogue.

    First level: k-means on the mean of the aligned vectors an item has. Second level:
    one codebook for the whole catalogue, k-means on the concatenated residuals, each
    aligned vector less the item's centre of the first level; zero where a modality is
    missing. The two levels and the residuals are published, the codebook shared by all
    clusters and what is done about missing vectors are our reading.

    Args:
      log: the prepared log.
      settings: see `ClusterConfig`.
      seed: of everything random.

    References:
      ESANS, arXiv 2502.16077: multimodal semantic-aware clustering (MSAC).
    """
    vectors = item_vectors(log, settings.modalities, settings.aligned_dimension, seed)
    return cluster_vectors(
        vectors,
        settings,
        seed,
        ids=log.items.ids.astype(str),
        key=cluster_key(log, settings, seed),
    )


def cluster_vectors(
    vectors: Mapping[str, np.ndarray],
    settings: ClusterConfig,
    seed: int,
    ids: np.ndarray | None = None,
    key: str = "",
) -> SemanticClusters:
    """Clusters items by vectors float32 [C, w], NaN rows where missing.

    Raises:
      DataError: if fewer than two items have a vector.
    """
    size = len(next(iter(vectors.values())))
    projections = align(
        vectors, settings.aligned_dimension, settings.alignment_steps, seed
    )
    width = next(iter(vectors.values())).shape[1]
    width = settings.aligned_dimension if len(vectors) > 1 else width
    aligned, present = _aligned(vectors, projections, size, width)
    kept = np.flatnonzero(present.any(axis=1))
    if len(kept) < 2:
        raise DataError(
            "Semantic clusters need at least two items with a vector of some modality "
            f"({', '.join(vectors)}). Received: {len(kept)}. Give the items vector "
            "features, or choose another loss.negatives.sampler."
        )
    usual = max(2, round((len(kept) / 8) ** 0.5))
    mean = _mean(aligned, present)[kept]
    first_model = _k_means(mean, settings.first_level or usual, seed)
    centres = first_model.cluster_centers_.astype(np.float32)
    first = np.full(size, -1, np.int32)
    first[kept] = first_model.predict(mean)
    places = np.zeros((size, 2), np.float32)
    places[kept] = _plane(mean, seed)
    del mean
    aligned, present = aligned[kept], present[kept]
    residuals = _residuals(aligned, present, centres[first[kept]])
    del aligned
    second_model = _k_means(residuals, settings.second_level or usual, seed + 1)
    second = np.full(size, -1, np.int32)
    second[kept] = second_model.predict(residuals)
    return SemanticClusters(
        np.arange(size).astype(str) if ids is None else ids,
        first,
        second,
        centres,
        second_model.cluster_centers_.astype(np.float32),
        projections,
        places,
        key,
    )


def _aligned(
    vectors: Mapping[str, np.ndarray],
    projections: Mapping[str, Projection],
    size: int,
    width: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 [C, modalities, d], zeros where missing, and bool [C, m]."""
    aligned = np.zeros((size, len(projections), width), np.float32)
    present = np.zeros((size, len(projections)), bool)
    for number, (name, projection) in enumerate(projections.items()):
        if name in vectors:
            present[:, number] = np.isfinite(vectors[name]).all(axis=1)
            aligned[:, number] = projection(vectors[name])
    return aligned, present


def _mean(aligned: np.ndarray, present: np.ndarray) -> np.ndarray:
    if aligned.shape[1] == 1:
        return aligned[:, 0]
    number = np.maximum(present.sum(axis=1), 1).astype(np.float32)
    return aligned.sum(axis=1) / number[:, None]


def _residuals(
    aligned: np.ndarray, present: np.ndarray, centres: np.ndarray
) -> np.ndarray:
    residuals = aligned.copy()  # and no further one: it is as large as the catalogue
    residuals -= centres[:, None]
    residuals *= present[:, :, None]
    return residuals.reshape(len(residuals), -1)


def _codes(
    aligned: np.ndarray,
    present: np.ndarray,
    centres: np.ndarray,
    second_centres: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    first = _nearest(_mean(aligned, present), centres)
    residuals = _residuals(aligned, present, centres[first])
    second = _nearest(residuals, second_centres)
    some = present.any(axis=1)
    return np.where(some, first, -1), np.where(some, second, -1)


def _nearest(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    squares = (centres**2).sum(axis=1)
    return np.concatenate(
        [
            (squares - 2.0 * part @ centres.T).argmin(axis=1)
            for part in np.array_split(values, len(values) // 65536 + 1)
        ]
    )


def _k_means(values: np.ndarray, clusters: int, seed: int) -> Any:
    # Imported here: it takes a second, and most runs have no clusters.
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    clusters = min(clusters, len(values))
    if len(values) < _MINI_BATCHES_FROM:
        # Fast enough on one core, and equal whatever their number.
        with threadpool_limits(1):
            return KMeans(clusters, n_init=1, random_state=seed).fit(values)
    return MiniBatchKMeans(
        clusters, n_init=1, batch_size=8192, max_iter=20, random_state=seed
    ).fit(values)


def _plane(values: np.ndarray, seed: int) -> np.ndarray:
    """Returns the two principal directions' coordinates, of a sample's directions."""
    chosen = np.random.default_rng(seed).permutation(len(values))[:10_000]
    middle = values[chosen].mean(axis=0)
    _, _, directions = np.linalg.svd(values[chosen] - middle, full_matrices=False)
    return values @ directions[:2].T - middle @ directions[:2].T


def clusters_of_run(
    log: PreparedLog, settings: ClusterConfig, seed: int, folder: str | Path
) -> SemanticClusters:
    """Returns the clusters of a run: those in its folder, or new ones, saved there.

    Args:
      log: the run's log; clusters made of another one are made again.
      settings: see `ClusterConfig`.
      seed: of the run.
      folder: of the artefact.
    """
    folder = Path(folder)
    key = cluster_key(log, settings, seed)
    if folder.is_dir():
        try:
            saved = SemanticClusters.load(folder)
            if saved.key == key:
                return saved
        except CheckpointError:
            pass  # made again below
    clusters = build_clusters(log, settings, seed)
    clusters.save(folder)
    return clusters
