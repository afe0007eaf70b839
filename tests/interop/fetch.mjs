// fetch of Node through balancer: fetch.mjs FRONT
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';

const [front] = process.argv.slice(2);
const SIZE = 3_000_000;
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

const got = await fetch(`${front}/bytes/${SIZE}`);
assert.equal(got.headers.get('x-sha256'), sha256(Buffer.from(await got.arrayBuffer())));
const head = await fetch(`${front}/bytes/${SIZE}`, { method: 'HEAD' });
assert.equal(head.headers.get('content-length'), String(SIZE));
const body = Buffer.alloc(SIZE, 'body');
const parts = async function* () { for (let at = 0; at < SIZE; at += 65536) yield body.subarray(at, at + 65536); };
for (const form of [body, parts()]) {
  const sent = await fetch(`${front}/sha256`, { method: 'POST', body: form, duplex: 'half' });
  assert.equal(await sent.text(), sha256(body));
}
const together = await Promise.all(Array.from({ length: 8 }, () => fetch(`${front}/together`)));
for (const answer of together) assert.equal(await answer.text(), 'together');
const aborted = new AbortController();
const endless = await fetch(`${front}/endless`, { signal: aborted.signal });
for await (const part of endless.body) { assert.ok(part.length > 0); break; }
aborted.abort();
assert.equal(await (await fetch(`${front}/given-up`)).text(), 'given up');
console.log(`Node ${process.version}, undici ${process.versions.undici}: fetch from ${front}`);
