"""What measuring a Hugging Face directory costs: a GPT-2 of 124 million random weights, 1,000 sequences of 128 tokens.

    OMP_NUM_THREADS=1 python benchmarks/pretrained.py [--quick]

The directory is made here: the configuration of GPT-2 small (12 blocks of width 768, 50,257 tokens, embeddings tied),
random weights, float32, and a tokenizer of 50,257 made-up words; each text has 128 of them. In a process each, over the
same batches: `forward`, `model(batch)` in evaluation mode without gradients; `backward`, the model's own loss and its
gradients with respect to the activations alone; `measure`, `isthmus.measure` with what `load_pretrained` chooses (the
model's own loss, gradients of the activations measured); and the same with `loss=None`. Printed are seconds (of the
clock, and of the processor, which other programs disturb less), without loading, and the peak resident memory of the
process, with loading.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

BOUND = 12 * 2**30
WORDS = 50257
LENGTH = 128
KINDS = ("forward", "measure", "backward", "measure, no loss")


def make(folder: Path, samples: int, layers: int) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=layers, vocab_size=WORDS)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    vocabulary = {f"w{i}": i for i in range(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w50256").save_pretrained(folder)
    drawn = torch.randint(0, WORDS, (samples, LENGTH), generator=torch.Generator().manual_seed(1))
    lines = "\n".join(" ".join(f"w{number}" for number in row) for row in drawn.tolist())
    (folder / "lines.txt").write_text(lines)


def one(kind: str, folder: Path) -> dict[str, Any]:
    """One kind, in this process."""
    import isthmus
    from isthmus.probe import load_pretrained

    loss = None if kind.endswith("no loss") else "auto"
    model, samples, options = load_pretrained(folder, text=folder / "lines.txt", loss=loss)
    clock, processor = time.perf_counter(), time.process_time()
    if kind.startswith("measure"):
        isthmus.measure(model, samples, **options, progress=False)
    else:
        model.requires_grad_(False)
        for batch in samples:
            if kind == "forward":
                batch.pop("labels")
                with torch.no_grad():
                    model(**batch)
            else:
                words = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()
                torch.autograd.grad(model(inputs_embeds=words, **batch).loss, words)
    return {
        "seconds": time.perf_counter() - clock,
        "processor": time.process_time() - processor,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "batch": samples.batch_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 blocks and 40 sequences")
    parser.add_argument("--samples", type=int, help="sequences")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one[0], Path(given.one[1]))))
        return
    samples = given.samples or (40 if given.quick else 1000)
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary), samples, 2 if given.quick else 12)
        found = {}
        for kind in KINDS:
            words = [sys.executable, __file__, "--one", kind, temporary]
            found[kind] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            r, base = found[kind], found["forward"]
            print(
                f"{kind:<18}{r['seconds']:8.1f} s  {r['processor']:8.1f} s of processor "
                f"({r['processor'] / base['processor']:.2f} × forward)  peak {r['peak'] / 2**30:.2f} GiB  "
                f"batches of {r['batch']}",
                flush=True,
            )
    peak = found["measure"]["peak"]
    print(f"{samples} sequences of {LENGTH} tokens; memory {'within' if peak < BOUND else 'ABOVE'} 12 GiB")
    sys.exit(peak >= BOUND)


if __name__ == "__main__":
    main()
