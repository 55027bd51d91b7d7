"""The report of a run that samples by semantic clusters."""

import numpy as np

from tfcsmf.evaluation.cluster_map import cluster_map
from tfcsmf.evaluation.report import write_report

METRICS = {
    "objectives": ["play"],
    "protocols": {},
    "clusters": {
        "modalities": ["image", "behaviour"],
        "items": 1200,
        "without_vectors": 7,
        "first_level": 9,
        "second_level": 4,
        "sizes": [900, 300],
        "pairs_of_codes": 31,
        "items_per_pair": {"mean": 38.5, "largest": 80},
        "purity": {
            "genre": {"largest_category": 0.2, "first_level": 0.5, "both_levels": 0.75}
        },
    },
}


def some_items(size=300, clusters=9):
    rng = np.random.default_rng(0)
    first = rng.integers(-1, clusters, size=size)
    return rng.normal(size=(size, 2)).astype(np.float32), first


def test_the_report_has_a_section_with_figures_and_purity(tmp_path):
    page = write_report(tmp_path, METRICS, clusters=some_items()).read_text()
    assert "Semantic clusters" in page and 'src="clusters.png"' in page
    for text in ("image, behaviour", "7 of", "1,200", "31 pairs", "genre", "0.750"):
        assert text in page.replace("\n", " ")
    for name in ("clusters.png", "clusters_dark.png"):
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert (
        "Semantic clusters"
        not in write_report(tmp_path, METRICS | {"clusters": {}}).read_text()
    )


def test_any_number_of_clusters_and_items_can_be_drawn():
    for size, clusters in ((2, 1), (5, 3), (6000, 40)):
        assert cluster_map(*some_items(size, clusters), "light")
