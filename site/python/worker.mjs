// One Python in a worker: the page stays responsive, and code that does not end is ended with it.
import { loadPyodide } from "./pyodide/pyodide.mjs";

const tell = (loading) => postMessage({ loading });

async function archive(name) {
  const reply = await fetch(new URL(name, import.meta.url));
  if (!reply.ok) throw new Error(`${name} must be beside the page: got ${reply.status}`);
  return reply.arrayBuffer();
}

async function start() {
  tell("the interpreter and NumPy");
  const own = archive("attn_numpy.zip");
  const interpreter = await loadPyodide({
    indexURL: new URL("pyodide/", import.meta.url).href,
    packages: ["numpy", "jaxtyping", "threadpoolctl"],
  });
  tell("attn_numpy");
  interpreter.unpackArchive(await own, "zip");
  const page = interpreter.pyimport("page");
  tell(null);
  return [interpreter, page];
}

/** Make something once; where that fails, the next call tries anew. */
function once(make) {
  let made;
  return (...given) => (made ??= make(...given).catch((error) => {
    made = undefined;
    throw error;
  }));
}

const python = once(start);
const judge = once(async (interpreter) =>
  interpreter.unpackArchive(await archive("conformance.zip"), "zip")); // what only judging needs

onmessage = async ({ data: { id, what, given } }) => {
  try {
    const [interpreter, page] = await python();
    if (what !== "run") await judge(interpreter);
    const begun = performance.now();
    const html = page[what](...given);
    postMessage({ id, html, ms: Math.round(performance.now() - begun) });
  } catch (error) {
    postMessage({ id, error: String(error.message ?? error).trim().split("\n").at(-1) });
  }
};
