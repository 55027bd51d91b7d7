"""Sequence models: training equals serving, the loss by hand, gradients, learning."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tfcsmf.cascade.checkpoints import SavePace
from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.config import Config, StageConfig
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import Csr, EvaluationSet
from tfcsmf.data.rows import NUM_RESERVED
from tfcsmf.errors import CheckpointError, ConfigError
from tfcsmf.evaluation.protocols import mean_recall
from tfcsmf.heterrec import step_targets
from tfcsmf.heterrec.encoder import History
from tfcsmf.heterrec.training import SequenceTrainer
from tfcsmf.towers import FREE

SMALL = {
    "length": 7,
    "width": 8,
    "feed_forward": 12,
    "head_units": [6],
    "training": {"batch_events": 300, "epochs": 2},
}
ENCODERS = ("heterrec", "merged", "sasrec", "gru4rec")


@pytest.fixture(scope="module")
def make(tiny_config, tiny_log):
    def build(**sequence):
        tree = tiny_config.to_dict() | {"sequence": SMALL | sequence}
        return SequenceTrainer(Config.from_dict(tree), tiny_log, show_progress=False)

    return build


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_loss_of_all_places_is_that_of_serving_every_beginning(
    make, tiny_log, encoder
):
    """One pass trains what asking after every event would, by definition."""
    trainer = make(encoder=encoder, steps=1, window=1, token_loss=0.0)
    batches = trainer.batches
    batch = next(iter(batches.dataset(0)))
    # Sequences that training cuts begin elsewhere than what serving reads: left out.
    rows = batches.schedule(0)[0][: len(batch["lengths"])]
    offsets, items = batches.sequences.offsets, batches.sequences.items
    whole = np.isin(batches._first[rows], offsets)
    users, ends = [], []
    for row in rows[whole]:
        first = batches._first[row]
        user = int(np.searchsorted(offsets, first, side="right")) - 1
        ends += range(first + 1, first + batches._lengths[row])
        users += [user] * (batches._lengths[row] - 1)
    assert len(users) > 10
    nothing = Csr(np.zeros(len(users) + 1, np.int64), np.zeros(0, np.int32))
    history_end = np.array(ends)[:, np.newaxis]  # the sum over events is what counts
    part = EvaluationSet(np.array(users), nothing, history_end, nothing, nothing)
    candidates = trainer.encoder.candidates()[: tiny_log.items.trained]
    queries = trainer.encoder.queries(part, tiny_log.train_histories)
    scores = queries @ candidates.T
    losses = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(scores)), items[ends]]

    chosen = {
        name: tf.boolean_mask(batch[name], whole)
        for name in ("items", "events", "gaps", "lengths")
    }
    got = trainer.model.compute_loss(batch | chosen)
    np.testing.assert_allclose(got, losses.mean(), rtol=1e-4)


def test_the_total_is_the_items_and_mu_times_the_mean_of_the_tokens(make):
    trainer = make(token_loss=0.25, complete_windows=True)
    model, batch = trainer.model, next(iter(trainer.batches.dataset(0)))
    items, lengths = batch["items"], batch["lengths"]
    tokens = model.tokens(batch["candidate"])
    vectors, features = model.candidate_side(tokens)
    width = items.shape[1] - 1
    mask = np.arange(width) >= width + 1 - lengths.numpy()[:, None]
    encoded = model.encoder(
        History(
            tf.gather(tokens, items[:, :-1]),
            tf.constant(mask),
            batch["events"][:, :-1],
            batch["gaps"][:, :-1],
        )
    )

    def info_nce(queries, candidates, targets, values, weights):
        scores = queries.numpy() @ candidates.numpy().T
        positives = targets.positives.numpy()
        total = 0.0
        for row, positive in enumerate(positives):
            pairs = targets.pairs.numpy()
            own = set(values[pairs[pairs[:, 0] == row, 1]].tolist())
            own |= {values[positive]}
            # One item stands for every value that is not excluded.
            others = [np.flatnonzero(values == v)[0] for v in set(values) - own]
            known = np.exp(scores[row, [positive, *others]])
            total += weights[row] * (np.log(known.sum()) - np.log(known[0]))
        return total / weights.sum()

    codes, expected = batch["values"].numpy(), 0.0
    for step in (1, 2):
        targets = step_targets(items, lengths, step, 2, 3, complete=True)
        weights = targets.weights.numpy()
        queries = model.heads[step - 1](tf.gather_nd(encoded.items, targets.places))
        expected += info_nce(queries, vectors, targets, codes[:, 0], weights) / 2
        outputs = tf.gather_nd(encoded.tokens, targets.places)
        for index, heads in enumerate(model.token_heads):
            values = codes[:, index]
            known = weights * (values[targets.positives.numpy()] >= 0)
            loss = info_nce(
                heads[step - 1](outputs[:, index]),
                features[:, index],
                targets,
                values,
                known,
            )
            expected += 0.25 * loss / len(model.token_heads) / 2
    np.testing.assert_allclose(model.compute_loss(batch), expected, rtol=1e-4)


def test_rare_ids_are_hidden_where_items_have_features(make):
    trainer = make(id_prior=3.0, id_dropout=0.0)
    tokens, items = trainer.model.tokens, trainer.batches.sequences.items
    distinct, events = np.unique(items, return_counts=True)
    assert len(set(events)) > 2
    rows = tf.repeat(distinct + NUM_RESERVED, 300)
    hidden = tokens.hidden(rows, tf.constant([3, 4])).numpy().reshape(-1, 300)
    # Four standard deviations of a share of 300.
    np.testing.assert_allclose(hidden.mean(axis=1), 3 / (3 + events), atol=0.12)
    for plain in (make(id_dropout=0.0), make(encoder="sasrec", id_prior=3.0)):
        dropout = plain.config.sequence.id_dropout
        share = plain.model.tokens.hidden(rows, tf.constant([3, 4])).numpy().mean()
        assert share == pytest.approx(dropout, abs=0.01)


@pytest.mark.parametrize("prior", [0.0, 1e9])
def test_hidden_ids_are_never_predicted_at_the_token_level(make, prior):
    trainer = make(id_prior=prior, id_dropout=0.0, steps=1)
    model, batch = trainer.model, next(iter(trainer.batches.dataset(0)))
    hidden = model.tokens.hidden(batch["candidate"]["item_id"], batch["seed"]).numpy()
    assert hidden.all() if prior else not hidden.any()
    heads = [head.last.kernel for (head,) in model.token_heads]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch, training=True)
    of_id, *of_features = (
        tf.abs(gradient).numpy().max() for gradient in tape.gradient(loss, heads)
    )
    assert min(of_features) > 0 and (of_id > 0) == (not prior)


@pytest.mark.parametrize("whole", [0, 10_000])
def test_gradients_reach_every_parameter(make, whole):
    trainer = make(whole_catalogue=whole, uniform_negatives=10, id_dropout=0.3)
    model = trainer.model
    owned = model.owned_parameters
    names = [p.name for p in owned]
    assert len(set(names)) == len(names)
    assert {p.variable.ref() for p in owned} == {
        v.ref() for v in model.trainable_variables
    }
    batch = next(iter(trainer.batches.dataset(0)))
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch, training=True)
    gradients = tape.gradient(loss, [p.variable for p in owned])
    for name, gradient in zip(names, gradients, strict=True):
        assert gradient is not None, name
        values = tf.convert_to_tensor(gradient).numpy()
        assert np.isfinite(values).all() and np.abs(values).max() > 0, name


def test_what_an_earlier_stage_owns_never_moves(make, tiny_log):
    """The encoder is as fit for the cascade as any tower."""
    trainer = make(encoder="merged", steps=1)
    model = trainer.model
    rng = np.random.default_rng(0)
    for parameter in model.owned_parameters:
        choice = (0,) if parameter.role == "bias" else (0, FREE)
        shape = parameter.owner.shape.as_list()
        parameter.owner.assign(rng.choice(np.array(choice, np.int8), shape))
    batch = next(iter(trainer.batches.dataset(0)))
    mask = tf.ones_like(batch["items"], tf.bool)

    def first_pass():
        tokens = model.item_tokens(batch["candidate"], 0)
        gathered = tf.gather(tokens, batch["items"])
        history = History(gathered, mask, batch["events"], batch["gaps"])
        history = tf.nest.map_structure(lambda x: x[:, -5:], vars(history))
        return (
            model.candidate_vectors(tokens, 0).numpy(),
            model.query_vectors(History(**history), 0).numpy(),
        )

    before = first_pass()
    values = [p.variable.numpy() for p in model.owned_parameters]
    model.stage = 1
    settings = StageConfig(learning_rate=0.1, weight_decay=0.1)
    step = StageStep(model, settings, trainer.batches.element_spec)
    step.start("train", 1)
    for _ in range(2):
        step(batch)
    for parameter, old in zip(model.owned_parameters, values, strict=True):
        new = parameter.variable.numpy()
        owned = np.broadcast_to(parameter.owner.numpy() == 0, new.shape)
        np.testing.assert_array_equal(new[owned], old[owned], parameter.name)
        assert owned.all() or (new[~owned] != old[~owned]).any(), parameter.name
    for old, new in zip(before, first_pass(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_save_and_load(make, tiny_log, tmp_path):
    trainer, other = make(), make()
    part = tiny_log.validation["exposure"]

    def vectors(trainer):
        candidates = trainer.encoder.candidates()
        queries = trainer.encoder.queries(part, tiny_log.train_histories)
        return candidates, queries

    for parameter in trainer.model.owned_parameters:
        shift = tf.random.stateless_normal(parameter.variable.shape, [1, 2])
        parameter.variable.assign_add(shift)
    assert not np.allclose(vectors(other)[1], vectors(trainer)[1])
    path = tf.train.Checkpoint(model=trainer.model).write(str(tmp_path / "model"))
    tf.train.Checkpoint(model=other.model).read(path).assert_consumed()
    for one, two in zip(vectors(trainer), vectors(other), strict=True):
        np.testing.assert_array_equal(one, two)


def test_items_without_events_are_known_by_their_features(make, tiny_log):
    trainer = make(encoder="merged")
    inputs = trainer.encoder._inputs(tf.constant([0, 1]))
    unknown = inputs | {"item_id": tf.constant([2, 2])}
    vectors = trainer.model.candidate_vectors(trainer.model.item_tokens(unknown))
    assert not np.allclose(vectors[0], vectors[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 6, "heads": 4}, "4 heads and a width of 6"),
        ({"encoder": "gru4rec", "item_layers": 0}, "item_layers"),
        ({"encoder": "bert"}, "sequence.encoder"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_dict({"sequence": settings})


class Killed(Exception):
    pass


def best_of(monkeypatch, *recalls):
    """Makes validation say what is given, epoch by epoch."""

    def validate(self):
        return None if self.refitting else recalls[self.progress.epochs - 1]

    monkeypatch.setattr(SequenceTrainer, "validate", validate)


@pytest.mark.parametrize(
    ("averaging", "refit"),
    [
        (0.0, False),
        pytest.param(0.5, False, marks=pytest.mark.slow),
        (0.5, True),
    ],
)
def test_killed_training_resumes_to_the_same_bits(
    make, tmp_path, monkeypatch, averaging, refit
):
    """In the middle of an epoch, where the best parameters are older ones."""
    if refit:  # for two epochs
        best_of(monkeypatch, 0.1, 0.2)
    training = SMALL["training"] | {"averaging": averaging, "refit": refit}
    whole = make(encoder="sasrec", item_layers=1, training=training)
    stages = whole.train()
    assert len(stages) == 1 + refit

    def on_disk():
        options = {"show_progress": False, "directory": tmp_path}
        trainer = SequenceTrainer(whole.config, whole.log, **options)
        trainer.pace = SavePace(3, share=math.inf)
        return trainer

    first = on_disk()
    original = first.store.save

    def dying(state, arrays):
        original(state, arrays)
        progress = state["progress"]
        place = progress["stage"], progress["epochs"]
        if place == (refit, 1) and state["within"]:
            assert any(name.startswith("best/") for name in arrays)
            raise Killed

    first.store.save = dying
    with pytest.raises(Killed):
        first.train()
    second = on_disk()
    assert second.resume()
    again = second.train()
    for ours, theirs in zip(
        second.model.owned_parameters, whole.model.owned_parameters, strict=True
    ):
        np.testing.assert_array_equal(ours.variable, theirs.variable, ours.name)
    assert second.progress.curve == whole.progress.curve
    times = {"seconds": 0, "examples_per_second": 0}
    assert [one | times for one in again] == [one | times for one in stages]
    # The end of a run is a checkpoint as well, of the best parameters alone.
    third = on_disk()
    assert third.resume() and third.progress.phase_over
    assert third.train() == again
    other = make(encoder="sasrec", item_layers=1, width=4)
    other.store = second.store
    with pytest.raises(CheckpointError, match="another configuration"):
        other.resume()


def test_refitting_is_training_on_all_before_the_test_for_the_chosen_epochs(
    make, tiny_log, monkeypatch
):
    training = SMALL["training"] | {"epochs": 3, "refit": True}
    trainer = make(encoder="sasrec", item_layers=1, training=training)
    monkeypatch.setattr(  # the second epoch is the best
        SequenceTrainer,
        "validate",
        lambda self: (
            None if self.refitting else (0.1, 0.3, 0.2)[self.progress.epochs - 1]
        ),
    )
    first, second = trainer.train()
    assert (first["best_epoch"], second["epochs"], second["best_epoch"]) == (2, 2, 2)
    assert second["examples"] > first["examples"]
    assert list(trainer.progress.curves) == [first["name"], second["name"]]

    # Without validation pairs nothing is chosen: all epochs, on all events at once.
    direct = make(encoder="sasrec", item_layers=1, training=training | {"epochs": 2})
    direct.log = replace(tiny_log, validation={})
    (only,) = direct.train()
    assert only["examples"] == second["examples"]
    for ours, theirs in zip(
        trainer.model.owned_parameters, direct.model.owned_parameters, strict=True
    ):
        np.testing.assert_array_equal(ours.variable, theirs.variable, ours.name)


def test_what_is_validated_and_kept_is_the_average_and_training_goes_on_as_without(
    make, monkeypatch
):
    ends, validated = {}, []
    original = SequenceTrainer._evaluate
    for averaging in (0.0, 0.25):
        training = SMALL["training"] | {"averaging": averaging, "epochs": 3}
        trainer = make(encoder="sasrec", item_layers=1, training=training)
        ends[averaging] = []

        def noted(self, ends=ends[averaging]):
            better = original(self)
            ends.append(self._values())
            return better

        monkeypatch.setattr(SequenceTrainer, "_evaluate", noted)

        def growing(trainer=trainer):  # the last epoch is the best
            validated.append(trainer._values())
            return 0.1 * trainer.progress.epochs

        monkeypatch.setattr(trainer, "validate", growing)
        trainer.train()
    for name, (one, two, three) in (
        (name, [end[name] for end in ends[0.0]]) for name in ends[0.0][0]
    ):
        np.testing.assert_array_equal(ends[0.25][2][name], three, name)
        np.testing.assert_array_equal(validated[3][name], one, name)
        expected = (one / 16 + two / 4 + three) / (1 + 1 / 4 + 1 / 16)
        kept = trainer._values()[name]
        np.testing.assert_allclose(kept, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(kept, validated[5][name], name)


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    """Users who walk round a circle of 16 items: the last one tells the next."""
    folder = tmp_path_factory.mktemp("walks")
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, 16, 200), rng.integers(4, 12, 200)
    users = np.repeat(np.arange(200), lengths)
    places = np.concatenate([np.arange(n) for n in lengths])
    items = (starts[users] + places) % 16
    pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in users],
            "item_id": [f"i{i}" for i in items],
            "event": "play",
            "position": places,
        }
    ).write_parquet(folder / "events.parquet")
    pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(16)],
            "half": ["low" if i < 8 else "high" for i in range(16)],
        }
    ).write_parquet(folder / "items.parquet")
    return folder


@pytest.mark.parametrize(
    "encoder", ["sasrec", *(pytest.param(e, marks=pytest.mark.slow) for e in ENCODERS)]
)
def test_it_learns_what_comes_next(walks, encoder):
    training = {"epochs": 12, "learning_rate": 1e-2, "embedding_learning_rate": 2e-2}
    config = Config.from_dict(
        {
            "data": {
                "events": str(walks / "events.parquet"),
                "items": str(walks / "items.parquet"),
            },
            "cascade": {"objectives": ["play"]},
            "sequence": SMALL
            | {"encoder": encoder, "width": 16, "dropout": 0.0}
            | {"training": training | {"batch_events": 128}},
            "evaluation": {"validation_k": 1},
        }
    )
    log = prepare(config)
    assert log.summary["split"] == "leave_last_out"
    trainer = SequenceTrainer(config, log, show_progress=False)
    (report,) = trainer.train()
    recall = mean_recall(trainer.ranker(), log.test["play"], "play", 1, "standard")
    assert recall is not None and recall > 0.8  # by chance 1 / 16
    assert report["epochs"] >= report["best_epoch"] >= 1
    losses = trainer.progress.curve["loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert NUM_RESERVED + 16 == trainer.model.tokens.num_ids
