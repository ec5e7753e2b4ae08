// `node --test site/explorer`: the port's answers to the frozen vectors.
import { test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { answer, misfit, notOffered, readTensors } from "./vectors.mjs";

const folder = new URL("../../conformance/vectors/", import.meta.url);
const { vectors } = JSON.parse(readFileSync(new URL("manifest.json", folder)));
const tensors = readTensors(readFileSync(new URL("vectors.safetensors", folder)));

for (const vector of vectors)
  test(`${vector.id}: ${vector.shows}`, (t) => {
    const reason = notOffered(vector);
    if (reason) return t.skip(`not offered: ${reason}`);
    if (vector.expect[0].kind === "raises")
      return assert.throws(() => answer(vector, tensors), RangeError);
    const given = answer(vector, tensors);
    for (const part of vector.expect)
      assert.equal(misfit(part, given[part.tensor], tensors), null);
  });
