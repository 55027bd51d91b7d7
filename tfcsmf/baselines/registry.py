"""All systems and ablations by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from tfcsmf.baselines import joint, plain
from tfcsmf.baselines.cascaded import CsmfSystem
from tfcsmf.baselines.rules import RULES, RuleSystem
from tfcsmf.baselines.system import System
from tfcsmf.config import Config, SamplerName
from tfcsmf.errors import ConfigError, nearest

_LEARNED: dict[str, type[System]] = {
    system.name: system
    for system in (
        plain.Separate,
        plain.SeparateOwnHistory,
        joint.Union,
        plain.Finetune,
        plain.FinetuneLast,
        joint.SharedBottom,
        joint.SharedBottomWide,
        joint.Mmoe,
        joint.MmoeWide,
        joint.Ple,
        joint.PleWide,
    )
}

# CSMF with other settings, by name. PackNet frees a fixed share of the entries,
# `cascade.freed_share`, instead of a share of their mass.
_VARIANTS: dict[str, tuple[str, ...]] = {
    "csmf": (),
    "packnet": ("cascade.criterion=magnitude",),
}

# The share of entries that CPP frees of Gaussian weights at the default tau of .1.
_SHARE = "cascade.freed_share=0.35"

_ESANS = "loss.negatives.esans"

# Where negatives come from (docs/esans.md).
_NEGATIVES: dict[str, tuple[str, ...]] = {
    f"sampler_{name}": (f"cascade.stage.sampler={name}",)
    for name in get_args(SamplerName)
} | {
    f"esans_{name}": ("cascade.stage.sampler=esans", f"{_ESANS}.{setting}")
    for name, setting in (
        ("no_virtual", "virtual=none"),
        ("simple_virtual", "virtual=simple"),
        ("hard_virtual", "virtual=hard"),
        ("random_clusters", "clusters.modalities=['random']"),
        ("behaviour_alone", "clusters.modalities=['behaviour']"),
        # More codes than items of a cluster: one level, to all intents.
        ("one_level", "clusters.second_level=2000"),
    )
}

# Each changes one thing about CSMF. What equals the configuration compared is trained
# all the same: its distance from csmf shows nothing but chance.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "criterion_fixed_share": ("cascade.criterion=magnitude", _SHARE),
    "criterion_fisher": ("cascade.criterion=fisher", _SHARE),
    "criterion_random": ("cascade.criterion=random", _SHARE),
    "tau_0.01": ("cascade.stage.tau=0.01",),
    "tau_0.05": ("cascade.stage.tau=0.05",),
    "tau_0.1": ("cascade.stage.tau=0.1",),
    "tau_0.3": ("cascade.stage.tau=0.3",),
    "inner_products": ("towers.normalize=False", "loss.temperature=1"),
    "user_ids": ("towers.query_id_dropout=0.1",),
    "histories_of_50": ("data.history_length=50",),
    "targets_hidden": ("data.visible_share=0",),
    "sampled_negatives": ("loss.whole_catalogue=0",),
    "recovery_off": ("cascade.stage.recovery_epochs=0",),
    "recovery_1": ("cascade.stage.recovery_epochs=1",),
    "margin_off": ("loss.margin.form=none",),
    # In every batch.
    **{
        f"margin_{form}_{strength}": (
            f"loss.margin.form={form}",
            f"loss.margin.strength={strength}",
            "loss.margin.share=1",
        )
        for form in ("confusable", "order")
        for strength in (0.1, 1)
    },
    "hard_negatives_0": ("loss.hard_negatives=0",),
    "hard_negatives_256": ("loss.hard_negatives=256",),
    "freed_zero": ("cascade.stage.freed=zero",),
    "freed_keep": ("cascade.stage.freed=keep",),
    "freed_reinitialize": ("cascade.stage.freed=reinitialize",),
    "embeddings_entries": ("towers.embedding_ownership=entries",),
    "embeddings_columns": ("towers.embedding_ownership=columns",),
    "embeddings_frozen": ("towers.embedding_ownership=frozen",),
    "granularity_unit": ("towers.granularity=unit",),
    "dimensions_by_weights": ("cascade.dimension_information=weights",),
    "dimensions_unturned": ("cascade.dimension_information=scores",),
    "histories_all": ("cascade.history_access=all",),
    "later_events_off": ("cascade.later_weight=0",),
    "later_weight_1": ("cascade.later_weight=1",),
    "blocks_disjoint": ("cascade.blocks=disjoint",),
} | _NEGATIVES

SYSTEMS: tuple[str, ...] = (*_VARIANTS, *_LEARNED, *RULES)


def make_system(name: str, config: Config, show_progress: bool = False) -> System:
    """Builds a system, or a variant of CSMF, by name.

    Args:
      name: one of `SYSTEMS` or `ABLATIONS`.
      config: of the comparison.
      show_progress: draw progress bars on stderr.

    Raises:
      ConfigError: for an unknown name.
    """
    if name in RULES:
        return RuleSystem(name, config, show_progress)
    if name in _LEARNED:
        return _LEARNED[name](config, show_progress)
    check_name(name)
    assignments = (_VARIANTS | ABLATIONS)[name]
    return CsmfSystem(config, show_progress, name, assignments)


def check_name(name: str) -> None:
    """Refuses a name that is no system.

    Raises:
      ConfigError: with the nearest name, or all of them.
    """
    names = [*SYSTEMS, *ABLATIONS]
    if name not in names:
        guess = nearest(name, names) or f" Known: {', '.join(names)}."
        raise ConfigError(f"A system should be a known one. Received: {name!r}.{guess}")


def chosen(systems: Sequence[str] | None, ablations: Sequence[str] | None) -> list[str]:
    """Returns the names to run, distinct and checked, in order.

    Args:
      systems: names of systems or ablations; `None` means all systems, or CSMF alone
        where ablations are given.
      ablations: names of ablations; empty means all of them, `None` none.

    Raises:
      ConfigError: for an unknown name.

    Example:
      >>> chosen(None, ["recovery_off"])
      ['csmf', 'recovery_off']
    """
    variants: Sequence[str] = ()
    if ablations is not None:
        variants = ablations or tuple(ABLATIONS)
    if systems is None:
        systems = SYSTEMS if ablations is None else ("csmf",)
    names = list(dict.fromkeys([*systems, *variants]))
    for name in names:
        check_name(name)
    return names


def describe() -> str:
    """Returns all names, and what each ablation sets, as text."""
    lines = ["systems", *(f"  {name}" for name in SYSTEMS), "ablations of csmf"]
    width = max(map(len, ABLATIONS))
    lines += [
        f"  {name.ljust(width)}  {' '.join(settings)}"
        for name, settings in ABLATIONS.items()
    ]
    return "\n".join(lines)
