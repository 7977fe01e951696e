"""Renders docs/config.md from the recipe's schema: `python docs/make_config.py` writes it anew.

Values and limits come from the JSON schema, the texts from the docstrings under the fields.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.config import judges, schema, section
from rlhf_ray.config.schema import Recipe

PAGE = Path(__file__).with_name("config.md")
HEAD = """# Recipe keys

<!-- Made by docs/make_config.py from rlhf_ray/config/{schema,judges,section}.py; edit there. -->

A recipe is a YAML file with these sections. Each key can be set on the command line
(`key.sub=value` or `--key.sub value`) or in the environment (`RLHF_RAY__KEY__SUB=value`); the
command line goes before the environment, the environment before the file. Unknown keys are
refused. `rlhf-ray check -c RECIPE` prints what a recipe amounts to.

A section with a `kind` comes in several kinds, each with its own keys. A default in braces names
only what differs from the section's own defaults.
"""
LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minProperties": "at least {}",
}
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "array": "list",
    "object": "keys and values",
    "null": "null",
}
Node = dict[str, Any]


def render() -> str:
    """The whole page."""
    tree = Recipe.model_json_schema()
    sections: dict[str, list[str]] = {}
    _walk(tree, "", tree["$defs"], sections)
    parts = [HEAD, *_section("Recipe", tree, ["The recipe"], tree["$defs"])]
    for name, paths in sections.items():
        parts += _section(name, tree["$defs"][name], [f"`{path}`" for path in paths], tree["$defs"])
    return "\n".join(parts)


def _walk(node: Node, path: str, defs: Node, sections: dict[str, list[str]]) -> None:
    """Every section below `node`, depth first, with all key paths that lead to it."""
    for key, value in node["properties"].items():
        here = f"{path}.{key}".lstrip(".")
        if "additionalProperties" in value and isinstance(value["additionalProperties"], dict):
            here += ".NAME"
        for name in _references(value):
            sections.setdefault(name, []).append(here)
            _walk(defs[name], here, defs, sections)


def _section(name: str, node: Node, paths: list[str], defs: Node) -> Iterator[str]:
    """Heading, what the section is, and a table of its keys."""
    kind = node["properties"].get("kind", {}).get("const")
    yield f"## {', '.join(dict.fromkeys(paths))}" + (f" with `kind: {kind}`" if kind else "") + "\n"
    if text := node.get("description"):
        yield f"{' '.join(text.split())}\n"
    texts = field_texts(name)
    rows = {key: value for key, value in node["properties"].items() if "const" not in value}
    if not rows:
        return
    yield "| key | value | default | |\n|---|---|---|---|"
    for key, value in rows.items():
        cells = [f"`{key}`", _kind(value), _default(value, defs), texts.get(key, "")]
        yield f"| {' | '.join(cells)} |"
    yield ""


def field_texts(name: str) -> dict[str, str]:
    """The docstring under each field of a section, its parents' included, by field."""
    kinds = [getattr(module, name) for module in (schema, judges, section) if hasattr(module, name)]
    texts: dict[str, str] = {}
    for kind in reversed(kinds[0].__mro__):
        if issubclass(kind, section.Section):
            texts |= _own_texts(kind)
    return texts


def _own_texts(kind: type) -> dict[str, str]:
    (found,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(found, ast.ClassDef)
    texts = {}
    for field, after in zip(found.body, [*found.body[1:], ast.Pass()], strict=True):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=text)):
                texts[key] = re.sub(r"\bNone\b", "`null`", " ".join(str(text).split()))
    return texts


def _kind(value: Node) -> str:
    """What may stand there, in words."""
    choices = value.get("anyOf", value.get("oneOf", ()))
    if "anyOf" in value or any("$ref" not in one for one in choices):
        return " or ".join(_kind(one) for one in choices)
    if names := _references(value):
        return "section" if len(names) == 1 else "section with `kind`"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if value["type"] == "array" and value.get("items"):
        return f"list of {_kind(value['items'])}"
    limits = [form.format(f"{value[k]:g}") for k, form in LIMITS.items() if k in value]
    return " ".join([TYPES[value["type"]], ", ".join(limits)]).strip()


def _default(value: Node, defs: Node) -> str:
    if "default" not in value:
        return "required"
    default = value["default"]
    if isinstance(default, dict) and (names := _references(value)):
        own = next(defs[n] for n in names if len(names) == 1 or _const(defs[n]) == default["kind"])
        usual = {key: one.get("default") for key, one in own["properties"].items()}
        if len(names) > 1:
            usual.pop("kind")
        default = {key: one for key, one in default.items() if one != usual.get(key)}
        if not default:
            return ""
    # In a list, YAML writes a lone value without its end mark.
    text = yaml.safe_dump([default], default_flow_style=True, sort_keys=False, width=1000)
    return f"`{text.strip()[1:-1]}`"


def _const(node: Node) -> Any:
    return node["properties"]["kind"].get("const")


def _references(value: Node) -> list[str]:
    """Names of the sections a key may hold, in order."""
    more = value.get("additionalProperties")
    nodes = [value, *value.get("anyOf", ()), *value.get("oneOf", ())]
    nodes += [more, *more.get("oneOf", ())] if isinstance(more, dict) else []
    return [node["$ref"].rpartition("/")[2] for node in nodes if "$ref" in node]


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
