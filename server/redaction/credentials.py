"""What counts as a credential: by its name and by its value.

Three questions, answered without any state: does this name announce a credential
(`name_kind`), could this value be one (`is_secret_word`, `is_quoted_secret`), or does it only
say where one would be (`is_stand_in`)? The rules lean to
the safe side where a log loses little by a mark, and to the readable side where a name is
also an ordinary word of this field: `token` counts text, `key` names a column, `pass` is
the result of a test.
"""

import base64
import binascii
import enum
import re
from functools import lru_cache

MARK = "[redacted]"
"""What stands in the place of a credential."""


def word_set(text: str) -> frozenset[str]:
    """The words of `text`."""
    return frozenset(text.split())


class Kind(enum.Enum):
    """How strongly a name speaks for a credential, and in which grammar its value stands."""

    PASSWORD = enum.auto()  # chosen by people, so short and wordlike values count too
    SECRET = enum.auto()  # api_key, client_secret, access_token: made by machines
    WORD = enum.auto()  # token, secret: ordinary words, so a bare value must look random
    CLUE = enum.auto()  # auth, credentials, pass: even a quoted value must look random
    AUTHORIZATION = enum.auto()  # an optional scheme, then the credential
    COOKIE = enum.auto()  # name=value pairs up to the end of the line
    KEY_ID = enum.auto()  # half of an S3 key pair, but also the name of a key elsewhere
    SIGNATURE = enum.auto()  # only as the parameter of a URL
    MANIFEST = enum.auto()  # what is in it under any key, as in a Kubernetes Secret


