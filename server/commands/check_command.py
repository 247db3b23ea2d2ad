"""``open-llm-proxy check``: check settings and config.json, and show what they mean."""

import argparse
import os

from open_llm_proxy.server.commands.console import ExitCode
from open_llm_proxy.server.commands.serve_command import add_config_option, with_config_option
from open_llm_proxy.server.config import load_config
from open_llm_proxy.server.routing import Router
from open_llm_proxy.server.settings import from_process_environment


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", epilog: str
) -> None:
    """Add ``check`` to the program's commands; `epilog` lists the settings."""
    text = "check settings and config.json, and show what they mean"
    parser = commands.add_parser(
        "check",
        help=text,
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.set_defaults(run=_check)


def _check(chosen: argparse.Namespace) -> ExitCode:
    settings = with_config_option(from_process_environment(), chosen)
    config = load_config(settings.config)
    router = Router(config, os.environ)
    for name, provider in router.providers.items():
        key = "key set" if provider.is_configured else f"no key: set {provider.config.api_key_env}"
        models = ", ".join([*provider.config.exact_models, *provider.config.prefixes])
        print(f"{name}: {provider.config.endpoint} ({key}): {models or 'no models listed'}")
    print(f"other models: {config.default_provider or 'refused'}")
    print(f"proxy keys: {', '.join(settings.proxy_key_names) or 'none, set PROXY_KEY'}")
    return ExitCode.DONE
