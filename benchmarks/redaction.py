"""How long redaction takes: on ordinary text, and on text made to make it slow.

Run with `python benchmarks/redaction.py`. All times are processor time. The first table gives
MB/s on what a geo-agent chat consists of. The second gives the seconds for 250 kB, 500 kB, 1 MB
and 4 MB of each hostile pattern, and how the time grows from 250 kB to 1 MB: about 4 is linear,
16 would be quadratic, and less shows that the text had more places than are read. The exit code
is 1 if a pattern grows by more than 8 or takes more than 2 seconds.
"""

import json
import sys
import time

from open_llm_proxy.server.redaction.redactor import Redactor

MEGABYTE = 1_000_000
TOO_STEEP = 8.0  # for four times the text; 4 is linear, 16 is quadratic
TOO_SLOW = 2.0  # seconds for 4 MB, on any machine
KEY = "sk-proj-" + "fAkE0123456789AbCdEfGhIjKlMnOpQrStUv"
SQL = (
    "SELECT state, SUM(area_ha) AS ha FROM read_parquet('s3://public-cpad/hex/*/data_0.parquet') "
    "WHERE gap_status IN ('1', '2') AND h3_8 = '8928308280fffff' GROUP BY state ORDER BY ha;\n"
)
PROSE = (
    "Rank the states by the share of land in GAP status 1 and 2 \u2013 use `register_hex_tiles`, "
    "then `add_hex_tile_layer`; call get_schema(dataset_id) before the first query. Every extra "
    "response is a full round trip, so map operations that do not depend on each other go out "
    "together \u2192 one answer with five tool calls is much faster than five answers.\n"
)
RESULT = {"state": "CA", "ha": 6_612_345.25, "share": 0.23, "cell": "8928308280fffff"}
CREDENTIALS = (
    f"CREATE SECRET (TYPE S3, KEY_ID 'FAKE{'9QW8' * 4}', SECRET '{'fAkE0123' * 5}');\n"
    f'{{"api_key": "{KEY}"}} export NRP_API_KEY={KEY} https://me:fakepw@example.org/\n'
)

ORDINARY = {
    "prose": PROSE,
    "prose, ASCII": PROSE.encode("ascii", "ignore").decode(),
    "SQL": SQL,
    "query results (JSON)": [RESULT],
    "tool calls (JSON in JSON)": [{"name": "query", "arguments": json.dumps({"sql": SQL})}],
    "prose with 'token' and 'key' in it": PROSE + "max_tokens: 4096, primary key (h3_8)\n",
    "prose with credentials, 1 in 10 kB": PROSE * 30 + CREDENTIALS,
    "JSON with credentials, 1 in 10 kB": [*[RESULT] * 120, {"log": CREDENTIALS}],
    "credentials and nothing else": CREDENTIALS,
}

