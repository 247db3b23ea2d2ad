// The Vercel AI SDK with its provider for OpenAI-compatible servers.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { clientLeft, equal, fails, outcomes } from "./checks.mjs";

const { BASE_URL, API_KEY, CONTROL_URL, SESSION, NONCE } = process.env;
const lab = createOpenAICompatible({
  name: "lab",
  baseURL: BASE_URL,
  apiKey: API_KEY,
  headers: { "X-Session-Id": SESSION, "X-Client": "check" },
  includeUsage: true,
});
const model = lab("kimi");
const quiet = { onError() {} };

const checks = {
  async chat() {
    const { text, usage } = await generateText({ model, prompt: "Please: chat" });
    equal([text, usage.totalTokens], ["Hello.", 10]);
  },
  async stream() {
    let text = "";
    for await (const piece of streamText({ model, prompt: "Please: chat" }).textStream) text += piece;
    equal(text, "Hello.");
  },
  async usage() {
    const result = streamText({ model, prompt: "Please: chat" });
    await result.consumeStream();
    equal((await result.usage).totalTokens, 10);
  },
  async tools() {
    const inputSchema = z.object({ city: z.string() });
    const get_weather = tool({ inputSchema, execute: async () => "18 degrees" });
    const stopWhen = stepCountIs(3);
    const { text } = await generateText({ model, tools: { get_weather }, stopWhen, prompt: "Please: weather" });
    equal(text, "It is 18 degrees.");
  },
  async structured() {
    const schema = z.object({ name: z.string(), share: z.number() });
    const output = Output.object({ schema });
    const result = await generateText({ model, output, prompt: "Please: structured" });
    equal(result.output.name, "Nevada");
  },
  async thinking() {
    const providerOptions = { lab: { enable_thinking: true } };
    const { text } = await generateText({ model, providerOptions, prompt: "Please: think" });
    equal(text, "thinking: true");
  },
  async embeddings() {
    const { embeddings } = await embedMany({ model: lab.textEmbeddingModel("kimi"), values: ["a", "b"] });
    equal(embeddings, [[0.5, -0.25], [0.5, -0.25]]);
  },
  async error() {
    const error = await fails(() => generateText({ model, prompt: "Please: bad" }));
    equal([error.statusCode, error.message], [400, "The prompt is too long."]);
  },
  async retry() {
    const { text } = await generateText({ model, prompt: `Please: busy:${NONCE}` });
    equal(text, "Hello.");
  },
  async abort() {
    const stopping = new AbortController();
    const { signal } = stopping;
    const result = streamText({ model, prompt: "Please: endless", abortSignal: signal, ...quiet });
    for await (const _ of result.textStream) stopping.abort();
    await clientLeft(CONTROL_URL);
  },
  async broken() {
    const parts = [];
    await fails(async () => {
      for await (const part of streamText({ model, prompt: "Please: broken", ...quiet }).fullStream) {
        if (part.type === "error") throw part.error;
        parts.push(part.type);
      }
      return parts;
    });
  },
  async ids() {
    const { response } = await generateText({ model, prompt: "Please: chat" });
    return response.headers["x-proxy-request-id"];
  },
};
console.log(JSON.stringify(await outcomes(checks)));
