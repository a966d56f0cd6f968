"""Settings from YAML, checked strictly against a schema; all errors are collected and reported at once."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from vae.errors import ConfigError
from vae.files import open_regular
from vae.schema import (
    BlockOrPart,
    Misfit,
    Option,
    OptionsOf,
    Part,
    PartOf,
    did_you_mean,
    fitted,
    marks_of,
    names_of,
    not_one_of,
    options_of,
    printable,
    show,
)

T = TypeVar("T")

# ------------------------------------------------------------------------------------- files


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number, and refuses duplicate keys, tags, and aliases (which can nest without end)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", event.start_mark)
        if event.tag is not None:
            raise yaml.composer.ComposerError(None, None, "tags (!!name) are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {show(key)} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# Numbers as people write them: YAML 1.1 reads 010 as eight, 1:30 as ninety, and 1e-3 as a string. Dates, and numbers of
# more than thirty digits, are words.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag.endswith((":bool", ":null"))]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]{0,29})$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?([0-9][0-9_]{0,29}\.[0-9]{0,29}|\.[0-9]{1,29})([eE][-+]?[0-9]{1,9})?$"
        r"|[-+]?[0-9][0-9_]{0,29}[eE][-+]?[0-9]{1,9}$|[-+]?\.inf$|\.nan$"
    ),
    list("-+0123456789."),
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
    """The mapping in a YAML file; ConfigError if it is missing, empty, or not a mapping."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            text = file.read().decode()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: cannot be read as a config file: {reason}") from None
    raw = _parse(text, str(path))
    if raw is None:
        raise ConfigError(f"{path}: the file is empty; a config needs at least data.name and model.latent_dim")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a config is a mapping of blocks (data, model, train, ...), not {show(raw)}")
    return raw


