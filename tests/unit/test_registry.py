"""Kinds: what a handler may look like, and what a submission is told that does not fit."""

import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field
from rig import kind
from typing_extensions import TypedDict

from taskq.context import Context
from taskq.errors import ConfigError, InvalidPayload, UnknownKind
from taskq.facts import Privacy
from taskq.kinds import registry as module
from taskq.kinds.registry import DEPTH_MAX, Kind, Registry, check_depth, handler, make_kind
from taskq.task import RetryPolicy


class Resize(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    width: int
    caption: str = ""


class Loose(TypedDict):
    width: int


async def resize(payload: Resize) -> None:
    """Do nothing."""


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    empty: list[Kind] = []
    monkeypatch.setattr(module, "declared", empty)
    return empty


def refusal(body: bytes) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        kind("resize", resize).check(body)
    return caught.value


def test_kind_returns_the_json_to_store():
    assert kind("resize", resize).check(b' {"width": 3} ') == '{"width":3,"caption":""}'


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (b'{"width": 1, "captoin": ""}', "captoin", "captoin is no field of the kind resize: did you mean caption?"),
        (b'{"width": 1, "q": 2}', "q", "q is no field of the kind resize: the fields are width, caption"),
        (b"{}", "width", "width is missing: the kind resize needs it"),
        (b'{"width": "3"}', "width", "width: Input should be a valid integer"),
        (b"[]", "", "Input should be an object"),
    ],
    ids=["typo", "unknown", "missing", "type", "list"],
)
def test_kind_names_the_field_that_does_not_fit(body: bytes, field: str, message: str):
    error = refusal(body)

    assert (error.field, str(error), error.malformed) == (field, message, False)


class Album(BaseModel):
    pages: list[dict[str, Resize]]


async def bind(payload: Album) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("album", "field", "message"),
    [
        ('"pages": [{}, {"a": {"width": "x"}}]', "pages", "pages[1].a.width: Input should be a valid integer"),
        ('"pages": [{"a": {}}]', "pages", "pages[0].a.width is missing: the kind bind needs it"),
        (
            '"pages": [{"a": {"width": 1, "captoin": ""}}]',
            "pages",
            "pages[0].a.captoin is no field of the kind bind: did you mean caption?",
        ),
        ('"pages": [{"a b": {"width": "x"}}]', "pages", "pages[0]: Input should be a valid integer"),
    ],
    ids=["list", "missing", "typo", "odd-key"],
)
def test_kind_names_the_place_inside_a_field(album: str, field: str, message: str):
    with pytest.raises(InvalidPayload) as caught:
        kind("bind", bind).check(f"{{{album}}}".encode())

    assert (caught.value.field, str(caught.value)) == (field, message)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"width": 1}}', b'{"caption": "\\ud800", "width": 1}'])
def test_kind_says_so_when_the_body_is_no_json(body: bytes):
    assert refusal(body).malformed


class Measured(BaseModel):
    share: float | None = None
    more: dict[str, Any] = {}


async def measure(payload: Measured) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    "body",
    ["1e999", "-Infinity", "NaN", '"inf"', '"nan"', '"-1e999"', "1" + "0" * 400],
    ids=["large", "infinity", "nan", "text-infinity", "text-nan", "text-low", "long"],
)
def test_kind_refuses_a_number_that_would_be_stored_as_null(body: str):
    """Pydantic reads these as doubles that are not finite, texts too, and writes such as null."""
    with pytest.raises(InvalidPayload, match="is not finite"):
        kind("measure", measure).check(f'{{"share": {body}}}'.encode())


def test_kind_refuses_a_number_that_is_not_finite_where_anything_goes():
    with pytest.raises(InvalidPayload, match="the number inf is not finite"):
        kind("measure", measure).check(b'{"more": {"a": [1e999]}}')


def test_kind_stores_null_where_null_was_meant():
    assert kind("measure", measure).check(b"{}") == '{"share":null,"more":{}}'
    assert kind("measure", measure).check(b'{"share": null}') == '{"share":null,"more":{}}'


