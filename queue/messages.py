"""Numbers in the sentences that people read."""


def counted(count: int, noun: str) -> str:
    """``1 row``, ``1,200 rows``, ``2 batches``."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith('ch') else 's'}"
