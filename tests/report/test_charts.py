"""Chart files, the thinning of curves, and colours that can be told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import altair as alt
import jsonschema
import numpy as np
import pytest

from isthmus._errors import InputError
from isthmus._records import MetricTable, RunFolder
from isthmus.report import save_charts
from isthmus.report._charts import ScaleKind, axis_y, finish, scale_kind
from isthmus.report._read import Curve, RunView, evenly, number
from isthmus.report._themes import SERIES, THEMES

KEYS = {
    "representation-spectrum", "weight-spectrum", "energies", "ranks", "stationarity", "standard-ranks",
    "layer-steps", "speed", "path", "jacobian", "loss", "score", "settling",
}  # fmt: skip


def test_every_chart_is_saved_in_every_format(normal_run: RunFolder, tmp_path: Path) -> None:
    written = save_charts(normal_run, tmp_path / "charts")
    assert {p.stem for p in written} == KEYS
    assert {p.suffix for p in written} == {".png", ".svg", ".pdf"}
    assert len(written) == 3 * len(KEYS)
    starts = {".png": b"\x89PNG\r\n", ".svg": b"<svg", ".pdf": b"%PDF-"}
    for path in written:
        content = path.read_bytes()
        assert content.startswith(starts[path.suffix])
        assert len(content) > 4000, path
    svg = (tmp_path / "charts" / "energies.svg").read_text()
    assert "Is the energy conserved along the path?" in svg
    assert "kinetic energy" in svg
    assert SERIES["light"][0] in svg


def test_a_chart_against_the_schema_is_seen() -> None:
    wrong = alt.Chart(alt.NamedData(name="rows")).mark_line(strokeWidth=2)
    wrong.mark.strokeWidth = "thick"
    with pytest.raises(jsonschema.ValidationError, match="line"):
        finish([wrong], {"rows": []}, "what it shows")


def test_panels_of_several_runs_are_numbered(make_run: Callable[..., RunFolder], tmp_path: Path) -> None:
    written = save_charts([make_run("One"), make_run("Two")], tmp_path, formats=("svg",))
    names = {p.name for p in written}
    assert {"energies-1.svg", "energies-2.svg", "stationarity.svg"} <= names
    assert "Two" in (tmp_path / "energies-2.svg").read_text()


def test_a_run_without_values_saves_nothing(skipped_run: RunFolder, tmp_path: Path) -> None:
    assert save_charts(skipped_run, tmp_path) == []


def test_unknown_format_and_blocked_directory_are_refused(normal_run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gif"):
        save_charts(normal_run, tmp_path, formats=("gif",))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="directory"):
        save_charts(normal_run, tmp_path / "file" / "below", formats=("svg",))


def _curve(y: np.ndarray) -> Curve:
    index = np.arange(len(y))
    return Curve("c", "step", index, index / len(y), y, np.full(len(y), np.nan))


def test_thinning_keeps_the_ends_and_the_extremes() -> None:
    y = np.zeros(10_001)
    y[1234], y[8765] = 7.0, -7.0
    thin = _curve(y).thinned(100)
    assert 100 <= len(thin) <= 102
    assert {0, 1234, 8765, 10_000} <= set(thin.index.tolist())
    assert len(_curve(y).thinned(10_001)) == 10_001


def test_evenly_is_sorted_unique_and_has_both_ends() -> None:
    for n, limit in ((1, 5), (2, 2), (10, 100), (5000, 7)):
        found = evenly(n, limit)
        assert found[0] == 0
        assert found[-1] == n - 1
        assert len(found) == min(n, limit)
        assert (np.diff(found) > 0).all()


def test_numbers_are_short_and_have_true_minus_signs() -> None:
    assert [number(v) for v in (3.0, -2.5, 1 / 3, 1.2e-7, 1e9, None, float("nan"))] == [
        "3", "−2.5", "0.3333", "1.2e−07", "1e+09", "—", "—",
    ]  # fmt: skip
    assert [number(v, 3) for v in (1381.4, 12345.0, -98765.4)] == ["1380", "12345", "−98800"]


def test_scale_shows_small_values_beside_large_ones() -> None:
    assert scale_kind(np.array([2.0, 3.0, 13.0])) == "linear"
    assert scale_kind(np.array([2.0, 3.0, 4000.0])) == "log"
    assert scale_kind(np.array([-6.0, -5.0, 9.0, 1400.0])) == "symlog"
    assert scale_kind(np.array([-9.0, 0.6, 24.0, -39.0])) == "linear"
    assert scale_kind(np.array([0.0, 0.0, 0.0])) == "linear"


@pytest.mark.parametrize("kind", ["log", "symlog"])
def test_logarithmic_axes_have_a_few_round_ticks_inside_their_span(kind: ScaleKind) -> None:
    span = {"log": (2.2, 4150.0), "symlog": (-1390.0, 1380.0)}[kind]
    axis = axis_y("energy", span, kind, False, unit=10.0).to_dict()
    ticks = axis["axis"]["values"]
    assert ticks == {"log": [10, 100, 1000], "symlog": [-1000, -100, 0, 100, 1000]}[kind]
    assert axis["scale"]["domain"] == list(span)
    assert "log scale" in axis["title"]


def test_the_last_step_and_the_asked_gamma_are_read(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("Selection")
    table = MetricTable()
    for step, value in ((10, 1.0), (20, 2.0)):
        for layer in (1, 2):
            table.add("stationarity", value * layer, layer=f"step.{layer}", index=layer, position=layer / 2, step=step)
    for gamma, value in (("0.01", 5.0), ("0.001", 6.0)):
        table.add("cost_of_identity", value, layer="representation.0", index=0, position=0.0, note=f"gamma0={gamma}; x")
    table.add("kinetic_energy", 1.0, layer="step.1", index=1, position=0.5)
    table.add("kinetic_energy", None, layer="step.2", index=2, position=1.0, status="failed", note="solver broke")
    run.write_metrics(table)
    view = RunView(run)
    assert view.curve("stationarity", "step").y.tolist() == [2.0, 4.0]
    assert view.curve("cost_of_identity", "representation").y.tolist() == [6.0]
    assert view.curve("cost_of_identity", "representation", gamma0=0.01).y.tolist() == [5.0]
    assert view.gammas("cost_of_identity") == [0.001, 0.01]
    kinetic = view.curve("kinetic_energy", "step")
    assert kinetic.y.tolist() == [1.0]
    assert kinetic.reasons == ("failed: solver broke",)
    assert view.curve("path_speed", "step").reasons == ("not recorded by this run",)


def _luminance(colour: str) -> float:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(theme: str) -> None:
    colours = THEMES[theme]
    for ground in ("page", "surface"):
        for text in ("text", "muted", "accent"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for series in SERIES[theme]:
            assert _contrast(series, colours[ground]) >= 3, (series, ground)  # graphics need 3 : 1, text 4.5 : 1
    for text in ("text", "caution"):
        assert _contrast(colours[text], colours["caution-surface"]) >= 4.5
