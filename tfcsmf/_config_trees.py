"""Configuration trees: reading YAML, `a.b=c` assignments, and errors in words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydantic
import yaml

from tfcsmf.errors import ConfigError, nearest


def read_yaml(path: str) -> dict[str, Any]:
    """Reads a YAML mapping; the key `run` (written by a finished run) is dropped."""
    if not os.path.isfile(path):
        raise ConfigError(
            f"The configuration file should exist. Received: {path!r}. Current "
            f"folder: {os.getcwd()!r}."
        )
    try:
        with open(path, encoding="utf-8") as file:
            tree = yaml.safe_load(file) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path!r} should be YAML. Received: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path!r} should hold a mapping of sections. "
            f"Received: {type(tree).__name__}."
        )
    tree.pop("run", None)
    return tree


def with_options(
    tree: Mapping[str, Any], options: Mapping[tuple[str, ...], Any]
) -> dict[str, Any]:
    """Returns a tree with command-line options set; `None` leaves a key alone.

    Example:
      >>> with_options({"data": {"items": "i"}}, {("data", "events"): "e"})
      {'data': {'items': 'i', 'events': 'e'}}
    """
    merged = copy_tree(tree)
    for path, value in options.items():
        if value is None:
            continue
        section = merged
        for depth, key in enumerate(path[:-1], start=1):
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise ConfigError(
                    f"Configuration {'.'.join(path[:depth])!r} should be a section. "
                    f"Received: {section!r}."
                )
        section[path[-1]] = value
    return merged


def copy_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a deep copy of a tree, its keys as strings."""
    return {
        str(key): copy_tree(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
    }


def assign(tree: dict[str, Any], assignment: str) -> None:
    """Sets one `path=value` of a tree in place; the value is read as YAML.

    Raises:
      ConfigError: if it is no such assignment, or the path leads through a value.

    Example:
      >>> tree = {"towers": {"dimension": 8}}
      >>> assign(tree, "towers.dimension=32")
      >>> assign(tree, "retrieval.weights={buy:2}")
      >>> tree
      {'towers': {'dimension': 32}, 'retrieval': {'weights': {'buy': 2}}}
    """
    path, equals, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            "--set takes path=value, for example towers.dimension=32. "
            f"Received: {assignment!r}."
        )
    try:
        value = _parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {path}: {text!r} is not a value: {error}") from error
    for depth, key in enumerate(keys[:-1], start=1):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            section = ".".join(keys[:depth])
            raise ConfigError(
                f"--set {path}: {section!r} is a single value, not a section. "
                f"Received: {assignment!r}. Set {section!r} itself."
            )
    tree[keys[-1]] = value


def _parse(text: str) -> Any:
    return _mended(yaml.safe_load(text))


def _mended(value: Any) -> Any:
    """Reads two things as they are meant, not as YAML 1.1 has them."""
    if isinstance(value, str):
        return _number(value)
    if not isinstance(value, dict):
        return value
    result = {}
    for key, entry in value.items():
        if entry is None and isinstance(key, str) and ":" in key:
            # {buy:2} is a key without a value; people mean {buy: 2}.
            key, _, rest = key.partition(":")
            entry = yaml.safe_load(rest)
        result[key] = _mended(entry)
    return result


def _number(text: str) -> float | str:
    """YAML 1.1 reads 1e-3 as a string; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def explain(error: pydantic.ValidationError, cls: Any, where: str) -> str:
    """Returns one line per problem: the full path, the rule, what was received.

    Args:
      error: what validating `cls` raised.
      cls: the section that was validated.
      where: its path; "" for the whole tree.
    """
    prefix = [where] if where else []
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        name = ".".join(prefix + path)
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            lines.append(str(cause))
        elif problem["type"] == "extra_forbidden":
            hint = _hint(cls, path, ".".join(prefix + path[:-1]))
            lines.append(f"Unknown configuration key {name!r}.{hint}")
        else:
            rule = problem["msg"].removeprefix("Value error, ")
            lines.append(
                f"Configuration {name!r}: {rule}. Received: {problem['input']!r}."
            )
    return "\n".join(lines)


def _hint(cls: Any, path: Sequence[str], section: str) -> str:
    """Names the full path of the key that was probably meant, or lists the known."""
    *above, name = path
    elsewhere = [key for key in _paths(cls) if key.split(".")[-1] == name]
    if elsewhere:
        return f" Did you mean {' or '.join(map(repr, elsewhere))}?"
    for key in above:
        cls = cls.model_fields[key].annotation
    # Only the last parts are compared: a common beginning is no likeness.
    guess = nearest(name, cls.model_fields)
    if not section:
        return guess or f" Known: {', '.join(cls.model_fields)}."
    known = ", ".join(f"{section}.{key}" for key in cls.model_fields)
    return guess.replace("'", f"'{section}.", 1) or f" Known: {known}."


def _paths(cls: Any, prefix: str = "") -> Iterator[str]:
    """The full path of every key of a section, sections included."""
    for key, field in cls.model_fields.items():
        yield prefix + key
        if hasattr(field.annotation, "model_fields"):
            yield from _paths(field.annotation, f"{prefix}{key}.")
