import json
from html.parser import HTMLParser

import numpy as np
import pytest

from tfcsmf.evaluation.report import format_table, write_report
from tfcsmf.evaluation.tables import headline_metrics, plain

VOID = {"meta", "link", "img", "source", "br", "hr"}


class Page(HTMLParser):
    """Collects tags, links and text, and checks that tags are closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.links, self.text = [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def result(value):
    cells = {"users": 1234, "dropped_targets": 0}
    for name in ("recall@10", "recall@50", "ndcg@10", "ndcg@50", "hit_rate@10"):
        cells[name] = value
        interval = None if value is None else [value - 0.01, value + 0.02]
        cells[f"{name}_ci95"] = interval
    return cells


def metrics(objectives=("view", "buy"), value=0.25):
    protocols = {
        protocol: {name: result(value) for name in objectives}
        for protocol in ("standard", "unseen")
    }
    return {
        "objectives": list(objectives),
        "protocols": protocols,
        "stages": [
            {
                "name": name,
                "examples": 100,
                "seconds": 2.0,
                "examples_per_second": 50.0,
                "freed_share": {"query/kernel": np.float32(0.5)},
                "epochs": 3,
                "best_validation": {"recall@50": float("nan")},
            }
            for name in objectives
        ],
        "model": {"parameters": 12345, "dimension": 8, "blocks": [5, 3]},
        "frozen_max_abs_change": 0.0,
        "baselines": {"popularity": protocols},
    }


HISTORY = {
    "view": {
        "phases": [
            {
                "phase": "train",
                "step": [0, 10],
                "loss": [2.0, float("nan")],
                "validation_step": [10],
                "validation": [0.1],
            },
            {
                "phase": "recovery",
                "step": np.array([10, 12]),
                "loss": np.array([1.5, 1.4]),
                "validation_step": [],
                "validation": [],
            },
        ]
    },
    "buy": {"phases": []},
}
CAPACITY = {"query/kernel": {"view": 0.5, "buy": 0.4, "FREE": 0.1}}
TRADEOFF = {
    "objectives": ["view", "buy"],
    "k": 50,
    "protocol": "unseen",
    "points": [
        {"weights": {"view": 1 - w, "buy": w}, "recall": {"view": 0.2, "buy": w / 9}}
        for w in (0.0, 0.5, 1.0)
    ],
}
FIGURES = ("metrics", "learning_curves", "capacity", "tradeoff")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    index = write_report(
        directory,
        metrics(),
        history=HISTORY,
        capacity=CAPACITY,
        tradeoff=TRADEOFF,
        settings={"towers": {"dimension": 8}, "note": "<script>alert(1)</script>"},
    )
    assert index == directory / "report" / "index.html"
    return index.parent


def test_writes_every_file_and_nothing_else(folder):
    images = {f"{name}{end}.png" for name in FIGURES for end in ("", "_dark")}
    assert {path.name for path in folder.iterdir()} == images | {
        "index.html",
        "metrics.json",
    }
    for name in images:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_metrics_json_is_the_contract_without_nan(folder):
    text = (folder / "metrics.json").read_text()
    assert "NaN" not in text
    read = json.loads(text)
    assert read["protocols"]["unseen"]["buy"]["recall@50_ci95"] == [0.24, 0.27]
    assert read["stages"][0]["best_validation"] == {"recall@50": None}
    assert read["stages"][0]["freed_share"] == {"query/kernel": 0.5}


def test_page_is_well_formed_and_self_contained(folder):
    page = Page((folder / "index.html").read_text())
    assert len(page.links) == 2 * len(FIGURES) + 1
    for link in page.links:  # no address on the network, nothing missing
        assert (folder / link).exists()
    for words in ("Results", "Trade-off", "Training", "Capacity", "Settings"):
        assert words in page.text
    assert ".2500 ±.0150" in page.text and "12,345" in page.text
    assert "towers.dimension" in page.text


def test_page_escapes_what_users_wrote(folder):
    assert "<script>" not in (folder / "index.html").read_text()


def test_one_objective_has_no_trade_off(tmp_path):
    write_report(tmp_path, metrics(["play"]), capacity=CAPACITY)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert "tradeoff.png" not in names and "metrics.png" in names
    assert "Trade-off" not in Page((tmp_path / "report/index.html").read_text()).text


def test_no_test_users_and_many_stages(tmp_path):
    objectives = [f"level {number}" for number in range(6)]
    empty = metrics(objectives, value=None)
    history = {name: HISTORY["view"] for name in objectives}
    write_report(tmp_path, empty, history=history)
    read = json.loads((tmp_path / "report/metrics.json").read_text())
    assert read["protocols"]["standard"]["level 0"]["recall@10"] is None
    Page((tmp_path / "report/index.html").read_text())


def test_a_second_report_replaces_the_first(tmp_path):
    for value in (0.25, 0.5):
        write_report(tmp_path, metrics(value=value))
    read = json.loads((tmp_path / "report/metrics.json").read_text())
    assert read["protocols"]["standard"]["view"]["recall@10"] == 0.5


def test_terminal_table():
    lines = format_table(metrics()).splitlines()
    assert lines[0].split() == (
        "protocol objective users system recall@10 recall@50 ndcg@10 ndcg@50".split()
    )
    assert lines[2].split()[:6] == "standard view 1,234 model .2500 ±.0150".split()
    assert lines[3].split()[0] == "popularity"
    assert sum(line.startswith("---") for line in lines) == 2
    assert len(lines) == 1 + 2 + 2 * 2 * 2
    assert max(map(len, lines)) <= 100


def test_headline_metrics_fall_back_to_the_nearest_cut_offs():
    cells = dict.fromkeys(("recall@5", "recall@100", "ndcg@5", "ndcg@100"), 0.1)
    assert headline_metrics({"protocols": {"unseen": {"buy": cells}}}) == [
        "recall@5",
        "recall@100",
        "ndcg@5",
        "ndcg@100",
    ]
    assert headline_metrics({"protocols": {}}) == []


def test_plain_values():
    assert plain({1: (np.int64(2), np.inf, "x", True, None)}) == {
        "1": [2, None, "x", True, None]
    }
