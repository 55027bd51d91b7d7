"""What each output dimension does for the scores, and how to concentrate it."""

from __future__ import annotations

import numpy as np

from tfcsmf.cascade.encoding import Encoder
from tfcsmf.cascade.model import CSMF
from tfcsmf.data.prepared import Examples
from tfcsmf.towers import FREE

_QUERIES = 20_000  # training examples that dimensions are measured on
_RIDGE = 1e-6  # share of the mean energy added, for dimensions nothing uses


def score_spread(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Returns how much each output dimension moves scores, float [d].

    The score is a sum over dimensions of u_j v_j, and only differences between
    candidates rank them. So a dimension's information is the standard deviation of
    its term over candidates, root-mean-squared over queries: `rms(u_j) std(v_j)`.

    Norms of the output kernels cannot tell: on Taobao all 64 are within 15 % of
    each other, and the smallest was that of the one dimension that holds
    popularity, whose loss alone cost 9 % of recall.

    Args:
      queries: float [n, d].
      candidates: float [C, d].

    Example:
      >>> score_spread(np.array([[2.0, 1.0]]), np.array([[1.0, 4.0], [3.0, 4.0]]))
      array([2., 0.])
    """
    return np.sqrt(np.mean(np.square(queries), axis=0)) * np.std(candidates, axis=0)


def principal_directions(
    queries: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the basis in which few dimensions hold most of the scores.

    With T and its inverse, `(u T) (v inv(T)^T)` is the score u v unchanged. In the
    new basis the queries' second moments and the candidates' covariance are one and
    the same diagonal matrix: the singular values of the scores, largest first. To
    drop the last dimensions is then the best approximation of all (centred) scores
    by fewer dimensions (Eckart and Young); in the basis training happens to find,
    dimensions are nearly alike and each one dropped costs.

    Args:
      queries: float [n, d].
      candidates: float [C, d].

    Returns:
      T and its inverse, float64 [d, d].

    Example:
      >>> queries = np.array([[2.0, 2.0], [2.0, 2.0]])
      >>> candidates = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
      >>> forth, back = principal_directions(queries, candidates)
      >>> bool(np.allclose((queries @ forth)[:, 1], 0, atol=1e-2))
      True
    """
    queries, candidates = np.float64(queries), np.float64(candidates)
    centred = candidates - candidates.mean(axis=0)
    roots = [_root(part.T @ part / max(1, len(part))) for part in (queries, centred)]
    left, values, _ = np.linalg.svd(roots[0] @ roots[1])
    scale = np.sqrt(values)
    forth = np.linalg.solve(roots[0], left * scale)
    back = (left / scale).T @ roots[0]
    return forth, back


def common_directions(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Finds perpendicular directions in which few dimensions hold most of the vectors.

    Where vectors are normalised, a turn has to keep lengths, so it cannot be any basis.
    Both sides count alike: directions are the eigenvectors of the sum of the second
    moments of both, each of trace 1, largest first.

    Args:
      queries: float [n, d].
      candidates: float [C, d].

    Returns:
      An orthogonal matrix, float64 [d, d].
    """
    moments = np.zeros((queries.shape[1],) * 2)
    for part in (np.float64(queries), np.float64(candidates)):
        second = part.T @ part
        moments += second / max(np.trace(second), np.finfo(np.float32).tiny)
    return np.linalg.eigh(moments)[1][:, ::-1]


def _root(moments: np.ndarray) -> np.ndarray:
    """Returns the symmetric square root of second moments, made invertible."""
    size = len(moments)
    ridge = _RIDGE * np.trace(moments) / size + np.finfo(np.float32).tiny
    values, vectors = np.linalg.eigh(moments + ridge * np.eye(size))
    return (vectors * np.sqrt(np.maximum(values, ridge))) @ vectors.T


def rotate_free_dimensions(
    model: CSMF, queries: np.ndarray, candidates: np.ndarray
) -> None:
    """Turns the `FREE` output dimensions into their principal directions.

    The output layers are linear and both towers' columns of a free dimension are
    free as a whole, so the stage's scores stay what they are (to rounding) and no
    other stage's are touched. Our reading: method 1.2 leaves open which dimensions
    a stage keeps.

    Args:
      model: after a stage was trained, before it is pruned.
      queries: training-pass vectors of queries, float [n, d].
      candidates: training-pass vectors of the catalogue, float [C, d].
    """
    free = np.flatnonzero(model.block_owner.numpy() == FREE)
    vectors = queries[:, free], candidates[:, free]
    if model.normalize:
        forth = common_directions(*vectors)
        back = forth.T
    else:
        forth, back = principal_directions(*vectors)
    for tower, turn in ((model.query_tower, forth), (model.candidate_tower, back.T)):
        kernel = tower.output_layer.kernel
        value = kernel.numpy()
        value[:, free] = (value[:, free].astype(np.float64) @ turn).astype(np.float32)
        kernel.assign(value)


def measure_dimensions(
    encoder: Encoder, examples: Examples, stage: int, turn: bool
) -> np.ndarray:
    """Returns what each output dimension of the stage in training does, float [d].

    Args:
      encoder: of the model, with the stage in training.
      examples: of the stage; some of them, evenly spread, are the queries.
      stage: 0-based.
      turn: turn the `FREE` dimensions into principal directions first.
    """
    size = len(examples.pairs)
    some = np.unique(np.linspace(0, size - 1, _QUERIES).astype(np.int64))

    def vectors() -> tuple[np.ndarray, np.ndarray]:
        queries = encoder.query_vectors(
            examples.pairs.users[some],
            examples.history_end[some],
            encoder.log.train_histories,
            stage,
            training=True,
        )
        return queries, encoder.training_candidates(stage)

    if turn:
        rotate_free_dimensions(encoder.model, *vectors())
    return score_spread(*vectors())
