"""The tools that an MCP server lists, made into what the MCP library and every model API take.

The library refuses a whole list for one tool whose schema is odd, and OpenAI's API refuses a whole
request. So each schema is made well-formed and brought into the one form that both take, an object
with properties: those of references and alternatives at its top are put together. What cannot be (a
tool without a name, or one that takes no object) is left out. Both are said in a note.
"""

import json
from typing import Any

Json = dict[str, Any]

ALTERNATIVES = ("anyOf", "oneOf")
# What OpenAI's API refuses beside `type: object`, at the top of a schema.
NOT_AT_THE_TOP = ("$ref", "allOf", *ALTERNATIVES, "not", "enum", "const", "if", "then", "else")
MAX_REFERENCES = 32
MAX_DEPTH = 64
MAX_CHANGES = 5
SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
LISTS_OF_SCHEMAS = ("allOf", *ALTERNATIVES, "prefixItems")
SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
# Where null is a value.
VALUES = ("default", "const", "examples")
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
KEYWORDS = (
    *("type", "required", "enum", "default", *NOT_AT_THE_TOP),
    *(*SCHEMAS_BY_NAME, *LISTS_OF_SCHEMAS, *SCHEMAS),
)
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
    repair = _Repair(schema)
    whole = repair.schema(schema)
    properties, required = _Flattening(whole, repair.changes).read(whole)
    usable = {key: value for key, value in whole.items() if key not in NOT_AT_THE_TOP}
    known = {name: value for name, value in properties.items() if value is not False}
    usable |= {"type": "object", "properties": known}
    usable.pop("required", None)
    if wanted := [name for name in required if name in known]:
        usable["required"] = wanted
    changes = [*repair.changes, *(f"{key} at its top" for key in NOT_AT_THE_TOP if key in whole)]
    return usable, ", ".join([*dict.fromkeys(changes)][:MAX_CHANGES])


class _Repair:
    """Makes every part of a schema well-formed; `changes` says what was not."""

    def __init__(self, root: Json) -> None:
        self._root = root
        self.changes: list[str] = []

    def schema(self, schema: Json, depth: int = 0) -> Json:
        if depth > MAX_DEPTH:
            self.changes.append(f"it was deeper than {MAX_DEPTH} levels")
            return {}
        usable = {}
        for key, value in schema.items():
            part = self._part(key, value, depth + 1)
            if part is not None or (value is None and key in VALUES):
                usable[key] = part
            else:
                self.changes.append(f"{key} was {json.dumps(value)[:40]}")
        if usable.get("type") == "array" and not usable.keys() & {"items", "prefixItems"}:
            usable["items"] = {}
            self.changes.append("a list had no items")
        return usable

    def _part(self, key: str, value: Any, depth: int) -> Any:
        """The value of a keyword as it can be used, None if it cannot."""
        if key in SCHEMAS_BY_NAME:
            named = value.items() if isinstance(value, dict) else ()
            found = {name: self._schema_or_flag(part, depth) for name, part in named}
            return found if isinstance(value, dict) else None
        if key in LISTS_OF_SCHEMAS:
            parts = value if isinstance(value, list) else ()
            return [self._schema_or_flag(part, depth) for part in parts] or None
        if key in SCHEMAS:
            return self._schema_or_flag(value, depth) if isinstance(value, dict | bool) else None
        if key == "required":
            if not isinstance(value, list):
                return None
            return [*dict.fromkeys(name for name in value if isinstance(name, str))]
        if key == "enum":
            return value if isinstance(value, list) else None
        if key == "type":
            kinds = value if isinstance(value, list) else [value]
            return value if kinds and all(kind in TYPES for kind in kinds) else None
        if key in ("$ref", "$dynamicRef"):
            return value if referred(self._root, value) is not None else None
        return value

    def _schema_or_flag(self, value: Any, depth: int) -> Any:
        if isinstance(value, bool):
            return value
        if isinstance(value, dict):
            return self.schema(value, depth)
        self.changes.append(f"a part was {json.dumps(value)[:40]}")
        return {}


class _Flattening:
    """Collects the properties of a well-formed schema, its references and alternatives included."""

    def __init__(self, root: Json, changes: list[str]) -> None:
        self._root = root
        self._changes = changes
        self._references = 0

    def read(self, schema: Json) -> tuple[Json, list[str]]:
        """The properties that `schema` names anywhere, and those that it always requires."""
        kind = schema.get("type", "object")
        if "object" not in (kind if isinstance(kind, list) else [kind]):
            raise NoObject(f"its input is of the type {kind}, not an object")
        properties, required = schema.get("properties", {}), schema.get("required", [])
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
        if "$ref" not in schema:
            return parts
        self._references += 1
        found = referred(self._root, schema["$ref"])
        if self._references > MAX_REFERENCES or found is None:
            self._changes.append("its references go in circles")
            return parts
        return [found, *parts]


def referred(root: Json, reference: object) -> Json | None:
    """What a reference within the schema means (RFC 6901), None if it leads nowhere."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: Any = root
    for step in filter(None, reference[1:].split("/")):
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def _schemas(value: object) -> list[Json]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
