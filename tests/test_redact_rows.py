"""Redaction: credentials in a row, each on the line on which the one before ends."""

import pytest

from open_llm_proxy.server.redaction.credentials import MARK
from open_llm_proxy.server.redaction.redactor import Redactor
from redaction_corpus import POSITIVES

REDACTOR = Redactor()
MANY = 12
SEPARATORS = (" ", ", ", ";", "\t", " and ")
BLOCK = 'password = """fake\npw"""'  # its quotes stand on two lines


def left(text: str, secrets: tuple[str, ...]) -> list[str]:
    redacted = REDACTOR.text(text)
    assert REDACTOR.text(redacted) == redacted, text
    return [secret for secret in secrets if secret in redacted]


@pytest.mark.parametrize("kind", POSITIVES)
def test_many_in_a_row_go_like_two(kind: str) -> None:
    """Two of them show what is a credential behind the separator, and what has become prose."""
    for text, secrets in POSITIVES[kind]:
        if len(text) < 300:
            for separator in (*SEPARATORS, *([""] if text[-1] in "\"'`" else ())):
                row = [text] * MANY
                if not left(separator.join(row[:2]), secrets):
                    assert left(separator.join(row), secrets) == [], (text, separator)


@pytest.mark.parametrize("kind", POSITIVES)
def test_many_in_turn_with_another_kind_go_like_two(kind: str) -> None:
    for text, secrets in POSITIVES[kind]:
        if len(text) < 300:
            row = [text, BLOCK] * (MANY // 2)
            all_secrets = (*secrets, "fake\npw")
            gone = set(all_secrets).difference(left(" ".join(row[:4]), all_secrets))
            assert gone.isdisjoint(left(" ".join(row), all_secrets)), text


@pytest.mark.parametrize("separator", ["", " ", "; ", ", "])
@pytest.mark.parametrize("quote", ['"""', "'''"])
def test_blocks_of_several_lines_keep_what_is_around_them(quote: str, separator: str) -> None:
    row = separator.join([f"password = {quote}fake\npw{quote}"] * MANY)
    assert REDACTOR.text(row) == row.replace("fake\npw", MARK)


def test_a_quote_that_is_not_closed_hides_no_password() -> None:
    text = 'a 12" pipe, password="swordfish", and token="fakefake", at 5" of water'
    assert REDACTOR.text(text) == text.replace("swordfish", MARK).replace("fakefake", MARK)


@pytest.mark.parametrize(
    "text",
    [
        'print("password="+pw+"&n=1")',
        'echo "password=".$pw."&n=1";',
        'url = "?a=1&password="&A1&"&n=1"',
        'label = is_new?"New password:"?x:"y"',
        '<input placeholder="Password:"><b class="y">',
    ],
)
def test_code_between_two_strings_is_no_password(text: str) -> None:
    assert REDACTOR.text(text) is text


class TestCommandsOnOneLine:
    def test_wherever_the_line_is_read_in_parts(self) -> None:
        for length in range(40):
            calls = [f"curl -u me:fakepw https://h/{'x' * length}" for _ in range(60)]
            row = " and ".join(calls)
            assert REDACTOR.text(row) == row.replace("fakepw", MARK)

    def test_the_flag_of_a_command_behind_another_of_its_kind(self) -> None:
        text = "curl -u me:fakepw1 https://h/ && curl -u me:fakepw2 https://h/"
        assert REDACTOR.text(text) == text.replace("fakepw1", MARK).replace("fakepw2", MARK)

    @pytest.mark.parametrize("before", [10, 990, 1900, 1980])
    def test_a_password_of_any_length(self, before: int) -> None:
        text = f"docker login -u {'x' * before} -p {'fAke1.' * 600} example.org -x"
        assert REDACTOR.text(text) == text.replace("fAke1." * 600, MARK)

    def test_what_comes_to_light_one_after_another_is_cut(self) -> None:
        """Each long value that goes brings the next flag nearer to its command."""
        row = "mysql" + f" -p{'x9' * 600}" * 40
        redacted = REDACTOR.text(row)
        assert "x9" not in redacted and redacted.startswith(f"mysql -p{MARK}")
        assert REDACTOR.text(redacted) == redacted
