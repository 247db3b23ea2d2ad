// Checks of the openai package for JavaScript, for Node and for a page alike.

import { clientLeft, equal, fails, user } from "./checks.mjs";

const model = "kimi";
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

export function openaiChecks(OpenAI, { baseURL, apiKey, controlUrl, session, nonce, ...more }) {
  const defaultHeaders = { "X-Session-Id": session, "X-Client": "check" };
  const client = new OpenAI({ baseURL, apiKey, defaultHeaders, ...more });
  const create = (body, options) => client.chat.completions.create({ model, ...body }, options);
  const content = (completion) => completion.choices[0].message.content;
  return {
    async chat() {
      const completion = await create({ messages: user("chat") });
      equal([content(completion), completion.usage.total_tokens], ["Hello.", 10]);
    },
    async stream() {
      let text = "";
      for await (const chunk of await create({ messages: user("chat"), stream: true }))
        text += chunk.choices[0]?.delta?.content ?? "";
      equal(text, "Hello.");
    },
    async usage() {
      let usage;
      const stream_options = { include_usage: true };
      for await (const chunk of await create({ messages: user("chat"), stream: true, stream_options }))
        usage = chunk.usage ?? usage;
      equal(usage.total_tokens, 10);
    },
    async tools() {
      const messages = user("weather");
      const { message } = (await create({ messages, tools: [weather] })).choices[0];
      const [call] = message.tool_calls;
      equal(JSON.parse(call.function.arguments), { city: "Paris" });
      messages.push(message, { role: "tool", tool_call_id: call.id, content: "18 degrees" });
      equal(content(await create({ messages, tools: [weather] })), "It is 18 degrees.");
    },
    async structured() {
      const schema = { type: "object", properties: { name: { type: "string" } } };
      const response_format = { type: "json_schema", json_schema: { name: "state", schema } };
      const completion = await create({ messages: user("structured"), response_format });
      equal(JSON.parse(content(completion)).name, "Nevada");
    },
    async thinking() {
      const completion = await create({ messages: user("think"), enable_thinking: true });
      equal(content(completion), "thinking: true");
    },
    async embeddings() {
      const found = await client.embeddings.create({ model, input: ["a", "b"] });
      equal(found.data.map((item) => Array.from(item.embedding)), [[0.5, -0.25], [0.5, -0.25]]);
    },
    async models() {
      const ids = [];
      for await (const item of client.models.list()) ids.push(item.id);
      equal(ids.includes(model), true);
    },
    async responses() {
      equal((await client.responses.create({ model, input: "chat" })).output_text, "Hello.");
      let last;
      for await (const event of await client.responses.create({ model, input: "chat", stream: true }))
        last = event.type;
      equal(last, "response.completed");
    },
    async error() {
      const error = await fails(() => create({ messages: user("bad") }));
      equal([error.status, error.code, error.param], [400, "context_length_exceeded", "messages"]);
    },
    async retry() {
      equal(content(await create({ messages: user(`busy:${nonce}`) })), "Hello.");
    },
    async abort() {
      const stopping = new AbortController();
      const stream = await create({ messages: user("endless"), stream: true }, { signal: stopping.signal });
      for await (const _ of stream) {
        stopping.abort();
        break;
      }
      await clientLeft(controlUrl);
    },
    async broken() {
      await fails(async () => {
        for await (const _ of await create({ messages: user("broken"), stream: true }));
      });
    },
    async ids() {
      const { response } = await client.chat.completions
        .create({ model, messages: user("chat") })
        .withResponse();
      return response.headers.get("X-Proxy-Request-Id");
    },
  };
}
