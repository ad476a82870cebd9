import os
import time
from pathlib import Path

import pytest

from taskq.errors import ConfigError, InvalidPayload
from taskq.mail.sandbox import COMPILED_MAX, RENDER_CPU_S_MAX, TEMPLATE_BYTES_MAX
from taskq.mail.template import Rendered, Templates

BILLION = 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "templates"
    place.mkdir()
    return place


@pytest.fixture
def templates(folder: Path) -> Templates:
    return Templates(folder)


def write(folder: Path, name: str = "welcome", **parts: str) -> None:
    for part, text in ({"subject": "Hello"} | parts).items():
        (
            folder / (f"{name}.subject.txt" if part == "subject" else f"{name}.{'txt' if part == 'text' else part}")
        ).write_text(text, encoding="utf-8")


def refusal(templates: Templates, variables: dict[str, object] | None = None, name: str = "welcome") -> InvalidPayload:
    with pytest.raises(InvalidPayload) as refused:
        templates.render(name, variables or {})
    return refused.value


def test_a_template_becomes_subject_text_and_html(folder: Path, templates: Templates):
    write(
        folder,
        subject="Order {{ order.number }}\n",
        text="Dear {{ name }},\n{% for item in order['items'] %}- {{ item }}\n{% endfor %}",
        html="<p>Dear {{ name }}</p>",
    )

    made = templates.render("welcome", {"name": "Ada & Bo", "order": {"number": 7, "items": ["tea", "jam"]}})

    assert made == Rendered("Order 7", "Dear Ada & Bo,\n- tea\n- jam\n", "<p>Dear Ada &amp; Bo</p>")


def test_a_dot_names_a_key_even_where_python_has_a_method(folder: Path, templates: Templates):
    write(folder, text="{{ order.items }} {{ order.keys }}")

    assert templates.render("welcome", {"order": {"items": 3, "keys": "k"}}).text == "3 k"


def test_only_html_is_escaped_and_only_once(folder: Path, templates: Templates):
    (folder / "base.html").write_text("<main>{% block main %}{% endblock %}</main>", encoding="utf-8")
    write(
        folder,
        subject="{{ word }}",
        text="{{ word }}",
        html="{% extends 'base.html' %}{% block main %}{{ word }}{{ '<' ~ word }}{{ [word]|join }}{% endblock %}",
    )

    made = templates.render("welcome", {"word": "<i>"})

    assert made == Rendered("<i>", "<i>", "<main>&lt;i&gt;&lt;&lt;i&gt;&lt;i&gt;</main>")


def test_style_rules_are_written_into_elements_and_media_rules_kept(folder: Path, templates: Templates):
    (folder / "other.css").write_text("p { color: red }", encoding="utf-8")
    style = "<style>p { color: blue } @media (max-width: 9px) { p { color: green } }</style>"
    links = f"<link rel=stylesheet href='{folder}/other.css'><link rel=stylesheet href='http://127.0.0.1:9/x.css'>"
    write(folder, html=f"<html><head>{links}{style}</head><body><p>{{{{ word }}}}</p></body></html>")

    html = templates.render("welcome", {"word": "<style>p{}</style>"}).html or ""

    assert '<p style="color: blue;">&lt;style&gt;' in html
    assert "@media" in html
    assert "red" not in html


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one\n{{ nmae }}", "welcome.txt, line 2: the variable 'nmae' is missing"),
        ("{{ user.nmae }}", "welcome.txt, line 1: 'nmae' is missing in an object that has 'name'"),
        ("{{ nobody.name }}", "the variable 'nobody' is missing"),
        ("{% if nmae %}{% endif %}", "the variable 'nmae' is missing"),
    ],
)
def test_a_missing_variable_is_named_with_its_file_and_line(folder: Path, templates: Templates, text: str, said: str):
    write(folder, text=text)

    error = refusal(templates, {"user": {"name": "Ada"}})

    assert said in str(error)
    assert error.field == "variables"


def test_a_missing_variable_in_a_layout_names_the_layout(folder: Path, templates: Templates):
    (folder / "base.txt").write_text("\n\n{{ footer }}", encoding="utf-8")
    write(folder, text="{% include 'base.txt' %}")

    assert "base.txt, line 3: the variable 'footer' is missing" in str(refusal(templates))


