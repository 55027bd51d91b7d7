"""Runs of the main command that die by SIGKILL, and one that does not.

A process of its own: `python kill_runs.py CONFIG FOLDER SEED`. It imports everything
once and forks a child per run before TensorFlow's runtime starts, so that a killed
and resumed run costs no imports. It prints what it did as one line of JSON.
"""

import errno
import faulthandler
import functools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "pipelines")]

# Where exact kills happen: (what is interrupted, [(function, when, stage, phase)]).
# One of each list is chosen by the seed; they lie in the order of a run, because
# every kill is followed by --resume. `inside` leaves a half-written file or folder;
# `full` leaves one as well and goes on as if the disk were full.
TRAIN, RECOVERY, ANY = "train", "recovery", ""
EXACT = [
    ("full disk", [("write", "full", 0, TRAIN)]),
    ("checkpoint", [("write", "inside", 0, TRAIN), ("remove", "inside", 0, TRAIN)]),
    ("training", [("step", "after", 0, TRAIN), ("save", "after", 0, TRAIN)]),
    ("evaluation", [("validate", "before", 0, TRAIN), ("validate", "after", 0, TRAIN)]),
    ("pruning", [("prune", "before", 0, TRAIN), ("prune", "after", 0, TRAIN)]),
    ("recovery", [("step", "after", 0, RECOVERY), ("save", "after", 0, RECOVERY)]),
    ("freezing", [("remember", "after", 0, RECOVERY), ("reopen", "after", 1, TRAIN)]),
    ("later stage", [("step", "after", 1, TRAIN), ("write", "inside", 1, TRAIN)]),
    ("assessment", [("assess", "before", 2, ANY), ("assess", "after", 2, ANY)]),
    ("full disk", [("write_model", "full", 2, ANY)]),
    ("export", [("write_model", "before", 2, ANY), ("write_model", "after", 2, ANY)]),
    ("report", [("write_report_file", "after", 2, ANY), ("export", "after", 2, ANY)]),
    ("finish", [("write_report", "after", 2, ANY)]),
]


def hooks():
    """Returns the functions that can be interrupted: {name: (owner, attribute)}."""
    import tensorflow as tf

    from tfcsmf.cascade import assessment, capacity, checkpoints, run, trainer
    from tfcsmf.cascade.frozen import FrozenScores
    from tfcsmf.cascade.stage_step import StageStep
    from tfcsmf.evaluation import report

    return {
        "schema": (checkpoints.CheckpointStore, "save_schema"),
        "step": (StageStep, "__call__"),
        "save": (checkpoints.CheckpointStore, "save"),
        "write": (checkpoints, "_write"),
        "remove": (shutil, "rmtree"),
        "validate": (trainer.CascadeTrainer, "validate"),
        "prune": (capacity, "prune"),
        "remember": (FrozenScores, "remember"),
        "reopen": (capacity, "reopen"),
        "assess": (assessment, "assess"),
        "write_model": (tf.saved_model, "save"),
        "export": (run, "export_cascade"),
        "write_report_file": (report, "write_atomic"),
        "write_report": (run, "write_report"),
    }


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def _half(path):
    """Leaves half of a file, or some files of a folder."""
    path = Path(path)
    if path.is_dir():
        next(file for file in path.rglob("*") if file.is_file()).unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)


def _full(name):
    """Returns what the functions raise when the disk is full."""
    import tensorflow as tf

    message = "No space left on device"
    if name == "write_model":
        return tf.errors.ResourceExhaustedError(None, None, f"variables; {message}")
    return OSError(errno.ENOSPC, message)


