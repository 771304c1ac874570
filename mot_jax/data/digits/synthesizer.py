"""Runs espeak-ng in a process of its own: words on stdin as JSON, 16-bit samples on stdout.

Its own process, because the synthesiser's noise depends on everything it said before: only a fresh one says the same
twice. Started as a file by `speech.py`, so it imports nothing of this package.
"""

import ctypes
import json
import struct
import sys

SYNCHRONOUS, DONT_EXIT = 2, 0x8000  # espeak_AUDIO_OUTPUT; an option of espeak_Initialize
RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
UTF8 = 1
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


def main() -> str | None:
    """Says every request; returns what went wrong, if anything did.

    In: {"library", "data": paths, "seed", "requests": [[text, voice, words a minute, pitch, pitch range], …]}, pitches
    0..99. Out: the sample rate, then for every request the number of samples and the samples; all little-endian.
    """
    job = json.load(sys.stdin)
    espeak = ctypes.CDLL(job["library"])
    sample_rate = espeak.espeak_Initialize(SYNCHRONOUS, 0, job["data"].encode(), DONT_EXIT)
    if sample_rate <= 0:
        return f"espeak-ng cannot read its data in {job['data']} (a very long path?)"
    pieces = []

    def collect(samples, count, events):
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = Callback(collect)
    espeak.espeak_SetSynthCallback(callback)
    espeak.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    espeak.espeak_ng_SetRandSeed(ctypes.c_long(job["seed"]))
    out = sys.stdout.buffer
    out.write(struct.pack("<i", sample_rate))
    for text, voice, rate, pitch, pitch_range in job["requests"]:
        if espeak.espeak_SetVoiceByName(voice.encode()) != 0:
            return f"espeak-ng has no voice {voice!r}"
        for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, pitch_range)):
            if espeak.espeak_SetParameter(parameter, value, 0) != 0:
                return f"espeak-ng does not take the value {value} of parameter {parameter}"
        pieces.clear()
        data = text.encode() + b"\0"
        if espeak.espeak_Synth(data, len(data), 0, 0, 0, UTF8, None, None) != 0 or espeak.espeak_Synchronize() != 0:
            return f"espeak-ng could not say {text!r} as {voice!r}"
        waveform = b"".join(pieces)
        if not waveform.strip(b"\0"):
            return f"espeak-ng said nothing for {text!r} as {voice!r}"
        out.write(struct.pack("<i", len(waveform) // 2))
        out.write(waveform)
    return None


if __name__ == "__main__":
    sys.exit(main())