_NOUN = re.compile(r"(?i)key|secret|token|pass|pwd|auth|cookie|credential|bearer|sig")
# "s3SecretKey", "S3_SECRET_KEY" and "s3-secret-key" are the words s3, secret, key.
_WORD = re.compile(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*|[0-9]+")
# Words after the noun that leave it a credential: API_KEY_PROD, secret_value, password2.
_TAIL = word_set(
    "prod production dev development test testing stage staging live default value plain "
    "plaintext base raw encoded encrypted hash confirm confirmation old new current primary "
    "secondary backup string extra"
)


def _of(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


_PASSWORD = _of(
    "passw(?:or)?ds? passwort passphrases? passcodes? pwd (?:store|key|db|user|smtp)pass"
)
# A first word that makes the name a flag, a label or a limit: has_password, max_token.
_FLAG = _of(
    "has is no not need needs require requires required use uses using enable enabled disable "
    "allow allowed show hide toggle missing invalid incorrect wrong without min max num count "
    "validate accept reject"
)
_PASS_OWNER = _of(
    "db database smtp mail email user admin root ftp sftp ssh ldap mysql pg postgres postgresql "
    "redis mongo mongodb rabbitmq amqp proxy wifi my sudo auth login http imap api keystore "
    "truststore rabbit default"
)
_PUBLIC = _of("public pub primary foreign partition sort kms gpg pgp host publishable")
_KEY_OWNER = _of(
    "api access secret private encryption encrypt signing sign master account proxy s3 auth ssh "
    "deploy shared subscription consumer session webhook admin root license licence app "
    "application aes hmac storage rsa service provider client function host secure wallet "
    "openai anthropic openrouter nrp nimbus azure google gemini mistral groq cohere hf "
    "huggingface deepseek aws gcp stripe sendgrid twilio mapbox maptiler mailgun github gitlab "
    "nvidia litellm llm together fireworks cerebras replicate"
)
_TOKEN_OWNER = _of(
    "access refresh auth authentication authorization id bearer api session security secret "
    "private personal bot oauth oauth2 csrf xsrf jwt sas deploy device reset login user client "
    "app service identity registration webhook admin verification"
)
_TEXT_TOKEN = _of(
    "n total prompt completion input output cached reasoning bos eos pad unk sep cls mask stop "
    "special next prev previous last first page continuation continue pagination cursor "
    "cancellation design budget per draft thinking word sub image audio video text start end "
    "new chat delimiter separator change idempotency max"
)
# What a name announces, by its words in lower case; the first pattern that fits decides.
_NAMES: tuple[tuple[str, Kind | None], ...] = (
    (rf"{_FLAG}\b.*|.*\bauth0", None),
    (rf"(?:forgot|forgotten|reset|change)\b.*{_PASSWORD}", None),
    (rf".*{_PASSWORD}|.*\b{_PASS_OWNER} pass", Kind.PASSWORD),
    (r".*\bpass", Kind.CLUE),
    (r".*\b(?:accesskeyid|secret id)", Kind.SECRET),
    (rf".*\b{_PUBLIC}\b.*key id|.*\b{_PUBLIC} .*keys?", None),
    (r".*\b(?:access|api|private) key id", Kind.SECRET),
    (r".*\bkey id", Kind.KEY_ID),
    (rf".*\b{_KEY_OWNER} keys?|.*{_KEY_OWNER}keys?", Kind.SECRET),
    (rf".*\b{_TOKEN_OWNER} .*tokens?|.*{_TOKEN_OWNER}tokens?", Kind.SECRET),
    (rf".*\b{_TEXT_TOKEN} .*token", None),
    (r"token|secrets?|.*\bbearer", Kind.WORD),  # "tokens" alone are text
    (r".* token", Kind.SECRET),
    # The name of a Kubernetes or SQL secret, not its value.
    (r".*\b(?:pull|existing|create|drop|delete|get|list|which|from|top) .*secrets?", None),
    (r".*secrets?|.*\b(?:auth|authorization) code|x (?:.* )?credentials?", Kind.SECRET),
    (r".*\bauthorization", Kind.AUTHORIZATION),
    (r".*\bcookies?", Kind.COOKIE),
    (r".*\b(?:signature|sig|hmac)", Kind.SIGNATURE),
    (r".*\b(?:credentials?|auth)", Kind.CLUE),
)
_KIND_PATTERNS = [(re.compile(pattern), kind) for pattern, kind in _NAMES]


@lru_cache(maxsize=4096)
def name_kind(name: str) -> Kind | None:
    """The kind of credential that `name` announces (a key, a variable, a header), or None."""
    if len(name) > 80 or not _NOUN.search(name) or name.count(" ") > 3 or "::" in name:
        return None  # most names, sentences, and types
    words = [word.lower() for word in _WORD.findall(name)]
    while len(words) > 1 and (words[-1] in _TAIL or words[-1].isdigit()):
        words.pop()
    phrase = " ".join(words)
    if not phrase.endswith("auth0"):
        phrase = phrase.rstrip("0123456789")
    return next((kind for pattern, kind in _KIND_PATTERNS if pattern.fullmatch(phrase)), None)


# Values that say where a credential would be, or that one was there. They stay readable.
_STAND_IN = re.compile(
    r"""(?isx)
    \W{0,3} | (?P<mask>\W)(?P=mask)*                       # "", "...", "********"
    | <[^<>]*> | \[[A-Za-z _-]*\]                          # <token>, [redacted]
    | \#[0-9a-f]{3,8} | true | false | null | none         # colours, and JSON in strings
    | \$\{[^{}]*\} | \$?\{\{[^{}]*\}\} | \{[^{}"]*\}        # ${KEY}, {{ key }}, {key}
    | \$\([^()]*\) | \$\d | %[A-Z_]+% | %s | %\(\w+\)s
    | [:@][A-Za-z_]+ | ![a-z]+                             # SQL parameters, YAML tags
    | (?:os\.environ|process\.env|import\.meta\.env|env|(?:os\.|System\.|Sys\.)?getenv
       |secrets|vault|op|ssm|arn|keyring)[./:\[(].*        # where to find it
    | (?:.{0,24}[-_ ])?your[-_ ].{1,60}                    # your-api-key
    | .{1,40}[-_ ](?:goes[-_ ])?here
    | (?:insert|replace|enter|paste)[-_ ].{1,60} | replaceme
    | (?:[a-z]{1,5}[-_])?[x*.\-_…]{3,}                     # xxxx, sk-...
    | \**(?:redacted|removed|hidden|masked|omitted|censored)\**
    | same-origin | include | omit                         # fetch(…, {credentials: …})
    """
)
# $SECRET, $token and $apiKey are variables; $ecr3t is a password.
_VARIABLE = re.compile(r"\$(?:[A-Z_][A-Z0-9_]*|[a-z_]+|[a-z]+(?:[A-Z][a-z]+){1,4})")
# f"{user}:{password}" has no literal part.
_FIELD, _LITERAL = re.compile(r"\$?\{[^{}\"]*\}|<[^<>]*>"), re.compile(r"[A-Za-z0-9]{6}")
_FILE = re.compile(
    r"(?i)(?:s3://|file://|~|\.{1,2})?/?[\w .=*{}-][\w ./=*{}-]*\.(?:parquet|jsonl?|"
    r"ndjson|csv|tsv|tiff?|geojsonl?|pmtiles|fgb|gpkg|shp|las|laz|zarr|nc|h5|arrow|avro|orc|zip|gz|"
    r"bz2|xz|zst|tar|war|jar|html?|js|css|py|sh|md|log|pdf|png|jpe?g|svg|duckdb|sqlite|db|txt|"
    r"pem|key|p8|p12|pfx|ppk|env|ya?ml|toml)"
)


_LONGEST_WORD = 200  # what is longer is no placeholder, keyword or name


def is_stand_in(value: str) -> bool:
    """Whether `value` is empty, a placeholder, a mark or a reference instead of a credential.

    Judged by form alone: `changeme` and `password` are in real use and count as values.
    """
    value = value.strip()
    if len(value) > _LONGEST_WORD:
        return False
    if _STAND_IN.fullmatch(value) or _VARIABLE.fullmatch(value) or _FILE.fullmatch(value):
        return True
    return bool(_FIELD.search(value)) and not _LITERAL.search(_FIELD.sub(" ", value))


# What stands after "password:" or "token =" in schemas, code and prose.
_ORDINARY = word_set(
    "string str text char varchar bytes binary int integer bigint number float double bool "
    "boolean object array list dict map any void unknown never secretstr optional required "
    "missing invalid valid expired empty set unset wrong incorrect correct hidden none null nil "
    "undefined true false yes no on off enabled disabled default todo tbd failed denied "
    "accepted ok changed reset self this new await async return not is are was be the a an and "
    "or in of for with basic bearer oauth oauth2 digest apikey token tokens key keys secret "
    "password username user api access client private my refresh authentication authorization "
    "auth header headers scheme credentials credential based type format value name realm error "
    "prefix option options flag argument parameter parameters field"
)
_NUMBER = re.compile(r"[-+]?[0-9][0-9_,.]*(?:e[-+]?[0-9]+)?(?:[a-zA-Z]{1,2}|%)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}(?:-[0-9]{2})?(?:[T ].*)?")
_PATH_DOT = re.compile(r"\.|::|->")
_TYPE = re.compile(r"[A-Z][a-z]+(?:[A-Z][a-z]+){1,6}")
_CONSTANT = re.compile(r"[A-Z][A-Z0-9]*_[A-Z0-9_]+")
_DIGIT, _LETTER = re.compile(r"\d"), re.compile(r"[^\W\d_]")
_SYMBOL = re.compile(r"[!@#$%^*+~?]|=\Z")


def is_ordinary(value: str) -> bool:
    """Whether an unquoted `value` is a number, a date, a keyword or a type, not a credential."""
    return (
        value.lower().rstrip("!?.:;") in _ORDINARY
        or bool(_NUMBER.fullmatch(value))
        or bool(_DATE.fullmatch(value))
    )


def _is_label(value: str) -> bool:
    """`Password`, `apiKey` and `accessToken` name a credential and are none."""
    words = _WORD.findall(value)
    return bool(words) and all(word.lower() in _ORDINARY for word in words)


def is_mixed(value: str, least: int) -> bool:
    """Whether `value` has at least `least` characters, letters and digits among them."""
    return len(value) >= least and bool(_DIGIT.search(value) and _LETTER.search(value))


def _is_attribute(value: str) -> bool:
    """`config.api_key` and `tokenizer.next` are code; a dotted run of random words is not."""
    parts = _PATH_DOT.split(value)
    return len(parts) > 1 and all(
        part.isidentifier() and (not _is_random(part) or name_kind(part)) for part in parts
    )


def _is_random(word: str) -> bool:
    return "_" not in word and is_mixed(word, 16)


_UUID = re.compile(r"(?i)[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_FOLDER = re.compile(r"(?:~|/[A-Za-z])[\w./-]*")  # PWD=/home/user
_PROSE = re.compile(r"(?i)\b(?:your|enter|must|the|is|for|please|and|of|to|a|not|with)\b")
_IN_SENTENCE = re.compile(  # SHA256, base64, OAuth2, 2fa, utf-8: words that have digits by nature
    r"(?i)(?:[a-z]{1,8}[-_]?[0-9]{1,4}(?:[-_.]?[a-z0-9]{1,4})?|[0-9]{1,4}[-_]?[a-z]{1,12}s?)"
)


def is_secret_word(kind: Kind, value: str, *, tight: bool, shouted: bool, alone: bool) -> bool:
    """Whether an unquoted `value` after a name of this kind is a credential.

    `tight`: written `name=value` without spaces; `shouted`: the name is in capitals, as in an
    environment; `alone`: the line holds nothing but name and value, as in YAML.
    """
    if len(value) > _LONGEST_WORD:
        return is_mixed(value, 1)
    if kind is Kind.PASSWORD and value.isdigit():
        return len(value) >= 4 and (tight or alone)
    if any(is_none(value) for is_none in _NO_CREDENTIAL):
        return False
    least = 8 if kind is Kind.WORD and not tight else 4 if kind is Kind.PASSWORD else 6
    if is_mixed(value, least):  # "PASS: test_2" is the result of a test
        exception = {Kind.PASSWORD: _FOLDER, Kind.KEY_ID: _UUID}.get(kind)
        is_result = kind is Kind.CLUE and shouted
        return not (is_result or (exception and exception.fullmatch(value)))
    wordlike = value.replace("_", "").isalpha()
    has_symbol = not wordlike and _SYMBOL.search(value) is not None
    if kind is Kind.PASSWORD:
        is_long = len(value) >= 4 and (tight or alone)
        return not _FOLDER.fullmatch(value) and (is_long or (len(value) >= 6 and has_symbol))
    if kind is Kind.SECRET:
        is_path = not wordlike and value.islower() and "/" in value
        is_type = not tight and _TYPE.fullmatch(value) is not None
        is_strange = len(value) >= 8 and (has_symbol or (not wordlike and tight))
        is_long = len(value) >= (3 if tight else 16) and (tight or alone)
        return not is_path and not is_type and (is_strange or is_long)
    return kind is Kind.WORD and tight and shouted and len(value) >= 6


def _is_handed_on(value: str) -> bool:
    """`password=password` and `api_key=my_api_key`: a variable, or a label."""
    wordlike = value.replace("_", "").isalpha()
    return wordlike and (_is_label(value) or ("_" in value and name_kind(value) is not None))


# What no credential is, whatever its name.
_NO_CREDENTIAL = (is_stand_in, is_ordinary, _is_attribute, _is_handed_on)


def is_password_in_sentence(value: str) -> bool:
    """Whether a word that follows "password" in a sentence is one: `password X9kQ2p please`."""
    if not is_mixed(value, 6) or is_stand_in(value) or _is_attribute(value):
        return False
    return not _IN_SENTENCE.fullmatch(value) or sum(map(str.isdigit, value)) >= 5


def is_quoted_secret(
    kind: Kind, value: str, *, key_quoted: bool = True, assigned: bool = True
) -> bool:
    """Whether a quoted `value` is a credential.

    After a quoted key, as in JSON, any text is. After a bare name, as in code and prose, a
    sentence is not, and a label only if it is `assigned` by "=": `password: "Password"`.
    """
    if is_stand_in(value):
        return False
    if kind is Kind.AUTHORIZATION:
        scheme, space, rest = value.partition(" ")
        return not (space and scheme.isalpha() and is_stand_in(rest))
    if kind is Kind.COOKIE and (not key_quoted or value.endswith("=")):
        return "=" in value[:-1]
    if kind is Kind.CLUE:
        return " " not in value and (is_mixed(value, 6) or len(value) >= 20)
    if kind is Kind.KEY_ID:
        return " " not in value and not _UUID.fullmatch(value) and not value.startswith("alias/")
    if kind is Kind.PASSWORD and _FOLDER.fullmatch(value):
        return False
    if key_quoted:
        return True
    if len(value) < 2:
        return False  # <a accesskey="u">
    if _CONSTANT.fullmatch(value) or (value.islower() and "_" in value and name_kind(value)):
        return False  # AUTH_TOKEN = "CONTAINER_AUTH_TOKEN": where to find it
    if (not assigned or kind is Kind.WORD) and (_is_label(value) or is_ordinary(value)):
        return False
    return " " not in value or (kind is not Kind.WORD and not _PROSE.search(value))


def is_basic_auth(value: str) -> bool:
    """Whether `value` is Base64 of `user:password` (RFC 7617)."""
    try:
        text = base64.b64decode(value + "=" * (-len(value) % 4), altchars=None, validate=True)
    except (binascii.Error, ValueError):
        return False
    return b":" in text and text.isascii() and text.decode("ascii").isprintable()
