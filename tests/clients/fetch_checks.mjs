// What a page does without a library: fetch with a key, which needs a preflight, and a body stream.

import { clientLeft, equal, fails, user } from "./checks.mjs";

export function fetchChecks({ baseURL, apiKey, controlUrl, session, nonce }) {
  const headers = {
    Authorization: `Bearer ${apiKey}`,
    "Content-Type": "application/json",
    "X-Session-Id": session,
    "X-Client": "check",
  };
  const ask = (word, more = {}, options = {}) => {
    const body = JSON.stringify({ model: "kimi", messages: user(word), ...more });
    return fetch(`${baseURL}/chat/completions`, { method: "POST", headers, body, ...options });
  };
  async function* lines(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const found = (rest + value).split("\n");
      rest = found.pop();
      yield* found.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
    }
  }
  const streamed = async (word) => {
    const data = [];
    for await (const line of lines(await ask(word, { stream: true }))) data.push(line);
    return data;
  };
  return {
    async chat() {
      const answer = await (await ask("chat")).json();
      equal(answer.choices[0].message.content, "Hello.");
    },
    async stream() {
      const data = await streamed("chat");
      equal(data.pop(), "[DONE]");
      const deltas = data.map((line) => JSON.parse(line).choices[0].delta.content ?? "");
      equal(deltas.join(""), "Hello.");
    },
    async thinking() {
      const answer = await (await ask("think", { enable_thinking: true })).json();
      equal(answer.choices[0].message.content, "thinking: true");
    },
    async models() {
      const { data } = await (await fetch(`${baseURL}/models`, { headers })).json();
      equal(data.some((model) => model.id === "kimi"), true);
    },
    async error() {
      const response = await ask("bad");
      equal(response.status, 400);
      equal((await response.json()).error.code, "context_length_exceeded");
    },
    async abort() {
      const stopping = new AbortController();
      const response = await ask("endless", { stream: true }, { signal: stopping.signal });
      await response.body.getReader().read();
      stopping.abort();
      await clientLeft(controlUrl);
    },
    // A page sees a broken stream as an error of the reader, or as an event, and without [DONE].
    async broken() {
      const data = [];
      const error = await fails(async () => {
        for await (const line of lines(await ask("broken", { stream: true }))) {
          data.push(line);
          const { error } = JSON.parse(line);
          if (error) throw new Error(error.message);
        }
        return data;
      });
      equal([data.includes("[DONE]"), Boolean(error.message)], [false, true]);
    },
    async ids() {
      return (await ask("chat")).headers.get("X-Proxy-Request-Id");
    },
  };
}
