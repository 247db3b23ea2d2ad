// The openai package in Node.

import OpenAI from "openai";
import { outcomes } from "./checks.mjs";
import { openaiChecks } from "./openai_checks.mjs";

const { BASE_URL, API_KEY, CONTROL_URL, SESSION, NONCE } = process.env;
const place = { baseURL: BASE_URL, apiKey: API_KEY, controlUrl: CONTROL_URL };
const checks = openaiChecks(OpenAI, { ...place, session: SESSION, nonce: NONCE });
console.log(JSON.stringify(await outcomes(checks)));
