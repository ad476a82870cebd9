"""`GET /tasks` over HTTP: the filter as one text or term by term, pages by `next`, remedies."""

from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from conftest import wait_until
from rig import Program, handlers, serving

QUICK = ("--port", "0", "--durability", "relaxed", "--poll-s", "0.2", "--beat-s", "0.1")


@pytest.fixture(scope="module")
def service(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, *QUICK, database=module_database, environment=handlers(folder)) as program:
        yield program


def ids(service: Program, **query: str) -> list[int]:
    return [task["id"] for task in service.call("GET", f"/tasks?{urlencode(query)}").json["tasks"]]


def test_list_shows_what_fits_the_newest_first(service: Program):
    made = [service.submit(tenant="acme", n=n) for n in range(3)]
    failed = service.submit(tenant="acme", do="fail")
    wait_until(lambda: service.call("GET", f"/task/{failed}").json["status"] == "failed")

    assert ids(service, filter="payload.tenant:acme") == [failed, *reversed(made)]
    assert ids(service, **{"payload.tenant": "acme", "status": "failed"}) == [failed]
    assert ids(service, filter="payload.tenant:acme", error='"no such luck"', kind="work") == [failed]


def test_list_shows_a_task_as_it_is_shown_alone(service: Program):
    task_id = service.submit(alone="yes")
    wait_until(lambda: service.call("GET", f"/task/{task_id}").json["status"] == "Ok")
    alone = service.call("GET", f"/task/{task_id}").json

    listed = service.call("GET", "/tasks?payload.alone=yes").json["tasks"]

    assert [task.items() <= alone.items() for task in listed] == [True]


def test_pages_go_on_at_next(service: Program):
    made = [service.submit(paged="yes") for _ in range(5)]
    seen: list[int] = []
    query: dict[str, str] = {"payload.paged": "yes", "limit": "2"}
    while True:
        page = service.call("GET", f"/tasks?{urlencode(query)}").json
        seen += [task["id"] for task in page["tasks"]]
        if page["next"] is None:
            break
        query["after"] = page["next"]

    assert seen == made[::-1]


@pytest.mark.parametrize(
    ("query", "code", "says"),
    [
        ("limit=0", "invalid_query", "from 1 to 500"),
        ("limit=501", "invalid_query", "from 1 to 500"),
        ("limit=%C2%B2", "invalid_query", "from 1 to 500"),
        ("stauts=failed", "invalid_query", "stauts is no parameter"),
        ("status=done", "invalid_filter", "use one of pending"),
        ("filter=stats:ok", "invalid_filter", "did you mean status?"),
        ("after=zzz", "invalid_filter", "send the next"),
        ("filter=kind:%00", "invalid_filter", "U+0000"),
    ],
)
def test_wrong_question_is_answered_with_the_remedy(service: Program, query: str, code: str, says: str):
    answer = service.call("GET", f"/tasks?{query}")

    assert (answer.status, answer.json["code"]) == (400, code)
    assert says in answer.json["detail"]
