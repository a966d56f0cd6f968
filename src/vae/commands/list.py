"""The listing of train.py --list, from the tables of parts, their signatures and their docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

from vae.config import plain
from vae.schema import BlockOrPart, Interval, OneOf, OptionsOf, PartOf, marks_of, options_of
from vae.training.settings import DataSettings, ModelSettings, ModifierSettings, Settings, TrainSettings


def listing() -> str:
    """Every block and every part, with a line of description, its options and their defaults."""
    blocks = {"data": DataSettings, "model": ModelSettings, "modifiers": ModifierSettings, "train": TrainSettings}
    lines = ["A config has these blocks; data.name and, of a VAE, model.latent_dim are required.", ""]
    for key, block in blocks.items():
        lines += [f"{key}:  {_first_line(block)}", *_options(block, 2), ""]
    tables: list[tuple[str, Mapping[str, Any]]] = []
    for key, holder in {**blocks, "": Settings}.items():
        for name, option in options_of(holder).items():
            for mark in marks_of(option.type):
                if isinstance(mark, PartOf | OptionsOf):
                    place = "name" if isinstance(mark, OptionsOf) else name
                    tables.append((f"{key}.{place}".strip("."), mark.table))
                if isinstance(mark, BlockOrPart):
                    tables.append((f"{name}.name, besides {mark.default}", mark.table))
    for place, table in tables:
        lines.append(f"{place}, one of:")
        for name, row in table.items():
            lines += [f"  {name:22} {_first_line(row)}", *_options(row, 6)]
        lines.append("")
    return "\n".join(lines).rstrip()


def _first_line(row: Callable[..., Any]) -> str:
    text = inspect.getdoc(row) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph if len(paragraph) <= 110 else paragraph[: paragraph.rfind(" ", 0, 107)] + " ..."


def _options(row: Callable[..., Any], indent: int) -> list[str]:
    lines = []
    for name, option in options_of(row).items():
        if name == "options":
            continue
        default = "required" if option.required else f"default {_default(option.default)}"
        lines.append(f"{' ' * indent}{name:{24 - indent}} {_type(option.type)}, {default}")
        lines += [f"{' ' * 25}{mark}" for mark in marks_of(option.type) if isinstance(mark, str)]
    return lines


def _default(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(plain(value))


def _type(type_: Any) -> str:
    marks = marks_of(type_)
    if marks:
        type_ = get_args(type_)[0]
    for mark in marks:
        if isinstance(mark, OneOf | PartOf):
            return "one of " + ", ".join(mark.table)
    origin, inner = get_origin(type_), get_args(type_)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is tuple:
        return (
            f"a list: {_type(inner[0])} each" if Ellipsis in inner else f"{len(inner)} values: {_type(inner[0])} each"
        )
    if inner:  # a union
        return " or ".join(_type(member) for member in inner if member is not type(None))
    names = {int: "whole number", float: "number", bool: "true or false", str: "word"}
    interval = "".join(f", {mark}" for mark in marks if isinstance(mark, Interval))
    return names.get(type_, getattr(type_, "__name__", str(type_))) + interval
