"""JsonForm: how the values of one type are written as JSON and read back as what they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, TypeGuard, cast
from uuid import UUID

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError
from pydantic_core import SchemaSerializer

from eventstore.round_trip import first_difference

STRINGS = "strings"
"""How infinities and not-a-number are written: JSON has no other word for them than null, which is read as None."""

_CLASSES = ("model", "dataclass", "typed-dict")
# What has a place for fields that nobody knows. A dataclass has none.
_MODELS = frozenset({"model", "model-fields"})
_DICTIONARIES = frozenset({"typed-dict"})
_LEAVES = frozenset({"none", "bool", "int", "float", "str", "bytes", "decimal", "uuid"})
_TIMES = frozenset({"date", "time", "datetime", "timedelta"})
# Two of these in a union cannot be told apart by their JSON.
_TEXTS = frozenset({"str", "bytes", "decimal", "uuid", "enum", "literal", *_TIMES})
_SECRETS_WRITER = (SecretStr.__module__, "_serialize_secret_field")
_FACTORIES = (list, dict, set, tuple, frozenset)
_UNTOUCHED = ("metadata", "default", "cls", "expected", "members", "function", "missing")

_TIME_SETTINGS = ("ser_json_temporal", "ser_json_timedelta", "val_temporal")
_KINDS: Mapping[type, str] = {
    bool: "bool", int: "int", float: "float", str: "str", bytes: "bytes", Decimal: "decimal", UUID: "uuid",
    date: "date", time: "time", datetime: "datetime", timedelta: "timedelta",
}  # fmt: skip


class Loss(NamedTuple):
    """A field that does not come back, and why. `place` is its path from the outermost type."""

    place: str
    reason: str


class JsonForm:
    """How the values of one type are written and read: by the names of their fields, whatever aliases these have, with
    infinities as texts on every level. With `extra="allow"` unknown fields are read, and written again."""

    __slots__ = ("_extra", "_is_exact", "_models", "losses", "read", "to_python", "write")

    def __init__(
        self,
        survey: Survey,
        serializer: SchemaSerializer,
        read: Callable[..., Any],
        *,
        extra: Literal["allow"] | None = None,
    ) -> None:
        self.losses: Sequence[Loss] = survey.losses
        """What is lost whatever the value is."""
        self._is_exact = survey.is_exact
        self._models: Sequence[type] = survey.models
        self._extra = {} if extra is None else {"extra": extra}
        if (survey.has_floats and not survey.has_strings) or extra is not None:
            serializer, is_everywhere = _everywhere(survey, keeps_unknown=extra is not None)
            self._is_exact = self._is_exact and (is_everywhere or survey.is_flat)
        writing: dict[str, Any] = {"by_alias": False} if survey.has_aliases else {}
        if survey.has_derived:
            writing["round_trip"] = True
        self.write: Callable[..., bytes] = partial(serializer.to_json, **writing) if writing else serializer.to_json
        """A value as JSON. It raises what pydantic raises."""
        self.to_python: Callable[..., Any] = partial(serializer.to_python, **writing)
        """The same as Python values that are not JSON yet."""
        self.read: Callable[..., Any] = by_any_name(read) if survey.has_aliases else read
        """A value out of its JSON. It raises what pydantic raises."""

    @property
    def is_always_exact(self) -> bool:
        """Whether every value of the type comes back as it was, now and for ever."""
        return self._is_exact and not self._models

    @property
    def is_exact(self) -> bool:
        """Whether that holds for now: an instance of a subclass would come back as one of the class that the field is
        declared with, and there is no such subclass so far."""
        return self._is_exact and not any(map(type.__subclasses__, self._models))

    def difference(self, value: object, written: bytes) -> str | None:
        """Where a value would come back as another one, without the value. None if it does not."""
        try:
            again = self.read(written, **self._extra)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"])) or "it"
            return f"{place} could not be read again"
        except Exception as error:
            # A validator of the user's own may raise anything.
            return f"it could not be read again ({type(error).__name__})"
        return first_difference(value, again)


def form_of(adapter: TypeAdapter[Any]) -> JsonForm:
    """The form of any type. Raises `PydanticUserError` for one that is not defined completely."""
    survey = Survey(adapter.core_schema)
    return JsonForm(survey, adapter.serializer, adapter.validator.validate_json)


def form_of_model(cls: type[BaseModel], *, extra: Literal["allow"] | None = None) -> JsonForm:
    """The form of values whose class is exactly this one. Raises `PydanticUserError` as `form_of` does."""
    return JsonForm(survey_of(cls), cls.__pydantic_serializer__, cls.__pydantic_validator__.validate_json, extra=extra)


def reader(cls: type[BaseModel], read: Callable[..., Any]) -> Callable[..., Any]:
    """What reads values of a class out of JSON, for all spellings of its fields."""
    if not cls.__pydantic_complete__ and not cls.model_rebuild(raise_errors=False):
        return read
    return by_any_name(read) if survey_of(cls).has_aliases else read


def keeping_reader(cls: type[BaseModel]) -> Callable[[str | bytes], Any]:
    """What reads one value of a class out of its JSON, with fields that the class does not know. If one of these is a
    dataclass's with slots, which has no room for it, all of them are left out."""
    read = reader(cls, cls.__pydantic_validator__.validate_json)
    keep = partial(read, extra="allow")
    if not (cls.__pydantic_complete__ and survey_of(cls).has_slots):
        return keep

    def keep_or_leave(payload: str | bytes) -> Any:
        try:
            return keep(payload)
        except AttributeError:
            return read(payload, extra="ignore")

    return keep_or_leave


