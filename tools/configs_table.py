"""Write the tables of docs/configs.md and docs/recipes.md: keys of foreign configuration files, and our recipes.

    python tools/configs_table.py            # rewrites the parts between the markers; a test fails if they are old
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kmrcnn import recipes
from kmrcnn.foreign import FAMILIES, Family, Row

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- begin of the tables: tools/configs_table.py writes them -->", "<!-- end of the tables -->"


def families() -> str:
    """One Markdown table for each system; of a descendant only what it has beyond, or otherwise than, the first."""
    first = FAMILIES[0]
    return "\n".join(_family(family, first) for family in FAMILIES)


def _family(family: Family, first: Family) -> str:
    shared = [row for row in family.rows if family is not first and first.table.get(row.key) is row]
    missing = [key for key in first.table if key not in family.table] if shared else []
    facts = [f"[source]({family.source})", f"`PRESET = \"{family.constants['PRESET']}\"`", f"{len(family.rows)} keys"]
    lines = [f"### {family.name}\n", " · ".join(facts) + "\n"]
    if shared:
        lines.append(f"{len(shared)} keys as in {first.name}; these are its own or mean something else."
                     + (f" It lacks {len(missing)} keys of `MODEL.RETINANET`." if missing else "") + "\n")
    constants = ", ".join(f"`{key} = {value!r}`" for key, value in family.constants.items() if key != "PRESET")
    lines += [f"Whatever a file says: {constants}.\n"]
    lines += [f"Former names: {', '.join(f'`{old}` is `{new}`' for old, new in family.renamed.items())}.\n"
              ] * bool(family.renamed)
    lines += ["| key | default there | here |", "|---|---|---|"]
    return "\n".join([*lines, *(_row(row) for row in family.rows if row not in shared)]) + "\n"


def _row(row: Row) -> str:
    targets = ", ".join(f"`{target}`" for target in row.targets)
    if not row.supported:
        says = f"not supported: {row.says}" + ("; ignored with a note" if row.harmless else "")
    elif targets:
        says = f"maps to {targets}" + (f": {row.says}" if row.says else "")
    else:
        says = f"maps to what is built in: {row.says}"
    return f"| `{row.key}` | {_value(row.default)} | {says} |"


def _value(value: Any) -> str:
    return f"`{value:.6g}`" if isinstance(value, float) else f"`{value}`" if value not in ("", ()) else ""


def recipe_table() -> str:
    """Our recipes with what is known of them."""
    head = ["| recipe | what | expected | hardware | time | measured by |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *(_recipe(recipes.load(name)) for name in recipes.names())]) + "\n\n" + "\n".join(
        f"    {recipes.load(name).command}" for name in recipes.names()) + "\n"


def _recipe(recipe: recipes.Recipe) -> str:
    expected = recipe.expected or {}
    scores = " / ".join(f"{expected[key]:.1f}" for key in ("box_ap", "mask_ap") if key in expected)
    link = f"[source]({recipe.source})" if recipe.source.startswith("http") else recipe.source
    notes = "".join(f"; {note}" for note in recipe.notes)
    scores += f" box / mask AP on {expected['data']}" if scores else ""
    cells = [f"`{recipe.name}`", recipe.about + notes, scores, recipe.hardware,
             recipe.time + (f", {recipe.memory}" if recipe.memory else ""), f"{recipe.measured_by} ({link})"]
    return f"| {' | '.join(cells)} |"


TABLES: dict[str, Callable[[], str]] = {"configs.md": families, "recipes.md": recipe_table}


def updated(name: str, text: str) -> str:
    """The document `name` with today's tables."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{TABLES[name]()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    for name in TABLES:
        path = DOCS / name
        path.write_text(updated(name, path.read_text(encoding="utf-8")), encoding="utf-8")
