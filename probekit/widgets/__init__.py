"""Widgets for JupyterLab around the verbs: they show what the rooms compute and hand back what people choose.

They load nothing from the network, work with the keyboard alone, and have a frame that says the same without
a browser. All text from data sets is shown as text.
"""

from probekit.widgets._cluster_map import ClusterMap
from probekit.widgets._errors import WidgetError
from probekit.widgets._layer_sweep import LayerSweep
from probekit.widgets._pair_browser import PairBrowser
from probekit.widgets._retrain_panel import RetrainPanel
from probekit.widgets._rollout_reviewer import RolloutReviewer
from probekit.widgets._tag_panel import TagPanel

__all__ = [
    "ClusterMap",
    "LayerSweep",
    "PairBrowser",
    "RetrainPanel",
    "RolloutReviewer",
    "TagPanel",
    "WidgetError",
]
