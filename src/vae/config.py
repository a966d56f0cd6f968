"""Settings from YAML, read strictly: dataclasses and the signatures of the parts are the schema.

A *block* is a frozen dataclass. A *part* is chosen by name from a table (a dictionary of constructors); its
options are the keyword-only parameters of its constructor. All misfits are collected and reported at once.
"""

import difflib
import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from vae.errors import ConfigError

T = TypeVar("T")

# ------------------------------------------------------------------------------------- the words of a schema


@dataclass(frozen=True)
class Interval:
    """The numbers that a setting may take: low <= value <= high, or low < value where `open` is set."""

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low = f"greater than {self.low:g}" if self.open else f"at least {self.low:g}"
        return low if self.high == math.inf else f"{low} and at most {self.high:g}"


Positive = Annotated[float, Interval(0, open=True)]
NonNegative = Annotated[float, Interval(0)]
Count = Annotated[int, Interval(1)]
Index = Annotated[int, Interval(0)]


@dataclass(frozen=True)
class OneOf:
    """A name out of a table whose rows take no options."""

    table: Mapping[str, Any]


@dataclass(frozen=True)
class PartOf:
    """A part out of a table: its name, or a mapping of its name and options."""

    table: Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class OptionsOf:
    """The keys of a block that are no fields of it: options of the row of `table` that the block's `name` chooses."""

    table: Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Part:
    """A chosen row of a table with its options, defaults filled in."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, table: Mapping[str, Callable[..., Any]], *given: Any) -> Any:
        """Call the row's constructor on what the program gives, then the options."""
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


def describe(part: Any, table: Mapping[str, Callable[..., Any]]) -> Part:
    """Read a built part back into its name and options, which it keeps as attributes of the same names.

    Anything that is no row of the table (a user's own module) is described as the part `module`.
    """
    for name, constructor in table.items():
        if type(part) is constructor:
            return Part(name, {key: getattr(part, key) for key in options_of(constructor)})
    return Part("module", {"of": f"{type(part).__module__}.{type(part).__qualname__}"})


