"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

import openai
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from checks import API_KEY, BASE_URL, HEADERS, MODEL, NONCE, client_left, equal, fails, report, user

model = ChatOpenAI(
    model=MODEL,
    base_url=BASE_URL,
    api_key=API_KEY,
    default_headers=HEADERS,
    include_response_headers=True,
)


class State(BaseModel):
    name: str
    share: float


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return "18 degrees"


def chat() -> None:
    message = model.invoke(user("chat"))
    equal((message.content, message.usage_metadata["total_tokens"]), ("Hello.", 10))


def stream() -> None:
    equal("".join(chunk.content for chunk in model.stream(user("chat"))), "Hello.")


def usage() -> None:
    chunks = list(model.stream(user("chat"), stream_usage=True))
    equal(sum((c.usage_metadata or {}).get("total_tokens", 0) for c in chunks), 10)


def tools() -> None:
    bound = model.bind_tools([get_weather])
    messages = [*user("weather")]
    message = bound.invoke(messages)
    [call] = message.tool_calls
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    equal(bound.invoke([*messages, message, result]).content, "It is 18 degrees.")


def structured() -> None:
    equal(model.with_structured_output(State).invoke(user("structured")).name, "Nevada")


def thinking() -> None:
    asking = ChatOpenAI(
        model=MODEL, base_url=BASE_URL, api_key=API_KEY, extra_body={"enable_thinking": True}
    )
    equal(asking.invoke(user("think")).content, "thinking: true")


def embeddings() -> None:
    embedder = OpenAIEmbeddings(
        model=MODEL, base_url=BASE_URL, api_key=API_KEY, check_embedding_ctx_length=False
    )
    equal(embedder.embed_documents(["a", "b"]), [[0.5, -0.25]] * 2)


def error() -> None:
    raised = fails(openai.BadRequestError, lambda: model.invoke(user("bad")))
    equal(raised.code, "context_length_exceeded")


def retry() -> None:
    equal(model.invoke(user(f"busy:{NONCE}")).content, "Hello.")


def abort() -> None:
    chunks = model.stream(user("endless"))
    next(chunks)
    chunks.close()
    client_left()


def broken() -> None:
    fails(Exception, lambda: list(model.stream(user("broken"))))


def ids() -> str | None:
    return model.invoke(user("chat")).response_metadata["headers"].get("x-proxy-request-id")


report(
    {
        "chat": chat,
        "stream": stream,
        "usage": usage,
        "tools": tools,
        "structured": structured,
        "thinking": thinking,
        "embeddings": embeddings,
        "error": error,
        "retry": retry,
        "abort": abort,
        "broken": broken,
        "ids": ids,
    }
)
