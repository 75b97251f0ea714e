"""The pages for users: their commands exist, their links lead somewhere, and the primer's figures are computed anew."""

import ast
import itertools
import json
import math
import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest

from cmrfed import load_recipe
from cmrfed.config.experiment import resolve
from cmrfed.config.recipes import find_recipe, find_sweep
from cmrfed.core.errors import ConfigError
from cmrfed.evaluation.privacy.membership import Claim
from cmrfed.sweep.points import read_sweep
from tests.unit.cli.test_main import commands

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
COMMANDS = commands()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.M | re.S)
WHERE_COMMANDS_BEGIN = r"(?:^|[|;&(]|\b(?:do|if|then|until|while)\b)\s*(?:\w+=\S+\s+)*cmrfed\s+([a-z][^\n|;&)<>]*)"


def blocks(text: str) -> list[str]:
    """What a page tells to type: its fenced blocks, but for output and other languages, with lines joined at \\."""
    return [body.replace("\\\n", " ") for kind, body in FENCE.findall(text) if kind in ("", "bash")]


def typed(text: str) -> list[list[str]]:
    """The words of each command of a page, without cmrfed itself."""
    scripts = blocks(text)
    inner = [part for script in scripts for part in re.findall(r"\$\((cmrfed [^)]*)\)", script)]
    outer = [re.sub(r"\$\([^)]*\)", "X", script) for script in scripts]
    found = [line for script in inner + outer for line in re.findall(WHERE_COMMANDS_BEGIN, script, flags=re.M)]
    return [shlex.split(line.replace("$", ""), comments=True) for line in found]


def mentioned(text: str) -> list[list[str]]:
    """The words of each command that is named between back ticks in a sentence; it need not be whole."""
    prose = FENCE.sub("", text)
    return [line.split() for line in re.findall(r"`cmrfed ([a-z][^`]*)`", prose)]


def resolved(words: list[str]) -> tuple[str, list[str]]:
    """Name of the command and the words after it; the name is empty where there is no such command."""
    for count in (2, 1):
        if (name := " ".join(words[:count])) in COMMANDS:
            return name, words[count:]
    return "", words


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_tells_to_type_parses(page):
    for words in typed(PAGES[page].read_text()):
        name, rest = resolved(words)
        assert name, f"no such command: cmrfed {' '.join(words)}"
        if not set(rest) & {"--help", "..."}:
            COMMANDS[name].make_context(name, [*rest])


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_that_a_page_mentions_exists(page):
    groups = {name.partition(" ")[0] for name in COMMANDS if " " in name}
    for words in mentioned(PAGES[page].read_text()):
        name, rest = resolved(words)
        assert name or words[0] in groups, f"no such command: cmrfed {' '.join(words)}"
        known = {option for part in COMMANDS[name].params for option in part.opts} | {"--help"} if name else set()
        assert {word for word in rest if word.startswith("--")} <= known, " ".join(words)


def test_commands_are_found_where_a_shell_would_find_them():
    text = "```bash\nX=1 cmrfed bundle | cat\nif cmrfed run a \\\n  --run-dir b; then cmrfed report c # why\n```\n"
    assert typed(text) == [["bundle"], ["run", "a", "--run-dir", "b"], ["report", "c"]]
    assert typed('```bash\ncmrfed site approve kit "$(cmrfed bundle)" # so\n```\n')[::-1] == [
        ["site", "approve", "kit", "X"],
        ["bundle"],
    ]
    assert typed("```text\ncmrfed nonsense\n```\n") == []
    assert mentioned("see `cmrfed run --what` and\n```\ncmrfed bundle\n```\n") == [["run", "--what"]]
    assert resolved(["site", "check", "kit"]) == ("site check", ["kit"])
    assert resolved(["nonsense"])[0] == ""


@pytest.mark.parametrize("words", [["run", "x"], ["bundle", "--what"], ["phantom", "x", "--patients", "few"]])
def test_commands_that_do_not_parse_are_found(words):
    with pytest.raises(click.UsageError):
        COMMANDS[words[0]].make_context(words[0], words[1:])


def test_the_pages_have_commands():
    assert sum(len(typed(path.read_text())) for path in PAGES.values()) > 60


# --- recipes --------------------------------------------------------------------------------------
CONFIG = re.compile(r"\bconfigs/[\w./-]+\.yaml")
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


RECIPE_AT = {"run": 0, "sweep": 0, "plan": 0, "coordinator submit": 1}
"""Command => which of its words is a recipe or a sweep."""


def written(text: str, folder: Path) -> None:
    """Write the recipes and sweeps that a page writes with ``cat > FILE <<'END'``, as a reader would."""
    for name, _, body in re.findall(r"^cat > (\S+\.yaml) <<'?(\w+)'?\n(.*?)^\2$", text, flags=re.M | re.S):
        (folder / name).write_text(body, encoding="utf-8")


def overrides(words: list[str]) -> list[str]:
    """What a command sets."""
    return [value for option, value in itertools.pairwise(words) if option == "--set"]


