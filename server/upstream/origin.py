"""Where a connection leads."""

import ssl
from typing import NamedTuple


class Origin(NamedTuple):
    """The TLS context stands for the TLS settings; None is plain TCP."""

    host: str
    port: int
    tls: ssl.SSLContext | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
