"""Every setting: its text, default, unit and range stand on the field, nowhere else.

`--help`, `docs/settings.md` and the sample `taskq.toml` are generated from these fields.  Order of
precedence: flags, then `TASKQ_…` in the environment, then `taskq.toml` in the working directory,
then the default.  Every bound of the process is here: a queue, batch, pool, body or wait without a
setting below has its bound as a named constant beside it.

A wrong value ends the start with one line that names the setting, the value and what is allowed.
"""

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from taskq.errors import ConfigError

__all__ = ["Settings", "load_settings", "redact_url"]


def _names(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class Settings(BaseSettings):
    """The settings of one process; read once at start, never changed."""

    model_config = SettingsConfigDict(
        env_prefix="TASKQ_", toml_file="taskq.toml", extra="forbid", frozen=True, env_ignore_empty=True
    )

    # Where tasks are kept
    database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL to use, such as postgresql://user:password@host/database. Unset: an embedded one.",
    )
    database_direct_url: SecretStr | None = Field(
        None,
        description="The same database without the pooler, for LISTEN and migrations, where database_url goes through "
        "one in transaction mode. Set, it also turns off prepared statements on the pooled connections.",
    )
    data_dir: Path | None = Field(
        None,
        description="Folder of the embedded PostgreSQL. Unset: the state folder of systemd, /var/lib/taskq for root, "
        "else the user's data folder.",
    )
    pg_bin: Path | None = Field(
        None, description="Folder with the PostgreSQL programs of the embedded server. Unset: found."
    )
    pg_user: str | None = Field(
        None, description="Account that the embedded server runs as when taskq runs as root. Unset: chosen."
    )
    durability: Literal["strict", "relaxed"] = Field(
        "strict",
        description="strict refuses a server with fsync, full_page_writes or synchronous_commit off; relaxed warns.",
    )
    read_connections_max: int = Field(4, ge=1, le=100, description="Connections for GET requests and sweeping.")
    database_timeout_s: float = Field(
        10.0, ge=0.5, le=300, description="Seconds until a statement of the hot paths counts as failed."
    )

    # HTTP
    host: str = Field("127.0.0.1", description="Address to serve HTTP on.")
    port: int = Field(8080, ge=0, le=65_535, description="Port to serve HTTP on; 0 picks a free one and prints it.")
    allow_remote: bool = Field(
        False, description="Serve on an address other than loopback although anyone who reaches it may submit mail."
    )
    body_bytes_max: int = Field(
        16_777_216,
        ge=1_024,
        le=104_857_600,
        description="Bytes of a request body; more is refused with 413. 16 MiB hold attachments of 12 MB in base64.",
    )
    body_bytes_in_flight_max: int = Field(
        67_108_864,
        ge=131_072,
        le=10_737_418_240,
        description="Bytes of the larger request bodies that are taken in at the same time; beyond, submissions are "
        "refused with 503. The process needs about six times as much memory.",
    )

    # Intake
    intake_waiting_max: int = Field(
        10_000, ge=1, le=1_000_000, description="Submissions that may wait for their commit; more are refused with 503."
    )
    intake_batch_max: int = Field(1_000, ge=1, le=10_000, description="Submissions stored by one statement.")
    submit_timeout_s: float = Field(
        5.0,
        ge=0.1,
        le=300,
        description="Seconds a submission waits for its commit; then it is answered with 503, and may be stored.",
    )

    notify_enqueue: Literal["auto", "on", "off"] = Field(
        "auto",
        description="on takes submissions by NOTIFY taskq_enqueue from everybody who may connect to the database; "
        "auto: only with the embedded one.",
    )

    # Waiting for a task to end
    wait_s_max: float = Field(60.0, ge=1, le=600, description="Seconds that a caller may wait for a task to end.")
    waiters_max: int = Field(
        10_000, ge=1, le=1_000_000, description="Callers that wait at a time; more are refused with 503."
    )

    # Work
    role: Literal["all", "api", "worker"] = Field(
        "all", description="api takes submissions only, worker runs tasks only (and answers /health), all does both."
    )
    concurrency: int = Field(100, ge=1, le=10_000, description="Slots: tasks that run at the same time.")
    claim_batch_max: int = Field(500, ge=1, le=10_000, description="Tasks claimed by one statement.")
    handlers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="Python modules to import for their @handler functions, separated by commas."
    )
    poll_s: float = Field(1.0, ge=0.05, le=60, description="Seconds between looks for work when no notification comes.")
    retry_base_s: float = Field(
        120.0, ge=0.01, le=86_400, description="Seconds: span of the first back-off of mails; it doubles each time."
    )
    retry_cap_s: float = Field(
        14_400.0, ge=0.01, le=604_800, description="Seconds: the longest back-off span of mails."
    )
    max_attempts: int = Field(10, ge=1, le=100, description="Attempts of a mail before it is failed.")
    mail_timeout_s: float = Field(
        1_200.0,
        ge=1,
        le=86_400,
        description="Seconds one attempt of a mail may take; the wait after its final dot is not cut.",
    )

    # Life
    beat_s: float = Field(5.0, ge=0.05, le=60, description="Seconds between renewals of the lease.")
    lease_s: float = Field(
        20.0, ge=0.2, le=600, description="Seconds without renewal after which other instances take our tasks over."
    )
    sweep_s: float = Field(5.0, ge=0.05, le=300, description="Seconds between sweeps for lost tasks.")
    probe_s: float = Field(10.0, ge=0.1, le=300, description="Seconds between round trips that prove LISTEN works.")
    loop_stall_s: float = Field(
        60.0, ge=1, le=3_600, description="Seconds a handler may block the event loop before the lease is given up."
    )
    grace_s: float = Field(
        30.0,
        ge=0,
        le=3_600,
        description="Seconds that running tasks get to finish at a stop; then they are handed back.",
    )
    retention_days: float = Field(30.0, ge=0, le=36_500, description="Days that finished tasks are kept.")

    # Mail: how it is sent
    smtp_url: SecretStr = Field(
        SecretStr("inbox:"),
        description="Where mails go: smtp://user:password@host:587 (STARTTLS), smtps://host:465, several separated by "
        "blanks, with options as in docs/mail-relays.md; inbox: catches them.",
    )
    mail_from: str = Field(
        "taskq@localhost.localdomain", description="Sender of mails: an address, or a name and <an address>."
    )
    mail_from_domains: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="Domains that mails may be from besides that of mail_from, separated by commas."
    )
    dkim: str = Field(
        "", description="Keys that mails are signed with: domain:selector:/path/key.pem, several separated by blanks."
    )
    smtp_connections_max: int = Field(
        10, ge=1, le=1_000, description="Connections to a relay whose URL names no other number."
    )

    # Mail: who may be written to
    mail_only_to: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (),
        description="Addresses that mails are sent to, such as *@example.com, separated by commas; mails to others are "
        "caught in the inbox. Unset: everybody's are sent.",
    )
    mail_redirect_to: str = Field(
        "",
        description="Address that gets every mail instead of its recipient, except to those whom mail_only_to names.",
    )
    mail_recipients_max: int = Field(50, ge=1, le=1_000, description="Recipients of one mail: to, cc and bcc together.")
    suppression_days: float = Field(
        30.0,
        ge=0,
        le=36_500,
        description="Days that an address is not written to after a mail server said that it does not exist; 0: none.",
    )
    suppressions_copied_max: int = Field(
        100_000,
        ge=0,
        le=10_000_000,
        description="Suppressed addresses whose hashes a process keeps in memory, about 100 bytes each; with more, "
        "each submission of a mail asks the database.",
    )

    # Mail: what is kept of it
    mail_bytes_max: int = Field(
        10_485_760, ge=0, le=104_857_600, description="Bytes of the attachments of one mail, before they are encoded."
    )
    mail_content_days: float = Field(
        7.0,
        ge=0,
        le=36_500,
        description="Days that the content of mails is kept once they are sent or failed, in the inbox too; 0: not at "
        "all. Then only the masked recipient stays, until retention_days.",
    )

    # Mail: made from templates
    templates_dir: Path | None = Field(
        None, description="Folder of mail templates, welcome.subject.txt, welcome.txt and welcome.html. Unset: none."
    )

    # Mail: the inbox
    inbox_mails_max: int = Field(10_000, ge=0, le=10_000_000, description="Captured mails kept in the inbox.")
    inbox_waiters_max: int = Field(
        100, ge=1, le=10_000, description="Callers that wait for a mail at a time; more are refused with 503."
    )
    inbox_smtp_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Port on 127.0.0.1 where other programs can send mail into the inbox by SMTP; 0 picks a free one "
        "and prints it. Unset: none.",
    )

    # Telling
    log_format: Literal["auto", "human", "json"] = Field(
        "auto", description="human is for reading, json one object per line; auto: human on a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level to log.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is the library's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is the library's
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read flags, environment, `taskq.toml`, in this order of precedence."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _check_together(self) -> "Settings":
        if self.lease_s < 2 * self.beat_s:
            raise ValueError(f"lease_s is {self.lease_s:g}: must be at least twice beat_s ({self.beat_s:g})")
        if self.body_bytes_in_flight_max < self.body_bytes_max:
            raise ValueError(
                f"body_bytes_in_flight_max is {self.body_bytes_in_flight_max}: must hold one body of body_bytes_max "
                f"({self.body_bytes_max})"
            )
        if not self.allow_remote and not _is_loopback(self.host):
            raise ValueError(
                f"host is {self.host}: anyone who reaches it could submit mail; use a loopback address such as "
                "127.0.0.1 behind a proxy that checks who calls, or set allow_remote"
            )
        return self


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings.

    Args:
        flags: Values given on the command line, by field name; they win.

    Raises:
        ConfigError: A value is outside its range, or a name is unknown.
    """
    _refuse_unknown_variables()
    try:
        return Settings(**(flags or {}))
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(detail) for detail in error.errors())) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"taskq.toml is no TOML: {error}; mend that line") from None


def _refuse_unknown_variables() -> None:
    known = {f"TASKQ_{name.upper()}" for name in Settings.model_fields}
    for name in os.environ:
        if name.startswith("TASKQ_") and not name.startswith("TASKQ_TEST_") and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "see --help for the names"
            raise ConfigError(f"{name} is set in the environment but is no setting: {hint}")


def _sentence(detail: Mapping[str, Any]) -> str:
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Settings.model_fields, 1)
        return f"{name} is no setting: " + (f"did you mean {near[0]}?" if near else "see --help for the names")
    shown = "***" if name.endswith("_url") else repr(detail["input"])
    places = f"flag --{name.replace('_', '-')}, environment TASKQ_{name.upper()}"
    return f"{name} is {shown}: {message[:1].lower()}{message[1:]} ({places})"


def redact_url(url: str) -> str:
    """Return `url` with its password replaced, fit for logs and banners."""
    scheme, mark, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    if not mark or not at:
        return url
    user, colon, _ = credentials.partition(":")
    return f"{scheme}://{user}{':***' if colon else ''}@{place}"
