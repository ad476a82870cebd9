"""Mails made from templates: files in one folder, filled in when a mail is submitted.

A template of the name `welcome` is `welcome.subject.txt` with `welcome.txt`, `welcome.html` or both;
other files of the folder can be layouts and parts of them.  They are Jinja2 (see `sandbox` for what
is left of it).  In HTML, variables are escaped and the rules of `<style>` are written into the
elements they are for, as many mail programs look there only; nothing is ever fetched.

Because a mail is made when it is submitted, its caller hears what is wrong with it, with the file,
the line and the variable, and no later change of a file changes what was submitted.  A file that has
changed is used at once.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from taskq.errors import ConfigError, InvalidPayload, shown
from taskq.mail.body import check_text
from taskq.mail.headers import SUBJECT_CHARS_MAX, check_subject

__all__ = ["Rendered", "Templates"]

TEXT_CHARS_MAX = 1_000_000  # as of a text that is submitted itself
TAGS_MAX = 4_000  # of HTML with rules: its reader recurses, and 10,000 nested elements would end the process
MATCHES_MAX = 1_000_000  # elements times rules, about a tenth of a second
UNCLOSED_MAX = 50  # each paragraph after them repeats them all
FILES_LISTED_MAX = 10_000  # looked through for a name like the one asked for

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(?:\.[A-Za-z0-9_-]{1,64})?")
_FORMATTING = re.compile(r"<(/?)(?:a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u)(?=[\s/>])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a template makes of variables: a subject and texts that a mail can have."""

    subject: str
    text: str | None
    html: str | None


class Templates:
    """The templates of one folder.

    Args:
        folder: Where the files are; it and they are looked at for every mail.

    Raises:
        ConfigError: There is no such folder, or the extra `templates` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"templates_dir is {folder}, which is no folder: make it, or correct the setting")
        try:
            import css_inline  # noqa: PLC0415 - an extra, absent where no mail is made from a template

            from taskq.mail import sandbox  # noqa: PLC0415 - it needs the other half of the extra
        except ImportError as error:
            raise ConfigError(
                f"templates_dir is set, but templates need the package {error.name}: install taskq[templates]"
            ) from None
        self._folder = folder
        self._sandbox = sandbox.Sandbox(folder)
        self._fault = sandbox.TemplateFault
        self._inliner = css_inline.CSSInliner(load_remote_stylesheets=False, keep_at_rules=True)

    def render(self, name: str, variables: Mapping[str, object]) -> Rendered:
        """Make the subject and the texts of a mail.

        Args:
            name: Of a template, such as `welcome`.
            variables: As JSON gives them.

        Raises:
            InvalidPayload: There is no such template, or it can't be filled in; names the file, the line and
                what is wrong there.
        """
        text, html = self._parts(name)
        subject = self._fill(f"{name}.subject.txt", variables, 2 * SUBJECT_CHARS_MAX).strip()
        try:
            check_subject(subject)
            rendered = Rendered(
                subject,
                self._fill(f"{name}.txt", variables, TEXT_CHARS_MAX) if text else None,
                self._inlined(name, self._fill(f"{name}.html", variables, TEXT_CHARS_MAX)) if html else None,
            )
            for made in (rendered.text, rendered.html):
                check_text(made or "", "text")
        except ValueError as error:
            raise InvalidPayload(
                f"template: {name} made of these variables is no mail: {error}", field="template"
            ) from (None)
        return rendered

    def _parts(self, name: str) -> tuple[bool, bool]:
        """Tell whether a template has a text and whether it has HTML."""
        if _NAME.fullmatch(name):
            stem = str(self._folder / name)
            text, html = os.path.exists(f"{stem}.txt"), os.path.exists(f"{stem}.html")  # noqa: PTH110 - of every mail
            if text or html:
                return text, html
        raise InvalidPayload(f"template: there is no template {shown(name)}: {self._hint(name)}", field="template")

    def _hint(self, name: str) -> str:
        try:
            files = [entry.name for entry in islice(self._folder.iterdir(), FILES_LISTED_MAX)]
        except OSError as error:
            return f"the folder of templates_dir can't be read ({error.strerror}): correct that"
        known = sorted(file.removesuffix(".subject.txt") for file in files if file.endswith(".subject.txt"))
        near = difflib.get_close_matches(name, known, 1)
        return f"did you mean {near[0]}?" if near else "put its files into the folder of templates_dir"

    def _fill(self, file: str, variables: Mapping[str, object], chars_max: int) -> str:
        try:
            return self._sandbox.render(file, variables, chars_max)
        except self._fault as fault:
            raise InvalidPayload(f"template: {fault}", field="variables" if fault.missing else "template") from None

    def _inlined(self, name: str, html: str) -> str:
        """Write the rules of a page into its elements; raises `ValueError`."""
        if "<style" not in html.lower():
            return html
        tags, rules = html.count("<"), html.count("{")
        unclosed = sum(-1 if closing else 1 for closing in _FORMATTING.findall(html))
        if tags > TAGS_MAX or tags * rules > MATCHES_MAX or unclosed > UNCLOSED_MAX:
            raise ValueError(
                f"{name}.html has {tags} tags, {unclosed} of them such as <b> and not closed, and {rules} style rules: "
                f"at most {TAGS_MAX} tags, {UNCLOSED_MAX} not closed and {MATCHES_MAX:,} tags times rules are taken "
                "with a <style>; make it shorter, or leave <style> out"
            )
        return self._inliner.inline(html)
