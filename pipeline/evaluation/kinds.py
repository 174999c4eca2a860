"""Options of an evaluation with several kinds, which differ in their options and defaults."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ValidationInfo, field_validator, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from pipeline.config import Section


def as_list(value: Any) -> Any:
    """Return a tuple, as a validator's values must be: a single value is a list of one, None stays None."""
    if value is None or isinstance(value, tuple):
        return value
    return tuple(value) if isinstance(value, list) else (value,)


class SectionOfKinds(Section):
    """A section with a field `kind`. `by_kind` has {option: {kind: default}} of options that depend on it.

    With any other kind such an option is refused and left out of the values. A default may be a function of
    the values before it, in the order of `by_kind`. For options in `lists`, one value means a list of one.
    """

    by_kind: ClassVar[Mapping[str, Mapping[str, Any]]]
    lists: ClassVar[tuple[str, ...]] = ()

    kind: str

    @model_validator(mode="before")
    @classmethod
    def _of_kind(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in the defaults of the kind; raises ValueError for an option of another kind."""
        kind = values.get("kind", cls.model_fields["kind"].default)
        if not any(kind in kinds for kinds in cls.by_kind.values()):
            return values  # the field's own check names what is accepted
        for key in sorted(values.keys() & cls.by_kind.keys()):
            if kind not in cls.by_kind[key]:
                raise ValueError(
                    f"{key} is an option of kind {' or '.join(cls.by_kind[key])}, not of kind {kind}"
                )
        filled = dict(values)
        for key, kinds in cls.by_kind.items():
            if kind in kinds and key not in filled:
                default = kinds[kind]
                try:
                    filled[key] = default(filled) if callable(default) else default
                except (TypeError, IndexError, KeyError):
                    continue  # a value before it has a wrong type, which the field's own check reports
        return filled

    @field_validator("*", mode="before")
    @classmethod
    def _listed(cls, value: Any, info: ValidationInfo) -> Any:
        """Make lists tuples, and a single value a list of one; a text for `c` is the name of a grid."""
        name = info.field_name == "c" and isinstance(value, str)
        listed = isinstance(value, list) or (info.field_name in cls.lists and not name)
        return as_list(value) if listed else value

    @field_validator("c", "lr", check_fields=False)
    @classmethod
    def _positive(cls, values: Any) -> Any:
        if isinstance(values, tuple) and any(value <= 0 for value in values):
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
