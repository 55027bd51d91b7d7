"""What every system has to do, whatever it is; a mixin for test classes."""

import numpy as np
import pytest

from tfcsmf.baselines.registry import make_system
from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.config import Config
from tfcsmf.evaluation import apply_protocol, user_metrics
from tfcsmf.evaluation.lists import contains

K = 10
CONFIG = Config.from_dict(
    {
        "simulator": {
            "users": 120,
            "items": 80,
            "exposures_per_user": 25,
            "click_rate": 0.4,
        },
        "data": {"history_length": 6, "split": "random"},
        "towers": {
            "dimension": 8,
            "hidden_units": [10],
            "embedding_dimension": 6,
            "feature_dimension": 4,
            "normalize": False,
            "query_id_dropout": 0.1,
        },
        "loss": {"uniform_negatives": 8, "temperature": 1.0},
        "cascade": {
            "objectives": ["exposure", "click"],
            "stage": {
                "batch_size": 64,
                "epochs": 4,
                "learning_rate": 0.01,
                "embedding_learning_rate": 0.03,
            },
        },
        "evaluation": {"ks": [K], "validation_k": K},
    }
)


def rankings(system, log, k=K, protocol="standard"):
    """Returns positions and masks by objective."""
    found = {}
    for objective in log.objectives:
        queries = log.test[objective]
        asked = apply_protocol(queries, protocol)
        ranker = system.ranker(objective)
        positions = ranker.rank(objective, queries, asked.rows, asked.exclude, k)
        found[objective] = (positions, asked.exclude)
    return found


class SystemContract:
    """Subclasses give the name of a system, and what it costs.

    The fixtures `log`, `folder` and `fitted` are in conftest.py.
    """

    name = ""
    networks = 1
    index_queries = 1
    dimension = 8

    def test_it_has_its_name(self, fitted):
        assert fitted.name == self.name

    def test_it_says_what_it_costs(self, fitted):
        cost = fitted.cost()
        assert (cost.networks, cost.index_queries) == (
            self.networks,
            self.index_queries,
        )
        assert cost.dimension == self.dimension
        assert (cost.parameters > 0) == (cost.networks > 0)
        assert (cost.training_seconds > 0) == (cost.networks > 0)
        assert (cost.examples_seen > 0) == (cost.networks > 0)

    @pytest.mark.parametrize("protocol", ["standard", "unseen"])
    def test_it_ranks_all_that_is_not_masked_and_nothing_else(
        self, fitted, log, protocol
    ):
        size = log.items.size
        for positions, exclude in rankings(fitted, log, size, protocol).values():
            rows = np.arange(len(positions))[:, None]
            assert not contains(exclude, rows, positions).any()
            found = (positions >= 0).sum(axis=1)
            np.testing.assert_array_equal(found, size - np.diff(exclude.offsets))
            ordered = np.sort(positions, axis=1)
            repeated = (np.diff(ordered, axis=1) == 0) & (ordered[:, 1:] >= 0)
            assert not repeated.any()

    def test_its_vectors_are_finite(self, fitted, log):
        if not self.dimension:
            pytest.skip("has no vectors")
        for objective in log.objectives:
            candidates = fitted.candidate_vectors(objective)
            queries = fitted.query_vectors(objective, log.test[objective])
            assert candidates.shape == (log.items.size, self.dimension)
            assert queries.shape == (len(log.test[objective].users), self.dimension)
            assert np.isfinite(candidates).all() and np.isfinite(queries).all()
            assert queries.std(axis=0).max() > 0

    def test_it_is_better_than_chance(self, fitted, log):
        ratios = []
        for objective in log.objectives:
            queries = log.test[objective]
            values, asked = user_metrics(
                fitted.ranker(objective), queries, objective, "unseen", (K,)
            )
            left = log.items.size - np.diff(asked.exclude.offsets)
            ratios.append(values[f"recall@{K}"].mean() / np.mean(K / left))
        assert min(ratios) > 1.2, ratios

    def test_a_finished_training_is_loaded_not_repeated(
        self, fitted, log, folder, monkeypatch
    ):
        def refuse(*_):
            raise AssertionError("trained again")

        monkeypatch.setattr(StageStep, "__call__", refuse)
        again = make_system(self.name, CONFIG)
        again.fit(log, folder)
        assert again.cost() == fitted.cost()
        self.assert_same(again, fitted, log)

    def test_a_seed_decides_everything(self, fitted, log, tmp_path):
        again = make_system(self.name, CONFIG)
        again.fit(log, tmp_path)
        self.assert_same(again, fitted, log)

    @staticmethod
    def assert_same(one, other, log):
        ours, theirs = rankings(one, log), rankings(other, log)
        for objective in log.objectives:
            np.testing.assert_array_equal(ours[objective][0], theirs[objective][0])
