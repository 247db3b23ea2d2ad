"""The permissions that LOGGING.md names are enough, and none of them is too much.

moto, as a server process of its own, checks every request against the policies of the
documentation.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

import stores
import wire
from duckdb_log import LOGGING, connect, secret
from given_answers import Asker, GivenAnswers
from proxy_process import ProxyProcess, one_provider
from stores import S3Server

BUCKET = "logs-team"
POLICIES = [
    policy.replace("logs-<ns>", BUCKET)
    for policy in re.findall(r"^```json\n(.*?)^```$", LOGGING.read_text(), re.DOTALL | re.MULTILINE)
]
SETUP_CALLS = 10
pytestmark = pytest.mark.timeout(seconds=60)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, S3Server]]:
    """Users `writer`, `reader` and `compactor` of a bucket, each with its policy."""
    port = wire.free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    log = tmp_path_factory.mktemp("moto") / "moto.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={"INITIAL_NO_AUTH_ACTION_COUNT": str(SETUP_CALLS), "PATH": "/usr/bin:/bin"},
        )
    try:
        stores._wait_for_http(f"{endpoint}/moto-api/", 30, process)
        yield _users(endpoint)
    finally:
        process.kill()
        process.wait()


def _users(endpoint: str) -> dict[str, S3Server]:
    nobody = S3Server(endpoint, "nobody", "nobody")
    client(nobody).create_bucket(Bucket=BUCKET)
    iam = client(nobody, "iam")
    users = {}
    for name, policy in zip(("writer", "reader", "compactor"), POLICIES, strict=True):
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="log", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        users[name] = S3Server(endpoint, key["AccessKeyId"], key["SecretAccessKey"])
    return users


def client(server: S3Server, service: str = "s3") -> Any:
    return boto3.client(
        service,
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )


def environment(server: S3Server) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_ENDPOINT_URL_S3": server.endpoint,
        "AWS_REGION": "us-east-1",
    }


def refused(call: Any, **arguments: Any) -> None:
    with pytest.raises(ClientError) as error:
        call(Bucket=BUCKET, **arguments)
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


async def test_the_writers_policy_lets_the_proxy_write_and_nothing_else(
    guarded: dict[str, S3Server], tmp_path: Path
) -> None:
    writer = guarded["writer"]
    async with GivenAnswers() as provider:
        settings = {"LOG_BUCKET": BUCKET, **environment(writer)}
        proxy = ProxyProcess(tmp_path, one_provider(provider.url), settings)
        async with proxy, Asker(proxy) as asker:
            await asker.ask("hello")
            health = await proxy.drained()
            assert health["log"]["uploaded_rows"] == 2
            assert health["log"]["upload_failures"] == 0
    writing = client(writer)
    refused(writing.list_objects_v2)
    refused(writing.get_object, Key="2024-05-01/a.jsonl")
    refused(writing.delete_object, Key="2024-05-01/a.jsonl")


def test_the_readers_policy_lets_read_and_nothing_else(
    guarded: dict[str, S3Server], tmp_path: Path
) -> None:
    row = {"timestamp": "2024-05-01T10:00:00.000Z", "type": "response", "outcome": "ok"}
    key = "2024-05-01/10-00-00-a.jsonl"
    body = json.dumps(row).encode() + b"\n"
    client(guarded["writer"]).put_object(Bucket=BUCKET, Key=key, Body=body)
    reader = guarded["reader"]
    command = (sys.executable, "-m", "open_llm_proxy.server.commands.cli", "logs", "stats")
    done = subprocess.run(
        (*command, f"s3://{BUCKET}", "--since", "2024-05-01", "--until", "2024-05-01"),
        env=environment(reader),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["calls"] == 1
    connection = connect(tmp_path)
    connection.execute(secret(reader))
    query = f"SELECT outcome FROM read_ndjson_auto('s3://{BUCKET}/2024-05-01/*.jsonl')"
    assert connection.execute(query).fetchall() == [("ok",)]
    connection.close()
    refused(client(reader).put_object, Key=key, Body=b"")
    refused(client(reader).delete_object, Key=key)


def test_the_compactors_policy_lets_it_put_tables_and_delete_nothing(
    guarded: dict[str, S3Server], tmp_path: Path
) -> None:
    compactor, key = guarded["compactor"], "2024-05-02/10-00-00-a.jsonl"
    rows = '{"timestamp":"2024-05-02T10:00:00.000Z","type":"request","request_id":"a"}\n'
    client(guarded["writer"]).put_object(Bucket=BUCKET, Key=key, Body=rows.encode())
    command = (sys.executable, "-m", "open_llm_proxy.server.commands.cli", "logs", "compact")
    arguments = (f"s3://{BUCKET}", "--day", "2024-05-02", "--cache", str(tmp_path))
    codes = []
    for option in ((), ("--delete-raw",)):
        done = subprocess.run(
            (*command, *arguments, *option),
            env=environment(compactor),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
        codes.append((done.returncode, done.stderr.decode()))
    refusal = "403 AccessDenied: this needs the right to delete objects"
    assert codes[0] == (0, "")
    assert codes[1][0] == 1 and refusal in codes[1][1]
    client(guarded["reader"]).head_object(Bucket=BUCKET, Key=key)
    refused(client(compactor).put_object, Key=key, Body=b"")
