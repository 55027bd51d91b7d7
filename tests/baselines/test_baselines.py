from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tfcsmf.baselines import PopularityRanker, SeenFirstRanker, build_baselines
from tfcsmf.baselines.popularity import FixedOrder
from tfcsmf.config import Config, EvaluationConfig
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import Csr, EvaluationSet, Histories
from tfcsmf.errors import ConfigError
from tfcsmf.evaluation import apply_protocol, evaluate_all, top_k


def csr(rows):
    offsets = np.cumsum([0, *map(len, rows)])
    return Csr(offsets, np.array([i for row in rows for i in row], np.int32))


VIEWS = [[4, 0, 4, 2], [0, 1], [0]]
CARTS = [[2], [5], []]
BUYS = [[3], [3, 3, 1], [2]]


def log(history_events=("view", "cart", "buy")):
    """Three users, six items; the attributes of `PreparedLog` that are read."""
    lists = {"view": csr(VIEWS), "cart": csr(CARTS), "buy": csr(BUYS)}
    return SimpleNamespace(
        whole=None,
        objectives=("view", "cart", "buy"),
        history_events=history_events,
        items=SimpleNamespace(size=6),
        known={
            name: csr([sorted(set(row)) for row in rows])
            for name, rows in (("view", VIEWS), ("cart", CARTS), ("buy", BUYS))
        },
        test_histories=Histories({name: lists[name] for name in history_events}),
    )


def queries(prepared, users=(0, 1, 2)):
    users = np.array(users, np.int32)
    met = [sorted({*VIEWS[u], *CARTS[u], *BUYS[u]}) for u in users]
    lists = prepared.test_histories.lists
    ends = [lists[event].offsets[users + 1] for event in prepared.history_events]
    return EvaluationSet(
        users=users,
        targets=csr([[0]] * len(users)),
        history_end=np.stack(ends, axis=1),
        seen=csr([sorted(set(BUYS[u])) for u in users]),
        met=csr(met),
    )


def ranked(ranker, objective, k=6, exclude=None, prepared=None, part=None):
    part = part or queries(prepared or log())
    exclude = exclude or csr([[]] * len(part.users))
    rows = np.arange(len(part.users))
    return ranker.rank(objective, part, rows, exclude, k).tolist()


def test_popularity_counts_distinct_users_and_breaks_ties_by_position():
    # Buyers: 3 has two (one of them twice), 1 and 2 one each.
    assert ranked(PopularityRanker(log()), "buy", 4) == [[3, 1, 2, 0]] * 3
    # Viewers: 0 has three, 4 one user although viewed twice.
    assert ranked(PopularityRanker(log()), "view", 5) == [[0, 1, 2, 4, 3]] * 3


def test_popularity_is_per_objective_and_needs_no_history_of_it():
    prepared = log(("view",))
    assert ranked(PopularityRanker(prepared), "buy", 1, prepared=prepared) == [[3]] * 3
    with pytest.raises(ConfigError, match="Did you mean 'buy'"):
        ranked(PopularityRanker(log()), "buyy")


def test_seen_first_puts_more_levels_before_fewer_before_popular():
    got = ranked(SeenFirstRanker(log()), "buy")
    assert got[0] == [2, 0, 4, 3, 1, 5]  # 2 viewed and carted; 0, 4 viewed; popular
    assert got[1] == [1, 0, 5, 3, 2, 4]  # viewed 1 (bought by one), 0; 5 carted
    assert got[2] == [0, 3, 1, 2, 4, 5]  # viewed 0 only


def test_seen_first_uses_lower_levels_only():
    got = ranked(SeenFirstRanker(log()), "cart")
    # Popularity of carts: 2 and 5. The item 3 user 0 bought is not brought forward.
    assert got[0] == [2, 0, 4, 5, 1, 3]
    assert ranked(SeenFirstRanker(log()), "view") == ranked(
        PopularityRanker(log()), "view"
    )


def test_seen_first_never_returns_what_is_masked():
    got = ranked(SeenFirstRanker(log()), "buy", 6, csr([[2, 3], [0], []]))
    assert got[0] == [0, 4, 1, 5, -1, -1]
    assert got[1] == [1, 5, 3, 2, 4, -1]


