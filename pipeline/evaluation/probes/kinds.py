"""Options of an evaluation that has several kinds: each kind has its own defaults, and some options only."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ValidationInfo, field_validator, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from pipeline.config import Section


class SectionOfKinds(Section):
    """A section with a field `kind`. `by_kind` has {option: {kind: default}} of options that depend on it.

    Such an option is refused with other kinds, and is not among the values then.
    """

    by_kind: ClassVar[Mapping[str, Mapping[str, Any]]]

    kind: str

    @model_validator(mode="before")
    @classmethod
    def _of_kind(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in the defaults of the kind; raises ValueError for an option of another kind."""
        kind = values.get("kind", cls.model_fields["kind"].default)
        for key in values.keys() & cls.by_kind.keys():
            kinds = cls.by_kind[key]
            if kind not in kinds and any(kind in other for other in cls.by_kind.values()):
                raise ValueError(f"{key} is an option of kind {' or '.join(kinds)}, not of kind {kind}")
        return {key: kinds[kind] for key, kinds in cls.by_kind.items() if kind in kinds} | values

    @field_validator("representations", "c", "lr", "weight_decay", mode="before", check_fields=False)
    @classmethod
    def _as_list(cls, value: Any, info: ValidationInfo) -> Any:
        """A single value is a list of one, but the name of a grid of numbers is a name."""
        if isinstance(value, str) and info.field_name != "representations":
            return value
        return tuple(value) if isinstance(value, list | tuple) else (value,)

    @field_validator("c", "lr", check_fields=False)
    @classmethod
    def _positive(cls, values: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if not isinstance(values, str) and any(value <= 0 for value in values):
            raise ValueError("numbers greater than 0 are needed")
        return values

    @model_validator(mode="after")
    def _not_empty(self) -> "SectionOfKinds":
        for name, kinds in self.by_kind.items():
            if self.kind in kinds and getattr(self, name) == ():
                raise ValueError(f"{name} is []: give one value or more")
        return self

    @model_serializer(mode="wrap")
    def _without_other_kinds(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: each for key, each in values.items() if self.kind in self.by_kind.get(key, (self.kind,))}
