"""Does the cascade learn? On the simulator, where the best ranking is known."""

import numpy as np
import pytest

from tfcsmf.cascade import assessment
from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.data.simulator import simulate


@pytest.mark.slow
def test_between_popularity_and_the_truth(tmp_path):
    config = Config.from_dict(
        {
            "simulator": {"users": 1000, "items": 500, "exposures_per_user": 60},
            "data": {"split": "random"},
            "towers": {"dimension": 32, "embedding_dimension": 32},
            "cascade": {"stage": {"epochs": 5, "batch_size": 512}},
            "loss": {"uniform_negatives": 256},
        }
    )
    log = prepare(config)
    model = build_model(config, log)
    trainer = CascadeTrainer(config, log, model, tmp_path, show_progress=False)
    trainer.train()
    candidates = trainer.encoder.candidates(len(log.objectives))
    results = assessment.assess(trainer.encoder, candidates, config)
    truth = simulate(config.simulator, log.objectives, config.seed)
    columns = truth.item_rows(log.items.ids)
    for objective in log.objectives:
        model_recall = results["protocols"]["standard"][objective]["recall@50"]
        popular = results["baselines"]["popularity"]["standard"][objective]
        best = _truth_recall(truth, columns, log, objective)
        assert popular["recall@50"] + 0.05 < model_recall < best + 0.03, objective


def _truth_recall(truth, columns, log, objective):
    """Recall@50 of ranking by the probabilities the log was drawn from."""
    test = log.test[objective]
    users = truth.user_rows(log.users.ids[test.users])
    scores = truth.probability(objective, users)[:, columns]
    recalls = []
    for row in range(len(users)):
        scores[row, test.seen.row(row)] = -np.inf
        targets = np.setdiff1d(test.targets.row(row), test.seen.row(row))
        if len(targets):
            best = np.argsort(-scores[row])[:50]
            recalls.append(np.isin(targets, best).mean())
    return float(np.mean(recalls))
