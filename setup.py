"""Packaging: server/, queue/ and archive/ are installed as open_llm_proxy.server, .queue and
.archive, tools/agent/ as open_llm_proxy.agent.

queue/ must never get an __init__.py: it would then shadow the standard library's
``queue`` whenever the repository root is on sys.path, and urllib3, boto3 and pytest
would break. tests/test_layout.py guards this.
"""

from setuptools import setup

setup(
    name="open-llm-proxy",
    version="0.1.0",
    description="OpenAI-compatible LLM proxy that never loses a log line",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "open_llm_proxy.agent",
        "open_llm_proxy.archive",
        "open_llm_proxy.archive.commands",
        "open_llm_proxy.archive.compaction",
        "open_llm_proxy.archive.exports",
        "open_llm_proxy.archive.integrity",
        "open_llm_proxy.archive.sources",
        "open_llm_proxy.archive.tables",
        "open_llm_proxy.archive.view",
        "open_llm_proxy.queue",
        "open_llm_proxy.queue.damage",
        "open_llm_proxy.queue.orphans",
        "open_llm_proxy.server",
        "open_llm_proxy.server.commands",
        "open_llm_proxy.server.commands.demo",
        "open_llm_proxy.server.entries",
        "open_llm_proxy.server.http1",
        "open_llm_proxy.server.preflight",
        "open_llm_proxy.server.redaction",
        "open_llm_proxy.server.relay",
        "open_llm_proxy.server.transcript",
        "open_llm_proxy.server.upstream",
    ],
    package_dir={
        "open_llm_proxy.server": "server",
        "open_llm_proxy.queue": "queue",
        "open_llm_proxy.archive": "archive",
        "open_llm_proxy.agent": "tools/agent",
    },
    package_data={
        "open_llm_proxy.server": ["py.typed"],
        "open_llm_proxy.queue": ["py.typed"],
        "open_llm_proxy.archive": ["py.typed"],
        "open_llm_proxy.archive.view": ["static/*", "templates/*"],
    },
    install_requires=[
        "tornado>=6.6,<7",
        "boto3>=1.36,<2",
        "httptools>=0.6.4,<1",
        "msgspec>=0.19,<1",
        "prometheus_client>=0.20,<1",
        "rich>=13,<16",
    ],
    extras_require={
        "agent": ["openai>=1.56", "mcp>=2.3,<3", "httpx2>=2.10,<3", "rich>=13"],
        # All `logs` commands but the plots of `logs view`; the image has it.
        "tables": ["duckdb>=1.0"],
        "archive": ["duckdb>=1.0", "matplotlib>=3.8", "markdown-it-py>=3", "pygments>=2.17"],
        "dev": [
            "pytest<10",  # pytest-tornasync uses hooks that pytest 10 removes
            "pytest-tornasync",
            "pytest-xdist>=3.8",
            "moto[s3,server]",
            "hypothesis",
            "py-spy",
            "openai>=1.56",
            "mcp>=2.3,<3",
            "httpx2>=2.10,<3",
            "httpx>=0.27",
            "duckdb",
            "matplotlib>=3.8",
            "bokeh>=3.4",
            "duckdb-extensions",
            "duckdb-extension-httpfs",
            "jsonschema",
            "mypy",
            "ruff",
            "boto3-stubs",
            "types-Pygments",
        ],
    },
    entry_points={
        "console_scripts": [
            "open-llm-proxy = open_llm_proxy.server.commands.cli:main",
            "open-llm-proxy-agent = open_llm_proxy.agent.cli:main",
        ]
    },
)
