"""The report in a real browser: it opens at once and offline, draws its charts, is accessible, and hostile text stays text.

Needs Chromium, Node and ``npm ci --ignore-scripts`` in this folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from labctl.report.write import write_reports
from tests.report_runs import failing_run, hostile_run, hypervisor_history, hypervisor_run, large_run, ordinary_run, suites_run

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KINDS = {
    "ordinary": ordinary_run,
    "failing": failing_run,
    "suites": suites_run,
    "hypervisor": hypervisor_run,
    "hostile": hostile_run,
    "large": large_run,
}
OPENS_S = 1.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this host: apt install chromium")
    if shutil.which("node") is None:
        pytest.skip("no Node on this host: apt install nodejs npm")
    if not (HERE / "node_modules" / "axe-core").is_dir():
        pytest.skip(f"axe-core is not installed: npm ci --ignore-scripts --prefix {HERE}")
    folder = tmp_path_factory.mktemp("reports")
    hypervisor_history(folder / "hypervisor")
    pages = [str(write_reports(kind(folder / name))) for name, kind in KINDS.items()]
    done = subprocess.run(
        ["node", "report_browser.mjs", *pages],
        cwd=HERE,
        env={**os.environ, "CHROMIUM": CHROMIUM},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(found) == 2 * len(KINDS)
    return found


def of(visits: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [visit for visit in visits if Path(visit["file"]).parent.name == kind]


def test_opens_in_under_a_second(visits: list[dict[str, Any]]) -> None:
    """The better of two visits counts, since the machine may be busy with other tests."""
    for kind in KINDS:
        assert min(v["loaded_ms"] for v in of(visits, kind)) < OPENS_S * 1000, kind


def test_works_offline_and_says_nothing_on_the_console(visits: list[dict[str, Any]]) -> None:
    for visit in visits:
        assert visit["requests"] == [Path(visit["file"]).as_uri()]
        assert visit["console"] == []
        assert visit["errors"] == []


def test_charts_are_drawn_when_they_are_reached(visits: list[dict[str, Any]]) -> None:
    for visit in visits:
        assert visit["charts"] >= 2
        assert visit["drawn"] == visit["charts"]
        assert visit["points"] > 0
    assert all(v["lazy"] for v in of(visits, "failing"))
    assert [v["points"] for v in of(visits, "ordinary")] == [8 * 6 + 8] * 2, "every sample, and a median for each series"


def test_another_percentile_curve_can_be_chosen(visits: list[dict[str, Any]]) -> None:
    for visit in of(visits, "suites"):
        before, after = visit["curves"]
        assert "network.rtt" in before
        assert "storage.latency" in after


def test_the_curve_of_another_density_run_can_be_chosen(visits: list[dict[str, Any]]) -> None:
    for visit in of(visits, "hypervisor"):
        before, after = visit["density"]
        assert "died with 57" in before, "the one that failed comes first"
        assert "200 healthy, ended by target" in after
        assert "knee at 1" in after


def test_another_metric_can_be_chosen(visits: list[dict[str, Any]]) -> None:
    for visit in of(visits, "failing"):
        before, after = visit["chosen"]
        assert before.startswith("boot.ready")
        assert after.startswith("power.off")


def test_the_command_can_be_copied(visits: list[dict[str, Any]]) -> None:
    assert all(v["copied"] in ("Copied", "Selected: press Ctrl-C") for v in of(visits, "failing"))


def test_no_violation_of_accessibility_in_light_and_dark(visits: list[dict[str, Any]]) -> None:
    assert {v["colorScheme"] for v in visits} == {"light", "dark"}
    for visit in visits:
        assert visit["passes"] > 20, "axe did not run"
        assert visit["violations"] == [], visit["file"]


def test_hostile_text_does_nothing(visits: list[dict[str, Any]]) -> None:
    for visit in visits:
        assert visit["pwned"] is None
        assert visit["dialogs"] == 0


def test_fits_a_telephone(visits: list[dict[str, Any]]) -> None:
    for visit in visits:
        assert visit["overflow"] <= 0, (visit["file"], visit["width"])
