"""Runs one agent session, or a grid of them, through the proxy from the command line.

    python tools/agent_runner.py "Rank states by fraction that is GAP 1+2"

Only the entry: everything is in the package ``agent`` beside this file. It needs
``pip install openai mcp httpx``. The proxy need not be installed: the little that is shared with
it is then taken from the checkout that this file belongs to.
"""

import importlib.util
import sys
import types
from pathlib import Path

if importlib.util.find_spec("open_llm_proxy") is None:
    checkout = types.ModuleType("open_llm_proxy")
    checkout.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["open_llm_proxy"] = checkout

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
