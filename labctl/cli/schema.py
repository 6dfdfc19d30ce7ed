"""labctl schema: the JSON Schema of the lab's files, for editors."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from labctl.cli.verb import new_app

app = new_app()


class File(StrEnum):
    LAB = "lab"
    TARGET = "target"
    MACHINES = "machines"
    BUILD = "build"
    MATRIX = "matrix"
    SUITE = "suite"
    TOOL = "tool"
    IMAGE = "image"
    STORIES = "stories"


@app.command()
def schema(
    file: Annotated[File | None, typer.Argument(help="Which file; without it one object that holds all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="It is JSON with and without.")] = True,  # noqa: ARG001
) -> None:
    """Print the JSON Schema of a file of the lab, so that an editor completes and checks it. ``machines`` is a target of several.

    \b
    $ labctl schema target
    $ labctl schema machines
    $ labctl schema build > build.schema.json
    """
    content = _schema(file) if file is not None else {"schema": 1, "files": {each.value: _schema(each) for each in File}}
    print(json.dumps(content, indent=2, ensure_ascii=False))


def _schema(file: File) -> dict[str, Any]:
    from pydantic import BaseModel

    from labctl.model import GroupFile, ImageRecipe, LabConfig, MatrixConfig, Recipe, StoriesConfig, SuiteConfig, TargetConfig, ToolRecipe

    models: dict[File, type[BaseModel]] = {
        File.LAB: LabConfig,
        File.TARGET: TargetConfig,
        File.MACHINES: GroupFile,
        File.BUILD: Recipe,
        File.MATRIX: MatrixConfig,
        File.SUITE: SuiteConfig,
        File.TOOL: ToolRecipe,
        File.IMAGE: ImageRecipe,
        File.STORIES: StoriesConfig,
    }
    found = models[file].model_json_schema(by_alias=True)
    if file in (File.BUILD, File.TOOL):
        # In the file the options stand in a table named after the builder.
        options = found["properties"].pop("options")
        found["additionalProperties"] = {**options, "description": "The table of the builder's options."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
