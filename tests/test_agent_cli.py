"""The command: its output for people and for scripts, its exit codes, and every bad input."""

import ast
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import wire
from agent_command import REPO, SCRIPT, Run, cli, script_argv, user_environment
from agent_provider import KEY, AgentProvider, Silence, Whole, asks, call, fails, says

pytest_plugins = ("agent_fixtures",)

DEADLINE_SECONDS = 30


def one_sentence(err: str) -> str:
    """What is on standard error, if it is one line in our form and no traceback."""
    assert err.startswith("agent_runner: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err.removeprefix("agent_runner: ").rstrip("\n")


def test_json_is_one_object_for_scripts(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(asks(call("next_number")), says("It is one."))
    done = run_agent("Which?", "--json")
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert found["answer"] == "It is one."
    assert (found["status"], found["turns"], found["tool_calls"]) == ("answered", 2, 1)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (200, 20)
    assert found["session_id"] == done.transcript["session_id"]


def test_json_also_tells_of_a_failure(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(fails(400, "Too long."))
    done = run_agent("Which?", "--json")
    assert done.code == 1
    assert done.json["status"] == "failed"
    assert "Too long." in done.json["error"]
    assert done.json["error"] == one_sentence(done.err)


def test_quiet_prints_the_answer_alone(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(asks(call("next_number")), says("It is **one**."))
    assert run_agent("Which?", "--quiet").out == "It is **one**.\n"


def test_no_key_is_told(run_agent: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    done = run_agent("Hello")
    assert done.code == 1
    assert "OPENAI_API_KEY" in one_sentence(done.err)


def test_a_wrong_key_is_told_and_not_repeated(run_agent: Run, llm: AgentProvider) -> None:
    done = run_agent("Hello", "--api-key", "sk-very-wrong")
    assert done.code == 1
    sentence = one_sentence(done.err)
    assert sentence == (
        f"{llm.url} refused the key: Invalid API key: [key]. "
        "Give the proxy's key in OPENAI_API_KEY or --api-key."
    )
    assert "sk-very-wrong" not in done.out + json.dumps(done.transcript)
    assert len(llm.requests) == 1


def test_the_key_is_in_no_output(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(says("Hello."))
    done = run_agent("Hello")
    assert KEY not in done.out + done.err + json.dumps(done.transcript)


def test_an_unknown_model_is_told_in_the_words_of_the_proxy(run_agent: Run) -> None:
    done = run_agent("Hello", "--model", "no-such-model")
    assert done.code == 1
    assert "No provider serves 'no-such-model'; served are: kimi." in one_sentence(done.err)


def test_a_proxy_url_that_answers_404_is_told(run_agent: Run, llm: AgentProvider) -> None:
    url = llm.url.removesuffix("/v1")
    done = run_agent("Hello", "--proxy-url", url)
    assert done.code == 1
    assert one_sentence(done.err) == (
        f"{url}/chat/completions answered 404 (not found): check --proxy-url, "
        "which usually ends in /v1."
    )


def test_the_full_address_of_the_route_is_taken_too(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(says("Hello."))
    assert run_agent("Hello", "--proxy-url", f"{llm.url}/chat/completions/").code == 0


def test_a_proxy_that_is_down_is_told(run_agent: Run) -> None:
    url = f"http://127.0.0.1:{wire.free_port()}/v1"
    done = run_agent("Hello", "--proxy-url", url)
    assert done.code == 1
    assert one_sentence(done.err).startswith(f"The connection to {url} failed: ")


def test_a_model_that_does_not_answer_in_time_is_told(run_agent: Run, llm: AgentProvider) -> None:
    silence = Silence(threading.Event(), threading.Event())
    llm.choose(lambda _: silence)
    done = run_agent("Hello", "--timeout", "0.2")
    silence.release.set()
    assert done.code == 1
    assert one_sentence(done.err) == f"{llm.url} did not answer within 0.2 seconds."
    assert len(llm.requests) == 3  # the SDK's two retries


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        ("<html>Welcome</html>", "text/html", "it is no JSON object; check --proxy-url"),
        ('{"choices": []}', "application/json", "it has no choices"),
        ('{"error": {"message": "No credits."}}', "application/json", "No credits."),
        ("{oops", "application/json", "no JSON"),
        ("[]", "application/json", "no JSON object"),
    ],
)
def test_an_answer_that_is_no_chat_completion_is_told(
    run_agent: Run, llm: AgentProvider, body: str, kind: str, expected: str
) -> None:
    llm.script(Whole(200, body, {"Content-Type": kind}))
    done = run_agent("Hello")
    assert done.code == 1
    assert expected in one_sentence(done.err)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--system-prompt", "missing.md"], "cannot read missing.md: No such file or directory."),
        (["--system-prompt", "."], "cannot read .: Is a directory."),
        (["--system-prompt", "/dev/null"], "/dev/null is empty."),
        (["--mcp-url", "duckdb-mcp"], "--mcp-url must be a URL"),
        (["--proxy-url", "ftp://example.org"], "--proxy-url must be a URL"),
        (["--proxy-url", "http://[::1"], "--proxy-url must be a URL"),
        (["--api-key", "schlüssel"], "The API key must be plain ASCII"),
        (["--api-key", " "], "There is no key"),
        (["--session-id", "a\nb"], "--session-id must be plain ASCII"),
        (["--origin", "x" * 300], "--origin is longer than 200 characters."),
        (["--mcp-command", "'oops"], "--mcp-command cannot be split"),
        (["--mcp-command", " "], "--mcp-command is empty."),
        (["--model", " "], "--model must not be empty."),
        (["--transcript", "/dev/null/x.json"], "cannot write /dev/null/x.json"),
        (["--questions", "missing.txt"], "cannot read missing.txt"),
        (["--questions", "/dev/null"], "there is no question in /dev/null"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_sent(
    run_agent: Run, llm: AgentProvider, options: list[str], expected: str
) -> None:
    question = [] if "--questions" in options else ["Hello"]
    done = run_agent(*question, *options)
    assert done.code == 1
    assert expected in one_sentence(done.err)
    assert not llm.requests


def test_an_empty_question_is_told(run_agent: Run) -> None:
    assert one_sentence(run_agent("  ").err) == "The question is empty."


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/missing.md", "/missing.md answered 404 Not Found."),
        ("/page", "/page is a web page; give the link to the raw text."),
    ],
)
def test_a_prompt_url_that_gives_no_prompt_is_told(
    run_agent: Run, llm: AgentProvider, path: str, expected: str
) -> None:
    done = run_agent("Hello", "--system-prompt", llm.url.replace("/v1", path))
    assert done.code == 1
    assert expected in one_sentence(done.err)


def test_a_prompt_url_that_cannot_be_reached_is_told(run_agent: Run) -> None:
    url = f"http://127.0.0.1:{wire.free_port()}/prompt.md"
    done = run_agent("Hello", "--system-prompt", url)
    assert f"cannot fetch {url}: " in one_sentence(done.err)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["Hello", "--max-turns", "0"],
        ["Hello", "--timeout", "-1"],
        ["Hello", "--unknown"],
        ["Hello", "--mcp-url", "http://a/mcp", "--mcp-command", "b"],
        ["Hello", "--questions", "also.txt"],
    ],
)
def test_a_wrong_command_line_ends_with_code_2(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(options)
    assert ended.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_help_lists_the_options_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for words in ("--system-prompt", "--origin", "nemotron", "duckdb-mcp.nrp", "3 turn limit"):
        assert words in text


def test_without_the_packages_it_says_how_to_install_them() -> None:
    """-S leaves out site-packages, as in a Python that has nothing installed."""
    argv = [sys.executable, "-S", str(SCRIPT), "Hello"]
    done = subprocess.run(argv, env=user_environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert one_sentence(done.stderr) == (
        "openai and mcp and httpx2 are not installed. "
        "Install with: pip install --upgrade openai mcp httpx2 rich"
    )


def test_help_needs_no_packages() -> None:
    done = subprocess.run([sys.executable, "-S", str(SCRIPT), "--help"], capture_output=True)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.9.4", "mcp 1.9.4 is too old, 2.3 is needed."),
        ("2.2.0", "mcp 2.2.0 is too old, 2.3 is needed."),
        ("2.3.0", "packages do not fit ("),
    ],
)
def test_packages_that_do_not_fit_are_told(tmp_path: Path, version: str, expected: str) -> None:
    """Three packages that are there and empty, and what pip notes about them."""
    for name, noted in (("openai", "3.0.0"), ("mcp", version), ("httpx2", "2.0.0")):
        (tmp_path / f"{name}.py").write_text("")
        (tmp_path / f"{name}-{noted}.dist-info").mkdir()
        metadata = tmp_path / f"{name}-{noted}.dist-info" / "METADATA"
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {noted}\n")
    environment = user_environment(PYTHONPATH=str(tmp_path))
    argv = [sys.executable, "-S", str(SCRIPT), "Hello"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert expected in one_sentence(done.stderr)
    assert "pip install --upgrade openai mcp httpx2 rich" in done.stderr


def test_ctrl_c_ends_cleanly_and_leaves_the_transcript(
    llm: AgentProvider, mcp_url: str, tmp_path: Path
) -> None:
    """The script as a user runs it, without the proxy's own package."""
    silence = Silence(threading.Event(), threading.Event())
    steps = [asks(call("query", sql="SELECT count(*) AS n FROM states")), silence]
    llm.choose(lambda _: steps[len(llm.requests) - 1])
    path = tmp_path / "new" / "transcript.json"
    places = ("--proxy-url", llm.url, "--mcp-url", mcp_url, "--transcript", str(path))
    argv = script_argv("How many?", *places)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, cwd=tmp_path, env=user_environment(), stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert silence.arrived.wait(DEADLINE_SECONDS)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    silence.release.set()
    assert process.returncode == 130
    assert one_sentence(err) == "Interrupted."
    assert "Interrupted · 1 turn · 1 tool calls" in out
    transcript = json.loads(path.read_text())
    assert transcript["status"] == "interrupted"
    assert transcript["turns"][0]["tool_calls"][0]["result"] == "n\n3"
    assert [p.name for p in path.parent.iterdir()] == ["transcript.json"]


def test_openai_and_mcp_are_enough() -> None:
    """httpx2 comes with mcp; rich is imported only where it was found, boto3 for a bucket."""
    allowed = {"openai", "mcp", "httpx2", *sys.stdlib_module_names}
    ours = {"agent", "open_llm_proxy"}  # what is shared with the proxy is tried below
    for path in (SCRIPT, *(SCRIPT.parent / "agent").glob("*.py")):
        with_rich = {"rich"} if path.stem in ("render_rich", "render_grid") else set()
        with_rich |= {"boto3"} if path.stem == "recorded_log" else set()
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
        assert found - ours <= allowed | with_rich, path


def test_the_script_runs_from_a_checkout_without_the_proxy_and_what_it_needs() -> None:
    code = f"""
import sys
sys.argv = ["agent_runner.py", "--help"]
sys.path[:] = [p for p in sys.path if p and p != {str(REPO)!r} and "__editable__" not in p]
sys.path.insert(0, {str(SCRIPT.parent)!r})
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
for name in ("msgspec", "tornado", "boto3"):
    sys.modules[name] = None
import importlib.util, runpy
assert importlib.util.find_spec("open_llm_proxy") is None
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPO / "tests")
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


def test_a_reader_that_leaves_ends_the_command_quietly(
    run_agent: Run, llm: AgentProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm.script(says("Hello."))
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        done = run_agent("Hello")
    assert (done.code, done.err) == (1, "")
