"""The tools that an MCP server lists, made into what the MCP library and every model API take.

The library refuses a whole list for one tool whose schema is odd, and OpenAI's API refuses a whole
request. So a schema is brought into the one form that both take: an object with properties. What
cannot be (a tool without a name, or one that wants no object) is left out. Both are said in a note.
"""

from typing import Any

Json = dict[str, Any]

ALTERNATIVES = ("anyOf", "oneOf")
# What OpenAI's API refuses beside `type: object`, at the top of a schema.
NOT_AT_THE_TOP = ("$ref", "allOf", *ALTERNATIVES, "not", "enum", "const", "if", "then", "else")
MAX_REFERENCES = 32
KEPT_FIELDS = ("name", "title", "description")


class NoObject(ValueError):
    """A schema that no object of arguments can fulfil."""


def usable_tools(tools: object) -> tuple[list[Json], list[str]]:
    """The tools that can be offered to a model, and notes on what was left out or changed."""
    usable, notes = [], []
    for tool in tools if isinstance(tools, list) else []:
        name = tool.get("name") if isinstance(tool, dict) else None
        if not isinstance(name, str) or not name:
            notes.append("A tool without a name was left out.")
            continue
        try:
            schema, changes = object_schema(tool.get("inputSchema"))
        except NoObject as error:
            notes.append(f"The tool {name} was left out: {error}.")
            continue
        if changes:
            notes.append(f"The input schema of the tool {name} was simplified: {changes}.")
        kept = {key: tool[key] for key in KEPT_FIELDS if isinstance(tool.get(key), str)}
        usable.append({**kept, "inputSchema": schema})
    return usable, notes


def object_schema(schema: object) -> tuple[Json, str]:
    """`schema` as an object with properties, and what had to change. Raises NoObject."""
    if not isinstance(schema, dict):
        return {"type": "object", "properties": {}}, "there was none"
    flat = _Flattening(schema)
    properties, required = flat.read(schema)
    known = {name: value for name, value in properties.items() if value is not False}
    usable = {key: value for key, value in schema.items() if key not in NOT_AT_THE_TOP}
    if not isinstance(usable.get("$schema", ""), str):
        del usable["$schema"]
    usable |= {"type": "object", "properties": known}
    usable.pop("required", None)
    if wanted := [name for name in required if name in known]:
        usable["required"] = wanted
    changes = [f"{key} at its top" for key in NOT_AT_THE_TOP if key in schema]
    changes += [
        f"{key} was no {kind}"
        for key, kind in (("properties", "object"), ("required", "list"))
        if key in schema and not isinstance(schema[key], dict if kind == "object" else list)
    ]
    return usable, ", ".join([*changes, *flat.unknown])


class _Flattening:
    """Collects the properties of one schema, its references and alternatives included."""

    def __init__(self, root: Json) -> None:
        self._root = root
        self._references = 0
        self.unknown: list[str] = []

    def read(self, schema: Json) -> tuple[Json, list[str]]:
        """The properties that `schema` names anywhere, and those that it always requires."""
        kind = schema.get("type", "object")
        if kind is not None and "object" not in (kind if isinstance(kind, list) else [kind]):
            raise NoObject(f"its input is of the type {kind}, not an object")
        properties, required = _own_properties(schema), _own_required(schema)
        for part in self._parts_of_all(schema):
            more, wanted = self.read(part)
            properties, required = {**more, **properties}, required + wanted
        for keyword in ALTERNATIVES:
            choices = [self.read(part) for part in _schemas(schema.get(keyword))]
            for more, _ in choices:
                properties = {**more, **properties}
            if choices:
                first, *others = (wanted for _, wanted in choices)
                required = required + [n for n in first if all(n in w for w in others)]
        return properties, [*dict.fromkeys(required)]

    def _parts_of_all(self, schema: Json) -> list[Json]:
        parts = _schemas(schema.get("allOf"))
        if "$ref" in schema:
            parts = [self._referred(schema["$ref"]), *parts]
        return parts

    def _referred(self, reference: object) -> Json:
        """What a reference within the schema means; an unknown one means any object."""
        self._references += 1
        found: object = self._root
        if isinstance(reference, str) and reference.startswith("#"):
            for step in filter(None, reference[1:].split("/")):
                name = step.replace("~1", "/").replace("~0", "~")
                found = found.get(name) if isinstance(found, dict) else None
        else:
            found = None
        if isinstance(found, dict) and self._references <= MAX_REFERENCES:
            return found
        self.unknown.append(f"the reference {str(reference)[:80]} leads nowhere")
        return {}


def _schemas(value: object) -> list[Json]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _own_properties(schema: Json) -> Json:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    return {n: v if isinstance(v, dict | bool) else {} for n, v in properties.items()}


def _own_required(schema: Json) -> list[str]:
    required = schema.get("required")
    return [n for n in required if isinstance(n, str)] if isinstance(required, list) else []
