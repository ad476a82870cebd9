"""What well-known providers allow: options as one would write them into a relay's URL.

They apply by host name and only where the URL does not say otherwise; what the account allows, such
as the sending rate of Amazon SES, no table can know: a provider that asks for fewer mails is given
fewer.  Sources: the providers' own pages, by their titles.
"""

from fnmatch import fnmatchcase

__all__ = ["PRESETS", "preset_for"]

PRESETS: tuple[tuple[str, str, dict[str, str]], ...] = (
    # Idle connections are closed after about 10 s; few mails on each keep the load spread over its hosts.
    ("Amazon SES", "email-smtp*.amazonaws.com", {"messages": "10"}),
    # "Message storage and concurrent connection throttling for SMTP Authenticated Submission"
    ("Microsoft 365", "smtp*.office365.com", {"connections": "3", "rate": "30/min"}),
    ("Outlook.com", "smtp-mail.outlook.com", {"connections": "3", "rate": "30/min"}),
    # "Integrating with the SMTP API": up to 5,000 messages per connection
    ("SendGrid", "smtp*.sendgrid.net", {"messages": "1000"}),
    # "Do we have rate limits for SMTP?": ten connections of one address
    ("Postmark", "smtp*.postmarkapp.com", {"connections": "10"}),
    # No number is published; too many connections are answered with 421 4.4.5.
    ("Gmail", "smtp*.gmail.com", {"connections": "3"}),
    # "Usage Limits": requests of a new team
    ("Resend", "smtp.resend.com", {"connections": "5", "rate": "5/s"}),
    # Idle connections are closed after 60 s.
    ("SparkPost", "smtp*.sparkpostmail.com", {"idle_s": "30"}),
    # "SMTP Server Restrictions"
    ("SocketLabs", "smtp*.socketlabs.com", {"connections": "10", "messages": "50"}),
)


def preset_for(host: str) -> dict[str, str]:
    """Return the options of the provider that a host belongs to; empty for all others."""
    host = host.lower().removesuffix(".")
    for _, pattern, options in PRESETS:
        if fnmatchcase(host, pattern):
            return options
    return {}