HOSTILE = {
    "spaces": " ",
    "double quotes": '"',
    "single quotes": "'",
    "backslashes": "\\",
    "backslash, quote": '\\"',
    "colons": "a:",
    "equals signs": "a=",
    "letters": "a",
    "capitals": "A",
    "digits": "0",
    "dashes": "-",
    "brackets": "[",
    "objects": '{"a":',
    "arrays in objects": '{"token":[',
    "percent codes": "%3D",
    "unicode escapes": "\\u0022",
    "key": "key",
    "key with spaces": "api key ",
    "token": "token",
    "token with spaces": "token ",
    "token with spaces and colons": "token : ",
    "token, then spaces": "token:" + " " * 60,
    "token, then backslashes": "token" + "\\" * 60,
    "names joined": "secret_access_key_",
    "dotted names": "a.token.",
    "password=": "password=",
    "password=, double quotes": 'password="',
    "password=, single quotes": "password='",
    "password=, escaped quotes": 'password=\\"',
    "password:, mixed quotes": 'password: \\"x\\\\\\"\'',
    "password is": "password is ",
    "quoted password": '"password":',
    "quoted password, value": '"password":"x",',
    "password in brackets": '"password":[',
    "create secret": "create secret ",
    "secret with quotes": "SECRET 'a' ",
    "name and value": "name: token\nvalue: ",
    "elements": "<password>",
    "authorization": "authorization: ",
    "digest": "authorization: digest ",
    "cookie": "cookie: a=",
    "Bearer": "Bearer ",
    "Basic": "Basic ",
    "identified by": "identified by ",
    "URLs": "https://a:b",
    "at signs": "@",
    "users": "://a:b@",
    "curl": "curl ",
    "curl -u": "curl -u ",
    "mysql -p": "mysql -p",
    "mysql with many flags": " -px",
    "mysql over lines": "mysql -px -px -px -px\n",
    "redis-cli -a": "redis-cli -a fake1\n",
    "tables": "a,password\nb,c\n",
    "tables with many columns": "a,password,",
    "one table": "b,hunter2x\n",
    "manifests": "kind: Secret\ndata:\n  a: b\n",
    "manifests without data": "kind: Secret\n",
    "tags": '<input type="password" value="a">',
    "tags without end": "<a value=",
    "one tag": "value=a ",
    "hashes": "$2y$12$fAkE0123fAkE0123 ",
    "dollars": "$",
    "END": "-----END PRIVATE KEY-----\n",
    "lines before END": "MIIEfake0123fake\n-----END PRIVATE KEY-----\n",
    "lines after BEGIN": "-----BEGIN PRIVATE KEY-----\nMIIE\n",
    "documents that are none": '{"a":x',
    "arrays that are none": '["a",x',
    "BEGIN": "-----BEGIN ",
    "BEGIN PRIVATE KEY": "-----BEGIN PRIVATE KEY-----",
    "BEGIN and END": "-----BEGIN PRIVATE KEY----- -----END ",
    "eyJ": "eyJ",
    "-eyJ": "-eyJ",
    "eyJ.": "eyJ.",
    "JWT without end": "eyJaaaaaaaa.",
    "sk-": "sk-",
    "ghp_": "ghp_",
    "SG.": "SG.",
    "key pairs": "A0B1C2D3E4F5G6H7I8J9,",
    "slack": "hooks.slack.com/services/",
    "query string": "?token&",
    "one long value": "api_key::",
    "one long value after =": "DB_PASS=",
    "one long header": "authorization:",
    "one long cookie": "cookie: ",
    "one long Bearer": "bearer+",
    "many small documents": '["@',
    "parameters": "?token=a&",
    "many small strings": '"@12345",',
    "many small strings with a name": '"a key 1",',
    "many small strings with a value": '"token=a1b2c3d4",',
    "many small documents with a name": '["key 1"]',
    "documents in documents": '{"a":{"token":{"b":[["c"]]}}}',
    "credentials in an array": '{"password":["",""],"secret":["a","b"]},',
    "keys of pairs": '{"key":"a1","value":"b"},',
    "quoted keys of pairs": 'key="a1", ',
    "escaped letters": '"\\u0041","a",',
    "names of others": "turkey_0001 2.5\n",
    "curl over lines": "curl \\\n",
    "authorities": "://a",
    "authorities with users": "://a:b@c/",
    "Bearer with values": "Bearer a1b2c3d4 ",
    "webhooks": "discord.com/api/webhooks/1234567890123456a ",
}


BEFORE = {"mysql with many flags": "mysql ", "one table": "a,password\n", "one tag": "<input "}


def filled(unit: object, size: int) -> str:
    """`size` characters of a repeated text, or of a JSON array of repeated objects."""
    if isinstance(unit, str):
        return (unit * (size // len(unit) + 1))[:size]
    assert isinstance(unit, list)
    return json.dumps(unit * (size // len(json.dumps(unit)) + 1))


def nested_strings(size: int) -> str:
    """JSON in a string in JSON, as deep as fits; each level doubles the backslashes."""
    text = '{"password": "' + "x" * (size // 4) + '"}'
    while len(following := json.dumps([text])) < size:
        text = following
    return text + " " * (size - len(text))


def seconds(text: str) -> float:
    """The time of a redactor that has not seen the text before."""
    redactor = Redactor(secrets=("fake-proxy-key-0001", "fake-provider-key-0002"))
    started = time.process_time()
    redactor.text(text)
    return time.process_time() - started


def main() -> int:
    print(f"{'ordinary text, 1 MB':42}{'MB/s':>8}")
    for name, unit in ORDINARY.items():
        text = filled(unit, MEGABYTE)
        fastest = min(seconds(text) for _ in range(3))
        print(f"{name:42}{len(text.encode()) / MEGABYTE / fastest:8.0f}")

    print(f"\n{'hostile text':32}{'250 kB':>9}{'500 kB':>9}{'1 MB':>9}{'4 MB':>9}{'ratio':>8}")
    failed = []
    for name in [*HOSTILE, "nested JSON strings"]:
        times = []
        for size in (MEGABYTE // 4, MEGABYTE // 2, MEGABYTE, 4 * MEGABYTE):
            text = filled(HOSTILE[name], size) if name in HOSTILE else nested_strings(size)
            text = BEFORE.get(name, "") + text
            times.append(seconds(text))
        ratio = times[2] / times[0]
        if times[3] > TOO_SLOW or (ratio > TOO_STEEP and times[2] > 0.1):
            failed.append(name)
        print(f"{name:32}{times[0]:9.3f}{times[1]:9.3f}{times[2]:9.3f}{times[3]:9.3f}{ratio:8.1f}")
    if failed:
        print(f"\nnot linear, or too slow: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
