"""Plain text from HTML: what a reader without HTML sees of a mail.

Links are kept as `text (address)`, lists get their marks, blocks their lines; scripts, styles and
whatever else is not for reading are left out.  Any text is accepted, as browsers accept it: no HTML is
wrong, some is only ugly.

The reader is our own, in one pass: that of the standard library takes 40 seconds for 60 KB of
unclosed tags, and refuses some.  Here a construct that never ends is the last thing that is looked at.
"""

import html
import re
from collections.abc import Iterator
from itertools import islice

__all__ = ["text_from_html"]

TEXT_CHARS_MAX = 1_000_000  # marks can make a text longer than its HTML
TOKENS_MAX = 50_000  # tags and texts that are read, about a tenth of a second's work; a long newsletter has 5,000
NESTING_MAX = 4  # marks shown of lists in lists and of quotes in quotes

_TAG = re.compile(r"""<(/?)([a-zA-Z][^\s/>]*+)((?:[^>=]++|=\s*+(?:"[^"]*"|'[^']*'|[^\s>]*+))*+)>""")
_ATTRIBUTE = re.compile(r"""([^\s=/]++)(?:\s*+=\s*+(?:"([^"]*)"|'([^']*)'|(\S*+)))?""")
_NOT_SHOWN = re.compile(r"[\u00ad\u034f\u200b\ufeff]")  # soft hyphens, and what fills up previews
_BLANKS = re.compile(r"[ \t\r\n\f\u00a0]+")
_SCHEMES = ("http:", "https:", "mailto:", "tel:")

_RAW = frozenset({"script", "style", "title", "textarea", "iframe", "noembed", "noframes", "xmp"})
"""Elements whose content is no HTML, and nothing to read either."""
_PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "blockquote", "pre"})
_LINES = frozenset(
    {"address", "article", "aside", "body", "center", "dd", "div", "dt", "fieldset", "figcaption", "figure", "footer"}
    | {"form", "header", "hr", "li", "main", "nav", "section", "tbody", "tfoot", "thead", "tr"}
)


def text_from_html(source: str) -> str:
    """Return what HTML says as plain text, its lines ended with LF; never raises.

    At most 1,000,000 characters are returned, and what follows the 50,000th tag or text is left out.
    """
    page = _Page()
    for name, closing, content in islice(_tokens(source), TOKENS_MAX):
        if name is None:
            page.write(content)
        elif closing:
            page.close(name)
        else:
            page.open(name, content)
    return page.text()


def _tokens(source: str) -> Iterator[tuple[str | None, bool, str]]:
    """Yield texts as (None, False, text) and tags as (name, closing, attributes)."""
    at = 0
    while at < len(source):
        start = source.find("<", at)
        if start != at:
            yield None, False, source[at:] if start < 0 else source[at:start]
            if start < 0:
                return
        after = source[start + 1 : start + 3]
        if after[:1] in {"!", "?"} or (after[:1] == "/" and not after[1:].isalpha()):
            opening, ending = ("<!--", "-->") if source.startswith("<!--", start) else ("<", ">")
            end = source.find(ending, start + len(opening))
            at = len(source) if end < 0 else end + len(ending)
            continue
        if not after.removeprefix("/")[:1].isalpha():
            yield None, False, "<"
            at = start + 1
            continue
        found = _TAG.match(source, start)
        if found is None:
            return
        closing, name, attributes = found.groups()
        name, at = name.lower(), found.end()
        if name not in _RAW:
            yield name, bool(closing), attributes
        elif not closing:
            end = re.compile(rf"</{name}[\s/>]", re.IGNORECASE).search(source, at)
            at = len(source) if end is None else end.start()


