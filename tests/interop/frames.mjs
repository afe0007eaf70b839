// Frames of the WebSocket protocol, RFC 6455 section 5.
import { randomBytes } from 'node:crypto';

const apply = (mask, payload) => payload.map((byte, at) => byte ^ mask[at % 4]);

// One whole message as a frame; clients mask theirs.
export function frame(opcode, payload, isMasked) {
  const length = payload.length;
  const head = Buffer.alloc(length < 126 ? 2 : length < 65536 ? 4 : 10);
  head[0] = 0x80 | opcode;
  head[1] = length < 126 ? length : length < 65536 ? 126 : 127;
  if (head.length === 4) head.writeUInt16BE(length, 2);
  if (head.length === 10) head.writeBigUInt64BE(BigInt(length), 2);
  if (!isMasked) return Buffer.concat([head, payload]);
  head[1] |= 0x80;
  const mask = randomBytes(4);
  return Buffer.concat([head, mask, apply(mask, payload)]);
}

// Cuts what arrives into frames.
export class Frames {
  constructor(take) {
    this.take = take;
    this.waiting = Buffer.alloc(0);
  }

  push(data) {
    this.waiting = Buffer.concat([this.waiting, data]);
    while (this.one());
  }

  one() {
    const bytes = this.waiting;
    if (bytes.length < 2) return false;
    const short = bytes[1] & 127, isMasked = bytes[1] > 127;
    const size = short === 126 ? 2 : short === 127 ? 8 : 0;
    const start = 2 + size + (isMasked ? 4 : 0);
    if (bytes.length < start) return false;
    const length = size === 2 ? bytes.readUInt16BE(2) : size === 8 ? Number(bytes.readBigUInt64BE(2)) : short;
    if (bytes.length < start + length) return false;
    const payload = Buffer.from(bytes.subarray(start, start + length));
    this.waiting = bytes.subarray(start + length);
    this.take(bytes[0] & 15, isMasked ? apply(bytes.subarray(start - 4, start), payload) : payload);
    return true;
  }
}