# ------------------------------------------------------------------------------------- files


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}:" if mark else ""
        raise ConfigError(f"{where}:{line} not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError where it is missing, empty, or something else."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: cannot be read as a config file: {reason}") from None
    raw = _parse(text, str(path))
    if raw is None:
        raise ConfigError(f"{path}: the file is empty; a config needs at least data.name and model.latent_dim")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a config is a mapping of blocks (data, model, train, ...), not {_show(raw)}")
    return raw


def _nearest_file(path: Path) -> str:
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def override(raw: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b=value` assignments (values are YAML) to a raw config; the config given is not changed."""
    raw = _copy(raw)
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        keys = dotted.split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {assignment}: expected KEY=VALUE, for example train.epochs=5")
        block = raw
        for depth, key in enumerate(keys[:-1]):
            inner = block.get(key)
            if isinstance(inner, str):  # `likelihood: bernoulli` is short for `likelihood: {name: bernoulli}`
                inner = {"name": inner}
            elif inner is None:
                inner = {}
            elif not isinstance(inner, dict):
                raise ConfigError(f"--set {assignment}: {'.'.join(keys[: depth + 1])} has no settings of its own")
            block[key] = inner
            block = inner
        block[keys[-1]] = _parse(text, f"--set {assignment}")
    return raw


def _copy(raw: Any) -> Any:
    return {key: _copy(value) for key, value in raw.items()} if isinstance(raw, dict) else raw


# ------------------------------------------------------------------------------------- reading


def read(block: type[T], raw: Any, where: str, overridden: Iterable[str] = ()) -> T:
    """Turn a raw mapping into a block; ConfigError with one line a misfit, each with its place.

    `where` names the source (the file); `overridden` are the dotted keys that `--set` gave.
    """
    reader = _Reader()
    settings = reader.block(block, raw, "")
    if reader.problems:
        given = [key.partition("=")[0] for key in overridden]

        def source(place: str) -> str:
            return "--set" if any(place == g or place.startswith(g + ".") for g in given) else where

        raise ConfigError("\n".join(f"{source(place)}: {place}: {text}" for place, text in reader.problems))
    return settings


class _Misfit(Exception):
    """A value that does not fit; carries why. Never leaves this module."""


class _Reader:
    """Walks a raw config along the schema and collects (place, message) of every misfit."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    def block(self, block: type[Any], raw: Any, place: str) -> Any:
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            return self.problem(place, f"expected a mapping of settings, not {_show(raw)}")
        options = options_of(block)
        before = len(self.problems)
        table = next((m.table for o in options.values() for m in _marks(o.type) if isinstance(m, OptionsOf)), None)
        if table is None:
            values = self.options(options, raw, place)
        else:
            common = {key: option for key, option in options.items() if not _is_options(option.type)}
            name = raw.get("name")
            row = table.get(name) if isinstance(name, str) else None
            own = options_of(row) if row is not None else {}
            values = self.options({**own, **common}, raw, place, strict=row is not None)
            values["options"] = {key: values.pop(key) for key in own if key in values}
        if len(self.problems) > before:
            return None
        try:
            return block(**values)
        except ValueError as error:
            return self.problem(place, str(error))

    def options(
        self, options: Mapping[str, Option], raw: Mapping[Any, Any], place: str, strict: bool = True
    ) -> dict[str, Any]:
        for key in raw:
            if strict and key not in options:
                self.problem(_join(place, key), f"no such setting{did_you_mean(key, options)}")
        values = {}
        for key, option in options.items():
            if key in raw:
                values[key] = self.value(option.type, raw[key], _join(place, key), option.default)
            elif option.required:
                self.problem(_join(place, key), "this setting is required")
            else:
                default = option.default
                filled = isinstance(default, str) and any(isinstance(m, PartOf) for m in _marks(option.type))
                values[key] = self.value(option.type, default, _join(place, key)) if filled else default
        return values

    def value(self, type_: Any, raw: Any, place: str, default: Any = None) -> Any:
        for mark in _marks(type_):
            if isinstance(mark, PartOf):
                if raw is None and _optional(type_):
                    return None
                return self.part(mark.table, raw, place, default)
        if is_dataclass(type_) and isinstance(type_, type):
            return self.block(type_, raw, place)
        try:
            return fitted(type_, raw)
        except _Misfit as misfit:
            return self.problem(place, str(misfit))

    def part(self, table: Mapping[str, Callable[..., Any]], raw: Any, place: str, default: Any) -> Part | None:
        if isinstance(raw, str):
            raw = {"name": raw}
        elif isinstance(raw, dict) and "name" not in raw and isinstance(default, str):
            raw = {"name": default, **raw}  # options alone are those of the part that is taken anyway
        if not isinstance(raw, dict) or "name" not in raw:
            return self.problem(place, f"expected one of {_names(table)}, or a mapping with its name, not {_show(raw)}")
        name = raw["name"]
        if not isinstance(name, str) or name not in table:
            return self.problem(_join(place, "name"), f"{_show(name)} is not one of {_names(table)}")
        rest = {key: value for key, value in raw.items() if key != "name"}
        return Part(name, self.options(options_of(table[name]), rest, place))

    def problem(self, place: str, text: str) -> Any:
        self.problems.append((place or "config", text))
        return None


def fitted(type_: Any, raw: Any) -> Any:
    """The value as its type; raises where it is of another type or out of range. True is no int, 20.5 neither."""
    marks = _marks(type_)
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
                except _Misfit as misfit:
                    reasons.append(str(misfit))
        raise _Misfit("; or ".join(reasons))
    if origin is Literal:
        if raw not in inner or isinstance(raw, bool) != any(isinstance(i, bool) for i in inner if i == raw):
            raise _Misfit(f"{_show(raw)} is not one of {_names(inner)}")
        return raw
    if origin is tuple:
        if not isinstance(raw, list | tuple):
            raise _Misfit(f"expected a list, not {_show(raw)}")
        members = [inner[0]] * len(raw) if inner[-1] is Ellipsis else list(inner)
        if len(members) != len(raw):
            raise _Misfit(f"expected {len(members)} values, not {_show(raw)}")
        return tuple(fitted(member, value) for member, value in zip(members, raw, strict=True))
    value = _scalar(type_, raw)
    for mark in marks:
        if isinstance(mark, Interval) and value not in mark:
            raise _Misfit(f"must be {mark}, not {_show(raw)}")
        if isinstance(mark, OneOf) and value not in mark.table:
            raise _Misfit(f"{_show(raw)} is not one of {_names(mark.table)}")
    return value


def _scalar(type_: type, raw: Any) -> Any:
    if type_ is bool and isinstance(raw, bool):
        return raw
    if type_ is str and isinstance(raw, str):
        return raw
    if not isinstance(raw, bool):
        if type_ is int and (isinstance(raw, int) or (isinstance(raw, float) and raw.is_integer())):  # 1e8 is a count
            return int(raw)
        if type_ is float and isinstance(raw, int | float) and math.isfinite(raw):
            return float(raw)
    words = {bool: "true or false", str: "a word", int: "a whole number", float: "a finite number"}
    raise _Misfit(f"expected {words.get(type_, type_)}, not {_show(raw)}")


def _marks(type_: Any) -> tuple[Any, ...]:
    return get_args(type_)[1:] if get_origin(type_) is Annotated else ()


def _is_options(type_: Any) -> bool:
    return any(isinstance(mark, OptionsOf) for mark in _marks(type_))


def _optional(type_: Any) -> bool:
    return type(None) in get_args(get_args(type_)[0])


def _join(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def _show(raw: Any) -> str:
    text = "nothing" if raw is None else repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."


def _names(names: Iterable[Any]) -> str:
    return ", ".join(str(name) for name in names)


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """A hint with the nearest right name, or the list of them."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {_names(known)}" if known else "; there are none here"


# ------------------------------------------------------------------------------------- writing and comparing


def plain(settings: Any) -> Any:
    """Settings as what YAML and JSON hold; reading it back gives the same settings."""
    if isinstance(settings, Part):
        return {"name": settings.name, **plain(settings.options)}
    if is_dataclass(settings) and not isinstance(settings, type):
        values = {}
        for key, option in options_of(type(settings)).items():
            value = plain(getattr(settings, key))
            values.update(value) if _is_options(option.type) else values.update({key: value})
        return values
    if isinstance(settings, dict):
        return {key: plain(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [plain(value) for value in settings]
    return settings


def dump(raw: Mapping[str, Any]) -> str:
    """Plain settings as YAML text, in their order."""
    return yaml.dump(dict(raw), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=110)


class _Dumper(yaml.SafeDumper):
    """Lists of scalars on one line."""


_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def flatten(raw: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain settings as {dotted key: value}."""
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        place = _join(prefix, key)
        flat.update(flatten(value, place) if isinstance(value, Mapping) else {place: value})
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ between two plain configs."""
    a, b = flatten(old), flatten(new)
    missing = object()
    return sorted(key for key in a.keys() | b.keys() if a.get(key, missing) != b.get(key, missing))