def by_any_name(read: Callable[..., Any]) -> Callable[..., Any]:
    """Fields are written by their names; what somebody wrote by their aliases is read as well."""
    return partial(read, by_name=True, by_alias=True)


@lru_cache(maxsize=1024)
def survey_of(cls: type[BaseModel]) -> Survey:
    """What can be told of a model by its schema. Raises `PydanticUserError` if it is not defined completely."""
    if not cls.__pydantic_complete__:
        cls.model_rebuild()
    return Survey(cls.__pydantic_core_schema__, owner=cls)


def _everywhere(survey: Survey, *, keeps_unknown: bool) -> tuple[SchemaSerializer, bool]:
    """A serializer that writes infinities as texts within nested models too, and what their classes do not know:
    otherwise each goes by its own configuration. And whether it does."""
    config: Any = {"ser_json_inf_nan": STRINGS}
    # Of a union the first choice that fits is written. A typed dictionary that takes all fields would fit the others'.
    kinds = _MODELS if survey.has_dictionary_unions else _MODELS | _DICTIONARIES
    schema: Any = _rewritten(survey.core_schema, kinds if keeps_unknown else frozenset())
    try:
        # The models' own serializers, which are there already, would be used for what is nested.
        return SchemaSerializer(schema, config, _use_prebuilt=False), True
    except TypeError:
        return SchemaSerializer(schema, config), False


def _rewritten(node: Any, loose: frozenset[str]) -> Any:
    """A schema of which all parts write infinities as texts, and the `loose` kinds what they have besides fields."""
    if _is_list(node):
        parts = [_rewritten(each, loose) for each in node]
        return parts if isinstance(node, list) else tuple(parts)
    if not _is_dict(node):
        return node
    kind = node.get("type")
    if not isinstance(kind, str):
        # The keys are names of fields, or tags.
        return {key: _rewritten(each, loose) for key, each in node.items()}
    made = {key: each if key in _UNTOUCHED else _rewritten(each, loose) for key, each in node.items()}
    if kind in _CLASSES:
        made["config"] = {**(made.get("config") or {}), "ser_json_inf_nan": STRINGS}
        if kind in loose:
            made["config"]["extra_fields_behavior"] = "allow"
    if kind in loose:
        made["extra_behavior"] = "allow"
    return made


