"""What the benchmarks share: options, interleaved repeats, memory, and the report.

Every script has the options `--quick` (tiny sizes: does it run?), `--repeats`,
`--json PATH` and `--no-memory`, and the sizes it names itself. It prints one line per
system and writes the same as JSON, `benchmarks/results/<name>.json` by default. That
folder is not under version control; results of `--quick` have names of their own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Read by TensorFlow when it is first imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tfcsmf  # noqa: E402, F401  (selects Keras 2 before TensorFlow is imported)
from tfcsmf.files import write_atomic  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("tensorflow", "tf-keras", "tensorflow-recommenders", "scann"),
    *("numpy", "polars", "pandas", "tfcsmf"),
)
GIB = 2**30


def parse(
    name: str,
    description: str,
    argv: Sequence[str] | None,
    sizes: Mapping[str, Any],
    quick: Mapping[str, Any],
) -> argparse.Namespace:
    """Reads the command line.

    Args:
      name: of the benchmark: that of its script.
      description: shown by `--help`.
      argv: default `sys.argv[1:]`.
      sizes: option -> default; a list takes several values of its first one's type.
      quick: defaults under `--quick`.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny sizes, to see that it runs")
    add("--no-memory", dest="memory", action="store_false", help="time only")
    add("--json", metavar="PATH", help="where the results go")
    add("--child", help=argparse.SUPPRESS)  # one system alone, for its peak memory
    sizes = {"repeats": 5} | dict(sizes)
    quick = {"repeats": 2} | dict(quick)
    for option, value in sizes.items():
        several = isinstance(value, list)
        kind = type(value[0] if several else value)
        extra = {"nargs": "+"} if several else {}
        add(
            f"--{option.replace('_', '-')}",
            type=kind,
            help=f"default {value}, quick {quick.get(option, value)}",
            **extra,
        )
    given = vars(parser.parse_args(argv))
    is_quick = given.get("quick", False)
    file = f"{name}-quick.json" if is_quick else f"{name}.json"
    chosen: dict[str, Any] = {
        "quick": False,
        "memory": True,
        "child": None,
        "json": str(ROOT / "benchmarks" / "results" / file),
    }
    chosen |= sizes | (quick if is_quick else {}) | given
    options = argparse.Namespace(**chosen)
    options.name = name
    options.argv = list(sys.argv[1:] if argv is None else argv)
    return options


def interleave(
    systems: Mapping[str, Callable[[], Any]], repeats: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Times every system in turn, `repeats` times; returns seconds by name.

    In turn, so that a slow minute of the machine meets all of them alike. One
    call each before that is not counted: it compiles and fills caches.
    """
    if warm_up:
        for run in systems.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(repeats):
        for name, run in systems.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def peak_memory() -> float:
    """Returns the peak memory of this process so far, GiB."""
    # Not ru_maxrss where it can be helped: a child inherits that of its parent, across
    # exec too, as long as it is the larger one.
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / GIB
    except (OSError, TypeError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def memory_of(script: str, options: argparse.Namespace, system: str) -> float | None:
    """Returns the peak memory in GiB of a process that runs one system once.

    Imports and input data count. `None` with `--no-memory`.
    """
    if not options.memory:
        return None
    command = [sys.executable, script, *options.argv, "--child", system]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{system} failed by itself:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["peak_memory_gib"])


def run_child(options: argparse.Namespace, run: Callable[[], Any]) -> None:
    """Runs a system once and prints what `memory_of` reads."""
    run()
    print(json.dumps({"system": options.child, "peak_memory_gib": peak_memory()}))


@dataclass
class Report:
    """The results of one script: a table on the screen, and a JSON file."""

    options: argparse.Namespace
    lines: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    began: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )

    def add(
        self,
        system: str,
        setting: Mapping[str, Any],
        unit: str,
        values: Sequence[float],
        **more: float | None,
    ) -> float:
        """Adds a line and returns its median.

        Args:
          system: what was measured.
          setting: what tells this line from others of the system.
          unit: of the values.
          values: one per repeat.
          **more: further figures, by name; `None` is left out.
        """
        median = statistics.median(values)
        line = {
            "system": system,
            "setting": dict(setting),
            "unit": unit,
            "median": median,
            "lowest": min(values),
            "highest": max(values),
            "values": list(values),
        } | {name: value for name, value in more.items() if value is not None}
        self.lines.append(line)
        print(_row(line), flush=True)
        return median

    def note(self, text: str) -> None:
        """Adds a sentence to the results."""
        self.notes.append(text)
        print(f"  {text}", flush=True)

    def head(self) -> None:
        """Prints what is measured, and on what."""
        machine = describe_machine()
        print(f"\n== {self.options.name}: {_command(self.options)}")
        print(
            f"   {machine['cpu']}, {machine['cores']} cores, "
            f"{machine['memory_gib']:.0f} GiB, load {machine['load'][0]:.1f}; "
            + ", ".join(f"{name} {text}" for name, text in versions().items())
        )
        print(f"   {_row(None)}")

    def write(self) -> Path:
        """Writes the JSON file and returns its path."""
        hidden = ("name", "argv", "child", "json")
        tree = {
            "benchmark": self.options.name,
            "command": _command(self.options),
            "began": self.began,
            "git": git_revision(),
            "machine": describe_machine(),
            "versions": versions(),
            "options": {
                name: value
                for name, value in vars(self.options).items()
                if name not in hidden
            },
            "notes": self.notes,
            "results": self.lines,
        }
        path = Path(self.options.json)
        write_atomic(path, json.dumps(tree, indent=2) + "\n")
        print(f"   written: {os.path.relpath(path)}", flush=True)
        return path


def _row(line: Mapping[str, Any] | None) -> str:
    shape = "{:44} {:38} {:>12} {:>25} {:16} {}"
    if line is None:
        heads = ("system", "setting", "median", "lowest - highest", "unit", "more")
        return shape.format(*heads).strip()
    shown = {"system", "setting", "unit", "median", "lowest", "highest", "values"}
    return "   " + shape.format(
        line["system"],
        " ".join(f"{name}={value}" for name, value in line["setting"].items()),
        _number(line["median"]),
        f"{_number(line['lowest'])} - {_number(line['highest'])}",
        line["unit"],
        "  ".join(
            f"{name}={_number(value)}"
            for name, value in line.items()
            if name not in shown
        ),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _command(options: argparse.Namespace) -> str:
    return shlex.join(["python", f"benchmarks/{options.name}.py", *options.argv])


def describe_machine() -> dict[str, Any]:
    """Returns processor, cores, memory, load and system."""
    cpu = platform.processor() or platform.machine()
    memory = float("nan")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        cpu = re.search(r"model name\s*:\s*(.+)", text)[1].strip()
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        memory = int(re.search(r"MemTotal:\s+(\d+)", text)[1]) * 1024 / GIB
    except (OSError, TypeError):
        pass  # another system: what `platform` knows is enough
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "load": [round(value, 2) for value in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and the packages measured."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str:
    """Returns the revision of the checkout, with `+` if it was changed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = "+" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
