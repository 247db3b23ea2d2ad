"""Runs one agent session, or a grid of them, through the proxy from the command line.

    python tools/agent_runner.py "Rank states by fraction that is GAP 1+2"

Only the entry: everything is in the package ``agent`` beside this file. It needs
``pip install openai mcp httpx`` and nothing of the proxy itself.
"""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