def test_a_variable_may_be_missing_where_the_template_says_so(folder: Path, templates: Templates):
    write(folder, text="{{ name|default('you') }}{% if name is defined %}!{% endif %}")

    assert templates.render("welcome", {}).text == "you"


@pytest.mark.parametrize("value", [None, [1], {"a": 1}])
def test_what_no_reader_could_read_is_refused(folder: Path, templates: Templates, value: object):
    write(folder, text="Dear {{ name }}")

    assert "can't be shown" in str(refusal(templates, {"name": value}))


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'].__mro__ }}",
        "{{ name|attr('__class__') }}",
        "{{ range.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{% for a in [1] %}{{ loop.__class__ }}{% endfor %}",
        "{% macro f() %}{% endmacro %}{{ f.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(name) }}",
        "{{ name.upper() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ [''.join]|map('attr', '__class__')|list }}",
        "{{ ['x']|map(attribute='__class__')|list|first }}",
        "{{ ['x']|map('format', 1)|first.__class__ }}",
        "{% set name.x = 1 %}",
        "{% include '../secret.txt' %}",
        "{% include '/etc/hostname' %}",
        "{% include outside %}",
        "{% include 'link.txt' %}",
        "{% include 'pipe.txt' %}",
        "{% import 'folder.txt' as stolen %}{{ stolen }}",
        "{% extends 'page.html' %}",
    ],
)
def test_a_template_reaches_nothing_but_its_variables_and_its_folder(folder: Path, templates: Templates, attack: str):
    (folder.parent / "secret.txt").write_text("hunter2", encoding="utf-8")
    (folder / "link.txt").symlink_to("../secret.txt")
    (folder / "page.html").write_text("a page", encoding="utf-8")
    (folder / "folder.txt").mkdir()
    os.mkfifo(folder / "pipe.txt")
    write(folder, text=attack)

    assert "hunter2" not in str(refusal(templates, {"name": "Ada", "outside": "../secret.txt"}))


def test_links_inside_the_folder_are_followed_as_mounted_folders_have_them(folder: Path, templates: Templates):
    (folder / "..data").mkdir()
    (folder / "..data" / "welcome.txt").write_text("inside", encoding="utf-8")
    write(folder)
    (folder / "welcome.txt").symlink_to("..data/welcome.txt")

    assert templates.render("welcome", {}).text == "inside"


@pytest.mark.parametrize(
    "trap",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in many %}{% for b in many %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'welcome.txt' %}",
        "{% set a = 9 %}" + "{% set a = a * a %}" * 60,
        "{% set a = 'x' %}" + "{% set a = a ~ a %}" * 60,
        "{% set a = 'x' %}" + "{% set a = a + a %}" * 60,
        "{% set a = [1] %}" + "{% set a = a + a %}" * 60,
        "{% set a = 'x' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
        "{% set x %}{% for a in many %}{{ long }}{% endfor %}{% endset %}",
        "{% for a in many %}{{ long }}{% endfor %}",
        "{{ '-' * billion }}",
        "{{ many * billion }}",
        "{{ 2 ** billion }}",
        "{{ range(billion) }}",
        "{{ 'x'|center(billion) }}",
        "{{ 'x'|indent(billion) }}",
        "{{ '%*d'|format(billion, 1) }}",
        "{{ ('%' ~ billion ~ 'd')|format(1) }}",
        "{{ '%s'|format(long) * 100 }}",
        "{{ many|join(long) }}",
        "{{ long|replace('x', long) }}",
        "{{ long|replace('', long) }}",
        "{{ " + "(" * 9_000 + "1" + ")" * 9_000 + " }}",
        "{% if 1 %}" * 900 + "{% endif %}" * 900,
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "x" * (TEMPLATE_BYTES_MAX + 1),
    ],
    ids=lambda trap: trap[:60],
)
def test_no_template_and_no_variable_holds_up_or_fills_up_the_process(folder: Path, templates: Templates, trap: str):
    write(folder, text=trap)
    began = time.thread_time()

    error = refusal(templates, {"many": list(range(20_000)), "long": "x" * 100_000, "billion": BILLION})

    assert "welcome.txt" in str(error)
    assert len(str(error)) < 500
    assert time.thread_time() - began < 20 * RENDER_CPU_S_MAX  # compiling included, and a slow machine


