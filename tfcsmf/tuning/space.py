"""The search space: ranges over configuration paths, read from YAML.

cascade.stage.tau: {float: [0.01, 0.5], log: true}
cascade.stages.click.learning_rate: {float: [0.0003, 0.003], log: true}
towers.dimension: {int: [32, 128], step: 32}
towers.hidden_units: {choice: [[64], [128], [128, 64]]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import keras_tuner

from tfcsmf.config import Config
from tfcsmf.errors import ConfigError, nearest
from tfcsmf.tuning.paths import STAGES, check_path

Kind = Literal["float", "int", "choice"]

# Ranges around the defaults that docs/results.md found to matter.
DEFAULT_SPACE: dict[str, dict[str, Any]] = {
    "cascade.stage.learning_rate": {"float": [3e-4, 5e-3], "log": True},
    "cascade.stage.embedding_learning_rate": {"float": [1e-3, 2e-2], "log": True},
    "cascade.stage.tau": {"float": [0.02, 0.5], "log": True},
    "loss.temperature": {"float": [0.05, 0.3], "log": True},
    "loss.margin.strength": {"float": [0.0, 2.0]},
    "towers.history_dropout": {"float": [0.0, 0.4]},
}


@dataclass(frozen=True)
class Parameter:
    """One configuration path and the values it may take.

    Attributes:
      path: such as `cascade.stage.tau`.
      kind: numbers of a range, or one of some values.
      low: smallest value of a range.
      high: largest value, included.
      log: whether the range is searched by its logarithm.
      step: distance between values, or their ratio with `log`; None for no grid.
      values: of a choice, at least one.
    """

    path: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    values: tuple[Any, ...] = ()

    def declare(self, space: keras_tuner.HyperParameters) -> None:
        """Adds the parameter to a space of keras-tuner."""
        if self.kind == "choice":
            # keras-tuner takes values of one simple type: everything as JSON.
            space.Choice(self.path, [json.dumps(value) for value in self.values])
            return
        add = space.Float if self.kind == "float" else space.Int
        sampling = "log" if self.log else "linear"
        add(self.path, self.low, self.high, step=self.step, sampling=sampling)

    def decode(self, value: Any) -> Any:
        """Returns what keras-tuner chose as a value of the configuration."""
        if self.kind == "choice":
            return json.loads(value)
        return int(value) if self.kind == "int" else float(value)

    def place(self, value: Any) -> float:
        """Returns where in the range a value lies, 0 to 1; outside it if it is out.

        Example:
          >>> Parameter("loss.temperature", "float", 0.01, 1.0, log=True).place(0.1)
          0.5
          >>> Parameter("a", "choice", values=("x", "y", "z")).place("y")
          0.5
        """
        if self.kind == "choice":
            if value not in self.values:
                return math.nan
            return self.values.index(value) / max(1, len(self.values) - 1)
        low, high, value = self.low, self.high, float(value)
        if self.log:
            if value <= 0:
                return math.nan
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low) if high > low else 0.5

    def to_dict(self) -> dict[str, Any]:
        """Returns the declaration, as YAML holds it."""
        if self.kind == "choice":
            return {"choice": list(self.values)}
        declared: dict[str, Any] = {self.kind: [self.low, self.high]}
        if self.log:
            declared["log"] = True
        return declared if self.step is None else declared | {"step": self.step}


@dataclass(frozen=True)
class Space:
    """All parameters of a sweep; make one with `from_dict`.

    Attributes:
      parameters: in the order they were declared, paths distinct.
    """

    parameters: tuple[Parameter, ...]

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], config: Config) -> Space:
        """Reads declarations and checks them against the configuration.

        Args:
          tree: path -> `{float: [low, high]}` or `{int: [low, high]}`, both with
            `log: true` and `step: x` where wanted, or `{choice: [...]}`.
          config: of the sweep; its objectives name the stages. Both ends of every
            range and every choice have to be legal in it.

        Raises:
          ConfigError: for an unknown path (with the nearest one), one that may not
            be tuned, a bad range, or an empty space.

        Example:
          >>> tree = {"cascade.stage.tau": {"float": [0.01, 0.5], "log": True}}
          >>> space = Space.from_dict(tree, Config())
          >>> space.configure(Config(), {"cascade.stage.tau": 0.2}).stage("click").tau
          0.2
        """
        if not tree:
            raise ConfigError(
                "A search space should name at least one path. Received: none. "
                "Example: 'cascade.stage.tau: {float: [0.01, 0.5], log: true}'."
            )
        space = cls(tuple(_read(str(path), tree[path], config) for path in tree))
        for parameter in space.parameters:
            _check_ends(parameter, config)
        return space

    def declare(self) -> keras_tuner.HyperParameters:
        """Returns the space as keras-tuner has it."""
        space = keras_tuner.HyperParameters()
        for parameter in self.parameters:
            parameter.declare(space)
        return space

    def decode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns keras-tuner's values as settings by path."""
        return {p.path: p.decode(values[p.path]) for p in self.parameters}

    @staticmethod
    def configure(
        config: Config, settings: Mapping[str, Any], epochs: int | None = None
    ) -> Config:
        """Returns a configuration with settings replaced.

        Args:
          config: the configuration.
          settings: values by path.
          epochs: no stage trains longer.

        Raises:
          ConfigError: if values do not fit together.
        """
        tree = config.to_dict()
        for path, value in settings.items():
            *sections, name = path.split(".")
            section = tree
            for key in sections:
                section = section.setdefault(key, {})
            section[name] = value
        changed = Config.from_dict(tree)
        if epochs is None:
            return changed
        for objective in changed.cascade.objectives:
            stage = tree["cascade"]["stages"].setdefault(objective, {})
            stage["epochs"] = min(epochs, changed.stage(objective).epochs)
        return Config.from_dict(tree)

    @staticmethod
    def current(config: Config, path: str) -> Any:
        """Returns what a configuration has at a path.

        Example:
          >>> Space.current(Config(), "cascade.stages.click.epochs")
          50
        """
        if path.startswith(f"{STAGES}."):
            _, _, objective, field = path.split(".")
            return getattr(config.stage(objective), field)
        value: Any = config
        for key in path.split("."):
            value = getattr(value, key)
        return list(value) if isinstance(value, tuple) else value

    def to_dict(self) -> dict[str, Any]:
        """Returns the declarations, as YAML holds them."""
        return {parameter.path: parameter.to_dict() for parameter in self.parameters}


