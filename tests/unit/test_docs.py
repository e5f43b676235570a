"""The documentation matches the code: its examples run, and what it names exists."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from avvp_dist.cli.main import app
from avvp_dist.experiments import paper_tables
from avvp_dist.experiments.recipe import load, recipes
from avvp_dist.methods import METHODS
from avvp_dist.tasks import MOVED_KEYS

ROOT = Path(__file__).parents[2]
METHODS_PAGE = ROOT / "docs" / "methods.md"
CHANGELOG = ROOT / "CHANGELOG.md"
EXTENDING = ROOT / "docs" / "extending.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

SETTING = re.compile(r"`((?:method|model|train|optim|task|evaluate|data|launch|storage|tracking)\.[a-z_]+)(?:=([^`\s]*))?`")
SCRIPT = re.compile(r"\b((?:benchmarks|cluster|jobs)/[\w./-]+\.(?:py|sh|yaml)|cluster/(?:kuberay|launcher)/)")
CODE_PATH = re.compile(r"`([\w/-]+/[\w-]+\.(?:py|md|yaml|json))`")
NOT_IN_REPOSITORY = {"tracking/run.json"}  # files of a run
NOT_SETTINGS = {"model.safetensors", "method.q"}  # a file; a setting of the example in docs/extending.md
EXAMPLES = {  # files that a reader of docs/extending.md creates
    "avvp_dist/methods/gce.py", "avvp_dist/models/conv.py", "avvp_dist/experiments/recipes/gce.yaml",
    "tests/unit/test_gce.py", "tests/unit/test_conv.py",
}  # fmt: skip


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def prose(page: Path) -> str:
    """The text of a page without its code blocks, whose lines can look like headings or links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_and_anchors_resolve(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def subcommands(words: list[str]) -> str | None:
    """The first word after ``avvp`` that is not a command, or an option that its command does not have."""
    command = typer.main.get_command(app)
    for position, word in enumerate(words):
        if not hasattr(command, "commands"):
            names = {name for option in command.params for name in [*option.opts, *option.secondary_opts]} | {"--help"}
            unknown = [option for option in words[position:] if option.startswith("--") and option not in names]
            return unknown[0] if unknown else None
        if word.isupper():  # a placeholder such as COMMAND
            return None
        if word not in command.commands:
            return word
        command = command.commands[word]
    return None


@each_page
def test_commands_and_their_options_exist(page):
    found = re.findall(r"(?:\bavvp|-m avvp_dist) ((?:[a-z][a-z-]+|[A-Z]+)(?: [^`\n#]*)?)", "\n".join(code(page)))
    commands = [re.sub(r"[\[\]()|\\,]", " ", command).split() for command in found]
    assert not {" ".join(words): wrong for words in commands if (wrong := subcommands(words))}


def code(page: Path) -> list[str]:
    """Code spans of a page, and the lines of its code blocks."""
    text = page.read_text()
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    return [*re.findall(r"`([^`\n]+)`", prose(page)), *"".join(blocks).splitlines(), *lines]


@each_page
def test_scripts_and_files_exist(page):
    text = page.read_text()
    named = {path for path in SCRIPT.findall(text) if "*" not in path}
    named |= {f"{module.replace('.', '/')}.py" for module in re.findall(r"python -m (benchmarks\.\w+)", text)}
    named |= {path for path in CODE_PATH.findall(text) if "NAME" not in path}
    missing = named - EXAMPLES - NOT_IN_REPOSITORY if page == EXTENDING else named - NOT_IN_REPOSITORY
    assert not {path for path in missing if not any((ROOT / base / path).exists() for base in ("", "avvp_dist", "docs"))}


@each_page
def test_settings_exist(page):
    configs = [load(name).model_dump() for name in recipes()]
    configs += [load("jomold", [f"model={network}"]).model_dump() for network in ("ave-llp", "avslowfast")]
    named = {(key, value) for key, value in SETTING.findall(page.read_text()) if key not in NOT_SETTINGS}
    if page == CHANGELOG:
        named = {(key, value) for key, value in named if key not in MOVED_KEYS}
    assert page != METHODS_PAGE or len(named) > 20
    for key, value in sorted(named):
        section, field = key.split(".")
        owners = [config["recipe"] for config in configs if field in config[section]]
        assert owners, key
        if value and value.islower():
            load(owners[0], [f"{key}={value}"])


def test_examples_on_the_methods_page_give_the_results_shown():
    done = doctest.testfile(str(METHODS_PAGE), module_relative=False)
    assert done.attempted > 0
    assert done.failed == 0


def test_recipes_and_tables_on_the_methods_page_exist():
    rows = [line.split("|") for line in METHODS_PAGE.read_text().splitlines() if re.match(r"\| \[[\w+-]+\]\(#", line)]
    named = {recipe: cells[5] for cells in rows for recipe in re.findall(r"`([a-z-]+)`", cells[2])}
    assert set(named) >= {"han", "ma", "jomold", "lr", "valor", "coteaching", "jocor"}
    assert set(named) >= {name for name in recipes() if load(name).task.name == "localization"}
    assert set(named) <= set(recipes())
    assert {load(name).method.name for name in named} == set(METHODS)
    assert {name for cells in named.values() for name in re.findall(r"`([a-z-]+)`", cells)} <= set(paper_tables.tables())


def test_published_figures_of_the_readme_are_those_of_the_tables():
    shown = {}
    for line in (ROOT / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 6 and re.fullmatch(r"[\d.]+ / [\d.]+", cells[5]):
            shown[cells[4].strip("`")] = tuple(float(figure) for figure in cells[5].split(" / "))
    assert set(shown) >= {"han", "ma", "jomold", "valor", "lr", "coteaching", "jocor"}
    tables = paper_tables.tables()
    for row in [*tables["main"].rows, *tables["valor"].rows]:
        if row.recipe in shown:
            assert shown[row.recipe] == (row.published["segment.type"], row.published["event.type"]), row.label


def test_the_readme_shows_the_packages_of_the_repository():
    tree = (ROOT / "README.md").read_text().split("## Repository layout")[1].split("##")[0]
    shown = set(re.findall(r"^      (\w+)/ ", tree, re.M))
    assert shown == {path.parent.name for path in (ROOT / "avvp_dist").glob("*/__init__.py")}


def environment() -> dict[str, str]:
    """Of a reader: this interpreter's commands first, one thread."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_quickstart_of_the_readme_runs_as_shown(tmp_path):
    (shell,) = code_blocks(ROOT / "README.md", "sh")
    (python,) = code_blocks(ROOT / "README.md", "python")
    assert len(shell.splitlines()) == 5
    output = run(["bash", "-e", "-c", shell], tmp_path)
    assert "SYNTHETIC DATA" in output
    assert (tmp_path / "outputs" / "jomold" / "result.json").is_file()
    score = float(run([sys.executable, "-c", python], tmp_path).splitlines()[-1])
    assert 0 <= score <= 100
    assert (tmp_path / "outputs" / "han-7" / "result.json").is_file()


def test_python_names_in_the_command_reference_can_be_imported():
    (block,) = code_blocks(ROOT / "docs" / "commands.md", "python")
    names: dict = {}
    exec(compile(block, "commands.md", "exec"), names)
    assert names.keys() - {"__builtins__"}


@pytest.mark.slow
def test_the_examples_of_extending_pass_their_own_tests(tmp_path):
    blocks = {block.splitlines()[0].removeprefix("# "): block for block in code_blocks(EXTENDING, "python")}
    assert set(blocks) == {path for path in EXAMPLES if path.endswith(".py")}
    for path, block in blocks.items():
        (tmp_path / Path(path).name).write_text(block.split("\n", 1)[1])
    (tmp_path / "conftest.py").write_text(
        "import importlib.util, pathlib, sys\n"
        "import avvp_dist.methods, avvp_dist.models\n"  # first: a registered example imports its own package
        "for package, name in (('methods', 'gce'), ('models', 'conv')):\n"
        "    path = pathlib.Path(__file__).with_name(f'{name}.py')\n"
        "    spec = importlib.util.spec_from_file_location(f'avvp_dist.{package}.{name}', path)\n"
        "    if spec.name in sys.modules:\n"  # the example is part of the repository, with this code or further work on it
        "        continue\n"
        "    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(module)\n"
    )
    run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "."], tmp_path)
