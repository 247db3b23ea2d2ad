"""All checks, in the order in which they are reported.

`check_offline` looks at settings, config.json, directories and keys, and sends nothing; it finds
every mistake and not only the first one. `check_online` sends a probe object to the store and asks
the providers for their models.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from open_llm_proxy.queue import s3
from open_llm_proxy.server.config import Config, ConfigError, load_config
from open_llm_proxy.server.preflight.directories import check_directories
from open_llm_proxy.server.preflight.findings import Finding, Level, PreflightFailed
from open_llm_proxy.server.preflight.providers import check_keys, check_providers, probe_providers
from open_llm_proxy.server.preflight.store import check_store, probe_store
from open_llm_proxy.server.preflight.variables import unread_variables
from open_llm_proxy.server.routing import Router
from open_llm_proxy.server.settings import Settings
from open_llm_proxy.server.upstream.client import PooledHTTPClient


@dataclass(frozen=True, slots=True)
class Preflight:
    """The findings, and what could be read: wrong settings have their defaults, see `Settings`."""

    settings: Settings
    config: Config | None
    findings: list[Finding]

    def ready(self) -> tuple[Settings, Config]:
        """What a server starts with; raises `PreflightFailed` where it must not start."""
        failed = PreflightFailed(self.findings)
        if failed.findings or self.config is None:
            raise failed
        return self.settings, self.config


def check_offline(environment: Mapping[str, str], config_path: Path | None = None) -> Preflight:
    """Check everything that needs no network; `config_path` overrides CONFIG."""
    settings, mistakes = Settings.read(environment)
    if config_path is not None:
        settings = replace(settings, config=config_path)
    findings = [Finding("settings", Level.MISTAKE, mistake) for mistake in mistakes]
    config, of_config = _config(settings.config)
    providers = config.providers.values() if config else ()
    variables = [p.api_key_env for p in providers]
    variables += [variable for p in providers for variable in p.extra_body_env.values()]
    findings += unread_variables(environment, variables)
    if not findings:
        findings = [Finding("settings", Level.OK, "all valid")]
    findings += of_config
    if config is not None:
        findings += check_providers(Router(config, environment), config.default_provider)
    findings += check_keys(settings)
    findings += check_store(settings, environment)
    if _has_queue(settings):
        findings += check_directories(settings)
    return Preflight(settings, config, findings)


def _has_queue(settings: Settings) -> bool:
    """Whether entries are kept in a queue; without a store they go to stdout only."""
    try:
        return settings.log_dir is not None or (
            bool(settings.log_bucket) and s3.has_s3_credentials()
        )
    except s3.S3SettingsError:
        return True  # reported by `check_store`


def _config(path: Path) -> tuple[Config | None, list[Finding]]:
    try:
        config = load_config(path)
    except ConfigError as error:
        return None, [Finding("config", Level.MISTAKE, mistake) for mistake in error.mistakes]
    text = f"{config.source} (SHA-256 {config.sha256[:16]})"
    return config, [Finding("config", Level.OK, text)]


async def check_online(
    settings: Settings, router: Router, client: PooledHTTPClient
) -> list[Finding]:
    """Test the store and the providers at the same time."""
    # A thread of its own: one that hangs must not hold up the end of the process.
    executor = ThreadPoolExecutor(1, thread_name_prefix="probe")
    try:
        probing = asyncio.get_running_loop().run_in_executor(executor, _probed_store, settings)
        of_providers = await probe_providers(router, client)
        return [*of_providers, *await probing]
    finally:
        executor.shutdown(wait=False)


def _probed_store(settings: Settings) -> list[Finding]:
    try:
        return probe_store(settings) if s3.has_s3_credentials() else []
    except s3.S3SettingsError as error:
        return [Finding("log", Level.PROBLEM, str(error))]