def _read(path: str, declared: Any, config: Config) -> Parameter:
    check_path(path, config)
    kinds = ["float", "int", "choice"]
    if isinstance(declared, Mapping):
        kinds = [kind for kind in kinds if kind in declared]
    if len(kinds) != 1:
        raise ConfigError(
            f"Search space, {path!r}: give {{float: [low, high]}}, "
            f"{{int: [low, high]}} or {{choice: [...]}}. Received: {declared!r}."
        )
    kind = cast(Kind, kinds[0])
    known = [kind] if kind == "choice" else [kind, "log", "step"]
    for key in declared:
        if key not in known:
            raise ConfigError(
                f"Search space, {path!r}: {kind} takes only {', '.join(known)}. "
                f"Received: {key!r}.{nearest(str(key), known)}"
            )
    if kind == "choice":
        return Parameter(path, kind, values=_choices(path, declared[kind]))
    return _range(path, kind, declared)


def _choices(path: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise ConfigError(
            f"Search space, {path!r}: choice should list at least one value. "
            f"Received: {values!r}."
        )
    if len({json.dumps(value, default=str) for value in values}) < len(values):
        raise ConfigError(
            f"Search space, {path!r}: the values of a choice should be distinct. "
            f"Received: {values!r}."
        )
    return tuple(values)


def _range(path: str, kind: Kind, declared: Mapping[str, Any]) -> Parameter:
    log, ends = declared.get("log", False), declared[kind]
    step = declared.get("step")
    numbers = [_number(end) for end in ends] if isinstance(ends, list) else []
    step = None if step is None else _number(step)
    smallest = 1 if log else 0
    problem = None
    if len(numbers) != 2 or None in numbers or not numbers[0] < numbers[1]:
        problem = f"{kind} should be two numbers [low, high] with low < high"
    elif not isinstance(log, bool):
        problem = "log should be true or false"
    elif log and numbers[0] <= 0:
        problem = "a range searched by its logarithm should begin above 0"
    elif "step" in declared and (step is None or step <= smallest):
        problem = f"step should be above {smallest}"
    elif kind == "int" and not all(
        float(n).is_integer() for n in (*numbers, step or 0)
    ):
        problem = "int takes whole numbers"
    if problem:
        raise ConfigError(f"Search space, {path!r}: {problem}. Received: {declared!r}.")
    cast_to = int if kind == "int" else float
    low, high = map(cast_to, numbers)
    return Parameter(
        path, kind, low, high, log, None if step is None else cast_to(step)
    )


def _number(value: Any) -> Any:
    """Returns a number, also where YAML 1.1 reads 1e-3 as text; else None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _check_ends(parameter: Parameter, config: Config) -> None:
    ends = parameter.values or (parameter.low, parameter.high)
    for end in ends:
        try:
            Space.configure(config, {parameter.path: end})
        except ConfigError as error:
            raise ConfigError(f"Search space, {parameter.path!r}: {error}") from None
