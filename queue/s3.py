"""The one place where S3 clients are made, and where their errors become sentences.

botocore reports a wrong setting as a bare ValueError here and as a ParamValidationError there, and
its texts may quote a signed header, a URL or a key. So nobody else constructs anything of it or
shows its texts: `s3_client` and `has_s3_credentials` raise `S3SettingsError`, and `problem` says
what an exception of a client's call means and what to do.
"""

from functools import lru_cache
from typing import Any

import botocore.session
from botocore import exceptions
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader, create_loader
from botocore.model import OperationModel
from urllib3.exceptions import HTTPError

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 60

_SETTINGS_PROBLEMS: tuple[tuple[type[Exception], str], ...] = (
    (
        exceptions.PartialCredentialsError,
        "the S3 credentials are incomplete; set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    (
        exceptions.ProfileNotFound,
        "AWS_PROFILE names a profile that does not exist; unset it or define the profile in "
        "~/.aws/config",
    ),
    (
        exceptions.InvalidRegionError,
        "the S3 region is not a valid name; set AWS_REGION to one such as us-east-1, or unset it",
    ),
    (
        exceptions.ConfigParseError,
        "the AWS configuration file cannot be parsed; correct it, or unset AWS_CONFIG_FILE and "
        "AWS_SHARED_CREDENTIALS_FILE",
    ),
    (exceptions.ConfigNotFound, "the file that AWS_CONFIG_FILE names does not exist"),
    (
        ValueError,
        "the URL of the S3 endpoint is not valid; set AWS_ENDPOINT_URL_S3 to one that begins with "
        "https:// or http://",
    ),
)
_CALL_PROBLEMS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.NoCredentialsError, "no S3 credentials; set AWS_ACCESS_KEY_ID and "
     "AWS_SECRET_ACCESS_KEY"),
    (exceptions.CredentialRetrievalError, "the source of the S3 credentials failed; check it"),
    (exceptions.TokenRetrievalError, "the source of the S3 credentials failed; check it"),
    (exceptions.SSLError, "TLS failed; check that the endpoint speaks https and that its "
     "certificate is trusted (AWS_CA_BUNDLE names the file of another authority)"),
    (exceptions.ProxyConnectionError, "the HTTP proxy cannot be reached; check HTTPS_PROXY and "
     "HTTP_PROXY"),
    (exceptions.ConnectTimeoutError, "the endpoint does not accept connections in time; check "
     "AWS_ENDPOINT_URL_S3 and the network"),
    (exceptions.EndpointConnectionError, "the endpoint cannot be reached (refused, or its name "
     "does not resolve); check AWS_ENDPOINT_URL_S3 and the network"),
    (exceptions.ReadTimeoutError, "the endpoint did not answer in time"),
    (exceptions.ConnectionClosedError, "the endpoint closed the connection before it answered"),
    (exceptions.ParamValidationError, "the name of the bucket is not valid; use 3 to 63 of a-z, "
     "0-9, '.' and '-'"),
    (exceptions.HTTPClientError, "the request cannot be sent; check that the S3 credentials "
     "contain no line break or blank"),
    (HTTPError, "the endpoint's answer broke off"),
    (RecursionError, "the endpoint redirects; set AWS_REGION and AWS_ENDPOINT_URL_S3 to those of "
     "the bucket"),
)  # fmt: skip
_ELSEWHERE = "the bucket has another endpoint; correct AWS_ENDPOINT_URL_S3 and AWS_REGION"
_REMEDIES = {
    "NoSuchBucket": "the bucket does not exist; create it or correct LOG_BUCKET",
    "InvalidBucketName": "the name of the bucket is not valid; correct LOG_BUCKET",
    "InvalidAccessKeyId": "the store does not know AWS_ACCESS_KEY_ID; correct it",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is wrong; correct it",
    "AccessDenied": "no permission; grant the credentials the right to write to this bucket",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "ExpiredToken": "the S3 credentials have expired; renew them",
    "InvalidToken": "AWS_SESSION_TOKEN is not valid; renew or unset it",
    "QuotaExceeded": "the quota of the bucket or its owner is used up; raise it",
    "SlowDown": "the store is overloaded",
    "AuthorizationHeaderMalformed": "the region is wrong; set AWS_REGION to that of the bucket",
    "PermanentRedirect": _ELSEWHERE,
    "301": _ELSEWHERE,
}


class S3SettingsError(Exception):
    """No S3 client can be made with these settings; a sentence that says what to correct."""


def s3_client(
    endpoint_url: str | None, region: str | None, *, attempts: int = 1, max_connections: int = 4
) -> Any:
    """The S3 client for writers and readers of objects alike; raises `S3SettingsError`.

    `when_required` keeps boto3 from sending checksum trailers, which older Ceph RGW refuses
    over https.
    """
    session = _session()
    try:
        client = session.create_client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=region or session.get_config_variable("region") or "us-east-1",
            config=Config(
                s3={"addressing_style": "path"},
                signature_version="s3v4",
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                read_timeout=READ_TIMEOUT_SECONDS,
                retries={"total_max_attempts": attempts, "mode": "standard"},
                max_pool_connections=max_connections,
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise S3SettingsError(_settings_problem(error)) from None
    client.meta.events.register_last("before-parameter-build.s3", _no_redirect)
    return client


def has_s3_credentials() -> bool:
    """Whether boto3's chain finds credentials (environment, shared files, web identity).

    Raises `S3SettingsError` where it finds half of them.
    """
    session = _session()
    try:
        return session.get_credentials() is not None
    except (BotoCoreError, ValueError) as error:
        raise S3SettingsError(_settings_problem(error)) from None


def problem(error: Exception) -> str:
    """What an exception of a client's call means and what to do, without any secret."""
    if isinstance(error, ClientError):
        status, code = answered(error)
        remedy = _REMEDIES.get(code) or ("check the S3 credentials" if status == 403 else "")
        return f"answered {status} {code}".rstrip() + (f": {remedy}" if remedy else "")
    for kind, text in _CALL_PROBLEMS:
        if isinstance(error, kind):
            return text
    return f"unexpected failure of the S3 client ({type(error).__name__})"


def answered(error: ClientError) -> tuple[int, str]:
    """Status and S3 code of a store's answer; its text is never used, it may repeat a key."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(error.response.get("Error", {}).get("Code", ""))


def _settings_problem(error: Exception) -> str:
    for kind, text in _SETTINGS_PROBLEMS:
        if isinstance(error, kind):
            return text
    return f"the AWS settings cannot be used ({type(error).__name__}); check the AWS_… variables"


def _session() -> botocore.session.Session:
    """A botocore session with the usual chain of credentials, except the EC2 metadata address.

    Outside EC2 that address delays every start by a time-out, and on a shared node it could
    return the role of somebody else.
    """
    session = botocore.session.get_session()
    session.register_component("data_loader", _service_descriptions())
    try:
        session.get_component("credential_provider").remove("iam-role")
    except (BotoCoreError, ValueError) as error:
        raise S3SettingsError(_settings_problem(error)) from None
    return session


@lru_cache
def _service_descriptions() -> Loader:
    """What S3 is, read once for all clients: 12 MB and 0.1 s each."""
    return create_loader()


def _no_redirect(model: OperationModel, context: dict[str, Any], **_: object) -> None:
    """Keep botocore from asking where a bucket is in answer to its own question where it is.

    At a store that redirects everything it would ask until the recursion limit.
    """
    if model.name == "HeadBucket" and "s3_redirect" in context:
        context["s3_redirect"]["redirected"] = True
