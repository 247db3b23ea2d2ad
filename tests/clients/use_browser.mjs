// Chromium on a page of another origin: `fetch` by hand, or with OPENAI=1 the openai package.
// MODULES names the folder of npm's packages, which the page loads from its own origin.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const { BASE_URL, API_KEY, CONTROL_URL, SESSION, NONCE, MODULES, CHROMIUM, OPENAI } = process.env;
const here = fileURLToPath(new URL(".", import.meta.url));
const page = "<!doctype html><meta charset=utf-8><title>checks</title>";
const importMap = `<script type="importmap">{"imports": {"openai": "/modules/openai/index.mjs"}}</script>`;

async function answer(path) {
  if (path === "/") return [page + importMap, "text/html"];
  const isModule = path.startsWith("/modules/");
  const file = normalize(isModule ? join(MODULES, path.slice("/modules/".length)) : join(here, path));
  if (![".mjs", ".js"].includes(extname(file))) throw new Error(path);
  return [await readFile(file), "text/javascript"];
}

const server = createServer((request, response) => {
  answer(new URL(request.url, "http://page").pathname).then(
    ([body, type]) => response.writeHead(200, { "Content-Type": type }).end(body),
    () => response.writeHead(404).end(),
  );
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const origin = `http://localhost:${server.address().port}`;
const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
try {
  const tab = await browser.newPage();
  await tab.goto(origin);
  const place = { baseURL: BASE_URL, apiKey: API_KEY, controlUrl: CONTROL_URL };
  const given = { ...place, session: SESSION, nonce: NONCE };
  const found = await tab.evaluate(
    async ([given, withOpenai]) => {
      const { outcomes } = await import("/checks.mjs");
      if (withOpenai) {
        const { default: OpenAI } = await import("openai");
        const { openaiChecks } = await import("/openai_checks.mjs");
        const inPage = { ...given, dangerouslyAllowBrowser: true };
        return await outcomes(openaiChecks(OpenAI, inPage));
      }
      const { fetchChecks } = await import("/fetch_checks.mjs");
      return await outcomes(fetchChecks(given));
    },
    [given, Boolean(OPENAI)],
  );
  console.log(JSON.stringify({ ...found, version: browser.version() }));
} finally {
  await browser.close();
  server.close();
}