@pytest.mark.parametrize(
    "body",
    [
        "{% for x in many %}<div>{% endfor %}",  # of 13,000 nested elements the process dies
        "{% for x in many %}<font color={{ x }}><p>{% endfor %}",
        "<style>" + "p { color: red }" * 5_000 + "</style>{% for x in many[:1000] %}<p>x</p>{% endfor %}",
    ],
)
def test_html_that_would_overwhelm_its_reader_is_refused(folder: Path, templates: Templates, body: str):
    write(folder, html=f"<style>p {{ color: red }}</style>{body}")

    assert "welcome.html has" in str(refusal(templates, {"many": list(range(5_000))}))


@pytest.mark.parametrize("subject", ["two\nlines", "a{{ bell }}", "x" * 999])
def test_a_subject_that_no_mail_can_have_is_refused(folder: Path, templates: Templates, subject: str):
    write(folder, subject=subject, text="x")

    assert "welcome made of these variables is no mail: the subject" in str(refusal(templates, {"bell": "\a"}))


def test_a_variable_cannot_add_a_header_through_the_subject(folder: Path, templates: Templates):
    write(folder, subject="Hello {{ name }}", text="x")

    assert "without control characters" in str(refusal(templates, {"name": "Ada\r\nBcc: eve@example.com"}))


@pytest.mark.parametrize("name", ["welcom", "../welcome", "", "welcome.txt\0", "a/b", "x" * 200, ".welcome"])
def test_an_unknown_template_is_refused(folder: Path, templates: Templates, name: str):
    write(folder, text="x")

    error = refusal(templates, name=name)

    assert "there is no template" in str(error)
    assert error.field == "template"


def test_a_misspelt_template_is_suggested(folder: Path, templates: Templates):
    write(folder, text="x")

    assert "did you mean welcome?" in str(refusal(templates, name="welcom"))


def test_a_template_without_a_subject_is_refused(folder: Path, templates: Templates):
    (folder / "welcome.txt").write_text("x", encoding="utf-8")

    assert "welcome.subject.txt can't be read" in str(refusal(templates))


def test_a_mistake_in_a_template_is_named_with_its_line(folder: Path, templates: Templates):
    write(folder, text="one\ntwo {{ name|uper }}")

    assert "welcome.txt, line 2: No filter named 'uper'" in str(refusal(templates, {"name": "Ada"}))


def test_a_file_that_is_no_utf_8_is_refused(folder: Path, templates: Templates):
    write(folder)
    (folder / "welcome.txt").write_bytes(b"caf\xe9")

    assert "welcome.txt is no UTF-8 text at byte 3" in str(refusal(templates))


def test_changed_files_and_layouts_are_used_at_once(folder: Path, templates: Templates):
    (folder / "base.txt").write_text("old base, {% block b %}{% endblock %}", encoding="utf-8")
    write(folder, text="{% extends 'base.txt' %}{% block b %}old{% endblock %}")
    before = templates.render("welcome", {}).text

    (folder / "base.txt").write_text("new base, {% block b %}{% endblock %}", encoding="utf-8")
    write(folder, text="{% extends 'base.txt' %}{% block b %}newer{% endblock %}")

    assert before == "old base, old"
    assert templates.render("welcome", {}).text == "new base, newer"


def test_a_removed_file_is_not_remembered(folder: Path, templates: Templates):
    write(folder, text="x", html="y")
    templates.render("welcome", {})
    (folder / "welcome.html").unlink()

    assert templates.render("welcome", {}) == Rendered("Hello", "x", None)


def test_no_more_templates_are_kept_compiled_than_the_bound(folder: Path, templates: Templates):
    for number in range(COMPILED_MAX):
        write(folder, f"t{number}", text="x")
        templates.render(f"t{number}", {})

    cache = templates._sandbox._environment.cache
    assert cache is not None
    assert len(cache) == COMPILED_MAX


def test_a_missing_folder_ends_the_start(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"templates_dir is .*nowhere, which is no folder: make it"):
        Templates(tmp_path / "nowhere")


@pytest.mark.parametrize("package", ["jinja2", "css_inline"])
def test_a_missing_package_ends_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    monkeypatch.delitem(__import__("sys").modules, "taskq.mail.sandbox", raising=False)
    monkeypatch.delattr("taskq.mail.sandbox", raising=False)

    with pytest.raises(ConfigError, match=f"need the package {package}: install taskq\\[templates\\]"):
        Templates(folder)
