"""Commands killed before one of their operations on files: the same command then ends as if it had never been hurt.

A sample of the operations; `python scripts/kill_everywhere.py` takes all of them.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_killed_command_ends_with_the_same_bits_when_it_is_repeated():
    script = ROOT / "scripts" / "kill_everywhere.py"
    found = subprocess.run([sys.executable, str(script), "--most", "1"], capture_output=True, text=True, cwd=ROOT)
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert found.returncode == 0 and not any(line["wrong"] for line in lines), found.stdout + found.stderr
    assert [line["command"] for line in lines] == "run relabel evaluate bundle export tensors pack".split()
    assert all(line["kills"] == 1 <= line["operations"] for line in lines)
