"""The comparison of published and synthetic orders of methods."""

import pytest

from avvp_dist.experiments.paper_tables import read
from benchmarks.calibrate import METHODS, error, published
from benchmarks.published_order import ROWS, markdown


def report(version, offset=0.0, factor=1.0):
    """Synthetic scores that are a linear function of the published ones."""
    figures = {row.label: row.published for row in read("main")[1].rows}
    rows = {
        name: {metric: {"mean": offset + factor * value} for metric, value in figures[label].items()}
        for name, label in ROWS.items()
    }
    return {"version": version, "rows": rows}


@pytest.mark.parametrize(("factor", "correlation"), [(0.5, "1.00"), (-1.0, "-1.00")])
def test_rank_correlation_depends_on_the_order_alone(factor, correlation):
    text = markdown(report(2, 100.0, factor))
    (row,) = [line for line in text.splitlines() if line.startswith(f"| all {len(ROWS)} | event |")]
    assert row.count(f" {correlation} ") == 5
    assert f"| the {len(ROWS) - len(METHODS)} not calibrated on |" in text
    assert "| JoMoLD | yes | " in text


def test_only_version_2_is_calibrated():
    text = markdown(report(1))
    assert "not calibrated on" not in text
    assert "| JoMoLD |  | " in text
    assert "61.3 / 61.3" in text


def test_the_error_of_a_calibration_grows_with_distance_and_with_a_wrong_order():
    exact = {name: dict(figures) for name, (_, _, figures) in published().items()}
    assert error(exact) == 0
    shifted = {name: {metric: value + 2 for metric, value in figures.items()} for name, figures in exact.items()}
    assert error(shifted) == pytest.approx(2)
    shifted["HAN"]["segment.type"] = shifted["MA"]["segment.type"] + 3
    assert error(shifted) > 2 + 3
