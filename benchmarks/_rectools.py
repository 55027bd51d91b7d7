"""The peer of `sequences.py`: RecTools' SASRec, in an interpreter of its own.

    python benchmarks/_rectools.py SETTINGS.json

Trains as many batches as the settings say for every line on standard input, with the
package's own data loading and Lightning loop, and answers with a line of JSON: seconds
from the first batch to the last, also of CPU, examples (places with a next item) of
those, and the peak memory of the process so far. Imports nothing of tfcsmf.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

# Of the latest epoch; the package copies its trainer, and callbacks with it.
MEASURED: dict[str, float] = {}


class Clock(Callback):
    """Times the batches of an epoch, their loading included."""

    def on_train_epoch_start(self, *_: Any) -> None:
        MEASURED.update(examples=0, seconds=-time.perf_counter())
        MEASURED["cpu_seconds"] = -time.process_time()

    def on_train_batch_end(self, _: Any, __: Any, ___: Any, batch: Any, *____: Any):
        MEASURED["examples"] += int((batch["y"] > 0).sum())

    def on_train_epoch_end(self, *_: Any) -> None:
        MEASURED["seconds"] += time.perf_counter()
        MEASURED["cpu_seconds"] += time.process_time()


def make_trainer(steps: int) -> Trainer:
    """As the package makes it by default, for so many batches an epoch."""
    return Trainer(
        max_epochs=1,
        limit_train_batches=steps,
        callbacks=[Clock()],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def dataset(path: str) -> Dataset:
    """Reads the sequences that `sequences.py` wrote."""
    with np.load(path) as stored:
        offsets, items = stored["offsets"], stored["items"]
    lengths = np.diff(offsets)
    table = {
        Columns.User: np.repeat(np.arange(len(lengths)), lengths),
        Columns.Item: items,
        Columns.Weight: 1.0,
        # Any time will do that is in order.
        Columns.Datetime: pd.to_datetime(np.arange(len(items)), unit="s"),
    }
    return Dataset.construct(pd.DataFrame(table))


def peak_memory() -> float:
    """As `_harness.peak_memory`, where there is /proc."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20


def main(settings: dict[str, Any]) -> None:
    for noisy in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    data = dataset(settings["data"])
    model = SASRecModel(
        **settings["model"],
        get_trainer_func=make_trainer,
        get_trainer_func_kwargs={"steps": settings["steps"]},
    )
    packages = ("rectools", "torch", "pytorch-lightning", "numpy")
    print(json.dumps({p: importlib.metadata.version(p) for p in packages}), flush=True)
    for _ in sys.stdin:
        model.fit_partial(data, min_epochs=1, max_epochs=1)
        answer = MEASURED | {"peak_memory_gib": peak_memory()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
