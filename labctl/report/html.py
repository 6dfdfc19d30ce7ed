"""One self-contained HTML file: no request leaves it, and it works without JavaScript, in the dark and on paper.

Text from a guest, a suite or a results file reaches the page only escaped and made visible. The policy in its head lets run only the
two scripts that are put there here, so that what slipped through would still not run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from labctl.parsers.text import visible
from labctl.report.output import replacing
from labctl.report.printable import one_line
from labctl.report.view import page
from labctl.result import RunResult

_HERE = Path(__file__).parent


def write_html(run: RunResult, out: Path, *, raw_base: str = ".") -> Path:
    """Writes ``out``, whole or not at all, and returns it. ``raw_base`` leads from there to the run's folder. StorageError."""
    content = page(run, out, raw_base)
    figures = {
        "samples": [chart.figure for chart in content["charts"].items],
        "milestones": [boots["chart"].figure for boots in content["boots"]],
        "density": [curve["chart"].figure for curve in content["suites"]["density"] if curve["chart"].figure],
        "curves": [curve["chart"].figure for curve in content["suites"]["curves"]],
    }
    scripts = [asset("plotly-basic.min.js"), asset("report.js")]
    template = environment().get_template("run.html")
    with replacing(out) as stream:
        stream.writelines(
            template.generate(
                **content,
                policy=policy(scripts),
                style=Markup(asset("report.css")),  # noqa: S704 - ours
                scripts=[Markup(script) for script in scripts],  # noqa: S704 - ours
                figures=_embedded(figures),
            )
        )
    return out


def warm_up() -> None:
    """Compile what `write_html` needs, while there is time: it takes some 50 ms."""
    environment().get_template("run.html")


@cache
def environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters["brief"] = one_line
    return environment


@cache
def asset(name: str) -> str:
    return (_HERE / "assets" / name).read_text(encoding="utf-8")


def policy(scripts: list[str]) -> str:
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts) or "'none'"
    # Plotly sets style attributes: inline styles must be allowed; they can load nothing.
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def _embedded(value: dict[str, Any]) -> Markup:
    """JSON that cannot end the script element that it stands in, nor begin a comment there."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704 - escaped just here
