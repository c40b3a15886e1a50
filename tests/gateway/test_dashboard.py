"""The dashboard shows what there is: every metric in it is one of the gateway's, or of engines."""

import json
import re
from pathlib import Path
from typing import Any

from tests.gateway.conftest import Pair

DASHBOARD = Path(__file__).parents[2] / "docker" / "grafana" / "dashboards" / "baton.json"
NAME = re.compile(r"\b(?:baton_|vllm:)\w+")
OF_A_HISTOGRAM = re.compile(r"_(?:bucket|sum|count)$")


async def test_every_panel_shows_a_metric_that_exists(pair: Pair) -> None:
    panels: list[dict[str, Any]] = [p for p in json.loads(DASHBOARD.read_text())["panels"] if p["type"] != "row"]
    there = set()
    for http, url in ((pair.http, "/metrics"), (pair.http, f"{pair.decode.url}/metrics")):
        told = re.findall(r"^# TYPE (\S+)", (await http.get(url)).text, re.MULTILINE)
        there |= {OF_A_HISTOGRAM.sub("", name) for name in told}
    assert len(panels) > 20
    for panel in panels:
        shown = {OF_A_HISTOGRAM.sub("", n) for target in panel["targets"] for n in NAME.findall(target["expr"])}
        assert shown and shown <= there, panel["title"]
        assert shown <= set(NAME.findall(panel["description"])), panel["title"]