def test_kind_keeps_a_number_beyond_64_bits():
    number = 10**30 + 1

    assert kind("measure", measure).check(f'{{"more": {{"a": {number}}}}}'.encode()) == (
        f'{{"share":null,"more":{{"a":{number}}}}}'
    )


@pytest.mark.parametrize("payload", ["{", "[]", '{"width": 1, "q": 2}'])
def test_kind_refuses_a_stored_payload_that_does_not_fit(payload: str):
    with pytest.raises(InvalidPayload):
        kind("resize", resize).parse(payload)


def test_kind_reads_a_stored_payload():
    assert kind("resize", resize).parse('{"width": 3}') == Resize(width=3)


@pytest.mark.parametrize("payload_type", [dict[str, Any], Loose, Resize, Any])
def test_kind_takes_any_payload_type_that_can_be_checked(payload_type: Any):
    async def work(payload) -> None:
        """Do nothing."""

    work.__annotations__["payload"] = payload_type

    assert kind("work", work).check(b'{"width":1}').startswith('{"width":1')


def test_kind_takes_a_callable_object():
    class Handler:
        async def __call__(self, payload: Resize, context: Context) -> None:
            """Do nothing."""

    assert kind("work", Handler()).wants_context


@pytest.mark.parametrize("name", ["", "Work", "1work", "wo rk", "w" * 65, "wörk", "work\n"])
def test_kind_refuses_a_name_that_is_none(name: str):
    with pytest.raises(ConfigError, match="is no name for a kind"):
        make_kind(name, resize, RetryPolicy(), 1.0, max_attempts=1, ack_each=False)


@pytest.mark.parametrize("name", ["w", "w" * 64, "shop.order-paid_2"])
def test_kind_accepts_a_good_name(name: str):
    assert make_kind(name, resize, RetryPolicy(), 1.0, max_attempts=1, ack_each=False).name == name


def blocking(payload: Resize) -> None:
    """Be no async function."""


async def nothing() -> None:
    """Take no payload."""


async def untyped(payload) -> None:
    """Not say what the payload is."""


async def three(payload: Resize, context: Context, more: int) -> None:
    """Take too much."""


