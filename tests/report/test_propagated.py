from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from isthmus import InputError
from isthmus._records import RunFolder
from isthmus.experiments import PropagationConfig, run_propagation
from isthmus.report import build_page, save_charts
from report.looking import MARKS, OVERFLOW, Page, opened


@pytest.fixture(scope="module")
def relu(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_propagation(PropagationConfig(30), tmp_path_factory.mktemp("relu") / "run")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Chaotic: the crossing stands at the right end of the chart, whose rows are more than a page holds."""
    config = PropagationConfig(1500, "erf", weight_variance=6.0)
    return run_propagation(config, tmp_path_factory.mktemp("erf") / "run", page=False)


def test_the_page_shows_both_curves_and_marks_the_equilibrium_layer(relu: RunFolder) -> None:
    page = Page((relu.path / "report.html").read_text(encoding="utf-8"))
    (spec,) = page.specs
    rows = spec["datasets"]["rows"]
    assert {row["s"] for row in rows} == {"forward loss 1 − c", "backward correlation g"}
    assert [row["x"] for row in rows] == [*range(31), *range(31)]
    assert spec["datasets"]["upright-0"] == [{"x": 10.985, "t": "ℓ* = 10.98"}]
    for text in ("Signal propagation", "They are equal at layer ℓ*\u00a0=\u00a010.98", "of infinite width", "critical"):
        assert text in page.text
    assert "Known to this version, but not recorded" not in page.text
    assert "Read with care" not in page.text


def test_predictions_stand_beside_each_other_only(relu: RunFolder, deep: RunFolder, normal_run: RunFolder) -> None:
    page = Page(build_page([relu, deep]))
    assert len(page.specs) == 2
    assert page.specs[0]["layer"][0]["encoding"] == page.specs[1]["layer"][0]["encoding"]
    assert len(page.specs[1]["datasets"]["rows"]) < 900
    with pytest.raises(InputError, match="beside each other only"):
        build_page([relu, normal_run])


def upright_text(run: RunFolder) -> dict[str, Any]:
    """What marks the text beside the upright line."""
    (spec,) = Page((run.path / "report.html").read_text(encoding="utf-8")).specs
    (layer,) = [
        part for part in spec["layer"] if part["data"]["name"] == "upright-0" and part["mark"]["type"] == "text"
    ]
    return layer["encoding"]["y"] | {"baseline": layer["mark"]["baseline"], "align": layer["mark"]["align"]}


def test_the_text_of_the_mark_stands_where_no_curve_runs(relu: RunFolder, tmp_path: Path) -> None:
    assert upright_text(relu) == {"value": 0, "baseline": "top", "align": "left"}
    ordered = run_propagation(PropagationConfig(30, "tanh", weight_variance=1.2, bias_variance=0.1), tmp_path / "a")
    assert upright_text(ordered) == {"value": "height", "baseline": "bottom", "align": "left"}
    meeting_at_the_end = run_propagation(PropagationConfig(12, "erf", weight_variance=3), tmp_path / "b")
    assert upright_text(meeting_at_the_end) == {"value": "height", "baseline": "bottom", "align": "right"}


def test_the_page_names_the_settings(tmp_path: Path) -> None:
    config = PropagationConfig(4, "leaky_relu", slope=0.2, weight_variance=0.5, correlation=0.4, second_moment=3.0,
                               residual=True)  # fmt: skip
    run = run_propagation(config, tmp_path / "run")
    text = Page((run.path / "report.html").read_text(encoding="utf-8")).text
    assert "Signal propagation: leaky_relu, residual, 4 layers, σ_w² = 0.5, c_0 = 0.4" in text
    assert re.search(r"slope below 0\s*0\.2", text)
    assert re.search(r"mean square of the inputs\s*3", text)


def test_no_crossing_no_mark(tmp_path: Path) -> None:
    run = run_propagation(PropagationConfig(4, correlation=1), tmp_path / "run")
    page = Page((run.path / "report.html").read_text(encoding="utf-8"))
    assert "upright-0" not in page.specs[0]["datasets"]
    assert "do not cross" in page.text


def test_charts_as_files(relu: RunFolder, tmp_path: Path) -> None:
    assert [p.name for p in save_charts(relu, tmp_path, ["svg"])] == ["propagation.svg"]
    assert "10.98" in (tmp_path / "propagation.svg").read_text(encoding="utf-8")


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_charts_draw_inside_their_column(
    chromium: Any, relu: RunFolder, deep: RunFolder, tmp_path: Path, width: int
) -> None:
    file = tmp_path / "both.html"
    file.write_text(build_page([relu, deep]), encoding="utf-8")
    with opened(chromium, file, width=width) as page:
        charts = page.evaluate(MARKS)
        assert len(charts) == 2
        for chart in charts:
            assert chart["lines"] >= 2
            assert chart["over"] <= 1
            assert chart["clipped"] == []
        assert page.evaluate(OVERFLOW) == 0
