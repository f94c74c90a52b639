from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from exported import exported

from probekit.charts import ChartError
from probekit.steering import SteeringError, by_layer
from probekit.widgets import LayerSweep, WidgetError

ROOT = Path(__file__).parent.parent


def sweep_of(layers: list[int], best: int) -> pl.DataFrame:
    """What `steering.layer_sweep` gives for 50 prompts, of which one layer steers."""
    rows: list[tuple[int | None, str, float]] = [(None, "none", 0.02)]
    for layer in layers:
        rows += [(layer, "behaviour", 0.6 if layer == best else 0.1), (layer, "random", 0.04)]
    columns = {"layer": pl.Int64, "direction": pl.String, "complied": pl.Float64}
    return pl.DataFrame(rows, columns, orient="row").with_columns(
        norm=3.5,
        n=50,
        complied_low=pl.col("complied") / 2,
        complied_high=pl.col("complied") + 0.1,
        unparsable=0.0,
    )


SWEEP = sweep_of([4, 9, 14], 9)
QUALITY = pl.DataFrame({"layer": [4, 9, 12], "average_precision": [0.5, 0.75, 0.9]})


def click(sweep: LayerSweep, layer: object, panel: str = "steered_layer") -> None:
    """As the chart says it after a click near a point; with None, after a click beside all."""
    value = {} if layer is None else {"layer": [layer], "vlPoint": {"or": [{"layer": layer}]}}
    store = [] if layer is None else [{"fields": [{"field": "layer", "type": "E"}], "values": [layer]}]
    selections = sweep._chart._vl_selections
    sweep._chart._vl_selections = {**selections, panel: {"value": value, "store": store}}


def rows(sweep: LayerSweep) -> list[str]:
    return re.findall(r"<tr.*?</tr>", sweep._rows.value)


def chosen_rows(sweep: LayerSweep) -> list[str]:
    """The layers of the rows that are said to be chosen, to the eye and to a screen reader."""
    marked = [row for row in rows(sweep) if 'aria-current="true"' in row]
    assert all("◀ chosen" in row for row in marked)
    assert sum("◀ chosen" in row for row in rows(sweep)) == len(marked)
    return [re.findall(r'<th scope="row">(\d+)', row)[0] for row in marked]


def test_the_layer_that_steers_most_is_chosen_at_first() -> None:
    sweep = LayerSweep(SWEEP, QUALITY)
    assert sweep.layer == sweep._number.value == sweep._chart.params.chosen_layer == 9
    assert chosen_rows(sweep) == ["9"]
    assert LayerSweep(SWEEP, layer=14).layer == 14


def test_number_click_and_python_choose_the_same_layer_everywhere() -> None:
    sweep, seen = LayerSweep(SWEEP, QUALITY), []
    sweep.observe(lambda change: seen.append(change["new"]), "layer")
    sweep._number.value = 4
    assert (sweep.layer, chosen_rows(sweep), sweep._chart.params.chosen_layer) == (4, ["4"], 4)
    click(sweep, 14)
    assert (sweep.layer, chosen_rows(sweep), sweep._number.value) == (14, ["14"], 14)
    click(sweep, 12, "ranked_layer")
    assert (sweep.layer, chosen_rows(sweep), sweep._number.value) == (12, ["12"], 12)
    sweep.layer = 9
    assert (sweep._number.value, sweep._chart.params.chosen_layer) == (9, 9)
    assert seen == [4, 14, 12, 9]


def test_a_number_between_layers_goes_on_to_the_next() -> None:
    sweep = LayerSweep(SWEEP)
    sweep._number.value = 10
    assert sweep.layer == sweep._number.value == 14
    sweep._number.value = 13
    assert sweep.layer == sweep._number.value == 9


@pytest.mark.parametrize("layer", [None, 99, "<script>"])
def test_a_click_that_is_on_no_layer_chooses_nothing(layer: object) -> None:
    sweep = LayerSweep(SWEEP, QUALITY)
    click(sweep, layer)
    assert sweep.layer == 9


def test_the_table_says_each_layers_numbers() -> None:
    [_, first, _, third, _] = rows(LayerSweep(SWEEP, QUALITY))
    assert first.count("10.0% (5.0% to 20.0%)") == 1
    assert "0.500" in first
    assert third.startswith('<tr><th scope="row">12</th><td>–</td><td>–</td><td>–</td><td>0.900</td>')


def test_the_frame_is_the_sweep_by_layer() -> None:
    assert LayerSweep(SWEEP, QUALITY).frame.equals(by_layer(SWEEP, QUALITY))
    assert repr(LayerSweep(SWEEP)) == "LayerSweep(3 layers; layer 9 chosen)"


def test_what_is_no_sweep_is_refused() -> None:
    with pytest.raises(WidgetError, match="There is no layer 5; the layers here are 4, 9, 14"):
        LayerSweep(SWEEP, layer=5)
    sweep = LayerSweep(SWEEP)
    with pytest.raises(WidgetError, match="There is no layer 12"):
        sweep.layer = 12
    assert sweep.layer == 9
    with pytest.raises(SteeringError, match="lacks the columns direction"):
        LayerSweep(SWEEP.drop("direction"))
    with pytest.raises(ChartError, match='no row with direction "behaviour"'):
        LayerSweep(SWEEP.filter(pl.col("direction") == "random"))


@pytest.mark.parametrize("state_saved", [False, True])
def test_an_exported_notebook_shows_a_picture_and_the_table(
    monkeypatch: pytest.MonkeyPatch, state_saved: bool
) -> None:
    page = exported(LayerSweep(SWEEP, QUALITY, layer=4), monkeypatch, state_saved=state_saved)
    [(alt, source)] = re.findall(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]*)"', page)
    assert "<svg" in base64.b64decode(source).decode()
    assert "Layer 4 is marked" in alt
    [table] = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert table.count('<th scope="row"') == 4
    assert "◀ chosen" in table


def test_text_in_a_frame_is_only_text() -> None:
    evil = SWEEP.with_columns(direction=pl.col("direction").replace("random", "<script>alert(1)</script>"))
    sweep = LayerSweep(evil)
    data = sweep._repr_mimebundle_()[0]["text/html"] + sweep._rows.value
    assert "<script" not in data


def test_every_control_has_a_name_and_the_chart_is_described() -> None:
    sweep = LayerSweep(SWEEP, QUALITY)
    assert sweep._number.description == "Layer"
    assert "Compliance of 50 replies a layer" in sweep._chart.spec["description"]
    assert sweep._chart.embed_options["renderer"] == "svg"


def test_the_chart_needs_no_network() -> None:
    sweep = LayerSweep(SWEEP)
    assert not re.search(r"""(import|from)\s*\(?["']https?:""", sweep._chart._esm)
    assert "https://esm.sh" not in sweep._chart._esm
    assert sweep._chart.embed_options["actions"] is False
    assert "url" not in json.dumps(sweep._chart.spec["vconcat"])


def test_widgets_import_without_altair() -> None:
    code = "import probekit.widgets, sys; print('altair' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def controls(widget: Any) -> list[Any]:
    return [widget, *(one for child in getattr(widget, "children", ()) for one in controls(child))]


def test_little_crosses_to_the_browser_when_a_layer_is_chosen() -> None:
    sweep = LayerSweep(sweep_of(list(range(80)), 40))
    sent: list[Any] = []
    for control in controls(sweep):
        control._send = lambda message, buffers=None: sent.append(message)
    sweep.layer = 7
    assert 0 < sum(len(json.dumps(message)) for message in sent) < 40_000