async def odd(payload: Resize, context: int) -> None:
    """Not take a Context."""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (blocking, "is no async function"),
        (nothing, "must take an annotated payload"),
        (untyped, "must take an annotated payload"),
        (three, "must take an annotated payload"),
        (odd, "must be annotated as Context"),
    ],
)
def test_kind_refuses_a_handler_of_another_form(function: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        kind("work", function)


class Opaque:
    """Nothing that pydantic knows how to check."""


class Dangling(BaseModel):
    part: "Nowhere"  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


class Early(BaseModel):
    part: "Late"


async def early(payload: Early) -> None:
    """Take a payload whose parts are declared further down."""


EARLY = make_kind("early", early, RetryPolicy(), 1.0, max_attempts=1, ack_each=False)


class Late(BaseModel):
    n: int


@pytest.mark.parametrize(
    ("payload_type", "shown", "said"),
    [
        (Opaque, "Opaque", "Unable to generate pydantic-core schema"),
        (dict[str, Opaque], r"dict\[str, .*Opaque\]", "Unable to generate pydantic-core schema"),
        (Annotated[str, Field(pattern="(")], "Annotated", "regex"),
    ],
    ids=["class", "inside", "pattern"],
)
def test_kind_refuses_a_payload_type_that_can_not_be_checked(payload_type: Any, shown: str, said: str):
    async def work(payload) -> None:
        """Do nothing."""

    work.__annotations__["payload"] = payload_type

    with pytest.raises(
        ConfigError, match=rf"(?s)work, the handler of shop, .*{shown}.*{said}.*: declare its payload as a model"
    ):
        kind("shop", work)


def test_kind_keeps_to_the_constraints_of_an_annotation():
    async def work(payload: Annotated[dict[str, int], Field(min_length=1)]) -> None:
        """Do nothing."""

    with pytest.raises(InvalidPayload, match="at least 1 item"):
        kind("work", work).check(b"{}")


def test_kind_refuses_an_annotation_that_names_nothing():
    async def work(payload: "Nowhere") -> None:  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
        """Do nothing."""

    with pytest.raises(ConfigError, match=r"work, the handler of shop, .*'Nowhere' is not defined.*: import"):
        kind("shop", work)


def test_registry_refuses_a_payload_type_of_which_a_part_is_never_declared():
    async def work(payload: Dangling) -> None:
        """Do nothing."""

    with pytest.raises(ConfigError, match=r"work, the handler of shop, .*Dangling.*Nowhere.*: declare"):
        Registry().add(kind("shop", work))


def test_registry_takes_a_payload_type_whose_parts_are_declared_after_the_handler():
    registry = Registry()

    registry.add(EARLY)

    assert registry.get("early").check(b'{"part": {"n": 1}}') == '{"part":{"n":1}}'


def test_kind_ignores_parameters_with_a_default():
    async def work(payload: Resize, attempts: int = 3) -> None:
        """Do nothing."""

    assert not kind("work", work).wants_context


def test_handler_declares_a_kind_with_its_limits(declared: list[Kind]):
    policy = RetryPolicy(1, 2, 0.5)

    handler("resize", timeout_s=5, policy=policy, max_attempts=2, ack_each=True)(resize)

    assert [(k.name, k.timeout_s, k.policy, k.max_attempts, k.ack_each) for k in declared] == [
        ("resize", 5, policy, 2, True)
    ]


def test_registry_knows_which_kinds_are_private(declared: list[Kind]):
    privacy = Privacy(("width",), 7.0)
    handler("resize", privacy=privacy)(resize)
    registry = Registry()
    registry.add(declared[0])
    registry.add(kind("plain", resize))

    assert registry.private == {"resize": privacy}


def test_handler_returns_the_function_unchanged(declared: list[Kind]):
    assert handler("resize")(resize) is resize
    assert declared[0].policy == RetryPolicy()


def test_registry_loads_the_kinds_of_a_module(declared: list[Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "import taskq\n@taskq.handler('shop')\nasync def shop(payload: dict) -> None: ...\n"
    (tmp_path / "shop_kinds.py").write_text(source, encoding="utf-8")
    registry = Registry()

    registry.load(("shop_kinds",))

    assert registry.get("shop") is declared[0]
    del sys.modules["shop_kinds"]


def test_registry_names_a_module_that_can_not_be_imported():
    with pytest.raises(ConfigError, match=r"handlers names no\.such, which can't be imported"):
        Registry().load(("no.such",))


def test_registry_refuses_a_second_kind_of_the_same_name():
    registry = Registry()
    registry.add(kind("resize", resize))

    with pytest.raises(ConfigError, match="declared twice"):
        registry.add(kind("resize", resize))


@pytest.mark.parametrize(
    ("name", "hint"), [("resise", "did you mean resize?"), ("email", "known are crop, resize"), ("", "known are")]
)
def test_registry_suggests_a_kind_when_it_has_no_such(name: str, hint: str):
    registry = Registry()
    registry.add(kind("resize", resize))
    registry.add(kind("crop", resize))

    with pytest.raises(UnknownKind, match=hint.replace("?", r"\?")):
        registry.get(name)


def test_registry_finds_nothing_quietly():
    assert Registry().find("resize") is None


@pytest.mark.parametrize("value", [None, 1, "x", [1, [2]], {"a": {"b": ["c"]}}])
def test_check_depth_accepts_what_can_be_stored(value: object):
    check_depth(value)


@pytest.mark.parametrize("value", ["\0", ["a\0"], {"k": "\0"}, {"\0": 1}])
def test_check_depth_refuses_a_nul(value: object):
    with pytest.raises(InvalidPayload, match="U\\+0000"):
        check_depth(value)


@pytest.mark.parametrize("value", [float("inf"), [float("-inf")], {"k": float("nan")}])
def test_check_depth_refuses_a_number_that_is_not_finite(value: object):
    with pytest.raises(InvalidPayload, match="is not finite"):
        check_depth(value)


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"k": inner}], ids=["list", "object"])
def test_check_depth_refuses_deep_nesting(wrap: Any):
    value: object = 1
    for _ in range(DEPTH_MAX):
        value = wrap(value)
    check_depth(value)

    with pytest.raises(InvalidPayload, match="nested deeper"):
        check_depth(wrap(value))