def check_recipe(name: str, words: list[str], folder: Path) -> None:
    """Read the recipe that a command runs, or the sweep of `cmrfed sweep`, with what the command sets."""
    file = Path(words[RECIPE_AT[name]])
    if file.stem.isupper():  # stands for any file
        return
    for place in (folder, ROOT):
        if (place / file).is_file():
            file = place / file
    if name == "sweep":
        read_sweep(find_sweep(file), overrides(words))
    else:
        resolve(find_recipe(file), overrides(words))


@pytest.mark.parametrize("page", PAGES)
def test_every_recipe_and_sweep_that_a_page_names_is_there(page):
    for name in CONFIG.findall(PAGES[page].read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", PAGES)
def test_every_recipe_that_a_page_runs_is_valid_with_what_the_page_sets(page, tmp_path):
    text = PAGES[page].read_text(encoding="utf-8")
    written(text, tmp_path)
    for words in typed(text):
        name, rest = resolved(words)
        if name in RECIPE_AT and "--help" not in rest:
            check_recipe(name, rest, tmp_path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_recipe_that_a_notebook_loads_is_valid(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "load_recipe":
            load_recipe(*(ast.literal_eval(word) for word in call.args))


def test_recipes_on_pages_are_found_and_their_faults_too(tmp_path):
    page = "```bash\ncat > own.yaml <<'END'\nname: own\ndata: {phantom: {}}\nseed: 3\nEND\n```\n"
    written(page, tmp_path)
    check_recipe("run", ["own.yaml", "--run-dir", "x", "--set", "seed=4"], tmp_path)
    check_recipe("run", ["configs/recipes/demo.yaml"], tmp_path)
    with pytest.raises(ConfigError, match="sed"):
        check_recipe("run", ["own.yaml", "--run-dir", "x", "--set", "sed=4"], tmp_path)
    with pytest.raises(ConfigError):
        check_recipe("run", ["other.yaml"], tmp_path)


# --- links ----------------------------------------------------------------------------------------
def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as code hosts make them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = PAGES[page]
    text = FENCE.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text()), target


def test_every_page_is_reached_from_the_readme():
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in seen or path.suffix != ".md":
            continue
        seen.add(path)
        links = re.findall(r"\]\(([^)\s#]+)", path.read_text())
        waiting += [
            found for link in links if "://" not in link and (found := (path.parent / link).resolve()).is_file()
        ]
    assert set(PAGES.values()) <= seen


# --- the primer -----------------------------------------------------------------------------------
STRICT, FIFTEEN = 1e-3, 15**-1.1
"""δ of the primer's columns: the strict one, and what a recipe takes where 15 patients a site are declared."""


def right_guesses(epsilon: float, delta: float) -> float:
    """Best accuracy of telling two equally likely worlds apart: the least FPR + FNR is 2 (1 - δ) / (1 + e^ε)."""
    return 1 - (1 - delta) / (1 + math.exp(epsilon))


def row_of(epsilon: float) -> list[str]:
    """A row of the primer's table; shares are rounded up, so that what is written is never below the bound."""
    rise = math.exp(epsilon)
    cells = [f"{epsilon:g}", f"{rise:.1e} to 1" if rise > 1e6 else f"{rise:.{0 if rise > 100 else 1}f} to 1"]
    shares = [
        (right_guesses(epsilon, d), float(Claim(epsilon, d).ceiling(np.array([0.01]))[0])) for d in (STRICT, FIFTEEN)
    ]
    both = [[f"{math.ceil(share * 1e4 - 1e-9) / 100:.2f} %" for share in pair] for pair in shares]
    return [*cells, *both[0], ", ".join(both[1])]


def test_the_table_of_the_primer_is_computed_from_its_formulas():
    lines = (ROOT / "docs" / "privacy-primer.md").read_text().splitlines()
    rows = {cells[0]: cells for line in lines if len(cells := [c.strip() for c in line.strip("| ").split(" | ")]) == 5}
    for epsilon in (1, 2, 8, 32):
        assert rows[str(epsilon)] == row_of(epsilon)


@pytest.mark.parametrize("delta", [0.0, STRICT, FIFTEEN])
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 2.0, 8.0])
def test_right_guesses_are_the_best_point_of_the_border_of_all_tests(epsilon, delta):
    """The closed form against the border itself: accuracy is (TPR + 1 - FPR) / 2, at its best false-positive rate."""
    fpr = np.linspace(0, 1, 200_001)
    border = Claim(epsilon, delta).ceiling(fpr)
    assert right_guesses(epsilon, delta) == pytest.approx(float((border + 1 - fpr).max() / 2), abs=1e-4)


def test_the_primer_names_the_formulas_that_are_computed():
    text = " ".join((ROOT / "docs" / "privacy-primer.md").read_text().split())
    assert "1 - (1 - δ) / (1 + e^ε)" in text
    assert "min(e^ε · .01 + δ, 1 - (1 - δ - .01) / e^ε)" in text
