"""Settings: where they come from, what is refused, and that the refusal names the remedy."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from taskq.config import Settings, load_settings, redact_url
from taskq.errors import ConfigError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("TASKQ_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal(**flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(flags)
    return str(caught.value)


def test_settings_need_nothing():
    settings = load_settings()

    assert settings.database_url is None
    assert (settings.host, settings.port, settings.role) == ("127.0.0.1", 8080, "all")
    assert settings.smtp_url.get_secret_value() == "inbox:"


def test_settings_flag_wins_over_environment_and_file(monkeypatch: pytest.MonkeyPatch):
    Path("taskq.toml").write_text("port = 1111\nconcurrency = 11\npoll_s = 0.5\n", encoding="utf-8")
    monkeypatch.setenv("TASKQ_PORT", "2222")
    monkeypatch.setenv("TASKQ_CONCURRENCY", "22")

    settings = load_settings({"port": "3333"})

    assert (settings.port, settings.concurrency, settings.poll_s) == (3333, 22, 0.5)


def test_settings_take_an_empty_variable_as_unset(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TASKQ_PORT", "")

    assert load_settings().port == 8080


def test_settings_split_a_list_of_modules(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TASKQ_HANDLERS", "shop.mails, shop.images,")

    assert load_settings().handlers == ("shop.mails", "shop.images")


def test_settings_refuse_an_unknown_variable_with_a_suggestion(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TASKQ_CONCURENCY", "5")

    assert refusal() == (
        "TASKQ_CONCURENCY is set in the environment but is no setting: did you mean TASKQ_CONCURRENCY?"
    )


def test_settings_refuse_an_unknown_variable_that_resembles_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TASKQ_XYZZY", "5")

    assert refusal().endswith("see --help for the names")


def test_settings_leave_the_variables_of_the_tests_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TASKQ_TEST_DATABASE_URL", "postgresql:///x")

    load_settings()


@pytest.mark.parametrize(("name", "hint"), [("prot", "did you mean port?"), ("xyzzy", "see --help for the names")])
def test_settings_refuse_an_unknown_name_in_the_file(name: str, hint: str):
    Path("taskq.toml").write_text(f"{name} = 1\n", encoding="utf-8")

    assert refusal() == f"{name} is no setting: {hint}"


def test_settings_refuse_a_file_that_is_no_toml():
    Path("taskq.toml").write_text("port = = 1\n", encoding="utf-8")

    assert refusal().startswith("taskq.toml is no TOML: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("port", "eighty"),
        ("concurrency", "0"),
        ("concurrency", "10001"),
        ("claim_batch_max", "0"),
        ("intake_batch_max", "0"),
        ("intake_waiting_max", "0"),
        ("poll_s", "0"),
        ("poll_s", "nan"),
        ("beat_s", "0"),
        ("grace_s", "-1"),
        ("retention_days", "-1"),
        ("body_bytes_max", "10"),
        ("max_attempts", "101"),
        ("role", "boss"),
        ("durability", "none"),
        ("log_level", "loud"),
    ],
)
def test_settings_refuse_a_value_out_of_range_and_name_it(name: str, value: str):
    text = refusal(**{name: value})

    assert text.startswith(f"{name} is {value!r}: ")
    assert f"--{name.replace('_', '-')}" in text
    assert f"TASKQ_{name.upper()}" in text


def test_settings_never_show_a_url_that_may_hold_a_password():
    text = refusal(database_url=["postgresql://u:secret@h/d"])

    assert "secret" not in text
    assert text.startswith("database_url is ***")


def test_settings_hide_passwords_when_printed():
    settings = load_settings({"database_url": "postgresql://u:secret@h/d", "smtp_url": "smtp://u:secret@h"})

    assert "secret" not in repr(settings)


def test_settings_refuse_a_lease_that_one_late_beat_would_end():
    assert refusal(lease_s="5", beat_s="3") == "lease_s is 5: must be at least twice beat_s (3)"


def test_settings_refuse_room_for_less_than_one_body():
    text = refusal(body_bytes_max="2000000", body_bytes_in_flight_max="1000000")

    assert text == "body_bytes_in_flight_max is 1000000: must hold one body of body_bytes_max (2000000)"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.com", ""])  # noqa: S104 - what is refused
def test_settings_refuse_an_address_that_others_reach(host: str):
    assert "set allow_remote" in refusal(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_settings_accept_loopback(host: str):
    assert load_settings({"host": host}).host == host


def test_settings_accept_any_address_when_that_is_allowed():
    assert load_settings({"host": "0.0.0.0", "allow_remote": "true"}).allow_remote  # noqa: S104 - the case


def test_settings_never_change():
    settings = load_settings()

    with pytest.raises(ValidationError):
        settings.port = 1


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_setting_says_what_it_is(name: str):
    assert (Settings.model_fields[name].description or "").endswith(".")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://u:s@e:c@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("inbox:", "inbox:"),
    ],
)
def test_redact_url_hides_the_password(url: str, shown: str):
    assert redact_url(url) == shown
