"""Tries the unit tests' properties of the mail modules with what reaches new code: `fuzz_mail.py mailbox`.

Hypothesis draws at random; libFuzzer (atheris) keeps and changes what took a branch of `taskq.mail`
not taken before.  A property of one text gets the text itself, begun from addresses and made of
the pieces that parsers stumble over; one of a whole draft gets the bytes that Hypothesis draws from.
What breaks a property is printed with its traceback, and its bytes after it.  Flags after the name
are libFuzzer's, such as `-max_total_time=60`.
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
with atheris.instrument_imports(include=["taskq.mail"]):
    import mail_texts
    import test_mail_address
    import test_mail_compose
    import test_mail_roundtrip as roundtrip

OF_A_TEXT = {
    "address": test_mail_address.test_parse_accepts_only_what_is_safe_in_a_command,
    "mailbox": roundtrip.test_mailbox_is_one_or_refused,
}
OF_A_DRAFT = {
    "headers": test_mail_compose.test_compose_keeps_every_subject,
    "compose": roundtrip.test_compose_keeps_or_refuses_any_text,
}
SEEDS = ("ada@example.com", "u@bücher.example", '"Lovelace, Ada" <ada@example.com>', "Ada <ada@example.com>")


def main(name: str, *flags: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pieces = Path(folder, "pieces")
        pieces.write_text("".join(f'"{_escaped(brick)}"\n' for brick in mail_texts.BRICKS), encoding="ascii")
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        if name in OF_A_TEXT:
            inner = OF_A_TEXT[name].hypothesis.inner_test  # pyright: ignore[reportFunctionMemberAccess]
            for number, seed in enumerate(SEEDS):
                (corpus / str(number)).write_text(seed, encoding="utf-8")

            def fuzz(data: bytes) -> None:
                inner(data.decode("utf-8", "replace"))
        else:
            fuzz = OF_A_DRAFT[name].hypothesis.fuzz_one_input  # pyright: ignore[reportFunctionMemberAccess]
        atheris.Setup(
            [name, "-len_control=0", f"-dict={pieces}", f"-artifact_prefix={folder}/", *flags, str(corpus)], fuzz
        )
        atheris.Fuzz()


def _escaped(text: str) -> str:
    """Write a piece as libFuzzer's dictionaries do: every byte by its number."""
    return "".join(f"\\x{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))


if __name__ == "__main__":
    main(*sys.argv[1:])
