"""A value in a URL's query, where paging speaks of tokens and keys that are no credentials."""

import re

from open_llm_proxy.server.redaction.credentials import Kind, is_ordinary, is_stand_in
from open_llm_proxy.server.redaction.names import Name
from open_llm_proxy.server.redaction.values import Value, bare_value

_PAGE = re.compile(r"(?:next|prev(?:ious)?|first|last|start|end|page|cursor|offset)[-_]?[0-9]{0,6}")
_PAGING = re.compile(
    r"[?&](?:sort|sort_by|order|order_by|page|per_page|page_size|limit|offset|cursor|after|before)="
)


def query_parameter(name: Name, at: int) -> Value | None:
    """The value at `at` if it is a credential, None otherwise."""
    value = bare_value(name.text, at)
    if value is None or is_stand_in(str(value)):
        return None
    if name.kind is Kind.WORD and _is_of_paging(name, str(value)):
        return None
    is_secret = name.kind is Kind.PASSWORD or not is_ordinary(str(value))
    return value.whole() if is_secret else None


def _is_of_paging(name: Name, value: str) -> bool:
    """`?sort=asc&token=next`: where a list goes on, and no credential."""
    around = name.text[max(0, name.start - 200) : name.end + 200]
    return _PAGE.fullmatch(value) is not None or (
        value.isalpha() and value.islower() and _PAGING.search(around) is not None
    )
