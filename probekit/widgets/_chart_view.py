"""A chart in a notebook: alive without a network, in the colours of JupyterLab's theme, or as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probekit._chart_parts import BLUE, SKY, data_url, theme
from probekit._report_text import plain
from probekit.charts import Chart, to_svg

if TYPE_CHECKING:
    import altair as alt


def live_chart(chart: Chart) -> alt.JupyterChart:
    """The chart as a widget. Its parameters are `params`, its selections `selections`; see altair."""
    import altair as alt

    alt.JupyterChart.enable_offline()  # else its script comes from a URL; the first call takes a second
    options: dict[str, Any] = {
        "actions": False,  # one of them opens a page elsewhere
        "renderer": "svg",  # which screen readers can read
        "config": theme("currentColor", "currentColor", "#88888866"),
    }
    return alt.JupyterChart(chart, debounce_wait=50, max_wait=False, embed_options=options)


def chart_style(name: str) -> str:
    """The rules of a live chart in an element of this CSS class: text, and the blue that is dim on dark."""
    dark = f'body[data-jp-theme-light="false"] .{name}'
    return (
        f".{name} {{ color: var(--jp-ui-font-color1, inherit); }}"
        f'{dark} [fill="{BLUE}"] {{ fill: {SKY}; }} {dark} [stroke="{BLUE}"] {{ stroke: {SKY}; }}'
    )


def still_chart(chart: Chart) -> str:
    """The chart as HTML that shows a picture of it, described in words. On white, whatever the page is."""
    words = plain(str(chart.description))
    return f'<img alt="{words}" src="{data_url(to_svg(chart))}" style="background: #fff; max-width: 100%">'
