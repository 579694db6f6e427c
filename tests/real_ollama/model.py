#!/usr/bin/env python3
"""Writes a small llama model of random weights as a GGUF file, the same bytes for the same arguments.

Real Ollama needs a model to be worth testing against, and no model can be downloaded in CI. Rules of
the protocol do not depend on what the answer says, so noise is enough, if the noise behaves:

* An answer is made of different tokens. Ollama ends a stream without `done` after 31 equal tokens in a
  row (and counts runs of white space as equal), so a token here pushes itself down for the next step,
  and tokens that are white space, single bytes or control tokens are never produced.
* An answer depends on the prompt, and is the same again at temperature 0.
* An answer never ends by itself: `num_predict`, a full context or a `stop` text ends it, so that
  lengths in tests and measurements are exact.
* A prompt of printable ASCII has `characters + 2` tokens (a start token and a leading space): the words
  of the vocabulary cannot be reached by merging, they only come out.

Needs the packages `gguf` and `numpy`, nothing else. Defaults: 2.9 million parameters, 3 MB, 2048 tokens
of trained context. For measurements of contention take a model that keeps a core busy:
`--blocks 16 --embedding 640` has 66 million parameters.
"""

import argparse
import os
import string

import gguf
import numpy

TRAINED_CONTEXT = 2048
HEAD_WIDTH = 64
RMS_EPSILON = 1e-5

# Standard deviation of a logit: high enough that temperature 0.8 prefers something, low enough that it varies.
LOGIT_SPREAD = 2.0
# How strongly a token pushes itself down for the next step, in units of a logit's spread per unit of cosine.
SELF_REJECTION = 0.6
# Logit that is taken from tokens which must never be produced.
NEVER = 60.0

UNKNOWN, START, END = 0, 1, 2
NORMAL_TYPE, UNKNOWN_TYPE, CONTROL_TYPE, BYTE_TYPE = 1, 2, 3, 6

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"


def vocabulary(size):
    """Pieces, token types and which tokens may be produced; 3 control, 256 byte, 95 character tokens, then words."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [UNKNOWN_TYPE, CONTROL_TYPE, CONTROL_TYPE] + [BYTE_TYPE] * 256
    characters = ["▁"] + [c for c in map(chr, range(33, 127))]
    letters = [c in string.ascii_letters + string.digits for c in characters]
    produced = [False] * len(pieces) + letters
    pieces += characters
    # Words of five letters: none of their parts of two to four letters is a token, so no prompt merges into one.
    words = (
        f"▁{a}{x}{b}{y}{c}"
        for c in CONSONANTS
        for y in VOWELS
        for b in CONSONANTS
        for x in VOWELS
        for a in CONSONANTS
    )
    stride = 37
    for index, word in enumerate(words):
        if len(pieces) == size:
            break
        if index % stride == 0:
            pieces.append(word)
            produced.append(True)
    types += [NORMAL_TYPE] * (len(pieces) - len(types))
    if len(pieces) != size:
        raise SystemExit(f"a vocabulary of {size} tokens cannot be filled")
    return pieces, types, numpy.array(produced)


def write(path, blocks, embedding, feed_forward, vocab, seed):
    """Writes the model to `path`, by a rename, so that a reader sees all of it or nothing; returns the parameter count."""
    if embedding % HEAD_WIDTH:
        raise SystemExit(f"--embedding must be a multiple of {HEAD_WIDTH}")
    random = numpy.random.Generator(numpy.random.PCG64(seed))
    pieces, types, produced = vocabulary(vocab)
    heads = embedding // HEAD_WIDTH

    temporary = f"{path}.{os.getpid()}.part"
    out = gguf.GGUFWriter(temporary, "llama")
    out.add_context_length(TRAINED_CONTEXT)
    out.add_embedding_length(embedding)
    out.add_block_count(blocks)
    out.add_feed_forward_length(feed_forward)
    out.add_head_count(heads)
    out.add_head_count_kv(heads)
    out.add_layer_norm_rms_eps(RMS_EPSILON)
    out.add_rope_dimension_count(HEAD_WIDTH)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_tokenizer_model("llama")
    out.add_token_list(pieces)
    out.add_token_scores([-float(index) for index in range(vocab)])
    out.add_token_types(types)
    out.add_unk_token_id(UNKNOWN)
    out.add_bos_token_id(START)
    out.add_eos_token_id(END)

    count = 0

    def add(name, values):
        nonlocal count
        count += values.size
        values = values.astype(numpy.float32)
        if values.ndim == 1:
            out.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            out.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def noise(rows, columns, spread=1.0):
        """A matrix that turns a vector of unit entries into one of entries with this spread."""
        return random.standard_normal((rows, columns), dtype=numpy.float32) * (spread / numpy.sqrt(columns))

    # Entry 0 of the hidden state is the same for every token and no block writes to it, so column 0 of the
    # output matrix is a bias per token. The llama architecture has no other.
    tokens = random.standard_normal((vocab, embedding), dtype=numpy.float32)
    tokens[:, 0] = 4.0
    add("token_embd.weight", tokens)
    for block in range(blocks):
        prefix = f"blk.{block}"
        add(f"{prefix}.attn_norm.weight", numpy.ones(embedding))
        add(f"{prefix}.ffn_norm.weight", numpy.ones(embedding))
        # Sharp attention: a few earlier tokens count, so that the prompt shows in the answer.
        add(f"{prefix}.attn_q.weight", noise(embedding, embedding, 1.7))
        add(f"{prefix}.attn_k.weight", noise(embedding, embedding, 1.7))
        add(f"{prefix}.attn_v.weight", noise(embedding, embedding))
        merge = noise(embedding, embedding, 0.8)
        merge[0] = 0.0
        add(f"{prefix}.attn_output.weight", merge)
        add(f"{prefix}.ffn_gate.weight", noise(feed_forward, embedding))
        add(f"{prefix}.ffn_up.weight", noise(feed_forward, embedding))
        down = noise(embedding, feed_forward, 0.8)
        down[0] = 0.0
        add(f"{prefix}.ffn_down.weight", down)
    add("output_norm.weight", numpy.ones(embedding))
    output = noise(vocab, embedding, LOGIT_SPREAD)
    output -= tokens * (SELF_REJECTION * LOGIT_SPREAD / numpy.sqrt(embedding))
    # The final norm leaves entry 0 at about 1 or more, whatever the blocks added.
    output[:, 0] = numpy.where(produced, 0.0, -NEVER)
    add("output.weight", output)

    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    os.replace(temporary, path)
    return count


def main():
    """Parses the arguments and writes one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="the GGUF file to write")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--embedding", type=int, default=256, help=f"a multiple of {HEAD_WIDTH}; default 256")
    parser.add_argument("--feed-forward", type=int, help="default: twice the embedding")
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    count = write(
        args.path, args.blocks, args.embedding, args.feed_forward or 2 * args.embedding, args.vocab, args.seed
    )
    print(f"{args.path}: {count} parameters, {os.path.getsize(args.path)} bytes")


if __name__ == "__main__":
    main()
