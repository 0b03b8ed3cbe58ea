"""From msgspec structs to structural schemas (OpenAPI 3.0 as Kubernetes takes it)."""

import inspect
from typing import Any, Final

import msgspec

from cncmon_operator.crds.rules import LIST_KEYS, OF_FIELD, OF_STRUCT, Rule

_REF: Final = "#/"
_KEPT: Final = (
    "format", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum",
    "pattern",
)  # fmt: skip

Schema = dict[str, Any]


def of(struct: type[msgspec.Struct], *, defaults: bool = True) -> Schema:
    """Return the structural schema of a struct, all that it refers to included, with the rules that belong to it.

    defaults: whether the server is to fill in what is left out. Not in a status: its writer would find there what it
    did not write, and write for ever.

    Raises:
        ValueError: a field has no description, or a text or list no bound: neither may reach a cluster.
    """
    _, parts = msgspec.json.schema_components([struct], ref_template=_REF + "{name}")
    return _Translation(parts, defaults).struct(struct.__name__)


class _Translation:
    def __init__(self, parts: dict[str, Any], defaults: bool) -> None:
        self._parts = parts
        self._defaults = defaults

    def struct(self, name: str) -> Schema:
        part = self._parts[name]
        fields = {field: self._field(name, field, said) for field, said in part["properties"].items()}
        schema: Schema = {"type": "object", "description": _first_paragraph(part["description"]), "properties": fields}
        if part.get("required"):
            schema["required"] = list(part["required"])
        return schema | _validations(OF_STRUCT.get(name, ()))

    def _field(self, struct: str, field: str, said: Schema) -> Schema:
        schema = self._value(said, f"{struct}.{field}")
        if not schema.get("description"):
            raise ValueError(f"{struct}.{field} has no description")
        if field in LIST_KEYS:
            schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [LIST_KEYS[field]]}
        return schema | _validations(OF_FIELD.get((struct, field), ()))

    def _value(self, said: Schema, where: str) -> Schema:
        if "anyOf" in said:
            # `or nothing`: in Kubernetes such a field is left out.
            (inner,) = [one for one in said["anyOf"] if one.get("type") != "null"]
            return self._value(inner, where)
        if "$ref" in said:
            schema = self.struct(said["$ref"].removeprefix(_REF))
        elif "enum" in said:
            schema = {"type": "string", "enum": list(said["enum"])}
        else:
            schema = {"type": said["type"]} | {key: said[key] for key in _KEPT if key in said}
            self._add_inside(schema, said, where)
        if "exclusiveMinimum" in said:
            schema |= {"minimum": said["exclusiveMinimum"], "exclusiveMinimum": True}
        if "description" in said:
            schema["description"] = said["description"]
        # An empty default says no more than that the field may be left out.
        if self._defaults and said.get("default") not in (None, "", [], {}):
            schema["default"] = said["default"]
        return schema

    def _add_inside(self, schema: Schema, said: Schema, where: str) -> None:
        bound = {"array": "maxItems", "object": "maxProperties", "string": "maxLength"}.get(said["type"])
        if bound and bound not in said and said.get("format") != "date-time":
            raise ValueError(f"{where} has no bound ({bound})")
        if said["type"] == "array":
            schema["items"] = self._value(said["items"], f"{where}[]")
        elif said["type"] == "object":
            schema["additionalProperties"] = self._value(said["additionalProperties"], f"{where}{{}}")


def _validations(rules: tuple[Rule, ...]) -> Schema:
    said = [
        {"rule": rule.expression, "message": rule.message} | ({"fieldPath": rule.path} if rule.path else {})
        for rule in rules
    ]
    return {"x-kubernetes-validations": said} if said else {}


def _first_paragraph(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