class _Page:
    """The lines written so far, and where the next words go."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._words: list[str] = []
        self._blank = False
        """Whether the next line stands after a blank one."""
        self._marks: list[int | None] = []
        """Of each open list, the number of its last item; None where items have none."""
        self._item = ""
        """What the next line begins with instead of its indent."""
        self._quotes = 0
        self._quotes_before = 0
        """Of the line before."""
        self._verbatim = 0
        self._link: tuple[str, int] | None = None
        """Where the open link leads, and how many words of its line stood before it."""

    def write(self, text: str) -> None:
        """Add a text between tags."""
        text = _NOT_SHOWN.sub("", _unescaped(text))
        if not self._verbatim:
            self._words.append(_BLANKS.sub(" ", text))
            return
        first, *others = text.replace("\r\n", "\n").split("\n")
        self._words.append(first)
        for line in others:
            self._end_line(keep=True)
            self._words.append(line)

    def open(self, name: str, attributes: str) -> None:
        """Begin an element."""
        self._break(name)
        match name:
            case "br":
                self._end_line(keep=True)
            case "hr":
                self._words.append("-" * 20)
                self._end_line()
            case "td" | "th":
                self._words.append(" ")
            case "ul" | "ol":
                self._marks.append(0 if name == "ol" else None)
            case "li":
                self._begin_item()
            case "blockquote":
                self._quotes += 1
            case "pre":
                self._verbatim += 1
            case "img":
                self._words.append(_attribute(attributes, "alt"))
            case "a":
                self._end_link()  # links don't nest
                self._link = _attribute(attributes, "href").strip(), len(self._words)
            case _:
                pass

    def close(self, name: str) -> None:
        """End an element."""
        if name == "a":
            self._end_link()
        self._break(name)
        match name:
            case "ul" | "ol" if self._marks:
                self._marks.pop()
                self._blank = self._blank or not self._marks
            case "blockquote" if self._quotes:
                self._quotes -= 1
            case "pre" if self._verbatim:
                self._verbatim -= 1
            case _:
                pass

    def text(self) -> str:
        """Return everything."""
        self._end_line()
        whole = "\n".join(self._lines)[:TEXT_CHARS_MAX].strip("\n")
        return f"{whole}\n" if whole else ""

    def _break(self, name: str) -> None:
        if name in _PARAGRAPHS:
            self._end_line()
            self._blank = self._blank or not (self._marks and name in {"ul", "ol", "p"})
        elif name in _LINES:
            self._end_line()

    def _begin_item(self) -> None:
        if self._marks and (number := self._marks[-1]) is not None:
            self._marks[-1] = number + 1
            self._item = f"{number + 1}. "
        else:
            self._item = "- "

    def _end_link(self) -> None:
        """Write where a link leads behind its text, unless the text says it."""
        if self._link is None:
            return
        href, start = self._link
        self._link = None
        text = "".join(self._words[start:]).strip()
        if href.lower().startswith(_SCHEMES) and text not in {href, href.partition(":")[2].removeprefix("//")}:
            self._words.append(f" ({href})" if text else href)

    def _end_line(self, *, keep: bool = False) -> None:
        """End a line that has words; `keep`: a blank one is one too."""
        words = "".join(self._words)
        self._words.clear()
        if self._link is not None:
            self._link = self._link[0], 0
        line = words.rstrip() if self._verbatim else _BLANKS.sub(" ", words).strip()
        if not line:
            self._blank = self._blank or keep
            return
        quotes = min(self._quotes, NESTING_MAX)
        if self._blank and self._lines:
            self._lines.append(">" * min(quotes, self._quotes_before))
        depth = min(len(self._marks), NESTING_MAX)
        indent = "  " * (depth - 1) + self._item if self._item else "  " * depth
        self._lines.append(f"{'> ' * quotes}{indent}{line}")
        self._blank, self._item, self._quotes_before = False, "", quotes


def _attribute(attributes: str, wanted: str) -> str:
    """Return the value of an attribute on one line; empty when it is not there."""
    for name, double, single, bare in _ATTRIBUTE.findall(attributes):
        if name.lower() == wanted:
            return _BLANKS.sub(" ", _unescaped(double or single or bare))
    return ""


def _unescaped(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a character number of thousands of digits
        return text
