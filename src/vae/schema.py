"""How constructors and blocks declare the settings they take: the signature is the schema.

A *part* is chosen by name from a table (a dictionary of constructors); its options are the keyword-only parameters of
its constructor. A *block* is a frozen dataclass of such parameters.
"""

import difflib
import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vae.errors import ConfigError

C = TypeVar("C")


@dataclass(frozen=True)
class Interval:
    """The numbers that a setting may take: low <= value <= high, or low < value if `open`."""

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low = f"greater than {self.low:g}" if self.open else f"at least {self.low:g}"
        return low if self.high >= 2**53 else f"{low} and at most {self.high:g}"


Positive = Annotated[float, Interval(0, open=True)]
NonNegative = Annotated[float, Interval(0)]
Count = Annotated[int, Interval(1, 2**53)]
Index = Annotated[int, Interval(0, 2**53)]


@dataclass(frozen=True, eq=False)  # a union of types hashes its members, and a table has no hash
class OneOf:
    """A name from a table whose rows take no options."""

    table: Mapping[str, Any]


@dataclass(frozen=True)
class PartOf:
    """A part from a table: its name, or a mapping with its name and options."""

    table: Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class OptionsOf:
    """The keys of a block that are not its fields: options of the row of `table` that the block's `name` chooses."""

    table: Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class BlockOrPart:
    """A part from a table; or, under the name `default` or none, a block."""

    default: str
    block: type
    table: Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Part:
    """A chosen row of a table with its options, defaults filled in."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, table: Mapping[str, Callable[..., Any]], *given: Any) -> Any:
        """Call the row's constructor with the given arguments and the options."""
        return table[self.name](*given, **self.options)


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of a constructor, or field of a block."""

    type: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether the user has to give it."""
        return self.default is inspect.Parameter.empty


def options_of(constructor: Callable[..., Any]) -> dict[str, Option]:
    """The keyword-only parameters of a constructor: the signature is the schema."""
    hints = getattr(constructor, "option_types", None)
    if hints is None:
        target = constructor.__init__ if inspect.isclass(constructor) and not is_dataclass(constructor) else constructor
        hints = get_type_hints(target, include_extras=True)
    return {
        p.name: Option(hints[p.name], p.default)
        for p in inspect.signature(constructor).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }


def validated(constructor: type[C]) -> type[C]:
    """Check a part's options against its signature in direct calls too; ConfigError names the option."""
    init = constructor.__init__

    @functools.wraps(init)
    def checked(self: Any, *given: Any, **options: Any) -> None:
        known = options_of(constructor)
        for key, value in options.items():
            if key not in known:
                raise ConfigError(f"{constructor.__name__}: {key}: no such option{did_you_mean(key, known)}")
            try:
                options[key] = fitted(known[key].type, value)
            except Misfit as misfit:
                raise ConfigError(f"{constructor.__name__}: {key}: {misfit}") from None
        init(self, *given, **options)

    constructor.__init__ = checked  # type: ignore[method-assign]
    return constructor


def describe(part: Any, table: Mapping[str, Callable[..., Any]]) -> Part:
    """The name and options of a built part, which keeps its options as attributes of the same names.

    Anything that is not a row of the table (a user's own module) is described as the part `module`.
    """
    for name, constructor in table.items():
        if type(part) is constructor:
            return Part(name, {key: getattr(part, key) for key in options_of(constructor)})
    return Part("module", {"of": f"{type(part).__module__}.{type(part).__qualname__}"})


# ------------------------------------------------------------------------------------- a value and its type


class Misfit(Exception):
    """A value that does not fit its type, with the reason; the config reader adds the place."""


def fitted(type_: Any, raw: Any) -> Any:
    """The value as its type; Misfit if it is of another type or out of range. Neither True nor 20.5 is an int."""
    marks = marks_of(type_)
    if get_origin(type_) is Annotated:
        type_ = get_args(type_)[0]
    origin, inner = get_origin(type_), get_args(type_)
    if origin in (Union, types.UnionType):
        if raw is None and type(None) in inner:
            return None
        reasons = []
        for member in inner:
            if member is not type(None):
                try:
                    return fitted(member, raw)
                except Misfit as misfit:
                    reasons.append(str(misfit))
        raise Misfit("; or ".join(reasons))
    if origin is Literal:
        if raw not in inner or isinstance(raw, bool) != any(isinstance(i, bool) for i in inner if i == raw):
            raise Misfit(not_one_of(raw, inner))
        return raw
    if origin is tuple:
        if not isinstance(raw, list | tuple):
            raise Misfit(f"expected a list, not {show(raw)}")
        members = [inner[0]] * len(raw) if inner[-1] is Ellipsis else list(inner)
        if len(members) != len(raw):
            raise Misfit(f"expected {len(members)} values, not {show(raw)}")
        return tuple(fitted(member, value) for member, value in zip(members, raw, strict=True))
    value = _scalar(type_, raw)
    for mark in marks:
        if isinstance(mark, Interval) and value not in mark:
            raise Misfit(f"must be {mark}, not {show(raw)}")
        if isinstance(mark, OneOf) and value not in mark.table:
            raise Misfit(not_one_of(raw, mark.table))
    return value


def number(name: str, kind: Any, value: Any) -> Any:
    """A parameter as its kind, NumPy's numbers too. ValueError, as scikit-learn expects it, if it does not fit."""
    try:
        return fitted(kind, value.item() if hasattr(value, "item") else value)
    except Misfit as misfit:
        raise ValueError(f"{name}: {misfit}") from None


def _scalar(type_: type, raw: Any) -> Any:
    if type_ is bool and isinstance(raw, bool):
        return raw
    if type_ is str and isinstance(raw, str):
        return raw
    if not isinstance(raw, bool):
        if type_ is int and (isinstance(raw, int) or (isinstance(raw, float) and raw.is_integer())):  # 1e8 is a count
            return int(raw)
        if type_ is float and isinstance(raw, int | float) and abs(raw) <= sys.float_info.max:  # ints may be larger
            return float(raw)
    words = {bool: "true or false", str: "a word", int: "a whole number", float: "a finite number"}
    hint = "; put it in quotes if it is one" if type_ is str and isinstance(raw, bool | int | float) else ""
    raise Misfit(f"expected {words.get(type_, type_)}, not {show(raw)}{hint}")


def marks_of(type_: Any) -> tuple[Any, ...]:
    """What an annotation holds besides the type: intervals, tables, and descriptions."""
    return get_args(type_)[1:] if get_origin(type_) is Annotated else ()


def show(raw: Any) -> str:
    """A raw value in a message, not too long."""
    text = "nothing" if raw is None else repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."


def printable(text: Any) -> str:
    """A text in a message: control characters escaped, and not too long."""
    escaped = repr(str(text))[1:-1]
    return escaped if len(escaped) <= 120 else escaped[:117] + "..."


def names_of(names: Iterable[Any], most: int = 100) -> str:
    """Names in a message, at most so many."""
    shown = [printable(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def not_one_of(raw: Any, names: Iterable[Any]) -> str:
    """The message for a value that is not one of the names, with the nearest name."""
    near = difflib.get_close_matches(str(raw), [str(name) for name in names], n=1, cutoff=0.5)
    return f"{show(raw)} is not one of {names_of(names)}" + (f"; did you mean {near[0]}?" if near else "")


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """A hint: the nearest known name, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {names_of(known)}" if known else "; there are none here"