def test_seen_first_is_popularity_under_the_unseen_protocol():
    prepared = log()
    part = queries(prepared)
    exclude = part.met
    assert ranked(SeenFirstRanker(prepared), "buy", 6, exclude) == ranked(
        PopularityRanker(prepared), "buy", 6, exclude
    )


def test_seen_first_reads_nothing_after_the_query():
    prepared = log()
    part = queries(prepared)
    starts = np.stack(
        [prepared.test_histories.lists[e].offsets[:3] for e in ("view", "cart", "buy")],
        axis=1,
    )
    ends = starts.copy()
    ends[0, 0] += 1  # user 0 had viewed 4, and nothing else
    early = EvaluationSet(part.users, part.targets, ends, part.seen, part.met)
    got = ranked(SeenFirstRanker(prepared), "buy", 3, part=early)
    assert got == [[4, 3, 1], [3, 1, 2], [3, 1, 2]]


def test_seen_first_falls_back_to_known_items_and_follows_users():
    prepared = log(("view",))
    part = queries(prepared, users=(1, 0))
    got = ranked(SeenFirstRanker(prepared), "buy", 3, part=part)
    assert got == [[1, 0, 5], [2, 0, 4]]


def test_short_rankings_cut_what_was_met():
    full = ranked(SeenFirstRanker(log()), "buy", 6)
    for k in range(1, 6):
        assert ranked(SeenFirstRanker(log()), "buy", k) == [row[:k] for row in full]


@pytest.mark.parametrize("seed", range(4))
def test_fixed_order_equals_dense_scores(seed):
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 40))
    counts = generator.integers(0, 5, size)
    rows = [
        generator.choice(size, generator.integers(0, size + 1)) for _ in range(25)
    ]  # with repetitions
    for k in (1, 7, 50):
        got = FixedOrder(counts).rank(csr(rows), k)
        _, expected = top_k(np.ones((25, 1)), counts[:, None], k, csr(rows))
        np.testing.assert_array_equal(got, expected)


def test_empty_queries_and_rows_of_a_protocol():
    prepared = log()
    part = queries(prepared)
    asked = apply_protocol(part, "standard")
    for ranker in build_baselines(prepared, EvaluationConfig()).values():
        assert ranker.rank("buy", part, np.arange(0), csr([]), 3).shape == (0, 3)
        got = ranker.rank("buy", part, asked.rows, asked.exclude, 6)
        for row, query in enumerate(asked.rows):
            assert not set(got[row]) & set(BUYS[query])
    names = build_baselines(prepared, EvaluationConfig(baselines=("seen_first",)))
    assert list(names) == ["seen_first"]


def test_reference_figures_of_the_taobao_log():
    """Popularity: HR@10 .0113, NDCG@10 .0055; unseen .0154, .0075 (2,597 users)."""
    events = Path(__file__).parents[2].parent / "shared/data/taobao/events.parquet"
    if not events.exists():
        pytest.skip("needs the development data set ../shared/data/taobao")
    config = Config.from_dict(
        {
            "data": {"events": str(events)},
            "cascade": {"objectives": ["view", "cart", "buy"]},
            "evaluation": {"ks": [10], "bootstrap_samples": 10},
        }
    )
    prepared = prepare(config)
    results = {
        name: evaluate_all(ranker, {"buy": prepared.test["buy"]}, config.evaluation, 0)
        for name, ranker in build_baselines(prepared, config.evaluation).items()
    }
    for name, protocol, users, hit_rate, ndcg in (
        ("popularity", "standard", 15449, 0.0113, 0.0055),
        ("popularity", "unseen", 2597, 0.0154, 0.0075),
        ("seen_first", "standard", 15449, 0.2934, 0.1455),
        ("seen_first", "unseen", 2597, 0.0154, 0.0075),
    ):
        got = results[name][protocol]["buy"]
        assert got["users"] == users
        # The seen-first reference does not state its order in full; ours gives
        # .2917/.1446, and random order among equally popular items .2924 to .2928.
        assert got["hit_rate@10"] == pytest.approx(hit_rate, rel=0.01)
        assert got["ndcg@10"] == pytest.approx(ndcg, rel=0.01)
