"""Mutations of real files: images with hostile headers, damaged bytes, texts that are none."""

import gzip
import json
import re
import struct
import zlib

import numpy as np

DIMS = (-32768, -1, 0, 1, 2, 5, 7, 40, 32767)
FIELDS = {  # of a NIfTI-1 header: where, and how it is packed
    "sizeof_hdr": (0, "i"), "dim": (40, "8h"), "intent_code": (68, "h"), "datatype": (70, "h"), "bitpix": (72, "h"),
    "pixdim": (76, "8f"), "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"),
    "xyzt_units": (123, "b"), "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "6f"),
    "srow": (280, "12f"), "magic": (344, "4s"),
}  # fmt: skip
FLOATS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e38, 1e-45, 352.0, 348.0, 1e9, 2.0**31)
TYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 9999, -4)
WORDS = (
    "nan", "inf", "-inf", "1e400", "-1", "0", "1e-320", "0x10", "1_000", "１００", "", " ", "\t", "\n", "\r", "\x00",
    "\ufeff", "None", "true", "9" * 400, "-0", "[", "]", "{", "}", "{}", "[[", '"', ",", ";", "=", "#", "é", "\u202e", "\U0001f600",
    "1 2 3", "../../x", "<script>", "1e5", "500", "index", "name", "roi-1", "liver", "centre", "width", "published",
    "9" * 5000, "[" * 5000, '{"a":' * 5000, "1" * 30, "\x1b[31m", "\u2028", "a" * 300, "\ud800", "participant_id", "subject", "fit", "verdict",
)  # fmt: skip


def mutate_image(data: bytes, rng: np.random.Generator) -> bytes:
    """A NIfTI image (.nii), its header or bytes changed; every fourth compressed, some badly."""
    raw = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        kind = rng.integers(6)
        if kind < 3:
            raw = _patch(raw, rng)
        elif kind == 3:
            raw = bytearray(mutate_bytes(bytes(raw), rng))
        elif kind == 4:
            values = np.frombuffer(bytes(raw[352:]), np.uint8).copy()
            values[rng.random(len(values)) < 0.05] = rng.choice([0, 127, 128, 255])  # NaN, infinity, sign
            raw = raw[:352] + bytearray(values.tobytes())
        else:
            raw = raw[: int(rng.integers(0, len(raw) + 1))]
    return bytes(raw)


def _patch(raw: bytearray, rng: np.random.Generator) -> bytearray:
    name = str(rng.choice(list(FIELDS)))
    at, form = FIELDS[name]
    if len(raw) < at + struct.calcsize("<" + form):
        return raw
    old = list(struct.unpack_from("<" + form, raw, at))
    place = int(rng.integers(len(old)))
    if name == "datatype":
        old[place] = int(rng.choice(TYPES))
    elif form[-1] in "hi" or form == "b":
        low, high = (-128, 127) if form == "b" else (-32768, 32767)
        old[place] = int(np.clip(rng.choice([*DIMS, int(rng.integers(low, high))]), low, high))
    elif form[-1] == "f":
        old[place] = float(np.float32(rng.choice(FLOATS)))
    else:
        old[place] = rng.bytes(4)
    struct.pack_into("<" + form, raw, at, *old)
    return raw


def compress(data: bytes, rng: np.random.Generator) -> bytes:
    """Gzip it, sometimes as a bomb, sometimes broken."""
    kind = rng.integers(8)
    if kind == 0:
        data = data + bytes(int(rng.integers(1, 20)) << 20)
    packed = gzip.compress(data, 1, mtime=0)
    if kind == 1:
        packed = mutate_bytes(packed, rng)
    elif kind == 2:
        packed = packed[: int(rng.integers(len(packed)))]
    elif kind == 3:
        packed = packed + packed
    elif kind == 4:
        packed = zlib.compress(data)
    return packed


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, cut out, doubled or put in."""
    raw = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 7]))):
        if not raw:
            return rng.bytes(int(rng.integers(64)))
        at, size = int(rng.integers(len(raw))), int(rng.integers(1, 64))
        kind = rng.integers(5)
        if kind < 2:
            raw[at] = int(rng.integers(256))
        elif kind == 2:
            del raw[at : at + size]
        elif kind == 3:
            raw[at:at] = raw[at : at + size]
        else:
            raw[at:at] = rng.bytes(size)
    return bytes(raw)


def mutate_text(data: bytes, rng: np.random.Generator) -> bytes:
    """Words and characters of a text exchanged, or its encoding."""
    text = data.decode("utf-8")
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        parts = re.split(r"(\s+)", text) if rng.random() < 0.6 else list(text) or [""]
        at, kind = int(rng.integers(len(parts))), rng.integers(4)
        word = str(rng.choice(WORDS))
        if kind == 0:
            parts[at] = word
        elif kind == 1:
            parts.insert(at, word)
        elif kind == 2:
            del parts[at : at + int(rng.integers(1, 9))]
        else:
            parts[at:at] = parts[at : at + int(rng.integers(1, 40))]
        text = "".join(parts)
    kind = rng.integers(20)
    if kind == 0:
        return text.encode("utf-16", "surrogatepass")
    if kind == 1:
        return mutate_bytes(text.encode("utf-8", "surrogatepass"), rng)
    if kind == 2:
        return json.dumps([text] * 3).encode()
    return text.encode("utf-8", "surrogatepass")
