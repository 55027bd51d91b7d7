import shutil

import numpy as np
import pytest

from tfcsmf.errors import ExportError
from tfcsmf.retrieval.exported import ExportedModel


@pytest.fixture(scope="module")
def model(base_path):
    return ExportedModel(base_path)


def ids(items):
    return [item.item_id for item in items]


def test_a_ranking_is_sorted_and_explained(model):
    items = model.retrieve("u1", {"view": ["i3", "i9"], "add to cart": ["i4"]}, k=4)
    assert len(set(ids(items))) == 4
    scores = [item.score for item in items]
    assert scores == sorted(scores, reverse=True)
    for item in items:
        parts = item.objective_scores
        total = parts["view"] + parts["add to cart"] + 2 * parts["buy"]
        assert item.score == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_an_unknown_user_without_history_gets_a_finite_answer(model):
    items = model.retrieve("nobody", {"view": ["unheard", "of"]})
    assert ids(items) == ids(model.retrieve())
    assert len(items) == 10 and np.isfinite([item.score for item in items]).all()


def test_weights_change_the_order(model):
    for objective in model.objectives:
        weights = dict.fromkeys(model.objectives, 0.0) | {objective: 1.0}
        items = model.retrieve("u2", weights=weights)
        scores = [item.objective_scores[objective] for item in items]
        assert scores == sorted(scores, reverse=True)
        assert [item.score for item in items] == pytest.approx(scores, rel=1e-5)
        worst = model.retrieve("u2", weights=weights | {objective: -1.0})
        assert worst[0].objective_scores[objective] < scores[-1]


def test_weights_not_given_keep_their_default(model):
    named = {"view": 1.0, "add to cart": 1.0, "buy": 2.0}
    assert model.retrieve("u2") == model.retrieve("u2", weights=named)
    assert model.retrieve("u2", weights={"view": 5}) == model.retrieve(
        "u2", weights=named | {"view": 5}
    )


def test_exclusions_hold(model):
    first = ids(model.retrieve("u3"))
    second = model.retrieve("u3", exclude=[*first, "unheard of"])
    assert len(second) == 10 and not set(ids(second)) & set(first)


def test_features_count(model):
    plain = model.retrieve("u3")
    told = model.retrieve("u3", features={"age": 20, "city": "c1"})
    assert [i.score for i in plain] != [i.score for i in told]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {"by": 1}}, "Did you mean 'buy'"),
        ({"weights": {"buy": float("nan")}}, "finite"),
        ({"histories": {"views": []}}, "Did you mean 'view'"),
        ({"histories": {"view": "i1"}}, "list of strings"),
        ({"features": {"agee": 3}}, "Did you mean 'age'"),
        ({"features": {"age": "old"}}, "1 number.*Leave it out"),
        ({"features": {"user_id": "u1"}}, "query feature"),
        ({"k": 0}, "at least 1, .* Received: 0. Leave it out for 10"),
    ],
)
def test_mistakes_are_explained(model, arguments, message):
    with pytest.raises(ExportError, match=message):
        model.retrieve("u1", **arguments)


def test_k_beyond_a_small_catalogue_returns_the_catalogue(shop, tmp_path, helpers):
    from tfcsmf.retrieval.export import export

    large = helpers.make_shop(tmp_path, **{"retrieval.k": 500})
    model = ExportedModel(export(large.serving, tmp_path / "serving"))
    assert model.k == large.log.items.size
    items = model.retrieve("u1", k=300, exclude=["i1", "i2"])
    assert len(items) == large.log.items.size - 2
    assert len(set(ids(items))) == len(items)


def test_folders_without_a_model_are_explained(tmp_path, base_path):
    with pytest.raises(ExportError, match="does not exist"):
        ExportedModel(tmp_path / "nowhere")
    with pytest.raises(ExportError, match="named by its version"):
        ExportedModel(tmp_path)
    with pytest.raises(ExportError, match=r"one of \[1\]. Received: 9. Leave it"):
        ExportedModel(base_path, version=9)


def test_run_folders_and_versions_are_found(tmp_path, base_path):
    shutil.copytree(base_path / "1", tmp_path / "serving" / "3")
    assert ExportedModel(tmp_path).path.name == "3"
    assert ExportedModel(tmp_path / "serving").path.name == "3"
    assert ExportedModel(tmp_path / "serving" / "3").path.name == "3"


@pytest.mark.parametrize(
    "damaged", ["saved_model.pb", "assets.extra/cascade.json", "variables"]
)
def test_a_damaged_version_names_the_next_best(tmp_path, base_path, damaged):
    shutil.copytree(base_path / "1", tmp_path / "1")
    shutil.copytree(base_path / "1", tmp_path / "2")
    target = tmp_path / "2" / damaged
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.write_bytes(target.read_bytes()[:40])
    with pytest.raises(ExportError, match="Load version 1"):
        ExportedModel(tmp_path)
    assert ExportedModel(tmp_path, version=1).retrieve("u1")
