"""What a phase keeps: the average over epochs, and the best of them."""

import numpy as np
import pytest

from tfcsmf.cascade import capacity
from tfcsmf.cascade.encoding import Encoder
from tfcsmf.cascade.frozen import FrozenScores
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.cascade.training_state import TrainingState
from tfcsmf.config import Config


@pytest.fixture
def state(build, tiny_log):
    model = build()
    return model, TrainingState(model, FrozenScores(Encoder(model, tiny_log, 6)), 0)


def fill(model, value):
    for parameter in model.owned_parameters:
        parameter.variable.assign(np.full(parameter.variable.shape, value, np.float32))


def values(model):
    return {name: array.flat[0] for name, array in capacity.snapshot(model).items()}


def test_the_average_is_exponential_and_the_best_is_the_average(state):
    model, kept = state
    for value in (1.0, 3.0, 3.0):
        fill(model, value)
        kept.update_average(0.25)
    # 1, then 1 + .25 * 2, then 1.5 + .25 * 1.5
    assert {array.flat[0] for array in kept.average.values()} == {np.float32(1.875)}
    with kept.averaged():
        assert set(values(model).values()) == {np.float32(1.875)}
    assert set(values(model).values()) == {np.float32(3.0)}
    kept.keep_best()
    fill(model, 7.0)
    kept.update_average(0.25)
    kept.load_best()
    assert set(values(model).values()) == {np.float32(1.875)}
    kept.begin_phase()
    assert not kept.average and not kept.best


def test_without_an_average_the_best_are_the_parameters_themselves(state):
    model, kept = state
    fill(model, 2.0)
    with kept.averaged():
        kept.keep_best()
    fill(model, 3.0)
    kept.load_best()
    assert set(values(model).values()) == {np.float32(2.0)}


def test_entries_that_do_not_move_stay_bit_equal(state):
    model, kept = state
    before = capacity.snapshot(model)
    for _ in range(5):
        kept.update_average(0.3)
    for name, array in kept.average.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_stage_keeps_the_average_over_its_epochs(
    build, tiny_config, tiny_log, tmp_path
):
    ends = {}
    for rate in (1.0, 0.5):
        config = Config.from_dict(
            tiny_config.to_dict(),
            [
                "cascade.objectives=[exposure, click, conversion]",
                f"cascade.stage.averaging={rate}",
                "cascade.stage.epochs=3",
                "cascade.stage.recovery_epochs=0",
                "cascade.stage.patience=0",
            ],
        )
        model = build()
        trainer = CascadeTrainer(
            config, tiny_log, model, tmp_path / str(rate), show_progress=False
        )
        epochs, kept = [], {}
        update = trainer.state.update_average

        def remember(
            share, update=update, epochs=epochs, model=model, best=trainer.state
        ):
            update(share)
            epochs.append(capacity.snapshot(model))
            best.progress.best = None  # the latest counts as the best

        def stop(*arguments, kept=kept, model=model):
            kept |= capacity.snapshot(model)
            raise InterruptedError

        trainer.state.update_average, trainer._prune = remember, stop
        with pytest.raises(InterruptedError):
            trainer.train()
        ends[rate] = epochs, kept
    assert ends[1.0][0] == []  # no average is kept
    epochs, kept = ends[0.5]
    for name, array in kept.items():
        first, second, third = (epoch[name] for epoch in epochs)
        half = np.float32(0.5)
        expected = first + half * (second - first)
        expected = expected + half * (third - expected)
        np.testing.assert_array_equal(array, expected)
