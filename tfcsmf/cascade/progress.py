"""Where training is: everything that is not an array."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """The resumable position of a cascade, JSON-able.

    Attributes:
      stage: 0-based stage in training; equals the number of objectives once done.
      phase: `train` or `recovery`.
      step: steps done in this phase.
      losses: sum of the losses of the current epoch so far.
      best: best validation recall of this phase, `None` before the first.
      best_step: where it was reached.
      bad_evaluations: evaluations since then.
      phase_over: the phase stopped early; only its end is left to do.
      seconds: training time of this stage so far, evaluation left out.
      examples_seen: positives trained on in this stage so far.
      epochs: epochs this stage's training phase took, the last ones without
        improvement included; 0 until it is over.
      best_epoch: the epoch of them whose parameters were kept, from 1.
      freed_share: what pruning freed in this stage.
      phases: learning curves of this stage's phases.
      finished: reports of finished stages.
      curves: learning curves of finished stages by objective.
    """

    stage: int = 0
    phase: str = "train"
    step: int = 0
    losses: float = 0.0
    best: float | None = None
    best_step: int = 0
    bad_evaluations: int = 0
    phase_over: bool = False
    seconds: float = 0.0
    examples_seen: int = 0
    epochs: int = 0
    best_epoch: int = 0
    freed_share: dict[str, float] = field(default_factory=dict)
    phases: list[dict[str, Any]] = field(default_factory=list)
    finished: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, Any] = field(default_factory=dict)

    def begin_phase(self, phase: str) -> None:
        """Starts a phase of the current stage."""
        self.phase, self.step, self.losses = phase, 0, 0.0
        self.best, self.best_step, self.bad_evaluations = None, 0, 0
        self.phase_over = False
        keys = ("step", "loss", "validation_step", "validation")
        self.phases.append({"phase": phase} | {key: [] for key in keys})

    def begin_stage(self, stage: int) -> None:
        """Starts the training phase of a stage."""
        self.stage, self.phases, self.freed_share = stage, [], {}
        self.seconds, self.examples_seen = 0.0, 0
        self.epochs, self.best_epoch = 0, 0
        self.begin_phase("train")

    @property
    def curve(self) -> dict[str, Any]:
        """Learning curve of the current phase."""
        return self.phases[-1]

    def stage_curves(self) -> list[dict[str, Any]]:
        """Returns the phases with steps counted from the start of the stage."""
        curves, offset = [], 0
        for phase in self.phases:
            shifted = {
                key: [step + offset for step in phase[key]]
                for key in ("step", "validation_step")
            }
            curves.append(phase | shifted)
            offset += max(phase["step"], default=0)
        return curves

    def record_validation(self, value: float | None) -> bool:
        """Notes a validation recall; returns whether it is the best so far.

        Without validation pairs (`None`) the latest parameters count as best.
        """
        if value is not None:
            self.curve["validation_step"].append(self.step)
            self.curve["validation"].append(value)
        # While nothing is retrieved yet, waiting says nothing: take the latest.
        better = not value or not self.best or value > self.best
        if better:
            self.best, self.best_step, self.bad_evaluations = value, self.step, 0
        else:
            self.bad_evaluations += 1
        return better

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return asdict(self)
