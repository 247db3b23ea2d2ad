// What the scripts for Node and the browser share; see checks.py.

export function equal(found, expected) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(expected)];
  if (a !== b) throw new Error(`${a} instead of ${b}`);
}

export async function fails(call) {
  let result;
  try {
    result = await call();
  } catch (error) {
    return error;
  }
  throw new Error(`no error, but ${JSON.stringify(result)}`);
}

export const user = (word) => [{ role: "user", content: `Please: ${word}` }];

// Waits until the provider has seen the client of an endless stream leave.
export async function clientLeft(controlUrl) {
  equal(await (await fetch(`${controlUrl}/left`)).json(), { left: true });
}

export async function outcomes(checks) {
  const results = {};
  let requestId = null;
  for (const [name, check] of Object.entries(checks)) {
    try {
      const returned = await check();
      results[name] = null;
      if (name === "ids") requestId = returned;
    } catch (error) {
      results[name] = `${error?.name}: ${error?.message ?? error}`.slice(0, 500);
    }
  }
  return { results, request_id: requestId };
}
