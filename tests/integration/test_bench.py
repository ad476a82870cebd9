"""`taskq bench`: a tiny round gives every figure, a wrong count none."""

import asyncio
import json
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import CliRunner

from taskq.bench import GROUP_NAMES
from taskq.bench.figures import FIGURES, BenchFailed, Figure, judge
from taskq.bench.rounds import GROUPS, _same
from taskq.bench.sink import serve_sink
from taskq.cli import cli


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def databases(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        return {row[0] for row in connection.execute("select datname from pg_database")}


@pytest.mark.bench
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("empty_folder")
@pytest.mark.filterwarnings("default")
def test_bench_gives_every_figure_as_json_and_removes_its_databases_when_quick(postgres: str):
    before = databases(postgres)
    only = [word for name in GROUP_NAMES for word in ("--only", name)]

    done = CliRunner().invoke(cli, ["bench", "--quick", "--json", "--database-url", postgres, *only])

    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    titles = {(figure["group"], figure["title"]) for figure in document["figures"]}
    assert titles == {(figure.group, figure.title) for figure in FIGURES}
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in document["figures"])
    assert {"cpu", "cores", "load", "python", "postgres"} <= document["machine"].keys()
    assert databases(postgres) == before


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.filterwarnings("default")
def test_bench_prints_lines_when_it_is_piped(postgres: str):
    done = CliRunner().invoke(cli, ["bench", "--quick", "--only", "drain", "--database-url", postgres])

    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("taskq ")
    assert lines[1].split("\t")[0] == "drain of waiting no-op tasks"
    assert "targets reached" in lines[-1]


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.filterwarnings("default")
def test_bench_measures_on_a_server_of_its_own_when_asked_to_though_another_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TASKQ_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/nowhere")

    done = CliRunner().invoke(cli, ["bench", "--quick", "--only", "drain", "--embedded"])

    assert done.exit_code == 0, done.output
    assert "(embedded)" in done.output.splitlines()[0]


@pytest.mark.usefixtures("empty_folder")
def test_bench_fails_with_exit_code_1_when_a_count_is_wrong(monkeypatch: pytest.MonkeyPatch, postgres: str):
    async def measure(*_arguments: object, **_options: object) -> None:
        _same("tasks Ok", 9, 10)

    monkeypatch.setattr("taskq.bench.report.measure", measure)

    done = CliRunner().invoke(cli, ["bench", "--quick", "--database-url", postgres])

    assert done.exit_code == 1
    assert "tasks Ok: 9, but there should be 10" in done.output


def test_a_count_passes_when_it_is_right():
    _same("tasks stored", 10, 10.0)

    with pytest.raises(BenchFailed, match="tasks stored: 9"):
        _same("tasks stored", 9, 10)


def test_every_figure_belongs_to_a_group():
    assert tuple(GROUPS) == GROUP_NAMES
    assert {figure.group for figure in FIGURES} == set(GROUPS)


async def test_the_relay_of_the_bench_counts_each_mail_once_however_it_is_cut():
    async def send(url: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        mail = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nQUIT\r\n..\r\n.\r\n"
        for cut in (1, 7, len(mail)):
            for at in range(0, len(mail), cut):
                writer.write(mail[at : at + cut])
                await writer.drain()
        writer.write(b"QUIT\r\n")
        answers = await reader.read()
        assert answers.count(b"queued as") == 3
        assert answers.endswith(b"221 2.0.0 bye\r\n")
        writer.close()

    assert await serve_sink(0.0, send) == {"mails": 3, "connections": 1}


def test_a_ratio_is_made_of_the_medians_of_quiet_rounds(monkeypatch: pytest.MonkeyPatch):
    figure = Figure("ratio", "×", ("a.x.rate", "a.y.rate"), "ratio", least=2.5)
    monkeypatch.setattr("taskq.bench.figures.FIGURES", (figure,))
    quiet = [{"a.x.rate": x, "a.y.rate": y} for x, y in ((10.0, 5.0), (30.0, 10.0), (20.0, 4.0))]
    noisy = {"a.x.rate": 1.0, "a.y.rate": 100.0, "a.x.foreign_cores": 0.9}

    (result,) = judge([*quiet, noisy])

    assert (result.value, result.low, result.high, result.rounds) == (4.0, 2.0, 5.0, 3)
    assert result.reached
    assert result.quiet
