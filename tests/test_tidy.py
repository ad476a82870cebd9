"""The rules of the house as tests: what docs/style.md asks and a machine can see.

An exception stands in a table here, each with its reason; there is no way to switch a rule off from
inside a file.  What ruff, pyright and import-linter see is theirs and not repeated.
"""

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from taskq.cli.config import markdown, sample
from taskq.config import Settings

CLONE = Path(__file__).parents[1]
PACKAGE = sorted((CLONE / "taskq").rglob("*.py"))
EVERY_PYTHON = [*PACKAGE, *sorted((CLONE / "tests").rglob("*.py")), *sorted((CLONE / "migrations").glob("*.py"))]

FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 700  # a list of cases, found by name rather than read from the top
FUNCTION_LINES_MAX = 60
ESSAY_LINES_MIN = 3

SHORT_HEADS = {
    "taskq/bench/kinds.py": "a kind that does nothing",
    "taskq/bench/producer.py": "three ways to call one function",
    "taskq/__main__.py": "three lines that call main",
    "taskq/kinds/__init__.py": "names a folder; its modules tell",
    "taskq/cli/options.py": "one function, which its name tells",
    "taskq/cli/run.py": "the essay of a run is in service",
    "taskq/web/app.py": "the routes and the essay are in router",
}
SQL_IN_PYTHON = {
    "taskq/migrate.py": "asks yoyo's own tables before our statements are valid",
    "taskq/postgres/server.py": "makes the database that our statements run in",
    "taskq/sweeper.py": "the names of partitions are computed, and a name can't be a parameter",
}
FOUND_BY_NAME = {
    "taskq/bench/child.py": "its jobs stand in a table by the names that the parent sends",
}
LOOSE_TASKS = {
    "taskq/dispatcher.py": "two waits that the same function ends in a finally",
    "taskq/listener.py": "the one root of the control thread's own loop, ended from outside by its handle",
}
NAPS = {
    "tests/crash/crash_handlers.py": "a handler whose work is to take a while; no test waits by it",
}
FORBIDDEN_NAMES = ("util", "helper", "common", "manager", "misc")
STATEMENT = re.compile(
    r"^\s*(select\s.+\sfrom\s|insert\s+into\s|update\s+\S+\s+set\s|delete\s+from\s|create\s+(table|index|schema|function)\s"
    r"|alter\s+table\s|drop\s+\S+\s|select\s+\w+\(|with\s+\w+\s+as\s|notify\s|listen\s)",
    re.IGNORECASE | re.DOTALL,
)
# Written in two halves, so that this file does not hold what it looks for.
PLACES = re.compile(r"(?<![\w.])/(?:wo" r"rk|ro" r"ot|fa" r"rm|home/(?!somebody)[a-z]+)/")
REGISTRIES = re.compile(r"(?:py" r"pi|npm" r"js|deb" r"ian|python" r"hosted)\.(?:org|com)", re.IGNORECASE)


def name_of(path: Path) -> str:
    return path.relative_to(CLONE).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), path.name)


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name_of)


def texts() -> list[Path]:
    """What a commit would hold: tracked and new files that are text."""
    listed = ""
    if git := shutil.which("git"):
        ask = [git, "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(ask, cwd=CLONE, capture_output=True, text=True, check=False).stdout
    names = listed.splitlines() or [name_of(path) for path in EVERY_PYTHON]  # without git, or an unpacked archive
    return [CLONE / name for name in names if (CLONE / name).is_file()]


@each(EVERY_PYTHON)
def test_files_have_a_bound(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())

    allowed = TEST_FILE_LINES_MAX if name_of(path).startswith("tests/") else FILE_LINES_MAX
    assert lines <= allowed, f"{lines} lines: split it by ideas"


@each(PACKAGE)
def test_functions_have_at_most_60_lines(path: Path) -> None:
    functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    long = [(node.name, node.end_lineno - node.lineno + 1) for node in functions if node.end_lineno]

    assert not [found for found in long if found[1] > FUNCTION_LINES_MAX]


@each(PACKAGE)
def test_module_opens_with_an_essay(path: Path) -> None:
    head = (ast.get_docstring(tree_of(path)) or "").splitlines()

    assert head
    if name_of(path) not in SHORT_HEADS:
        assert len(head) >= ESSAY_LINES_MIN, "say the idea, the guarantee, what is refused"


@each(PACKAGE)
def test_all_names_what_is_public(path: Path) -> None:
    tree = tree_of(path)
    listed = [names for node in tree.body if (names := _listed(node)) is not None]
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not any(ast.unparse(each).startswith("handler(") for each in node.decorator_list)  # found by its kind
    }

    if not defined and not listed:
        return  # a module without functions and classes, such as __main__

    assert listed, "__all__ is missing"
    missing = defined - set(listed[0])
    if name_of(path) in FOUND_BY_NAME or path.name == "__init__.py":
        return
    assert not missing, f"public, but not in __all__: {sorted(missing)}"


