"""labctl builds: what can be built, and what the cache holds of it."""

from __future__ import annotations

from labctl.cli.verb import Json, new_app, print_json, print_table, this_lab
from labctl.errors import ConfigError, LabctlError, Problem

app = new_app()


@app.command()
def builds(as_json: Json = False) -> None:
    """List the builds of the lab: where each comes from, its version, and whether the cache holds it. Nothing is built.

    \b
    $ labctl builds
    $ labctl builds --json
    """
    from labctl.build.obtain import describe

    lab = this_lab()
    known: list[dict[str, str]] = []
    problems: list[Problem] = []
    for name in lab.recipe_files:
        try:
            known.append({**describe(lab, name), "problem": ""})
        except ConfigError as error:
            problems += error.problems
        except LabctlError as error:
            # A mirror that cannot be reached hides what would be built; the others are listed all the same.
            known.append({"name": name, "builder": lab.recipe(name).builder, "problem": error.message})
    if as_json:
        print_json(builds=[{**each, "size": int(each["size"]) if each.get("size") else None} for each in known])
    else:
        print_table(
            ("BUILD", "BUILDER", "VERSION", "SIZE", "CACHED", "SOURCE"),
            [
                (
                    each["name"],
                    each["builder"],
                    each.get("version") or "-",
                    _size(each.get("size", "")),
                    each.get("cached") or "no",
                    each["problem"] or each.get("source", ""),
                )
                for each in known
            ],
            empty="this lab has no builds: add kernel/NAME.toml",
        )
    if problems:
        raise ConfigError(problems)


def _size(octets: str) -> str:
    return f"{int(octets) / (1 << 20):.1f} MiB" if octets else "-"
