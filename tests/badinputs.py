"""A corpus of broken and hostile checkpoint folders, written with the standard library alone.

    python tests/badinputs.py OUT      write everything, and OUT/manifest.json
    python tests/badinputs.py --list   print id, verdict and label of every case

OUT/_good/base and OUT/_good/ft are two sound tiny Llama checkpoints (hidden size 8, 2 layers,
float32). Every other folder is one broken *variant of ft*; a test merges _good/base with it and
compares what happened with the manifest entry:

  verdict  "error": exit code not 0; message names every string in `names`; no output folder (nor
                    temporary file) left behind; no traceback; memory below `max_rss_mb` and time
                    below `max_seconds`; `forbidden` paths do not exist afterwards.
           "ok":    exit code 0 and a valid output; `note` says what must be true of it.
           "warn":  exit code 0, a valid output, and a warning that names every string in `names`.

Nothing here harms: the hostile pickles only try to create an empty folder named PWNED next to
themselves. Some cases need a Unix file system (symlinks, a named pipe, a sparse file); they are
skipped, and listed as skipped in the manifest, where the system refuses.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import stat
import struct
import sys
import zipfile

SIZE = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
V, H, INNER, L = 32, 8, 16, 2  # vocabulary, hidden, intermediate, layers


# ------------------------------------------------------------------ writing safetensors by hand


def f32(values):
    return struct.pack(f"<{len(values)}f", *values)


def bf16(values):
    return b"".join(struct.pack("<f", v)[2:] for v in values)


def f16(values):
    return struct.pack(f"<{len(values)}e", *values)


def numel(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def raw(path, header, data=b"", length=None):
    """8 bytes of length, the header (bytes or an object), the data: exactly as told."""
    h = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(h) if length is None else length))
        f.write(h)
        f.write(data)


def lay_out(tensors, metadata=None):
    """{name: (dtype, shape, bytes)} -> (header object, data)."""
    header = {"__metadata__": {"format": "pt"} if metadata is None else metadata}
    data = b""
    for name, (dtype, shape, buf) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(buf)]}
        data += buf
    return header, data


def good_file(path, tensors, metadata=None):
    header, data = lay_out(tensors, metadata)
    h = json.dumps(header, separators=(",", ":")).encode()
    raw(path, h + b" " * (-len(h) % 8), data)


def llama(seed, dtype="F32", tied=False, vocab=V):
    rnd = random.Random(seed)
    enc = {"F32": f32, "BF16": bf16, "F16": f16}[dtype]
    t = {}

    def add(name, *shape):
        t[name] = (dtype, shape, enc([rnd.gauss(0, 0.1) for _ in range(numel(shape))]))

    add("model.embed_tokens.weight", vocab, H)
    for i in range(L):
        p = f"model.layers.{i}."
        for n in ("q", "k", "v", "o"):
            add(f"{p}self_attn.{n}_proj.weight", H, H)
        add(p + "mlp.gate_proj.weight", INNER, H)
        add(p + "mlp.up_proj.weight", INNER, H)
        add(p + "mlp.down_proj.weight", H, INNER)
        add(p + "input_layernorm.weight", H)
        add(p + "post_attention_layernorm.weight", H)
    add("model.norm.weight", H)
    if not tied:
        add("lm_head.weight", vocab, H)
    return t


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": H,
    "intermediate_size": INNER,
    "num_hidden_layers": L,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": V,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
}


def config(folder, **over):
    cfg = dict(CONFIG, **over)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump({k: v for k, v in cfg.items() if v is not None}, f, indent=1)


def index(folder, weight_map, total=None, name="model.safetensors.index.json"):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump({"metadata": {"total_size": total or 0}, "weight_map": weight_map}, f)


def sharded(folder, seed=2, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    t = llama(seed)
    keys = list(t)
    half = len(keys) // 2
    parts = [{k: t[k] for k in keys[:half]}, {k: t[k] for k in keys[half:]}]
    for n, part in zip(names, parts, strict=False):
        good_file(os.path.join(folder, n), part)
    wm = {k: n for n, part in zip(names, parts, strict=False) for k in part}
    index(folder, wm, sum(len(v[2]) for v in t.values()))
    return t, wm


# ----------------------------------------------------------------------------------- the cases

CASES = []


def case(verdict, label, names=(), note="", forbidden=(), max_rss_mb=600, max_seconds=30, cfg=True):
    def wrap(fn):
        CASES.append(
            {
                "id": fn.__name__,
                "verdict": verdict,
                "label": label,
                "names": list(names),
                "note": note,
                "forbidden": list(forbidden),
                "max_rss_mb": max_rss_mb,
                "max_seconds": max_seconds,
                "make": fn,
                "cfg": cfg,
            }
        )
        return fn

    return wrap


M = "model.safetensors"
Q0 = "model.layers.0.self_attn.q_proj.weight"


def ft():
    return llama(2)


def edit(folder, change, seed=2):
    """A good file whose header object was changed by `change(header, data) -> data or None`."""
    header, data = lay_out(llama(seed))
    out = change(header, data)
    raw(os.path.join(folder, M), header, data if out is None else out)


# -- the container ---------------------------------------------------------------------------


@case("error", "empty file", [M])
def empty_file(d):
    open(os.path.join(d, M), "wb").close()


@case("error", "header length 0, nothing else", [M])
def header_length_zero(d):
    raw(os.path.join(d, M), b"", b"")


@case("error", "header length points past the end of the file", [M])
def header_past_eof(d):
    header, data = lay_out(ft())
    raw(os.path.join(d, M), header, data, length=10_000_000)


@case("error", "header of 100,000,001 bytes in a sparse file (over the format's cap of 100 MB)", [M], max_rss_mb=500)
def header_over_cap(d):
    with open(os.path.join(d, M), "wb") as f:
        f.write(struct.pack("<Q", 100_000_001))
        f.truncate(8 + 100_000_001)


@case(
    "error",
    "30 MB of legal padding in the header: within the format's cap, over the 25 MB that Hub clients read",
    [M],
    note="ok is also acceptable where the documented limit is 100 MB; state the limit",
    max_rss_mb=700,
)
def header_padded_30mb(d):
    header, data = lay_out(ft())
    raw(os.path.join(d, M), json.dumps(header).encode() + b" " * 30_000_000, data)


@case("error", "header is not JSON", [M])
def header_not_json(d):
    raw(os.path.join(d, M), b"{'a': 1}", b"")


@case("error", "header is a JSON list", [M])
def header_is_list(d):
    raw(os.path.join(d, M), b"[1, 2, 3]", b"")


@case("error", "header padded with NUL bytes instead of spaces", [M])
def header_nul_padding(d):
    header, data = lay_out(ft())
    raw(os.path.join(d, M), json.dumps(header).encode() + b"\0" * 5, data)


@case("error", "100,000 nested brackets in the header", [M])
def header_deep_nesting(d):
    raw(os.path.join(d, M), b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"")


@case("error", "__metadata__ holds a number", [M])
def metadata_number(d):
    edit(d, lambda h, b: h.update(__metadata__={"format": "pt", "step": 3}))


@case(
    "ok",
    "__metadata__ holds terminal escapes, newlines, HTML and Markdown",
    [M],
    note="no raw ESC byte on the terminal; escaped in the HTML report and the model card; the YAML front matter parses",
)
def metadata_injection(d):
    good_file(
        os.path.join(d, M),
        ft(),
        {
            "format": "pt",
            "note": "\x1b[2J\x1b]0;title\x07",
            "x\n---\nlicense": "---\ntags: [pwned]\n---",
            "html": "<script>alert(1)</script>",
            "md": "[x](javascript:alert(1)) | `",
        },
    )


@case("error", "the file is a saved HTML error page", [M])
def html_page(d):
    with open(os.path.join(d, M), "w", encoding="utf-8") as f:
        f.write("<!doctype html><title>404</title>Entry not found\n" * 5)


@case("error", "the file is a pickle with the name of a safetensors file", [M], forbidden=["PWNED"])
def pickle_named_safetensors(d):
    with open(os.path.join(d, M), "wb") as f:
        f.write(evil_pickle(os.path.join(d, "PWNED")))


@case(
    "error",
    "last half of the file is a hole of zeros with the right length (an interrupted preallocated download)",
    [M],
    note="cannot be told from data without a checksum: with a recorded sha256 (Hub, own manifest) it must be an error; "
    "without one 'ok' is all that can be asked, and a warning about an all-zero tensor is wanted",
)
def zero_tail(d):
    p = os.path.join(d, M)
    good_file(p, ft())
    size = os.path.getsize(p)
    os.truncate(p, size // 2)
    os.truncate(p, size)


@case("error", "trailing bytes after the last tensor (polyglot)", [M])
def trailing_bytes(d):
    header, data = lay_out(ft())
    raw(os.path.join(d, M), header, data + b"PK\x03\x04 something else entirely")


# -- tensor entries --------------------------------------------------------------------------


@case("error", "two tensors overlap", [M])
def offsets_overlap(d):
    def change(h, b):
        h["model.layers.0.self_attn.k_proj.weight"]["data_offsets"] = list(h[Q0]["data_offsets"])

    edit(d, change)


@case("error", "every tensor points at the same bytes (small file, large allocation)", [M], max_rss_mb=500)
def offsets_bomb(d):
    n = 1 << 20
    raw(
        os.path.join(d, M),
        {f"t{i}": {"dtype": "U8", "shape": [n], "data_offsets": [0, n]} for i in range(5000)},
        b"\0" * n,
    )


@case("error", "negative offset", [M])
def offsets_negative(d):
    edit(d, lambda h, b: h[Q0].update(data_offsets=[-4, 252]))


@case("error", "offsets are floats", [M])
def offsets_float(d):
    edit(d, lambda h, b: h[Q0].update(data_offsets=[float(x) + 0.5 for x in h[Q0]["data_offsets"]]))


@case("error", "three offsets", [M])
def offsets_three(d):
    edit(d, lambda h, b: h[Q0]["data_offsets"].append(0))


@case("error", "shape and byte count disagree", [M])
def shape_mismatch(d):
    edit(d, lambda h, b: h[Q0].update(shape=[H, H + 1]))


@case("error", "shape whose product wraps around 64 bits to exactly the right size", [M], max_rss_mb=500)
def shape_wraps_to_fit(d):
    # 4194305 * 4194305 * 211106198978564 = 4 modulo 2**64
    t = ft()
    header, data = lay_out(t)
    header["wrap"] = {
        "dtype": "F32",
        "shape": [4194305, 4194305, 211106198978564],
        "data_offsets": [len(data), len(data) + 16],
    }
    raw(os.path.join(d, M), header, data + b"\0" * 16)


@case(
    "ok",
    "a zero-size tensor that shares its offset with a real one (legal)",
    note="kept with its shape, or dropped with a warning",
)
def zero_size_tensor(d):
    t = {"empty": ("F32", (0, 8), b"")}
    t.update(ft())
    good_file(os.path.join(d, M), t)


@case("error", "a dimension of 2**64-1 times a dimension of 0", [M])
def shape_zero_times_max(d):
    def change(h, b):
        h["ghost"] = {"dtype": "F32", "shape": [0, 2**64 - 1], "data_offsets": [len(b), len(b)]}

    edit(d, change)


@case("error", "unknown dtype", [M])
def dtype_unknown(d):
    edit(d, lambda h, b: h[Q0].update(dtype="F31"))


@case("error", "4-bit tensor with an odd number of elements", [M])
def dtype_f4_odd(d):
    raw(os.path.join(d, M), {"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"\0\0")


@case("error", "6-bit floats: legal in the format, not representable in torch", [M, "F6_E2M3"])
def dtype_f6(d):
    t = ft()
    header, data = lay_out(t)
    header["extra"] = {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [len(data), len(data) + 3]}
    raw(os.path.join(d, M), header, data + b"\0" * 3)


@case("error", "the same tensor name twice, same entry (the library accepts it, the format forbids it)", [M, Q0])
def duplicate_name_same_entry(d):
    header, data = lay_out(ft())
    body = json.dumps(header, separators=(",", ":"))[:-1]
    raw(os.path.join(d, M), (body + f',"{Q0}":{json.dumps(header[Q0])}}}').encode(), data)


@case(
    "error",
    "the same tensor name twice over the same bytes: first 128 float16, then 64 float32 (two readers, two meanings)",
    [M, Q0],
)
def duplicate_name_two_meanings(d):
    header, data = lay_out(ft())
    first = dict(header[Q0], dtype="F16", shape=[8, 16])
    body = json.dumps(header, separators=(",", ":"))
    raw(os.path.join(d, M), ("{" + f'"{Q0}":{json.dumps(first)},' + body[1:]).encode(), data)


@case(
    "warn",
    "extra tensor names with NUL, a path, terminal escapes and a megabyte of text",
    ["extra"],
    note="no raw control byte on the terminal; no report grows by a megabyte per mention; no file is created by name",
)
def name_hostile(d):
    t = ft()
    for n in (
        "../../etc/passwd",
        "/abs/olute",
        "a\0b",
        "\x1b[31mred\x1b[0m",
        "C:\\x",
        "x" * 1_000_000,
        "<img src=x onerror=alert(1)>",
    ):
        t[n] = ("F32", (1,), f32([0.0]))
    good_file(os.path.join(d, M), t)


@case("warn", "two extra names that differ only in Unicode normalisation", ["extra"])
def name_unicode_twins(d):
    t = ft()
    t["caf\u00e9"] = ("F32", (1,), f32([1.0]))
    t["cafe\u0301"] = ("F32", (1,), f32([2.0]))
    good_file(os.path.join(d, M), t)


@case(
    "ok", "float32 tensors at odd byte offsets (a U8 scalar first)", note="values are read correctly although unaligned"
)
def misaligned(d):
    t = {"flag": ("U8", (1,), b"\1")}
    t.update(ft())
    header, data = lay_out(t)
    raw(os.path.join(d, M), header, data)


# -- values ----------------------------------------------------------------------------------


def with_value(value, enc=f32, dtype="F32"):
    t = llama(2, dtype)
    vals = [0.1] * (H * H)
    vals[5] = value
    t[Q0] = (dtype, (H, H), enc(vals))
    return t


@case(
    "warn",
    "one NaN",
    [Q0, "NaN"],
    note="a strict mode makes it an error; NaN must not spread silently to other rows (means, norms)",
)
def value_nan(d):
    good_file(os.path.join(d, M), with_value(float("nan")))


@case("warn", "float32 3e38: finite in the input, overflows when summed or stored as float16", [Q0])
def value_huge(d):
    good_file(os.path.join(d, M), with_value(3e38))


@case("warn", "a whole tensor of zeros (a cut download, or a dead layer)", [Q0])
def value_all_zero(d):
    t = ft()
    t[Q0] = ("F32", (H, H), b"\0" * 256)
    good_file(os.path.join(d, M), t)


# -- the index -------------------------------------------------------------------------------


@case(
    "error",
    "index names ../secret.safetensors",
    ["index.json", "../"],
    note="the file outside exists and is a valid checkpoint part",
)
def index_traversal(d):
    t, wm = sharded(d)
    good_file(os.path.join(os.path.dirname(d), "secret.safetensors"), {"lm_head.weight": t["lm_head.weight"]})
    wm["lm_head.weight"] = "../secret.safetensors"
    index(d, wm)


@case("error", "index names an absolute path", ["index.json"])
def index_absolute(d):
    t, wm = sharded(d)
    other = os.path.join(os.path.dirname(d), "absolute.safetensors")
    good_file(other, {"lm_head.weight": t["lm_head.weight"]})
    wm["lm_head.weight"] = os.path.abspath(other)
    index(d, wm)


@case("error", "index names /dev/zero", ["index.json"], max_rss_mb=500)
def index_dev_zero(d):
    _, wm = sharded(d)
    wm["lm_head.weight"] = "/dev/zero"
    index(d, wm)


@case("error", "index names a shard that does not exist", ["model-00002-of-00002.safetensors"])
def index_missing_shard(d):
    sharded(d)
    os.unlink(os.path.join(d, "model-00002-of-00002.safetensors"))


@case("warn", "a shard holds a tensor the index does not name", ["extra.weight"])
def index_unlisted_tensor(d):
    t, wm = sharded(d)
    n = "model-00002-of-00002.safetensors"
    part = {k: t[k] for k, v in wm.items() if v == n}
    part["extra.weight"] = ("F32", (1,), f32([1.0]))
    good_file(os.path.join(d, n), part)


@case("error", "the same tensor with different values in two shards", [Q0])
def index_tensor_in_two_shards(d):
    t, wm = sharded(d)
    n = "model-00002-of-00002.safetensors"
    part = {k: t[k] for k, v in wm.items() if v == n}
    part[Q0] = ("F32", (H, H), f32([9.0] * H * H))
    good_file(os.path.join(d, n), part)


@case("error", "index without weight_map", ["index.json", "weight_map"])
def index_no_weight_map(d):
    sharded(d)
    with open(os.path.join(d, M + ".index.json"), "w", encoding="utf-8") as f:
        json.dump({"metadata": {}}, f)


@case("error", "weight_map is a list", ["index.json", "weight_map"])
def index_weight_map_list(d):
    sharded(d)
    index(d, [["a", "b"]])


@case(
    "error",
    "index names the same tensor twice (duplicate JSON key, different shards)",
    ["index.json", "lm_head.weight"],
)
def index_duplicate_key(d):
    _, wm = sharded(d)
    body = json.dumps({"metadata": {}, "weight_map": wm})[:-2]
    with open(os.path.join(d, M + ".index.json"), "w", encoding="utf-8") as f:
        f.write(body + ', "lm_head.weight": "model-00001-of-00002.safetensors"}}')


@case("ok", "total_size in the index is wrong", note="recomputed in the output's own index")
def index_total_size_lies(d):
    _, wm = sharded(d)
    index(d, wm, 10**18)


@case(
    "error",
    "a shard is a named pipe (opening it would block for ever)",
    ["model-00002-of-00002.safetensors"],
    max_seconds=20,
)
def shard_is_fifo(d):
    sharded(d)
    p = os.path.join(d, "model-00002-of-00002.safetensors")
    os.unlink(p)
    os.mkfifo(p)


@case("error", "a shard is a symlink to itself", ["model-00002-of-00002.safetensors"])
def shard_symlink_loop(d):
    sharded(d)
    p = os.path.join(d, "model-00002-of-00002.safetensors")
    os.unlink(p)
    os.symlink("model-00002-of-00002.safetensors", p)


@case(
    "warn",
    "shard names that collide on a case-insensitive file system",
    ["Model-00001"],
    note="on a case-insensitive system: error. The output's own names must never collide",
)
def shard_case_collision(d):
    sharded(d, names=("model-00001.safetensors", "Model-00001.safetensors"))


@case(
    "error",
    "a single model.safetensors and an index that disagrees with it",
    [M, "index.json"],
    note="or take the documented one and warn; never mix",
)
def single_and_index(d):
    sharded(d, seed=3)
    good_file(os.path.join(d, M), ft())


@case("error", "empty folder with a config only", ["config.json"], note="say which file names were looked for")
def no_weights(d):
    pass


# -- pickles ---------------------------------------------------------------------------------


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def evil_pickle(path):
    return pickle.dumps({"w": _Evil(path)}, protocol=2)


@case(
    "error",
    "pytorch_model.bin is a hostile legacy pickle",
    ["pytorch_model.bin"],
    forbidden=["PWNED"],
    note="refused without loading: pickles are off unless asked for, and then weights_only",
)
def pickle_legacy(d):
    with open(os.path.join(d, "pytorch_model.bin"), "wb") as f:
        f.write(evil_pickle(os.path.join(d, "PWNED")))


@case(
    "error",
    "a good safetensors file beside a hostile pickle optimizer.pt",
    [],
    forbidden=["PWNED"],
    note="verdict ok: the merge succeeds and the pickle is neither opened nor copied",
)
def pickle_beside(d):
    good_file(os.path.join(d, M), ft())
    with open(os.path.join(d, "optimizer.pt"), "wb") as f:
        f.write(evil_pickle(os.path.join(d, "PWNED")))


CASES[-1]["verdict"] = "ok"


@case("error", "zip checkpoint with an entry that expands to 1 GB", ["pytorch_model.bin"], max_rss_mb=600)
def pickle_zip_bomb(d):
    path = os.path.join(d, "pytorch_model.bin")
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z,
        z.open("archive/data.pkl", "w", force_zip64=True) as f,
    ):
        for _ in range(64):
            f.write(b"\0" * (16 << 20))


# -- the model -------------------------------------------------------------------------------


@case("warn", "an extra tensor", ["model.layers.0.extra.weight"], note="say whether it was dropped or copied")
def model_extra_tensor(d):
    t = ft()
    t["model.layers.0.extra.weight"] = ("F32", (2,), f32([1.0, 2.0]))
    good_file(os.path.join(d, M), t)


@case("error", "larger vocabulary (embedding and head)", ["model.embed_tokens.weight", "32", "40"])
def model_vocab_resized(d):
    good_file(os.path.join(d, M), llama(2, vocab=40))
    config(d, vocab_size=40)


@case(
    "ok", "bfloat16 weights merged with a float32 base", note="result in the declared output dtype, computed in float32"
)
def model_bf16(d):
    good_file(os.path.join(d, M), llama(2, "BF16"))
    config(d, torch_dtype="bfloat16")


@case("ok", "float16, float32 and bfloat16 mixed in one file")
def model_mixed_dtypes(d):
    a, b, c = llama(2, "F16"), llama(2, "F32"), llama(2, "BF16")
    good_file(os.path.join(d, M), {k: (a, b, c)[i % 3][k] for i, k in enumerate(a)})


@case("error", "packed 4-bit integers (GPTQ style)", ["qweight"], note="integers must never be averaged")
def model_int_packed(d):
    t = ft()
    del t[Q0]
    t[Q0.replace("weight", "qweight")] = ("I32", (1, H), struct.pack("<8i", *range(8)))
    good_file(os.path.join(d, M), t)


@case(
    "ok",
    "tied: lm_head.weight absent here, present in the base",
    note="one documented rule; the output loads and generates",
)
def model_tied(d):
    good_file(os.path.join(d, M), llama(2, tied=True))
    config(d, tie_word_embeddings=True)


@case("error", "config.json is not JSON", ["config.json"], cfg=False)
def config_not_json(d):
    good_file(os.path.join(d, M), ft())
    with open(os.path.join(d, "config.json"), "w", encoding="utf-8") as f:
        f.write("{hidden_size: 8}")


@case(
    "error",
    "config.json is missing",
    ["config.json"],
    cfg=False,
    note="or ok for a bare state-dict merge, with a documented output",
)
def config_missing(d):
    good_file(os.path.join(d, M), ft())


@case(
    "ok",
    "config.json asks for remote code (auto_map)",
    forbidden=["PWNED"],
    note="the Python file is neither imported nor run, and is not copied to the output without an explicit option",
)
def config_remote_code(d):
    good_file(os.path.join(d, M), ft())
    config(d, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, trust_remote_code=True)
    with open(os.path.join(d, "evil.py"), "w", encoding="utf-8") as f:
        f.write(f"import os\nos.mkdir({os.path.join(d, 'PWNED')!r})\n")


@case("error", "config.json asks for 10**9 layers", ["num_hidden_layers"], max_rss_mb=600, max_seconds=20)
def config_huge(d):
    good_file(os.path.join(d, M), ft())
    config(d, num_hidden_layers=10**9)


@case("error", "a git lfs pointer in place of the weights", [M, "git lfs"])
def lfs_pointer(d):
    with open(os.path.join(d, M), "w", encoding="utf-8") as f:
        f.write("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 8192\n")


@case("error", "a zip archive with the name of a safetensors file", [M, "zip"])
def zip_named_safetensors(d):
    with zipfile.ZipFile(os.path.join(d, M), "w") as z:
        z.writestr("archive/data.pkl", b"\x80\x02.")


@case("error", "the last bytes are missing (a download cut short)", [M])
def truncated(d):
    p = os.path.join(d, M)
    good_file(p, ft())
    os.truncate(p, os.path.getsize(p) - 5)


@case("error", "the header begins with a space", [M])
def header_leading_space(d):
    header, data = lay_out(ft())
    raw(os.path.join(d, M), b" " + json.dumps(header).encode(), data)


@case("error", "the header is not UTF-8", [M, "UTF-8"])
def header_not_utf8(d):
    raw(os.path.join(d, M), b'{"caf\xe9":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0")


@case("error", "a tensor name that is half of a surrogate pair", [M, "UTF-8"])
def name_lone_surrogate(d):
    raw(os.path.join(d, M), {"a\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"\0")


@case("error", "a number of 5,000 digits in the header", [M])
def header_huge_number(d):
    raw(os.path.join(d, M), b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"\0")


@case("error", "a hole between two tensors", [M, "hole"])
def offsets_hole(d):
    one = {"dtype": "U8", "shape": [1]}
    raw(os.path.join(d, M), {"a": {**one, "data_offsets": [0, 1]}, "b": {**one, "data_offsets": [2, 3]}}, b"\0\0\0")


@case("error", "offsets in reverse order", [M, Q0])
def offsets_reversed(d):
    edit(d, lambda h, b: h[Q0]["data_offsets"].reverse())


@case("error", "offsets are true and false", [M, "flag"])
def offsets_boolean(d):
    raw(os.path.join(d, M), {"flag": {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}}, b"\0")


@case("error", "a shape of 100 dimensions", [M, "deep"])
def shape_many_dimensions(d):
    raw(os.path.join(d, M), {"deep": {"dtype": "U8", "shape": [1] * 100, "data_offsets": [0, 1]}}, b"\0")


@case("error", "an entry without a shape", [M, Q0])
def entry_without_shape(d):
    edit(d, lambda h, b: h[Q0].pop("shape") and None)


@case("error", "the entry of a tensor names its dtype twice", [M, "dtype"])
def entry_duplicate_key(d):
    raw(os.path.join(d, M), b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"\0")


@case("error", "a header without any tensor", ["no tensors"])
def no_tensors(d):
    raw(os.path.join(d, M), {"__metadata__": {"format": "pt"}})


@case("error", "a shard is a folder", ["model-00002-of-00002.safetensors", "folder"])
def shard_is_folder(d):
    sharded(d)
    p = os.path.join(d, "model-00002-of-00002.safetensors")
    os.unlink(p)
    os.mkdir(p)


@case("error", "a shard is a link to nothing", ["model-00002-of-00002.safetensors", "blobs/gone"])
def shard_dangling_link(d):
    sharded(d)
    p = os.path.join(d, "model-00002-of-00002.safetensors")
    os.unlink(p)
    os.symlink("../../blobs/gone", p)


@case("error", "index names a tensor that no shard holds", ["index.json", "ghost.weight"])
def index_missing_tensor(d):
    _, wm = sharded(d)
    index(d, {**wm, "ghost.weight": "model-00001-of-00002.safetensors"})


@case("error", "index names the wrong shard for a tensor", ["index.json", Q0, "model-00002-of-00002.safetensors"])
def index_wrong_shard(d):
    _, wm = sharded(d)
    index(d, {**wm, Q0: "model-00002-of-00002.safetensors"})


@case("error", "index names a file with a backslash and a drive", ["index.json"])
def index_windows_path(d):
    _, wm = sharded(d)
    index(d, {**wm, Q0: "C:\\secret.safetensors"})


@case("error", "index maps a tensor to a number", ["index.json", Q0])
def index_value_number(d):
    _, wm = sharded(d)
    index(d, {**wm, Q0: 7})


@case("error", "shards without an index", ["model-00001-of-00002.safetensors", "index"])
def index_absent(d):
    sharded(d)
    os.unlink(os.path.join(d, M + ".index.json"))


@case("error", "an adapter, not a whole model", ["adapter"])
def adapter_only(d):
    good_file(os.path.join(d, "adapter_model.safetensors"), {"a": ("F32", (1,), f32([0.0]))})
    with open(os.path.join(d, "adapter_config.json"), "w", encoding="utf-8") as f:
        json.dump({"peft_type": "LORA"}, f)


@case("error", "8-bit float codes with their scale", [Q0, "F8_E4M3"])
def model_float8(d):
    t = ft()
    t[Q0] = ("F8_E4M3", (H, H), bytes(H * H))
    t[Q0 + "_scale"] = ("F32", (1,), f32([1.0]))
    good_file(os.path.join(d, M), t)


@case("error", "config.json says that the weights are quantised", ["quantization_config"])
def config_quantised(d):
    good_file(os.path.join(d, M), ft())
    config(d, quantization_config={"quant_method": "bitsandbytes"})


@case("error", "hidden_size in config.json contradicts the weights", ["config.json", "hidden_size", "64", "8"])
def config_hidden_size(d):
    good_file(os.path.join(d, M), ft())
    config(d, hidden_size=64)


@case("error", "vocab_size in config.json exceeds the embedding", ["config.json", "vocab_size", "33", "32"])
def config_vocab_size(d):
    good_file(os.path.join(d, M), ft())
    config(d, vocab_size=33)


@case("ok", "the embedding is padded beyond the vocabulary")
def config_padded_embedding(d):
    good_file(os.path.join(d, M), ft())
    config(d, vocab_size=30)


@case("error", "intermediate_size in config.json contradicts the weights", ["config.json", "intermediate_size"])
def config_intermediate_size(d):
    good_file(os.path.join(d, M), ft())
    config(d, intermediate_size=24)


@case("error", "config.json names fewer layers than there are", ["config.json", "num_hidden_layers"])
def config_too_few_layers(d):
    good_file(os.path.join(d, M), ft())
    config(d, num_hidden_layers=1)


@case("error", "config.json names a key twice", ["config.json", "hidden_size"])
def config_duplicate_key(d):
    good_file(os.path.join(d, M), ft())
    with open(os.path.join(d, "config.json"), "w", encoding="utf-8") as f:
        f.write('{"hidden_size": 8, "hidden_size": 16}')


@case("error", "config.json is a named pipe", ["config.json", "named pipe"], cfg=False, max_seconds=20)
def config_is_fifo(d):
    good_file(os.path.join(d, M), ft())
    os.mkfifo(os.path.join(d, "config.json"))


# -------------------------------------------------------------------------------------- running


def write_all(out):
    out = os.path.abspath(out)
    if os.path.exists(out) and os.listdir(out):
        sys.exit(f"{out} exists and is not empty")
    for name, seed in (("base", 1), ("ft", 2)):
        d = os.path.join(out, "_good", name)
        os.makedirs(d)
        good_file(os.path.join(d, M), llama(seed))
        config(d)
    manifest = []
    for c in CASES:
        d = os.path.join(out, c["id"], "ft")
        os.makedirs(d)
        if c["cfg"]:
            config(d)
        entry = {k: v for k, v in c.items() if k not in ("make", "cfg")}
        entry["path"] = os.path.join(c["id"], "ft")
        entry["forbidden"] = [os.path.join(entry["path"], x) for x in c["forbidden"]]
        try:
            c["make"](d)
        except (OSError, NotImplementedError, AttributeError) as e:
            entry["skipped"] = repr(e)
            shutil.rmtree(d, ignore_errors=True)
        manifest.append(entry)
    with open(os.path.join(out, "manifest.json"), "w", encoding="utf-8") as f:
        json.dump({"good": {"base": "_good/base", "ft": "_good/ft"}, "cases": manifest}, f, indent=1)
    return manifest


def unlock(out):
    """Make the corpus removable again (one case has a file of mode 000)."""
    for folder, _, files in os.walk(out):
        for n in files:
            p = os.path.join(folder, n)
            if not os.path.islink(p) and not stat.S_IMODE(os.lstat(p).st_mode):
                os.chmod(p, 0o600)


def main():
    if sys.argv[1:] == ["--list"]:
        for c in CASES:
            print(f"{c['id']:28} {c['verdict']:6} {c['label']}")
        print(len(CASES), "cases", file=sys.stderr)
    elif len(sys.argv) == 2:
        m = write_all(sys.argv[1])
        skipped = [x["id"] for x in m if "skipped" in x]
        print(f"{len(m)} cases under {sys.argv[1]}" + (f"; skipped: {', '.join(skipped)}" if skipped else ""))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
