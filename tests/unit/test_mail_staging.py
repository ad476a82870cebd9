from contextlib import nullcontext

import pytest
from mail_payloads import Recorder

from taskq.errors import ConfigError
from taskq.mail.envelope import Envelope, Receipt
from taskq.mail.staging import Staging

ONLY = ("*@Example.com", "ada@*.test", "b+?@x.test")


class Place:
    """A staging transport with what it has let through and what it has caught."""

    def __init__(self, *only_to: str, redirect_to: str = "") -> None:
        self.relay, self.inbox, self.notes = Recorder(), Recorder(), []
        self._staging = Staging(self.relay, self.inbox, only_to, redirect_to)

    async def send(self, recipient: str) -> Receipt:
        mail = Envelope("s@x.test", recipient, b"To: all\r\n\r\n", False, 7, "second", note=self.notes.append)
        return await self._staging.send(mail, nullcontext)


@pytest.mark.parametrize("recipient", ["ada@example.com", "B@EXAMPLE.com", "Ada@mail.test", "b+1@x.test"])
async def test_mail_to_the_few_goes_through_unchanged(recipient: str) -> None:
    place = Place(*ONLY, redirect_to="team@example.com")

    receipt = await place.send(recipient)

    (mail,) = place.relay.envelopes
    assert (mail.recipient, mail.message, mail.relay) == (recipient, b"To: all\r\n\r\n", "second")
    assert receipt.text == "ok"
    assert place.notes == []


@pytest.mark.parametrize("recipient", ["c@example.com.test", "a@xexample.com", "ada@test", "b+12@x.test", "bx@x.test"])
async def test_mail_to_others_is_caught(recipient: str) -> None:
    place = Place(*ONLY)

    receipt = await place.send(recipient)

    assert place.relay.envelopes == []
    assert [mail.recipient for mail in place.inbox.envelopes] == [recipient]
    assert receipt.text == "caught"
    assert place.notes == [{"staging": "caught"}]


@pytest.mark.parametrize("only_to", [(), ONLY])
async def test_mail_to_others_is_redirected_and_names_whom_it_was_for(only_to: tuple[str, ...]) -> None:
    place = Place(*only_to, redirect_to="team@Example.com")

    receipt = await place.send("grüße@real.test")

    (mail,) = place.relay.envelopes
    assert mail.recipient == "team@example.com"
    assert mail.message == "X-Original-To: grüße@real.test\r\nTo: all\r\n\r\n".encode()
    assert place.inbox.envelopes == []
    assert receipt.text == "redirected: ok"
    assert place.notes == [{"staging": "redirected"}]


@pytest.mark.parametrize(
    ("only_to", "redirect_to", "message"),
    [
        (["example.com"], "", "TASKQ_MAIL_ONLY_TO names 'example.com'"),
        (["*@example.com", "*"], "", "TASKQ_MAIL_ONLY_TO names '\\*'"),
        ([], "nobody", "TASKQ_MAIL_REDIRECT_TO can't be used: .*0 @ signs"),
    ],
)
def test_settings_that_would_let_nobody_or_nothing_through_are_refused(
    only_to: list[str], redirect_to: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Staging(Recorder(), Recorder(), only_to, redirect_to)
