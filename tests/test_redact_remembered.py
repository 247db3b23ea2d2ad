"""What the redactor remembers: long texts that come with every call, within bounds."""

from open_llm_proxy.server.redact import Redactor


def test_long_texts_are_remembered_within_bounds_and_answered_the_same() -> None:
    fresh, used = Redactor(), Redactor()
    texts = [f"call {i}: password=hunter{i}xyz " + "ordinary words " * 5000 for i in range(80)]
    expected = [fresh.text(text) for text in texts]
    for _ in range(2):
        assert [used.text(text) for text in texts] == expected
    held = sum(map(len, used._remembered))
    assert held == used._remembered_characters <= 4 * 1024 * 1024
    assert used.text(texts[-1]) is used.text(texts[-1])


def test_json_without_strings_is_left_alone() -> None:
    usage = '{"prompt_tokens": 1000, "details": {"token": 3, "x": -1.5e3}, "ok": true, "no": null}'
    assert Redactor().text(usage) is usage


def test_an_unchanged_value_is_recognized_although_its_text_was_remembered() -> None:
    redactor = Redactor()
    first, second = ({"content": "plain words " * n} for n in (200, 200))
    assert redactor.value(first) is first
    assert redactor.value(second) is second
