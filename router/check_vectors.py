#!/usr/bin/env python3
"""Checks vectors.json with an implementation of its own: `python3 check_vectors.py [FILE]`.

It follows docs/how-to/produce-from-another-language.md step by step, uses the standard library only and
nothing of the Rust code. Copy what you need.
Exit code: 0 if all agrees, 1 if anything differs, with each difference on a line of its own.
"""

import json
import pathlib
import re
import sys
import uuid

MASK = 0xFFFFFFFF


def rotate(word, bits):
    return ((word << bits) | (word >> (32 - bits))) & MASK


def signed(word):
    return word - (1 << 32) if word >> 31 else word


# PostgreSQL's lookup3: every addition and subtraction modulo 2^32.


def mix(a, b, c):
    a = (a - c) & MASK ^ rotate(c, 4)
    c = (c + b) & MASK
    b = (b - a) & MASK ^ rotate(a, 6)
    a = (a + c) & MASK
    c = (c - b) & MASK ^ rotate(b, 8)
    b = (b + a) & MASK
    a = (a - c) & MASK ^ rotate(c, 16)
    c = (c + b) & MASK
    b = (b - a) & MASK ^ rotate(a, 19)
    a = (a + c) & MASK
    c = (c - b) & MASK ^ rotate(b, 4)
    b = (b + a) & MASK
    return a, b, c


def finish(a, b, c):
    c = ((c ^ b) - rotate(b, 14)) & MASK
    a = ((a ^ c) - rotate(c, 11)) & MASK
    b = ((b ^ a) - rotate(a, 25)) & MASK
    c = ((c ^ b) - rotate(b, 16)) & MASK
    a = ((a ^ c) - rotate(c, 4)) & MASK
    b = ((b ^ a) - rotate(a, 14)) & MASK
    c = ((c ^ b) - rotate(b, 24)) & MASK
    return c


def lookup3_start(length):
    return (0x9E3779B9 + length + 3923095) & MASK


def lookup3_bytes(data):
    a = b = c = lookup3_start(len(data))
    whole = len(data) - len(data) % 12
    for at in range(0, whole, 12):
        x, y, z = (int.from_bytes(data[at + i : at + i + 4], "little") for i in (0, 4, 8))
        a, b, c = mix((a + x) & MASK, (b + y) & MASK, (c + z) & MASK)
    tail = data[whole:]
    a += int.from_bytes(tail[0:4], "little")
    b += int.from_bytes(tail[4:8], "little")
    c += int.from_bytes(tail[8:11], "little") << 8
    return finish(a & MASK, b & MASK, c & MASK)


def lookup3_int8(number):
    low, high = number & MASK, (number >> 32) & MASK
    folded = low ^ (high if number >= 0 else high ^ MASK)
    start = lookup3_start(4)
    return finish((start + folded) & MASK, start, start)


# murmur3_x86_32 with seed 0.


def murmur3_scramble(word):
    return rotate(word * 0xCC9E2D51 & MASK, 15) * 0x1B873593 & MASK


def murmur3(data):
    state = 0
    whole = len(data) - len(data) % 4
    for at in range(0, whole, 4):
        state ^= murmur3_scramble(int.from_bytes(data[at : at + 4], "little"))
        state = (rotate(state, 13) * 5 + 0xE6546B64) & MASK
    state ^= murmur3_scramble(int.from_bytes(data[whole:], "little"))
    state ^= len(data)
    state = (state ^ state >> 16) * 0x85EBCA6B & MASK
    state = (state ^ state >> 13) * 0xC2B2AE35 & MASK
    return state ^ state >> 16


def read(key_type, text):
    """The value of a key's text; ValueError for a text that is no key of this type."""
    if key_type == "uuid" and re.fullmatch("-".join(f"[0-9a-fA-F]{{{n}}}" for n in (8, 4, 4, 4, 12)), text):
        return uuid.UUID(text).bytes
    if key_type == "int8" and re.fullmatch("0|-?[1-9][0-9]*", text) and -(1 << 63) <= int(text) < 1 << 63:
        return int(text)
    if key_type == "text" and text != "" and "\0" not in text:
        return text.encode()
    raise ValueError(f"{text!r} is not a key of type {key_type}")


def hash_i32(hash_id, key_type, value):
    if hash_id == "pg-lookup3-1":
        return signed(lookup3_int8(value) if key_type == "int8" else lookup3_bytes(value))
    if hash_id == "murmur3-x86-32-seed0-1":
        return signed(murmur3(value.to_bytes(8, "little", signed=True) if key_type == "int8" else value))
    raise ValueError(f"unknown hash {hash_id}")


def owner(runs, slot):
    """The owner of `slot` in a table of runs [first_slot, last_slot, owner]."""
    return next(owner for first, last, owner in runs if first <= slot <= last)


def route(file, hash_id, key_type, text):
    # The empty text has a hash, which its vector is for, though it is refused as a key.
    value = b"" if (key_type, text) == ("text", "") else read(key_type, text)
    hashed = hash_i32(hash_id, key_type, value)
    token = (hashed & MASK) ^ 0x80000000
    slot = token >> 20
    map_ = file["maps"][hash_id]
    return {
        "hash_i32": hashed,
        "token": token,
        "slot": slot,
        "partition": owner(map_["partitions"], slot),
        "shard": owner(map_["shards"], slot),
    }


def differences(file):
    if file["slot_count"] != 1 << 12:
        yield f"slot_count is {file['slot_count']}, not 4096"
    for vector in file["vectors"]:
        name = f"{vector['hash']} {vector['key_type']} {vector['key']!r}"
        for field, ours in route(file, vector["hash"], vector["key_type"], vector["key"]).items():
            if vector[field] != ours:
                yield f"{name}: {field} is {vector[field]} in the file, {ours} by the words"
    for refused in file["refused"]:
        try:
            value = read(refused["key_type"], refused["key"])
        except ValueError:
            continue
        yield f"{refused['key_type']} {refused['key']!r} was read as {value!r}, but is to be refused"


def main():
    beside = pathlib.Path(__file__).with_name("vectors.json")
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else beside
    file = json.loads(path.read_text(encoding="utf-8"))
    found = list(differences(file))
    for line in found:
        print(line)
    print(f"{len(file['vectors'])} vectors, {len(file['refused'])} refused keys, {len(found)} differences")
    sys.exit(1 if found or not file["vectors"] else 0)


if __name__ == "__main__":
    main()
