"""The commands of docs/serving.md do what it says."""

import re
import shutil
import subprocess

import pytest


def commands(text):
    """Yields every curl command of a page with the status it announces."""
    command = ""
    for line in text.splitlines():
        if command or line.startswith("    curl "):
            command += line.strip() + "\n"
        if command and command.count("'") % 2 == 0:  # no quotation is open
            command, _, status = command.strip().partition("     # ")
            yield command, int(status or 200)
            command = ""


def test_every_curl_command_runs(cascade, tools):
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    page = (tools.root / "docs" / "serving.md").read_text(encoding="utf-8")
    found = list(commands(page))
    assert len(found) >= 10
    for command, status in found:
        here = command.replace("http://localhost:8501", cascade.url)
        assert here != command and here.count("'") % 2 == 0
        script = here.replace("curl ", "curl -sS -w '\\n%{http_code}' ", 1)
        done = subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, timeout=60
        )
        body, _, code = done.stdout.rpartition("\n")
        assert int(code) == status, f"{command}\n{done.stdout}\n{done.stderr}"
        if ":predict" in command and status == 200:
            form = "outputs" if '"inputs"' in command else "predictions"
            assert re.match(r'\{\s*"' + form, body)
