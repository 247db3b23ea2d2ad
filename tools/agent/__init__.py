"""A command-line agent: questions in, MCP tools used, answers out, every call through the proxy.

Run from a checkout it is the package ``agent`` beside ``tools/agent_runner.py``; installed it
is ``open_llm_proxy.agent`` with the command ``open-llm-proxy-agent``. All imports inside are
relative, so that both work. Nothing here imports the server or the queue.
"""
