"""Feed readers with what coverage-guided mutation finds; nothing but a ``UserError`` may come out.

Files and requests of strangers: overrides and configs, text, JSONL and Parquet, safetensors, GGUF,
config.json and tokenizer.json, templates, requests, bodies for the server; and texts through a
tokenizer and back.

Command: PYTHONPATH=. python experiments/reliability/fuzz.py SECONDS OUT.json [TARGET ...]
(needs ``pip install atheris``; each target runs in a process of its own)
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

FOLDER = Path(
    tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)


def _file(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")


def overrides(data: bytes) -> None:
    from ldlm_jax.config import load_config, resolve

    resolve(load_config(None, _text(data).split("\n")))


def config_file(data: bytes) -> None:
    from ldlm_jax.config import load_config, resolve

    resolve(load_config(str(_file("config.json", data))))


def _documents(name: str, data: bytes) -> None:
    from ldlm_jax.data.files import read_path

    for text in read_path(_file(name, data), "text"):
        text.encode()


def text(data: bytes) -> None:
    _documents("a.txt", data)


def jsonl(data: bytes) -> None:
    _documents("a.jsonl", data)


def parquet(data: bytes) -> None:
    _documents("a.parquet", data)


def weights(data: bytes) -> None:
    from ldlm_jax.pretrained.weights import Safetensors

    _file("model.safetensors", data)
    found = Safetensors(FOLDER)
    for name in found.names():
        found.read(name, (slice(0, 2),) * max(1, len(found.shape(name))))


def gguf(data: bytes) -> None:
    from ldlm_jax.pretrained.hf_config import decoder_from_gguf
    from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
    from ldlm_jax.pretrained.weights import Gguf

    path = _file("a.gguf", data)
    decoder_from_gguf(Gguf(path))
    PretrainedTokenizer.load(path)


def model_config(data: bytes) -> None:
    from ldlm_jax.pretrained.hf_config import read_config, start_token

    _file("config.json", data)
    read_config(FOLDER)
    start_token(FOLDER)


def tokenizer_file(data: bytes) -> None:
    from ldlm_jax.data.tokenizer import Tokenizer
    from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer

    _file("tokenizer.json", data)
    theirs = PretrainedTokenizer.load(FOLDER)
    theirs.encode(["a b"])
    Tokenizer.adopt(theirs.backend, "mine").encode(["a b"])


def template(data: bytes) -> None:
    from ldlm_jax.sampling.template import cut_spans, parse_spans, parse_template

    first, _, rest = _text(data).partition("\n")
    for parse in (parse_template, lambda spec: cut_spans(rest, parse_spans(spec))):
        _refusable(parse, first)


def requests(data: bytes) -> None:
    from ldlm_jax.sampling.config import SampleConfig
    from ldlm_jax.sampling.request import read_requests

    for request in read_requests(str(_file("r.jsonl", data)), SampleConfig(), 0):
        _refusable(lambda asked: asked.pieces, request)


_MODEL, _TRAINED = [], []


def completions(data: bytes) -> None:
    from ldlm_jax import load
    from ldlm_jax.serving.protocol import Choice, parse

    if not _MODEL:
        _MODEL.append(load("tests/fixtures/run_0_1"))
    generator = _MODEL[0].run.generator
    asked = parse(data, generator, _MODEL[0].options(), 16)
    for request in asked.requests:
        _refusable(Choice, generator, request, asked)


def round_trip(data: bytes) -> None:
    from ldlm_jax.data.tokenizer import Tokenizer

    if not _TRAINED:
        _TRAINED.append(Tokenizer.train(["some words of a text, and other words"] * 3, 280))
    written = data.decode("utf-8", errors="ignore")
    ids, _ = _TRAINED[0].encode_flat([written])
    if _TRAINED[0].decode(ids) != written or ids.tolist() != _TRAINED[0].encode([written])[0]:
        raise AssertionError(f"{written!r} does not come back")


def _refusable(work, *arguments) -> None:
    from ldlm_jax.errors import UserError

    with contextlib.suppress(UserError):
        work(*arguments)


LLAMA = {
    "model_type": "llama", "hidden_act": "silu", "vocab_size": 40, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1,
    "max_position_embeddings": 64, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4,
}  # fmt: skip
LINES = '{"text": "a\\u00e9"}\n{"text": null}\n'
REQUESTS = '{"prompt": "a", "steps": 3, "seed": 5, "guidance": 1.5}\n{"template": "a ____{3} b"}'
# Each with inputs to begin with.
TARGETS = {
    overrides: [b"train.num_steps=1e3\nphases.0.until=5\ntrain.evals=('samples',)"],
    config_file: [b'{"train": {"num_steps": 5}, "phases": [{"until": 5}]}'],
    text: [b"one\n\ntwo\r\n\r\n\xef\xbb\xbfthree", b"\xff\xfea\0"],
    jsonl: [LINES.encode()],
    parquet: [],
    weights: [],
    gguf: [],
    model_config: [json.dumps(LLAMA).encode()],
    tokenizer_file: [],
    template: [b"a ____{3} b ____\n0:1,4:9"],
    requests: [REQUESTS.encode()],
    completions: [
        *REQUESTS.encode().split(b"\n"),
        b'{"prompt": ["a", "b"], "n": 2, "stop": ["x"], "logprobs": 1, "max_tokens": 3}',
    ],
    round_trip: ["some words, é中\U0001f642 \0 <eos>".encode()],
}


def seeds(target) -> list[bytes]:
    """Inputs to begin with; files of formats are written by their own libraries."""
    if target is parquet:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({"text": ["a", "b", None]})
        pyarrow.parquet.write_table(table, FOLDER / "seed")
    elif target is weights:
        import numpy as np
        from safetensors.numpy import save_file

        save_file({"w": np.ones((2, 3), np.float32)}, FOLDER / "seed")
    elif target is gguf:
        _write_gguf(FOLDER / "seed")
    elif target is tokenizer_file:
        round_trip(b"")
        return [_TRAINED[0].to_json().replace('"<eos>"', '"</s>"').encode()]
    else:
        return TARGETS[target]
    return [(FOLDER / "seed").read_bytes()]


def _write_gguf(path: Path) -> None:
    import gguf as library

    writer = library.GGUFWriter(str(path), "llama")
    for key in ("embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 4)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_merges(["a b"])
    import numpy as np

    writer.add_tensor("token_embd.weight", np.ones((3, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def found_by(target, data: bytes) -> str | None:
    """What came out that should not have: its kind and place."""
    from ldlm_jax.errors import UserError

    try:
        target(data)
    except UserError:
        return None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"[
            :300
        ]
    return None


def _fuzz(name: str, seconds: str, findings: str) -> None:
    """Fuzz one target for some seconds; libFuzzer ends the process."""
    import atheris

    target, seen = {t.__name__: t for t in TARGETS}[name], set()
    with atheris.instrument_imports(include=["ldlm_jax", "json"]):
        import ldlm_jax.config
        import ldlm_jax.data.files
        import ldlm_jax.sampling.request
        import ldlm_jax.serving.protocol  # noqa: F401

    def one(data: bytes) -> None:
        found = found_by(target, data)
        if found and found.split(": ")[0] not in seen:
            seen.add(found.split(": ")[0])
            with Path(findings).open("a") as out:
                out.write(json.dumps({"target": name, "found": found, "input": data.hex()}) + "\n")

    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(target)):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-max_len=8192", "-timeout=30",
         "-rss_limit_mb=6000", "-print_final_stats=1"], one
    )  # fmt: skip
    atheris.Fuzz()


def main(seconds: int, out: Path, names: list[str]) -> None:
    """Fuzz the targets one after another, each for its share of the time; write what was seen."""
    totals, findings = {}, out.with_suffix(".findings.jsonl")
    findings.unlink(missing_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            process = subprocess.run(
                [sys.executable, __file__, "--one", name, str(max(1, seconds // len(names))),
                 str(findings)],
                stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace",
                env=os.environ | {"JAX_PLATFORMS": "cpu", "FUZZ_FOLDER": folder},
            )  # fmt: skip
        said = process.stderr.splitlines()
        runs = [int(line.split()[-1]) for line in said if "number_of_executed_units" in line]
        totals[name] = {"inputs": sum(runs), "exit_code": process.returncode}
        print(name, totals[name], flush=True)
    found = findings.read_text().splitlines() if findings.exists() else []
    record = {"seconds": seconds, "inputs": sum(t["inputs"] for t in totals.values()),
              "findings": len(found), "targets": totals}  # fmt: skip
    out.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(found), json.dumps(record))


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        _fuzz(*sys.argv[2:5])
    else:
        main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or [t.__name__ for t in TARGETS])