def _nearest_file(path: Path) -> str:
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def override(raw: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of a raw config with `a.b=value` assignments (values are YAML) applied."""
    raw = _copy(raw)
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals or not all(dotted.split(".")):
            raise ConfigError(f"--set {printable(assignment)}: expected KEY=VALUE, for example train.epochs=5")
        where = f"--set {printable(assignment)}"
        _assign(raw, dotted, _parse(text, where), where)
    return raw


def _assign(raw: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    keys = dotted.split(".")
    block = raw
    for depth, key in enumerate(keys[:-1]):
        inner = block.get(key)
        if isinstance(inner, str):  # `likelihood: bernoulli` is short for `likelihood: {name: bernoulli}`
            inner = {"name": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise ConfigError(f"{where}: {'.'.join(keys[: depth + 1])} has no settings of its own")
        block[key] = inner
        block = inner
    block[keys[-1]] = value


def read_grid(assignments: Iterable[str]) -> dict[str, list[Any]]:
    """The values of `a.b=value,value,...` assignments (values are YAML) by their dotted keys."""
    grid: dict[str, list[Any]] = {}
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals or not all(dotted.split(".")):
            raise ConfigError(f"--grid {assignment}: expected KEY=VALUE,VALUE,..., for example train.seed=0,1,2")
        if dotted in grid:
            raise ConfigError(f"--grid {assignment}: {dotted} is given twice; give all its values at once")
        grid[dotted] = _parse(f"[{text}]", f"--grid {assignment}")
        if not grid[dotted]:
            raise ConfigError(f"--grid {assignment}: {dotted} has no values; give one or more, with commas between")
    return grid


def with_values(raw: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a raw config with one value for each key of a grid."""
    raw = _copy(raw)
    for dotted in sorted(values):  # a block before what is in it
        _assign(raw, dotted, _copy(values[dotted]), f"--grid {dotted}")
    return raw


def _copy(raw: Any) -> Any:
    return {key: _copy(value) for key, value in raw.items()} if isinstance(raw, dict) else raw


# ------------------------------------------------------------------------------------- reading


def read(block: type[T], raw: Any, where: str, overridden: Iterable[str] = (), grid: Iterable[str] = ()) -> T:
    """Turn a raw mapping into a block; ConfigError with one line per error, each with its place.

    `where` names the source (the file); `overridden` are the assignments of `--set`, and `grid` the keys of `--grid`.
    """
    reader = _Reader()
    settings = reader.block(block, raw, "")
    if reader.problems:
        given = {key.partition("=")[0]: "--set" for key in overridden} | dict.fromkeys(grid, "--grid")

        def source(place: str) -> str:
            near = (g for g in given if f"{place}.".startswith(f"{g}.") or f"{g}.".startswith(f"{place}."))
            return given.get(next(near, ""), where)

        lines = [": ".join(filter(None, (source(place), place, text))) for place, text in reader.problems]
        raise ConfigError("\n".join(lines))
    return settings


class _Reader:
    """Reads a raw config against the schema and collects (place, message) of every error."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    def block(self, block: type[Any], raw: Any, place: str) -> Any:
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            return self.problem(place, f"expected a mapping of settings, not {show(raw)}")
        options = options_of(block)
        before = len(self.problems)
        table = next((m.table for o in options.values() for m in marks_of(o.type) if isinstance(m, OptionsOf)), None)
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
                if is_dataclass(option.type) and isinstance(option.type, type):
                    default = self.block(option.type, {}, _join(place, key))  # its own defaults, including parts
                elif isinstance(default, str) and any(isinstance(m, PartOf) for m in marks_of(option.type)):
                    default = self.value(option.type, default, _join(place, key))
                values[key] = default
        return values

    def value(self, type_: Any, raw: Any, place: str, default: Any = None) -> Any:
        for mark in marks_of(type_):
            if isinstance(mark, PartOf):
                if raw is None and _optional(type_):
                    return None
                return self.part(mark.table, raw, place, default)
            if isinstance(mark, BlockOrPart):
                return self.block_or_part(mark, raw, place)
        if is_dataclass(type_) and isinstance(type_, type):
            return self.block(type_, raw, place)
        try:
            return fitted(type_, raw)
        except Misfit as misfit:
            return self.problem(place, str(misfit))

    def part(self, table: Mapping[str, Callable[..., Any]], raw: Any, place: str, default: Any) -> Part | None:
        if isinstance(raw, str):
            raw = {"name": raw}
        elif isinstance(raw, dict) and "name" not in raw and isinstance(default, str):
            raw = {"name": default, **raw}  # options without a name are those of the default part
        if not isinstance(raw, dict) or "name" not in raw:
            return self.problem(
                place, f"expected one of {names_of(table)}, or a mapping with its name, not {show(raw)}"
            )
        name = raw["name"]
        if not isinstance(name, str) or name not in table:
            return self.problem(_join(place, "name"), not_one_of(name, table))
        rest = {key: value for key, value in raw.items() if key != "name"}
        return Part(name, self.options(options_of(table[name]), rest, place))

    def block_or_part(self, mark: BlockOrPart, raw: Any, place: str) -> Any:
        name = raw if isinstance(raw, str) else raw.get("name", mark.default) if isinstance(raw, dict) else mark.default
        if name == mark.default:
            rest = {key: value for key, value in raw.items() if key != "name"} if isinstance(raw, dict) else raw
            return self.block(mark.block, {} if isinstance(raw, str) else rest, place)
        if not isinstance(name, str) or name not in mark.table:
            return self.problem(_join(place, "name"), not_one_of(name, [mark.default, *mark.table]))
        return self.part(mark.table, raw, place, None)

    def problem(self, place: str, text: str) -> Any:
        self.problems.append((place, text))
        return None


def _is_options(type_: Any) -> bool:
    return any(isinstance(mark, OptionsOf) for mark in marks_of(type_))


def _optional(type_: Any) -> bool:
    return type(None) in get_args(get_args(type_)[0])


def _join(place: str, key: Any) -> str:
    return f"{place}.{printable(key)}" if place else printable(key)


# ------------------------------------------------------------------------------------- writing and comparing


def plain(settings: Any) -> Any:
    """Settings as plain values for YAML and JSON; reading them back gives the same settings."""
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
    """Lists of scalars on one line, and quotes around all text that this loader, or another, would not read as text."""


_Dumper.yaml_implicit_resolvers = {
    first: [row for table in (yaml.SafeDumper, _Loader) for row in table.yaml_implicit_resolvers.get(first, [])]
    for first in yaml.SafeDumper.yaml_implicit_resolvers.keys() | _Loader.yaml_implicit_resolvers.keys()
}
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
