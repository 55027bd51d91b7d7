"""Some steps of a later stage, by one process or shared by two workers.

A process of its own: `python worker_steps.py FOLDER`. It forks two workers before
TensorFlow's runtime starts; each writes parameters and losses to FOLDER/<number>.npz.
"""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from test_batch_parts import later_stage  # noqa: E402
from worker_runs import ports, wait  # noqa: E402

from tfcsmf.cascade.stage_step import StageStep  # noqa: E402
from tfcsmf.cascade.workers import open_workers  # noqa: E402
from tfcsmf.config import Config  # noqa: E402
from tfcsmf.data.prepare import prepare  # noqa: E402

CONFIG = {
    "simulator": {"users": 60, "items": 40, "exposures_per_user": 20},
    "towers": {
        "dimension": 8,
        "hidden_units": [],
        "embedding_dimension": 4,
        "feature_dimension": 2,
        "history_features": False,
        "shard_rows": 32,
    },
    "loss": {"whole_catalogue": 0, "uniform_negatives": 8},
    "cascade": {"objectives": ["exposure", "click"]},
}


def steps(workers=None):
    """Returns parameters before and after some steps, owners and losses, by name."""
    config = Config.from_dict(CONFIG)
    model, batches = later_stage(config, prepare(config))
    arrays = {f"before/{p.name}": p.variable.numpy() for p in model.owned_parameters}
    step = StageStep(model, config.cascade.stage, batches.element_spec, workers)
    step.start("train", 1)
    arrays["loss"] = [float(step(batch)) for batch in batches.dataset(1.0, 0, 0, 4)]
    for parameter in model.owned_parameters:
        arrays[f"after/{parameter.name}"] = parameter.variable.numpy()
        arrays[f"owner/{parameter.name}"] = parameter.owner.numpy()
    return arrays


def main(folder):
    import numpy as np

    addresses = [f"localhost:{port}" for port in ports(2)]
    processes = []
    for number in range(2):
        processes.append(os.fork())
        if processes[-1]:
            continue
        status = 1
        try:
            task = {"type": "worker", "index": number}
            place = {"cluster": {"worker": addresses}, "task": task}
            os.environ["TF_CONFIG"] = json.dumps(place)
            workers = open_workers("multi_worker")
            with workers.meeting():
                np.savez(Path(folder) / f"{number}.npz", **steps(workers))
                workers.finish()
            status = 0
        finally:
            os._exit(status)
    print(json.dumps([wait(process) for process in processes]))


if __name__ == "__main__":
    main(sys.argv[1])