class Survey:
    """What can be told from pydantic's schema of a type. What is not known to come back as it was, is not exact."""

    def __init__(self, core_schema: Mapping[str, Any], *, owner: type | None = None) -> None:
        """The values are of the class `owner` and of no subclass, if it is given.

        `is_flat` says that there is no class in it but that, and no code of the user's: what becomes of unknown fields
        decides about nothing else then. `has_slots` says that there is a dataclass that has no room for them at all.
        """
        self.core_schema = core_schema
        self.is_exact = True
        self.is_flat = True
        self.has_aliases = False
        self.has_derived = False
        self.has_dictionary_unions = False
        self.has_floats = False
        self.has_slots = False
        self.has_strings = owner is not None
        self.losses: list[Loss] = []
        self.models: list[type] = []
        self._owner = owner
        self._definitions: dict[str, Mapping[str, Any]] = {}
        self._seen: set[str] = set()
        self._visit(core_schema, "", {})

    def _visit(self, schema: Mapping[str, Any], place: str, config: Mapping[str, Any]) -> None:
        if "serialization" in schema:
            self.is_exact = self.is_flat = False
            self.has_floats = True
            serialization = schema["serialization"]
            if serialization["type"] != "function-wrap":
                # What is in it is not asked, so nothing can be told of it.
                self._note_secret(serialization, place)
                return
        match schema["type"]:
            case "definitions":
                self._definitions |= {each["ref"]: each for each in schema["definitions"]}
                self._visit(schema["schema"], place, config)
            case "definition-ref":
                self.is_flat = False
                if schema["schema_ref"] not in self._seen:
                    self._seen.add(schema["schema_ref"])
                    self._visit(self._definitions[schema["schema_ref"]], place, config)
            case "model" | "dataclass" | "typed-dict":
                self._visit_class(schema, place, config)
            case "model-fields" | "dataclass-args":
                self._visit_fields(schema, place, config)
            case "default":
                self._visit_default(schema)
                self._visit(schema["schema"], place, config)
            case "union":
                self._visit_union(schema, place, config)
            case "enum":
                values = [each.value for each in schema["members"]]
                if issubclass(schema["cls"], Flag) or "missing" in schema or not _are_of_one_type(values):
                    self.is_exact = False
            case "literal":
                if not _are_of_one_type(schema["expected"]):
                    self.is_exact = False
            case "nullable" | "list" | "set" | "frozenset" | "tuple" | "dict":
                self._visit_container(schema, place, config)
            case known if known in _LEAVES or known in _TIMES:
                self.has_floats = self.has_floats or known == "float"
                if schema.get("strict", config.get("strict")) and known not in ("none", "bool", "int", "str"):
                    self.is_exact = False
            case other:
                self.is_exact = self.is_flat = False
                self.has_floats = True
                # A text with JSON in it is written as what was in it.
                self.has_derived = self.has_derived or other == "json"
                self._visit_unknown(schema, place, config)

    def _visit_class(self, schema: Mapping[str, Any], place: str, config: Mapping[str, Any]) -> None:
        if ref := schema.get("ref"):
            self._seen.add(ref)
        own: Mapping[str, Any] = schema.get("config") or {}
        config = own if schema["type"] == "model" else {**config, **own}
        self.has_slots = self.has_slots or (schema["type"] == "dataclass" and bool(schema.get("slots")))
        if schema["type"] != "typed-dict" and schema["cls"] is not self._owner:
            self.models.append(schema["cls"])
        if (
            schema["type"] != "model"
            or schema["cls"] is not self._owner
            or schema.get("custom_init")
            or schema.get("post_init")
        ):
            self.is_flat = False
        if (own or schema["type"] == "model") and own.get("ser_json_inf_nan") != STRINGS:
            self.has_strings = False
        if (
            schema.get("custom_init")
            or schema.get("post_init")
            or config.get("extra") == "allow"
            or config.get("ser_json_bytes", "utf8") != config.get("val_json_bytes", "utf8")
            or any(key.startswith(_TIME_SETTINGS) for key in config)
        ):
            self.is_exact = False
        if schema["type"] == "typed-dict":
            self._visit_fields(schema, place, config)
        else:
            self._visit(schema["schema"], place, config)

    def _visit_fields(self, schema: Mapping[str, Any], place: str, config: Mapping[str, Any]) -> None:
        if schema.get("computed_fields"):
            # They are not stored: they are computed again.
            self.has_derived = True
            self.is_exact = False
        fields: Any = schema["fields"]
        named: Mapping[str, Any] = fields if _is_dict(fields) else {each["name"]: each for each in fields}
        for name, field in named.items():
            path = f"{place}.{name}" if place else name
            if field.get("serialization_exclude") or "serialization_exclude_if" in field:
                self.losses.append(Loss(path, "it is excluded from what is written"))
            if "validation_alias" in field or "serialization_alias" in field:
                self.has_aliases = True
                self.is_exact = False
            if field.get("init") is False or field.get("init_only"):
                self.is_exact = False
            self._visit(field["schema"], path, config)

    def _visit_default(self, schema: Mapping[str, Any]) -> None:
        """A default is not validated, so it may be one that cannot be read."""
        if schema.get("validate_default"):
            return
        inner = schema["schema"]
        if "default_factory" in schema:
            made = schema["default_factory"]
            is_sound = made in _FACTORIES and inner["type"] == made.__name__ and not inner.get("min_length")
        else:
            default = schema.get("default")
            if inner["type"] == "nullable":
                if default is None:
                    return
                inner = inner["schema"]
            constraints = inner.keys() - {"type", "ref", "metadata", "strict"}
            kind = _KINDS.get(cast("type", type(default)))
            is_sound = (
                (kind is not None and inner["type"] in (kind, "float" if kind == "int" else kind) and not constraints)
                or (inner["type"] == "enum" and isinstance(default, Enum) and type(default) is inner["cls"])
                or (inner["type"] == "literal" and default in inner["expected"])
                or (
                    not default
                    and type(default) in _FACTORIES
                    and type(default).__name__ == inner["type"]
                    and not inner.get("min_length")
                )
            )
        if not is_sound:
            self.is_exact = False

    def _visit_union(self, schema: Mapping[str, Any], place: str, config: Mapping[str, Any]) -> None:
        choices: list[Mapping[str, Any]] = [
            each[0] if isinstance(each, tuple) else each for each in cast("list[Any]", schema["choices"])
        ]
        kinds = [choice["type"] for choice in choices]
        texts = sum(kind in _TEXTS for kind in kinds)
        is_plain = all(kind in _LEAVES or kind in _TEXTS for kind in kinds)
        if not is_plain or texts > 1 or (texts and "float" in kinds) or schema.get("mode") == "left_to_right":
            self.is_exact = False
        self.has_dictionary_unions = self.has_dictionary_unions or self._holds_dictionary(choices, set())
        for choice in choices:
            self._visit(choice, place, config)

    def _holds_dictionary(self, node: Any, seen: set[str]) -> bool:
        """Whether typed dictionaries are in a part of a schema: beside models, which are told apart by their class."""
        if _is_list(node):
            return any(self._holds_dictionary(each, seen) for each in node)
        if not _is_dict(node) or node.get("type") in ("model", "dataclass"):
            return False
        ref = node.get("schema_ref")
        if isinstance(ref, str) and ref not in seen:
            seen.add(ref)
            return self._holds_dictionary(self._definitions[ref], seen)
        return node.get("type") == "typed-dict" or self._holds_dictionary(list(node.values()), seen)

    def _visit_container(self, schema: Mapping[str, Any], place: str, config: Mapping[str, Any]) -> None:
        match schema["type"]:
            case "nullable":
                self._visit(schema["schema"], place, config)
            case "dict":
                if schema.get("keys_schema", {}).get("type") not in ("str", "int") or "values_schema" not in schema:
                    self.is_exact = False
                self._visit_unknown(schema, place, config)
            case "tuple":
                for each in schema["items_schema"]:
                    self._visit(each, place, config)
            case _:
                if "items_schema" not in schema:
                    self.is_exact = False
                else:
                    self._visit(schema["items_schema"], place, config)

    def _visit_unknown(self, schema: Mapping[str, Any], place: str, config: Mapping[str, Any]) -> None:
        """Whatever is in it may still be said to be lost."""
        for key, each in schema.items():
            if key != "serialization" and key not in _UNTOUCHED:
                for inner in _schemas_in(each):
                    self._visit(inner, place, config)

    def _note_secret(self, serialization: Mapping[str, Any], place: str) -> None:
        """A secret is written as asterisks, unless the field has a serializer of its own."""
        function = serialization.get("function")
        # Not every callable has a name: a partial has none, nor what takes an attribute.
        is_secrets = (getattr(function, "__module__", None), getattr(function, "__name__", None)) == _SECRETS_WRITER
        if is_secrets and all(loss.place != place for loss in self.losses):
            self.losses.append(Loss(place, "of a secret only asterisks are written"))


def _schemas_in(value: Any) -> Iterator[Mapping[str, Any]]:
    if _is_dict(value):
        if isinstance(value.get("type"), str):
            yield value
        else:
            for each in value.values():
                yield from _schemas_in(each)
    elif _is_list(value):
        for each in value:
            yield from _schemas_in(each)


def _are_of_one_type(values: Sequence[object]) -> bool:
    """Whether all are texts or all whole numbers, which JSON keeps apart."""
    return all(type(each) is str for each in values) or all(type(each) is int for each in values)


def _is_dict(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)
