"""Every tutorial, run as it is written: its commands in order, and under each what it says that a reader sees."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cmrfed.core.processes import end_with_parent
from tests.deployment_world import needs_nginx
from tests.flower_process import REPOSITORY, consecutive_ports

TUTORIALS = REPOSITORY / "docs" / "tutorials"
LIMIT_S = 3600
"""After which a tutorial hangs: ten times what the longest takes on a machine that does nothing else."""
PORTS = 12
"""That the tutorial of a deployment uses, from $PORT on."""

STARTED = "from cmrfed.core.processes import end_with_parent as e; e(); from cmrfed.cli.main import main; main()"
"""The command, which ends with the shell that started it, as the shell does with the tests."""

pytestmark = [
    pytest.mark.timeout(LIMIT_S + 100),
    pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed"),
]


@dataclass(frozen=True)
class Block:
    """Commands, and the lines that they print according to the page; … stands for what differs from run to run."""

    commands: str
    shown: tuple[str, ...]


def blocks_of(text: str) -> list[Block]:
    """The ```bash blocks of a page, each with the ```text block that follows it, if one does before the next."""
    found = []
    for part in re.split(r"^```bash\n", text, flags=re.M)[1:]:
        commands, _, rest = part.partition("\n```\n")
        shown = re.search(r"^```text\n(.*?)\n```$", rest, flags=re.M | re.S)
        lines = [line.strip() for line in shown[1].splitlines()] if shown else []
        found.append(Block(commands, tuple(line for line in lines if line.strip("… "))))
    return found


def unseen(shown: tuple[str, ...], printed: str) -> str | None:
    """The first line that was not printed, each being looked for after the one before."""
    lines = iter(printed.splitlines())
    for line in shown:
        pattern = re.compile(r".*".join(re.escape(word.strip()) for word in line.split("…")))
        if not any(pattern.search(re.sub(r"\s+", " ", got)) for got in lines):
            return line
    return None


# --- run ------------------------------------------------------------------------------------------
@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short name, since Flower's paths have a limit."""
    with tempfile.TemporaryDirectory(prefix="tut-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def run_blocks(blocks: list[Block], folder: Path) -> list[str]:
    """Run all blocks in one shell, as a reader would, and return what each printed; a failing command ends it."""
    (folder / "bin").mkdir()
    command = folder / "bin" / "cmrfed"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{STARTED}" "$@"\n')
    command.chmod(0o755)
    (folder / "work").mkdir()
    script = "".join(f"echo '@@ {number}'\n{block.commands}\n" for number, block in enumerate(blocks))
    environment = os.environ | {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "PORT": str(consecutive_ports(PORTS)),
        "COLUMNS": "200",
    }
    with (folder / "printed").open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-euc", script],
            cwd=folder / "work",
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            status = shell.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            left = end_group(shell.pid)
            shell.wait()
    printed = (folder / "printed").read_text(errors="replace")
    assert status == 0, f"status {status}\n{printed[-6000:]}"
    assert not left, "the tutorial left processes behind"
    return re.split(r"^@@ \d+\n", printed, flags=re.M)[1:]


def end_group(group: int) -> bool:
    """End what is left of a shell's processes; whether there was anything."""
    try:
        os.killpg(group, signal.SIGTERM)
    except ProcessLookupError:
        return False
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-group, os.WNOHANG)
        time.sleep(0.2)
    os.killpg(group, signal.SIGKILL)
    return True


def check(name: str, folder: Path) -> None:
    blocks = blocks_of((TUTORIALS / name).read_text())
    assert blocks, f"{name} has no ```bash block"
    assert any(block.shown for block in blocks), f"{name} shows nothing that is printed"
    for block, printed in zip(blocks, run_blocks(blocks, folder), strict=True):
        missing = unseen(block.shown, printed)
        assert missing is None, f"{name} shows a line that was not printed: {missing}\n{block.commands}\n{printed}"


@pytest.mark.parametrize("name", sorted({path.name for path in TUTORIALS.glob("*.md")} - {"deploy.md"}))
def test_a_tutorial_runs_as_it_is_written(name, folder):
    check(name, folder)


@needs_nginx
def test_the_tutorial_of_a_deployment_runs_as_it_is_written(folder):
    check("deploy.md", folder)


# --- the test itself ------------------------------------------------------------------------------
def test_there_is_a_tutorial_for_each_use():
    assert {"simulate.md", "deploy.md", "compare.md"} <= {path.name for path in TUTORIALS.glob("*.md")}


PAGE = """
```bash
echo "seven    hearts of 9"
echo end
```

which shows

```text
seven hearts of …
…
end
```

```bash
echo more
```
"""


def test_blocks_have_the_output_that_follows_them(folder):
    blocks = blocks_of(PAGE)
    assert [block.shown for block in blocks] == [("seven hearts of …", "end"), ()]
    assert run_blocks(blocks, folder) == ["seven    hearts of 9\nend\n", "more\n"]


def test_a_line_that_is_not_printed_is_found():
    assert unseen(("seven … of 9", "end"), "seven    hearts of 9\nend\n") is None
    assert unseen(("seven … of 8",), "seven hearts of 9\n") == "seven … of 8"
    assert unseen(("end", "seven"), "seven\nend\n") == "seven", "lines are in order"


def test_a_command_that_fails_fails_the_tutorial(folder):
    with pytest.raises(AssertionError, match="status 1"):
        run_blocks(blocks_of("```bash\nfalse\necho on\n```\n"), folder)


def test_a_tutorial_that_leaves_a_process_behind_fails(folder):
    with pytest.raises(AssertionError, match="left processes behind"):
        run_blocks(blocks_of("```bash\nsleep 60 &\n```\n"), folder)
