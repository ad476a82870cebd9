import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.mail.plain import TEXT_CHARS_MAX, text_from_html

PIECES = """<p>|</p>|<br>|<a href='https://x.test/'>|</a>|<a href=|<li>|<ul>|</ul>|<ol>|</ol>|<pre>|</pre>|<blockquote>
|</blockquote>|<script>|</script>|<style|<!--|-->|<!x>|<![x[|<?|</|<|>|"|'|=|&|&amp;|&#0;|&#x110000;|<img alt=x>|<td>
|<table>|<title>|<svg/onload=1>|<hr/>|&#99999999999;"""
ENDLESS = """<a |<|<!|<!--|</|<a x='|<a "|<a/|<a href=x>b<br>|<ul><li>a|&#9|<script>|=|<p>|<a href="'|<![x[|<pre>\n"""
tags = st.sampled_from(PIECES.split("|"))
pages = st.lists(tags | st.text(max_size=5), max_size=60).map("".join)


@given(st.text() | pages)
def test_every_text_is_read_and_no_line_is_left_ragged(source: str):
    text = text_from_html(source)

    assert text == "" or text.endswith("\n")
    assert not text.startswith("\n")
    assert "\n\n\n" not in text or "<pre" in source
    text.encode("utf-8", "surrogatepass")


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Zs"), exclude_characters="<>&\u00ad\u034f\u200b\ufeff")))
def test_what_is_not_markup_stays(words: str):
    assert text_from_html(f"<p>{words}</p>").strip() == words.strip()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<p>One\n  two</p><p>Three</p>", "One two\n\nThree\n"),
        ("<div>One</div><div>Two</div>", "One\nTwo\n"),
        ("One<br>two<br/><br>three", "One\ntwo\n\nthree\n"),
        ("<h1>Title</h1>Text", "Title\n\nText\n"),
        ("<ul><li>One<li>Two<ul><li>In</ul></ul>End", "- One\n- Two\n  - In\n\nEnd\n"),
        ("<ol><li>One</li><li><p>Two</p></li></ol>", "1. One\n2. Two\n"),
        ("<table><tr><td>Tea</td><td>2</td></tr><tr><th>Sum</th></tr></table>", "Tea 2\nSum\n"),
        ("<blockquote><p>One</p><p>Two</p></blockquote>End", "> One\n>\n> Two\n\nEnd\n"),
        ("<pre>a\n  b\n\nc</pre>", "a\n  b\n\nc\n"),
        ("3 &lt; 4 &amp;&nbsp;5 &euro; &#8364; &bogus; &", "3 < 4 & 5 € € &bogus; &\n"),
        ("a < b > c <3", "a < b > c <3\n"),
        ("<b>bo</b><i>ld</i>", "bold\n"),
        ("<img src=x alt='Our logo'>", "Our logo\n"),
        ("&zwnj;in&shy;voice\u200b", "\u200cinvoice\n"),
        ("", ""),
        ("<p> </p>", ""),
    ],
)
def test_html_becomes_text(source: str, text: str):
    assert text_from_html(source) == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('<a href="https://x.test/?a=1&amp;b=2">Shop</a>', "Shop (https://x.test/?a=1&b=2)\n"),
        ("<a href=https://x.test/>https://x.test/</a>", "https://x.test/\n"),
        ("<a href='https://x.test'>x.test</a>", "x.test\n"),
        ("<a href='mailto:ada@x.test'>ada@x.test</a>", "ada@x.test\n"),
        ("<a href='mailto:ada@x.test'>Ada</a>", "Ada (mailto:ada@x.test)\n"),
        ("<a href='https://x.test'><img alt=Logo></a>", "Logo (https://x.test)\n"),
        ("<a href='https://x.test'></a>", "https://x.test\n"),
        ("<a title='> ' href='https://x.test'>A</a>", "A (https://x.test)\n"),
        ("<a href='#top'>Up</a> <a href='javascript:x()'>Run</a> <a name=x>Here</a>", "Up Run Here\n"),
        ("<a href='https://x.test'>A<a href='https://y.test'>B</a>", "A (https://x.test)B (https://y.test)\n"),
    ],
)
def test_links_keep_where_they_lead(source: str, text: str):
    assert text_from_html(source) == text


@pytest.mark.parametrize(
    "hidden",
    [
        "<script>alert('<p>no</p>')</script>",
        "<STYLE>p > a { no }</STYLE >",
        "<title>no</title>",
        "<!-- no > no -->",
        "<!doctype no>",
        "<![CDATA[no]]>",
        "<?php no ?>",
        "</ no>",
    ],
)
def test_what_is_not_for_reading_is_left_out(hidden: str):
    assert text_from_html(f"<p>before</p>{hidden}<p>after</p>") == "before\n\nafter\n"


@pytest.mark.parametrize("unending", ["<script>no", "<!-- no", "<a href='no", "<p no", "</p no", "<! no"])
def test_what_never_ends_is_the_last_thing_read(unending: str):
    assert text_from_html(f"<p>before</p>{unending}<b") == "before\n"


@pytest.mark.parametrize(
    "piece",
    ENDLESS.split("|"),
)
def test_the_time_and_the_size_have_a_bound(piece: str):
    began = time.thread_time()

    text = text_from_html(piece * (1_000_000 // len(piece)))

    assert time.thread_time() - began < 5  # a quarter of a second; the standard library's reader would take an hour
    assert len(text) <= TEXT_CHARS_MAX + 1