def _listed(node: ast.stmt) -> list[str] | None:
    if not isinstance(node, ast.Assign) or ast.unparse(node.targets[0]) != "__all__":
        return None
    return list(ast.literal_eval(node.value))


@each(PACKAGE)
def test_tasks_belong_to_a_group(path: Path) -> None:
    """`asyncio.create_task`, `loop.create_task` and `ensure_future` leave a task to nobody."""
    loose = [
        call.lineno
        for call in ast.walk(tree_of(path))
        if isinstance(call, ast.Call)
        and re.search(
            r"^asyncio\.create_task$|loop\(?\)?\.create_task$|ensure_future$|\bgather$", ast.unparse(call.func)
        )
    ]

    assert not loose or name_of(path) in LOOSE_TASKS, f"lines {loose}: use a TaskGroup"


@each(PACKAGE)
def test_sql_stands_in_sql_files(path: Path) -> None:
    tree = tree_of(path)
    found = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and STATEMENT.match(node.value)
    ]

    assert not found or name_of(path) in SQL_IN_PYTHON, f"lines {found}: move it to taskq/sql"


def test_exceptions_are_still_needed() -> None:
    assert {*SHORT_HEADS, *SQL_IN_PYTHON, *FOUND_BY_NAME, *LOOSE_TASKS, *NAPS} <= {
        name_of(path) for path in EVERY_PYTHON
    }


@each(EVERY_PYTHON)
def test_names_say_what_a_module_is(path: Path) -> None:
    assert not [word for word in FORBIDDEN_NAMES if word in path.stem.split("_") or word + "s" in path.stem.split("_")]


@each(sorted((CLONE / "tests").rglob("*.py")))
def test_tests_wait_for_events(path: Path) -> None:
    naps = [
        call.lineno
        for call in ast.walk(tree_of(path))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in {"time.sleep", "asyncio.sleep", "sleep"}
        and ast.unparse(call.args[0]) != "0"
    ]

    assert not naps or name_of(path) in NAPS, f"lines {naps}: wait for what happens, with eventually()"


def test_no_file_names_a_place_of_one_machine() -> None:
    found = [
        f"{name_of(path)}: {match.group()}"
        for path in texts()
        for pattern in (PLACES, REGISTRIES)
        for match in pattern.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]

    assert not found


def test_settings_page_is_what_the_settings_say() -> None:
    written = (CLONE / "docs" / "settings.md").read_text(encoding="utf-8")

    assert written == markdown(), "run `make docs`"
    assert all(f"| `{name}` |" in written for name in Settings.model_fields)


def test_sample_file_gives_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = [line[1:] for line in sample().splitlines() if re.match(r"#\w+ = ", line) and not line.endswith('""')]
    (tmp_path / "taskq.toml").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    assert Settings() == Settings.model_construct()
    assert len(lines) > 25


def test_every_dependency_says_why() -> None:
    text = (CLONE / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = text.splitlines()

    silent = [each for each in wanted if not any(each in line and "# " in line.split(each)[1] for line in lines)]

    # pytest's own plug-ins are told by their names
    assert [each for each in silent if not each.startswith("pytest")] == []
