"""The fields of a mail, as they are submitted and as they are stored.

Whatever passes here can be composed: the rules of addresses, headers, texts and file names are those
of `mail`, asked at submission so that the caller hears of it, and again before the run, because SQL
callers bypass the first check.  An error names the field and the place in its list.

A payload is a dictionary of the fields that were given, so what is stored is what was said and no
more: `{"to", "subject", "body"}` stays these three.  A single address takes the form in which it will
be used; those of a list stay as they were written, because the answer calls their tasks by them.

Two fields are written by `mailing` alone and are refused from callers: `recipient`, the one of a
mail's recipients that a task is for, and the `digest` of a file whose content is stored beside it.
What depends on settings (whose mail may be sent, how much of it) is asked in `mailing` too.
"""

import binascii
from collections.abc import Callable
from typing import Annotated, Any, Literal, NoReturn, NotRequired, cast

from pydantic import (
    AfterValidator,
    AliasChoices,
    AwareDatetime,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    with_config,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError, to_json
from typing_extensions import TypedDict

from taskq.errors import InvalidPayload, shown
from taskq.kinds.registry import check_depth
from taskq.mail.address import Mailbox, parse_address, parse_mailbox
from taskq.mail.compose import check_attachment, check_header, check_subject, check_text, check_unsubscribe_url
from taskq.mail.headers import SUBJECT_CHARS_MAX

__all__ = ["CheckedMail", "EmailPayload", "FilePayload"]

TEXT_CHARS_MAX = 1_000_000  # of each text: far above any worth reading; larger content belongs behind a link
FILES_MAX = 100
HEADERS_MAX = 50
TAGS_MAX = 10
TAG_CHARS_MAX = 64
METADATA_OCTETS_MAX = 4_096
RELAY_CHARS_MAX = 64
TEMPLATE_CHARS_MAX = 129
TTL_S_MAX = 366 * 86_400  # a mail that is still of use after a year may be sent whenever it can

_STRICT = ConfigDict(strict=True, extra="forbid")
_MAILBOX_REMEDY = 'write "ada@example.com", "Ada <ada@example.com>" or {"name": "Ada", "email": "ada@example.com"}'


def _refuse(fact: str, *place: int | str) -> NoReturn:
    """Refuse what stands at a place inside the value at hand."""
    error = PydanticCustomError("value_error", "{fact}", {"fact": fact})
    raise ValidationError.from_exception_data("mail", [InitErrorDetails(type=error, loc=place, input=None)])


def _read_mailbox(value: object) -> str:
    if isinstance(value, str):
        parse_mailbox(value)
        return value
    entry = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    name, email = entry.get("name", ""), entry.get("email")
    if entry.keys() <= {"name", "email"} and isinstance(name, str) and isinstance(email, str):
        return str(Mailbox(name, parse_address(email)))
    raise ValueError(f"this is no mailbox: {_MAILBOX_REMEDY}")


def _read_mailboxes(value: object) -> str | list[str]:
    if isinstance(value, str):
        return str(parse_mailbox(value))
    if not isinstance(value, list):
        return _read_mailbox(value)
    mailboxes: list[str] = []
    for place, entry in enumerate(cast("list[object]", value)):
        try:
            mailboxes.append(_read_mailbox(entry))
        except ValueError as error:
            _refuse(str(error), place)
    return mailboxes


def _read_recipients(value: object) -> str | list[str]:
    if isinstance(value, str) and "<" not in value:  # nearly every mail's
        return str(parse_address(value))
    if value == []:
        raise ValueError("the list is empty: name at least one recipient")
    return _read_mailboxes(value)


def _read_base64(value: object) -> bytes:
    if isinstance(value, str):
        try:
            return binascii.a2b_base64(value, strict_mode=True)
        except ValueError as error:
            raise ValueError(
                f"this is no base64 ({str(error).lower()}): encode the bytes of the file with the standard alphabet, "
                "with padding and without line ends"
            ) from None
    raise ValueError("this is no text: send the bytes of the file as base64")


def _write_base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def _accept(check: Callable[[str], object]) -> AfterValidator:
    def accept(text: str) -> str:
        check(text)
        return text

    return AfterValidator(accept)


def _accept_text(what: str) -> AfterValidator:
    def accept(text: str) -> str:
        check_text(text, what)
        return text

    return AfterValidator(accept)


def _check_tag(tag: str) -> None:
    if not tag or not tag.isprintable() or tag != tag.strip():
        raise ValueError(f"the tag {shown(tag)} is no word: write 1 to {TAG_CHARS_MAX} printable characters")


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    seen: set[str] = set()
    for name, value in headers.items():
        check_header(name, value)
        if name.lower() in seen:
            raise ValueError(f"the header {name} is set twice: set it once")
        seen.add(name.lower())
    return headers


def _check_variables(variables: dict[str, Any]) -> dict[str, Any]:
    try:
        check_depth(variables)
    except InvalidPayload as error:
        raise ValueError(str(error)) from None
    return variables


def _check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    _check_variables(metadata)
    octets = len(to_json(metadata))
    if octets > METADATA_OCTETS_MAX:
        raise ValueError(f"the object has {octets} octets as JSON: at most {METADATA_OCTETS_MAX} are kept, shorten it")
    return metadata


@with_config(_STRICT)
class FilePayload(TypedDict):
    """One file that goes with a mail."""

    filename: Annotated[str, Field(description="What the receiver sees, without a folder.")]
    content_type: Annotated[str, Field(description="Such as application/pdf.")]
    content: NotRequired[
        Annotated[
            bytes,
            PlainValidator(_read_base64, json_schema_input_type=str),
            PlainSerializer(_write_base64, return_type=str),
            Field(description="The bytes, as base64 (RFC 4648 §4)."),
        ]
    ]
    content_id: NotRequired[Annotated[str, Field(description="Its name in the HTML after cid:.")]]
    digest: NotRequired[SkipJsonSchema[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]]
    size: NotRequired[SkipJsonSchema[Annotated[int, Field(ge=0)]]]


def _check_file(file: FilePayload) -> FilePayload:
    check_attachment(file["filename"], file["content_type"], file.get("content_id"))
    if "content" not in file and "digest" not in file:
        error = InitErrorDetails(type="missing", loc=("content",), input=None)
        raise ValidationError.from_exception_data("file", [error])
    return file


_Recipients = Annotated[Any, AfterValidator(_read_recipients)]
_Mailboxes = Annotated[Any, AfterValidator(_read_mailboxes)]
_Mailbox = Annotated[Any, AfterValidator(_read_mailbox)]
_Text = Annotated[str, Field(max_length=TEXT_CHARS_MAX)]
_Sender = TypedDict("_Sender", {"from": NotRequired[Annotated[_Mailbox, Field(description="Who it is from.")]]})


@with_config(_STRICT)
class EmailPayload(_Sender):
    """What to send to whom."""

    to: Annotated[
        _Recipients,
        Field(validation_alias=AliasChoices("to", "To"), description="Who it is for: one mailbox or a list of them."),
    ]
    subject: NotRequired[
        Annotated[str, Field(max_length=SUBJECT_CHARS_MAX, description="One line of text."), _accept(check_subject)]
    ]
    body: NotRequired[Annotated[_Text, _accept_text("body"), Field(description="Plain text.")]]
    text: NotRequired[Annotated[_Text, _accept_text("text"), Field(description="The same as body.")]]
    html: NotRequired[Annotated[_Text, _accept_text("html"), Field(description="The text as HTML.")]]
    template: NotRequired[
        Annotated[
            str,
            Field(max_length=TEMPLATE_CHARS_MAX, description="The template that writes subject, body and html."),
        ]
    ]
    variables: NotRequired[
        Annotated[
            dict[str, Any],
            AfterValidator(_check_variables),
            Field(description="What the template is filled in with."),
        ]
    ]
    text_from_html: NotRequired[
        Annotated[bool, Field(description="Whether to write body from html where there is none.")]
    ]
    cc: NotRequired[Annotated[_Mailboxes, Field(description="Who else it is shown to be for.")]]
    bcc: NotRequired[Annotated[_Mailboxes, Field(description="Who receives it without being shown.")]]
    reply_to: NotRequired[Annotated[_Mailboxes, Field(description="Who answers go to.")]]
    headers: NotRequired[
        Annotated[
            dict[str, str],
            AfterValidator(_check_headers),
            Field(max_length=HEADERS_MAX, description="Further header fields, by name."),
        ]
    ]
    attachments: NotRequired[
        Annotated[
            list[Annotated[FilePayload, AfterValidator(_check_file)]],
            Field(max_length=FILES_MAX, description="Files, and pictures for the HTML."),
        ]
    ]
    unsubscribe_url: NotRequired[
        Annotated[
            str, _accept(check_unsubscribe_url), Field(description="Where one click unsubscribes (RFC 8058), https.")
        ]
    ]
    unsubscribe_mailto: NotRequired[
        Annotated[str, _accept(parse_address), Field(description="The address that takes unsubscriptions by mail.")]
    ]
    send_at: NotRequired[Annotated[AwareDatetime, Field(description="When to send it, with its zone.")]]
    expires_at: NotRequired[Annotated[AwareDatetime, Field(description="When it has lost its use, with its zone.")]]
    ttl: NotRequired[
        Annotated[int, Field(ge=1, le=TTL_S_MAX, description="Seconds of use from when it is to be sent.")]
    ]
    tags: NotRequired[
        Annotated[
            list[Annotated[str, Field(max_length=TAG_CHARS_MAX), _accept(_check_tag)]],
            Field(max_length=TAGS_MAX, description="Words to find it by; never sent."),
        ]
    ]
    metadata: NotRequired[
        Annotated[
            dict[str, Any],
            AfterValidator(_check_metadata),
            Field(description="An object of your own, kept and shown; never sent."),
        ]
    ]
    priority: NotRequired[Annotated[int, Field(ge=-100, le=100, description="Lower is sent first.")]]
    relay: NotRequired[
        Annotated[str, Field(min_length=1, max_length=RELAY_CHARS_MAX, description="The relay to send it by.")]
    ]
    dry_run: NotRequired[Annotated[bool, Field(description="Whether to compose it only, and not to send it.")]]
    on_ambiguous: NotRequired[
        Annotated[
            Literal["retry", "fail"],
            Field(description="What to do when nobody can know whether the relay took it."),
        ]
    ]
    sensitive: NotRequired[
        Annotated[bool, Field(description="Whether to drop its content as soon as it is done, and never to show it.")]
    ]
    recipient: NotRequired[SkipJsonSchema[Annotated[str, _accept(parse_address)]]]


def _check_together(mail: EmailPayload) -> EmailPayload:
    if len(mail) == 3 and "body" in mail and "subject" in mail:  # to is always there
        return mail
    if "text" in mail:
        if "body" in mail:
            _refuse("it is another name of body: send one of them", "text")
        mail["body"] = mail.pop("text")
    _check_texts(mail)
    _check_inline(mail.get("attachments", []), shown_by_html="html" in mail or "template" in mail)
    _check_unsubscribe(mail)
    _check_use(mail)
    return mail


def _check_texts(mail: EmailPayload) -> None:
    if "template" in mail:
        for name in ("subject", "body", "html"):
            if name in mail:
                _refuse("the template writes it: send one of them", name)
        return
    if "subject" not in mail:
        error = InitErrorDetails(type="missing", loc=("subject",), input=None)
        raise ValidationError.from_exception_data("mail", [error])
    if "variables" in mail:
        _refuse("a template is filled in with it, and there is none: name it in template", "variables")
    if "html" not in mail:
        if "body" not in mail:
            _refuse("it is missing, and html is too: write at least one of them", "body")
        if "text_from_html" in mail:
            _refuse("there is no html to write it from: send html, or leave it out", "text_from_html")


def _check_unsubscribe(mail: EmailPayload) -> None:
    if "unsubscribe_url" not in mail and "unsubscribe_mailto" not in mail:
        return
    for name in mail.get("headers", ()):
        if name.lower() in {"list-unsubscribe", "list-unsubscribe-post"}:
            _refuse(f"the header {name} is written for unsubscribe_url and unsubscribe_mailto: remove it", "headers")


def _check_use(mail: EmailPayload) -> None:
    if "expires_at" not in mail:
        return
    if "ttl" in mail:
        _refuse("expires_at says the same: send one of them", "ttl")
    if "send_at" in mail and mail["expires_at"] <= mail["send_at"]:
        _refuse("it is not after send_at, so the mail would never be sent: set a later time", "expires_at")


def _check_inline(files: list[FilePayload], *, shown_by_html: bool) -> None:
    seen: set[str] = set()
    for place, file in enumerate(files):
        content_id = file.get("content_id")
        if content_id is None:
            continue
        if not shown_by_html:
            _refuse(
                "no html is there to show it: remove the content id, or send html", "attachments", place, "content_id"
            )
        if content_id in seen:
            _refuse("another file has this content id: give each its own", "attachments", place, "content_id")
        seen.add(content_id)


CheckedMail = Annotated[EmailPayload, AfterValidator(_check_together)]
"""The payload of the kind `email`, its fields checked one by one and together."""