def install(moment, trace):
    """Wraps the hooks in a child: they note where it is, and one kills it.

    Args:
      moment: (function, when, stage, phase, number of the call), or None.
      trace: open file the names of the calls are written to.
    """
    from tfcsmf.cascade import checkpoints, trainer

    place = {"stage": 0, "phase": ""}
    calls = dict.fromkeys(hooks(), 0)

    def wrapped(name, function):
        @functools.wraps(function)
        def call(*arguments, **options):
            here = [name, place["stage"], place["phase"]]
            trace.write(json.dumps(here) + "\n")
            hit = False
            if moment and name == moment[0] and place["stage"] == moment[2]:
                if moment[3] in ("", place["phase"]):
                    calls[name] += 1
                    hit = calls[name] == moment[4]
            if hit and moment[1] == "before":
                die()
            if hit and moment[1] == "inside" and name == "remove":
                _half(arguments[0])
                die()
            result = function(*arguments, **options)
            if hit and moment[1] in ("inside", "full"):
                _half(arguments[name == "write_model"])
            if hit and moment[1] == "full":
                raise _full(name)
            if hit:
                die()
            return result

        return call

    for name, (owner, attribute) in hooks().items():
        setattr(owner, attribute, wrapped(name, getattr(owner, attribute)))

    trained = trainer.CascadeTrainer.train

    def train(self, stages=None):
        place.update(stage=self.progress.stage, phase=self.progress.phase)
        return trained(self, stages)

    trainer.CascadeTrainer.train = train
    began = trainer.Progress.begin_phase

    def begin_phase(self, phase):
        began(self, phase)
        place.update(stage=self.stage, phase=self.phase)

    trainer.Progress.begin_phase = begin_phase
    # Every checkpoint that may be written is: what is tested is not the pace.
    checkpoints.SavePace.affordable = lambda self: True


def fork(config, output, moment=None):
    """Starts a run in a forked child; returns its process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.dump_traceback_later(500, exit=True)
        with open(f"{output}.trace", "a", buffering=1) as trace:
            import run_cascade

            from tfcsmf import cli

            install(moment, trace)
            arguments = ["--config", config, "--output", output, "--resume"]
            status = cli.run(run_cascade.main, [*arguments, "--quiet", "--debug"])
    finally:
        os._exit(status)


def wait(process):
    """Returns the exit status of a child, negative if a signal killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _last_line(path):
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else None


def uninterrupted(config, output):
    return {"output": output, "status": wait(fork(config, output))}


def killed_exactly(config, output, seed):
    """Kills a run in every phase, resuming each time; then lets it finish."""
    generator = random.Random(seed)
    kills = []
    for what, choices in EXACT:
        moment = [*generator.choice(choices), 1]
        if moment[0] == "step":
            moment[4] = generator.randint(1, 4)
        began = time.monotonic()
        status = wait(fork(config, output, moment))
        seconds = time.monotonic() - began
        kills.append(
            {"what": what, "moment": moment, "status": status, "seconds": seconds}
        )
        if status not in (-signal.SIGKILL, 2):
            break
    status = wait(fork(config, output))
    return {"output": output, "kills": kills, "status": status}


def killed_at_random(config, output, seed, calls, kills_wanted):
    """Kills a run from outside, whatever it is doing; then lets it finish.

    It dies some time after a number of the calls that are noted: seconds would say
    little on a machine whose speed changes. So few calls at a time that it cannot be
    over before the last kill.
    """
    generator = random.Random(seed)
    trace = Path(f"{output}.trace")
    kills = []
    for _ in range(kills_wanted):
        wanted = _lines(trace) + generator.randrange(calls // (kills_wanted + 1))
        began = time.monotonic()
        process = fork(config, output)
        while _lines(trace) < wanted and not _is_over(process):
            time.sleep(0.01)
        time.sleep(generator.uniform(0.0, 0.3))
        os.kill(process, signal.SIGKILL)  # a zombie, if it is over already
        status, seconds = wait(process), time.monotonic() - began
        where = _last_line(trace)
        kills.append(
            {"what": "random", "moment": where, "status": status, "seconds": seconds}
        )
        if status != -signal.SIGKILL:
            break
    status = wait(fork(config, output))
    return {"output": output, "kills": kills, "status": status}


def _lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def _is_over(process):
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process, flags) is not None


def main(config, folder, seed, random_kills):
    import run_cascade  # noqa: F401

    import tfcsmf.cascade.run  # noqa: F401

    folder, done = Path(folder), {}

    def lane():
        done["reference"] = uninterrupted(config, str(folder / "reference"))
        calls = _lines(folder / "reference.trace")
        done["random"] = killed_at_random(
            config, str(folder / "random"), seed, calls, random_kills
        )

    # Forking from a thread is safe here: the other one only waits.
    thread = threading.Thread(target=lane)
    thread.start()
    done["exact"] = killed_exactly(config, str(folder / "exact"), seed)
    thread.join()
    print(json.dumps(done))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
